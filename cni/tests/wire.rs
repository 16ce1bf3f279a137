//! The protocol: bytes in, bytes out, exit code. The plugin is the built binary, as a runtime starts it.

#[path = "fixture/ipamd.rs"]
mod ipamd;
#[path = "fixture/node.rs"]
mod node;

use ipamd::Ipamd;
use node::{Ended, Node, run};
use serde_json::{Value, json};

const POOL: &[(&str, i32, i32)] = &[("10.40.1.7", 2, 3)];

#[test]
fn add_answers_in_each_version_byte_for_byte() {
    let node = Node::new();
    for version in ["0.1.0", "0.2.0"] {
        let _ipamd = Ipamd::start(POOL);
        let sandbox = node.sandbox(&format!("cni-{version}"), "web-0");
        let ended = node.command("ADD", &sandbox, &node.config(version));
        let expected =
            format!(r#"{{"cniVersion":"{version}","ip4":{{"ip":"10.40.1.7/32"}},"dns":{{}}}}"#);
        assert_eq!((ended.stdout.as_str(), ended.code), (expected.as_str(), 0));
        let ended = node.command("DEL", &sandbox, &node.config(version));
        assert_eq!((ended.stdout.as_str(), ended.code), ("", 0));
        run("ip", &["netns", "delete", &sandbox.id]);
    }
    for (version, ip_version) in [
        ("0.3.0", r#""version":"4","#),
        ("0.3.1", r#""version":"4","#),
        ("0.4.0", r#""version":"4","#),
        ("1.0.0", ""),
        ("1.1.0", ""),
    ] {
        let _ipamd = Ipamd::start(POOL);
        let sandbox = node.sandbox(&format!("cni-{version}"), "web-0");
        let ended = node.command("ADD", &sandbox, &node.config(version));
        let expected = format!(
            r#"{{"cniVersion":"{version}","interfaces":[{{"name":"eni0d7763386da"}},{{"name":"eth0","mac":"3","sandbox":"/var/run/netns/cni-{version}"}},{{"name":"dummy0d7763386da","mac":"0","sandbox":"2"}}],"ips":[{{{ip_version}"interface":1,"address":"10.40.1.7/32"}}],"dns":{{}}}}"#
        );
        assert_eq!((ended.stdout.as_str(), ended.code), (expected.as_str(), 0));
        assert_eq!(ended.stderr, "");
        let mut config = node.config(version);
        config["prevResult"] = serde_json::from_str(&expected).unwrap();
        let ended = node.command("DEL", &sandbox, &config);
        assert_eq!((ended.stdout.as_str(), ended.code), ("", 0));
        run("ip", &["netns", "delete", &sandbox.id]);
    }
}

#[test]
fn version_is_answered_whatever_is_on_stdin_and_without_any_other_variable() {
    let node = Node::new();
    let supported =
        r#""supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]"#;
    for (stdin, asked) in [
        (r#"{"cniVersion":"1.1.0"}"#, "1.1.0"),
        (r#"{"cniVersion":"0.4.0"}"#, "0.4.0"),
        (r#"{"cniVersion":"9.9.9"}"#, "9.9.9"),
        ("", "1.1.0"),
        ("not json", "1.1.0"),
    ] {
        let ended = node.plugin(&[("CNI_COMMAND", "VERSION")], stdin);
        let expected = format!(r#"{{"cniVersion":"{asked}",{supported}}}"#);
        assert_eq!((ended.stdout, ended.code), (expected, 0), "{stdin}");
    }
}

#[test]
fn bad_input_is_refused_with_the_right_code_and_nothing_half_done() {
    let node = Node::new();
    let ipamd = Ipamd::start(POOL);
    let sandbox = node.sandbox("cni-1", "web-0");
    let args = sandbox.args();
    let before = (node.state(), sandbox.state());
    // The plugin with one variable changed (or unset), or another configuration.
    let with = |key: &str, value: &str| {
        let mut variables = sandbox.variables("ADD", &args);
        for variable in &mut variables {
            if variable.0 == key {
                variable.1 = value;
            }
        }
        node.plugin(&variables, &node.config("1.1.0").to_string())
    };
    let configured = |stdin: &str| node.plugin(&sandbox.variables("ADD", &args), stdin);
    let mut bad_mtu = node.config("1.1.0");
    bad_mtu["mtu"] = json!("64");
    let mut old = node.config("1.1.0");
    old.as_object_mut().unwrap().remove("cniVersion");
    let empty = node.folder.path().join("cni-2");
    std::fs::write(&empty, "").unwrap();
    let cases: [(&str, Ended, i64, &str); 16] = [
        (
            "malformed configuration",
            configured("{\"cniVersion\":"),
            6,
            "EOF while parsing",
        ),
        ("empty stdin", configured(""), 6, "EOF while parsing"),
        (
            "a list for a configuration",
            configured(r#"["1.1.0"]"#),
            6,
            "a list, not an object",
        ),
        (
            "a number for a name",
            configured(r#"{"cniVersion":"1.1.0","name":7}"#),
            6,
            "expected a string",
        ),
        (
            "unknown version",
            configured(&node.config("2.0.0").to_string()),
            1,
            "\"2.0.0\"",
        ),
        (
            "no version",
            configured(&old.to_string()),
            1,
            "has no cniVersion",
        ),
        (
            "no name",
            configured(r#"{"cniVersion":"1.1.0"}"#),
            7,
            "no name",
        ),
        (
            "mtu out of bounds",
            configured(&bad_mtu.to_string()),
            7,
            "576 to 9001",
        ),
        (
            "missing CNI_ARGS",
            with("CNI_ARGS", ""),
            4,
            "CNI_ARGS has no K8S_POD_NAMESPACE",
        ),
        (
            "missing CNI_COMMAND",
            with("CNI_COMMAND", ""),
            4,
            "CNI_COMMAND is not set",
        ),
        (
            "unknown CNI_COMMAND",
            with("CNI_COMMAND", "UPDATE"),
            4,
            "\"UPDATE\"",
        ),
        (
            "missing CNI_CONTAINERID",
            with("CNI_CONTAINERID", ""),
            4,
            "CNI_CONTAINERID is not set",
        ),
        (
            "a path for CNI_IFNAME",
            with("CNI_IFNAME", "../eth0"),
            4,
            "cannot be the name of a link",
        ),
        (
            "netns gone",
            with("CNI_NETNS", "/var/run/netns/cni-9"),
            3,
            "No such file or directory",
        ),
        (
            "netns unmounted",
            with("CNI_NETNS", empty.to_str().unwrap()),
            3,
            "not a network namespace",
        ),
        (
            "the host's netns",
            with("CNI_NETNS", "/proc/self/ns/net"),
            4,
            "the host's own network",
        ),
    ];
    for (name, ended, code, says) in cases {
        let (found, _, details) = ended.error();
        assert_eq!(found, code, "{name}: {ended:?}");
        assert!(details.contains(says), "{name}: {ended:?}");
        assert_eq!(ended.json()["cniVersion"], "1.1.0", "{name}");
    }
    let state = ipamd.state.lock().unwrap();
    assert!(
        state.adds.is_empty() && state.dels.is_empty(),
        "ipamd was asked"
    );
    assert_eq!((node.state(), sandbox.state()), before);
}

#[test]
fn an_empty_pools_cause_reaches_the_runtime() {
    let node = Node::new();
    let ipamd = Ipamd::start(&[]);
    let cause = "the pool is empty: subnet subnet-1 has no free addresses";
    ipamd.state.lock().unwrap().refusal = Some(tonic::Status::resource_exhausted(cause));
    let sandbox = node.sandbox("cni-1", "web-0");
    let before = (node.state(), sandbox.state());
    let ended = node.command("ADD", &sandbox, &node.config("0.4.0"));
    assert_eq!(
        ended.stdout,
        format!(
            r#"{{"cniVersion":"0.4.0","code":11,"msg":"no address for pod default/web-0","details":"{cause}"}}"#
        )
    );
    assert_eq!(ended.code, 1);
    assert_eq!((node.state(), sandbox.state()), before);
    assert!(node.log().contains(cause), "{}", node.log());
}

#[test]
fn without_ipamd_add_says_so_and_what_to_look_at() {
    let node = Node::new();
    let sandbox = node.sandbox("cni-1", "web-0");
    let (code, _, details) = node.add(&sandbox).error();
    assert_eq!(code, 11);
    assert!(
        details.contains("/var/run/aws-node/ipamd.sock"),
        "{details}"
    );
    assert!(
        details.contains("is the ipamd pod on this node running?"),
        "{details}"
    );
}

#[test]
fn an_answer_that_cannot_be_used_is_given_back() {
    let node = Node::new();
    let ipamd = Ipamd::start(POOL);
    ipamd.state.lock().unwrap().change = Some(|reply| reply.pod_vlan_id = 7);
    let sandbox = node.sandbox("cni-1", "web-0");
    let (code, _, details) = node.add(&sandbox).error();
    assert!(code == 2 && details.contains("VLAN 7"), "{code} {details}");
    let state = ipamd.state.lock().unwrap();
    assert_eq!(state.dels[0].reason, "SetupNSFailed");
    assert!(state.leases.is_empty());
}

#[test]
fn ipamd_is_told_all_that_awss_daemon_wants_to_know() {
    let node = Node::new();
    let ipamd = Ipamd::start(POOL);
    let sandbox = node.sandbox("cni-1", "web-0");
    node.add(&sandbox).ok();
    node.del(&sandbox).ok();
    let state = ipamd.state.lock().unwrap();
    let add = &state.adds[0];
    assert_eq!(add.k8s_pod_namespace, "default");
    assert_eq!(add.k8s_pod_name, "web-0");
    assert_eq!(add.k8s_pod_infra_container_id, "cni-1");
    assert_eq!(add.netns, "/var/run/netns/cni-1");
    assert_eq!(add.client_version, "");
    let del = &state.dels[0];
    assert_eq!(
        (del.reason.as_str(), del.k8s_pod_uid.as_str()),
        ("PodDeleted", "uid-1")
    );
    for (network, interface, container) in [
        (&add.network_name, &add.if_name, &add.container_id),
        (&del.network_name, &del.if_name, &del.container_id),
    ] {
        assert_eq!(
            (network.as_str(), interface.as_str(), container.as_str()),
            ("aws-cni", "eth0", "cni-1")
        );
    }
}

#[test]
fn status_is_whether_ipamd_can_give_addresses() {
    let node = Node::new();
    let status = || {
        let variables = [("CNI_COMMAND", "STATUS"), ("CNI_PATH", "/opt/cni/bin")];
        node.plugin(&variables, &node.config("1.1.0").to_string())
    };
    let (code, _, details) = status().error();
    assert_eq!(code, 50);
    assert!(details.contains("cannot be reached"), "{details}");
    let ipamd = Ipamd::start(&[]);
    assert_eq!(status().ok(), "");
    ipamd.state.lock().unwrap().serving = false;
    let (code, _, details) = status().error();
    assert_eq!(
        (code, details.as_str()),
        (50, "ipamd is not ready: NOT_SERVING")
    );
}

#[test]
fn gc_frees_what_the_runtime_no_longer_lists_and_nothing_else() {
    let node = Node::new();
    let ipamd = Ipamd::start(&[("10.40.1.7", 2, 3), ("10.40.1.8", 0, 254)]);
    let (gone, stays) = (
        node.sandbox("cni-1", "web-0"),
        node.sandbox("cni-2", "nginx"),
    );
    node.add(&gone).ok();
    node.add(&stays).ok();
    let all = node.state();
    let gc = |valid: Value| {
        let mut config = node.config("1.1.0");
        config["cni.dev/valid-attachments"] = valid;
        let variables = [("CNI_COMMAND", "GC"), ("CNI_PATH", "/opt/cni/bin")];
        node.plugin(&variables, &config.to_string())
    };
    let both = json!([
        {"containerID": "cni-1", "ifname": "eth0"}, {"containerID": "cni-2", "ifname": "eth0"},
    ]);
    assert_eq!(gc(both).ok(), "");
    assert_eq!(node.state(), all);
    assert_eq!(
        gc(json!([{"containerID": "cni-2", "ifname": "eth0"}])).ok(),
        ""
    );
    let left: Vec<String> = ipamd.state.lock().unwrap().leases.keys().cloned().collect();
    assert_eq!(left, ["cni-2"]);
    let rules = run("ip", &["rule", "show"]);
    assert!(
        !rules.contains("10.40.1.7") && rules.contains("10.40.1.8"),
        "{rules}"
    );
    assert_eq!(run("ip", &["route", "show", "10.40.1.7"]), "");
    // One that is not what it says takes nothing.
    assert_eq!(gc(Value::Null).error().0, 7);
    assert_eq!(ipamd.state.lock().unwrap().leases.len(), 1);
}

#[test]
fn gc_with_a_daemon_that_cannot_collect_is_no_error() {
    let node = Node::new();
    let ipamd = Ipamd::start(POOL);
    ipamd.state.lock().unwrap().refusal = Some(tonic::Status::unimplemented(""));
    let mut config = node.config("1.1.0");
    config["cni.dev/valid-attachments"] = json!([]);
    let variables = [("CNI_COMMAND", "GC"), ("CNI_PATH", "/opt/cni/bin")];
    assert_eq!(node.plugin(&variables, &config.to_string()).ok(), "");
    assert!(node.log().contains("cannot collect"), "{}", node.log());
    drop(ipamd);
    let (code, _, details) = node.plugin(&variables, &config.to_string()).error();
    assert!(
        code == 11 && details.contains("cannot be reached"),
        "{code} {details}"
    );
}

#[test]
fn a_log_that_cannot_be_written_does_not_cost_a_pod() {
    let node = Node::new();
    let _ipamd = Ipamd::start(POOL);
    let sandbox = node.sandbox("cni-1", "web-0");
    let mut config = node.config("1.1.0");
    config["pluginLogFile"] = json!("/proc/no/such/folder/plugin.log");
    let ended = node.command("ADD", &sandbox, &config);
    assert!(ended.stderr.contains("/proc/no/such/folder"), "{ended:?}");
    ended.ok();
}
