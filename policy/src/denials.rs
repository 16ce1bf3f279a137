//! The deny log: which packets policy denied, between whom, and by which policies; and which were
//! dropped for another reason.
//!
//! ```text
//! profile chain ─NFLOG─► kernel's queue ─► reader thread ─► Sieve ─► loop: who is who ─► a log line
//!                            lost ▲                    left out ▲
//! ```
//!
//! A packet is logged by the last rule before its chain's DROP, with the chain's name. Who its ends
//! are is asked of the loop, a batch at a time, so it is what the loop knows a moment later.

mod sieve;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use selvage_netfilter::nflog::{Logged, Nflog, interface_name};
use selvage_policy_core::compile::drops::DropReason;
use selvage_policy_core::index::Index;
use selvage_policy_core::model::{Direction, PodKey, PolicyKey};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::metrics::{LeftOut, Metrics};
use crate::questions::Asker;
use sieve::{Passed, Sieve};

/// Packets that wait for the loop's answer; more are left out.
const WAITING_MAX: usize = 256;

/// How long packets are gathered for one question to the loop, which looks through all pods.
const GATHER: Duration = Duration::from_millis(100);

/// How long the reader waits before it looks whether it is told to stop.
const LISTEN: Duration = Duration::from_millis(500);

/// Bounds binding the group.
const PATIENCE: Duration = Duration::from_secs(5);

/// Pause between two tries to bind a group that is in use: the instance before us may have it.
const BIND_PAUSE: Duration = Duration::from_secs(1);

/// Policies named in a line; a pod may be under thousands.
const POLICIES_MAX: usize = 8;

/// How the deny log is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// The NFLOG group that the rules log to.
    pub group: u16,
    /// Lines a second, once a burst of ten seconds' worth is used up.
    pub per_second: u32,
}

/// Why a packet was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Why {
    /// The policies of the pod that it is for, or from.
    Policy(Direction),
    /// Something else.
    Other(DropReason),
}

/// A packet that was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Denied {
    why: Why,
    source: IpAddr,
    destination: IpAddr,
    /// As IANA numbers it.
    protocol: u8,
    /// The destination's.
    port: Option<u16>,
    /// The interfaces that it came in by, and would have gone out by, by number.
    interfaces: (Option<u32>, Option<u32>),
}

impl Denied {
    /// What a rule of ours logged; `None`: another's, or nothing of use.
    fn of(logged: &Logged<'_>) -> Option<Self> {
        let why = if logged.prefix.starts_with("selvage-i-") {
            Why::Policy(Direction::Ingress)
        } else if logged.prefix.starts_with("selvage-e-") {
            Why::Policy(Direction::Egress)
        } else {
            Why::Other(DropReason::of_label(logged.prefix)?)
        };
        let header = logged.header?;
        Some(Self {
            why,
            source: header.source,
            destination: header.destination,
            protocol: header.protocol,
            port: header.ports.map(|(_, destination)| destination),
            interfaces: (logged.interface_in, logged.interface_out),
        })
    }
}

/// Keeps the deny log until told to stop. A group that cannot be bound is tried again.
pub async fn run(settings: Settings, asker: Asker, metrics: Arc<Metrics>, stop: CancellationToken) {
    let Some(nflog) = bind(settings.group, &stop).await else {
        return;
    };
    info!(group = settings.group, "denied packets are logged");
    let (sender, passed) = channel(WAITING_MAX);
    let reading = spawn_blocking({
        let (metrics, stop) = (Arc::clone(&metrics), stop.clone());
        move || {
            read(
                nflog,
                &mut Sieve::new(settings.per_second),
                &sender,
                &metrics,
                &stop,
            )
        }
    });
    // Ends when the reader does.
    write(passed, &asker, &metrics).await;
    if reading.await.is_err() {
        warn!("the reader of the deny log ended by itself");
    }
}

async fn bind(group: u16, stop: &CancellationToken) -> Option<Nflog> {
    let mut told = false;
    loop {
        match spawn_blocking(move || Nflog::open(group, PATIENCE)).await {
            Ok(Ok(nflog)) => return Some(nflog),
            Ok(Err(error)) if !told => {
                let error = crate::error_chain(&error);
                warn!(
                    group,
                    error, "denied packets are not logged yet: trying each second"
                );
                told = true;
            }
            Ok(Err(_)) | Err(_) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return None,
            () = sleep(BIND_PAUSE) => {}
        }
    }
}

