//! What many pods have alike, kept once.

use std::collections::BTreeSet;
use std::num::NonZeroU16;
use std::sync::Arc;

use super::{NamedPort, Pod};

/// Sweeping fewer isn't worth it.
const SWEEP_MIN: usize = 1024;

/// The namespaces, nodes, labels and named ports of pods, so that equal ones share their memory.
///
/// *Shape*: at most about twice as many as are in use: each time that it has doubled, it lets go
/// of what nobody else holds.
#[derive(Debug, Default)]
pub struct Pool {
    texts: BTreeSet<Arc<str>>,
    ports: BTreeSet<Arc<[(NamedPort, NonZeroU16)]>>,
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
        if self.len() > SWEEP_MIN.max(2 * self.swept) {
            self.texts.retain(|held| Arc::strong_count(held) > 1);
            self.ports.retain(|held| Arc::strong_count(held) > 1);
            self.swept = self.len();
        }
        pod
    }

    fn len(&self) -> usize {
        self.texts.len() + self.ports.len()
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
