use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use selvage_netfilter::Suspect;
use selvage_policy_core::index::{self, Event, MemberChanges};
use selvage_policy_core::model::{
    Interfaces, Labels, Namespace, NamespaceName, NodeName, Pod, PodKey, PodUid, Policy,
};
use selvage_policy_core::ruleset::{Family, Ruleset, VethPrefix};
use selvage_policy_core::verdict::Judge;
use selvage_policy_core::{api, convert};
use serde_json::json;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::task::{JoinHandle, spawn_blocking};

use super::*;
use crate::config::BackendChoice;
use crate::dataplane::{Done, Look};
use crate::events;
use crate::flows::{Cut, Flows, Scope};
use crate::health::ask_status;
use crate::source::Notice;
use crate::status::Report;

/// What reached the kernel.
#[derive(Debug)]
enum Call {
    Rules(Vec<Ruleset>, Look),
    Members(MemberChanges),
    Cut(Scope),
}

#[derive(Debug, Error)]
#[error("the kernel said no")]
struct No;

/// A kernel that tells what reached it, and refuses as often as it was told to.
struct Kernel {
    calls: Sender<Call>,
    cuts: Sender<Call>,
    refusals: Arc<AtomicU32>,
    /// Where others' hands are told of.
    suspects: Arc<Mutex<Option<Sender<Suspect>>>>,
}

/// Flows that tell what was to be cut, once rules have been in force.
struct Conntrack(Sender<Call>);

impl Flows for Conntrack {
    type Error = No;

    fn cut(&mut self, _: &Judge, scope: &Scope) -> Result<Cut, No> {
        self.0.blocking_send(Call::Cut(scope.clone())).unwrap();
        Ok(Cut::default())
    }
}

impl Kernel {
    fn answer(&self, call: Call) -> Result<Done, No> {
        self.calls.blocking_send(call).unwrap();
        let refuses = self
            .refusals
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            });
        match refuses {
            Ok(_) => Err(No),
            Err(_) => Ok(Done {
                changed: true,
                ..Done::default()
            }),
        }
    }
}

impl Dataplane for Kernel {
    type Error = No;
    type Flows = Conntrack;

    fn flows(&self, _: &BTreeSet<Family>) -> Conntrack {
        Conntrack(self.cuts.clone())
    }

    fn watch(&mut self, suspects: Sender<Suspect>) {
        *self.suspects.lock().unwrap() = Some(suspects);
    }

    /// Sets are changed, rules never.
    fn is_changed(&mut self, suspect: Suspect) -> Result<bool, No> {
        Ok(suspect == Suspect::Sets)
    }

    fn converge(&mut self, want: Vec<Ruleset>, look: Look) -> Result<Done, No> {
        self.answer(Call::Rules(want, look))
    }

    fn change_members(&mut self, changes: &MemberChanges) -> Result<Done, No> {
        self.answer(Call::Members(changes.clone()))
    }
}

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

struct Fixture {
    folder: tempfile::TempDir,
    events: Option<Sender<Notice>>,
    calls: Receiver<Call>,
    cuts: Receiver<Call>,
    refusals: Arc<AtomicU32>,
    suspects: Arc<Mutex<Option<Sender<Suspect>>>>,
    stop: CancellationToken,
    running: JoinHandle<Result<(), DaemonError>>,
}

