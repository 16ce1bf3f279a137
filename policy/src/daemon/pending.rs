//! What has yet to reach the kernel, and when it may.

use std::collections::BTreeSet;
use std::time::Duration;

use selvage_netfilter::Suspect;
use selvage_policy_core::index::Delta;
use tokio::time::Instant;

use super::pace::Pace;
use crate::dataplane::Look;
use crate::metrics::Work;

/// The first pause after a failure; each further one doubles it.
const PAUSE_FIRST: Duration = Duration::from_millis(100);

/// The longest pause after a failure.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// The same for what could not be deleted. It is in nobody's way.
const SWEEP_FIRST: Duration = Duration::from_secs(1);
const SWEEP_MAX: Duration = Duration::from_secs(300);

/// The pause after so many tries.
pub(super) fn growing(first: Duration, tries: u32, longest: Duration) -> Duration {
    first
        .saturating_mul(2_u32.saturating_pow(tries))
        .min(longest)
}

/// So many repairs may follow each other without a pause, and one more for each [`PAID`] since; a
/// fight with somebody who undoes them gets slower.
const REPAIRS_FREE: u32 = 5;

/// What somebody changes now and then is repaired at once however long that goes on: a hole is
/// dearer than a repair in two seconds.
const PAID: Duration = Duration::from_secs(2);

/// After so long without a repair, the next one is a first one.
const CALM: Duration = Duration::from_secs(60);

/// So many writes of chains follow each other without a gap. A change of policy often comes in
/// several events (a policy and the pods it is for): these share two or three writes.
const BURST: u32 = 4;

/// After a change of members there is none for so many times as long as it used a processor, so that a
/// storm of pods costs a sixteenth of a core and shares its messages to the kernel; but not for longer than
/// that, whatever it cost.
const MEMBERS_REST: u32 = 15;
const MEMBERS_REST_MAX: Duration = Duration::from_millis(100);

/// Changes that cost so much together do not rest: what comes alone never waits.
const MEMBERS_FREE: Duration = Duration::from_millis(20);

/// When there is something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// This, now.
    Now(Work),
    /// A look at what is suspected, now.
    Inspect,
    /// The files of this node's pods, now: rules of all of them are in the kernel.
    Tell,
    /// Something, at that time and not before.
    At(Instant),
    /// Nothing until something happens.
    Never,
}

/// Changes on their way.
///
/// First changes go in at once, [`BURST`] of them; each gap allows one more. So what is rare never
/// waits and what is frequent shares writes. So it is with members, whose gaps go by what they cost. They do
/// not go in while chains are to be compiled: the compiled sets hold their changes.
#[derive(Debug)]
pub(super) struct Pending {
    gap: Duration,
    rules: bool,
    look: Look,
    /// How the rules that are under way, or were last, are compared.
    looked: Look,
    /// Whether members of sets may have changed.
    members: bool,
    /// Whether a pod of this node may have other addresses, of which files tell.
    moved: bool,
    /// Whether work is under way.
    busy: bool,
    /// Of rules, at one gap a write.
    pace: Pace,
    members_pace: Pace,
    /// Not before this time, after a failure.
    not_before: Option<Instant>,
    failures: u32,
    /// What somebody else may have changed.
    suspects: BTreeSet<Suspect>,
    repairs: Repairs,
    /// When what could not be deleted is tried again.
    sweep: Option<Instant>,
    sweeps: u32,
}

impl Pending {
    pub(super) fn new(gap: Duration) -> Self {
        Self {
            gap,
            rules: false,
            look: Look::Afresh,
            looked: Look::Afresh,
            members: false,
            moved: false,
            busy: false,
            pace: Pace::new(gap * (BURST - 1)),
            members_pace: Pace::new(MEMBERS_FREE * MEMBERS_REST),
            not_before: None,
            failures: 0,
            suspects: BTreeSet::new(),
            repairs: Repairs::default(),
            sweep: None,
            sweeps: 0,
        }
    }

    /// Takes in what followed from an event.
    pub(super) fn add(&mut self, delta: &Delta) {
        self.rules |= delta.recompile;
        self.members |= delta.members;
    }

    /// A pod of this node may have other addresses than its file says.
    pub(super) fn moved(&mut self) {
        self.moved = true;
    }

    /// Asks for everything to be compared with what is really there.
    pub(super) fn look_afresh(&mut self) {
        self.rules = true;
        self.look = Look::Afresh;
    }

    pub(super) fn due(&self, now: Instant) -> Due {
        if self.busy {
            return Due::Never;
        }
        if !self.rules && !self.members {
            return self.due_beside(now);
        }
        let (work, earliest) = if self.rules {
            (Work::Rules, self.pace.not_before())
        } else {
            (Work::Members, self.members_pace.not_before())
        };
        match earliest.max(self.not_before) {
            Some(when) if when > now => Due::At(when),
            Some(_) | None => Due::Now(work),
        }
    }

    /// What is due when nothing has changed on our side.
    fn due_beside(&self, now: Instant) -> Due {
        if self.moved {
            return Due::Tell;
        }
        let repair = (!self.suspects.is_empty()).then(|| self.repairs.not_before.unwrap_or(now));
        match (repair, self.sweep) {
            (Some(when), _) if when <= now => Due::Inspect,
            (_, Some(when)) if when <= now => Due::Now(Work::Rules),
            (Some(one), Some(other)) => Due::At(one.min(other)),
            (Some(when), None) | (None, Some(when)) => Due::At(when),
            (None, None) => Due::Never,
        }
    }

