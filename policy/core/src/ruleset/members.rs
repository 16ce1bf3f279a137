//! The members of a set, in little memory: a node may hold a million.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use super::{Family, Member, Protocol};
use crate::shared::{self, Shared};

/// Members, each once, shared with whoever else holds them.
///
/// *Shape*: in order. Those of IPv4 take 8 bytes.
///
/// *Cost*: as [`Shared`].
#[derive(Clone, Default, PartialEq, Eq)]
pub struct MemberSet {
    v4: Shared<Packed>,
    v6: Shared<Member>,
}

/// A member of IPv4: address, prefix, protocol, port, from the highest byte to the lowest. So their
/// order is that of members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Packed(u64);

impl Packed {
    fn new(net: Ipv4Net, port: Option<(Protocol, u16)>) -> Self {
        let [a, b, c, d] = net.addr().octets();
        let without = Self(u64::from_be_bytes([a, b, c, d, net.prefix_len(), 0, 0, 0]));
        without.carrying(port)
    }

    /// The same with a port, where it has none.
    fn carrying(self, port: Option<(Protocol, u16)>) -> Self {
        let (protocol, port) = match port {
            None => (0, 0),
            Some((Protocol::Tcp, port)) => (1, port),
            Some((Protocol::Udp, port)) => (2, port),
            Some((Protocol::Sctp, port)) => (3, port),
        };
        let [high, low] = port.to_be_bytes();
        if self.0.trailing_zeros() >= 24 {
            Self(self.0 | u64::from_be_bytes([0, 0, 0, 0, 0, protocol, high, low]))
        } else {
            self
        }
    }

    fn member(self) -> Member {
        let [a, b, c, d, prefix, protocol, high, low] = self.0.to_be_bytes();
        let protocol = match protocol {
            0 => None,
            1 => Some(Protocol::Tcp),
            2 => Some(Protocol::Udp),
            _ => Some(Protocol::Sctp),
        };
        Member {
            net: IpNet::new_assert(IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix),
            port: protocol.map(|protocol| (protocol, u16::from_be_bytes([high, low]))),
        }
    }
}

/// A member as it is held.
enum Held {
    V4(Packed),
    V6(Member),
}

impl From<Member> for Held {
    fn from(member: Member) -> Self {
        match member.net {
            IpNet::V4(net) => Self::V4(Packed::new(net, member.port)),
            IpNet::V6(_) => Self::V6(member),
        }
    }
}

/// The members in order.
#[derive(Debug, Clone)]
pub struct Members<'a> {
    v4: shared::Iter<'a, Packed>,
    v6: shared::Iter<'a, Member>,
}

impl Iterator for Members<'_> {
    type Item = Member;

    fn next(&mut self) -> Option<Member> {
        let v4 = self.v4.next().map(|packed| packed.member());
        v4.or_else(|| self.v6.next().copied())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.v4.len() + self.v6.len();
        (left, Some(left))
    }
}

impl ExactSizeIterator for Members<'_> {}

impl MemberSet {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many members it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// How many members of a family it has.
    #[must_use]
    pub fn len_of(&self, family: Family) -> usize {
        match family {
            Family::V4 => self.v4.len(),
            Family::V6 => self.v6.len(),
        }
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// The members in order.
    #[must_use]
    pub fn iter(&self) -> Members<'_> {
        Members {
            v4: self.v4.iter(),
            v6: self.v6.iter(),
        }
    }

    /// Whether it has a member.
    #[must_use]
    pub fn contains(&self, member: &Member) -> bool {
        match Held::from(*member) {
            Held::V4(packed) => self.v4.contains(&packed),
            Held::V6(member) => self.v6.contains(&member),
        }
    }

    /// Adds a member; says whether it is new.
    pub fn insert(&mut self, member: Member) -> bool {
        match Held::from(member) {
            Held::V4(packed) => self.v4.insert(packed),
            Held::V6(member) => self.v6.insert(member),
        }
    }

    /// Takes a member out; says whether it was there.
    pub fn remove(&mut self, member: &Member) -> bool {
        match Held::from(*member) {
            Held::V4(packed) => self.v4.remove(&packed),
            Held::V6(member) => self.v6.remove(&member),
        }
    }

    /// Puts members in (`true`) and takes others out, and tells of those that were not in it, or
    /// were.
    ///
    /// *Shape*: the changes are in order, each member once.
    ///
    /// *Cost*: as [`Shared::change`].
    pub fn change(&mut self, changes: &[(Member, bool)], mut tell: impl FnMut(Member, bool)) {
        let (mut v4, mut v6) = (Vec::with_capacity(changes.len()), Vec::new());
        for (member, goes_in) in changes {
            match Held::from(*member) {
                Held::V4(packed) => v4.push((packed, *goes_in)),
                Held::V6(member) => v6.push((member, *goes_in)),
            }
        }
        self.v4
            .change(&v4, |packed, goes_in| tell(packed.member(), goes_in));
        self.v6.change(&v6, tell);
    }

