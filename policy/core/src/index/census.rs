//! In which families the cluster's pods have addresses.
//!
//! Where no pod has one, a set that only pods are in can have no member, and a rule that matches on it holds for
//! nobody: neither is made. In a cluster of one family that is half of all rules and sets.

use std::collections::BTreeSet;

use super::places::Placed;
use crate::ruleset::Family;

/// How many pods have addresses of a family.
#[derive(Debug, Default)]
pub(super) struct Census {
    v4: usize,
    v6: usize,
}

impl Census {
    /// A pod has other addresses, comes or goes.
    pub(super) fn note(&mut self, before: Option<&Placed<'_>>, after: Option<&Placed<'_>>) {
        let has = |placed: Option<&Placed<'_>>, family| {
            placed.is_some_and(|placed| {
                let mut addresses = placed.addresses.iter();
                addresses.any(|address| Family::of_address(address) == family)
            })
        };
        for (family, count) in [(Family::V4, &mut self.v4), (Family::V6, &mut self.v6)] {
            *count += usize::from(has(after, family));
            *count -= usize::from(has(before, family));
        }
    }

    /// The families in which any pod has an address.
    pub(super) fn peopled(&self) -> BTreeSet<Family> {
        let families = [(Family::V4, self.v4), (Family::V6, self.v6)];
        let peopled = families.into_iter().filter(|(_, pods)| *pods > 0);
        peopled.map(|(family, _)| family).collect()
    }
}
