//! What ADD and DEL cost: the plugin's whole process, from exec to exit, beside the same netlink work in this one
//! long-lived process; and what starting it costs, beside a program that does nothing.
//!
//! Runs inside a node's network and mount namespaces, with ipamd running and its pool filled; `tests/bench`
//! starts it there. Prints one JSON object: microseconds, a list for each round.
//!
//! `add --conf FILE --serial ROUNDS --each N`, or `--burst ROUNDS --each N`, or `--empty PROGRAM --each N`

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use selvage_cni::apply::Host;
use selvage_cni::lease::Lease;
use selvage_cni::name::host_veth;
use selvage_cni::request::{AddRequest, Pod, Sandbox};
use selvage_nodenet::NetNs;

/// ipamd's, in the node.
const METRICS: &str = "127.0.0.1:61678";

/// What was asked for on the command line.
struct Options {
    plugin: PathBuf,
    conf: Vec<u8>,
    serial: usize,
    burst: usize,
    each: usize,
    empty: Option<PathBuf>,
}

impl Options {
    fn read() -> Self {
        let mut options = Options {
            plugin: PathBuf::from("/opt/cni/bin/aws-cni"),
            conf: Vec::new(),
            serial: 0,
            burst: 0,
            each: 20,
            empty: None,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().expect("each option has a value");
            match word.as_str() {
                "--plugin" => options.plugin = value().into(),
                "--conf" => options.conf = std::fs::read(value()).expect("--conf can be read"),
                "--serial" => options.serial = value().parse().expect("--serial is a number"),
                "--burst" => options.burst = value().parse().expect("--burst is a number"),
                "--empty" => options.empty = Some(value().into()),
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
fn plugin(options: &Options, command: &str, sandbox: &Sandboxed) -> Duration {
    let args = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME={}",
        sandbox.name
    );
    let (id, netns) = (format!("container-{}", sandbox.name), sandbox.path());
    let netns = netns.to_str().expect("a plain path");
    let start = Instant::now();
    let mut child = start_with(
        &options.plugin,
        &[
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", &id),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin"),
            ("CNI_ARGS", &args),
        ],
    );
    give(&mut child, &options.conf);
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

/// From exec to the first byte of an answer, or to the end of a program that has none.
fn first_byte(program: &Path, conf: &[u8]) -> Duration {
    let start = Instant::now();
    let mut child = start_with(program, &[("CNI_COMMAND", "VERSION")]);
    give(&mut child, conf);
    let mut answer = child.stdout.take().expect("stdout is a pipe");
    let _ = answer.read(&mut [0]).expect("stdout can be read");
    let took = start.elapsed();
    child.wait().expect("the program ends");
    took
}

#[expect(clippy::disallowed_methods, reason = "a bench starts what it measures")]
fn start_with(program: &Path, variables: &[(&str, &str)]) -> Child {
    Command::new(program)
        .env_clear()
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts")
}

fn give(child: &mut Child, conf: &[u8]) {
    let mut stdin = child.stdin.take().expect("stdin is a pipe");
    // An empty program has ended before it reads.
    if let Err(error) = stdin.write_all(conf) {
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    }
}

/// The netlink work of one ADD with a made-up lease of the primary ENI, undone afterwards.
fn netlink(host: &mut Host, sandbox: &Sandboxed, number: usize) -> Duration {
    let (request, lease) = made_up(sandbox, number);
    let start = Instant::now();
    let pod = NetNs::open(&sandbox.path()).expect("the namespace is there");
    let mut pod = host
        .enter(pod)
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
    (request, Lease::new(Ipv4Addr::new(10, 99, 7, number), 0, 0))
}

/// Microseconds, a list for each round.
type Rounds = Vec<Vec<u128>>;

/// What rounds of ADDs one after the other took.
#[derive(Default)]
struct Serial {
    plugin: Rounds,
    netlink: Rounds,
    dels: Rounds,
    /// Mean milliseconds of ipamd's writes of the checkpoint, for each round.
    write_ms: Vec<f64>,
    /// Bytes that ipamd takes after each round.
    resident: Vec<f64>,
}

/// ipamd's metrics, as it tells them.
struct Metrics(String);

impl Metrics {
    fn now() -> Self {
        let mut stream = TcpStream::connect(METRICS).expect("ipamd tells its metrics");
        stream
            .write_all(b"GET /metrics HTTP/1.0\r\n\r\n")
            .expect("a request can be sent");
        let mut page = String::new();
        stream
            .read_to_string(&mut page)
            .expect("metrics can be read");
        Metrics(page)
    }

    /// The sample of that name, which has no labels.
    fn value(&self, name: &str) -> f64 {
        let mut lines = self.0.lines().filter_map(|line| line.split_once(' '));
        let value = lines.find_map(|(key, value)| (key == name).then(|| value.trim().parse().ok()));
        value
            .flatten()
            .unwrap_or_else(|| panic!("no {name} in the metrics"))
    }
}

/// ipamd's own count of its checkpoint's writes.
struct Writes {
    count: f64,
    ms: f64,
}

impl Writes {
    fn now() -> Self {
        let metrics = Metrics::now();
        Writes {
            count: metrics.value("selvage_ipamd_checkpoint_write_ms_count"),
            ms: metrics.value("selvage_ipamd_checkpoint_write_ms_sum"),
        }
    }

    /// What has come since.
    fn since(&self) -> Self {
        let now = Writes::now();
        Writes {
            count: now.count - self.count,
            ms: now.ms - self.ms,
        }
    }

    fn mean(&self) -> f64 {
        self.ms / self.count
    }
}

/// Rounds of `each` ADDs, one after the other, plugin and floor taking turns; then their DELs.
fn serial(options: &Options) -> Serial {
    let mut host = Host::open().expect("the node's namespace");
    let (mut pods, mut bares) = (Vec::new(), Vec::new());
    let mut serial = Serial::default();
    for round in 0..options.serial {
        let before = Writes::now();
        let (mut of_plugin, mut of_netlink) = (Vec::new(), Vec::new());
        for turn in 0..options.each {
            let number = round * options.each + turn;
            let pod = Sandboxed::make("plugin", number);
            of_plugin.push(plugin(options, "ADD", &pod).as_micros());
            pods.push(pod);
            let bare = Sandboxed::make("floor", number);
            of_netlink.push(netlink(&mut host, &bare, turn).as_micros());
            // The kernel cleans up after a namespace later, and holds up who works then.
            bares.push(bare);
        }
        serial.plugin.push(of_plugin);
        serial.netlink.push(of_netlink);
        serial.write_ms.push(before.since().mean());
        let resident = Metrics::now().value("process_resident_memory_bytes");
        serial.resident.push(resident);
    }
    let dels = pods.chunks(options.each).map(|pods| {
        let del = |pod| plugin(options, "DEL", pod).as_micros();
        pods.iter().map(del).collect()
    });
    serial.dels = dels.collect();
    serial
}

/// Starts of the plugin and of an empty program, in turns.
fn starts(options: &Options, empty: &Path) -> (Vec<u128>, Vec<u128>) {
    (0..options.each)
        .map(|_| {
            let plugin = first_byte(&options.plugin, &options.conf);
            let empty = first_byte(empty, &options.conf);
            (plugin.as_micros(), empty.as_micros())
        })
        .unzip()
}

/// What a round of ADDs at once took, in microseconds, and how often the checkpoint was written.
struct Burst {
    plugin: u128,
    netlink: u128,
    writes: f64,
}

/// One round of `each` ADDs at once by each way: wall time from the first start to the last end.
fn at_once(options: &Options, round: usize) -> Burst {
    let name = |turn| round * options.each + turn;
    let pods: Vec<_> = (0..options.each)
        .map(|turn| Sandboxed::make("burst", name(turn)))
        .collect();
    let before = Writes::now();
    let by_plugin = together(&pods, |_, pod| {
        plugin(options, "ADD", pod);
    });
    let writes = before.since().count;
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
            .enter(netns)
            .expect("it can be entered")
            .expect("it is another");
        host.wire(&mut side, &request, &lease)
            .expect("the pod is wired")
            .commit();
    });
    for (turn, pod) in bare.iter().enumerate() {
        let address = format!("10.99.7.{turn}");
        ip(&["rule", "delete", "to", &address, "priority", "512"]);
        ip(&["link", "delete", &host_veth("eni", "bench", &pod.name)]);
    }
    Burst {
        plugin: by_plugin.as_micros(),
        netlink: by_netlink.as_micros(),
        writes,
    }
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
    let serial = match options.serial {
        0 => Serial::default(),
        _ => serial(&options),
    };
    let (start_plugin, start_empty) = match &options.empty {
        Some(empty) => starts(&options, empty),
        None => Default::default(),
    };
    let bursts: Vec<Burst> = (0..options.burst)
        .map(|round| at_once(&options, round))
        .collect();
    println!(
        "{}",
        serde_json::json!({
            "plugin": serial.plugin,
            "netlink": serial.netlink,
            "dels": serial.dels,
            "write_ms": serial.write_ms,
            "resident": serial.resident,
            "start_plugin": start_plugin,
            "start_empty": start_empty,
            "burst_plugin": bursts.iter().map(|one| one.plugin).collect::<Vec<_>>(),
            "burst_netlink": bursts.iter().map(|one| one.netlink).collect::<Vec<_>>(),
            "burst_writes": bursts.iter().map(|one| one.writes).collect::<Vec<_>>(),
        })
    );
}
