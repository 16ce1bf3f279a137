//! What came of asking for more: an interface, a place for it, addresses.

use ipnet::IpNet;

use super::FIRST_PAUSE;
use crate::cloud::{CloudError, CloudErrorKind, CreateEni, EniFacts, Want};
use crate::ids::{AttachmentId, ClientToken, EniId, Timestamp};
use crate::pool::eni::holders;
use crate::pool::{Block, Changes, Creating, EXHAUSTED_PAUSE, Place, Pool, Slot, Stage};

impl Pool {
    pub(super) fn created(
        &mut self,
        token: &ClientToken,
        result: Result<EniFacts, CloudError>,
        now: Timestamp,
    ) {
        let Some(creating) = self.creating.remove(token) else {
            return;
        };
        match result {
            Ok(facts) => {
                self.growth.clear();
                self.last_failure = None;
                self.widen(&facts.subnet_id, creating.request.want);
                self.gone.remove(&facts.id);
                if !self.enis.contains_key(&facts.id) {
                    // EC2 may hand out what we gave back a moment ago.
                    for net in facts.blocks() {
                        self.released.remove(&net);
                    }
                    self.adopt(&facts, now);
                }
            }
            Err(error) => self.not_created(creating.request, &error, now),
        }
    }

    fn not_created(&mut self, request: CreateEni, error: &CloudError, now: Timestamp) {
        self.last_failure = Some(error.to_string());
        let (subnet, want) = (request.subnet_id.clone(), request.want);
        // With the same token, until its fate is known.
        if error.is_undecided() {
            let creating = Creating {
                request,
                in_flight: false,
            };
            self.creating
                .insert(creating.request.token.clone(), creating);
        }
        match error.kind {
            // The bucket knows.
            CloudErrorKind::Throttled => {}
            CloudErrorKind::SubnetExhausted => {
                self.exhausted(&subnet, want, now);
                // An interface needs an address of its own, whatever else it is asked for.
                self.exhausted(&subnet, Want::Addresses(want.count()), now);
            }
            CloudErrorKind::PrefixesExhausted => self.exhausted(&subnet, want, now),
            CloudErrorKind::NoSuchNetwork => self.shut(&subnet, &error.to_string(), now),
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

    pub(super) fn attached(
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
                    | CloudErrorKind::PrefixesExhausted
                    | CloudErrorKind::NoSuchNetwork
                    | CloudErrorKind::AddressLimit
                    | CloudErrorKind::NotFound
                    | CloudErrorKind::Denied => {}
                }
            }
        }
    }

    pub(super) fn assigned(
        &mut self,
        eni: &EniId,
        want: Want,
        result: Result<Vec<IpNet>, CloudError>,
        now: Timestamp,
    ) {
        let subnet = self.enis.get(eni).map(|e| e.subnet_id.clone());
        match result {
            Ok(blocks) => {
                self.succeeded(eni);
                if let Some(subnet) = subnet {
                    self.widen(&subnet, want);
                }
                for net in blocks {
                    self.released.remove(&net);
                    self.add_block(eni, net, now);
                }
            }
            Err(error) => {
                self.failed(eni, &error, now);
                let Some(subnet) = subnet else {
                    return;
                };
                match error.kind {
                    CloudErrorKind::SubnetExhausted | CloudErrorKind::PrefixesExhausted => {
                        self.exhausted(&subnet, want, now);
                    }
                    CloudErrorKind::Throttled
                    | CloudErrorKind::NoSuchNetwork
                    | CloudErrorKind::AddressLimit
                    | CloudErrorKind::EniLimit
                    | CloudErrorKind::NotFound
                    | CloudErrorKind::Denied
                    | CloudErrorKind::Refused
                    | CloudErrorKind::Unknown => {}
                }
            }
        }
    }

    /// The cloud has given the block to `eni`: it is nowhere else, whatever we thought.
    pub(crate) fn add_block(&mut self, eni: &EniId, net: IpNet, now: Timestamp) {
        let elsewhere = self
            .enis
            .values()
            .find(|e| e.id != *eni && e.blocks.contains_key(&net))
            .map(|e| e.id.clone());
        if let Some(elsewhere) = elsewhere {
            self.count_lost(net);
            self.orphan(&elsewhere, net, &mut Changes::default());
        }
        let Some(known) = self.enis.get_mut(eni) else {
            return;
        };
        let own = IpNet::from(std::net::IpAddr::V4(known.primary_address));
        if net == own {
            return;
        }
        if let Some(block) = known.blocks.get_mut(&net) {
            block.given_again(now);
            return;
        }
        let mut block = Block::new(net, now);
        self.resting.retain(|address, until| {
            let here = net.contains(address);
            if here {
                block.set(*address, Slot::Cooling { until: *until });
            }
            !here
        });
        known.blocks.insert(net, block);
        // Pods that were there before us keep what they have.
        let owners: Vec<_> = self
            .orphans
            .iter()
            .filter(|(_, entry)| holders(entry.address).contains(&net))
            .map(|(key, _)| key.clone())
            .collect();
        for key in owners {
            if let Some(entry) = self.orphans.remove(&key) {
                self.occupy(eni, entry);
            }
        }
    }
}
