//! Actions begun and outcomes taken in.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::{Changes, Creating, Held, Place, Pool, Slot, Stage};
use crate::action::{Action, Outcome};
use crate::cloud::{CloudError, CloudErrorKind, CreateEni, EniFacts};
use crate::ids::{AttachmentId, ClientToken, EniId, SubnetId, Timestamp};

/// First pause after a failure of one interface; doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// First pause of all calls after EC2 said that there are too many; doubles.
const FIRST_THROTTLE: Duration = Duration::from_secs(2);
/// An interface that is being detached cannot be deleted: EC2 takes some seconds.
const DETACHING: Duration = Duration::from_secs(2);
/// How long a subnet without addresses, or an instance without room for interfaces, is left alone.
pub(crate) const EXHAUSTED_PAUSE: Duration = Duration::from_secs(120);

impl Pool {
    /// Notes that an action is being carried out. Its outcome must come back by [`Pool::apply`].
    pub fn begin(&mut self, action: &Action, now: Timestamp) {
        match action {
            Action::Create(request) => {
                if self.creating.is_none() {
                    self.serial += 1;
                }
                self.creating = Some(Creating {
                    request: request.clone(),
                    in_flight: true,
                });
            }
            Action::Assign { eni, count } => self.set_in_flight(eni, *count),
            Action::Unassign { eni, addresses } => {
                self.last_decrease = Some(now);
                self.set_in_flight(eni, 0);
                self.mark_leaving(eni, addresses);
            }
            Action::TearDown { eni } => {
                self.last_decrease = Some(now);
                self.set_in_flight(eni, 0);
                self.move_on(eni, now, |stage| match stage {
                    Stage::Ready(place) => Stage::Leaving(place),
                    other => other,
                });
            }
            Action::Attach { eni, .. }
            | Action::Keep { eni, .. }
            | Action::SetUp { eni }
            | Action::Describe { eni }
            | Action::Detach { eni, .. }
            | Action::Delete { eni } => self.set_in_flight(eni, 0),
        }
    }

