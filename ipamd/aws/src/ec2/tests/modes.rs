//! The calls of each mode: what is sent, and what is read from the answer.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::*;

/// An answer of EC2, with the envelope that every one has.
fn answer(operation: &str, body: &str) -> Answer {
    Answer::Http(
        200,
        format!("<{operation}Response><requestId>r-1</requestId>{body}</{operation}Response>"),
    )
}

/// What was sent, as `key=value`, in order.
async fn sent(server: &Server) -> Vec<Vec<String>> {
    let requests = server.requests.lock().await;
    requests
        .iter()
        .map(|body| body.split('&').map(str::to_owned).collect())
        .collect()
}

fn assert_has(request: &[String], fields: &[&str]) {
    for field in fields {
        assert!(
            request.iter().any(|part| part == field),
            "{field} in {request:?}"
        );
    }
}

fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn new_eni(want: Want) -> CreateEni {
    CreateEni {
        token: ClientToken::new("token-1"),
        subnet_id: SubnetId::new("subnet-1"),
        security_groups: vec![],
        want,
        description: "aws-K8S-i-1".to_owned(),
        tags: BTreeMap::new(),
    }
}

const NEW_ENI: &str = "<networkInterface><networkInterfaceId>eni-1</networkInterfaceId>\
     <subnetId>subnet-1</subnetId><macAddress>02:00:00:00:00:01</macAddress>\
     <privateIpAddress>10.40.0.20</privateIpAddress>\
     <ipv4PrefixSet><item><ipv4Prefix>10.40.1.16/28</ipv4Prefix></item></ipv4PrefixSet>\
     <ipv6PrefixSet><item><ipv6Prefix>2001:db8:0:1:2::/80</ipv6Prefix></item></ipv6PrefixSet>\
     <ipv6AddressesSet><item><ipv6Address>2001:db8::7</ipv6Address></item></ipv6AddressesSet>\
     <description>aws-K8S-i-1</description></networkInterface>";

#[tokio::test]
async fn an_interface_is_made_with_what_its_mode_needs_and_nothing_else() {
    for (want, field, absent) in [
        (
            Want::Addresses(9),
            "SecondaryPrivateIpAddressCount=9",
            "PrefixCount",
        ),
        (
            Want::Prefixes(2),
            "Ipv4PrefixCount=2",
            "SecondaryPrivateIpAddressCount",
        ),
        (Want::Ipv6Prefix, "Ipv6PrefixCount=1", "Ipv4PrefixCount"),
        (Want::Prefixes(0), "ClientToken=token-1", "Count"),
    ] {
        let server = Server::start(vec![answer("CreateNetworkInterface", NEW_ENI)]).await;
        let ec2 = server.ec2(true, PATIENT);
        let made = ec2.create_eni(&new_eni(want)).await.unwrap();
        assert_eq!(
            made.blocks(),
            nets(&["10.40.1.16/28", "2001:db8:0:1:2::/80"])
        );
        assert_eq!(made.ipv6_addresses.len(), 1);
        assert_eq!(made.description, "aws-K8S-i-1");
        let request = &sent(&server).await[0];
        assert_has(request, &[field]);
        assert!(
            !request.iter().any(|part| part.contains(absent)),
            "{absent} in {request:?}"
        );
    }
}

