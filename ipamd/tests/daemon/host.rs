//! Looks at the host's network: when, and what follows.

use std::net::IpAddr;
use std::time::Duration;

use selvage_ipamd::hostnet::{Change, Disturbed, Obstacle, Part};
use selvage_ipamd_core::fake::Ec2;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::node::{Node, until};

fn looks(node: &Node) -> usize {
    node.book.0.lock().unwrap().looks.len()
}

/// Until the looks of a start are over, and some time before the next one by time.
async fn settled(node: &Node) {
    until("a look by time", || {
        let looks = &node.book.0.lock().unwrap().looks;
        looks.len() > 2
            && looks
                .last()
                .is_some_and(|at| at.elapsed() > Duration::from_secs(2))
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_disturbance_is_looked_at_within_a_second_and_a_fight_once_a_second() {
    let node = Node::new(Ec2::small());
    let daemon = node.start_ready().await;
    settled(&node).await;
    let before = looks(&node);
    let disturbed = Instant::now();
    node.book.1.notify_one();
    until("a look", || looks(&node) > before).await;
    assert!(disturbed.elapsed() < Duration::from_secs(1));
    // Somebody who undoes it for ten seconds, a hundred times a second.
    let before = looks(&node);
    for _ in 0..1000 {
        node.book.1.notify_one();
        sleep(Duration::from_millis(10)).await;
    }
    let more = looks(&node) - before;
    assert!((8..=12).contains(&more), "{more} looks in ten seconds");
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn tables_are_looked_at_when_they_are_disturbed_and_not_for_routes() {
    let node = Node::new(Ec2::small());
    let daemon = node.start_ready().await;
    settled(&node).await;
    let tables = || node.book.0.lock().unwrap().nodes.len();
    for (what, more) in [
        (Disturbed::Routing, 0),
        (Disturbed::Tables, 1),
        (Disturbed::Routing, 0),
    ] {
        node.book.0.lock().unwrap().disturbed = what;
        let (looked, before) = (looks(&node), tables());
        node.book.1.notify_one();
        until("a look", || looks(&node) > looked).await;
        sleep(Duration::from_millis(100)).await;
        assert_eq!(tables() - before, more, "{what:?}");
    }
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_the_plugin_is_still_making_is_not_repaired_and_looked_at_when_it_must_be_there() {
    let node = Node::new(Ec2::small());
    let daemon = node.start_ready().await;
    let old = daemon.add_ok("old").await;
    settled(&node).await;
    sleep(Duration::from_secs(10)).await;
    let asked = || -> Vec<IpAddr> {
        let pages = node.book.0.lock().unwrap();
        pages.asked.iter().map(|pod| pod.address).collect()
    };
    let young = daemon.add_ok("young").await;
    let before = looks(&node);
    node.book.1.notify_one();
    until("a look", || looks(&node) > before).await;
    assert_eq!(asked(), [IpAddr::from(old)]);
    let leased = Instant::now();
    until("a look at both", || asked().contains(&young.into())).await;
    assert!(leased.elapsed() <= Duration::from_secs(6));
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn while_pods_come_a_disturbance_is_looked_at_as_soon_as_ever() {
    let node = Node::new(Ec2::small());
    let daemon = node.start_ready().await;
    settled(&node).await;
    for (pod, what) in [
        ("a", Disturbed::Routing),
        ("b", Disturbed::Tables),
        ("c", Disturbed::Routing),
    ] {
        daemon.add_ok(pod).await;
        node.book.0.lock().unwrap().disturbed = what;
        let before = looks(&node);
        let disturbed = Instant::now();
        node.book.1.notify_one();
        until("a look", || looks(&node) > before).await;
        let after = disturbed.elapsed();
        assert!(after < Duration::from_millis(1500), "{pod}: {after:?}");
    }
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_address_that_was_let_go_during_a_look_is_not_left_with_rules() {
    let node = Node::new(Ec2::small());
    let daemon = node.start_ready().await;
    let stays = daemon.add_ok("stays").await;
    let gone = daemon.add_ok("gone").await;
    settled(&node).await;
    daemon.del_ok("gone").await;
    {
        // A look that began before and made them again.
        let mut pages = node.book.0.lock().unwrap();
        pages.finds.pods = [stays.into(), gone.into()].into();
    }
    node.book.1.notify_one();
    until("it is forgotten", || {
        !node.book.0.lock().unwrap().forgotten.is_empty()
    })
    .await;
    assert_eq!(node.book.0.lock().unwrap().forgotten, [gone]);
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_keeps_pods_traffic_from_passing_is_told_when_it_comes_and_not_at_every_look() {
    let node = Node::new(Ec2::small());
    let daemon = node.start_ready().await;
    let obstacle = Obstacle {
        place: "filter chain FORWARD (iptables-nft)".into(),
        what: "-j REJECT".into(),
        remedy: "accept it".into(),
    };
    node.book.0.lock().unwrap().obstacles = vec![obstacle];
    let told = || {
        let told = node.told.events.lock().unwrap();
        let blocked = told
            .iter()
            .filter(|(reason, _)| *reason == "PodTrafficBlocked");
        blocked.map(|(_, note)| note.clone()).collect::<Vec<_>>()
    };
    until("it is told", || !told().is_empty()).await;
    sleep(Duration::from_secs(120)).await;
    assert_eq!(told().len(), 1, "{:?}", told());
    assert!(told()[0].contains("-j REJECT"), "{:?}", told());
    daemon.stop().await;
}

/// Its own loopback: each test has a network of its own.
const METRICS: &str = "127.0.0.1:61678";

async fn metrics() -> String {
    let mut stream = TcpStream::connect(METRICS).await.unwrap();
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {METRICS}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).await.unwrap();
    page
}

#[tokio::test(start_paused = true)]
async fn what_is_repaired_is_counted_by_kind_and_what_a_start_makes_is_not() {
    let mut node = Node::new(Ec2::small());
    node.args.disable_metrics = None;
    node.args.metrics_addr = Some(METRICS.into());
    let made = |part| Change {
        part,
        what: "made".into(),
    };
    node.book.0.lock().unwrap().finds.changed = vec![made(Part::EniRoute)];
    let daemon = node.start_ready().await;
    settled(&node).await;
    node.book.0.lock().unwrap().finds.changed =
        vec![made(Part::PodRule), made(Part::PodRule), made(Part::Nat)];
    let before = looks(&node);
    node.book.1.notify_one();
    until("a look", || looks(&node) > before).await;
    sleep(Duration::from_secs(1)).await;
    let page = metrics().await;
    for line in [
        "selvage_ipamd_host_repairs{kind=\"pod_rule\"} 2",
        "selvage_ipamd_host_repairs{kind=\"nat\"} 1",
        "selvage_ipamd_host_repairs{kind=\"eni_route\"} 0",
    ] {
        assert!(page.lines().any(|l| l == line), "{line} is not in {page}");
    }
    daemon.stop().await;
}
