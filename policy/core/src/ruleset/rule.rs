//! Rules and chains: a closed vocabulary, so that nothing a user wrote can reach a rule's text.

use std::fmt;
use std::num::NonZeroU16;
use std::sync::{Arc, OnceLock};

use super::{ChainName, Interface, Marker, Protocol, SetKind, SetName};

/// An inclusive range of ports.
///
/// *Shape*: `first <= last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: NonZeroU16,
    last: NonZeroU16,
}

impl PortRange {
    /// A range, unless `last < first`.
    #[must_use]
    pub fn new(first: NonZeroU16, last: NonZeroU16) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// The range that holds one port.
    #[must_use]
    pub fn one(port: NonZeroU16) -> Self {
        Self {
            first: port,
            last: port,
        }
    }

    /// The port, when there is only one.
    #[must_use]
    pub fn single(self) -> Option<u16> {
        (self.first == self.last).then_some(self.first.get())
    }

    /// The range with the one that follows on it, if it does.
    pub(crate) fn and_next(self, next: Self) -> Option<Self> {
        let follows = self.last.checked_add(1) == Some(next.first);
        follows.then_some(Self {
            first: self.first,
            last: next.last,
        })
    }

    /// From one number to another, if these are ports and in order.
    pub(crate) fn between(first: u32, last: u32) -> Option<Self> {
        let port = |number: u32| u16::try_from(number).ok().and_then(NonZeroU16::new);
        Self::new(port(first)?, port(last)?)
    }

    /// The first port.
    pub(crate) fn start(self) -> u32 {
        self.first.get().into()
    }

    /// The last port.
    pub(crate) fn end(self) -> u32 {
        self.last.get().into()
    }

    /// The ports that are in both.
    pub(crate) fn overlap(self, other: Self) -> Option<Self> {
        Self::new(self.first.max(other.first), self.last.min(other.last))
    }

    /// Whether the range holds a port.
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        (self.first.get()..=self.last.get()).contains(&port)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.first, self.last)
    }
}

/// Which address of a packet is the peer's. The port is always the destination's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// Ingress: the peer sent the packet.
    Source,
    /// Egress: the packet goes to the peer.
    Destination,
}

/// What conntrack makes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FlowState {
    /// Its flow has been seen in both directions, or it is an error about one that has.
    Established,
    /// It begins a flow, or so it seems: with `nf_conntrack_tcp_loose` any TCP packet may.
    New,
    /// It fits no flow and begins none.
    Invalid,
    /// Conntrack leaves it alone: neighbour discovery, and what `NOTRACK` names.
    Untracked,
}

/// One condition of a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Match {
    /// It came in by this interface.
    In(Interface),
    /// It goes out by this interface.
    Out(Interface),
    /// It came in by any other interface.
    NotIn(Interface),
    /// It goes out by any other interface.
    NotOut(Interface),
    /// What conntrack makes of it.
    State(FlowState),
    /// No flow that conntrack knows has it: it is new or invalid.
    OfNoFlow,
    /// It is TCP and opens no connection.
    NotSyn,
    /// It is SCTP and opens no association.
    NotInit,
    /// It is ICMPv6. Valid in IPv6 only.
    Icmp6,
    /// It is ICMPv6 of this type. Valid in IPv6 only.
    Icmp6Type(u8),
    /// Its source isn't routed back by where it came in. Valid in `PREROUTING` only.
    SourceElsewhere,
    /// It is of this protocol.
    Protocol(Protocol),
    /// It is of this protocol and its destination port is in the range.
    Ports(Protocol, PortRange),
    /// The set holds its peer (and, by kind, its protocol and destination port). Of kind
    /// [`SetKind::Guard`]: its source, protocol, source port and destination.
    Set {
        /// Which set.
        set: SetName,
        /// The set's kind, which decides how many dimensions are compared.
        kind: SetKind,
        /// Which address is the peer's.
        peer: Side,
    },
}

