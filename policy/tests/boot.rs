//! `selvage-policy boot` on the real kernel: what is closed, what is left alone, and the daemon's takeover.
//! Needs namespaces of its own: run it with `cargo nextest`.

use std::convert::Infallible;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use clap::Parser;
use selvage_netfilter::Backend;
use selvage_policy::boot::{BootArgs, Booted, boot};
use selvage_policy::cleanup::cleanup;
use selvage_policy::config::{Args, Config};
use selvage_policy::dataplane::Node as NodeKernel;
use selvage_policy::health::ask_status;
use selvage_policy::lock::Lock;
use selvage_policy::metrics::Metrics;
use selvage_policy::source::{Doubts, Notice, Source};
use selvage_policy::{daemon, events};
use selvage_policy_core::convert;
use selvage_policy_core::index::{Event, Resource};
use selvage_tests::{Node, Outcome, Place, Pod, Protocol, probe, run};
use serde_json::{from_value, json};
use tokio::sync::mpsc::Sender;
use tokio_util::sync::CancellationToken;

const A: Ipv4Addr = Ipv4Addr::new(10, 40, 0, 11);
const B: Ipv4Addr = Ipv4Addr::new(10, 40, 0, 12);
const C: Ipv4Addr = Ipv4Addr::new(10, 40, 0, 13);
/// Machines that are no pods.
const M: Ipv4Addr = Ipv4Addr::new(10, 41, 0, 21);
const N: Ipv4Addr = Ipv4Addr::new(10, 41, 0, 22);
const PORT: u16 = 8080;

/// Longer than anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Parser)]
struct BootLine {
    #[command(flatten)]
    args: BootArgs,
}

#[derive(Parser)]
struct RunLine {
    #[command(flatten)]
    args: Args,
}

fn boot_args(folder: &tempfile::TempDir, words: &[&str]) -> Result<BootArgs> {
    let run_dir = folder.path().join("shared");
    let line = ["boot", "--run-dir", run_dir.to_str().unwrap()];
    Ok(BootLine::try_parse_from(line.iter().chain(words))?.args)
}

fn run_config(folder: &tempfile::TempDir, node: &str) -> Result<Config> {
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (run_dir, socket) = (path("shared"), path("own/policy.sock"));
    let line = [
        "run",
        "--node-name",
        node,
        "--metrics-address=none",
        "--run-dir",
        &run_dir,
        "--socket",
        &socket,
    ];
    Ok(RunLine::try_parse_from(line)?.args.into_config()?)
}

/// Each backend's rules are judged by packets of a pod, to a pod, and past pods.
fn closes(backend: Backend) -> Result<()> {
    let node = Node::new()?;
    let folder = tempfile::tempdir()?;
    let pods = [node.pod("default", "a", A)?, node.pod("default", "b", B)?];
    let machines = [node.endpoint("ens6", M)?, node.endpoint("ens7", N)?];
    let all: Vec<&Pod> = pods.iter().chain(&machines).collect();
    let _servers = all
        .iter()
        .map(|place| place.serve(Protocol::Tcp, PORT))
        .collect::<Result<Vec<_>>>()?;
    let outcomes = || {
        let [a, b, m, n] = all[..] else {
            unreachable!()
        };
        [(a, b), (a, m), (m, b), (m, n)].map(|(from, to)| probe(from, to, Protocol::Tcp, PORT))
    };
    assert_eq!(outcomes(), [Outcome::Reached; 4]);
    let args = boot_args(&folder, &["--backend", backend.as_str()])?;
    assert_eq!(boot(&args)?, Booted::Closed(backend));
    let closed = [
        Outcome::Dropped,
        Outcome::Dropped,
        Outcome::Dropped,
        Outcome::Reached,
    ];
    assert_eq!(outcomes(), closed);

    // A veth that comes later is closed, too: that is what it is for.
    let late = node.pod("default", "c", C)?;
    let _server = late.serve(Protocol::Tcp, PORT)?;
    assert_eq!(
        probe(&machines[0], &late, Protocol::Tcp, PORT),
        Outcome::Dropped
    );

    let rules = save(backend)?;
    assert_eq!(boot(&args)?, Booted::InForce(backend));
    let other = boot_args(&folder, &["--backend", backend.other().as_str()])?;
    assert_eq!(boot(&other)?, Booted::InForce(backend));
    assert_eq!(save(backend)?, rules, "what is in force is left alone");

    let lock = Lock::try_take(&args.run_dir.run_dir)?;
    ensure!(lock.is_some(), "boot let go of the lock");
    assert_eq!(boot(&args)?, Booted::InUse);
    drop(lock);
    cleanup(&args.run_dir.run_dir, &folder.path().join("none"), false)?;
    assert_eq!(outcomes(), [Outcome::Reached; 4]);
    Ok(())
}