    /// Somebody else may have changed what we hold.
    pub(super) fn suspect(&mut self, suspect: Suspect) {
        self.suspects.insert(suspect);
    }

    /// What is suspected is looked at now.
    pub(super) fn begin_inspection(&mut self) -> BTreeSet<Suspect> {
        self.busy = true;
        std::mem::take(&mut self.suspects)
    }

    /// It was so, or not. If so everything is looked at, and suspicions have to wait, the longer
    /// the more often it was so lately: how often.
    pub(super) fn inspected(&mut self, changed: bool, now: Instant) -> u32 {
        self.busy = false;
        if changed {
            self.look_afresh();
            self.repairs.count(now)
        } else {
            0
        }
    }

    /// It was so of rules alone: sets are believed.
    pub(super) fn inspected_rules(&mut self, now: Instant) -> u32 {
        self.busy = false;
        self.rules = true;
        self.look = self.look.max(Look::Rules);
        self.repairs.count(now)
    }

    /// How often somebody else's changes were found, as long as it goes on.
    pub(super) fn fought(&self, now: Instant) -> u32 {
        self.repairs.lately(now)
    }

    /// Rules are compiled now: with them goes every change of members so far.
    pub(super) fn begin_rules(&mut self, now: Instant) -> Look {
        self.busy = true;
        self.rules = false;
        self.pace.owe(now, self.gap);
        self.members = false;
        self.moved = false;
        if self.sweep.is_some_and(|sweep| sweep <= now) {
            self.look = Look::Afresh;
        }
        self.looked = std::mem::replace(&mut self.look, Look::Remembered);
        match self.looked {
            Look::Remembered => {}
            Look::Rules => self
                .suspects
                .retain(|suspect| !matches!(suspect, Suspect::Rules(_))),
            Look::Afresh => self.suspects.clear(),
        }
        self.looked
    }

    /// Members are changed now.
    pub(super) fn begin_members(&mut self) {
        self.busy = true;
        self.members = false;
    }

    /// They are, or there was nothing to change, and that used so much of a processor.
    pub(super) fn members_changed(&mut self, now: Instant, used: Duration) {
        let rest = (used * MEMBERS_REST).min(MEMBERS_REST_MAX);
        self.members_pace.owe(now, rest);
    }

    /// Not members but chains are to be written.
    pub(super) fn rules_instead(&mut self) {
        self.busy = false;
        self.rules = true;
    }

    /// Files are brought up to date now.
    pub(super) fn begin_telling(&mut self) {
        self.busy = true;
        self.moved = false;
    }

    /// They are, or whoever waits for one goes on waiting.
    pub(super) fn told(&mut self) {
        self.busy = false;
    }

    /// The kernel is right.
    pub(super) fn succeeded(&mut self) {
        self.busy = false;
        self.failures = 0;
        self.not_before = None;
    }

    /// So much is out of use and could not be deleted by the rules' work that has succeeded. Some of
    /// it may be free soon by itself, so it is tried again, after pauses that grow.
    pub(super) fn left(&mut self, now: Instant, left: usize) {
        if left > 0 {
            self.sweep = Some(now + growing(SWEEP_FIRST, self.sweeps, SWEEP_MAX));
            self.sweeps = self.sweeps.saturating_add(1);
        } else if self.looked == Look::Afresh {
            self.sweep = None;
            self.sweeps = 0;
        }
    }

    /// Whatever it was, everything is compared afresh after a pause, which is the answer.
    pub(super) fn failed(&mut self, now: Instant) -> Duration {
        self.busy = false;
        self.look_afresh();
        let pause = growing(PAUSE_FIRST, self.failures, PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(now + pause);
        pause
    }
}

/// Repairs, for as long as they follow each other.
#[derive(Debug, Default)]
struct Repairs {
    count: u32,
    last: Option<Instant>,
    /// When all of them will have been paid for, at one in [`PAID`].
    paid: Option<Instant>,
    /// Suspicions are not looked at before.
    not_before: Option<Instant>,
}

impl Repairs {
    fn lately(&self, now: Instant) -> u32 {
        let recent = |last: Instant| now.saturating_duration_since(last) < CALM;
        if self.last.is_some_and(recent) {
            self.count
        } else {
            0
        }
    }

    fn count(&mut self, now: Instant) -> u32 {
        self.count = self.lately(now).saturating_add(1);
        self.last = Some(now);
        let paid = self.paid.map_or(now, |paid| paid.max(now)) + PAID;
        self.paid = Some(paid);
        let owed = paid.saturating_duration_since(now).as_millis() / PAID.as_millis();
        let pause = match u32::try_from(owed).unwrap_or(u32::MAX) {
            ..=REPAIRS_FREE => Duration::ZERO,
            more => growing(PAUSE_FIRST, more - REPAIRS_FREE, PAUSE_MAX),
        };
        self.not_before = Some(now + pause);
        self.count
    }
}

#[cfg(test)]
mod tests;
