//! A node to test with.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use selvage_ipamd::checkpoint::is_in_memory;
use selvage_ipamd::cluster::{Cluster, NodeView};
use selvage_ipamd::config::{Args, Config};
use selvage_ipamd::hostnet::{
    Change, Disturbed, EniNet, Host, HostError, Looked, NodeNet, Obstacle, PodNet, veth_suffix,
};
use selvage_ipamd::{RunError, run};
use selvage_ipamd_core::fake::Ec2;
use selvage_ipamd_core::ids::{InstanceId, PodName};
use selvage_ipamd_rpc::client::{CallError, Deadlines, call, request};
use selvage_ipamd_rpc::ipam::cni_backend_client::CniBackendClient;
use selvage_ipamd_rpc::ipam::selvage_backend_client::SelvageBackendClient;
use selvage_ipamd_rpc::ipam::{
    AddNetworkReply, AddNetworkRequest, Attachment, CollectGarbageReply, CollectGarbageRequest,
    DelNetworkReply, DelNetworkRequest,
};
use tempfile::TempDir;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

const DEADLINES: Deadlines = Deadlines {
    connect: Duration::from_secs(5),
    reply: Duration::from_secs(60),
};

/// What a host that is a book has written down.
#[derive(Debug, Default)]
pub struct Pages {
    pub links: BTreeSet<String>,
    pub nodes: Vec<NodeNet>,
    pub enis: BTreeSet<u16>,
    /// Those that the latest start took over.
    pub pods: Vec<PodNet>,
    pub forgotten: Vec<IpAddr>,
    /// When it was looked at.
    pub looks: Vec<Instant>,
    /// The pods that the latest look was about.
    pub asked: Vec<PodNet>,
    /// What the next look finds.
    pub finds: Looked,
    /// What keeps pods' traffic from passing.
    pub obstacles: Vec<Obstacle>,
    /// What somebody disturbs.
    pub disturbed: Disturbed,
}

#[derive(Debug, Clone, Default)]
pub struct Book(pub Arc<Mutex<Pages>>, pub Arc<Notify>);

impl Host for Book {
    async fn ensure_node(&self, node: &NodeNet) -> Result<Vec<Change>, HostError> {
        self.0.lock().unwrap().nodes.push(node.clone());
        Ok(vec![])
    }

    async fn ensure_eni(&self, eni: &EniNet) -> Result<Vec<Change>, HostError> {
        self.0.lock().unwrap().enis.insert(eni.device_index);
        Ok(vec![])
    }

    async fn ensure_routing(&self, _: &NodeNet, enis: &[EniNet], pods: &[PodNet]) -> Looked {
        let mut pages = self.0.lock().unwrap();
        pages.enis.extend(enis.iter().map(|eni| eni.device_index));
        // At the start pods come before interfaces.
        if enis.is_empty() {
            pages.pods = pods.to_vec();
        }
        pages.asked = pods.to_vec();
        pages.looks.push(Instant::now());
        std::mem::take(&mut pages.finds)
    }

    async fn remove_eni(&self, eni: &EniNet) -> Result<(), HostError> {
        self.0.lock().unwrap().enis.remove(&eni.device_index);
        Ok(())
    }

    async fn links(&self) -> Result<BTreeSet<String>, HostError> {
        Ok(self.0.lock().unwrap().links.clone())
    }

    async fn forget_pod(&self, address: IpAddr) -> Result<(), HostError> {
        self.0.lock().unwrap().forgotten.push(address);
        Ok(())
    }

    async fn obstacles(&self, _: &NodeNet) -> Result<Vec<Obstacle>, HostError> {
        Ok(self.0.lock().unwrap().obstacles.clone())
    }

    async fn disturbed(&self) -> Disturbed {
        self.1.notified().await;
        self.0.lock().unwrap().disturbed
    }
}

/// An API server: Events as they were given, annotations as they are, and what it says of the node.
#[derive(Debug, Clone, Default)]
pub struct Told {
    pub events: Arc<Mutex<Vec<(&'static str, String)>>>,
    pub annotations: Arc<Mutex<BTreeMap<String, String>>>,
    pub node: watch::Sender<NodeView>,
    pub alive: Arc<Mutex<BTreeSet<InstanceId>>>,
    pub leads: Arc<AtomicBool>,
    pub silent: Arc<AtomicBool>,
    /// How many nodes start, and how often that was asked; none: nothing is said.
    pub starting: Arc<Mutex<Option<u32>>>,
    pub asked_starting: Arc<AtomicU32>,
}

impl Told {
    /// Whether an Event was given whose note contains `words`.
    pub fn has(&self, reason: &str, words: &str) -> bool {
        let events = self.events.lock().unwrap();
        events
            .iter()
            .any(|(r, w)| *r == reason && w.contains(words))
    }
}

impl Cluster for Told {
    fn warn(&self, reason: &'static str, _: String, note: String) {
        self.events.lock().unwrap().push((reason, note));
    }