/// What a table holds, counters left out.
fn save(backend: Backend) -> Result<String> {
    let text = run(&format!("iptables-{backend}-save -t mangle"))?;
    let rules = text.lines().filter(|line| line.starts_with("-A "));
    Ok(rules.map(|line| format!("{line}\n")).collect())
}

#[test]
fn nothing_passes_a_pods_interface_after_boot_on_nft_and_all_else_does() -> Result<()> {
    closes(Backend::Nft)
}

#[test]
fn nothing_passes_a_pods_interface_after_boot_on_legacy_and_all_else_does() -> Result<()> {
    closes(Backend::Legacy)
}

#[test]
fn a_prefix_that_cannot_be_one_is_refused_and_nothing_is_written() -> Result<()> {
    Node::new()?;
    let folder = tempfile::tempdir()?;
    let args = boot_args(&folder, &["--interface-prefix", "eth"])?;
    let error = boot(&args).unwrap_err().to_string();
    assert!(error.contains("INTERFACE_PREFIX"), "{error}");
    assert_eq!(save(Backend::Nft)?, "");
    Ok(())
}

/// A source that tells these events and then nothing.
struct Told(Vec<Event>);

impl Source for Told {
    type Error = Infallible;

    async fn run(
        self,
        notices: Sender<Notice>,
        _: Doubts,
        stop: CancellationToken,
    ) -> Result<(), Infallible> {
        for event in self.0 {
            if notices.send(event.into()).await.is_err() {
                return Ok(());
            }
        }
        stop.cancelled().await;
        Ok(())
    }
}

/// Pods a, b and c of this node, and a policy that lets nobody to b.
fn cluster() -> Result<Vec<Event>> {
    let namespace = from_value(json!({"metadata": {"name": "default"}}))?;
    let policy = from_value(json!({
        "metadata": {"name": "deny", "namespace": "default"},
        "spec": {"podSelector": {"matchLabels": {"app": "b"}}, "policyTypes": ["Ingress"]},
    }))?;
    let mut objects = vec![
        Event::NamespaceApplied(convert::namespace(namespace)),
        Event::PolicyApplied(convert::policy(&policy).0),
    ];
    for (name, address) in [("a", A), ("b", B), ("c", C)] {
        let pod = from_value(json!({
            "metadata": {
                "name": name, "namespace": "default", "uid": name, "labels": {"app": name}
            },
            "spec": {"nodeName": "node-1"},
            "status": {"podIPs": [{"ip": address}]},
        }))?;
        objects.push(Event::PodApplied(convert::pod(pod)));
    }
    let all = [Resource::Namespaces, Resource::Pods, Resource::Policies];
    let started = all.into_iter().map(Event::RelistStarted);
    let done = all.into_iter().map(Event::RelistDone);
    Ok(started.chain(objects).chain(done).collect())
}

