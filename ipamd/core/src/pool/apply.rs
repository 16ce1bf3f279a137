//! Actions begun and outcomes taken in.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Creating, InFlight, Pool, Stage};
use crate::action::{Action, Outcome};
use crate::cloud::{CloudError, CloudErrorKind};
use crate::ids::{ClientToken, EniId, SecurityGroupId, Timestamp};

mod grow;
mod shrink;

/// First pause after a failure of one interface; doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

impl Pool {
    /// Notes that an action is being carried out. Its outcome must come back by [`Pool::apply`].
    pub fn begin(&mut self, action: &Action, now: Timestamp) {
        if let Some(budget) = action.operation().and_then(|operation| operation.budget()) {
            self.bucket.take(budget, now);
        }
        match action {
            Action::Create(request) => {
                self.serial = self.serial.max(serial_of(&request.token) + 1);
                let creating = Creating {
                    request: request.clone(),
                    in_flight: true,
                };
                self.creating.insert(request.token.clone(), creating);
            }
            Action::DescribeSubnets => self.network.describing = true,
            Action::Assign { eni, want } => self.set_in_flight(eni, InFlight::Assign(*want)),
            Action::Unassign { eni, blocks } => {
                self.last_decrease = Some(now);
                self.set_in_flight(eni, InFlight::Other);
                self.mark_leaving(eni, blocks);
            }
            Action::TearDown { eni } => {
                self.last_decrease = Some(now);
                self.set_in_flight(eni, InFlight::Other);
                self.move_on(eni, now, |stage| match stage {
                    Stage::Ready(place) => Stage::Leaving(place),
                    other => other,
                });
            }
            Action::Attach { eni, device_index } => {
                self.set_in_flight(eni, InFlight::Attach(*device_index));
            }
            Action::Keep { eni, .. }
            | Action::SetUp { eni }
            | Action::Describe { eni }
            | Action::Tag { eni, .. }
            | Action::Regroup { eni, .. }
            | Action::Detach { eni, .. }
            | Action::Delete { eni } => self.set_in_flight(eni, InFlight::Other),
        }
    }

    /// Takes in what came of an action.
    pub fn apply(&mut self, outcome: Outcome, now: Timestamp) {
        self.land(&outcome, now);
        match outcome {
            Outcome::Created(token, result) => self.created(&token, result, now),
            Outcome::Attached(eni, device_index, result) => {
                self.attached(&eni, device_index, result, now);
            }
            Outcome::Kept(eni, Ok(())) => {
                self.succeeded(&eni);
                self.move_on(&eni, now, |stage| match stage {
                    Stage::Attached(place) => Stage::Kept(place),
                    other => other,
                });
            }
            Outcome::SetUp(eni, Ok(())) => {
                self.clear_retry(&eni);
                self.move_on(&eni, now, |stage| match stage {
                    Stage::Kept(place) => Stage::Ready(place),
                    other => other,
                });
            }
            Outcome::TornDown(eni, Ok(())) => {
                self.clear_retry(&eni);
                self.move_on(&eni, now, |stage| match stage {
                    Stage::Leaving(place) => Stage::Down(place),
                    other => other,
                });
            }
            Outcome::SetUp(eni, Err(words)) => {
                self.failed_locally(&eni, format!("set up {eni} on the host: {words}"), now);
            }
            Outcome::TornDown(eni, Err(words)) => {
                self.failed_locally(&eni, format!("remove {eni} from the host: {words}"), now);
            }
            Outcome::Described(eni, Ok(facts)) => {
                self.described(&eni, facts, now);
            }
            Outcome::Assigned(eni, want, result) => self.assigned(&eni, want, result, now),
            Outcome::Unassigned(eni, blocks, result) => {
                self.unassigned(&eni, &blocks, result, now);
            }
            Outcome::Tagged(eni, tags, Ok(())) => {
                if let Some(eni) = self.enis.get_mut(&eni) {
                    eni.untagged.retain(|key, _| !tags.contains_key(key));
                }
            }
            Outcome::Tagged(eni, _, Err(error)) => self.not_tagged(&eni, &error, now),
            Outcome::Regrouped(eni, groups, result) => self.regrouped(&eni, groups, result, now),
            Outcome::Subnets(answer) => self.described_subnets(answer, now),
            Outcome::Detached(eni, result) => self.detached(&eni, result, now),
            Outcome::Deleted(eni, result) => self.deleted(&eni, result, now),
            Outcome::Kept(eni, Err(error)) | Outcome::Described(eni, Err(error)) => {
                self.failed(&eni, &error, now);
            }
        }
    }