    fn node(&self) -> watch::Receiver<NodeView> {
        self.node.subscribe()
    }

    async fn annotate(&self, pod: &PodName, address: IpAddr) {
        let mut annotations = self.annotations.lock().unwrap();
        annotations.insert(pod.name.clone(), address.to_string());
    }

    fn clear(&self, pod: &PodName, address: IpAddr) {
        let mut annotations = self.annotations.lock().unwrap();
        if annotations.get(&pod.name) == Some(&address.to_string()) {
            annotations.insert(pod.name.clone(), String::new());
        }
    }

    async fn instances(&self) -> Result<BTreeSet<InstanceId>, String> {
        match self.silent.load(Ordering::Relaxed) {
            true => Err("the API server is away".to_owned()),
            false => Ok(self.alive.lock().unwrap().clone()),
        }
    }

    async fn starting(&self) -> Result<u32, String> {
        self.asked_starting.fetch_add(1, Ordering::Relaxed);
        if self.silent.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        let starting = *self.starting.lock().unwrap();
        starting.ok_or_else(|| "the API server is away".to_owned())
    }

    async fn lead(&self) -> Result<bool, String> {
        Ok(self.leads.load(Ordering::Relaxed))
    }
}

/// A node: its disk, its cloud, its kernel. Outlives the daemons on it.
pub struct Node {
    pub root: TempDir,
    pub ec2: Ec2,
    pub book: Book,
    pub told: Told,
    pub args: Args,
}

/// A daemon that runs on it.
pub struct Daemon {
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), RunError>>,
    pub client: Client,
}

/// Asks as the plugin does.
#[derive(Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    pub async fn add_network(&self, message: AddNetworkRequest) -> Result<AddNetworkReply, Status> {
        let ask = async |ipamd| {
            CniBackendClient::new(ipamd)
                .add_network(request(message, DEADLINES))
                .await
        };
        call(&self.socket, DEADLINES, ask).await.map_err(said)
    }

    pub async fn del_network(&self, message: DelNetworkRequest) -> Result<DelNetworkReply, Status> {
        let ask = async |ipamd| {
            CniBackendClient::new(ipamd)
                .del_network(request(message, DEADLINES))
                .await
        };
        call(&self.socket, DEADLINES, ask).await.map_err(said)
    }

    pub async fn collect_garbage(
        &self,
        message: CollectGarbageRequest,
    ) -> Result<CollectGarbageReply, Status> {
        let ask = async |ipamd| {
            SelvageBackendClient::new(ipamd)
                .collect_garbage(request(message, DEADLINES))
                .await
        };
        call(&self.socket, DEADLINES, ask).await.map_err(said)
    }
}

fn said(error: CallError) -> Status {
    match error {
        CallError::Status(status) => *status,
        CallError::Connect(error) => panic!("{error}"),
    }
}

impl Node {
    pub fn new(ec2: Ec2) -> Self {
        Self::in_folder(ec2, tempfile::tempdir().unwrap())
    }

    /// One whose folder is on a disk and one whose folder is in memory, as `/run` is on a node.
    pub fn on_disk_and_in_memory(ec2: impl Fn() -> Ec2) -> [Self; 2] {
        // Made by the test runner for this test alone.
        let memory = tempfile::tempdir_in("/run").unwrap();
        assert!(is_in_memory(&memory.path().join("ipam.json")));
        let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        assert!(!is_in_memory(&disk.path().join("ipam.json")));
        [Self::in_folder(ec2(), disk), Self::in_folder(ec2(), memory)]
    }