/// Reads until told to stop. Blocks.
fn read(
    mut nflog: Nflog,
    sieve: &mut Sieve,
    passed: &Sender<Passed>,
    metrics: &Metrics,
    stop: &CancellationToken,
) {
    let mut lost = 0;
    while !stop.is_cancelled() {
        let received = nflog.receive(Instant::now() + LISTEN, |logged| {
            if let Some(denied) = Denied::of(&logged) {
                sieve.take(denied, Instant::now(), metrics, passed);
            }
        });
        if let Err(error) = received {
            let error = crate::error_chain(&error);
            warn!(error, "denied packets are not logged any more");
            return;
        }
        let so_far = nflog.lost();
        if so_far > lost {
            metrics.denials_left_out(LeftOut::Lost, so_far - lost);
            sieve.left_out(so_far - lost);
            lost = so_far;
        }
    }
}

/// Writes lines until nobody reads any more.
async fn write(mut passed: Receiver<Passed>, asker: &Asker, metrics: &Metrics) {
    let mut batch = Vec::new();
    while passed.recv_many(&mut batch, WAITING_MAX).await > 0 {
        sleep(GATHER).await;
        while let Ok(more) = passed.try_recv() {
            batch.push(more);
        }
        let packets: Vec<Denied> = batch.iter().map(|passed| passed.denied).collect();
        let known = asker.ask(move |index| Known::of(&packets, index)).await;
        let known = known.unwrap_or_default();
        for Passed { denied, left_out } in batch.drain(..) {
            match denied.why {
                Why::Policy(direction) => {
                    metrics.denial_logged(direction);
                    known.denial(&denied, direction).write(left_out);
                }
                Why::Other(reason) => {
                    metrics.drop_logged(reason);
                    known.write_drop(&denied, reason, left_out);
                }
            }
        }
    }
}

/// The address of the pod whose policies denied it, and the other one.
fn ends(denied: &Denied, direction: Direction) -> (IpAddr, IpAddr) {
    match direction {
        Direction::Ingress => (denied.destination, denied.source),
        Direction::Egress => (denied.source, denied.destination),
    }
}

/// What the loop says of some packets.
#[derive(Debug, Default)]
struct Known {
    pods: BTreeMap<IpAddr, PodKey>,
    policies: BTreeMap<(PodKey, Direction), BTreeSet<PolicyKey>>,
}

/// A packet, as people read of it.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    direction: Direction,
    /// The pod whose policies denied it, or its address.
    pod: String,
    peer: IpAddr,
    /// The peer's pod; empty when it is none of the cluster's.
    peer_pod: String,
    protocol: String,
    port: Option<u16>,
    policies: String,
}

impl Known {
    /// *Cost*: linear in the pods of the cluster, some 5 ms at 100k.
    fn of(packets: &[Denied], index: &mut Index) -> Self {
        let addresses = packets
            .iter()
            .flat_map(|denied| [denied.source, denied.destination])
            .collect();
        let pods = index.pods_at(&addresses);
        let mut policies = BTreeMap::new();
        let local = index.local_pods();
        for denied in packets {
            let Why::Policy(direction) = denied.why else {
                continue;
            };
            let (pod, _) = ends(denied, direction);
            let Some(pod) = pods.get(&pod) else { continue };
            let isolation = local.get(pod);
            if let Some(profile) = isolation.and_then(|it| it.profile(direction)) {
                policies
                    .entry((pod.clone(), direction))
                    .or_insert_with(|| profile.policies.clone());
            }
        }
        Self { pods, policies }
    }

    /// The pod that has an address; empty when it is none of the cluster's.
    fn pod(&self, address: IpAddr) -> String {
        let pod = self.pods.get(&address);
        pod.map(ToString::to_string).unwrap_or_default()
    }

    fn write_drop(&self, denied: &Denied, reason: DropReason, left_out: u64) {
        let named = |index: Option<u32>| index.and_then(interface_name).unwrap_or_default();
        let (came, goes) = denied.interfaces;
        info!(
            why = reason.as_str(),
            interface_in = named(came),
            interface_out = named(goes),
            source = %denied.source,
            source_pod = self.pod(denied.source),
            destination = %denied.destination,
            destination_pod = self.pod(denied.destination),
            protocol = protocol_name(denied.protocol),
            port = denied.port,
            left_out,
            "dropped"
        );
    }

