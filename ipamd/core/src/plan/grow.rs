//! Asking for more: what interfaces can still take, and new interfaces for the rest.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::sizes::prefixes;
use super::{Sizes, View};
use crate::action::Action;
use crate::cloud::{PREFIX_ADDRESSES, Want};
use crate::ids::{EniId, SubnetId};
use crate::limits::Mode;
use crate::pool::{Block, Eni, InFlight, Kind, sum};

/// Interfaces that are made at the same time: each takes several calls until it serves.
const AT_ONCE: usize = 4;

/// What subnets may still be asked for in this plan.
struct Asking<'a> {
    view: View<'a>,
    left: BTreeMap<(SubnetId, Kind), u32>,
}

impl<'a> Asking<'a> {
    fn new(view: View<'a>) -> Self {
        Self {
            view,
            left: BTreeMap::new(),
        }
    }

    /// How many of a kind a subnet may be asked for. One that has refused lately is asked by one call at a time.
    fn left(&mut self, subnet: &SubnetId, kind: Kind) -> u32 {
        let View { pool, now, .. } = self.view;
        let key = (subnet.clone(), kind);
        *self.left.entry(key).or_insert_with(|| {
            let askable = pool.askable(subnet, kind, now);
            let asked = pool.creating.values().any(|creating| {
                creating.request.subnet_id == *subnet && Kind::from(creating.request.want) == kind
            }) || pool.enis.values().any(|eni| match eni.in_flight {
                Some(InFlight::Assign(want)) => {
                    eni.subnet_id == *subnet && Kind::from(want) == kind
                }
                Some(InFlight::Attach(_) | InFlight::Other) | None => false,
            });
            if asked && askable < u32::MAX {
                0
            } else {
                askable
            }
        })
    }

    fn take(&mut self, subnet: &SubnetId, kind: Kind) {
        if let Some(left) = self.left.get_mut(&(subnet.clone(), kind)) {
            *left = if *left == u32::MAX { u32::MAX } else { 0 };
        }
    }
}

