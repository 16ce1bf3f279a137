//! API objects to the model. What cannot be understood is named, and denied.
//!
//! | not understood                 | what then holds                                             |
//! |--------------------------------|-------------------------------------------------------------|
//! | a rule's peer or port          | the rule allows nothing; the policy's other rules hold      |
//! | a rule that is too large       | the same                                                    |
//! | `podSelector`                  | all pods of the namespace are isolated; its rules are void  |
//! | an entry of `policyTypes`      | the policy isolates in both directions; its rules hold      |
//!
//! The API server refuses all of this today. Objects stored by older servers, or past validation,
//! still come by.

mod pod;
mod rule;

use thiserror::Error;

use crate::api;
use crate::model::{
    BadSelector, Direction, Labels, Namespace, NamespaceName, Policy, PolicyKey, Rule, Selector,
};
pub use pod::{BRANCH_ENI, NETWORKS_ANNOTATION, NIC_CONFIG_ANNOTATION, POD_IPS_ANNOTATION, pod};

/// Something in a policy that was not understood.
///
/// Its text names the policy and says what is denied because of it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Problem {
    /// Whom the policy isolates.
    #[error("policy {policy}: podSelector: {reason}; all pods of the namespace are isolated")]
    Subject {
        /// Which policy.
        policy: PolicyKey,
        /// Why.
        reason: BadSelector,
    },
    /// In which directions it isolates.
    #[error("policy {policy}: policyTypes: {value:?}; isolating in both directions")]
    PolicyType {
        /// Which policy.
        policy: PolicyKey,
        /// What stands there.
        value: String,
    },
    /// A rule.
    #[error("policy {policy}: {direction} rule {index}: {reason}; the rule allows nothing")]
    Rule {
        /// Which policy.
        policy: PolicyKey,
        /// In which direction.
        direction: Direction,
        /// Which rule, from 0.
        index: usize,
        /// Why.
        reason: BadRule,
    },
}

impl Problem {
    /// The policy it is about.
    #[must_use]
    pub fn policy(&self) -> &PolicyKey {
        match self {
            Self::Subject { policy, .. }
            | Self::PolicyType { policy, .. }
            | Self::Rule { policy, .. } => policy,
        }
    }

    /// What sort of problem it is.
    #[must_use]
    pub fn kind(&self) -> ProblemKind {
        match self {
            Self::Subject { .. } => ProblemKind::Subject,
            Self::PolicyType { .. } => ProblemKind::PolicyType,
            Self::Rule { reason, .. } => reason.kind(),
        }
    }
}

/// Why a rule cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadRule {
    /// A peer's pod or namespace selector.
    #[error("peer {index}: {reason}")]
    Selector {
        /// Which peer, from 0.
        index: usize,
        /// Why.
        reason: BadSelector,
    },
    /// A block or an exception that is no CIDR.
    #[error("peer {index}: {text:?} is no CIDR")]
    Cidr {
        /// Which peer, from 0.
        index: usize,
        /// What stands there.
        text: String,
    },
    /// An exception that isn't strictly inside its block.
    #[error("peer {index}: except {except:?} is not inside {cidr:?}")]
    Except {
        /// Which peer, from 0.
        index: usize,
        /// The block.
        cidr: String,
        /// The exception.
        except: String,
    },
    /// A peer that names nobody.
    #[error("peer {index}: no selector and no ipBlock")]
    EmptyPeer {
        /// Which peer, from 0.
        index: usize,
    },
    /// A peer that is pods and addresses at once.
    #[error("peer {index}: ipBlock beside a selector")]
    MixedPeer {
        /// Which peer, from 0.
        index: usize,
    },
    /// A protocol that is none of the three.
    #[error("protocol {0:?} is none of TCP, UDP, SCTP")]
    Protocol(String),
    /// A name that no port can have.
    #[error("{0:?} is no port name")]
    PortName(String),
    /// A range that begins at a name.
    #[error("endPort {end} with named port {name:?}")]
    NamedRange {
        /// The name.
        name: String,
        /// Where it ends.
        end: i64,
    },
    /// A number that is no port.
    #[error("{0} is no port")]
    Port(i64),
    /// A range that ends before it begins, or has no beginning.
    #[error("endPort {end} without a port at or below it")]
    EndPort {
        /// Where it ends.
        end: i64,
    },
    /// More blocks, each times the single ports, than one rule may put into sets.
    #[error("its blocks and ports come to {members} set members, over the limit of {limit}")]
    TooLarge {
        /// How many.
        members: usize,
        /// How many there may be.
        limit: usize,
    },
}