    /// All members of a family of several sets together. Those without a port carry in here what
    /// stands beside their set.
    pub(crate) fn union<'a>(
        family: Family,
        sets: impl Iterator<Item = (&'a Self, Option<(Protocol, u16)>)>,
    ) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (set, port) in sets {
            match family {
                Family::V4 => v4.extend(set.v4.iter().map(|packed| packed.carrying(port))),
                Family::V6 => v6.extend(set.v6.iter().map(|member| Member {
                    port: member.port.or(port),
                    ..*member
                })),
            }
        }
        Self {
            v4: v4.into(),
            v6: v6.into(),
        }
    }

    /// What this one has and the other has not, and the other way round; each in order.
    ///
    /// *Cost*: linear in what they do not share.
    #[must_use]
    pub fn difference(&self, other: &Self) -> (Vec<Member>, Vec<Member>) {
        let (v4, v6) = (self.v4.difference(&other.v4), self.v6.difference(&other.v6));
        let joined = |v4: Vec<Packed>, v6: Vec<Member>| {
            let v4 = v4.into_iter().map(Packed::member);
            v4.chain(v6).collect()
        };
        (joined(v4.0, v6.0), joined(v4.1, v6.1))
    }
}

impl FromIterator<Member> for MemberSet {
    fn from_iter<I: IntoIterator<Item = Member>>(members: I) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for member in members {
            match Held::from(member) {
                Held::V4(packed) => v4.push(packed),
                Held::V6(member) => v6.push(member),
            }
        }
        Self {
            v4: v4.into(),
            v6: v6.into(),
        }
    }
}

impl<const N: usize> From<[Member; N]> for MemberSet {
    fn from(members: [Member; N]) -> Self {
        members.into_iter().collect()
    }
}

impl Extend<Member> for MemberSet {
    fn extend<I: IntoIterator<Item = Member>>(&mut self, members: I) {
        let mut members: Vec<(Member, bool)> = members.into_iter().map(|it| (it, true)).collect();
        members.sort_unstable();
        members.dedup();
        self.change(&members, |_, _| ());
    }
}

impl<'a> Extend<&'a Member> for MemberSet {
    fn extend<I: IntoIterator<Item = &'a Member>>(&mut self, members: I) {
        self.extend(members.into_iter().copied());
    }
}

impl<'a> IntoIterator for &'a MemberSet {
    type Item = Member;
    type IntoIter = Members<'a>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl PartialEq<BTreeSet<Member>> for MemberSet {
    fn eq(&self, other: &BTreeSet<Member>) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter().copied())
    }
}

impl fmt::Debug for MemberSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn member() -> impl Strategy<Value = Member> {
        let port = (prop::sample::select(&Protocol::ALL[..]), any::<u16>());
        let v4 = (any::<[u8; 4]>(), 1..=32_u8).prop_map(|(it, prefix)| (IpAddr::from(it), prefix));
        let v6 =
            (any::<[u8; 16]>(), 1..=128_u8).prop_map(|(it, prefix)| (IpAddr::from(it), prefix));
        let net = prop_oneof![v4, v6];
        (net, prop::option::of(port)).prop_map(|((address, prefix), port)| Member {
            net: IpNet::new_assert(address, prefix).trunc(),
            port,
        })
    }

    proptest! {
        #[test]
        fn sets_together_hold_the_members_of_all_with_the_ports_beside_them(
            one in prop::collection::btree_set(member(), 0..40),
            other in prop::collection::btree_set(member(), 0..40),
            number in any::<u16>(),
        ) {
            let port = Some((Protocol::Udp, number));
            let sets: [MemberSet; 2] = [&one, &other].map(|set| set.iter().copied().collect());
            for family in [Family::V4, Family::V6] {
                let other = other.iter().map(|member| Member {
                    port: member.port.or(port),
                    ..*member
                });
                let of_family = |member: &Member| Family::of(&member.net) == family;
                let want: BTreeSet<Member> = one.iter().copied().chain(other).filter(of_family).collect();
                let parts = [(&sets[0], None), (&sets[1], port)];
                prop_assert_eq!(&MemberSet::union(family, parts.into_iter()), &want);
            }
        }

        #[test]
        fn members_are_held_as_they_came_and_in_their_order(
            one in prop::collection::btree_set(member(), 0..40),
            other in prop::collection::btree_set(member(), 0..40),
        ) {
            let mut set: MemberSet = one.iter().copied().collect();
            prop_assert_eq!(&set, &one);
            let other_set: MemberSet = other.iter().rev().copied().collect();
            let (ours, theirs) = set.difference(&other_set);
            prop_assert!(ours.iter().eq(one.difference(&other)));
            prop_assert!(theirs.iter().eq(other.difference(&one)));
            for member in &other {
                prop_assert_eq!(set.contains(member), one.contains(member));
                prop_assert_eq!(set.insert(*member), !one.contains(member));
            }
            prop_assert_eq!(&set, &(&one | &other));
            for member in &one {
                prop_assert!(set.remove(member));
            }
            prop_assert_eq!(&set, &(&other - &one));
        }
    }
}