#[tokio::test]
async fn what_is_assigned_is_asked_for_by_count_and_read_as_blocks() {
    let single = "<assignedPrivateIpAddressesSet><item><privateIpAddress>10.40.0.7</privateIpAddress></item>\
         </assignedPrivateIpAddressesSet>";
    let prefixes = "<assignedIpv4PrefixSet><item><ipv4Prefix>10.40.1.32/28</ipv4Prefix></item>\
         <item><ipv4Prefix>10.40.1.48/28</ipv4Prefix></item></assignedIpv4PrefixSet>";
    let ipv6 = "<assignedIpv6PrefixSet><item>2001:db8:0:1:3::/80</item></assignedIpv6PrefixSet>";
    for (want, operation, body, field, blocks) in [
        (
            Want::Addresses(1),
            "AssignPrivateIpAddresses",
            single,
            "SecondaryPrivateIpAddressCount=1",
            &["10.40.0.7/32"][..],
        ),
        (
            Want::Prefixes(2),
            "AssignPrivateIpAddresses",
            prefixes,
            "Ipv4PrefixCount=2",
            &["10.40.1.32/28", "10.40.1.48/28"],
        ),
        (
            Want::Ipv6Prefix,
            "AssignIpv6Addresses",
            ipv6,
            "Ipv6PrefixCount=1",
            &["2001:db8:0:1:3::/80"],
        ),
    ] {
        let server = Server::start(vec![answer(operation, body)]).await;
        let ec2 = server.ec2(true, PATIENT);
        let new = ec2.assign(&EniId::new("eni-1"), want).await.unwrap();
        assert_eq!(BTreeSet::from_iter(new), nets(blocks));
        let action = format!("Action={operation}");
        assert_has(&sent(&server).await[0], &[&action, field]);
    }
}

#[tokio::test]
async fn an_assigned_block_that_cannot_be_read_may_have_been_assigned() {
    let body = "<assignedIpv4PrefixSet><item><ipv4Prefix>10.40.1.300/28</ipv4Prefix></item></assignedIpv4PrefixSet>";
    let server = Server::start(vec![answer("AssignPrivateIpAddresses", body)]).await;
    let ec2 = server.ec2(true, PATIENT);
    let error = ec2
        .assign(&EniId::new("eni-1"), Want::Prefixes(1))
        .await
        .unwrap_err();
    assert!(error.may_have_happened(), "{error}");
}

#[tokio::test]
async fn what_is_given_back_is_named_by_its_kind() {
    for (blocks, action, field) in [
        (
            nets(&["10.40.0.7/32"]),
            "Action=UnassignPrivateIpAddresses",
            "PrivateIpAddress.1=10.40.0.7",
        ),
        (
            nets(&["10.40.1.32/28"]),
            "Action=UnassignPrivateIpAddresses",
            "Ipv4Prefix.1=10.40.1.32%2F28",
        ),
        (
            nets(&["2001:db8:0:1:3::/80"]),
            "Action=UnassignIpv6Addresses",
            "Ipv6Prefix.1=2001%3Adb8%3A0%3A1%3A3%3A%3A%2F80",
        ),
    ] {
        let operation = action.trim_start_matches("Action=");
        let server = Server::start(vec![answer(operation, "<return>true</return>")]).await;
        let ec2 = server.ec2(true, PATIENT);
        ec2.unassign(&EniId::new("eni-1"), &blocks).await.unwrap();
        assert_has(&sent(&server).await[0], &[action, field]);
    }
}

#[tokio::test]
async fn subnets_of_the_zone_are_read_over_all_pages_with_their_room_and_tags() {
    let page = |id: &str, block: &str, next: &str| {
        let body = format!(
            "<subnetSet><item><subnetId>{id}</subnetId>{block}\
             <availableIpAddressCount>4000</availableIpAddressCount><tagSet><item>\
             <key>kubernetes.io/role/cni</key><value>1</value></item></tagSet></item></subnetSet>{next}"
        );
        answer("DescribeSubnets", &body)
    };
    let block = "<cidrBlock>10.40.16.0/20</cidrBlock>";
    let server = Server::start(vec![
        page("subnet-1", block, "<nextToken>more</nextToken>"),
        page("subnet-2", "", "<nextToken>last</nextToken>"),
        page("subnet-3", block, ""),
    ])
    .await;
    let ec2 = server.ec2(true, PATIENT);
    let found = ec2.describe_subnets().await.unwrap();
    let ids: Vec<&str> = found.iter().map(|subnet| subnet.id.as_str()).collect();
    assert_eq!(ids, ["subnet-1", "subnet-3"], "one has no IPv4");
    assert_eq!(found[0].available, 4000);
    assert_eq!(found[0].tags["kubernetes.io/role/cni"], "1");
    let requests = sent(&server).await;
    assert_has(
        &requests[0],
        &[
            "Filter.1.Name=vpc-id",
            "Filter.1.Value.1=vpc-1",
            "Filter.2.Name=availability-zone",
            "Filter.2.Value.1=us-west-2a",
        ],
    );
    assert_has(&requests[1], &["NextToken=more"]);
    assert_has(&requests[2], &["NextToken=last"]);
}