/// What sort of thing was not understood: few values, fit to be a metric's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProblemKind {
    /// Whom the policy isolates.
    Subject,
    /// In which directions.
    PolicyType,
    /// A peer's selector, or a peer that is none.
    Peer,
    /// A block of addresses.
    Block,
    /// A port or protocol.
    Port,
    /// Understood, and more than can be enforced.
    TooLarge,
    /// A field that is not of the type that the API says.
    Unreadable,
}

impl ProblemKind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Subject,
        Self::PolicyType,
        Self::Peer,
        Self::Block,
        Self::Port,
        Self::TooLarge,
        Self::Unreadable,
    ];

    /// In lower case with underscores.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Subject => "subject",
            Self::PolicyType => "policy_type",
            Self::Peer => "peer",
            Self::Block => "block",
            Self::Port => "port",
            Self::TooLarge => "too_large",
            Self::Unreadable => "unreadable",
        }
    }
}

impl BadRule {
    fn kind(&self) -> ProblemKind {
        match self {
            Self::Selector { .. } | Self::EmptyPeer { .. } | Self::MixedPeer { .. } => {
                ProblemKind::Peer
            }
            Self::Cidr { .. } | Self::Except { .. } => ProblemKind::Block,
            Self::Protocol(_)
            | Self::PortName(_)
            | Self::NamedRange { .. }
            | Self::Port(_)
            | Self::EndPort { .. } => ProblemKind::Port,
            Self::TooLarge { .. } => ProblemKind::TooLarge,
        }
    }
}

/// A namespace.
#[must_use]
pub fn namespace(object: api::Namespace) -> Namespace {
    Namespace {
        name: NamespaceName::new(object.metadata.name),
        labels: Labels::from(object.metadata.labels),
    }
}

/// A policy, and what in it was not understood.
///
/// *Shape*: the policy can be enforced as it is, whatever the problems: they are to be reported.
#[must_use]
pub fn policy(object: &api::NetworkPolicy) -> (Policy, Vec<Problem>) {
    let mut problems = Vec::new();
    let key = PolicyKey {
        namespace: NamespaceName::new(object.metadata.namespace.clone()),
        name: object.metadata.name.clone(),
    };
    let (isolates_ingress, isolates_egress) = directions(&key, &object.spec, &mut problems);
    let subject = rule::selector(&object.spec.pod_selector);
    // Rules of unknown subjects would be everybody's.
    let void = subject.is_err();
    let ingress = isolates_ingress.then(|| {
        let rules = object.spec.ingress.iter();
        let rules = rules.map(|entry| rule::rule(&key.namespace, &entry.from, &entry.ports));
        understood(&key, Direction::Ingress, void, rules, &mut problems)
    });
    let egress = isolates_egress.then(|| {
        let rules = object.spec.egress.iter();
        let rules = rules.map(|entry| rule::rule(&key.namespace, &entry.to, &entry.ports));
        understood(&key, Direction::Egress, void, rules, &mut problems)
    });
    let subject = subject.unwrap_or_else(|reason| {
        problems.push(Problem::Subject {
            policy: key.clone(),
            reason,
        });
        Selector::everything()
    });
    let policy = Policy {
        key,
        subject,
        ingress,
        egress,
    };
    (policy, problems)
}

/// Whether the policy isolates in ingress, and in egress.
fn directions(
    key: &PolicyKey,
    spec: &api::NetworkPolicySpec,
    problems: &mut Vec<Problem>,
) -> (bool, bool) {
    if spec.policy_types.is_empty() {
        return (true, !spec.egress.is_empty());
    }
    let (mut ingress, mut egress) = (false, false);
    for value in &spec.policy_types {
        match value.as_str() {
            "Ingress" => ingress = true,
            "Egress" => egress = true,
            _ => {
                (ingress, egress) = (true, true);
                problems.push(Problem::PolicyType {
                    policy: key.clone(),
                    value: value.clone(),
                });
            }
        }
    }
    (ingress, egress)
}

fn understood(
    key: &PolicyKey,
    direction: Direction,
    void: bool,
    rules: impl Iterator<Item = Result<Rule, BadRule>>,
    problems: &mut Vec<Problem>,
) -> Box<[Rule]> {
    let mut held = Vec::new();
    for (index, rule) in rules.enumerate() {
        match rule {
            Ok(rule) if !void => held.push(rule),
            Ok(_) => {}
            Err(reason) => problems.push(Problem::Rule {
                policy: key.clone(),
                direction,
                index,
                reason,
            }),
        }
    }
    held.into()
}