/// A datagram to b again and again, from before the takeover to after it: none may arrive.
fn takes_over(booted: Backend, running: Backend) -> Result<()> {
    let node = Node::new()?;
    let folder = tempfile::tempdir()?;
    let [a, b, c] = [("a", A), ("b", B), ("c", C)];
    let a = node.pod("default", a.0, a.1)?;
    let b = node.pod("default", b.0, b.1)?;
    let c = node.pod("default", c.0, c.1)?;
    let heard = b.serve(Protocol::Udp, PORT)?;
    let _server = c.serve(Protocol::Tcp, PORT)?;
    let args = boot_args(&folder, &["--backend", booted.as_str()])?;
    assert_eq!(boot(&args)?, Booted::Closed(booted));

    let config = run_config(&folder, "node-1")?;
    let socket = config.socket.clone();
    let over = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let flood = scope.spawn(|| a.netns().run(|| flood(&over)));
        let outcome = take_over(config, running, || {
            eventually("a reaches c", || {
                probe(&a, &c, Protocol::Tcp, PORT) == Outcome::Reached
            })?;
            // Until the leftovers of the other backend are gone, too.
            eventually("in force", || {
                ask_status(&socket).is_ok_and(|report| report.ready.ok)
            })
        });
        over.store(true, Ordering::Relaxed);
        let sent = flood.join().expect("the flood ends by itself")?;
        outcome.map(|()| sent)
    })??;
    assert!(sent > 100, "only {sent} datagrams were sent");
    assert_eq!(heard.sources(), [] as [std::net::IpAddr; 0]);
    assert_eq!(save(running.other())?, "", "one backend holds the rules");
    Ok(())
}

/// Runs the daemon for as long as `meanwhile` takes.
fn take_over(
    config: Config,
    backend: Backend,
    meanwhile: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let stop = CancellationToken::new();
    let metrics = Arc::new(Metrics::new());
    let running = runtime.spawn(daemon::run(
        config,
        Told(cluster()?),
        NodeKernel::new(Some(backend)),
        Arc::clone(&metrics),
        Arc::new(tokio::sync::Notify::new()),
        events::channel_of("node-1".to_owned(), metrics).0,
        stop.clone(),
    ));
    let outcome = meanwhile();
    stop.cancel();
    runtime.block_on(running)??;
    outcome
}

/// Sends until told that it is over; says how many.
fn flood(over: &AtomicBool) -> std::io::Result<u64> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let mut sent = 0;
    while !over.load(Ordering::Relaxed) {
        socket.send_to(b"flood", (B, PORT))?;
        sent += 1;
        std::thread::yield_now();
    }
    Ok(sent)
}

fn eventually(what: &str, holds: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + DEADLINE;
    while Instant::now() < deadline {
        if holds() {
            return Ok(());
        }
        std::thread::yield_now();
    }
    bail!("{what}: not within {DEADLINE:?}")
}

#[test]
fn a_daemon_without_a_pod_finds_the_rules_of_boot_right() -> Result<()> {
    Node::new()?;
    let folder = tempfile::tempdir()?;
    boot(&boot_args(&folder, &["--backend", "nft"])?)?;
    let rules = save(Backend::Nft)?;
    // All pods are another node's.
    let config = run_config(&folder, "node-2")?;
    let socket = config.socket.clone();
    take_over(config, Backend::Nft, || {
        eventually("in force", || {
            ask_status(&socket).is_ok_and(|report| report.last_apply_seconds.is_some())
        })
    })?;
    assert_eq!(save(Backend::Nft)?, rules);
    Ok(())
}

#[test]
fn the_daemon_takes_over_from_boot_on_nft_without_a_packet_that_it_forbids() -> Result<()> {
    takes_over(Backend::Nft, Backend::Nft)
}

#[test]
fn the_daemon_takes_over_from_boot_on_legacy_without_a_packet_that_it_forbids() -> Result<()> {
    takes_over(Backend::Legacy, Backend::Legacy)
}

#[test]
fn a_daemon_that_chooses_another_backend_than_boot_opens_nothing_on_the_way() -> Result<()> {
    takes_over(Backend::Nft, Backend::Legacy)
}
