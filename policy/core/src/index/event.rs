//! What goes into the index, and what comes out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::model::{Namespace, NamespaceName, NodeName, Pod, PodKey, PodUid, Policy, PolicyKey};
use crate::ruleset::{Family, Member, MemberSet, SetName, VethPrefix};

/// What does not change while the agent runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The node whose pods are enforced.
    pub node: NodeName,
    /// How their interfaces are named.
    pub prefix: VethPrefix,
    /// The families that will be compiled. In a family that isn't here nothing is enforced at all.
    pub families: BTreeSet<Family>,
    /// Whether a pod's packets must come from where replies to them would go.
    pub source_check: bool,
    /// Whether what conntrack can make nothing of is dropped, before any policy is asked.
    pub drop_invalid: bool,
    /// The NFLOG group that packets which policy denies are copied to, if any.
    pub deny_log: Option<u16>,
}

/// The kinds of things that are watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// Pods of the whole cluster.
    Pods,
    /// Namespaces.
    Namespaces,
    /// NetworkPolicies.
    Policies,
    /// The kernel's host routes to pods' interfaces.
    Routes,
}

/// Something that a watch said.
///
/// Applying the same object twice, or deleting what isn't there, changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A pod is so now.
    PodApplied(Pod),
    /// A pod is gone. Ignored when a pod of that name and another uid is known.
    PodDeleted(PodKey, PodUid),
    /// A namespace is so now.
    NamespaceApplied(Namespace),
    /// A namespace is gone.
    NamespaceDeleted(NamespaceName),
    /// A policy is so now.
    PolicyApplied(Policy),
    /// A policy is gone.
    PolicyDeleted(PolicyKey),
    /// These are all host routes (/32, /128) through an interface now; none: there is no more.
    Routes {
        /// The interface's name.
        interface: String,
        /// Where they lead.
        addresses: BTreeSet<IpAddr>,
    },
    /// A watch begins anew: every object that exists will be applied.
    RelistStarted(Resource),
    /// It has: what was not applied since the start is gone. Without a start, nothing happens.
    RelistDone(Resource),
}

/// What follows from an event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delta {
    /// Chains or whole sets differ from what was compiled last: compile again. Stays true until
    /// that is done. Whatever else settles the index ([`super::Index::judge`] and others say so) ends it
    /// too, so whoever has to compile remembers that it was asked.
    pub recompile: bool,
    /// Members of sets may differ: ask [`super::Index::take_member_changes`], if not to compile. Many
    /// events may share one question.
    pub members: bool,
    /// Addresses that a pod of this node had before the event, and none has now. Flows from and to
    /// them must not be found by whoever has them next.
    pub left: BTreeSet<IpAddr>,
    /// Where members may differ: addresses of pods anywhere that are gone with the event. Nobody is at the
    /// other end of their flows, until somebody else has the address.
    pub gone: BTreeSet<IpAddr>,
}

impl Delta {
    /// Whether nothing follows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.recompile && !self.members && self.left.is_empty()
    }
}

/// Changes of members, by set.
pub type MemberChanges = BTreeMap<SetName, MemberChange>;

/// What changes in one set.
///
/// *Shape*: `add` and `remove` are disjoint, and not both empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemberChange {
    /// Not in the set so far. Added first.
    pub add: BTreeSet<Member>,
    /// In the set so far.
    pub remove: BTreeSet<Member>,
    /// All that is in it then, shared with the index.
    pub members: MemberSet,
}

impl MemberChange {
    /// What changes after it: what comes and goes is no change.
    pub(super) fn then(&mut self, add: Vec<Member>, remove: Vec<Member>) {
        for member in add {
            if !self.remove.remove(&member) {
                self.add.insert(member);
            }
        }
        for member in remove {
            if !self.add.remove(&member) {
                self.remove.insert(member);
            }
        }
    }
}
