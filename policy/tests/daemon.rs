//! The daemon as a library, with events from the test and everything else real: packets, chains,
//! sets, restart, cleanup. Needs namespaces of its own: run it with `cargo nextest`.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use selvage_netfilter::{Backend, Kernel};
use selvage_policy::cleanup::{CleanupError, cleanup};
use selvage_policy::config::{BackendChoice, Config};
use selvage_policy::daemon::{self, DaemonError};
use selvage_policy::dataplane::Node as NodeKernel;
use selvage_policy::endpoint_status::{Endpoint, EndpointStatus};
use selvage_policy::health::{ask_status, ask_text};
use selvage_policy::metrics::Metrics;
use selvage_policy::source::{Doubts, Notice, Source};
use selvage_policy::status::{Phase, Report};
use selvage_policy::support::Bundle;
use selvage_policy::{denials, events, recent};
use selvage_policy_core::index::{Event, Resource};
use selvage_policy_core::model::{NamespaceName, PolicyKey};
use selvage_policy_core::observe::Observed;
use selvage_policy_core::ruleset::{Family, VethPrefix};
use selvage_policy_core::{api, convert};
use selvage_tests::{Flow, Node, Outcome, Pod, Protocol, connect, probe, run, send_from};
use serde_json::{Value, from_value, json};
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const A: Ipv4Addr = Ipv4Addr::new(10, 40, 0, 11);
const B: Ipv4Addr = Ipv4Addr::new(10, 40, 0, 12);
const PORT: u16 = 8080;

/// Longer than anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);