impl View<'_> {
    /// More addresses: `short` of the kind that the mode asks for, or single ones for pods that wait where there are no
    /// prefixes.
    pub(super) fn grow(&self, busy: &BTreeSet<EniId>, sizes: &Sizes, short: u32) -> Vec<Action> {
        let mut asking = Asking::new(*self);
        let mut actions = Vec::new();
        // While interfaces may not move, only for pods that wait.
        let mut need = if self.may_move_enis() {
            short
        } else {
            short.min(sizes.unserved(self))
        };
        if need > 0 && self.begins_with_eni(sizes) {
            self.create(&mut asking, sizes, &mut need, &mut actions);
            if self.pool.network.describing || actions.contains(&Action::DescribeSubnets) {
                // Where it can be made is being looked up.
                return actions;
            }
        }
        if need > 0 {
            self.fill(busy, &mut asking, sizes, &mut need, &mut actions);
        }
        if need > 0 && self.may_move_enis() {
            match self.make_room(busy) {
                Some(action) => actions.push(action),
                None => {
                    need = need.saturating_sub(self.room_soon(busy, &actions));
                    self.create(&mut asking, sizes, &mut need, &mut actions);
                }
            }
        }
        if self.may_move_enis() {
            actions.extend(self.creates_again());
        }
        if actions.is_empty() && self.mode() == Mode::Prefixes && sizes.asked == 0 {
            actions.extend(self.fall_back(busy, &mut asking, sizes));
        }
        actions
    }

    /// A bare node that starts with many others, and whose turn it is to go the other way.
    fn begins_with_eni(&self, sizes: &Sizes) -> bool {
        let bare = sizes.total == 0 && self.pool.enis.len() == 1;
        bare && self.mode() != Mode::Ipv6
            && self.may_move_enis()
            && self.pool.bucket.begins_with_eni()
    }

    /// Creates whose fate is not known, or that EC2 did not look at.
    pub(super) fn creates_again(&self) -> Vec<Action> {
        if self.pool.growth.pausing(self.now) {
            return Vec::new();
        }
        let waiting = self.pool.creating.values().filter(|c| !c.in_flight);
        waiting
            .map(|creating| Action::Create(creating.request.clone()))
            .collect()
    }

    /// What to ask for, to have so many addresses and no more than `most` of a kind; `None` if that is nothing.
    fn want(&self, addresses: u32, most: u32) -> Option<Want> {
        let want = match self.mode() {
            Mode::Addresses => Want::Addresses(addresses.min(most)),
            Mode::Prefixes => Want::Prefixes(prefixes(addresses).min(most)),
            Mode::Ipv6 if most > 0 => Want::Ipv6Prefix,
            Mode::Ipv6 => return None,
        };
        (want.count() > 0).then_some(want)
    }

    /// More for interfaces that have room: the primary first, then the fullest.
    fn fill(
        &self,
        busy: &BTreeSet<EniId>,
        asking: &mut Asking<'_>,
        sizes: &Sizes,
        need: &mut u32,
        actions: &mut Vec<Action>,
    ) {
        let kind = self.kind();
        for eni in self.fillable(busy) {
            if *need == 0 {
                break;
            }
            let room = self
                .limits
                .places_per_eni()
                .saturating_sub(eni.places_taken());
            let room = match self.mode() {
                Mode::Addresses | Mode::Prefixes => room,
                Mode::Ipv6 => u32::from(eni.blocks.is_empty()),
            };
            let most = room.min(asking.left(&eni.subnet_id, kind));
            let Some(want) = self.want(sizes.eager(self, *need), most) else {
                continue;
            };
            asking.take(&eni.subnet_id, kind);
            *need = need.saturating_sub(want.addresses());
            actions.push(Action::Assign {
                eni: eni.id.clone(),
                want,
            });
        }
    }

    fn fillable(&self, busy: &BTreeSet<EniId>) -> Vec<&Eni> {
        let enis = self.pool.enis.values();
        let mut fillable: Vec<&Eni> = enis
            .filter(|eni| eni.stage.is_ready() && eni.is_idle(self.now) && !busy.contains(&eni.id))
            .filter(|eni| self.pool.serves(eni))
            .collect();
        fillable.sort_by_key(|eni| (!eni.primary, Reverse(eni.assigned()), eni.device_index()));
        fillable
    }

    /// What interfaces could still be asked for that are busy for a moment: it comes sooner than from a new one.
    fn room_soon(&self, busy: &BTreeSet<EniId>, actions: &[Action]) -> u32 {
        let enis = self.pool.enis.values();
        let soon = enis.filter(|eni| {
            let asked = actions.iter().any(|action| action.eni() == Some(&eni.id));
            let moment =
                eni.retry.failures() <= 1 && (!eni.is_idle(self.now) || busy.contains(&eni.id));
            eni.stage.is_ready() && self.pool.serves(eni) && moment && !asked
        });
        sum(soon.map(|eni| self.room(eni)))
    }

    /// An interface that could be asked for more if no other call about it were under way.
    pub(crate) fn busy_with_room(&self) -> Option<&Eni> {
        let mut enis = self.pool.enis.values();
        enis.find(|eni| {
            let serves = eni.stage.is_ready() && self.pool.serves(eni);
            serves && eni.in_flight.is_some() && self.room(eni) > 0
        })
    }

    /// Addresses that an interface could still be asked for.
    fn room(&self, eni: &Eni) -> u32 {
        let in_flight = match eni.in_flight {
            Some(InFlight::Assign(want)) => want.count(),
            Some(InFlight::Attach(_) | InFlight::Other) | None => 0,
        };
        let taken = eni.places_taken().saturating_add(in_flight);
        let places = self.limits.places_per_eni().saturating_sub(taken);
        if self.pool.askable(&eni.subnet_id, self.kind(), self.now) == 0 {
            return 0;
        }
        match self.mode() {
            Mode::Addresses => places,
            Mode::Prefixes => places.saturating_mul(PREFIX_ADDRESSES),
            Mode::Ipv6 => u32::from(eni.blocks.is_empty()),
        }
    }

    /// Blocks of the other kind, from before the mode was changed, give up their places before an interface is made, if
    /// there is something to put there.
    fn make_room(&self, busy: &BTreeSet<EniId>) -> Option<Action> {
        let mut full = self.fillable(busy).into_iter().filter(|eni| {
            let askable = self.pool.askable(&eni.subnet_id, self.kind(), self.now);
            eni.places_taken() >= self.limits.places_per_eni() && askable > 0
        });
        full.find_map(|eni| {
            let odd = eni
                .blocks()
                .filter(|block| !self.pool.suits(block) && block.is_wholly_free(self.now));
            self.unassign(eni, odd.map(Block::net))
        })
    }

    fn create(
        &self,
        asking: &mut Asking<'_>,
        sizes: &Sizes,
        need: &mut u32,
        actions: &mut Vec<Action>,
    ) {
        let kind = self.kind();
        let Ok(sites) = self.pool.sites(kind, self.now) else {
            return;
        };
        if self.pool.growth.pausing(self.now) || self.eni_limit() {
            return;
        }
        let most = self
            .targets
            .enis(self.limits)
            .saturating_sub(self.managed());
        let at_once = AT_ONCE.saturating_sub(self.pool.creating.len());
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(at_once);
        if most > 0 && *need > 0 && self.looks_first(actions) {
            return;
        }
        for nth in 0..most {
            if *need == 0 {
                break;
            }
            let places = self.limits.places_per_eni();
            let found = sites.iter().find_map(|site| {
                // Its own address comes from the same subnet.
                let own = asking.left(&site.subnet_id, Kind::Address);
                let left = asking.left(&site.subnet_id, kind).min(own);
                let want = self.want(sizes.eager(self, *need), places.min(left))?;
                Some((site, want))
            });
            let Some((site, want)) = found else {
                break;
            };
            asking.take(&site.subnet_id, kind);
            asking.take(&site.subnet_id, Kind::Address);
            *need = need.saturating_sub(want.addresses());
            let nth = u64::try_from(nth).unwrap_or_default();
            let request = self.pool.new_request(site, want, nth, self.now);
            actions.push(Action::Create(request));
        }
    }

    /// Whether a subnet is chosen only once they have been looked at again.
    fn looks_first(&self, actions: &mut Vec<Action>) -> bool {
        if self.wants_subnets(true) && !actions.contains(&Action::DescribeSubnets) {
            actions.push(Action::DescribeSubnets);
        }
        self.pool.network.describing || actions.contains(&Action::DescribeSubnets)
    }

    /// Single addresses for pods that wait where no prefix can be had. They take places that a prefix would use better:
    /// no more than pods wait for, and only while nothing is on its way.
    fn fall_back(
        &self,
        busy: &BTreeSet<EniId>,
        asking: &mut Asking<'_>,
        sizes: &Sizes,
    ) -> Option<Action> {
        let room = self.targets.max_pods.map_or(u32::MAX, |pods| {
            pods.saturating_sub(sizes.total.saturating_add(sizes.spare))
        });
        let unserved = sizes.unserved(self).min(room);
        if unserved == 0 {
            return None;
        }
        let exhausted = |eni: &&Eni| {
            let prefixes = self.pool.askable(&eni.subnet_id, Kind::Prefix, self.now);
            prefixes == 0
        };
        let fillable = self.fillable(busy);
        let on_the_way = self
            .pool
            .enis
            .values()
            .any(|eni| eni.stage.is_coming_or_ready() && !eni.stage.is_ready());
        if on_the_way {
            return None;
        }
        let filled = fillable.into_iter().filter(exhausted).find_map(|eni| {
            let room = self
                .limits
                .places_per_eni()
                .saturating_sub(eni.places_taken());
            let count = unserved
                .min(room)
                .min(asking.left(&eni.subnet_id, Kind::Address));
            (count > 0).then(|| Action::Assign {
                eni: eni.id.clone(),
                want: Want::Addresses(count),
            })
        });
        filled.or_else(|| self.create_plain(asking, unserved))
    }

    /// An interface with single addresses, where one with prefixes cannot be had.
    fn create_plain(&self, asking: &mut Asking<'_>, unserved: u32) -> Option<Action> {
        let full = self.managed() >= self.targets.enis(self.limits);
        if full || !self.may_move_enis() || self.pool.growth.pausing(self.now) || self.eni_limit() {
            return None;
        }
        if self.pool.network.describing {
            return None;
        }
        if self.wants_subnets(true) {
            return Some(Action::DescribeSubnets);
        }
        let sites = self.pool.sites(Kind::Address, self.now).ok()?;
        sites.iter().find_map(|site| {
            let prefixes = self.pool.askable(&site.subnet_id, Kind::Prefix, self.now);
            let count = unserved
                .min(self.limits.places_per_eni())
                .min(asking.left(&site.subnet_id, Kind::Address));
            (prefixes == 0 && count > 0).then(|| {
                let want = Want::Addresses(count);
                Action::Create(self.pool.new_request(site, want, 0, self.now))
            })
        })
    }

    pub(crate) fn kind(&self) -> Kind {
        match self.mode() {
            Mode::Addresses => Kind::Address,
            Mode::Prefixes => Kind::Prefix,
            Mode::Ipv6 => Kind::Ipv6,
        }
    }
}
