//! The pool as it is looked at from outside: one value that `status` prints, that introspection serves and that a bundle
//! for a bug report holds.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

mod aws;
mod table;

pub(crate) use aws::enis_page;

/// Everything that is to be seen, of one moment.
///
/// *Shape*: interfaces by device index, those that are not attached last; blocks and addresses in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct View {
    /// Version of the daemon.
    pub version: String,
    /// The Kubernetes node, if known.
    pub node: String,
    /// The instance.
    pub instance: String,
    /// Its type.
    pub instance_type: String,
    /// `ready`, or why not.
    pub status: String,
    /// What pods get their addresses from: `addresses`, `prefixes` or `ipv6`.
    pub mode: String,
    /// With custom networking: the node's ENIConfig, or what is missing.
    pub eni_config: Option<String>,
    /// Whether the node takes no new pods.
    pub unschedulable: bool,
    /// Totals.
    pub numbers: Numbers,
    /// The interfaces.
    pub interfaces: Vec<Interface>,
    /// The subnets of the zone, as last told.
    pub subnets: Vec<Subnet>,
    /// ADDs that wait for an address.
    pub waiting: u32,
    /// What is begun next, in order; empty if nothing is to be done.
    pub plan: Vec<String>,
    /// Why a pod that asked now would get no address; nothing if it would get one.
    pub why_empty: Option<String>,
    /// Why the last failed step brought nothing, in the cloud's words.
    pub last_failure: Option<String>,
    /// The token buckets of calls to EC2.
    pub calls: Vec<Calls>,
}

/// Totals of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct Numbers {
    /// Interfaces at most.
    pub eni_max: u32,
    /// Pod addresses at most.
    pub ip_max: u32,
    /// Pods at most, by kubelet, settings or instance.
    pub max_pods: u32,
    /// Interfaces attached and managed.
    pub enis: u32,
    /// Addresses held.
    pub total: u32,
    /// Addresses that pods have.
    pub assigned: u32,
    /// Addresses a pod can have now.
    pub available: u32,
    /// Addresses that rest.
    pub cooling: u32,
    /// Prefixes held.
    pub prefixes: u32,
    /// Interfaces that vanished under us.
    pub lost_enis: u64,
    /// Addresses that vanished under us.
    pub lost_addresses: u64,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// The interface.
    pub id: String,
    /// Device index, if attached.
    pub device: Option<u16>,
    /// Whether it is the primary one.
    pub primary: bool,
    /// How far it has come: `detached`, `attached`, `kept`, `ready`, `leaving`, `down`, `discarded`.
    pub stage: String,
    /// Whether new pods get its addresses.
    pub serves: bool,
    /// Its subnet.
    pub subnet: String,
    /// Its own address.
    pub address: IpAddr,
    /// What it holds for pods.
    pub blocks: Vec<Block>,
}

/// A block of addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Block {
    /// The block; a single address as a block of one.
    pub block: IpNet,
    /// Whether it is being given back.
    pub leaving: bool,
    /// Whether EC2 showed it and no longer does: no pod gets an address of it until it does again.
    #[serde(default)]
    pub missing: bool,
    /// Addresses a pod can have now.
    pub free: u32,
    /// Addresses that rest.
    pub cooling: u32,
    /// Pods by their address.
    pub pods: BTreeMap<IpAddr, PodView>,
}

/// A pod on an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodView {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The CNI network.
    pub network: String,
    /// Since when, RFC 3339.
    pub since: String,
}

/// A subnet of the zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subnet {
    /// The subnet.
    pub id: String,
    /// Addresses nobody had when EC2 was last asked.
    pub available: u32,
}

/// One bucket of calls to EC2.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Calls {
    /// `read` or `change`.
    pub budget: String,
    /// Calls that could be made at once.
    pub at_once: u32,
    /// Calls in a second that may follow.
    pub per_second: f64,
    /// The same, had EC2 never complained.
    pub full_per_second: f64,
    /// Seconds until the next call.
    pub next_in_seconds: f64,
    /// How often EC2 said that there are too many calls.
    pub throttled: u64,
}

impl Block {
    /// Whether it is more than a single address.
    pub(crate) fn is_prefix(&self) -> bool {
        self.block.prefix_len() < self.block.max_prefix_len()
    }
}

impl Interface {
    /// Pods, free addresses and resting ones of all its blocks.
    fn sums(&self) -> (usize, u32, u32) {
        self.blocks
            .iter()
            .fold((0, 0, 0), |(pods, free, cooling), block| {
                (
                    pods + block.pods.len(),
                    u32::saturating_add(free, block.free),
                    cooling + block.cooling,
                )
            })
    }
}

#[cfg(test)]
pub(crate) fn example() -> View {
    let pod = |name: &str| PodView {
        namespace: "shop".into(),
        name: name.into(),
        network: "aws-cni".into(),
        since: "2026-01-31T09:05:00Z".into(),
    };
    let single = |text: &str, free, cooling, pods: &[&str]| Block {
        block: text.parse().unwrap(),
        leaving: false,
        missing: false,
        free,
        cooling,
        pods: pods
            .iter()
            .map(|name| (text.split('/').next().unwrap().parse().unwrap(), pod(name)))
            .collect(),
    };
    View {
        version: "0.1.0".into(),
        node: "node-1".into(),
        instance: "i-0abc".into(),
        instance_type: "c5.large".into(),
        status: "ready".into(),
        mode: "addresses".into(),
        numbers: Numbers {
            eni_max: 3,
            ip_max: 27,
            max_pods: 29,
            enis: 2,
            total: 20,
            assigned: 1,
            available: 18,
            cooling: 1,
            ..Numbers::default()
        },
        interfaces: vec![
            Interface {
                id: "eni-0".into(),
                device: Some(0),
                primary: true,
                stage: "ready".into(),
                serves: true,
                subnet: "subnet-1".into(),
                address: "10.0.0.4".parse().unwrap(),
                blocks: vec![
                    single("10.0.0.5/32", 0, 0, &["web-0"]),
                    single("10.0.0.6/32", 0, 1, &[]),
                    single("10.0.0.7/32", 1, 0, &[]),
                    Block {
                        block: "10.0.1.16/28".parse().unwrap(),
                        leaving: true,
                        missing: false,
                        free: 16,
                        cooling: 0,
                        pods: BTreeMap::new(),
                    },
                ],
            },
            Interface {
                id: "eni-1".into(),
                device: None,
                primary: false,
                stage: "detached".into(),
                serves: true,
                subnet: "subnet-2".into(),
                address: "10.0.4.4".parse().unwrap(),
                blocks: vec![single("10.0.4.5/32", 1, 0, &[])],
            },
        ],
        plan: vec!["attach eni-1 as device 1".into()],
        last_failure: Some("AttachNetworkInterface: Code: words of EC2".into()),
        calls: vec![Calls {
            budget: "change".into(),
            at_once: 9,
            per_second: 1.0,
            full_per_second: 2.0,
            next_in_seconds: 0.0,
            throttled: 1,
        }],
        ..View::default()
    }
}
