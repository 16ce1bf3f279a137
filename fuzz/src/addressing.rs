//! What runtimes, AWS's agents and others leave for the addressing half.

use std::path::Path;

use selvage_cni::request::{self, Environment, Request};
use selvage_cni::spec::{Code, PrevResult, Version};
use selvage_cni::teardown;
use selvage_ipamd::checkpoint::Checkpoint;
use selvage_ipamd::config::{Args, Config};
use selvage_ipamd::conflist;
use serde_json::Value;

use crate::feed::Feed;

const COMMANDS: [&str; 7] = ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", ""];

/// A request to the plugin: the command, then the variables with NULs between, then stdin.
pub(crate) fn cni(bytes: &[u8]) {
    let mut feed = Feed::new(bytes);
    let command = feed.text(&COMMANDS);
    let rest = feed.rest();
    let mut parts = rest.splitn(5, |byte| *byte == 0);
    let mut text = || String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let environment = Environment {
        command,
        container_id: text(),
        netns: text(),
        if_name: text(),
        args: text(),
    };
    let stdin = parts.next().unwrap_or_default();
    let parsed = request::parse(&environment, stdin);
    match parsed.request {
        Ok(Request::Add(add)) => {
            // 15: the kernel's limit on the names of links; what is not in it cannot be a part of a rule's text.
            for name in [&add.host_veth, &add.sandbox.if_name] {
                assert!((1..=15).contains(&name.len()), "{name:?}");
                assert!(!name.contains(['/', ' ', '\n', '\0']), "{name:?}");
            }
            assert!((576..=9001).contains(&add.mtu), "mtu {}", add.mtu);
            assert!(!add.pod.name.is_empty() && !add.pod.namespace.is_empty());
            assert!(!add.sandbox.netns.is_empty() && !add.sandbox.container_id.is_empty());
        }
        Ok(Request::Del(del)) => {
            assert!(!del.sandbox.container_id.is_empty());
            // What an earlier result says keeps no pod from being deleted, whatever it is.
            let told = del.prev_result.as_ref().and_then(teardown::told);
            if let Some(told) = told {
                assert!(!told.leases.is_empty(), "a result of ours has an address");
            }
        }
        Ok(Request::Check(check)) => {
            assert!(!check.sandbox.netns.is_empty());
        }
        Ok(Request::Gc(gc)) => {
            assert!(!gc.network.is_empty());
            // Of what it does not read it may be that not even the text is one.
            if let Ok(json) = serde_json::from_slice::<Value>(stdin) {
                let listed = &json["cni.dev/valid-attachments"];
                let count = listed.as_array().map(Vec::len);
                assert_eq!(count, Some(gc.valid.len()), "a sandbox is lost");
            }
        }
        Ok(Request::Status | Request::Version(_)) => {}
        Err(error) => {
            assert!(!error.msg.is_empty() && !error.details.is_empty());
            let json: Value =
                serde_json::from_str(&error.to_json(parsed.version)).expect("an error is JSON");
            assert_eq!(json["cniVersion"], parsed.version.as_str());
            assert_eq!(json["code"], error.code as u32);
            if error.code != Code::IncompatibleVersion {
                assert!(Version::ALL.contains(&parsed.version));
            }
        }
    }
}

/// An earlier result, of any plugin.
pub(crate) fn result(bytes: &[u8]) {
    let Ok(json) = serde_json::from_slice::<Value>(bytes) else {
        return;
    };
    let Some(result) = PrevResult::read(json) else {
        return;
    };
    if let Some(told) = teardown::told(&result) {
        assert_eq!(told.leases.len(), result.ips.len(), "an address is lost");
        let names: Vec<_> = result.interfaces.iter().map(|one| &one.name).collect();
        assert!(names.contains(&&told.host_veth) && names.contains(&&told.if_name));
    }
}

/// A checkpoint: what is read is written, and read again the same.
pub(crate) fn checkpoint(bytes: &[u8]) {
    let path = Path::new("/run/ipam.json");
    match Checkpoint::parse(bytes, path) {
        Ok(mut read) => {
            let written = read.leases_json().expect("leases are JSON");
            // What rests has a file of its own by now.
            read.cooling.clear();
            let again = Checkpoint::parse(&written, path).expect("it is ours");
            assert_eq!(again, read);
        }
        Err(error) => assert!(error.to_string().contains("/run/ipam.json")),
    }
}

/// A conflist that others have written or added to: which plugins the node has, then the text.
pub(crate) fn conflist(bytes: &[u8]) {
    let mut feed = Feed::new(bytes);
    let decisions = feed.byte();
    let args = Args {
        enable_bandwidth_plugin: Some((decisions & 1 != 0).to_string()),
        disable_pod_v6: Some((decisions & 2 != 0).to_string()),
        ..Args::default()
    };
    let config = Config::try_from(&args).expect("these are settings");
    let has = |_: &str| decisions & 4 != 0;
    let there = feed.rest();
    let spoken = || Some(vec!["0.4.0".to_owned(), "1.0.0".to_owned()]);
    let merged = conflist::merge(&config, Some(there), has, |_| spoken());
    let list: Value = serde_json::from_str(&merged.text).expect("a conflist is JSON");
    let plugins = list["plugins"].as_array().expect("it has plugins");
    assert_eq!(plugins[0]["type"], "aws-cni");
    assert!(
        plugins.iter().skip(1).all(|one| one["type"] != "aws-cni"),
        "our plugin twice"
    );
    // What is right is not written again.
    let again = conflist::merge(&config, Some(merged.text.as_bytes()), has, |_| {
        panic!("nothing has changed")
    });
    assert_eq!(again, merged);
}
