//! The way of one packet through chains, as the kernel goes it: the one place that says what a
//! rule means. `crate::eval` goes it through a whole ruleset, [`crate::verdict`] through the
//! chains of the pods at a flow's ends.

use std::net::IpAddr;

use crate::fold::Stamp;
use crate::ruleset::{
    Action, Chain, ChainName, FlowState, Match, Protocol, SetKind, SetName, Side,
};

/// What the chains are in, and the sets.
pub(crate) trait Ground {
    /// A chain by name; `None` when there is none.
    fn chain(&self, name: &ChainName) -> Option<&Chain>;

    /// Whether a set holds an address, with this protocol and port if its members have such.
    fn holds(&self, set: &SetName, address: IpAddr, stamp: Stamp) -> bool;
}

/// One packet on its way through the node, after DNAT.
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
    /// What conntrack makes of it.
    pub state: FlowState,
    /// Whether it is a TCP SYN or an SCTP INIT. Of other protocols it says nothing.
    pub opens: bool,
    /// Its type, when it is ICMPv6.
    pub icmp6: Option<u8>,
    /// Whether its source isn't routed back by the interface it came in by.
    pub source_elsewhere: bool,
}

impl Packet {
    /// The first packet of a flow, from where its source is routed back to.
    #[must_use]
    pub fn first(
        in_interface: impl Into<String>,
        out_interface: impl Into<String>,
        source: IpAddr,
        destination: IpAddr,
        port: Option<(Protocol, u16)>,
    ) -> Self {
        Self {
            in_interface: in_interface.into(),
            out_interface: out_interface.into(),
            source,
            destination,
            port,
            state: FlowState::New,
            opens: true,
            icmp6: None,
            source_elsewhere: false,
        }
    }
}

/// What chains did with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Walked {
    Returned,
    Dropped,
}

/// Takes a packet into a chain. A return ends the walk, whatever chains were gone to since it
/// began: only a jump nests.
///
/// *Panics*: when a chain that a rule names is missing.
pub(crate) fn walk(ground: &impl Ground, start: &ChainName, packet: &Packet) -> Walked {
    let mut name = start;
    'chain: loop {
        let chain = ground.chain(name).expect("a ruleset is closed");
        for rule in chain.rules() {
            let holds = |condition| holds(ground, condition, packet);
            if !rule.matches.iter().all(holds) {
                continue;
            }
            match &rule.action {
                Action::Return => return Walked::Returned,
                Action::Drop => return Walked::Dropped,
                Action::Log { .. } | Action::Renew { .. } => {}
                Action::Goto(next) => {
                    name = next;
                    continue 'chain;
                }
                Action::Jump(next) => match walk(ground, next, packet) {
                    Walked::Returned => {}
                    Walked::Dropped => return Walked::Dropped,
                },
            }
        }
        return Walked::Returned;
    }
}

fn holds(ground: &impl Ground, condition: &Match, packet: &Packet) -> bool {
    let protocol = packet.port.map(|(protocol, _)| protocol);
    match condition {
        Match::In(interface) => interface.matches(&packet.in_interface),
        Match::Out(interface) => interface.matches(&packet.out_interface),
        Match::NotIn(interface) => !interface.matches(&packet.in_interface),
        Match::NotOut(interface) => !interface.matches(&packet.out_interface),
        Match::State(state) => packet.state == *state,
        Match::OfNoFlow => match packet.state {
            FlowState::New | FlowState::Invalid => true,
            FlowState::Established | FlowState::Untracked => false,
        },
        Match::NotSyn => protocol == Some(Protocol::Tcp) && !packet.opens,
        Match::NotInit => protocol == Some(Protocol::Sctp) && !packet.opens,
        Match::Icmp6 => packet.icmp6.is_some(),
        Match::Icmp6Type(number) => packet.icmp6 == Some(*number),
        Match::SourceElsewhere => packet.source_elsewhere,
        Match::Protocol(wanted) => protocol == Some(*wanted),
        Match::Ports(wanted, ports) => packet
            .port
            .is_some_and(|(is, port)| is == *wanted && ports.contains(port)),
        Match::Set { set, kind, peer } => {
            let address = match peer {
                Side::Source => packet.source,
                Side::Destination => packet.destination,
            };
            match kind {
                SetKind::Net => ground.holds(set, address, None),
                SetKind::NetPort => {
                    packet.port.is_some() && ground.holds(set, address, packet.port)
                }
                // Who is in it, the kernel alone knows.
                SetKind::Guard => false,
            }
        }
    }
}
