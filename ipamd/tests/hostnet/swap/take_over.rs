//! From aws-node to us.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use selvage_cni::request::Environment;
use selvage_ipamd::cluster::NoCluster;
use selvage_ipamd::config::{Args, Config};
use selvage_ipamd::hostnet::Kernel;
use selvage_ipamd::server::ServerError;
use selvage_ipamd::{RunError, run};
use selvage_ipamd_core::cloud::Operation;
use selvage_ipamd_core::fake::Ec2;
use selvage_ipamd_rpc::client::{CallError, Deadlines, call, request};
use selvage_ipamd_rpc::ipam::cni_backend_client::CniBackendClient;
use selvage_ipamd_rpc::ipam::{DelNetworkReply, DelNetworkRequest};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::aws_node::{
    AwsNode, AwsPod, Blocks, Connmark, NODE_PORT, RUN, addresses, write_checkpoint,
};
use super::stream::Stream;
use crate::world::{INSIDE, NODE, OUTSIDE, sh, talk};

/// Our daemon as the shipped binary runs it, but for the cloud.
pub struct Daemon {
    root: TempDir,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), RunError>>,
}

impl Daemon {
    pub fn start(ec2: &Ec2, blocks: Blocks) -> Self {
        let root = tempfile::tempdir().unwrap();
        for directory in ["bin", "net.d"] {
            std::fs::create_dir(root.path().join(directory)).unwrap();
        }
        std::fs::write(root.path().join("plugin"), "#!/bin/sh\n").unwrap();
        let path = |name: &str| Some(root.path().join(name).to_string_lossy().into_owned());
        let args = Args {
            cni_bin_dir: path("bin"),
            cni_conf_dir: path("net.d"),
            cni_plugin: path("plugin"),
            socket: Some(format!("{RUN}/ipamd.sock")),
            checkpoint: Some(format!("{RUN}/ipam.json")),
            disable_metrics: Some("true".into()),
            enable_prefix_delegation: Some((blocks != Blocks::Addresses).to_string()),
            warm_prefix_target: Some("1".into()),
            enable_ipv4: Some((blocks != Blocks::Ipv6).to_string()),
            enable_ipv6: Some((blocks == Blocks::Ipv6).to_string()),
            ..Args::default()
        };
        let config = Config::try_from(&args).unwrap();
        let shutdown = CancellationToken::new();
        let work = run(
            config,
            ec2.clone(),
            Kernel::new(),
            NoCluster::default(),
            shutdown.clone(),
        );
        Daemon {
            root,
            shutdown,
            task: tokio::spawn(work),
        }
    }