    fn denial(&self, denied: &Denied, direction: Direction) -> Line {
        let (pod, peer) = ends(denied, direction);
        let known = self.pods.get(&pod);
        let policies = known.and_then(|pod| self.policies.get(&(pod.clone(), direction)));
        Line {
            direction,
            pod: known.map_or_else(|| pod.to_string(), ToString::to_string),
            peer,
            peer_pod: self.pod(peer),
            protocol: protocol_name(denied.protocol),
            port: denied.port,
            policies: policies.map(some).unwrap_or_default(),
        }
    }
}

impl Line {
    fn write(&self, left_out: u64) {
        let Self {
            direction,
            pod,
            peer,
            peer_pod,
            protocol,
            port,
            policies,
        } = self;
        info!(%direction, pod, %peer, peer_pod, protocol, port, policies, left_out, "denied");
    }
}

/// The first policies, and how many more there are.
fn some(policies: &BTreeSet<PolicyKey>) -> String {
    let named = crate::status::join(policies.iter().take(POLICIES_MAX));
    match policies.len().saturating_sub(POLICIES_MAX) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

/// What people call a protocol.
fn protocol_name(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        132 => "sctp".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use selvage_netfilter::nflog::Header;

    use super::*;
    use crate::fixtures;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn denied(direction: Direction, source: &str, destination: &str) -> Denied {
        Denied {
            why: Why::Policy(direction),
            source: address(source),
            destination: address(destination),
            protocol: 6,
            port: Some(8080),
            interfaces: (None, None),
        }
    }

    #[test]
    fn a_denial_names_the_pod_its_peer_and_the_policies_that_isolate_it() {
        let mut index = fixtures::shop();
        let packets = [
            denied(Direction::Ingress, "10.0.0.3", "10.0.0.1"),
            denied(Direction::Egress, "10.0.0.1", "203.0.113.9"),
            denied(Direction::Ingress, "10.0.0.3", "10.9.9.9"),
        ];
        let known = Known::of(&packets, &mut index);
        let lines: Vec<Line> = packets
            .iter()
            .map(|denied| match denied.why {
                Why::Policy(direction) => known.denial(denied, direction),
                Why::Other(reason) => panic!("{reason:?}"),
            })
            .collect();
        let words: Vec<_> = lines
            .iter()
            .map(|line| {
                (
                    line.pod.as_str(),
                    line.peer_pod.as_str(),
                    line.policies.as_str(),
                )
            })
            .collect();
        assert_eq!(
            words,
            [
                (
                    "shop/web-0",
                    "shop/cart-0",
                    "shop/a, shop/b, shop/c, shop/d, shop/e"
                ),
                ("shop/web-0", "", ""),
                ("10.9.9.9", "shop/cart-0", ""),
            ],
            "egress isn't isolated by now, and nobody has the last address any more"
        );
        assert_eq!(lines[0].peer, address("10.0.0.3"));
        assert_eq!(
            (lines[0].protocol.as_str(), lines[0].port),
            ("tcp", Some(8080))
        );
    }

    #[test]
    fn what_another_rule_logs_to_our_group_is_no_denial() {
        let header = Header {
            source: address("10.0.0.3"),
            destination: address("10.0.0.1"),
            protocol: 17,
            ports: Some((40_000, 53)),
            length: 60,
        };
        let logged = |prefix| Logged {
            prefix,
            interface_in: Some(1),
            interface_out: Some(2),
            header: Some(header),
        };
        let ours = Denied::of(&logged("selvage-e-0123456789abcdef")).unwrap();
        assert_eq!(
            ends(&ours, Direction::Egress),
            (header.source, header.destination)
        );
        assert_eq!((ours.protocol, ours.port), (17, Some(53)));
        assert_eq!(Denied::of(&logged("DROP: ")), None);
        assert_eq!(Denied::of(&logged("selvage-from")), None);
        assert_eq!(Denied::of(&logged("selvage-d-")), None);
        for reason in DropReason::ALL {
            let label = format!("selvage-d-{}", reason.as_str());
            let packet = Logged {
                prefix: &label,
                ..logged("")
            };
            let dropped = Denied::of(&packet).unwrap();
            assert_eq!(dropped.why, Why::Other(reason));
            assert_eq!(dropped.interfaces, (Some(1), Some(2)));
        }
    }

    #[test]
    fn a_pod_under_a_thousand_policies_makes_one_short_line() {
        let policies = (0..1000)
            .map(|number| PolicyKey {
                namespace: selvage_policy_core::model::NamespaceName::new("shop"),
                name: format!("{number:04}"),
            })
            .collect();
        let text = some(&policies);
        assert!(text.ends_with("shop/0007 and 992 more"), "{text}");
    }
}
