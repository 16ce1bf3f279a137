//! The cloud, the disk and other people at their worst.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use selvage_ipamd_core::cloud::Operation;
use selvage_ipamd_core::fake::{Ec2, Fault};
use tokio::time::Instant;

use crate::node::{Node, until};

/// An ADD on an empty pool, and what it was told.
async fn refusal(node: &Node, used_up: usize) -> String {
    let daemon = node.start_ready().await;
    for n in 0..used_up {
        daemon.add_ok(&format!("pod-{n}")).await;
    }
    tokio::time::sleep(Duration::from_secs(20)).await;
    let error = daemon.add("one-too-many").await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::ResourceExhausted);
    daemon.stop().await;
    error.message().to_owned()
}

#[tokio::test(start_paused = true)]
async fn a_full_instance_is_named_as_the_cause() {
    let words = refusal(&Node::new(Ec2::with_limits(2, 3)), 4).await;
    assert!(
        words.contains("2 interfaces with 2 pod addresses"),
        "{words}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_exhausted_subnet_is_named_as_the_cause() {
    let node = Node::new(Ec2::small());
    node.ec2.set_free_left(Some(2));
    let words = refusal(&node, 2).await;
    assert!(words.contains("subnet-1 has no free addresses"), "{words}");
    assert!(words.contains("next try in"), "{words}");
}

#[tokio::test(start_paused = true)]
async fn what_ec2_says_is_the_cause_also_in_words_that_nobody_knows() {
    let node = Node::new(Ec2::small());
    let refuse = Fault::Refuse("SomethingOfNextYear");
    node.ec2.fail_always(Operation::CreateEni, refuse);
    let words = refusal(&node, 3).await;
    assert!(
        words.contains("CreateNetworkInterface: SomethingOfNextYear"),
        "{words}"
    );
    let told = node.told.events.lock().unwrap();
    assert!(
        told.iter()
            .any(|(_, note)| note.contains("SomethingOfNextYear"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_missing_permission_becomes_an_event_of_awss_name() {
    let node = Node::new(Ec2::small());
    let refuse = Fault::Refuse("UnauthorizedOperation");
    node.ec2.fail_always(Operation::CreateEni, refuse);
    refusal(&node, 3).await;
    let told = node.told.events.lock().unwrap();
    assert!(
        told.iter()
            .any(|(reason, _)| *reason == "MissingIAMPermissions")
    );
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_throttling_is_met_with_fewer_calls_and_outlived() {
    let node = Node::new(Ec2::small());
    node.ec2.fail_always(Operation::CreateEni, Fault::Throttle);
    let daemon = node.start_ready().await;
    for pod in ["a", "b", "c"] {
        daemon.add_ok(pod).await;
    }
    tokio::time::sleep(Duration::from_secs(20)).await;
    let error = daemon.add("d").await.unwrap_err();
    assert!(error.message().contains("throttles"), "{error}");
    let before = node.ec2.calls(Operation::CreateEni);
    tokio::time::sleep(Duration::from_secs(600)).await;
    let calls = node.ec2.calls(Operation::CreateEni) - before;
    assert!((3..=12).contains(&calls), "{calls} calls in ten minutes");
    assert!(daemon.is_running());
    node.ec2.heal();
    until("the pool grows again", || node.held().len() > 3).await;
    // The calls that follow come at the pace that EC2's silence allows.
    tokio::time::sleep(Duration::from_secs(10)).await;
    daemon.add_ok("d").await;
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn addresses_whose_assignment_nobody_answered_are_found_and_given() {
    let node = Node::new(Ec2::with_limits(1, 4));
    // Done in EC2, and then silence.
    let hang = [Fault::Hang];
    node.ec2.fail_next(Operation::AssignAddresses, &hang);
    let daemon = node.start_ready().await;
    for pod in ["a", "b", "c"] {
        daemon.add_ok(pod).await;
    }
    assert_eq!(node.ec2.calls(Operation::AssignAddresses), 1);
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_interface_whose_creation_nobody_answered_is_not_made_twice() {
    let node = Node::new(Ec2::small());
    let hang = [Fault::Hang];
    node.ec2.fail_next(Operation::CreateEni, &hang);
    let daemon = node.start_ready().await;
    daemon.add_ok("first").await;
    for _ in 0..120 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(node.ec2.enis().len(), 2);
    }
    assert_eq!(node.ec2.calls(Operation::CreateEni), 2, "asked once more");
    for pod in ["b", "c", "d"] {
        daemon.add_ok(pod).await;
    }
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_address_was_taken_away_is_told_of_and_can_still_be_deleted() {
    let node = Node::new(Ec2::small());
    let daemon = node.start_ready().await;
    let address = daemon.add_ok("web").await;
    tokio::time::sleep(Duration::from_secs(90)).await;
    let primary = node.ec2.instance().primary_eni;
    node.ec2.take_address(&primary, address);
    until("the loss is told", || {
        let told = node.told.events.lock().unwrap();
        told.iter()
            .any(|(reason, note)| *reason == "AddressesLost" && note.contains("default/web"))
    })
    .await;
    assert_eq!(daemon.del_ok("web").await, address);
    until("its rules are removed", || {
        node.book
            .0
            .lock()
            .unwrap()
            .forgotten
            .contains(&address.into())
    })
    .await;
    daemon.stop().await;
}

/// They may have come back on another interface, and a young pod's rules are not otherwise looked at.
#[tokio::test(start_paused = true)]
async fn when_addresses_have_gone_or_moved_young_pods_are_looked_at_too() {
    let mut node = Node::new(Ec2::small());
    node.args.reconcile_seconds = Some("2".into());
    let daemon = node.start_ready().await;
    tokio::time::sleep(Duration::from_secs(90)).await;
    let young = daemon.add_ok("young").await;
    let leased = Instant::now();
    let primary = node.ec2.instance().primary_eni;
    let all = node.ec2.enis()[0].secondary_addresses.clone();
    let gone = all.into_iter().find(|address| *address != young).unwrap();
    node.ec2.take_address(&primary, gone);
    until("a look at the young pod", || {
        let pages = node.book.0.lock().unwrap();
        pages
            .asked
            .iter()
            .any(|pod| pod.address == IpAddr::from(young))
    })
    .await;
    let after = leased.elapsed();
    assert!(after < Duration::from_secs(3), "{after:?}");
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_interface_that_someone_attaches_serves_pods_without_a_restart() {
    let mut node = Node::new(Ec2::small());
    node.args.max_eni = Some("1".into());
    node.args.add_wait_seconds = Some("0".into());
    let daemon = node.start_ready().await;
    for pod in ["a", "b", "c"] {
        daemon.add_ok(pod).await;
    }
    daemon.add("d").await.unwrap_err();
    node.ec2.attach_by_hand(1, 2);
    tokio::time::sleep(Duration::from_secs(65)).await;
    daemon.add_ok("d").await;
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_address_that_cannot_be_written_down_is_not_given_away() {
    for node in Node::on_disk_and_in_memory(|| Ec2::with_limits(1, 3)) {
        let daemon = node.start_ready().await;
        let before = daemon.add_ok("before").await;
        // In the place of the temporary file: two writes have left one.
        let blocked = node.path("run/ipam.json.tmp");
        fs::remove_file(&blocked).unwrap();
        fs::create_dir(&blocked).unwrap();
        let error = daemon.add("web").await.unwrap_err();
        assert!(error.message().contains("ipam.json"), "{error}");
        // Taking back needs no disk.
        assert_eq!(daemon.del_ok("before").await, before);
        fs::remove_dir(&blocked).unwrap();
        // There are two addresses: one rests, and the other must not be lost, nor rest.
        daemon.add_ok("other").await;
        let on_disk = fs::read_to_string(node.path("run/ipam.json")).unwrap();
        assert!(on_disk.contains("sandbox-other"), "{on_disk}");
        assert!(!on_disk.contains("sandbox-before"), "{on_disk}");
        assert!(!on_disk.contains("sandbox-web"), "{on_disk}");
        daemon.stop().await;
    }
}