    /// What every outcome brings: the interface is idle again, and the bucket knows how EC2 feels.
    fn land(&mut self, outcome: &Outcome, now: Timestamp) {
        match outcome {
            Outcome::Created(..) | Outcome::Subnets(_) => {}
            Outcome::Attached(eni, ..)
            | Outcome::Kept(eni, _)
            | Outcome::SetUp(eni, _)
            | Outcome::Described(eni, _)
            | Outcome::Assigned(eni, ..)
            | Outcome::Unassigned(eni, ..)
            | Outcome::Tagged(eni, ..)
            | Outcome::Regrouped(eni, ..)
            | Outcome::TornDown(eni, _)
            | Outcome::Detached(eni, _)
            | Outcome::Deleted(eni, _) => {
                if let Some(eni) = self.enis.get_mut(eni) {
                    eni.in_flight = None;
                }
            }
        }
        let Some(budget) = outcome.operation().and_then(|operation| operation.budget()) else {
            return;
        };
        match outcome.cloud_error().map(|error| error.kind) {
            Some(CloudErrorKind::Throttled) => self.bucket.throttled(budget, now),
            // No answer tells nothing.
            Some(CloudErrorKind::Unknown) => {}
            None
            | Some(
                CloudErrorKind::SubnetExhausted
                | CloudErrorKind::PrefixesExhausted
                | CloudErrorKind::NoSuchNetwork
                | CloudErrorKind::AddressLimit
                | CloudErrorKind::EniLimit
                | CloudErrorKind::NotFound
                | CloudErrorKind::Denied
                | CloudErrorKind::Refused,
            ) => self.bucket.went_well(budget, now),
        }
    }

    /// What every refusal of the cloud about one interface leads to.
    fn failed(&mut self, eni: &EniId, error: &CloudError, now: Timestamp) {
        self.last_failure = Some(error.to_string());
        let Some(eni) = self.enis.get_mut(eni) else {
            return;
        };
        match error.kind {
            // All calls of its kind rest, by the bucket.
            CloudErrorKind::Throttled => {}
            // The subnet rests, not the interface.
            CloudErrorKind::SubnetExhausted | CloudErrorKind::PrefixesExhausted => {}
            CloudErrorKind::EniLimit | CloudErrorKind::Denied | CloudErrorKind::NoSuchNetwork => {
                eni.retry.fail(FIRST_PAUSE, &mut self.jitter, now);
            }
            // We know less than there is.
            CloudErrorKind::AddressLimit
            | CloudErrorKind::NotFound
            | CloudErrorKind::Refused
            | CloudErrorKind::Unknown => {
                eni.unsure = true;
                eni.retry.fail(FIRST_PAUSE, &mut self.jitter, now);
            }
        }
    }

    fn failed_locally(&mut self, eni: &EniId, words: String, now: Timestamp) {
        self.last_failure = Some(words);
        if let Some(eni) = self.enis.get_mut(eni) {
            eni.retry.fail(FIRST_PAUSE, &mut self.jitter, now);
        }
    }

    /// No pod waits for tags: what cannot be added is left until the next start.
    fn not_tagged(&mut self, eni: &EniId, error: &CloudError, now: Timestamp) {
        let Some(eni) = self.enis.get_mut(eni) else {
            return;
        };
        if error.is_undecided() {
            eni.retry.fail(FIRST_PAUSE, &mut self.jitter, now);
        } else {
            eni.untagged.clear();
        }
    }

    /// Groups that are refused are not asked for again: another description, or others, may be.
    fn regrouped(
        &mut self,
        eni: &EniId,
        groups: BTreeSet<SecurityGroupId>,
        result: Result<(), CloudError>,
        now: Timestamp,
    ) {
        if result.is_ok() {
            self.succeeded(eni);
        }
        let Some(eni) = self.enis.get_mut(eni) else {
            return;
        };
        match result {
            Ok(()) => eni.groups = Some(groups),
            Err(error) if error.is_undecided() => {
                eni.retry.fail(FIRST_PAUSE, &mut self.jitter, now);
            }
            Err(error) => {
                self.last_failure = Some(error.to_string());
                eni.refused_groups = Some(groups);
            }
        }
    }

    fn succeeded(&mut self, eni: &EniId) {
        self.last_failure = None;
        self.clear_retry(eni);
    }

    fn clear_retry(&mut self, eni: &EniId) {
        if let Some(eni) = self.enis.get_mut(eni) {
            eni.retry.clear();
        }
    }

    fn set_in_flight(&mut self, eni: &EniId, what: InFlight) {
        if let Some(eni) = self.enis.get_mut(eni) {
            eni.in_flight = Some(what);
        }
    }

    pub(crate) fn move_on(
        &mut self,
        eni: &EniId,
        now: Timestamp,
        next: impl FnOnce(Stage) -> Stage,
    ) {
        if let Some(eni) = self.enis.get_mut(eni) {
            eni.moved = now;
            eni.stage = next(std::mem::replace(&mut eni.stage, Stage::Discarded));
        }
    }

    fn discard(&mut self, eni: &EniId, now: Timestamp) {
        self.move_on(eni, now, |_| Stage::Discarded);
        if let Some(eni) = self.enis.get_mut(eni) {
            eni.unsure = false;
        }
    }
}

/// The number that ends a token of [`Pool::new_request`].
fn serial_of(token: &ClientToken) -> u64 {
    let last = token.as_str().rsplit('-').next();
    last.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}
