//! What ADD costs: the plugin's whole process, from exec to exit, beside the same netlink work in this one
//! long-lived process.
//!
//! Runs inside a node's network and mount namespaces, with ipamd running and its pool filled; `tests/bench`
//! starts it there. Prints one JSON object: microseconds, a list for each round.
//!
//! `add --conf FILE --serial ROUNDS --each N`, or `add --conf FILE --burst ROUNDS --each N`

use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use selvage_cni::apply::Host;
use selvage_cni::lease::Lease;
use selvage_cni::name::host_veth;
use selvage_cni::request::{AddRequest, Pod, Sandbox};
use selvage_nodenet::NetNs;

/// What was asked for on the command line.
struct Options {
    plugin: PathBuf,
    conf: Vec<u8>,
    serial: usize,
    burst: usize,
    each: usize,
}

impl Options {
    fn read() -> Self {
        let mut options = Options {
            plugin: PathBuf::from("/opt/cni/bin/aws-cni"),
            conf: Vec::new(),
            serial: 0,
            burst: 0,
            each: 20,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().expect("each option has a value");
            match word.as_str() {
                "--plugin" => options.plugin = value().into(),
                "--conf" => options.conf = std::fs::read(value()).expect("--conf can be read"),
                "--serial" => options.serial = value().parse().expect("--serial is a number"),
                "--burst" => options.burst = value().parse().expect("--burst is a number"),
                "--each" => options.each = value().parse().expect("--each is a number"),
                // cargo's own.
                "--bench" => {}
                other => panic!("no such option: {other}"),
            }
        }
        options
    }
}

/// A pod's network namespace, removed with the value.
struct Sandboxed {
    name: String,
}

impl Sandboxed {
    fn make(kind: &str, number: usize) -> Self {
        let name = format!("bench-{kind}-{number}");
        ip(&["netns", "add", &name]);
        Sandboxed { name }
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }
}

impl Drop for Sandboxed {
    fn drop(&mut self) {
        ip(&["netns", "delete", &self.name]);
    }
}

#[expect(clippy::disallowed_methods, reason = "a bench starts what it measures")]
fn ip(words: &[&str]) {
    let status = Command::new("ip").args(words).status().expect("ip runs");
    assert!(status.success(), "ip {words:?}");
}

/// One run of the plugin, from exec to exit. Panics with its answer if it fails.
#[expect(clippy::disallowed_methods, reason = "a bench starts what it measures")]
fn plugin(options: &Options, command: &str, sandbox: &Sandboxed) -> Duration {
    let start = Instant::now();
    let mut child = Command::new(&options.plugin)
        .env_clear()
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", format!("container-{}", sandbox.name))
        .env("CNI_NETNS", sandbox.path())
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/opt/cni/bin")
        .env(
            "CNI_ARGS",
            format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME={}",
                sandbox.name
            ),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the plugin starts");
    child
        .stdin
        .take()
        .expect("stdin is a pipe")
        .write_all(&options.conf)
        .expect("the plugin reads its configuration");
    let output = child.wait_with_output().expect("the plugin ends");
    let took = start.elapsed();
    assert!(
        output.status.success(),
        "{command} {}: {}",
        sandbox.name,
        String::from_utf8_lossy(&output.stdout)
    );
    took
}

/// The netlink work of one ADD with a made-up lease in the table of a second ENI, undone afterwards.
fn netlink(host: &mut Host, sandbox: &Sandboxed, number: usize) -> Duration {
    let (request, lease) = made_up(sandbox, number);
    let start = Instant::now();
    let pod = NetNs::open(&sandbox.path()).expect("the namespace is there");
    let mut pod = host
        .enter(&pod)
        .expect("it can be entered")
        .expect("it is another");
    let wired = host
        .wire(&mut pod, &request, &lease)
        .expect("the pod is wired");
    let took = start.elapsed();
    drop(wired);
    took
}

