//! Comparing the store with instance metadata (§4.10): EC2 is asked only about an interface that differs.

use selvage_ipamd_core::ids::{EniId, Timestamp};

use super::steps::Step;
use super::{Aws, Event, Phase, RECONCILE};
use crate::agent::Io;
use crate::ec2::View;

impl Aws {
    /// If the last pool action is a minute old.
    pub(super) fn reconcile(&mut self, io: &mut Io<'_, Event>) {
        self.phase = Phase::Reconciling;
        if io.now.since(self.last_action) < RECONCILE {
            return self.go_on(io);
        }
        self.last_action = io.now;
        let seen = io.ec2.seen(io.node, io.now);
        self.doubtful = self.differing(&seen);
        self.verify_next(io);
    }

    fn differing(&self, seen: &[View]) -> Vec<EniId> {
        let mut differing: Vec<EniId> = seen
            .iter()
            .filter(|shown| {
                let known = self.store.enis().iter().find(|eni| eni.id == shown.id);
                known.is_none_or(|eni| !eni.cidrs().eq(shown.blocks.iter().copied()))
            })
            .map(|shown| shown.id.clone())
            .collect();
        let missing = self
            .store
            .enis()
            .iter()
            .filter(|eni| !seen.iter().any(|shown| shown.id == eni.id));
        differing.extend(missing.map(|eni| eni.id.clone()));
        differing
    }

    pub(super) fn verify_next(&mut self, io: &mut Io<'_, Event>) {
        match self.doubtful.pop() {
            Some(eni) => self.call(Step::Verify(eni), io),
            None => self.go_on(io),
        }
    }

    /// Takes over what EC2 says of one interface; one that is being detached is not adopted.
    pub(super) fn import(&mut self, eni: &EniId, view: Option<&View>, now: Timestamp) {
        let Some(view) = view.filter(|view| view.attachment.is_some()) else {
            self.store.remove(eni);
            return;
        };
        let known = self.store.enis().iter().find(|known| known.id == *eni);
        let gone: Vec<_> = known
            .iter()
            .flat_map(|known| known.cidrs())
            .filter(|cidr| !view.blocks.contains(cidr))
            .collect();
        self.store.remove_cidrs(eni, &gone);
        self.store.add(eni, false, &view.blocks, now);
    }
}