#[tokio::test]
async fn interfaces_that_nobody_has_are_searched_in_the_vpc_and_by_cluster() {
    let eni = "<networkInterfaceSet><item><networkInterfaceId>eni-9</networkInterfaceId>\
         <description>aws-K8S-i-dead</description><tagSet><item>\
         <key>node.k8s.amazonaws.com/instance_id</key><value>i-dead</value></item></tagSet></item>\
         </networkInterfaceSet>";
    let server = Server::start(vec![
        answer("DescribeNetworkInterfaces", eni),
        answer("DescribeNetworkInterfaces", ""),
    ])
    .await;
    let ec2 = server.ec2(true, PATIENT);
    let found = ec2.find_loose_enis("blue").await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].description, "aws-K8S-i-dead");
    assert_eq!(found[0].tags[TAG_INSTANCE], "i-dead");
    ec2.find_loose_enis("").await.unwrap();
    let requests = sent(&server).await;
    assert_has(
        &requests[0],
        &[
            "Filter.1.Name=tag-key",
            "Filter.2.Value.1=available",
            "Filter.3.Value.1=vpc-1",
            "Filter.4.Name=tag%3Acluster.k8s.amazonaws.com%2Fname",
            "Filter.4.Value.1=blue",
            "MaxResults=1000",
        ],
    );
    let named = requests[1].iter().any(|part| part.starts_with("Filter.4"));
    assert!(!named, "without a name there is no filter by it");
}

#[tokio::test]
async fn tags_are_added_to_the_interface_that_lacks_them() {
    let server = Server::start(vec![answer("CreateTags", "<return>true</return>")]).await;
    let ec2 = server.ec2(true, PATIENT);
    let tags = BTreeMap::from([(TAG_INSTANCE.to_owned(), "i-1".to_owned())]);
    ec2.tag_eni(&EniId::new("eni-1"), &tags).await.unwrap();
    assert_has(
        &sent(&server).await[0],
        &["Action=CreateTags", "ResourceId.1=eni-1", "Tag.1.Value=i-1"],
    );
}

#[tokio::test]
async fn a_new_interface_lets_connections_be_silent_as_long_as_the_primary_one_does() {
    let primary = "<networkInterfaceSet><item><networkInterfaceId>eni-0</networkInterfaceId>\
         <subnetId>subnet-1</subnetId><macAddress>02:00:00:00:00:00</macAddress>\
         <privateIpAddress>10.40.0.10</privateIpAddress><connectionTrackingConfiguration>\
         <tcpEstablishedTimeout>350</tcpEstablishedTimeout></connectionTrackingConfiguration>\
         </item></networkInterfaceSet>";
    let server = Server::start(vec![
        answer("DescribeNetworkInterfaces", primary),
        answer("CreateNetworkInterface", NEW_ENI),
    ])
    .await;
    let ec2 = server.ec2(true, PATIENT);
    ec2.attached_enis().await.unwrap();
    ec2.create_eni(&new_eni(Want::Addresses(1))).await.unwrap();
    let field = "ConnectionTrackingSpecification.TcpEstablishedTimeout=350";
    assert_has(&sent(&server).await[1], &[field]);
}
