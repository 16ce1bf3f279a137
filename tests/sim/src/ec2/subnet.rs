//! A subnet's addresses: single ones, and blocks of sixteen.

use std::net::Ipv4Addr;

use fastrand::Rng;
use ipnet::Ipv4Net;

/// Addresses in a block that can be assigned as a prefix (/28).
pub(super) const PREFIX: u32 = 16;
const PREFIX_LENGTH: u8 = 28;
/// "The first four IP addresses and the last IP address in each subnet CIDR block are not available" (VPC User Guide,
/// "Subnet CIDR blocks").
const RESERVED_FIRST: u32 = 4;

/// Which addresses are taken. Where EC2 puts a single address is not documented; here, anywhere.
#[derive(Debug, Clone)]
pub(super) struct Subnet {
    pub(super) net: Ipv4Net,
    /// A bit for each address of a block.
    taken: Vec<u16>,
    /// Blocks of which no address is taken, in no order, and where each block is in that list.
    empty: Vec<usize>,
    place: Vec<Option<usize>>,
    free: u32,
}

impl Subnet {
    pub(super) fn new(net: Ipv4Net) -> Self {
        let blocks = 1usize << (PREFIX_LENGTH - net.prefix_len());
        let mut subnet = Self {
            net,
            taken: vec![0; blocks],
            empty: (0..blocks).collect(),
            place: (0..blocks).map(Some).collect(),
            free: u32::try_from(blocks).unwrap_or(u32::MAX) * PREFIX,
        };
        for bit in 0..RESERVED_FIRST {
            subnet.set(0, bit);
        }
        subnet.set(blocks - 1, PREFIX - 1);
        subnet
    }

    pub(super) fn free(&self) -> u32 {
        self.free
    }

    pub(super) fn empty_blocks(&self) -> usize {
        self.empty.len()
    }

    /// Any free address.
    pub(super) fn take_address(&mut self, rng: &mut Rng) -> Option<Ipv4Net> {
        if self.free == 0 {
            return None;
        }
        let mut block = rng.usize(..self.taken.len());
        while self.taken[block] == u16::MAX {
            block = (block + 1) % self.taken.len();
        }
        let mut bit = rng.u32(..PREFIX);
        while self.taken[block] & (1 << bit) != 0 {
            bit = (bit + 1) % PREFIX;
        }
        self.set(block, bit);
        Ipv4Net::new(self.address(block, bit), 32).ok()
    }

    /// Any block of which no address is taken.
    pub(super) fn take_prefix(&mut self, rng: &mut Rng) -> Option<Ipv4Net> {
        let at = (!self.empty.is_empty()).then(|| rng.usize(..self.empty.len()))?;
        let block = self.empty[at];
        for bit in 0..PREFIX {
            self.set(block, bit);
        }
        Ipv4Net::new(self.address(block, 0), PREFIX_LENGTH).ok()
    }

    /// Gives an address or a block back.
    pub(super) fn give_back(&mut self, net: Ipv4Net) {
        let offset = u32::from(net.network()) - u32::from(self.net.network());
        let block = usize::try_from(offset / PREFIX).unwrap_or(usize::MAX);
        let bits = match net.prefix_len() {
            PREFIX_LENGTH => 0..PREFIX,
            _ => offset % PREFIX..offset % PREFIX + 1,
        };
        for bit in bits {
            assert!(self.taken[block] & (1 << bit) != 0, "{net} was not taken");
            self.taken[block] &= !(1 << bit);
            self.free += 1;
        }
        if self.taken[block] == 0 {
            self.place[block] = Some(self.empty.len());
            self.empty.push(block);
        }
    }

    fn address(&self, block: usize, bit: u32) -> Ipv4Addr {
        let block = u32::try_from(block).unwrap_or(u32::MAX);
        Ipv4Addr::from(u32::from(self.net.network()) + block * PREFIX + bit)
    }

    fn set(&mut self, block: usize, bit: u32) {
        self.taken[block] |= 1 << bit;
        self.free -= 1;
        if let Some(at) = self.place[block].take() {
            self.empty.swap_remove(at);
            if let Some(moved) = self.empty.get(at) {
                self.place[*moved] = Some(at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_subnet_gives_each_address_once_and_takes_it_back() {
        let mut rng = Rng::with_seed(1);
        let mut subnet = Subnet::new("10.0.0.0/24".parse().unwrap());
        assert_eq!(subnet.free(), 251, "five addresses of a subnet are AWS's");
        let taken: BTreeSet<_> = std::iter::from_fn(|| subnet.take_address(&mut rng)).collect();
        assert_eq!(taken.len(), 251);
        assert_eq!(subnet.free(), 0);
        for net in taken {
            subnet.give_back(net);
        }
        assert_eq!((subnet.free(), subnet.empty_blocks()), (251, 14));
    }

    #[test]
    fn a_prefix_is_a_block_that_nobody_has_an_address_of() {
        let mut rng = Rng::with_seed(2);
        let mut subnet = Subnet::new("10.0.0.0/24".parse().unwrap());
        let single = subnet.take_address(&mut rng).unwrap();
        let prefixes: Vec<_> = std::iter::from_fn(|| subnet.take_prefix(&mut rng)).collect();
        assert!(prefixes.len() == 13 || prefixes.len() == 14, "{prefixes:?}");
        assert!(
            prefixes
                .iter()
                .all(|p| p.prefix_len() == 28 && !p.contains(&single))
        );
        subnet.give_back(prefixes[3]);
        assert_eq!(subnet.take_prefix(&mut rng), Some(prefixes[3]));
    }
}
