//! API objects to the model. What cannot be understood is named, and denied.
//!
//! | not understood                 | what then holds                                             |
//! |--------------------------------|-------------------------------------------------------------|
//! | a rule's peer or port          | the rule allows nothing; the policy's other rules hold      |
//! | `podSelector`                  | all pods of the namespace are isolated; its rules are void  |
//! | an entry of `policyTypes`      | the policy isolates in both directions; its rules hold      |
//!
//! The API server refuses all of this today. Objects stored by older servers, or past validation,
//! still come by.

mod rule;

use std::collections::BTreeSet;
use std::net::IpAddr;

use thiserror::Error;

use crate::api;
use crate::model::{
    BadSelector, Direction, Labels, Namespace, NamespaceName, NodeName, Pod, PodKey, PodUid,
    Policy, PolicyKey, Rule, Selector,
};

/// Where AWS's CNI plugin writes a pod's addresses before the kubelet does (`ANNOTATE_POD_IP`).
pub const POD_IPS_ANNOTATION: &str = "vpc.amazonaws.com/pod-ips";

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
    /// A port by name.
    #[error("named port {0:?}: not supported")]
    NamedPort(String),
    /// A number that is no port.
    #[error("{0} is no port")]
    Port(i64),
    /// A range that ends before it begins, or has no beginning.
    #[error("endPort {end} without a port at or below it")]
    EndPort {
        /// Where it ends.
        end: i64,
    },
}

/// A pod.
#[must_use]
pub fn pod(object: api::Pod) -> Pod {
    let addresses = addresses(&object);
    let phase = object.status.phase.as_deref();
    Pod {
        key: PodKey {
            namespace: NamespaceName::new(object.metadata.namespace),
            name: object.metadata.name,
        },
        uid: PodUid::new(object.metadata.uid),
        node: object
            .spec
            .node_name
            .filter(|name| !name.is_empty())
            .map(NodeName::new),
        host_network: object.spec.host_network,
        finished: matches!(phase, Some("Succeeded" | "Failed")),
        labels: Labels::from(object.metadata.labels),
        addresses,
    }
}

/// The status where it says something, else the annotation, which comes earlier. A pod that is
/// being deleted and whose annotation was blanked has given its addresses back.
fn addresses(object: &api::Pod) -> BTreeSet<IpAddr> {
    let annotation = object.metadata.annotations.get(POD_IPS_ANNOTATION);
    let blank = annotation.is_some_and(|text| text.trim().is_empty());
    if blank && object.metadata.deletion_timestamp.is_some() {
        return BTreeSet::new();
    }
    let parse = |text: &str| text.trim().parse::<IpAddr>().ok();
    let status: BTreeSet<IpAddr> = object
        .status
        .pod_ips
        .iter()
        .map(|entry| entry.ip.as_str())
        .chain(object.status.pod_ip.as_deref())
        .filter_map(parse)
        .collect();
    if status.is_empty() {
        annotation
            .into_iter()
            .flat_map(|text| text.split(','))
            .filter_map(parse)
            .collect()
    } else {
        status
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
) -> Vec<Rule> {
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
    held
}
