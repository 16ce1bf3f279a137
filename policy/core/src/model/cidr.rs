//! Sets of addresses: unions of blocks minus exceptions, as the shortest list of blocks.
//!
//! The kernel's `nomatch` is not used: it goes by the longest prefix, so an exception of one peer
//! would punch through another peer's wider block in the same set.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::ruleset::Family;

/// Addresses of both families.
///
/// *Shape*: equal exactly when the addresses are, however they were put together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddressSet {
    v4: Intervals,
    v6: Intervals,
}

impl AddressSet {
    /// The addresses of a block; host bits are masked.
    #[must_use]
    pub fn block(net: IpNet) -> Self {
        let mut set = Self::default();
        set.insert(net);
        set
    }

    /// Adds a block.
    pub fn insert(&mut self, net: IpNet) {
        let (family, first, last) = bounds(net);
        self.of_mut(family).insert(first, last);
    }

    /// Takes all of another's addresses away.
    ///
    /// *Cost*: linear in the intervals of both.
    pub fn subtract(&mut self, other: &Self) {
        for family in [Family::V4, Family::V6] {
            let left = self.of(family).without(other.of(family));
            *self.of_mut(family) = left;
        }
    }

    /// The addresses of all of them.
    ///
    /// *Cost*: n log n in the intervals of all.
    #[must_use]
    pub fn union<'a>(sets: impl IntoIterator<Item = &'a Self> + Clone) -> Self {
        let of = |family| {
            let sets = sets.clone().into_iter();
            Intervals::union(
                sets.flat_map(|set| set.of(family).0.iter().copied())
                    .collect(),
            )
        };
        Self {
            v4: of(Family::V4),
            v6: of(Family::V6),
        }
    }

    /// Whether it holds no address.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.0.is_empty() && self.v6.0.is_empty()
    }

    /// Whether it holds no address of a family.
    #[must_use]
    pub fn is_empty_of(&self, family: Family) -> bool {
        self.of(family).0.is_empty()
    }

    /// Whether it holds an address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let (family, number, _) = bounds(IpNet::from(address));
        let intervals = &self.of(family).0;
        let after = intervals.partition_point(|(first, _)| *first <= number);
        after > 0 && number <= intervals[after - 1].1
    }

    /// The shortest list of blocks that holds exactly the addresses of a family, in order.
    #[must_use]
    pub fn nets(&self, family: Family) -> Vec<IpNet> {
        self.of(family)
            .0
            .iter()
            .flat_map(|(first, last)| nets_between(family, *first, *last))
            .collect()
    }

    /// [`Self::nets`] for a set in the kernel, where the block of everything is two halves.
    #[must_use]
    pub fn member_nets(&self, family: Family) -> Vec<IpNet> {
        let nets = self.nets(family);
        if nets == [family.everything()] {
            family.halves().to_vec()
        } else {
            nets
        }
    }

    fn of(&self, family: Family) -> &Intervals {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    fn of_mut(&mut self, family: Family) -> &mut Intervals {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

/// Inclusive intervals, in order, disjoint and not adjacent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Intervals(Vec<(u128, u128)>);

impl Intervals {
    fn union(mut all: Vec<(u128, u128)>) -> Self {
        all.sort_unstable();
        let mut joined: Vec<(u128, u128)> = Vec::new();
        for (first, last) in all {
            match joined.last_mut() {
                Some((_, high)) if first <= high.saturating_add(1) => *high = last.max(*high),
                Some(_) | None => joined.push((first, last)),
            }
        }
        joined.shrink_to_fit();
        Self(joined)
    }

    fn insert(&mut self, first: u128, last: u128) {
        let (mut first, mut last) = (first, last);
        self.0.retain(|(low, high)| {
            let apart = *low > last.saturating_add(1) || first > high.saturating_add(1);
            if !apart {
                first = first.min(*low);
                last = last.max(*high);
            }
            apart
        });
        let at = self.0.partition_point(|(low, _)| *low < first);
        self.0.insert(at, (first, last));
    }

    fn without(&self, other: &Self) -> Self {
        let mut left = Vec::new();
        let mut holes = other.0.as_slice();
        for (low, high) in &self.0 {
            // Whatever ends before this begins is before all that follow, too.
            while let [(_, last), rest @ ..] = holes
                && last < low
            {
                holes = rest;
            }
            let mut next = Some(*low);
            for (first, last) in holes.iter().take_while(|(first, _)| first <= high) {
                if let Some(low) = next.filter(|low| low < first) {
                    left.push((low, first - 1));
                }
                next = last.checked_add(1);
            }
            if let Some(low) = next.filter(|low| low <= high) {
                left.push((low, *high));
            }
        }
        left.shrink_to_fit();
        Self(left)
    }
}

fn width(family: Family) -> u32 {
    match family {
        Family::V4 => 32,
        Family::V6 => 128,
    }
}

fn bounds(net: IpNet) -> (Family, u128, u128) {
    let number = |address: IpAddr| match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    };
    (
        Family::of(&net),
        number(net.network()),
        number(net.broadcast()),
    )
}

fn net(family: Family, first: u128, host_bits: u32) -> IpNet {
    let address = match family {
        Family::V4 => {
            let number = u32::try_from(first).expect("an IPv4 interval ends at 2^32 - 1");
            IpAddr::V4(Ipv4Addr::from(number))
        }
        Family::V6 => IpAddr::V6(Ipv6Addr::from(first)),
    };
    let prefix = u8::try_from(width(family) - host_bits).expect("a prefix has at most 128 bits");
    IpNet::new_assert(address, prefix)
}

/// The largest aligned block at the low end, then the rest.
fn nets_between(family: Family, first: u128, last: u128) -> Vec<IpNet> {
    let mut nets = Vec::new();
    let mut next = Some(first);
    while let Some(low) = next {
        let aligned = if low == 0 {
            width(family)
        } else {
            low.trailing_zeros()
        };
        // Addresses left, less one: their number itself may be 2^128.
        let fits = match (last - low).checked_add(1) {
            Some(count) => count.ilog2(),
            None => 128,
        };
        let host_bits = aligned.min(fits);
        nets.push(net(family, low, host_bits));
        let high = match 1_u128.checked_shl(host_bits) {
            Some(size) => low + (size - 1),
            None => u128::MAX,
        };
        next = (high < last).then(|| high + 1);
    }
    nets
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn set(blocks: &[&str], exceptions: &[&str]) -> AddressSet {
        let mut set = AddressSet::default();
        for net in nets(blocks) {
            set.insert(net);
        }
        let exceptions: Vec<AddressSet> = nets(exceptions)
            .into_iter()
            .map(AddressSet::block)
            .collect();
        set.subtract(&AddressSet::union(&exceptions));
        set
    }

    #[test]
    fn blocks_minus_exceptions_are_the_shortest_list() {
        type Texts<'a> = &'a [&'a str];
        let cases: &[(Texts, Texts, Texts, &str)] = &[
            (&["10.0.0.0/8"], &[], &["10.0.0.0/8"], "as it is"),
            (
                &["10.1.2.3/8"],
                &[],
                &["10.0.0.0/8"],
                "host bits are masked",
            ),
            (
                &["10.0.0.0/9", "10.128.0.0/9"],
                &[],
                &["10.0.0.0/8"],
                "halves join",
            ),
            (
                &["10.0.0.0/30"],
                &["10.0.0.1/32"],
                &["10.0.0.0/32", "10.0.0.2/31"],
                "one address out",
            ),
            (
                &["10.0.0.0/30"],
                &["10.0.0.0/31", "10.0.0.1/32"],
                &["10.0.0.2/31"],
                "exceptions overlap",
            ),
            (&["10.0.0.0/30"], &["10.0.0.0/16"], &[], "nothing left"),
            (&["0.0.0.0/0"], &[], &["0.0.0.0/0"], "everything"),
            (
                &["0.0.0.0/0"],
                &["255.255.255.255/32", "128.0.0.0/2"],
                &[
                    "0.0.0.0/1",
                    "192.0.0.0/3",
                    "224.0.0.0/4",
                    "240.0.0.0/5",
                    "248.0.0.0/6",
                    "252.0.0.0/7",
                    "254.0.0.0/8",
                    "255.0.0.0/9",
                    "255.128.0.0/10",
                    "255.192.0.0/11",
                    "255.224.0.0/12",
                    "255.240.0.0/13",
                    "255.248.0.0/14",
                    "255.252.0.0/15",
                    "255.254.0.0/16",
                    "255.255.0.0/17",
                    "255.255.128.0/18",
                    "255.255.192.0/19",
                    "255.255.224.0/20",
                    "255.255.240.0/21",
                    "255.255.248.0/22",
                    "255.255.252.0/23",
                    "255.255.254.0/24",
                    "255.255.255.0/25",
                    "255.255.255.128/26",
                    "255.255.255.192/27",
                    "255.255.255.224/28",
                    "255.255.255.240/29",
                    "255.255.255.248/30",
                    "255.255.255.252/31",
                    "255.255.255.254/32",
                ],
                "the last address out",
            ),
        ];
        for (blocks, exceptions, want, message) in cases {
            assert_eq!(
                set(blocks, exceptions).nets(Family::V4),
                nets(want),
                "{message}"
            );
        }
    }

    #[test]
    fn ipv6_reaches_both_ends_of_the_space() {
        assert_eq!(set(&["::/0"], &[]).nets(Family::V6), nets(&["::/0"]));
        let mut all = set(&["::/0"], &["ffff::/16"]);
        all.insert("ffff::/16".parse().unwrap());
        assert_eq!(all, set(&["::/0"], &[]));
        assert_eq!(
            set(&["::/126"], &["::/128"]).nets(Family::V6),
            nets(&["::1/128", "::2/127"])
        );
    }

    #[test]
    fn families_do_not_touch_each_other() {
        let mut both = set(&["0.0.0.0/0", "::/0"], &[]);
        both.subtract(&set(&["::/0"], &[]));
        assert_eq!(both, set(&["0.0.0.0/0"], &[]));
    }

    #[test]
    fn everything_is_two_halves_in_a_set() {
        assert_eq!(
            set(&["0.0.0.0/0"], &[]).member_nets(Family::V4),
            nets(&["0.0.0.0/1", "128.0.0.0/1"])
        );
        assert_eq!(
            set(&["::/0"], &[]).member_nets(Family::V6),
            nets(&["::/1", "8000::/1"])
        );
    }

    proptest! {
        #[test]
        fn an_address_is_in_exactly_when_the_last_word_on_it_was_insert(
            steps in prop::collection::vec((any::<bool>(), 0_u8..=255, 24_u8..=32), 0..12)
        ) {
            let mut set = AddressSet::default();
            let mut naive = [false; 256];
            for (add, host, prefix) in steps {
                let net = IpNet::new_assert(Ipv4Addr::new(10, 0, 0, host).into(), prefix);
                for (address, inside) in naive.iter_mut().enumerate() {
                    let address = Ipv4Addr::new(10, 0, 0, u8::try_from(address).unwrap());
                    if net.contains(&IpAddr::V4(address)) {
                        *inside = add;
                    }
                }
                if add { set.insert(net) } else { set.subtract(&AddressSet::block(net)) }
            }
            let nets = set.nets(Family::V4);
            for (address, inside) in naive.iter().enumerate() {
                let address = IpAddr::V4(Ipv4Addr::new(10, 0, 0, u8::try_from(address).unwrap()));
                prop_assert_eq!(nets.iter().any(|net| net.contains(&address)), *inside);
                prop_assert_eq!(set.contains(address), *inside);
            }
            prop_assert_eq!(IpNet::aggregate(&nets).len(), nets.len(), "not the shortest");
            let (even, odd): (Vec<_>, Vec<_>) = nets.iter().enumerate().partition(|(at, _)| at % 2 == 0);
            let of = |nets: &[(usize, &IpNet)]| {
                let blocks: Vec<AddressSet> = nets.iter().map(|(_, net)| AddressSet::block(**net)).collect();
                AddressSet::union(&blocks)
            };
            let mut rest = set.clone();
            rest.subtract(&of(&odd));
            prop_assert_eq!(rest, of(&even), "many holes at once");
            let blocks: Vec<AddressSet> = nets.iter().rev().map(|net| AddressSet::block(*net)).collect();
            prop_assert_eq!(AddressSet::union(&blocks), set, "the union of its own blocks");
        }
    }
}
