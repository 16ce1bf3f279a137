//! Callers that overlap, repeat themselves, give up half-way or speak nonsense.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use selvage_ipamd_core::fake::Ec2;
use selvage_ipamd_rpc::ipam::AddNetworkRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use crate::node::{Node, until};

fn add(pod: &str, container: &str) -> AddNetworkRequest {
    AddNetworkRequest {
        k8s_pod_namespace: "default".into(),
        k8s_pod_name: pod.into(),
        if_name: "eth0".into(),
        network_name: "aws-cni".into(),
        container_id: container.into(),
        ..AddNetworkRequest::default()
    }
}

#[tokio::test(start_paused = true)]
async fn twenty_adds_of_one_sandbox_at_once_are_one_lease() {
    let node = Node::new(Ec2::with_limits(3, 10));
    let daemon = node.start_ready().await;
    let asked = (0..20).map(|_| daemon.client.add_network(add("web", "one")));
    let mut addresses = BTreeSet::new();
    for reply in futures::future::join_all(asked).await {
        addresses.insert(reply.unwrap().ip_allocation_metadata[0].ipv4_addr.clone());
    }
    assert_eq!(addresses.len(), 1);
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn overlapping_sandboxes_of_one_pod_have_an_address_each_and_end_each_by_itself() {
    let node = Node::new(Ec2::with_limits(3, 10));
    let daemon = node.start_ready().await;
    let sandboxes = ["one", "two", "three"];
    let asked = sandboxes.map(|sandbox| daemon.client.add_network(add("web", sandbox)));
    let replies = futures::future::join_all(asked).await;
    let addresses: BTreeSet<String> = replies
        .into_iter()
        .map(|reply| reply.unwrap().ip_allocation_metadata[0].ipv4_addr.clone())
        .collect();
    assert_eq!(addresses.len(), 3);
    // The oldest is cleaned up late, when the newest runs: it must not take the newest one's address along.
    let mut left = addresses.clone();
    for sandbox in &sandboxes[..2] {
        let gone = daemon.del_sandbox(sandbox).await.unwrap();
        left.remove(&gone.ip_allocation_metadata[0].ipv4_addr);
    }
    let again = daemon
        .client
        .add_network(add("web", "three"))
        .await
        .unwrap();
    let kept = &again.ip_allocation_metadata[0].ipv4_addr;
    assert!(left.contains(kept) && left.len() == 1, "{left:?} {kept}");
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_is_deleted_while_it_waits_is_told_so_and_gets_nothing() {
    let mut node = Node::new(Ec2::with_limits(1, 2));
    node.args.ip_cooldown_period = Some("20".into());
    node.args.add_wait_seconds = Some("60".into());
    let daemon = node.start_ready().await;
    daemon.add_ok("first").await;
    daemon.del_ok("first").await;
    let client = daemon.client.clone();
    let waiting = tokio::spawn(async move { client.add_network(add("web", "one")).await });
    tokio::time::sleep(Duration::from_secs(5)).await;
    let unknown = daemon.del_sandbox("one").await.unwrap_err();
    assert!(unknown.message().contains("unknown pod"), "{unknown}");
    let refused = waiting.await.unwrap().unwrap_err();
    assert!(
        refused
            .message()
            .contains("deleted while it was being added"),
        "{refused}"
    );
    tokio::time::sleep(Duration::from_secs(20)).await;
    daemon.add_ok("next").await;
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_add_and_its_del_at_once_end_with_the_address_free() {
    for round in 0..20 {
        let mut node = Node::new(Ec2::with_limits(1, 2));
        node.args.ip_cooldown_period = Some("0".into());
        let daemon = node.start_ready().await;
        let client = daemon.client.clone();
        let (added, deleted) = tokio::join!(
            client.add_network(add("web", "one")),
            daemon.del_sandbox("one")
        );
        // Whichever came first: an ADD that was answered well and has not been deleted holds the only address.
        if deleted.is_err() {
            added.unwrap();
            daemon.del_sandbox("one").await.unwrap();
        }
        daemon.add_ok("next").await;
        daemon.stop().await;
        assert!(round < 20);
    }
}

#[tokio::test(start_paused = true)]
async fn nonsense_on_the_socket_keeps_nobody_from_an_address() {
    let node = Node::new(Ec2::small());
    let daemon = node.start_ready().await;
    let mut idle = Vec::new();
    for nonsense in [
        &b""[..],
        b"GET / HTTP/1.1\r\n\r\n",
        &[0xff; 4096],
        // HTTP/2 as it begins, then a frame that says it is sixteen million bytes long.
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x00\x00\x00\x00\x00\x01",
    ] {
        let mut stream = UnixStream::connect(node.path("run/ipamd.sock"))
            .await
            .unwrap();
        stream.write_all(nonsense).await.unwrap();
        idle.push(stream);
    }
    daemon.add_ok("web").await;
    let (_, others) = idle.split_first_mut().unwrap();
    for stream in others {
        let mut answer = Vec::new();
        // Told off or hung up on, but not left waiting.
        let _ = stream.read_to_end(&mut answer).await;
    }
    daemon.del_ok("web").await;
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_lacks_what_names_a_sandbox_is_refused_by_the_fields_name() {
    let node = Node::new(Ec2::small());
    let daemon = node.start_ready().await;
    let mut nameless = add("web", "");
    let error = daemon
        .client
        .add_network(nameless.clone())
        .await
        .unwrap_err();
    assert!(error.message().contains("ContainerID is empty"), "{error}");
    nameless.container_id = "one".into();
    nameless.network_name.clear();
    let error = daemon.client.add_network(nameless).await.unwrap_err();
    assert!(error.message().contains("NetworkName is empty"), "{error}");
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_socket_path_that_is_no_socket_is_refused_and_left_alone() {
    for (make, words) in [
        (
            (|at: &std::path::Path| symlink("/etc/passwd", at).unwrap()) as fn(&std::path::Path),
            "a symbolic link",
        ),
        (
            |at| symlink("/nowhere/else.sock", at).unwrap(),
            "a symbolic link",
        ),
        (|at| fs::write(at, "precious").unwrap(), "a file"),
        (|at| fs::create_dir(at).unwrap(), "a directory"),
    ] {
        let node = Node::new(Ec2::small());
        fs::create_dir(node.path("run")).unwrap();
        let path = node.path("run/ipamd.sock");
        make(&path);
        let before = fs::symlink_metadata(&path).unwrap();
        let ended = node.run(CancellationToken::new()).await.unwrap();
        let error = ended.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        assert!(error.contains("ipamd.sock"), "{error}");
        let after = fs::symlink_metadata(&path).unwrap();
        assert_eq!(before.modified().unwrap(), after.modified().unwrap());
        assert_eq!(before.file_type(), after.file_type());
    }
    // A socket that nobody listens on is what a daemon that was killed leaves.
    let node = Node::new(Ec2::small());
    fs::create_dir(node.path("run")).unwrap();
    drop(std::os::unix::net::UnixListener::bind(node.path("run/ipamd.sock")).unwrap());
    let daemon = node.start_ready().await;
    until("it serves", || node.conflist().exists()).await;
    daemon.stop().await;
}
