//! What came of giving back: blocks, a place, an interface.

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::IpNet;

use super::FIRST_PAUSE;
use crate::cloud::{CloudError, CloudErrorKind};
use crate::ids::{EniId, Timestamp};
use crate::pool::{Changes, Leaving, Pool};

/// An interface that is being detached cannot be deleted: EC2 takes some seconds, and each try is a call.
const DETACHING: Duration = Duration::from_secs(10);

impl Pool {
    pub(super) fn mark_leaving(&mut self, eni: &EniId, blocks: &BTreeSet<IpNet>) {
        let Some(eni) = self.enis.get_mut(eni) else {
            return;
        };
        for net in blocks {
            if let Some(block) = eni.blocks.get_mut(net) {
                block.leaving.get_or_insert(Leaving::Asked);
            }
        }
    }

    pub(super) fn unassigned(
        &mut self,
        eni: &EniId,
        blocks: &BTreeSet<IpNet>,
        result: Result<(), CloudError>,
        now: Timestamp,
    ) {
        match result {
            Ok(()) => {
                self.succeeded(eni);
                let Some(eni) = self.enis.get_mut(eni) else {
                    return;
                };
                for net in blocks {
                    if eni.blocks.remove(net).is_some() {
                        self.released.insert(*net, now);
                    }
                }
            }
            Err(error) => {
                self.failed(eni, &error, now);
                let Some(eni) = self.enis.get_mut(eni) else {
                    return;
                };
                for net in blocks {
                    let Some(block) = eni.blocks.get_mut(net) else {
                        continue;
                    };
                    match (block.leaving, error.may_have_happened()) {
                        (Some(_), true) => block.leaving = Some(Leaving::Doubtful),
                        // Nothing was done, now or before: it is still ours.
                        (Some(Leaving::Asked), false) => block.leaving = None,
                        (Some(Leaving::Doubtful), false) => eni.unsure = true,
                        (None, true | false) => {}
                    }
                }
            }
        }
    }

    pub(super) fn detached(&mut self, eni: &EniId, result: Result<(), CloudError>, now: Timestamp) {
        match result {
            Ok(()) => {
                self.succeeded(eni);
                self.discard(eni, now);
                if let Some(eni) = self.enis.get_mut(eni) {
                    eni.retry.rest(DETACHING, now);
                }
            }
            Err(error) => {
                self.failed(eni, &error, now);
                if error.kind == CloudErrorKind::NotFound {
                    self.discard(eni, now);
                }
            }
        }
    }

    /// A refusal usually means that it is still being detached. No pod waits for this, and deleting again is the
    /// look-up.
    pub(super) fn deleted(&mut self, id: &EniId, result: Result<(), CloudError>, now: Timestamp) {
        match result {
            Ok(()) => {
                self.succeeded(id);
                self.drop_deleted(id, now);
            }
            Err(error) if error.kind == CloudErrorKind::NotFound => self.drop_deleted(id, now),
            Err(_) => {
                if let Some(eni) = self.enis.get_mut(id) {
                    eni.retry.fail(FIRST_PAUSE, &mut self.jitter, now);
                }
            }
        }
    }

    /// The cloud has deleted it: its addresses are no longer ours.
    fn drop_deleted(&mut self, id: &EniId, now: Timestamp) {
        let blocks: Vec<IpNet> = self
            .enis
            .get(id)
            .map(|e| e.blocks.keys().copied().collect())
            .unwrap_or_default();
        for net in blocks {
            self.orphan(id, net, &mut Changes::default());
            self.released.insert(net, now);
        }
        if self.enis.remove(id).is_some() {
            self.gone.insert(id.clone(), now);
        }
    }
}