/// What a rule does with a packet that meets all its conditions.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Back to the rule after the last [`Action::Jump`]: our word for "allowed here".
    Return,
    /// The end.
    Drop,
    /// On to the next rule, and a copy goes to who listens to an NFLOG group.
    Log {
        /// Which group.
        group: u16,
        /// What the copy is labelled with: the chain of the profile.
        chain: ChainName,
    },
    /// On to the next rule, and the flow stays in a set of kind [`SetKind::Guard`] that it is in, for
    /// so long from now.
    Renew {
        /// Which set.
        set: SetName,
        /// How long.
        seconds: u32,
    },
    /// On to another chain; a return there comes back here.
    Jump(ChainName),
    /// On to another chain; a return there goes where a return here would have gone.
    Goto(ChainName),
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// Conditions, all of which must hold, cheapest first.
    pub matches: Vec<Match>,
    /// What happens then.
    pub action: Action,
}

/// The rules of a chain, in order.
///
/// *Shape*: the last rule has no conditions and returns, drops or goes to another chain, so that
/// what is written behind it (the [`Marker`]) is never reached.
///
/// *Cost*: a clone is a counter.
#[derive(Debug, Clone)]
pub struct Chain(Arc<Content>);

#[derive(Debug)]
struct Content {
    rules: Vec<Rule>,
    /// The text of all rules and its hash: asked for often, and made once.
    marker: OnceLock<Marker>,
}

impl PartialEq for Chain {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.rules == other.0.rules
    }
}

impl Eq for Chain {}

impl Chain {
    /// A chain of `rules`, ended by `last` for every packet that none of them took.
    #[must_use]
    pub fn ending_in(last: Action, mut rules: Vec<Rule>) -> Self {
        rules.push(Rule {
            matches: Vec::new(),
            action: last,
        });
        Self::of(rules)
    }

    fn of(rules: Vec<Rule>) -> Self {
        Self(Arc::new(Content {
            rules,
            marker: OnceLock::new(),
        }))
    }

    /// The same, with a copy of what the end drops for those who listen to an NFLOG group. `name`
    /// labels the copies: that of the chain that packets come in by.
    #[must_use]
    pub fn logging_drops(&self, group: u16, name: &ChainName) -> Self {
        let mut rules = self.rules().to_vec();
        let last = rules.len().saturating_sub(1);
        if rules[last].action == Action::Drop {
            let log = Rule {
                matches: Vec::new(),
                action: Action::Log {
                    group,
                    chain: name.clone(),
                },
            };
            rules.insert(last, log);
        }
        Self::of(rules)
    }

    /// The rules in order.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.0.rules
    }

    /// The sets that its rules match on or put something into, as often as they do.
    pub fn sets(&self) -> impl Iterator<Item = &SetName> {
        let matches = self.0.rules.iter().flat_map(|rule| &rule.matches);
        let matched = matches.filter_map(|condition| match condition {
            Match::Set { set, .. } => Some(set),
            Match::In(_)
            | Match::Out(_)
            | Match::NotIn(_)
            | Match::NotOut(_)
            | Match::State(_)
            | Match::OfNoFlow
            | Match::NotSyn
            | Match::NotInit
            | Match::Icmp6
            | Match::Icmp6Type(_)
            | Match::SourceElsewhere
            | Match::Protocol(_)
            | Match::Ports(..) => None,
        });
        let renewed = self.0.rules.iter().filter_map(|rule| match &rule.action {
            Action::Renew { set, .. } => Some(set),
            Action::Return
            | Action::Drop
            | Action::Log { .. }
            | Action::Jump(_)
            | Action::Goto(_) => None,
        });
        matched.chain(renewed)
    }

    /// The hash of the content, as the kernel keeps it in the chain's unreachable last rule.
    #[must_use]
    pub fn marker(&self) -> Marker {
        *self.0.marker.get_or_init(|| Marker::of(self))
    }

    /// How many rules the kernel holds for it: the marker is one more.
    #[must_use]
    pub fn rules_in_kernel(&self) -> usize {
        self.0.rules.len() + 1
    }
}
