//! A pod's few addresses, without a heap's piece for them.

use std::collections::BTreeSet;
use std::net::IpAddr;

/// Addresses, each once.
///
/// *Shape*: in order. Up to two, as nearly every pod has, lie in place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses(Held);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Held {
    #[default]
    None,
    One(IpAddr),
    Two([IpAddr; 2]),
    More(Box<[IpAddr]>),
}

impl Addresses {
    /// The addresses, in order.
    #[must_use]
    pub fn as_slice(&self) -> &[IpAddr] {
        match &self.0 {
            Held::None => &[],
            Held::One(address) => std::slice::from_ref(address),
            Held::Two(addresses) => addresses,
            Held::More(addresses) => addresses,
        }
    }

    /// The addresses, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, IpAddr> {
        self.as_slice().iter()
    }
}

impl<'a> IntoIterator for &'a Addresses {
    type Item = &'a IpAddr;
    type IntoIter = std::slice::Iter<'a, IpAddr>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl FromIterator<IpAddr> for Addresses {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        let mut all: Vec<IpAddr> = addresses.into_iter().collect();
        all.sort_unstable();
        all.dedup();
        Self(match *all.as_slice() {
            [] => Held::None,
            [one] => Held::One(one),
            [one, two] => Held::Two([one, two]),
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
        self.iter().eq(other)
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
