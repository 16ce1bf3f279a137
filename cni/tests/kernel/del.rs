//! What DEL removes, whoever made it, with the daemon and without.

use super::*;

/// A pod as aws-node's plugin leaves it behind, with what it told the runtime. Its DEL is ours after the swap.
#[test]
fn a_pod_that_aws_node_made_is_deleted_with_the_daemon_and_without() {
    let node = Node::new();
    // (table that it told, table of its rule, device): before 1.20 the primary interface's was told as 1.
    for (told, table, device) in [("3", Some("3"), "2"), ("254", None, "0"), ("1", None, "0")] {
        for with_daemon in [true, false] {
            let sandbox = node.sandbox("cni-1", "web-0");
            run(
                "ip",
                &[
                    "link", "add", VETH, "type", "veth", "peer", "name", "eth0", "netns", "cni-1",
                ],
            );
            run("ip", &["link", "set", VETH, "up"]);
            sandbox.ip(&["link", "set", "eth0", "up"]);
            run(
                "ip",
                &["route", "add", SECOND.0, "dev", VETH, "scope", "link"],
            );
            run(
                "ip",
                &[
                    "rule", "add", "to", SECOND.0, "priority", "512", "table", "main",
                ],
            );
            if let Some(table) = table {
                run(
                    "ip",
                    &[
                        "rule", "add", "from", SECOND.0, "priority", "1536", "table", table,
                    ],
                );
            }
            let result = format!(
                r#"{{"cniVersion":"0.4.0","interfaces":[{{"name":"{VETH}"}},{{"name":"eth0","mac":"{told}","sandbox":"{}"}},{{"name":"dummy0d7763386da","mac":"0","sandbox":"{device}"}}],"ips":[{{"version":"4","interface":1,"address":"{}/32"}}],"dns":{{}}}}"#,
                sandbox.netns.display(),
                SECOND.0
            );
            let ipamd = with_daemon.then(|| {
                let ipamd = Ipamd::start(&[]);
                let metadata = selvage_ipamd_rpc::ipam::IpAllocationMetadata {
                    ipv4_addr: SECOND.0.into(),
                    route_table_id: told.parse().unwrap(),
                    device_number: device.parse().unwrap(),
                    ..Default::default()
                };
                ipamd
                    .state
                    .lock()
                    .unwrap()
                    .leases
                    .insert("cni-1".into(), metadata);
                ipamd
            });
            del(&node, &sandbox, Some(&result), true).ok();
            assert_eq!(
                (rules().len(), routes().len()),
                (0, 0),
                "table {told}, daemon {with_daemon}"
            );
            drop(ipamd);
            // A namespace takes its links along in its own time.
            run("ip", &["link", "delete", VETH]);
            run("ip", &["netns", "delete", "cni-1"]);
            del(&node, &sandbox, None, false).ok();
        }
    }
}

#[test]
fn a_del_does_not_wait_for_a_daemon_that_hangs() {
    let node = Node::new();
    let ipamd = Ipamd::start(&[SECOND]);
    let sandbox = node.sandbox("cni-1", "web-0");
    let result = node.add(&sandbox).ok();
    drop(ipamd);
    // Accepts, and never answers.
    let _hangs = std::os::unix::net::UnixListener::bind(selvage_ipamd_rpc::SOCKET_PATH).unwrap();
    let start = std::time::Instant::now();
    del(&node, &sandbox, Some(&result), true).ok();
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    assert_eq!((rules().len(), routes().len()), (0, 0));
}

#[test]
fn del_removes_this_pods_rules_and_route_only_and_may_come_again() {
    let node = router();
    let _ipamd = Ipamd::start(&[FIRST, SECOND]);
    let (one, two) = (
        node.sandbox("cni-1", "web-0"),
        node.sandbox("cni-2", "nginx"),
    );
    node.add(&one).ok();
    node.add(&two).ok();
    for _ in 0..2 {
        assert_eq!(node.del(&two).ok(), "");
        assert_eq!(rules(), ["512: from all to 10.40.1.7 lookup main"]);
        assert_eq!(routes(), [format!("10.40.1.7 dev {VETH} scope link")]);
    }
    let inside = listen(&one, FIRST.0);
    assert!(
        talk(inside.local_addr().unwrap()),
        "the other pod still talks"
    );
}

