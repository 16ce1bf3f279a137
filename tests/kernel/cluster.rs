//! A cluster of one node: API objects as JSON on one side, pods and packets on the other, and
//! between them the enforcement half from index to kernel, without its daemon.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};
use selvage_netfilter::{Backend, Kernel};
use selvage_policy_core::compile::compile;
use selvage_policy_core::convert;
use selvage_policy_core::index::{Delta, Event, Index, Settings};
use selvage_policy_core::model::NodeName;
use selvage_policy_core::plan::{Plan, plan};
use selvage_policy_core::ruleset::{Family, VethPrefix};
use selvage_tests::{Node, Pod};
use serde_json::{Value, from_value, json};

const NODE: &str = "node-1";

pub(crate) struct Cluster {
    pub(crate) node: Node,
    pub(crate) kernel: Kernel,
    objects: Vec<Event>,
    pub(crate) index: Index,
}

impl Cluster {
    /// A node with one namespace, `default`, labelled `name: default`, and no pods.
    pub(crate) fn new(backend: Backend) -> Result<Self> {
        let node = Node::new()?;
        let mut cluster = Self {
            node,
            kernel: open(backend)?,
            objects: Vec::new(),
            index: empty_index()?,
        };
        let labels = json!({"name": "default"});
        let namespace = json!({"metadata": {"name": "default", "labels": labels}});
        cluster.apply(Event::NamespaceApplied(convert::namespace(from_value(
            namespace,
        )?)));
        Ok(cluster)
    }

    fn apply(&mut self, event: Event) -> Delta {
        self.objects.push(event.clone());
        self.index.apply(event)
    }

    /// The object of a pod on another node.
    pub(crate) fn announce_elsewhere(&mut self, name: &str, address: Ipv4Addr) -> Result<Delta> {
        self.announce(name, address, "node-2")
    }

    /// A pod of namespace `default`, labelled `app: <name>`, with its address known.
    fn announce(&mut self, name: &str, address: Ipv4Addr, node: &str) -> Result<Delta> {
        let pod = json!({
            "metadata": {
                "name": name, "namespace": "default", "uid": name, "labels": {"app": name}
            },
            "spec": {"nodeName": node},
            "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
        });
        Ok(self.apply(Event::PodApplied(convert::pod(from_value(pod)?))))
    }

    /// The pod's object and the pod itself, on this node.
    pub(crate) fn pod(&mut self, name: &str, address: Ipv4Addr) -> Result<Pod> {
        self.announce(name, address, NODE)?;
        self.node.pod("default", name, address)
    }

    /// A NetworkPolicy of namespace `default` with this `spec`.
    pub(crate) fn policy(&mut self, name: &str, spec: Value) -> Result<()> {
        let object = json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec});
        let (policy, problems) = convert::policy(&from_value(object)?);
        ensure!(problems.is_empty(), "{problems:?}");
        self.apply(Event::PolicyApplied(policy));
        Ok(())
    }

    /// Puts everything in force, and returns what that took.
    pub(crate) fn enforce(&mut self) -> Result<Plan> {
        let want = compile(&mut self.index, Family::V4);
        let todo = plan(&want, &self.kernel.observe(Family::V4)?);
        let left = self.kernel.apply(&todo)?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(todo)
    }

    /// Forgets everything but the objects, as a process does that ends and starts again.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.index = empty_index()?;
        for event in self.objects.clone().into_iter().rev() {
            self.index.apply(event);
        }
        self.kernel = open(self.kernel.backend())?;
        Ok(())
    }
}

fn open(backend: Backend) -> Result<Kernel> {
    Ok(Kernel::open(backend, Duration::from_secs(10))?)
}

fn empty_index() -> Result<Index> {
    Ok(Index::new(Settings {
        node: NodeName::new(NODE),
        prefix: VethPrefix::new("eni")?,
        families: BTreeSet::from([Family::V4]),
        source_check: true,
        drop_invalid: true,
        deny_log: None,
    }))
}
