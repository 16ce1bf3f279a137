//! A subnet of the EC2 in memory: who has which of its addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::cloud::{EniFacts, PREFIX_ADDRESSES, PREFIX_LEN, PREFIX_LEN_V6, SubnetFacts};
use crate::ids::SubnetId;

pub(super) struct Subnet {
    pub(super) block: Ipv4Net,
    pub(super) tags: BTreeMap<String, String>,
    /// Strangers' addresses, one in each `/28` that was free when they came.
    strangers: BTreeSet<Ipv4Addr>,
    /// Its IPv6 block's number.
    number: u16,
    ipv6_prefixes: u32,
}

impl Subnet {
    pub(super) fn new(block: Ipv4Net, number: u16) -> Self {
        Self {
            block,
            tags: BTreeMap::new(),
            strangers: BTreeSet::new(),
            number,
            ipv6_prefixes: 0,
        }
    }

    /// Addresses that are somebody's: of these interfaces, of strangers, and what EC2 reserves (the first four of a
    /// subnet and the last).
    fn taken<'a>(&self, enis: impl Iterator<Item = &'a EniFacts>) -> BTreeSet<Ipv4Addr> {
        let mut taken = self.strangers.clone();
        let first = u32::from(self.block.network());
        taken.extend((first..first + 4).map(Ipv4Addr::from));
        taken.insert(self.block.broadcast());
        for eni in enis {
            taken.insert(eni.primary_address);
            taken.extend(&eni.secondary_addresses);
            taken.extend(eni.prefixes.iter().flat_map(|net| addresses(*net)));
        }
        taken
    }

    pub(super) fn free_addresses<'a>(
        &self,
        enis: impl Iterator<Item = &'a EniFacts>,
        count: u32,
    ) -> Vec<Ipv4Addr> {
        let taken = self.taken(enis);
        let wanted = usize::try_from(count).unwrap_or(usize::MAX);
        addresses(self.block)
            .filter(|address| !taken.contains(address))
            .take(wanted)
            .collect()
    }

    pub(super) fn free_prefixes<'a>(
        &self,
        enis: impl Iterator<Item = &'a EniFacts>,
        count: u32,
    ) -> Vec<Ipv4Net> {
        let taken = self.taken(enis);
        let wanted = usize::try_from(count).unwrap_or(usize::MAX);
        self.prefixes()
            .filter(|net| {
                taken
                    .range(net.network()..=net.broadcast())
                    .next()
                    .is_none()
            })
            .take(wanted)
            .collect()
    }

    pub(super) fn next_ipv6_prefix(&mut self) -> Ipv6Net {
        self.ipv6_prefixes += 1;
        let subnet = u128::from(Ipv6Addr::new(0x2001, 0xdb8, 0, self.number, 0, 0, 0, 0));
        let prefix = subnet + (u128::from(self.ipv6_prefixes) << (128 - PREFIX_LEN_V6));
        Ipv6Net::new_assert(Ipv6Addr::from(prefix), PREFIX_LEN_V6)
    }

    pub(super) fn fragment<'a>(
        &mut self,
        enis: impl Iterator<Item = &'a EniFacts>,
        fragmented: bool,
    ) {
        self.strangers.clear();
        if fragmented {
            let free = self.free_prefixes(enis, u32::MAX);
            self.strangers = free.iter().map(Ipv4Net::broadcast).collect();
        }
    }

    pub(super) fn facts<'a>(
        &self,
        id: &SubnetId,
        enis: impl Iterator<Item = &'a EniFacts>,
    ) -> SubnetFacts {
        let size = 1u32 << (32 - self.block.prefix_len());
        let taken = u32::try_from(self.taken(enis).len()).unwrap_or(u32::MAX);
        SubnetFacts {
            id: id.clone(),
            block: self.block,
            available: size.saturating_sub(taken),
            tags: self.tags.clone(),
        }
    }

    fn prefixes(&self) -> impl Iterator<Item = Ipv4Net> {
        let first = u32::from(self.block.network());
        let count = (1u32 << (32 - self.block.prefix_len())) / PREFIX_ADDRESSES;
        (0..count).map(move |n| {
            Ipv4Net::new_assert(Ipv4Addr::from(first + n * PREFIX_ADDRESSES), PREFIX_LEN)
        })
    }
}

/// All of them, the first and the last included.
fn addresses(net: Ipv4Net) -> impl Iterator<Item = Ipv4Addr> {
    (u32::from(net.network())..=u32::from(net.broadcast())).map(Ipv4Addr::from)
}
