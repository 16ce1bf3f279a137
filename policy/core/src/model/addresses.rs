//! A pod's few addresses, without a heap's piece for them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses, each once.
///
/// *Shape*: in order. Up to one of each family, as nearly every pod has, lie in place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses(Held);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Held {
    Few(Option<Ipv4Addr>, Option<Ipv6Addr>),
    More(Box<[IpAddr]>),
}

impl Default for Held {
    fn default() -> Self {
        Self::Few(None, None)
    }
}

impl Addresses {
    /// The addresses, in order.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + Clone {
        let (v4, v6, more) = match &self.0 {
            Held::Few(v4, v6) => (*v4, *v6, &[][..]),
            Held::More(more) => (None, None, &**more),
        };
        let few = v4.map(IpAddr::from).into_iter().chain(v6.map(IpAddr::from));
        few.chain(more.iter().copied())
    }
}

impl FromIterator<IpAddr> for Addresses {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        let mut all: Vec<IpAddr> = addresses.into_iter().collect();
        all.sort_unstable();
        all.dedup();
        Self(match *all.as_slice() {
            [] => Held::Few(None, None),
            [IpAddr::V4(one)] => Held::Few(Some(one), None),
            [IpAddr::V6(one)] => Held::Few(None, Some(one)),
            [IpAddr::V4(one), IpAddr::V6(other)] => Held::Few(Some(one), Some(other)),
            _ => Held::More(all.into()),
        })
    }
}

impl<const N: usize> From<[IpAddr; N]> for Addresses {
    fn from(addresses: [IpAddr; N]) -> Self {
        addresses.into_iter().collect()
    }
}

impl PartialEq<BTreeSet<IpAddr>> for Addresses {
    fn eq(&self, other: &BTreeSet<IpAddr>) -> bool {
        self.iter().eq(other.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_addresses_is_each_once_and_in_order() {
        let all = ["fd00::1", "10.0.0.2", "10.0.0.1", "fd00::1", "10.0.0.3"];
        for number in 0..=all.len() {
            let given = all.iter().take(number).map(|text| text.parse().unwrap());
            let want: BTreeSet<IpAddr> = given.clone().collect();
            assert_eq!(given.collect::<Addresses>(), want, "{number}");
        }
    }
}
