//! Leases of an earlier process, from the checkpoint.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use thiserror::Error;

use super::{Lease, Pool, Slot};
use crate::ids::{EniId, PodKey, PodName, Timestamp};

/// A lease as the checkpoint has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Whose.
    pub key: PodKey,
    /// The pod by name.
    pub pod: PodName,
    /// The address.
    pub address: IpAddr,
    /// Since when.
    pub since: Timestamp,
}

/// A checkpoint that cannot be true.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RestoreError {
    /// Two pods have one address.
    #[error("address {address} is leased to {first} and to {second}")]
    Twice {
        /// The address.
        address: IpAddr,
        /// One pod.
        first: String,
        /// The other.
        second: String,
    },
    /// One pod has two leases.
    #[error("{key} has more than one lease")]
    SameKey {
        /// The pod.
        key: PodKey,
    },
}

impl Pool {
    /// Takes over the leases of an earlier process and what was resting then. A lease whose address no interface shows
    /// is kept aside and answered: reads lag, and the pod is there.
    ///
    /// Comes after the first [`Pool::reconcile`] and before the first [`Pool::assign`].
    ///
    /// # Errors
    /// When the entries contradict each other; nothing is taken over then.
    pub fn restore(
        &mut self,
        entries: &[Arc<Entry>],
        resting: &[(IpAddr, Timestamp)],
    ) -> Result<Vec<Lease>, RestoreError> {
        let mut by_address: BTreeMap<IpAddr, &PodKey> = BTreeMap::new();
        let mut by_key: BTreeMap<&PodKey, IpAddr> = BTreeMap::new();
        for entry in entries {
            if let Some(first) = by_address.insert(entry.address, &entry.key) {
                return Err(RestoreError::Twice {
                    address: entry.address,
                    first: first.to_string(),
                    second: entry.key.to_string(),
                });
            }
            if by_key.insert(&entry.key, entry.address).is_some() {
                return Err(RestoreError::SameKey {
                    key: entry.key.clone(),
                });
            }
        }
        let mut aside = Vec::new();
        for entry in entries {
            match self.holder(entry.address) {
                Some(eni) => self.occupy(&eni, entry.clone()),
                None => {
                    aside.push(Lease::of(entry, None));
                    self.orphans.insert(entry.key.clone(), entry.clone());
                }
            }
        }
        for (address, until) in resting {
            let block = self
                .enis
                .values_mut()
                .find_map(|eni| eni.block_of_mut(*address));
            match block {
                Some(block) if block.slot(*address) == Some(Slot::Free { freed: None }) => {
                    block.set(*address, Slot::Cooling { until: *until });
                }
                Some(_) => {}
                None => {
                    self.resting.insert(*address, *until);
                }
            }
        }
        Ok(aside)
    }

    fn holder(&self, address: IpAddr) -> Option<EniId> {
        self.enis
            .values()
            .find(|eni| eni.block_of(address).is_some())
            .map(|eni| eni.id.clone())
    }
}
