//! Addresses of pods, and blocks of addresses as intervals of numbers.

use std::net::IpAddr;

use serde_json::Value;

use super::list;

/// A block: all addresses of a family from one number to another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Block {
    /// Whether it is of IPv6.
    pub v6: bool,
    /// Its lowest address.
    pub first: u128,
    /// Its highest address.
    pub last: u128,
}

impl Block {
    /// Reads `address/bits`. Host bits don't count. IPv4 written as IPv6 is IPv4.
    #[must_use]
    pub fn parse(text: &Value) -> Option<Self> {
        let (address, bits) = text.as_str()?.split_once('/')?;
        if bits.len() > 3 || !bits.chars().all(|c| c.is_ascii_digit()) {
            return None;
        }
        let bits: u32 = bits.parse().ok()?;
        let written: IpAddr = address.parse().ok()?;
        let (address, bits) = match written.to_canonical() {
            address if address.is_ipv4() && written.is_ipv6() && bits >= 96 => (address, bits - 96),
            address if address.is_ipv4() == written.is_ipv4() => (address, bits),
            _ => (written, bits),
        };
        let width = if address.is_ipv4() { 32 } else { 128 };
        if bits > width {
            return None;
        }
        // A shift by 128 would overflow: it stands for a block of everything.
        let below = 1_u128
            .checked_shl(width - bits)
            .map_or(u128::MAX, |size| size - 1);
        let first = number(address) & !below;
        Some(Self {
            v6: address.is_ipv6(),
            first,
            last: first | below,
        })
    }

    /// Whether an address is in it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.v6 == address.is_ipv6() && (self.first..=self.last).contains(&number(address))
    }
}

/// Whether an ipBlock means something: "except values will be rejected if they are outside the
/// cidr range", and a block that excepts itself is no block.
pub(super) fn is_understood(block: &Value) -> bool {
    let Some(whole) = Block::parse(&block["cidr"]) else {
        return false;
    };
    list(&block["except"]).iter().all(|text| {
        Block::parse(text).is_some_and(|hole| {
            hole.v6 == whole.v6
                && hole != whole
                && hole.first >= whole.first
                && hole.last <= whole.last
        })
    })
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// The addresses of a pod. In each family what the CNI plugin wrote into the annotation comes
/// before what the kubelet wrote into the status. A pod that is going, and whose annotation was
/// emptied, has given its addresses back.
#[must_use]
pub fn addresses(pod: &Value) -> Vec<IpAddr> {
    let annotation = pod["metadata"]["annotations"]["vpc.amazonaws.com/pod-ips"].as_str();
    let going = !pod["metadata"]["deletionTimestamp"].is_null();
    if going && annotation.is_some_and(|text| text.trim().is_empty()) {
        return Vec::new();
    }
    let read = |text: &str| {
        let address: Option<IpAddr> = text.trim().parse().ok();
        address.map(|address| address.to_canonical())
    };
    let written: Vec<IpAddr> = annotation
        .unwrap_or("")
        .split(',')
        .filter_map(read)
        .collect();
    let status = &pod["status"];
    let mut known: Vec<IpAddr> = list(&status["podIPs"])
        .iter()
        .map(|entry| &entry["ip"])
        .chain([&status["podIP"]])
        .filter_map(|text| read(text.as_str()?))
        .collect();
    known.retain(|one| !written.iter().any(|other| other.is_ipv4() == one.is_ipv4()));
    known.extend(written);
    known
}
