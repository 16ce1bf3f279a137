//! One packet through a ruleset, as the kernel would take it: for tests, and for explaining.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::ruleset::{
    Action, BaseChain, ChainName, Family, Match, Member, Protocol, Ruleset, Set, SetKind, Side,
};

/// A packet on its way through the node, after DNAT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// The interface it came in by.
    pub in_interface: String,
    /// The interface it goes out by.
    pub out_interface: String,
    /// Where it says it is from.
    pub source: IpAddr,
    /// Where it goes.
    pub destination: IpAddr,
    /// Protocol and destination port; `None` for everything that has no ports.
    pub port: Option<(Protocol, u16)>,
    /// Whether conntrack knows its flow.
    pub established: bool,
    /// Whether its source isn't routed back by the interface it came in by.
    pub source_elsewhere: bool,
}

/// What becomes of it, as far as the ruleset goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on to others' rules.
    Passed,
    /// It ends here.
    Dropped,
}

/// What a chain did with a packet.
enum Walk {
    Returned,
    Dropped,
}

/// Takes a packet through the hooks in the order in which the kernel runs them.
///
/// *Panics*: when the ruleset isn't closed (a chain or set that a rule names is missing), or goes
/// round in a circle.
#[must_use]
pub fn eval(ruleset: &Ruleset, packet: &Packet) -> Verdict {
    for base in [BaseChain::Prerouting, BaseChain::Forward] {
        for hook in ruleset.hooks.iter().filter(|hook| hook.base == base) {
            match walk(ruleset, &hook.target, packet) {
                Walk::Returned => {}
                Walk::Dropped => return Verdict::Dropped,
            }
        }
    }
    Verdict::Passed
}

/// A return ends the walk, whatever chains were gone to since it began: only a jump nests.
fn walk(ruleset: &Ruleset, start: &ChainName, packet: &Packet) -> Walk {
    let mut name = start;
    'chain: loop {
        for rule in ruleset.chains[name].rules() {
            let holds = |condition| holds(ruleset, condition, packet);
            if !rule.matches.iter().all(holds) {
                continue;
            }
            match &rule.action {
                Action::Return => return Walk::Returned,
                Action::Drop => return Walk::Dropped,
                Action::Goto(next) => {
                    name = next;
                    continue 'chain;
                }
                Action::Jump(next) => match walk(ruleset, next, packet) {
                    Walk::Returned => {}
                    Walk::Dropped => return Walk::Dropped,
                },
            }
        }
        return Walk::Returned;
    }
}

fn holds(ruleset: &Ruleset, condition: &Match, packet: &Packet) -> bool {
    match condition {
        Match::In(interface) => interface.matches(&packet.in_interface),
        Match::Out(interface) => interface.matches(&packet.out_interface),
        Match::NotIn(interface) => !interface.matches(&packet.in_interface),
        Match::NotOut(interface) => !interface.matches(&packet.out_interface),
        Match::Established => packet.established,
        Match::SourceElsewhere => packet.source_elsewhere,
        Match::Protocol(protocol) => packet.port.is_some_and(|(is, _)| is == *protocol),
        Match::Ports(protocol, ports) => packet
            .port
            .is_some_and(|(is, port)| is == *protocol && ports.contains(port)),
        Match::Set { set, kind, peer } => {
            let address = match peer {
                Side::Source => packet.source,
                Side::Destination => packet.destination,
            };
            in_set(&ruleset.sets[set], *kind, address, packet.port)
        }
    }
}

/// The longest prefixes first, as the kernel tries them: any hit is a hit.
fn in_set(set: &Set, kind: SetKind, address: IpAddr, port: Option<(Protocol, u16)>) -> bool {
    assert_eq!(set.kind, kind, "a rule matches a set by another kind");
    let port = match kind {
        SetKind::Net => None,
        SetKind::NetPort if port.is_none() => return false,
        SetKind::NetPort => port,
    };
    let longest = match Family::of_address(address) {
        Family::V4 => 32,
        Family::V6 => 128,
    };
    // No member is a /0: the kernel has none.
    (1..=longest).rev().any(|prefix| {
        let net = IpNet::new_assert(address, prefix).trunc();
        set.members.contains(&Member { net, port })
    })
}