    /// Until the runtime may call the plugin.
    pub async fn ready(ec2: &Ec2, blocks: Blocks) -> Self {
        let daemon = Self::start(ec2, blocks);
        let conflist = daemon.root.path().join("net.d/10-aws.conflist");
        for _ in 0..500 {
            if conflist.exists() {
                return daemon;
            }
            assert!(!daemon.task.is_finished(), "the daemon has ended");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("not ready in ten seconds");
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// Our plugin, as a runtime calls it.
pub async fn plugin(command: &str, name: &str, container: &str, prev: Option<Value>) -> Value {
    let mut config = json!({
        "cniVersion": "0.4.0",
        "name": "aws-cni",
        "type": "aws-cni",
        "vethPrefix": "eni",
        "mtu": "9001",
        "pluginLogFile": "stderr",
        "pluginLogLevel": "error",
    });
    if let Some(prev) = prev {
        config["prevResult"] = prev;
    }
    let environment = Environment {
        command: command.into(),
        container_id: container.into(),
        netns: format!("/var/run/netns/{name}"),
        if_name: "eth0".into(),
        args: format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={container}"
        ),
    };
    let call = move || selvage_cni::run(&environment, Ok(config.to_string().as_bytes()));
    let answer = tokio::task::spawn_blocking(call).await.unwrap();
    assert!(answer.success, "{command} {name}: {}", answer.stdout);
    serde_json::from_str(&answer.stdout).unwrap_or_default()
}

/// Makes a pod by our plugin; gives its result.
pub async fn add(name: &str) -> Value {
    sh(&format!("ip netns add {name}; ip -n {name} link set lo up"));
    plugin("ADD", name, &format!("sandbox-{name}"), None).await
}

/// AWS's plugin of that version calls us: its message, an empty client version among it.
pub async fn aws_plugin_deletes(pod: &AwsPod) -> Result<DelNetworkReply, String> {
    let deadlines = Deadlines {
        connect: Duration::from_secs(5),
        reply: Duration::from_secs(10),
    };
    let message = DelNetworkRequest {
        k8s_pod_name: pod.name.clone(),
        k8s_pod_namespace: "default".into(),
        k8s_pod_infra_container_id: pod.container.clone(),
        reason: "PodDeleted".into(),
        if_name: "eth0".into(),
        network_name: "aws-cni".into(),
        container_id: pod.container.clone(),
        client_version: String::new(),
        k8s_pod_uid: "b0f6d2a6-1c1c-4c1c-9c1c-000000000001".into(),
    };
    let socket = PathBuf::from(format!("{RUN}/ipamd.sock"));
    let ask = async |ipamd| {
        CniBackendClient::new(ipamd)
            .del_network(request(message, deadlines))
            .await
    };
    match call(&socket, deadlines, ask).await {
        Ok(reply) => Ok(reply),
        Err(CallError::Status(status)) => Err(status.message().to_owned()),
        Err(CallError::Connect(error)) => panic!("{error}"),
    }
}

pub fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

pub fn on(pod: &AwsPod, port: u16) -> SocketAddr {
    SocketAddr::new(pod.address, port)
}

/// Connections of every kind that pods have: in the VPC and out of it, begun by them and to them.
fn streams(aws: &AwsNode) -> Vec<Stream> {
    let mut streams = Vec::new();
    for pod in ["web-0", "web-1"] {
        let own = aws.pod(pod).address.to_string();
        for (number, (to, source)) in [(INSIDE, own.as_str()), (OUTSIDE, NODE)]
            .into_iter()
            .enumerate()
        {
            let port = 9000 + u16::try_from(streams.len()).unwrap();
            let stream = Stream::begin((pod, "0.0.0.0"), at(to, port), ("vpc", at(to, port)));
            assert_eq!(
                stream.source,
                source.parse::<IpAddr>().unwrap(),
                "{pod} {number}"
            );
            streams.push(stream);
        }
    }
    let server = ("web-1", on(aws.pod("web-1"), 8080));
    let stream = Stream::begin(("vpc", OUTSIDE), at(NODE, NODE_PORT), server);
    assert_eq!(stream.source, OUTSIDE.parse::<IpAddr>().unwrap());
    streams.push(stream);
    let server = ("web-0", on(aws.pod("web-0"), 8081));
    streams.push(Stream::begin(("web-1", "0.0.0.0"), server.1, server));
    streams
}

/// Every rule for a pod's address, and the route to it.
pub fn traces(pod: &AwsPod) -> String {
    let address = pod.address;
    sh(&format!(
        "(ip rule; ip -6 rule) | grep -w '{address}' || true; ip route show table all {address} type unicast"
    ))
}

async fn taken_over(tool: &'static str, connmark: Connmark, blocks: Blocks) {
    let aws = AwsNode::build(tool, connmark, blocks).await;
    let rules = sh("ip rule");
    let streams = streams(&aws);
    let daemon = Daemon::ready(&aws.ec2, blocks).await;
    // Nothing of what pods use has changed, and nothing is there twice.
    assert_eq!(sh("ip rule"), rules, "rules of pods and interfaces");
    let tables = sh(&format!("{tool}-save"));
    for (once, want) in [
        ("-j AWS-SNAT-CHAIN-0", 1),
        ("--to-source", 1),
        ("--limit-iface-in", 1),
        ("-i vlan+", 1),
        ("AWS, outbound connections", 1),
    ] {
        assert_eq!(tables.matches(once).count(), want, "{once} in {tables}");
    }
    assert!(!sh("nft list tables").contains("aws-cni"), "its nft table");

    // One of its pods ends, new ones start, on both interfaces.
    let job = aws.pod("job");
    plugin("DEL", &job.name, &job.container, Some(job.result())).await;
    assert_eq!(traces(job), "", "what the job had");
    let mut sources = Vec::new();
    for name in ["new-0", "new-1", "new-2"] {
        let result = add(name).await;
        let address = result["ips"][0]["address"].as_str().unwrap();
        let own: IpAddr = address.trim_end_matches("/32").parse().unwrap();
        assert_eq!(talk(name, "vpc", INSIDE), Some(own), "{name}");
        assert_eq!(
            talk(name, "vpc", OUTSIDE),
            Some(NODE.parse().unwrap()),
            "{name}"
        );
        sources.push(own);
    }
    let theirs: Vec<IpAddr> = aws.pods.iter().map(|pod| pod.address).collect();
    let held = aws.ec2.enis();
    let held: Vec<IpAddr> = held.iter().flat_map(addresses).map(IpAddr::from).collect();
    for (number, source) in sources.iter().enumerate() {
        assert!(
            held.contains(source),
            "{source}: what EC2 had given aws-node"
        );
        let taken = theirs.contains(source) || sources[..number].contains(source);
        assert!(!taken, "{source} rests or is used");
    }
    assert_eq!(
        aws.ec2.calls(Operation::AssignAddresses),
        aws.asked,
        "nothing was lacking"
    );

    // AWS's plugin, still in the hands of a runtime, deletes one of its own and one of ours.
    let told: Vec<_> = streams.into_iter().map(Stream::end).collect();
    for stream in &told {
        assert!(stream.answered > 50, "{told:?}");
        // A packet that is lost comes again after 200 ms at the earliest.
        assert!(stream.longest < Duration::from_millis(200), "{told:?}");
    }
    let web = aws.pod("web-1");
    let reply = aws_plugin_deletes(web).await.unwrap();
    assert!(reply.success);
    let metadata = &reply.ip_allocation_metadata[0];
    assert_eq!(metadata.ipv4_addr, web.address.to_string());
    assert_eq!((metadata.device_number, metadata.route_table_id), (1, 2));
    assert_eq!(
        (reply.pod_vlan_id, reply.network_policy_mode.as_str()),
        (0, "")
    );
    let again = aws_plugin_deletes(web).await.unwrap_err();
    assert!(again.contains("datastore: unknown pod"), "{again}");
    let ours = AwsPod {
        name: "new-0".into(),
        container: "sandbox-new-0".into(),
        ..web.clone()
    };
    assert!(aws_plugin_deletes(&ours).await.unwrap().success);
    daemon.stop().await;
    // Rules and chains stay: pods go on.
    assert!(talk("web-0", "vpc", OUTSIDE).is_some());
}

#[tokio::test]
async fn pods_of_aws_node_keep_their_connections_while_we_take_over_legacy() {
    taken_over("iptables-legacy", Connmark::Iptables, Blocks::Addresses).await;
}

#[tokio::test]
async fn pods_of_aws_node_keep_their_connections_while_we_take_over_nft() {
    taken_over("iptables-nft", Connmark::Nft, Blocks::Addresses).await;
}

#[tokio::test]
async fn pods_of_aws_node_with_prefixes_keep_their_connections_while_we_take_over() {
    taken_over("iptables-nft", Connmark::Nft, Blocks::Prefixes).await;
}

#[tokio::test]
async fn pods_of_aws_node_before_1_23_keep_their_connections_while_we_take_over_nft() {
    taken_over("iptables-nft", Connmark::Iptables, Blocks::Addresses).await;
}

#[tokio::test]
async fn while_aws_nodes_daemon_answers_we_do_not_start_and_touch_nothing() {
    let aws = AwsNode::build("iptables-nft", Connmark::Iptables, Blocks::Addresses).await;
    let listener = tokio::net::UnixListener::bind(format!("{RUN}/ipamd.sock")).unwrap();
    let state = || {
        sh(&format!(
            "ip rule; ip -4 route show table all; iptables-nft-save | grep -v '^#'; cat {RUN}/ipam.json"
        ))
    };
    let before = state();
    let error = Daemon::start(&aws.ec2, Blocks::Addresses)
        .task
        .await
        .unwrap()
        .unwrap_err();
    assert!(
        matches!(error, RunError::Server(ServerError::Taken { .. })),
        "{error}"
    );
    assert!(error.to_string().contains("stop it first"), "{error}");
    assert_eq!(state(), before);
    // It is stopped: its socket stays behind, and nobody answers.
    drop(listener);
    Daemon::ready(&aws.ec2, Blocks::Addresses)
        .await
        .stop()
        .await;
}

#[tokio::test]
async fn a_pod_of_aws_node_that_ended_while_nobody_ran_leaves_nothing() {
    let aws = AwsNode::build("iptables-nft", Connmark::Iptables, Blocks::Addresses).await;
    sh("ip netns delete job");
    // The namespace goes with its veth a moment later.
    let veth = aws.pod("job").veth();
    sh(&format!(
        "for i in $(seq 100); do ip link show {veth} >/dev/null 2>&1 || exit 0; sleep 0.05; done; exit 1"
    ));
    let daemon = Daemon::ready(&aws.ec2, Blocks::Addresses).await;
    assert_eq!(traces(aws.pod("job")), "");
    assert!(
        traces(aws.pod("web-1")).contains("1536:"),
        "the others stay"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn fields_that_aws_node_omits_as_far_as_known_are_read_as_it_reads_them() {
    let aws = AwsNode::build("iptables-nft", Connmark::Iptables, Blocks::Addresses).await;
    let bare = |name: &str| {
        let pod = aws.pod(name);
        json!({
            "networkName": "aws-cni", "containerID": pod.container, "ifName": "eth0",
            "ipv4": pod.address, "allocationTimestamp": 1,
            "metadata": { "k8sPodNamespace": "default", "k8sPodName": pod.name },
        })
    };
    let mut nameless = bare("web-1");
    nameless["networkName"] = json!("_migrated-from-cri");
    nameless["ifName"] = json!("unknown");
    nameless["metadata"] = json!({});
    write_checkpoint(vec![bare("web-0"), nameless]);
    let daemon = Daemon::ready(&aws.ec2, Blocks::Addresses).await;
    // Known by container alone: its DEL finds it, and the rules go by what the reply says.
    let web = aws.pod("web-1");
    let reply = aws_plugin_deletes(web).await.unwrap();
    assert_eq!(reply.ip_allocation_metadata[0].ipv4_addr, "10.40.0.9");
    plugin(
        "DEL",
        "web-0",
        "sandbox-web-0",
        Some(aws.pod("web-0").result()),
    )
    .await;
    assert_eq!(traces(aws.pod("web-0")), "");
    daemon.stop().await;
}
