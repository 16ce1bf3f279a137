//! AWS's messages byte by byte (amazon-vpc-cni-k8s 1.23), written down by number and type and not by our own encoder:
//! its plugin talks to our daemon and our plugin to its daemon while a node is swapped. A later version's fields are
//! skipped, an earlier one's missing fields are empty.

use prost::Message;
use selvage_ipamd_rpc::CLIENT_VERSION;
use selvage_ipamd_rpc::ipam::{
    AddNetworkReply, AddNetworkRequest, DelNetworkReply, DelNetworkRequest, IpAllocationMetadata,
    NetworkPolicyAgentConfigReply,
};

/// A field of type string, bytes or message.
fn text(number: u8, value: impl AsRef<[u8]>) -> Vec<u8> {
    let value = value.as_ref();
    let length = u8::try_from(value.len()).unwrap();
    assert!(number < 16 && length < 128, "one byte each in this test");
    [&[number << 3 | 2, length], value].concat()
}

/// A field of type bool or int32.
fn number(number: u8, value: u8) -> Vec<u8> {
    assert!(number < 16 && value < 128, "one byte each in this test");
    vec![number << 3, value]
}

/// Fields that no version has yet: a number of two bytes, and each type of the wire.
fn from_the_future() -> Vec<u8> {
    let mut bytes = vec![0x82, 0x7d, 3]; // field 2000, three bytes long
    bytes.extend(b"new");
    bytes.extend([0x80, 0x7d, 0x96, 0x01]); // the same number, a varint
    bytes.extend([0x81, 0x7d, 1, 2, 3, 4, 5, 6, 7, 8]); // 64 bits
    bytes.extend([0x85, 0x7d, 1, 2, 3, 4]); // 32 bits
    bytes
}

fn metadata() -> IpAllocationMetadata {
    IpAllocationMetadata {
        ipv4_addr: "10.0.1.2".into(),
        ipv6_addr: String::new(),
        device_number: 2,
        route_table_id: 3,
    }
}

fn metadata_bytes() -> Vec<u8> {
    [text(1, "10.0.1.2"), number(3, 2), number(4, 3)].concat()
}

#[test]
fn awss_plugin_asks_in_bytes_that_we_understand_and_ours_asks_in_the_same() {
    let add = AddNetworkRequest {
        k8s_pod_name: "web-0".into(),
        k8s_pod_namespace: "default".into(),
        k8s_pod_infra_container_id: "c1".into(),
        netns: "/run/netns/1".into(),
        if_name: "eth0".into(),
        network_name: "aws-cni".into(),
        container_id: "c1".into(),
        client_version: CLIENT_VERSION.into(),
        requires_multi_nic_attachment: false,
    };
    let bytes = [
        text(1, "web-0"),
        text(2, "default"),
        text(3, "c1"),
        text(4, "/run/netns/1"),
        text(5, "eth0"),
        text(6, "aws-cni"),
        text(7, "c1"),
        // 8, ClientVersion, is empty, and 9 is false: neither is on the wire.
    ]
    .concat();
    assert_eq!(add.encode_to_vec(), bytes);
    let later = [bytes, from_the_future()].concat();
    assert_eq!(AddNetworkRequest::decode(&*later).unwrap(), add);
    let multi_nic = AddNetworkRequest::decode(&*number(9, 1)).unwrap();
    assert!(multi_nic.requires_multi_nic_attachment);

    let del = DelNetworkRequest {
        k8s_pod_name: "web-0".into(),
        k8s_pod_namespace: "default".into(),
        k8s_pod_infra_container_id: "c1".into(),
        reason: "PodDeleted".into(),
        if_name: "eth0".into(),
        network_name: "aws-cni".into(),
        container_id: "c1".into(),
        client_version: CLIENT_VERSION.into(),
        k8s_pod_uid: "u".into(),
    };
    let bytes = [
        text(1, "web-0"),
        text(2, "default"),
        text(3, "c1"),
        text(5, "PodDeleted"),
        text(6, "eth0"),
        text(7, "aws-cni"),
        text(8, "c1"),
        text(10, "u"),
    ]
    .concat();
    assert_eq!(del.encode_to_vec(), bytes);
    let later = [bytes, from_the_future()].concat();
    assert_eq!(DelNetworkRequest::decode(&*later).unwrap(), del);
}

#[test]
fn awss_daemon_answers_in_bytes_that_we_understand_and_ours_answers_in_the_same() {
    let add = AddNetworkReply {
        success: true,
        ip_allocation_metadata: vec![metadata()],
        use_external_snat: true,
        vpc_v4_cidrs: vec!["10.0.0.0/16".into()],
        network_policy_mode: "standard".into(),
        ..AddNetworkReply::default()
    };
    let bytes = [
        number(1, 1),
        text(2, metadata_bytes()),
        number(5, 1),
        text(6, "10.0.0.0/16"),
        text(13, "standard"),
    ]
    .concat();
    assert_eq!(add.encode_to_vec(), bytes);
    // 3 and 4 were an address and a device before there could be several.
    let other = [bytes, text(3, "10.0.1.2"), number(4, 2), from_the_future()].concat();
    assert_eq!(AddNetworkReply::decode(&*other).unwrap(), add);
    let branch = [
        number(1, 1),
        number(7, 7),
        text(8, "02:00:00:00:00:07"),
        text(9, "10.0.1.1"),
        number(10, 4),
        text(12, "2600::/56"),
    ]
    .concat();
    let branch = AddNetworkReply::decode(&*branch).unwrap();
    assert_eq!((branch.pod_vlan_id, branch.parent_if_index), (7, 4));
    assert_eq!(branch.pod_eni_mac, "02:00:00:00:00:07");
    assert_eq!(branch.pod_eni_subnet_gw, "10.0.1.1");
    assert_eq!(branch.vpc_v6_cidrs, ["2600::/56"]);

    let del = DelNetworkReply {
        success: true,
        ip_allocation_metadata: vec![metadata()],
        network_policy_mode: "standard".into(),
        ..DelNetworkReply::default()
    };
    let bytes = [number(1, 1), text(2, metadata_bytes()), text(6, "standard")].concat();
    assert_eq!(del.encode_to_vec(), bytes);
    let other = [bytes, text(3, "10.0.1.2"), from_the_future()].concat();
    assert_eq!(DelNetworkReply::decode(&*other).unwrap(), del);
}

#[test]
fn an_ipv6_address_travels_in_a_field_of_its_own() {
    let bytes = [text(2, "2600::7"), number(3, 0), number(4, 127)].concat();
    let metadata = IpAllocationMetadata::decode(&*bytes).unwrap();
    assert_eq!(
        (metadata.ipv4_addr.as_str(), metadata.ipv6_addr.as_str()),
        ("", "2600::7")
    );
}

#[test]
fn what_the_network_policy_agent_asks_for_is_answered_in_awss_bytes() {
    let reply = NetworkPolicyAgentConfigReply {
        network_policy_mode: "standard".into(),
        multi_nic_enabled: false,
        node_ipv4: "10.0.0.4".into(),
        node_ipv6: String::new(),
        instance_id: "i-1".into(),
        region: "eu-west-1".into(),
    };
    let bytes = [
        text(1, "standard"),
        text(3, "10.0.0.4"),
        text(5, "i-1"),
        text(6, "eu-west-1"),
    ]
    .concat();
    assert_eq!(reply.encode_to_vec(), bytes);
}
