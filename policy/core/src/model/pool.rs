//! What many objects have alike, kept once.

use std::collections::BTreeSet;
use std::num::NonZeroU16;
use std::sync::Arc;

use super::labels::Requirement;
use super::{NamedPort, Namespaces, Peer, Peers, Pod, Policy, Selector};

/// Sweeping fewer isn't worth it.
const SWEEP_MIN: usize = 1024;

/// The namespaces, nodes, labels and named ports of pods, or the namespaces and selectors of
/// policies, so that equal ones share their memory.
///
/// *Shape*: at most about twice as many as are in use: each time that it has doubled, it lets go
/// of what nobody else holds.
#[derive(Debug, Default)]
pub struct Pool {
    texts: BTreeSet<Arc<str>>,
    ports: BTreeSet<Arc<[(NamedPort, NonZeroU16)]>>,
    selectors: BTreeSet<Arc<[Requirement]>>,
    /// How many were left by the last sweep.
    swept: usize,
}

impl Pool {
    /// The same pod, with what it has alike with earlier ones shared with them.
    ///
    /// *Cost*: a few look-ups; now and then linear in what is held.
    #[must_use]
    pub fn share(&mut self, mut pod: Pod) -> Pod {
        share(&mut self.texts, &mut pod.key.namespace.0);
        if let Some(node) = &mut pod.node {
            share(&mut self.texts, &mut node.0);
        }
        share(&mut self.texts, &mut pod.labels.0);
        share(&mut self.ports, &mut pod.ports);
        self.sweep();
        pod
    }

    /// The same policy, with what it has alike with earlier ones shared with them.
    ///
    /// *Cost*: as [`Pool::share`], for each of its selectors.
    #[must_use]
    pub fn share_policy(&mut self, mut policy: Policy) -> Policy {
        share(&mut self.texts, &mut policy.key.namespace.0);
        self.share_selector(&mut policy.subject);
        let rules = [&mut policy.ingress, &mut policy.egress];
        for rule in rules.into_iter().flatten().flat_map(|it| it.iter_mut()) {
            let Peers::Listed(peers) = &mut rule.peers else {
                continue;
            };
            for peer in peers {
                let Peer::Pods(selector) = peer else { continue };
                match &mut selector.namespaces {
                    Namespaces::Named(name) => share(&mut self.texts, &mut name.0),
                    Namespaces::Matching(namespaces) => self.share_selector(namespaces),
                }
                self.share_selector(&mut selector.pods);
            }
        }
        self.sweep();
        policy
    }

    fn share_selector(&mut self, selector: &mut Selector) {
        share(&mut self.selectors, &mut selector.0);
    }

    fn sweep(&mut self) {
        if self.len() > SWEEP_MIN.max(2 * self.swept) {
            self.texts.retain(|held| Arc::strong_count(held) > 1);
            self.ports.retain(|held| Arc::strong_count(held) > 1);
            self.selectors.retain(|held| Arc::strong_count(held) > 1);
            self.swept = self.len();
        }
    }

    fn len(&self) -> usize {
        self.texts.len() + self.ports.len() + self.selectors.len()
    }
}

fn share<T: Ord + ?Sized>(held: &mut BTreeSet<Arc<T>>, new: &mut Arc<T>) {
    match held.get(new) {
        Some(same) => *new = Arc::clone(same),
        None => {
            held.insert(Arc::clone(new));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api;
    use crate::convert;

    fn pod(app: usize) -> Pod {
        let mut object = api::Pod::default();
        object.metadata.namespace = "shop".to_owned();
        object.metadata.labels = [("app".to_owned(), app.to_string())].into();
        convert::pod(object)
    }

    #[test]
    fn pods_of_one_template_share_their_labels_and_namespace() {
        let mut pool = Pool::default();
        let (one, other) = (pool.share(pod(1)), pool.share(pod(1)));
        assert!(Arc::ptr_eq(&one.labels.0, &other.labels.0));
        assert!(Arc::ptr_eq(&one.key.namespace.0, &other.key.namespace.0));
        assert!(Arc::ptr_eq(&one.ports, &other.ports));
        assert_eq!(one, pod(1));
        assert_eq!(pool.share(pod(2)), pod(2));
    }

    fn policy(name: &str, app: &str) -> Policy {
        let labels = serde_json::json!({"matchLabels": {"app": app}});
        let object = serde_json::json!({
            "metadata": {"namespace": "shop", "name": name},
            "spec": {"podSelector": labels, "ingress": [{"from": [
                {"podSelector": labels, "namespaceSelector": labels}, {"podSelector": labels},
                {"ipBlock": {"cidr": "10.0.0.0/8"}},
            ]}, {}]},
        });
        let object: api::NetworkPolicy = serde_json::from_value(object).unwrap();
        convert::policy(&object).0
    }

    #[test]
    fn policies_share_their_selectors_and_say_what_they_said() {
        let mut pool = Pool::default();
        let (one, other) = (
            pool.share_policy(policy("a", "x")),
            pool.share_policy(policy("b", "x")),
        );
        assert!(Arc::ptr_eq(&one.subject.0, &other.subject.0));
        assert!(Arc::ptr_eq(&one.key.namespace.0, &other.key.namespace.0));
        let Peers::Listed(peers) = &other.ingress.as_ref().unwrap()[0].peers else {
            panic!("listed")
        };
        let (Peer::Pods(both), Peer::Pods(own)) = (&peers[0], &peers[1]) else {
            panic!("pods first")
        };
        assert!(Arc::ptr_eq(&one.subject.0, &both.pods.0));
        assert_eq!(both.namespaces, Namespaces::Matching(one.subject.clone()));
        assert!(
            matches!(&own.namespaces, Namespaces::Named(name) if Arc::ptr_eq(&name.0, &one.key.namespace.0))
        );
        assert_eq!(one, policy("a", "x"));
        assert_eq!(pool.share_policy(policy("a", "y")), policy("a", "y"));
    }

    #[test]
    fn what_no_pod_has_any_more_is_let_go() {
        let mut pool = Pool::default();
        let stays = pool.share(pod(0));
        for app in 1..10 * SWEEP_MIN {
            drop(pool.share(pod(app)));
            assert!(pool.len() <= SWEEP_MIN + 1, "{app}");
        }
        assert!(Arc::ptr_eq(&stays.labels.0, &pool.share(pod(0)).labels.0));
    }
}