#[test]
fn del_works_with_an_empty_netns_and_after_the_namespace_has_gone() {
    let node = Node::new();
    let _ipamd = Ipamd::start(&[SECOND]);
    let sandbox = node.sandbox("cni-1", "web-0");
    node.add(&sandbox).ok();
    run("ip", &["netns", "delete", "cni-1"]);
    del(&node, &sandbox, None, false).ok();
    assert_eq!(rules(), [""; 0]);
    assert_eq!(routes(), [""; 0]);
    del(&node, &sandbox, None, false).ok();
}

#[test]
fn without_the_daemon_a_del_goes_by_what_add_told() {
    let node = Node::new();
    let ipamd = Ipamd::start(&[SECOND]);
    let sandbox = node.sandbox("cni-1", "web-0");
    let result = node.add(&sandbox).ok();
    drop(ipamd);
    del(&node, &sandbox, Some(&result), true).ok();
    assert_eq!(rules(), [""; 0]);
    assert_eq!(routes(), [""; 0]);
    del(&node, &sandbox, None, false).ok();
}

#[test]
fn a_del_that_was_killed_after_giving_back_is_finished_by_the_next() {
    let node = Node::new();
    let ipamd = Ipamd::start(&[SECOND]);
    let sandbox = node.sandbox("cni-1", "web-0");
    let result = node.add(&sandbox).ok();
    ipamd.state.lock().unwrap().leases.clear();
    del(&node, &sandbox, None, true).ok();
    assert_eq!(
        rules().len(),
        2,
        "without a result there is nothing to go by"
    );
    del(&node, &sandbox, Some(&result), true).ok();
    assert_eq!((rules().len(), routes().len()), (0, 0));
}

#[test]
fn a_daemon_that_refuses_a_del_is_asked_again() {
    let node = Node::new();
    let ipamd = Ipamd::start(&[SECOND]);
    let sandbox = node.sandbox("cni-1", "web-0");
    let result = node.add(&sandbox).ok();
    let refusal = tonic::Status::internal("the checkpoint cannot be written: disk full");
    ipamd.state.lock().unwrap().refusal = Some(refusal);
    let (code, _, details) = del(&node, &sandbox, Some(&result), true).error();
    assert!(
        code == 11 && details.contains("disk full"),
        "{code} {details}"
    );
    assert_eq!(rules().len(), 2, "the lease is still held");
    ipamd.state.lock().unwrap().refusal = None;
    del(&node, &sandbox, Some(&result), true).ok();
    assert_eq!(rules().len(), 0);
}

#[test]
fn without_the_daemon_a_late_del_takes_nothing_from_a_newer_sandbox_of_the_pod() {
    let node = router();
    let ipamd = Ipamd::start(&[FIRST, FIRST, SECOND]);
    let (old, new) = (
        node.sandbox("cni-1", "web-0"),
        node.sandbox("cni-2", "web-0"),
    );
    let result = node.add(&old).ok();
    // The address was given back and leased again, to a sandbox with the same veth name.
    node.del(&old).ok();
    node.add(&new).ok();
    drop(ipamd);
    let inside = listen(&new, FIRST.0);
    for netns in [true, false] {
        del(&node, &old, Some(&result), netns).ok();
        assert_eq!(
            rules(),
            ["512: from all to 10.40.1.7 lookup main"],
            "netns {netns}"
        );
        assert!(talk(inside.local_addr().unwrap()), "netns {netns}");
        heard(&inside);
    }
    // The same when the address went to another pod and the old veth is dead.
    let ipamd = Ipamd::start(&[FIRST]);
    let third = node.sandbox("cni-3", "nginx");
    run("ip", &["link", "delete", VETH]);
    node.add(&third).ok();
    drop(ipamd);
    del(&node, &old, Some(&result), true).ok();
    let inside = listen(&third, FIRST.0);
    assert!(talk(inside.local_addr().unwrap()));
}
