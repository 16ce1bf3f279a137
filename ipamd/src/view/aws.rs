//! The pool in the words of AWS's introspection (`/v1/enis`), which its support script and others' tools read.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::{Block, Interface, View};

/// `/v1/enis`: by network card, of which we use the first. Sandboxes' identifiers are left out, as AWS's daemon does
/// since 1.23: they are what a DEL is authorised by.
pub(crate) fn enis_page(view: &View) -> Value {
    let enis: Map<String, Value> = view
        .interfaces
        .iter()
        .map(|interface| (interface.id.clone(), eni(interface)))
        .collect();
    json!({"0": {
        "TotalIPs": view.numbers.total,
        "AssignedIPs": view.numbers.assigned,
        "ENIs": enis,
    }})
}

fn eni(interface: &Interface) -> Value {
    let blocks = |wanted: fn(&IpNet) -> bool| -> Map<String, Value> {
        interface
            .blocks
            .iter()
            .filter(|block| wanted(&block.block))
            .map(|block| (block.block.to_string(), cidr(block)))
            .collect()
    };
    let device = interface.device.unwrap_or(0);
    json!({
        "ID": interface.id,
        "IsPrimary": interface.primary,
        "IsTrunk": false,
        "IsEFA": false,
        "DeviceNumber": device,
        "AvailableIPv4Cidrs": blocks(|net| net.addr().is_ipv4()),
        "IPv6Cidrs": blocks(|net| net.addr().is_ipv6()),
        "IsExcludedForPodIPs": !interface.serves,
        "RouteTableID": crate::hostnet::route_table(device),
        "SubnetID": interface.subnet,
    })
}

fn cidr(block: &Block) -> Value {
    let addresses: Map<String, Value> = block
        .pods
        .iter()
        .map(|(address, pod)| {
            let entry = json!({
                "Address": address,
                "IPAMKey": {"networkName": pod.network, "containerID": "", "ifName": ""},
                "IPAMMetadata": {
                    "k8sPodNamespace": pod.namespace,
                    "k8sPodName": pod.name,
                },
                "AssignedTime": pod.since,
                "UnassignedTime": "0001-01-01T00:00:00Z",
            });
            (address.to_string(), entry)
        })
        .collect();
    let net = &block.block;
    json!({
        "Cidr": {"IP": net.network(), "Mask": STANDARD.encode(octets(net.netmask()))},
        "IPAddresses": addresses,
        "IsPrefix": block.is_prefix(),
        "AddressFamily": if net.addr().is_ipv4() { "4" } else { "6" },
    })
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::example;

    #[test]
    fn the_page_has_awss_shape_and_tells_no_sandbox() {
        let page = enis_page(&example());
        let card = &page["0"];
        assert_eq!(card["TotalIPs"], 20);
        assert_eq!(card["AssignedIPs"], 1);
        let eni = &card["ENIs"]["eni-0"];
        assert_eq!(eni["IsPrimary"], true);
        assert_eq!(eni["RouteTableID"], 254);
        assert_eq!(eni["SubnetID"], "subnet-1");
        let cidr = &eni["AvailableIPv4Cidrs"]["10.0.0.5/32"];
        assert_eq!(cidr["Cidr"], json!({"IP": "10.0.0.5", "Mask": "/////w=="}));
        assert_eq!(cidr["IsPrefix"], false);
        let address = &cidr["IPAddresses"]["10.0.0.5"];
        assert_eq!(address["IPAMMetadata"]["k8sPodName"], "web-0");
        assert_eq!(address["IPAMKey"]["containerID"], "");
        assert_eq!(eni["AvailableIPv4Cidrs"]["10.0.1.16/28"]["IsPrefix"], true);
        assert_eq!(eni["IPv6Cidrs"], json!({}));
    }
}