impl Fixture {
    fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap())
    }

    fn start_in(folder: tempfile::TempDir) -> Self {
        let config = Config {
            node: "node-1".to_owned(),
            interface_prefix: VethPrefix::default(),
            backend: BackendChoice::Auto,
            families: [Family::V4].into(),
            source_check: true,
            drop_invalid: true,
            deny_log: None,
            apply_gap: Duration::from_millis(50),
            resync: Duration::from_secs(60),
            member_budget: 1_000_000,
            metrics_address: None,
            kubeconfig: None,
            endpoint_status_dir: Some(folder.path().join("endpoint-status")),
            run_dir: folder.path().join("shared"),
            socket: folder.path().join("own/policy.sock"),
        };
        let (events, told) = channel(16);
        let (calls, called) = channel(16);
        let (cuts, cut) = channel(16);
        let refusals = Arc::new(AtomicU32::new(0));
        let suspects = Arc::new(Mutex::new(None));
        let kernel = Kernel {
            calls,
            cuts,
            refusals: Arc::clone(&refusals),
            suspects: Arc::clone(&suspects),
        };
        let stop = CancellationToken::new();
        let metrics = Arc::new(Metrics::new());
        let in_force = Arc::new(Notify::new());
        let (reporter, _) = events::channel_of("node-1".to_owned(), Arc::clone(&metrics));
        let source = Told(told);
        let running = tokio::spawn(run(
            config,
            source,
            kernel,
            metrics,
            in_force,
            reporter,
            stop.clone(),
        ));
        Self {
            folder,
            events: Some(events),
            calls: called,
            cuts: cut,
            refusals,
            suspects,
            stop,
            running,
        }
    }

    fn run_dir(folder: &Path) -> PathBuf {
        folder.join("shared")
    }

    async fn tell(&self, event: Event) {
        let events = self.events.as_ref().unwrap();
        events.send(event.into()).await.unwrap();
    }

    async fn list(&self, resource: index::Resource, events: Vec<Event>) {
        self.tell(Event::RelistStarted(resource)).await;
        for event in events {
            self.tell(event).await;
        }
        self.tell(Event::RelistDone(resource)).await;
    }

    /// One namespace, `web` on this node and `client` on another.
    async fn sync(&self) {
        self.list(index::Resource::Namespaces, vec![namespace()])
            .await;
        self.list(
            index::Resource::Pods,
            vec![
                pod("web", "node-1", "10.0.0.1"),
                pod("client", "node-2", "10.0.0.2"),
            ],
        )
        .await;
        self.list(index::Resource::Policies, vec![]).await;
    }

    async fn rules(&mut self) -> (Ruleset, Look) {
        match self.calls.recv().await.unwrap() {
            Call::Rules(mut want, look) => (want.pop().unwrap(), look),
            other @ (Call::Members(_) | Call::Cut(_)) => panic!("{other:?}"),
        }
    }

    async fn cut(&mut self) -> Scope {
        match self.cuts.recv().await.unwrap() {
            Call::Cut(scope) => scope,
            other @ (Call::Members(_) | Call::Rules(..)) => panic!("{other:?}"),
        }
    }

    async fn status(&self) -> Report {
        self.status_when(|_| true).await
    }

    async fn status_when(&self, wanted: impl Fn(&Report) -> bool) -> Report {
        loop {
            let socket = self.folder.path().join("own/policy.sock");
            let asked = spawn_blocking(move || ask_status(&socket)).await.unwrap();
            // The socket comes up with the daemon.
            if let Ok(report) = asked
                && wanted(&report)
            {
                return report;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn end(self) {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
    }
}

fn namespace() -> Event {
    Event::NamespaceApplied(Namespace {
        name: NamespaceName::new("shop"),
        labels: Labels::default(),
    })
}

fn pod(name: &str, node: &str, address: &str) -> Event {
    Event::PodApplied(Pod {
        key: PodKey {
            namespace: NamespaceName::new("shop"),
            name: name.to_owned(),
        },
        uid: PodUid::new(name),
        node: Some(NodeName::new(node)),
        host_network: false,
        finished: false,
        labels: Labels::default(),
        addresses: [address.parse().unwrap()].into(),
        ports: [].into(),
        interfaces: Interfaces::default(),
    })
}

/// All pods of the namespace may be reached by all pods of it.
fn policy() -> Policy {
    let object: api::NetworkPolicy = serde_json::from_value(json!({
        "metadata": {"name": "same", "namespace": "shop"},
        "spec": {"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]},
    }))
    .unwrap();
    let (policy, problems) = convert::policy(&object);
    assert!(problems.is_empty());
    policy
}

#[tokio::test(start_paused = true)]
async fn nothing_reaches_the_kernel_before_every_watch_is_in_sync() {
    let mut daemon = Fixture::start();
    daemon
        .list(index::Resource::Namespaces, vec![namespace()])
        .await;
    daemon
        .list(
            index::Resource::Pods,
            vec![pod("web", "node-1", "10.0.0.1")],
        )
        .await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(matches!(daemon.calls.try_recv(), Err(TryRecvError::Empty)));
    let status = daemon.status().await;
    assert_eq!(status.phase, Phase::Syncing);
    assert!(!status.ready.ok);
    assert!(status.ready.reason.contains("networkpolicies"), "{status}");

    daemon.list(index::Resource::Policies, vec![]).await;
    let (_, look) = daemon.rules().await;
    assert_eq!(look, Look::Afresh);
    let status = daemon.status_when(|status| status.ready.ok).await;
    assert_eq!(status.phase, Phase::Enforcing);
    assert_eq!((status.counts.pods, status.counts.local_pods), (1, 1));
    daemon.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_instance_without_the_lock_is_ready_touches_nothing_and_takes_over() {
    let folder = tempfile::tempdir().unwrap();
    let lock = Lock::try_take(&Fixture::run_dir(folder.path()))
        .unwrap()
        .unwrap();
    let mut daemon = Fixture::start_in(folder);
    daemon.sync().await;
    let status = daemon.status_when(|status| status.ready.ok).await;
    assert_eq!(status.phase, Phase::Standby);
    daemon.tell(Event::PolicyApplied(policy())).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(matches!(daemon.calls.try_recv(), Err(TryRecvError::Empty)));

    drop(lock);
    let (rules, _) = daemon.rules().await;
    assert!(!rules.sets.is_empty(), "what came while standing by counts");
    daemon.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_policy_writes_rules_and_a_peer_changes_members_alone() {
    let mut daemon = Fixture::start();
    daemon.sync().await;
    let (before, _) = daemon.rules().await;
    assert_eq!(before.sets.len(), 1, "the guard set alone");
    daemon.tell(Event::PolicyApplied(policy())).await;
    let (rules, look) = daemon.rules().await;
    assert_eq!(look, Look::Remembered);
    assert_eq!(rules.sets.len(), 2, "the policy's beside the guard");

    daemon.tell(pod("late", "node-2", "10.0.0.3")).await;
    let Call::Members(changes) = daemon.calls.recv().await.unwrap() else {
        panic!("a peer must not rewrite chains");
    };
    let (set, change) = changes.first_key_value().unwrap();
    assert!(rules.sets.contains_key(set));
    assert_eq!(change.add.len(), 1);
    daemon.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_write_is_tried_again_and_until_then_not_ready() {
    let mut daemon = Fixture::start();
    daemon.refusals.store(3, Ordering::SeqCst);
    daemon.sync().await;
    daemon.rules().await;
    let status = daemon
        .status_when(|status| status.ready.reason.contains("kernel said no"))
        .await;
    assert!(!status.ready.ok && status.live.ok, "{status}");
    let start = Instant::now();
    for _ in 0..3 {
        let (_, look) = daemon.rules().await;
        assert_eq!(look, Look::Afresh);
    }
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "no need to wait for the next look"
    );
    daemon.status_when(|status| status.ready.ok).await;
    daemon.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_kernel_is_looked_at_now_and_then_though_nothing_happens() {
    let mut daemon = Fixture::start();
    daemon.sync().await;
    daemon.rules().await;
    let start = Instant::now();
    let (_, look) = daemon.rules().await;
    assert_eq!(look, Look::Afresh);
    assert!(start.elapsed() <= Duration::from_secs(61));
    daemon.end().await;
}

#[tokio::test(start_paused = true)]
async fn stopping_touches_nothing_and_frees_the_lock() {
    let mut daemon = Fixture::start();
    daemon.sync().await;
    daemon.rules().await;
    daemon.status_when(|status| status.ready.ok).await;
    let run_dir = Fixture::run_dir(daemon.folder.path());
    assert!(Lock::try_take(&run_dir).unwrap().is_none());
    daemon.stop.cancel();
    daemon.running.await.unwrap().unwrap();
    assert!(
        daemon.calls.recv().await.is_none(),
        "no last word to the kernel"
    );
    assert!(Lock::try_take(&run_dir).unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_source_that_ends_ends_the_daemon_with_an_error() {
    let mut daemon = Fixture::start();
    daemon.sync().await;
    daemon.rules().await;
    daemon.events = None;
    let error = daemon.running.await.unwrap().unwrap_err();
    assert!(matches!(error, DaemonError::Source(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn flows_are_looked_at_when_rules_are_first_in_force_and_then_where_something_changed() {
    let mut daemon = Fixture::start();
    daemon.sync().await;
    daemon.rules().await;
    assert!(daemon.cut().await.everything, "whoever enforced before us");

    daemon.tell(Event::PolicyApplied(policy())).await;
    daemon.rules().await;
    let scope = daemon.cut().await;
    assert!(!scope.everything);
    assert_eq!(scope.addresses, ["10.0.0.1".parse().unwrap()].into());

    let key = PodKey {
        namespace: NamespaceName::new("shop"),
        name: "web".to_owned(),
    };
    daemon
        .tell(Event::PodDeleted(key, PodUid::new("web")))
        .await;
    let mut left = BTreeSet::new();
    while left.is_empty() {
        left = daemon.cut().await.left;
    }
    assert_eq!(left, ["10.0.0.1".parse().unwrap()].into());
    daemon.end().await;
}

#[tokio::test(start_paused = true)]
async fn somebody_elses_change_is_looked_into_at_once_and_a_mere_suspicion_writes_nothing() {
    let mut daemon = Fixture::start();
    daemon.sync().await;
    daemon.rules().await;
    daemon.status_when(|status| status.ready.ok).await;
    let suspects = daemon.suspects.lock().unwrap().clone().unwrap();
    let start = Instant::now();
    suspects.send(Suspect::Rules(Family::V4)).await.unwrap();
    suspects.send(Suspect::Sets).await.unwrap();
    let (_, look) = daemon.rules().await;
    assert_eq!(look, Look::Afresh);
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "not at the next look"
    );

    suspects.send(Suspect::Rules(Family::V4)).await.unwrap();
    daemon.tell(Event::PolicyApplied(policy())).await;
    let (_, look) = daemon.rules().await;
    assert_eq!(look, Look::Remembered, "nothing was changed");
    daemon.end().await;
}

#[tokio::test(start_paused = true)]
async fn rules_that_are_undone_again_and_again_make_the_node_unready_until_it_is_over() {
    let mut daemon = Fixture::start();
    daemon.sync().await;
    daemon.rules().await;
    let suspects = daemon.suspects.lock().unwrap().clone().unwrap();
    for _ in 0..12 {
        suspects.send(Suspect::Sets).await.unwrap();
        daemon.rules().await;
    }
    let status = daemon.status_when(|status| !status.ready.ok).await;
    assert!(status.ready.reason.contains("again and again"), "{status}");
    let looks = async {
        loop {
            daemon.calls.recv().await;
        }
    };
    let socket = daemon.folder.path().join("own/policy.sock");
    let calm = async {
        tokio::time::sleep(Duration::from_secs(180)).await;
        spawn_blocking(move || ask_status(&socket)).await.unwrap()
    };
    let status = tokio::select! {
        () = looks => unreachable!(),
        status = calm => status.unwrap(),
    };
    assert!(status.ready.ok, "{status}");
    daemon.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_kernel_that_refuses_for_minutes_ends_the_daemon_with_what_it_said() {
    let mut daemon = Fixture::start();
    daemon.refusals.store(u32::MAX, Ordering::SeqCst);
    daemon.sync().await;
    let start = Instant::now();
    let ended = loop {
        tokio::select! {
            ended = &mut daemon.running => break ended.unwrap(),
            _ = daemon.calls.recv() => {}
        }
    };
    let error = ended.unwrap_err();
    assert!(error.to_string().contains("kernel said no"), "{error}");
    let after = start.elapsed().as_secs();
    assert!((300..1200).contains(&after), "after {after} s");
}

#[tokio::test(start_paused = true)]
async fn a_pods_file_is_there_once_its_rules_are_in_force_and_gone_with_the_pod() {
    let mut daemon = Fixture::start();
    daemon.refusals.store(1, Ordering::SeqCst);
    daemon.sync().await;
    let file = daemon
        .folder
        .path()
        .join("endpoint-status/k8s shop%2Fweb eth0");
    daemon.rules().await;
    assert!(!file.exists(), "the kernel refused");
    daemon.rules().await;
    daemon.status_when(|status| status.ready.ok).await;
    assert!(file.exists());
    let key = PodKey {
        namespace: NamespaceName::new("shop"),
        name: "web".to_owned(),
    };
    daemon
        .tell(Event::PodDeleted(key, PodUid::new("web")))
        .await;
    daemon.rules().await;
    daemon
        .status_when(|status| status.counts.local_pods == 0)
        .await;
    assert!(!file.exists());
    daemon.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_pods_file_follows_an_address_that_changes_by_route_alone() {
    let mut daemon = Fixture::start();
    daemon.sync().await;
    daemon.rules().await;
    daemon.status_when(|status| status.ready.ok).await;
    let interface = VethPrefix::default().veth("shop", "web").to_string();
    daemon
        .tell(Event::Routes {
            interface,
            addresses: ["10.9.9.9".parse().unwrap()].into(),
        })
        .await;
    let file = daemon
        .folder
        .path()
        .join("endpoint-status/k8s shop%2Fweb eth0");
    // Files are written on a thread of their own, for which a paused clock doesn't wait.
    let started = std::time::Instant::now();
    loop {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        if text.contains("10.9.9.9/32") {
            break;
        }
        assert!(started.elapsed().as_secs() < 20, "{text}");
        tokio::task::yield_now().await;
    }
    daemon.end().await;
}