/// Two tests of each function, one a backend.
macro_rules! on_both_backends {
    ($($name:ident),* $(,)?) => {
        mod nft {
            $(#[test] fn $name() -> anyhow::Result<()> { super::$name(selvage_netfilter::Backend::Nft) })*
        }
        mod legacy {
            $(#[test] fn $name() -> anyhow::Result<()> { super::$name(selvage_netfilter::Backend::Legacy) })*
        }
    };
}

on_both_backends![
    packets_obey_a_policy_and_its_deletion,
    a_restart_finds_everything_right_and_rewrites_nothing,
    a_rule_replaced_in_place_while_no_agent_ran_is_found_at_the_next_start,
    what_somebody_removed_is_back_long_before_the_next_look,
    an_established_flow_ends_with_the_policy_that_forbids_it_and_an_allowed_one_goes_on,
    cleanup_refuses_while_an_instance_enforces_and_then_removes_everything,
    rules_of_the_other_backend_go_once_ours_are_in_force,
    a_denied_packet_is_logged_with_its_pods_and_policies,
    a_packet_that_no_policy_denies_is_logged_with_why_it_is_dropped,
    a_bundle_shows_what_is_wanted_and_what_is_found,
];

/// A source whose events are the test's.
struct Told(Receiver<Notice>);

impl Source for Told {
    type Error = Infallible;

    async fn run(
        mut self,
        notices: Sender<Notice>,
        _: Doubts,
        stop: CancellationToken,
    ) -> Result<(), Infallible> {
        loop {
            let told = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                told = self.0.recv() => told,
            };
            let Some(notice) = told else { return Ok(()) };
            if notices.send(notice).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// The cluster's objects, and at most one daemon that hears of them.
struct Cluster {
    node: Node,
    folder: tempfile::TempDir,
    runtime: Runtime,
    objects: Vec<Event>,
    deny_log: Option<denials::Settings>,
    daemon: Option<Daemon>,
}

struct Daemon {
    events: Sender<Notice>,
    stop: CancellationToken,
    running: JoinHandle<Result<(), DaemonError>>,
}

impl Cluster {
    fn new() -> Result<Self> {
        let namespace = json!({"metadata": {"name": "default"}});
        Ok(Self {
            node: Node::new()?,
            folder: tempfile::tempdir()?,
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()?,
            objects: vec![Event::NamespaceApplied(convert::namespace(from_value(
                namespace,
            )?))],
            deny_log: None,
            daemon: None,
        })
    }

    fn run_dir(&self) -> PathBuf {
        self.folder.path().join("shared")
    }

    fn status_dir(&self) -> PathBuf {
        self.folder.path().join("endpoint-status")
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("own/policy.sock")
    }

    /// Starts a daemon and lists every object to it.
    fn start(&mut self, backend: Backend, resync: Duration) -> Result<()> {
        let config = Config {
            node: "node-1".to_owned(),
            interface_prefix: VethPrefix::default(),
            backend: BackendChoice::Auto,
            families: [Family::V4].into(),
            source_check: true,
            drop_invalid: true,
            deny_log: self.deny_log,
            apply_gap: Duration::from_millis(50),
            resync,
            member_budget: 1_000_000,
            metrics_address: None,
            kubeconfig: None,
            endpoint_status_dir: None,
            run_dir: self.run_dir(),
            socket: self.socket(),
        };
        let metrics = Arc::new(Metrics::new());
        let (events, told) = channel(64);
        let stop = CancellationToken::new();
        let running = self.runtime.spawn(daemon::run(
            config,
            Told(told),
            NodeKernel::new(Some(backend)).recording(&self.run_dir()),
            Arc::clone(&metrics),
            Arc::new(Notify::new()),
            events::channel_of("node-1".to_owned(), metrics).0,
            stop.clone(),
        ));
        let all = [Resource::Namespaces, Resource::Pods, Resource::Policies];
        let started = all.into_iter().map(Event::RelistStarted);
        let done = all.into_iter().map(Event::RelistDone);
        for event in started.chain(self.objects.iter().cloned()).chain(done) {
            events.blocking_send(event.into())?;
        }
        self.daemon = Some(Daemon {
            events,
            stop,
            running,
        });
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        if let Some(daemon) = self.daemon.take() {
            daemon.stop.cancel();
            self.runtime.block_on(daemon.running)??;
        }
        Ok(())
    }

    fn tell(&mut self, event: Event) -> Result<()> {
        self.objects.push(event.clone());
        if let Some(daemon) = &self.daemon {
            daemon.events.blocking_send(event.into())?;
        }
        Ok(())
    }

    /// A pod of this node: its object, and the pod itself.
    fn pod(&mut self, name: &str, address: Ipv4Addr) -> Result<Pod> {
        let object = json!({
            "metadata": {
                "name": name, "namespace": "default", "uid": name, "labels": {"app": name}
            },
            "spec": {"nodeName": "node-1"},
            "status": {"podIPs": [{"ip": address}]},
        });
        self.tell(Event::PodApplied(convert::pod(from_value(object)?)))?;
        self.node.pod("default", name, address)
    }

    fn policy(&mut self, name: &str, spec: Value) -> Result<()> {
        let object: api::NetworkPolicy = from_value(json!({
            "metadata": {"name": name, "namespace": "default"}, "spec": spec,
        }))?;
        let (policy, problems) = convert::policy(&object);
        ensure!(problems.is_empty(), "{problems:?}");
        self.tell(Event::PolicyApplied(policy))
    }

    fn delete_policy(&mut self, name: &str) -> Result<()> {
        self.tell(Event::PolicyDeleted(PolicyKey {
            namespace: NamespaceName::new("default"),
            name: name.to_owned(),
        }))
    }

    /// The value of a counter.
    fn counted(&self, counter: &str) -> Result<u64> {
        let metrics = ask_text(&self.socket(), "metrics")?;
        let value = metrics.lines().find_map(|line| line.strip_prefix(counter));
        let value = value.with_context(|| format!("no {counter} in {metrics}"))?;
        Ok(value.trim().parse()?)
    }

    fn status_when(&self, wanted: impl Fn(&Report) -> bool) -> Result<Report> {
        eventually("the daemon's status", || {
            // The socket comes up with the daemon.
            Ok(ask_status(&self.socket())
                .ok()
                .filter(|report| wanted(report)))
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("stop the daemon: {error:#}");
        }
    }
}

/// Looks again and again until there is an answer.
fn eventually<T>(what: &str, look: impl Fn() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + DEADLINE;
    while Instant::now() < deadline {
        if let Some(found) = look()? {
            return Ok(found);
        }
        std::thread::yield_now();
    }
    bail!("{what}: not within {DEADLINE:?}")
}

fn becomes(outcome: Outcome, from: &Pod, to: &Pod) -> Result<()> {
    eventually(&format!("{outcome:?}"), || {
        Ok((probe(from, to, Protocol::Tcp, PORT) == outcome).then_some(()))
    })
}

fn observed(backend: Backend) -> Result<Observed> {
    Ok(Kernel::open(backend, DEADLINE)?.observe(Family::V4)?)
}

/// The text of a backend's table, counters left out: what a rewrite would change is the counters
/// of the chain, so they are asked for too where that is what is looked for.
fn save(backend: Backend) -> Result<String> {
    run(&format!("iptables-{backend}-save -c -t mangle"))
}

fn deny_b() -> Value {
    json!({"podSelector": {"matchLabels": {"app": "b"}}, "policyTypes": ["Ingress"]})
}

fn packets_obey_a_policy_and_its_deletion(backend: Backend) -> Result<()> {
    let mut cluster = Cluster::new()?;
    cluster.start(backend, DEADLINE)?;
    let a = cluster.pod("a", A)?;
    let b = cluster.pod("b", B)?;
    let _server = b.serve(Protocol::Tcp, PORT)?;
    becomes(Outcome::Reached, &a, &b)?;

    cluster.policy("deny", deny_b())?;
    becomes(Outcome::Dropped, &a, &b)?;
    let from_a = json!([{"from": [{"podSelector": {"matchLabels": {"app": "a"}}}]}]);
    let mut allow = deny_b();
    allow["ingress"] = from_a;
    cluster.policy("allow", allow)?;
    becomes(Outcome::Reached, &a, &b)?;
    assert_eq!(probe(&a, &b, Protocol::Tcp, PORT + 1), Outcome::Refused);
    cluster.delete_policy("allow")?;
    becomes(Outcome::Dropped, &a, &b)?;
    cluster.delete_policy("deny")?;
    becomes(Outcome::Reached, &a, &b)?;

    let report = cluster.status_when(|report| report.ready.ok)?;
    assert_eq!(report.backend.as_deref(), Some(backend.as_str()));
    assert_eq!(report.counts.local_pods, 2);
    Ok(())
}

fn a_restart_finds_everything_right_and_rewrites_nothing(backend: Backend) -> Result<()> {
    let mut cluster = Cluster::new()?;
    let a = cluster.pod("a", A)?;
    let b = cluster.pod("b", B)?;
    let _server = b.serve(Protocol::Tcp, PORT)?;
    cluster.policy("deny", deny_b())?;
    cluster.start(backend, DEADLINE)?;
    cluster.status_when(|report| report.ready.ok)?;
    assert_eq!(probe(&a, &b, Protocol::Tcp, PORT), Outcome::Dropped);
    cluster.stop()?;

    assert_eq!(
        probe(&a, &b, Protocol::Tcp, PORT),
        Outcome::Dropped,
        "no daemon, same rules"
    );
    // Counters start at zero in a chain that is written anew.
    let before = save(backend)?;
    assert!(before.contains("-A selvage-to"), "{before}");
    cluster.start(backend, DEADLINE)?;
    cluster.status_when(|report| report.ready.ok && report.phase == Phase::Enforcing)?;
    let ours = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| line.contains("selvage-"));
        lines.map(ToOwned::to_owned).collect()
    };
    assert_eq!(ours(&save(backend)?), ours(&before));
    Ok(())
}

fn a_rule_replaced_in_place_while_no_agent_ran_is_found_at_the_next_start(
    backend: Backend,
) -> Result<()> {
    let mut cluster = Cluster::new()?;
    let a = cluster.pod("a", A)?;
    let b = cluster.pod("b", B)?;
    let _server = b.serve(Protocol::Tcp, PORT)?;
    cluster.policy("deny", deny_b())?;
    cluster.start(backend, DEADLINE)?;
    let report = cluster.status_when(|report| report.ready.ok && report.enforced.is_some())?;
    let pods = report.enforced.unwrap_or_default().pods;
    let chain = pods[1].ingress.clone().context("b is isolated")?;
    cluster.stop()?;
    let before = observed(backend)?;
    // The only rule before the marker, which stays.
    run(&format!(
        "iptables-{backend} -w 5 -t mangle -R {chain} 1 -j RETURN"
    ))?;
    assert_eq!(observed(backend)?, before, "marker and count are the same");
    assert_eq!(probe(&a, &b, Protocol::Tcp, PORT), Outcome::Reached);
    cluster.start(backend, DEADLINE)?;
    cluster.status_when(|report| report.ready.ok && report.phase == Phase::Enforcing)?;
    assert_eq!(probe(&a, &b, Protocol::Tcp, PORT), Outcome::Dropped);
    Ok(())
}

fn what_somebody_removed_is_back_long_before_the_next_look(backend: Backend) -> Result<()> {
    let mut cluster = Cluster::new()?;
    let a = cluster.pod("a", A)?;
    let b = cluster.pod("b", B)?;
    let _server = b.serve(Protocol::Tcp, PORT)?;
    cluster.policy("deny", deny_b())?;
    cluster.start(backend, Duration::from_secs(3600))?;
    cluster.status_when(|report| report.ready.ok)?;
    run(&format!("iptables-{backend} -w 5 -t mangle -F"))?;
    becomes(Outcome::Dropped, &a, &b)?;
    let ours = observed(backend)?;
    run(&format!(
        "iptables-{backend} -w 5 -t mangle -D FORWARD -j selvage-forward"
    ))?;
    eventually("all as it was", || {
        Ok((observed(backend)? == ours).then_some(()))
    })?;
    assert_eq!(probe(&a, &b, Protocol::Tcp, PORT), Outcome::Dropped);
    let report = cluster.status_when(|report| report.repairs > 0)?;
    assert!(report.last_repair.is_some(), "{report}");
    let repairs = cluster.counted("selvage_policy_repairs_total{found=\"rules\"}")?;
    assert!(repairs > 0, "{report}");
    Ok(())
}

fn an_established_flow_ends_with_the_policy_that_forbids_it_and_an_allowed_one_goes_on(
    backend: Backend,
) -> Result<()> {
    let mut cluster = Cluster::new()?;
    let a = cluster.pod("a", A)?;
    let b = cluster.pod("b", B)?;
    let _server = b.serve(Protocol::Tcp, PORT)?;
    let _other = a.serve(Protocol::Tcp, PORT)?;
    let mut before = connect(&a, SocketAddrV4::new(B, PORT))?;
    cluster.policy("deny", deny_b())?;
    cluster.start(backend, DEADLINE)?;
    cluster.status_when(|report| report.ready.ok)?;
    let ends = |what: &str, flow: &mut Flow| {
        let deadline = Instant::now() + DEADLINE;
        while flow.passes()? {
            ensure!(Instant::now() < deadline, "{what} goes on");
        }
        Ok(())
    };
    ends("a flow older than the daemon", &mut before)?;

    cluster.delete_policy("deny")?;
    becomes(Outcome::Reached, &a, &b)?;
    let mut forbidden = connect(&a, SocketAddrV4::new(B, PORT))?;
    let mut allowed = connect(&b, SocketAddrV4::new(A, PORT))?;
    assert!(forbidden.passes()?);
    cluster.policy("deny", deny_b())?;
    ends("a flow that a policy forbids", &mut forbidden)?;
    assert!(allowed.passes()?);
    assert!(!forbidden.passes()?, "and stays ended");
    eventually("both cuts are counted", || {
        let cut = cluster.counted("selvage_policy_cut_flows_total{why=\"forbidden\"}")?;
        Ok((cut >= 2).then_some(()))
    })
}

fn cleanup_refuses_while_an_instance_enforces_and_then_removes_everything(
    backend: Backend,
) -> Result<()> {
    let mut cluster = Cluster::new()?;
    let a = cluster.pod("a", A)?;
    let b = cluster.pod("b", B)?;
    let _server = b.serve(Protocol::Tcp, PORT)?;
    cluster.policy("deny", deny_b())?;
    cluster.start(backend, DEADLINE)?;
    cluster.status_when(|report| report.ready.ok)?;
    let refused = cleanup(&cluster.run_dir(), &cluster.status_dir(), false);
    assert!(
        matches!(refused, Err(CleanupError::InUse(_))),
        "{refused:?}"
    );
    assert_eq!(probe(&a, &b, Protocol::Tcp, PORT), Outcome::Dropped);

    cluster.stop()?;
    let status = cluster.status_dir();
    let web = Endpoint {
        namespace: "default".to_owned(),
        pod: "b".to_owned(),
        uid: "b".to_owned(),
        interface: "eni0".to_owned(),
        addresses: BTreeSet::new(),
    };
    std::fs::create_dir(&status)?;
    EndpointStatus::new(status.clone()).converge(&[web])?;
    let cleaned = cleanup(&cluster.run_dir(), &cluster.status_dir(), false)?;
    assert!(cleaned.left.is_empty(), "{:?}", cleaned.left);
    assert_eq!(observed(backend)?, Observed::default());
    let sets = run("ipset list -n")?;
    assert!(!sets.contains("selvage-"), "{sets}");
    assert_eq!(std::fs::read_dir(status)?.count(), 0);
    assert_eq!(probe(&a, &b, Protocol::Tcp, PORT), Outcome::Reached);
    Ok(())
}

fn rules_of_the_other_backend_go_once_ours_are_in_force(backend: Backend) -> Result<()> {
    let mut cluster = Cluster::new()?;
    let a = cluster.pod("a", A)?;
    let b = cluster.pod("b", B)?;
    let _server = b.serve(Protocol::Tcp, PORT)?;
    cluster.policy("deny", deny_b())?;
    cluster.start(backend.other(), DEADLINE)?;
    cluster.status_when(|report| report.ready.ok)?;
    cluster.stop()?;
    cluster.start(backend, DEADLINE)?;
    cluster.status_when(|report| report.ready.ok)?;
    assert!(observed(backend.other())?.chains.is_empty());
    assert_eq!(probe(&a, &b, Protocol::Tcp, PORT), Outcome::Dropped);
    cluster.delete_policy("deny")?;
    becomes(Outcome::Reached, &a, &b)
}

fn a_denied_packet_is_logged_with_its_pods_and_policies(backend: Backend) -> Result<()> {
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(|| recent::Log)
        .init();
    let mut cluster = Cluster::new()?;
    cluster.deny_log = Some(denials::Settings {
        group: 95,
        per_second: 10,
    });
    let a = cluster.pod("a", A)?;
    let b = cluster.pod("b", B)?;
    cluster.policy("deny", deny_b())?;
    cluster.policy("deny-too", deny_b())?;
    cluster.start(backend, DEADLINE)?;
    cluster.status_when(|report| report.ready.ok)?;
    let logged = |words: &str| {
        eventually(words, || {
            let log = ask_text(&cluster.socket(), "log")?;
            let line = log.lines().find(|line| line.contains(words));
            Ok(line.map(str::to_owned))
        })
    };
    logged("denied packets are logged")?;
    assert_eq!(probe(&a, &b, Protocol::Tcp, PORT), Outcome::Dropped);
    let line = logged("direction=ingress")?;
    let words = [
        "pod=\"default/b\"",
        "peer=10.40.0.11",
        "peer_pod=\"default/a\"",
        "protocol=\"tcp\"",
        "port=8080",
        "policies=\"default/deny, default/deny-too\"",
        "left_out=0",
    ];
    for word in words {
        assert!(line.contains(word), "no {word} in {line}");
    }
    let metrics = ask_text(&cluster.socket(), "metrics")?;
    let counted = "selvage_policy_denials_logged_total{direction=\"ingress\"} 1\n";
    assert!(metrics.contains(counted), "{metrics}");
    Ok(())
}

fn a_packet_that_no_policy_denies_is_logged_with_why_it_is_dropped(backend: Backend) -> Result<()> {
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(|| recent::Log)
        .init();
    let mut cluster = Cluster::new()?;
    cluster.deny_log = Some(denials::Settings {
        group: 95,
        per_second: 10,
    });
    let a = cluster.pod("a", A)?;
    let b = cluster.pod("b", B)?;
    let _server = b.serve(Protocol::Tcp, PORT)?;
    cluster.start(backend, DEADLINE)?;
    cluster.status_when(|report| report.ready.ok)?;
    let logged = |why: &str, words: &[&str]| -> Result<()> {
        let line = eventually(why, || {
            let log = ask_text(&cluster.socket(), "log")?;
            let why = format!("why=\"{why}\"");
            let line = log.lines().find(|line| line.contains(&why));
            Ok(line.map(str::to_owned))
        })?;
        for word in words {
            ensure!(line.contains(word), "no {word} in {line}");
        }
        let metrics = ask_text(&cluster.socket(), "metrics")?;
        let counter = format!("selvage_policy_drops_logged_total{{why=\"{why}\"}} ");
        let counted = metrics.lines().find_map(|line| line.strip_prefix(&counter));
        ensure!(counted.is_some_and(|count| count != "0"), "{metrics}");
        Ok(())
    };
    eventually("the log", || {
        let log = ask_text(&cluster.socket(), "log")?;
        Ok(log.contains("denied packets are logged").then_some(()))
    })?;
    let stranger = cluster
        .node
        .endpoint("eni00000000001", Ipv4Addr::new(10, 40, 0, 99))?;
    assert_eq!(probe(&stranger, &b, Protocol::Tcp, PORT), Outcome::Dropped);
    logged(
        "unknown-interface",
        &[
            "interface_in=\"eni00000000001\"",
            "source=10.40.0.99",
            "destination_pod=\"default/b\"",
            "port=8080",
        ],
    )?;
    send_from(&a, Ipv4Addr::new(10, 40, 0, 77), SocketAddrV4::new(B, PORT))?;
    let interface = format!("interface_in=\"{}\"", a.interface());
    logged(
        "wrong-source",
        &[&interface, "source=10.40.0.77", "protocol=\"udp\""],
    )?;
    let mut flow = connect(&a, SocketAddrV4::new(B, PORT))?;
    ensure!(flow.passes()?);
    run("conntrack -D -p tcp")?;
    ensure!(!flow.passes()?, "no flow that conntrack knows");
    logged(
        "no-flow",
        &["source_pod=\"default/a\"", "destination_pod=\"default/b\""],
    )
}

fn a_bundle_shows_what_is_wanted_and_what_is_found(backend: Backend) -> Result<()> {
    let mut cluster = Cluster::new()?;
    let _b = cluster.pod("b", B)?;
    cluster.policy("deny", deny_b())?;
    cluster.start(backend, DEADLINE)?;
    let report = cluster.status_when(|report| report.ready.ok && report.enforced.is_some())?;
    let chain = report.enforced.map(|it| it.pods[0].ingress.clone());
    let Some(Some(chain)) = chain else {
        bail!("pod b is isolated");
    };
    let mut bytes = Vec::new();
    Bundle::gather(&cluster.socket(), std::iter::empty()).write("report", &mut bytes)?;
    let mut files = BTreeMap::new();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bytes.as_slice()));
    for entry in archive.entries()? {
        let mut entry = entry?;
        let mut text = String::new();
        entry.read_to_string(&mut text)?;
        files.insert(entry.path()?.display().to_string(), text);
    }
    let ours = format!("report/found/ours-{backend}-ipv4.txt");
    let tables = format!("report/found/tables-{backend}-ipv4.txt");
    for name in ["report/status.txt", "report/wanted.txt", &ours, &tables] {
        assert!(files[name].contains(&chain), "{name}: {}", files[name]);
    }
    let other = format!("report/found/ours-{}-ipv4.txt", backend.other());
    assert!(
        !files[&other].contains(&chain),
        "{other}: {}",
        files[&other]
    );
    assert!(files["report/node/proc/version"].starts_with("Linux"));
    Ok(())
}

#[test]
fn a_node_whose_kube_proxy_uses_ipvs_is_named_and_not_ready() -> Result<()> {
    let mut cluster = Cluster::new()?;
    // A stand-in: what matters is the interface that kube-proxy makes in that mode.
    run("ip link add kube-ipvs0 type veth peer name stand-in")?;
    cluster.start(Backend::Nft, DEADLINE)?;
    let report = cluster.status_when(|report| report.last_apply_seconds.is_some())?;
    assert!(!report.ready.ok && report.live.ok, "{report}");
    assert!(report.ready.reason.contains("IPVS"), "{report}");
    run("ip link del kube-ipvs0")?;
    cluster.status_when(|report| report.ready.ok)?;
    Ok(())
}
