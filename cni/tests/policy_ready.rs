//! ADD and the enforcement half: the wait, its bound, what is left of it. The plugin is the built binary; the
//! files are the test's, as a policy agent writes them.

#[path = "fixture/ipamd.rs"]
mod ipamd;
#[path = "fixture/node.rs"]
mod node;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ipamd::Ipamd;
use node::{Node, Sandbox, finish};
use serde_json::{Value, json};

/// On the second ENI, so that the pod has both rules.
const POOL: &[(&str, i32, i32)] = &[("10.40.1.8", 2, 3)];
const VETH: &str = "eni0d7763386da";

/// Longer than anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);

fn directory(node: &Node) -> PathBuf {
    node.folder.path().join("endpoint-status")
}

fn file(node: &Node) -> PathBuf {
    directory(node).join("k8s default%2Fweb-0 eth0")
}

fn waiting_config(node: &Node, seconds: u64) -> Value {
    let mut config = node.config("1.1.0");
    config["policyReady"] = json!({"directory": directory(node), "timeoutSeconds": seconds});
    config
}

/// As the policy agent does: beside it, then renamed.
fn write(path: &Path, content: &Value) {
    let temporary = path.with_file_name(".tmp");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&temporary, content.to_string()).unwrap();
    fs::rename(&temporary, path).unwrap();
}

fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {DEADLINE:?}");
        std::thread::yield_now();
    }
}

fn is_wired(sandbox: &Sandbox) -> bool {
    node::run("ip", &["rule", "show"]).contains("10.40.1.8") && sandbox.state().contains("eth0")
}

/// The sandbox's variables, with a UID as the API server gives them.
fn add_with_uid(node: &Node, sandbox: &Sandbox, uid: &str, config: &Value) -> node::Ended {
    let args = sandbox.args().replace("uid-1", uid);
    node.plugin(&sandbox.variables("ADD", &args), &config.to_string())
}

#[test]
fn an_add_answers_once_the_pods_rules_are_in_force_and_not_before() {
    for made_before in [true, false] {
        let node = Node::new();
        let _ipamd = Ipamd::start(POOL);
        let sandbox = node.sandbox("cni-1", "web-0");
        if made_before {
            fs::create_dir(directory(&node)).unwrap();
        }
        let mut child = node.start("ADD", &sandbox, &waiting_config(&node, 60));
        eventually("the pod is wired", || is_wired(&sandbox));
        // Another pod's file, and what is being written, say nothing of this one.
        write(
            &directory(&node).join("k8s default%2Fweb-1 eth0"),
            &json!({}),
        );
        let unrelated = Instant::now() + Duration::from_millis(300);
        while Instant::now() < unrelated {
            assert!(child.try_wait().unwrap().is_none(), "it did not wait");
        }
        let told = Instant::now();
        write(&file(&node), &json!({"ifaceName": VETH}));
        finish(child).ok();
        assert!(told.elapsed() < Duration::from_secs(10), "{made_before}");
        node.del(&sandbox).ok();
        node::run("ip", &["netns", "delete", "cni-1"]);
    }
}

#[test]
fn an_add_whose_pod_is_enforced_already_waits_for_nothing() {
    let node = Node::new();
    let _ipamd = Ipamd::start(POOL);
    let sandbox = node.sandbox("cni-1", "web-0");
    write(&file(&node), &json!({"ifaceName": VETH, "podUID": "uid-1"}));
    let start = Instant::now();
    node.command("ADD", &sandbox, &waiting_config(&node, 60))
        .ok();
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_pod_that_nobody_enforces_for_gets_an_error_that_names_it_and_the_file_and_leaves_nothing() {
    let node = Node::new();
    let ipamd = Ipamd::start(POOL);
    let sandbox = node.sandbox("cni-1", "web-0");
    fs::create_dir(directory(&node)).unwrap();
    let before = (node.state(), sandbox.state());
    let start = Instant::now();
    let ended = node.command("ADD", &sandbox, &waiting_config(&node, 1));
    let took = start.elapsed();
    assert!(
        took >= Duration::from_secs(1) && took < DEADLINE,
        "{took:?}"
    );
    let (code, msg, details) = ended.error();
    assert_eq!(code, 11, "{details}");
    assert_eq!(msg, "no policy in force for pod default/web-0");
    for says in [
        file(&node).to_str().unwrap(),
        "waited 1s",
        "it does not exist",
        "app.kubernetes.io/name=selvage-policy",
    ] {
        assert!(details.contains(says), "{says}: {details}");
    }
    assert_eq!((node.state(), sandbox.state()), before);
    let state = ipamd.state.lock().unwrap();
    assert!(state.leases.is_empty());
    assert_eq!(state.dels[0].reason, "SetupNSFailed");
}

#[test]
fn the_file_of_a_pod_that_was_deleted_does_not_let_its_successor_in() {
    const OLD: &str = "0c1d2e3f-6b1d-4f0e-9a57-2b7b3f1f4b11";
    const NEW: &str = "8d5b1a63-6b1d-4f0e-9a57-2b7b3f1f4b11";
    let node = Node::new();
    let _ipamd = Ipamd::start(&[POOL[0], POOL[0]]);
    let sandbox = node.sandbox("cni-1", "web-0");
    write(&file(&node), &json!({"ifaceName": VETH, "podUID": OLD}));
    let config = waiting_config(&node, 1);
    let (code, _, details) = add_with_uid(&node, &sandbox, NEW, &config).error();
    assert!(code == 11 && details.contains(OLD), "{code} {details}");
    write(&file(&node), &json!({"ifaceName": VETH, "podUID": NEW}));
    add_with_uid(&node, &sandbox, NEW, &config).ok();
}

#[test]
fn del_check_and_version_neither_wait_nor_mind_what_the_key_says() {
    let node = Node::new();
    let keys = [
        json!({"directory": directory(&node), "timeoutSeconds": 60}),
        json!({"directory": 7}),
        json!("on"),
        json!(null),
    ];
    let _ipamd = Ipamd::start(&POOL.repeat(keys.len()));
    for (number, key) in keys.into_iter().enumerate() {
        let sandbox = node.sandbox(&format!("cni-{number}"), "web-0");
        let result = node.add(&sandbox).ok();
        let mut config = node.config("1.1.0");
        config["policyReady"] = key.clone();
        config["prevResult"] = serde_json::from_str(&result).unwrap();
        let start = Instant::now();
        assert_eq!(node.command("CHECK", &sandbox, &config).ok(), "", "{key}");
        node.command("VERSION", &sandbox, &config).ok();
        node.command("STATUS", &sandbox, &config).ok();
        node.command("DEL", &sandbox, &config).ok();
        assert!(start.elapsed() < DEADLINE, "{key}");
    }
}