    /// Takes in what came of an action.
    pub fn apply(&mut self, outcome: Outcome, now: Timestamp) {
        match &outcome {
            Outcome::Created(..) => {}
            Outcome::Attached(eni, ..)
            | Outcome::Kept(eni, _)
            | Outcome::SetUp(eni, _)
            | Outcome::Described(eni, _)
            | Outcome::Assigned(eni, ..)
            | Outcome::Unassigned(eni, ..)
            | Outcome::TornDown(eni, _)
            | Outcome::Detached(eni, _)
            | Outcome::Deleted(eni, _) => {
                if let Some(eni) = self.enis.get_mut(eni) {
                    eni.in_flight = None;
                }
            }
        }
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
                self.throttle.clear();
                self.described(&eni, facts, now);
            }
            Outcome::Assigned(eni, count, result) => self.assigned(&eni, count, result, now),
            Outcome::Unassigned(eni, addresses, result) => {
                self.unassigned(&eni, &addresses, result, now);
            }
            Outcome::Detached(eni, Ok(())) => {
                self.succeeded(&eni);
                self.discard(&eni, now);
                if let Some(eni) = self.enis.get_mut(&eni) {
                    eni.retry.rest(DETACHING, now);
                }
            }
            Outcome::Deleted(eni, Ok(())) => {
                self.succeeded(&eni);
                self.drop_deleted(&eni, now);
            }
            Outcome::Detached(eni, Err(error)) => {
                let missing = error.kind == CloudErrorKind::NotFound;
                self.failed(&eni, &error, now);
                if missing {
                    self.discard(&eni, now);
                }
            }
            Outcome::Deleted(eni, Err(error)) => self.not_deleted(&eni, &error, now),
            Outcome::Kept(eni, Err(error)) | Outcome::Described(eni, Err(error)) => {
                self.failed(&eni, &error, now);
            }
        }
    }

    fn created(
        &mut self,
        token: &ClientToken,
        result: Result<EniFacts, CloudError>,
        now: Timestamp,
    ) {
        let Some(creating) = self
            .creating
            .take_if(|creating| creating.request.token == *token)
        else {
            return;
        };
        match result {
            Ok(facts) => {
                self.throttle.clear();
                self.growth.clear();
                self.last_failure = None;
                self.widen(&facts.subnet_id);
                self.gone.remove(&facts.id);
                if !self.enis.contains_key(&facts.id) {
                    // EC2 may hand out what we gave back a moment ago.
                    for address in &facts.secondary_addresses {
                        self.released.remove(address);
                    }
                    self.adopt(&facts, now);
                }
            }
            Err(error) => self.not_created(creating.request, &error, now),
        }
    }

    fn not_created(&mut self, request: CreateEni, error: &CloudError, now: Timestamp) {
        self.last_failure = Some(error.to_string());
        let (subnet, asked) = (request.subnet_id.clone(), request.addresses);
        // What may have been made is asked for again, with the same token, until its fate is known; so is what EC2
        // did not look at.
        let same_again = match error.kind {
            CloudErrorKind::Unknown | CloudErrorKind::Throttled => true,
            CloudErrorKind::SubnetExhausted
            | CloudErrorKind::AddressLimit
            | CloudErrorKind::EniLimit
            | CloudErrorKind::NotFound
            | CloudErrorKind::Denied
            | CloudErrorKind::Refused => false,
        };
        if same_again {
            self.creating = Some(Creating {
                request,
                in_flight: false,
            });
        }
        match error.kind {
            CloudErrorKind::Throttled => {
                self.throttle.fail(FIRST_THROTTLE, &mut self.jitter, now);
            }
            CloudErrorKind::SubnetExhausted => self.exhausted(&subnet, asked, now),
            CloudErrorKind::EniLimit => self.eni_limit_until = Some(now + EXHAUSTED_PAUSE),
            CloudErrorKind::AddressLimit
            | CloudErrorKind::NotFound
            | CloudErrorKind::Denied
            | CloudErrorKind::Refused
            | CloudErrorKind::Unknown => {
                self.growth.fail(FIRST_PAUSE, &mut self.jitter, now);
            }
        }
    }

    fn attached(
        &mut self,
        eni: &EniId,
        device_index: u16,
        result: Result<AttachmentId, CloudError>,
        now: Timestamp,
    ) {
        match result {
            Ok(attachment) => {
                self.succeeded(eni);
                let place = Place {
                    attachment,
                    device_index,
                };
                self.move_on(eni, now, |stage| match stage {
                    Stage::Detached => Stage::Attached(place),
                    other => other,
                });
            }
            Err(error) => {
                self.failed(eni, &error, now);
                match error.kind {
                    CloudErrorKind::EniLimit => {
                        self.eni_limit_until = Some(now + EXHAUSTED_PAUSE);
                        if self.enis.get(eni).is_some_and(|e| e.assigned() == 0) {
                            self.discard(eni, now);
                        }
                    }
                    // The device index may be taken, or the interface attached already.
                    CloudErrorKind::Refused | CloudErrorKind::Unknown => {
                        self.survey_wanted = true;
                    }
                    CloudErrorKind::Throttled
                    | CloudErrorKind::SubnetExhausted
                    | CloudErrorKind::AddressLimit
                    | CloudErrorKind::NotFound
                    | CloudErrorKind::Denied => {}
                }
            }
        }
    }

    fn assigned(
        &mut self,
        eni: &EniId,
        count: u32,
        result: Result<Vec<Ipv4Addr>, CloudError>,
        now: Timestamp,
    ) {
        let subnet = self.enis.get(eni).map(|e| e.subnet_id.clone());
        match result {
            Ok(addresses) => {
                self.succeeded(eni);
                if let Some(subnet) = subnet {
                    self.widen(&subnet);
                }
                for address in addresses {
                    self.released.remove(&address);
                    self.add_address(eni, address, now);
                }
            }
            Err(error) => {
                self.failed(eni, &error, now);
                if let (CloudErrorKind::SubnetExhausted, Some(subnet)) = (error.kind, subnet) {
                    self.exhausted(&subnet, count, now);
                }
            }
        }
    }

    fn unassigned(
        &mut self,
        eni: &EniId,
        addresses: &BTreeSet<Ipv4Addr>,
        result: Result<(), CloudError>,
        now: Timestamp,
    ) {
        match result {
            Ok(()) => {
                self.succeeded(eni);
                let Some(eni) = self.enis.get_mut(eni) else {
                    return;
                };
                for address in addresses {
                    if eni.slots.remove(address).is_some() {
                        self.released.insert(*address, now);
                    }
                }
            }
            Err(error) => {
                self.failed(eni, &error, now);
                let Some(eni) = self.enis.get_mut(eni) else {
                    return;
                };
                for address in addresses {
                    let Some(held) = eni.slots.get_mut(address) else {
                        continue;
                    };
                    match (&held.slot, error.may_have_happened()) {
                        (Slot::Leaving { .. }, true) => {
                            held.slot = Slot::Leaving { doubtful: true };
                        }
                        // Nothing was done, now or before: it is still ours.
                        (Slot::Leaving { doubtful: false }, false) => {
                            held.slot = Slot::Free { freed: Some(now) };
                        }
                        (Slot::Leaving { doubtful: true }, false) => eni.unsure = true,
                        (
                            Slot::Free { .. } | Slot::Assigned { .. } | Slot::Cooling { .. },
                            true | false,
                        ) => {}
                    }
                }
            }
        }
    }

    /// Usually it is still being detached. No pod waits for this, and deleting again is the look-up.
    fn not_deleted(&mut self, eni: &EniId, error: &CloudError, now: Timestamp) {
        if error.kind == CloudErrorKind::NotFound {
            self.drop_deleted(eni, now);
            return;
        }
        if error.kind == CloudErrorKind::Throttled {
            self.throttle.fail(FIRST_THROTTLE, &mut self.jitter, now);
        }
        if let Some(eni) = self.enis.get_mut(eni) {
            eni.retry.fail(FIRST_PAUSE, &mut self.jitter, now);
        }
    }

    /// What every refusal of the cloud about one interface leads to.
    fn failed(&mut self, eni: &EniId, error: &CloudError, now: Timestamp) {
        self.last_failure = Some(error.to_string());
        let Some(eni) = self.enis.get_mut(eni) else {
            return;
        };
        match error.kind {
            CloudErrorKind::Throttled => {
                self.throttle.fail(FIRST_THROTTLE, &mut self.jitter, now);
            }
            // The subnet rests, not the interface.
            CloudErrorKind::SubnetExhausted => {}
            CloudErrorKind::EniLimit | CloudErrorKind::Denied => {
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

    fn succeeded(&mut self, eni: &EniId) {
        self.throttle.clear();
        self.last_failure = None;
        self.clear_retry(eni);
    }

    fn clear_retry(&mut self, eni: &EniId) {
        if let Some(eni) = self.enis.get_mut(eni) {
            eni.retry.clear();
        }
    }

    /// The subnet had fewer than `asked` addresses: ask for one; if it was one, leave the subnet alone.
    fn exhausted(&mut self, subnet: &SubnetId, asked: u32, now: Timestamp) {
        let room = self.rooms.entry(subnet.clone()).or_default();
        room.ask = Some(1);
        if asked <= 1 {
            room.paused_until = Some(now + EXHAUSTED_PAUSE);
        }
    }

    /// The subnet gave what was asked: ask for more the next time.
    fn widen(&mut self, subnet: &SubnetId) {
        if let Some(room) = self.rooms.get_mut(subnet) {
            room.paused_until = None;
            room.ask = room.ask.map(|ask| ask.saturating_mul(2));
        }
    }

    /// The cloud has given the address to `eni`: it is nowhere else, whatever we thought.
    pub(crate) fn add_address(&mut self, eni: &EniId, address: Ipv4Addr, now: Timestamp) {
        let elsewhere = self
            .enis
            .values()
            .find(|e| e.id != *eni && e.slots.contains_key(&address))
            .map(|e| e.id.clone());
        if let Some(elsewhere) = elsewhere {
            self.lost_addresses += 1;
            self.orphan(&elsewhere, address, &mut Changes::default());
        }
        let Some(known) = self.enis.get_mut(eni) else {
            return;
        };
        if address == known.primary_address || known.slots.contains_key(&address) {
            return;
        }
        let slot = match self.resting.remove(&address) {
            Some(until) => Slot::Cooling { until },
            None => Slot::Free { freed: None },
        };
        known.slots.insert(
            address,
            Held {
                slot,
                acquired: now,
            },
        );
        // A pod that was there before us keeps what it has.
        let owner = self
            .orphans
            .iter()
            .find(|(_, lease)| lease.address == address)
            .map(|(key, _)| key.clone());
        if let Some(lease) = owner.and_then(|key| self.orphans.remove(&key)) {
            self.occupy(eni, address, lease.key, lease.pod, lease.since);
        }
    }

    fn set_in_flight(&mut self, eni: &EniId, count: u32) {
        if let Some(eni) = self.enis.get_mut(eni) {
            eni.in_flight = Some(count);
        }
    }

    fn mark_leaving(&mut self, eni: &EniId, addresses: &BTreeSet<Ipv4Addr>) {
        let Some(eni) = self.enis.get_mut(eni) else {
            return;
        };
        for address in addresses {
            if let Some(held) = eni.slots.get_mut(address) {
                match held.slot {
                    Slot::Free { .. } | Slot::Cooling { .. } => {
                        held.slot = Slot::Leaving { doubtful: false };
                    }
                    Slot::Leaving { .. } | Slot::Assigned { .. } => {}
                }
            }
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

    /// The cloud has deleted it: its addresses are no longer ours.
    fn drop_deleted(&mut self, id: &EniId, now: Timestamp) {
        let addresses: Vec<Ipv4Addr> = self
            .enis
            .get(id)
            .map(|e| e.slots.keys().copied().collect())
            .unwrap_or_default();
        for address in addresses {
            self.orphan(id, address, &mut Changes::default());
            self.released.insert(address, now);
        }
        if self.enis.remove(id).is_some() {
            self.gone.insert(id.clone(), now);
        }
    }
}