    fn in_folder(ec2: Ec2, root: TempDir) -> Self {
        for directory in ["bin", "net.d"] {
            fs::create_dir(root.path().join(directory)).unwrap();
        }
        fs::write(root.path().join("plugin"), "#!/bin/sh\n").unwrap();
        let path = |name: &str| Some(root.path().join(name).to_string_lossy().into_owned());
        let args = Args {
            cni_bin_dir: path("bin"),
            cni_conf_dir: path("net.d"),
            cni_plugin: path("plugin"),
            socket: path("run/ipamd.sock"),
            checkpoint: path("run/ipam.json"),
            disable_metrics: Some("true".into()),
            disable_introspection: Some("true".into()),
            ..Args::default()
        };
        Self {
            root,
            ec2,
            book: Book::default(),
            told: Told::default(),
            args,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub fn conflist(&self) -> PathBuf {
        self.path("net.d/10-aws.conflist")
    }

    /// The daemon itself, without waiting for anything.
    pub fn run(&self, shutdown: CancellationToken) -> JoinHandle<Result<(), RunError>> {
        let config = Config::try_from(&self.args).unwrap();
        tokio::spawn(run(
            config,
            self.ec2.clone(),
            self.book.clone(),
            self.told.clone(),
            shutdown,
        ))
    }

    /// A daemon that answers, though it may not be able to give addresses.
    pub async fn start(&self) -> Daemon {
        let shutdown = CancellationToken::new();
        let task = self.run(shutdown.clone());
        let socket = self.path("run/ipamd.sock");
        let mut tries = 0;
        while let Err(error) = tokio::net::UnixStream::connect(&socket).await {
            assert!(tries < 100, "{error}");
            tries += 1;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Daemon {
            shutdown,
            task,
            client: Client { socket },
        }
    }

    /// A daemon that gives addresses.
    pub async fn start_ready(&self) -> Daemon {
        let daemon = self.start().await;
        until("the conflist is written", || self.conflist().exists()).await;
        daemon
    }

    /// A pod's veth, as the plugin makes it.
    pub fn make_veth(&self, pod: &str) {
        let suffix = veth_suffix(&PodName {
            namespace: "default".into(),
            name: pod.into(),
        });
        let mut pages = self.book.0.lock().unwrap();
        pages.links.insert(format!("eni{suffix}"));
    }

    /// Addresses that EC2 holds for pods of this node.
    pub fn held(&self) -> BTreeSet<Ipv4Addr> {
        let enis = self.ec2.enis();
        enis.into_iter()
            .flat_map(|e| e.secondary_addresses)
            .collect()
    }
}

impl Daemon {
    pub async fn add(&self, pod: &str) -> Result<AddNetworkReply, Status> {
        let request = AddNetworkRequest {
            k8s_pod_namespace: "default".into(),
            k8s_pod_name: pod.into(),
            if_name: "eth0".into(),
            network_name: "aws-cni".into(),
            container_id: format!("sandbox-{pod}"),
            ..AddNetworkRequest::default()
        };
        self.client.add_network(request).await
    }

    pub async fn add_ok(&self, pod: &str) -> Ipv4Addr {
        let reply = self.add(pod).await.unwrap();
        assert!(reply.success);
        reply.ip_allocation_metadata[0].ipv4_addr.parse().unwrap()
    }

    pub async fn del(&self, pod: &str) -> Result<DelNetworkReply, Status> {
        let request = DelNetworkRequest {
            k8s_pod_namespace: "default".into(),
            k8s_pod_name: pod.into(),
            if_name: "eth0".into(),
            network_name: "aws-cni".into(),
            container_id: format!("sandbox-{pod}"),
            reason: "PodDeleted".into(),
            ..DelNetworkRequest::default()
        };
        self.client.del_network(request).await
    }

    /// A DEL of a sandbox by its own name.
    pub async fn del_sandbox(&self, container: &str) -> Result<DelNetworkReply, Status> {
        let request = DelNetworkRequest {
            if_name: "eth0".into(),
            network_name: "aws-cni".into(),
            container_id: container.into(),
            reason: "PodDeleted".into(),
            ..DelNetworkRequest::default()
        };
        self.client.del_network(request).await
    }

    pub async fn del_ok(&self, pod: &str) -> Ipv4Addr {
        let reply = self.del(pod).await.unwrap();
        assert!(reply.success);
        reply.ip_allocation_metadata[0].ipv4_addr.parse().unwrap()
    }

    /// Everything but these (sandbox, interface) is taken back; tells the addresses.
    pub async fn collect(&self, network: &str, valid: &[(&str, &str)]) -> Vec<Ipv4Addr> {
        let attachment = |(container, link): &(&str, &str)| Attachment {
            container_id: (*container).into(),
            if_name: (*link).into(),
        };
        let message = CollectGarbageRequest {
            network_name: network.into(),
            valid: valid.iter().map(attachment).collect(),
        };
        let reply = self.client.collect_garbage(message).await.unwrap();
        let addresses = reply.ip_allocation_metadata.into_iter();
        addresses
            .map(|one| one.ipv4_addr.parse().unwrap())
            .collect()
    }

    /// As a SIGTERM ends it.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }

    /// As a SIGKILL ends it.
    pub async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }

    pub fn is_running(&self) -> bool {
        !self.task.is_finished()
    }
}

/// Waits, in paused time.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("ten minutes have passed, and not: {what}");
}