fn made_up(sandbox: &Sandboxed, number: usize) -> (AddRequest, Lease) {
    let number = u8::try_from(number).expect("at most 256 at once");
    let request = AddRequest {
        sandbox: Sandbox {
            network: "aws-cni".into(),
            container_id: sandbox.name.clone(),
            if_name: "eth0".into(),
            netns: sandbox.path().display().to_string(),
        },
        pod: Pod {
            namespace: "bench".into(),
            name: sandbox.name.clone(),
            ..Pod::default()
        },
        host_veth: host_veth("eni", "bench", &sandbox.name),
        mtu: 9001,
        policy_ready: None,
    };
    (request, Lease::new(Ipv4Addr::new(10, 99, 7, number), 3, 2))
}

/// Rounds of `each` ADDs, one after the other, plugin and floor taking turns.
fn serial(options: &Options) -> (Vec<Vec<u128>>, Vec<Vec<u128>>) {
    let mut host = Host::open().expect("the node's namespace");
    let (mut pods, mut by_plugin, mut by_netlink) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..options.serial {
        let (mut of_plugin, mut of_netlink) = (Vec::new(), Vec::new());
        for turn in 0..options.each {
            let number = round * options.each + turn;
            let pod = Sandboxed::make("plugin", number);
            of_plugin.push(plugin(options, "ADD", &pod).as_micros());
            pods.push(pod);
            let bare = Sandboxed::make("floor", number);
            of_netlink.push(netlink(&mut host, &bare, turn).as_micros());
        }
        by_plugin.push(of_plugin);
        by_netlink.push(of_netlink);
    }
    for pod in &pods {
        plugin(options, "DEL", pod);
    }
    (by_plugin, by_netlink)
}

/// One round of `each` ADDs at once by each way: wall time from the first start to the last end.
fn at_once(options: &Options, round: usize) -> (u128, u128) {
    let name = |turn| round * options.each + turn;
    let pods: Vec<_> = (0..options.each)
        .map(|turn| Sandboxed::make("burst", name(turn)))
        .collect();
    let by_plugin = together(&pods, |_, pod| {
        plugin(options, "ADD", pod);
    });
    for pod in &pods {
        plugin(options, "DEL", pod);
    }
    let bare: Vec<_> = (0..options.each)
        .map(|turn| Sandboxed::make("bare", name(turn)))
        .collect();
    // A namespace and two sockets for each thread are part of what one process needs for this.
    let by_netlink = together(&bare, |turn, pod| {
        let mut host = Host::open().expect("the node's namespace");
        let (request, lease) = made_up(pod, turn);
        let netns = NetNs::open(&pod.path()).expect("the namespace is there");
        let mut side = host
            .enter(&netns)
            .expect("it can be entered")
            .expect("it is another");
        host.wire(&mut side, &request, &lease)
            .expect("the pod is wired")
            .commit();
    });
    for (turn, pod) in bare.iter().enumerate() {
        let address = format!("10.99.7.{turn}");
        ip(&["rule", "delete", "to", &address, "priority", "512"]);
        ip(&["rule", "delete", "from", &address, "priority", "1536"]);
        ip(&["link", "delete", &host_veth("eni", "bench", &pod.name)]);
    }
    (by_plugin.as_micros(), by_netlink.as_micros())
}

fn together(pods: &[Sandboxed], work: impl Fn(usize, &Sandboxed) + Sync) -> Duration {
    let ready = Barrier::new(pods.len() + 1);
    std::thread::scope(|scope| {
        let threads: Vec<_> = pods
            .iter()
            .enumerate()
            .map(|(turn, pod)| {
                let (ready, work) = (&ready, &work);
                scope.spawn(move || {
                    ready.wait();
                    work(turn, pod);
                })
            })
            .collect();
        ready.wait();
        let start = Instant::now();
        for thread in threads {
            thread.join().expect("each ADD succeeds");
        }
        start.elapsed()
    })
}

fn main() {
    let options = Options::read();
    if options.conf.is_empty() {
        // `cargo test --benches` and the like: there is no node around us.
        eprintln!("run by `make bench`, inside a node of the lab");
        return;
    }
    let (plugin, netlink) = serial(&options);
    let (burst_plugin, burst_netlink): (Vec<_>, Vec<_>) = (0..options.burst)
        .map(|round| at_once(&options, round))
        .unzip();
    println!(
        "{}",
        serde_json::json!({
            "plugin": plugin,
            "netlink": netlink,
            "burst_plugin": burst_plugin,
            "burst_netlink": burst_netlink,
        })
    );
}
