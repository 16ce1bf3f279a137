//! The same where pods speak IPv6: one /80 on the primary interface, nothing translated, nothing marked.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::{IpNet, Ipv6Net};
use selvage_ipamd_core::cloud::{Cloud, Operation, Want};
use selvage_ipamd_core::fake::Ec2;
use serde_json::Value;

use super::aws_node::{AwsPod, Blocks, RUN, write_checkpoint};
use super::stream::Stream;
use super::take_over::{Daemon, add, at, aws_plugin_deletes, on, plugin, traces};
use crate::ipv6::{OUTSIDE6, build6};
use crate::world::{operational, sh, talk};

/// The instance's interface with a /80, in EC2, on the node and in the VPC.
async fn interface() -> (Ec2, Ipv6Net) {
    build6();
    let ec2 = Ec2::with_limits(2, 4);
    let primary = ec2.instance().primary_eni;
    let given = ec2.assign(&primary, Want::Ipv6Prefix).await.unwrap();
    let Some(IpNet::V6(block)) = given.into_iter().next() else {
        panic!("no /80");
    };
    sh(&format!(
        "
        set -e
        ip link set ens5 address 02:00:00:00:00:00
        ip -n vpc route add {block} via 2001:db8:40::4
        "
    ));
    operational("br0");
    (ec2, block)
}

fn pods(block: Ipv6Net) -> Vec<AwsPod> {
    let names = ["web-0", "web-1", "job"];
    let pods = names
        .iter()
        .zip(block.hosts())
        .map(|(name, address)| AwsPod {
            name: (*name).into(),
            container: format!("sandbox-{name}"),
            address: address.into(),
            device: 0,
        });
    pods.collect()
}

fn pod_rules() -> Vec<String> {
    let rules = sh("ip -6 rule list priority 512");
    rules.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn pods_of_aws_node_with_ipv6_keep_their_connections_there_and_are_found_on_the_way_back() {
    let (ec2, block) = interface().await;
    let theirs = pods(block);
    let [web_0, web_1, job] = theirs.as_slice() else {
        panic!("three pods");
    };
    write_checkpoint(theirs.iter().map(AwsPod::allocation).collect());
    theirs.iter().for_each(AwsPod::wire);
    let rules = pod_rules();
    let outside = at(OUTSIDE6, 9000);
    let streams = [
        Stream::begin(("web-0", "::"), outside, ("vpc", outside)),
        Stream::begin(("web-1", "::"), on(web_0, 8081), ("web-0", on(web_0, 8081))),
        Stream::begin(
            ("vpc", OUTSIDE6),
            on(web_1, 8080),
            ("web-1", on(web_1, 8080)),
        ),
    ];
    assert_eq!(streams[0].source, web_0.address);

    let daemon = Daemon::ready(&ec2, Blocks::Ipv6).await;
    assert_eq!(pod_rules(), rules);
    plugin("DEL", &job.name, &job.container, Some(job.result())).await;
    assert_eq!(traces(job), "");
    let mut given = Vec::new();
    for name in ["new-0", "new-1"] {
        let result = add(name).await;
        let address = result["ips"][0]["address"].as_str().unwrap();
        let own: IpAddr = address.strip_suffix("/128").unwrap().parse().unwrap();
        assert_eq!(talk(name, "vpc", OUTSIDE6), Some(own), "{name}");
        assert!(
            matches!(own, IpAddr::V6(own) if block.contains(&own)),
            "{own}"
        );
        let taken = theirs.iter().any(|pod| pod.address == own) || given.contains(&own);
        assert!(!taken, "{own} rests or is used");
        given.push(own);
    }
    assert_eq!(ec2.calls(Operation::AssignIpv6), 1, "the /80 was there");
    let told: Vec<_> = streams.into_iter().map(Stream::end).collect();
    for stream in &told {
        assert!(stream.answered > 50, "{told:?}");
        assert!(stream.longest < Duration::from_millis(200), "{told:?}");
    }
    let reply = aws_plugin_deletes(web_1).await.unwrap();
    assert_eq!(
        reply.ip_allocation_metadata[0].ipv6_addr,
        web_1.address.to_string()
    );
    daemon.stop().await;

    // What aws-node reads of it, back again.
    let text = std::fs::read_to_string(format!("{RUN}/ipam.json")).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["version"], "vpc-cni-ipam/1");
    let mut left: Vec<IpAddr> = document["allocations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["ipv6"].as_str().unwrap().parse().unwrap())
        .collect();
    left.sort_unstable();
    given.push(web_0.address);
    given.sort_unstable();
    assert_eq!(left, given);
    assert!(talk("web-0", "vpc", OUTSIDE6).is_some(), "pods go on");
}
