//! A pod: where it is, what it is called, and by which addresses and ports.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use crate::api;
use crate::model::{
    Addresses, Interfaces, Labels, NamedPort, NamespaceName, NodeName, Pod, PodKey, PodUid,
    PortName,
};
use crate::ruleset::{Family, Protocol};

/// Where AWS's CNI plugin writes a pod's addresses before the kubelet does (`ANNOTATE_POD_IP`).
///
/// Whoever may change a pod's annotations chooses its addresses as a peer with it, as with
/// Calico. For pods of this node the kernel's route comes before it.
pub const POD_IPS_ANNOTATION: &str = "vpc.amazonaws.com/pod-ips";

/// The annotation, and the beginning of the resource, that a pod on a branch ENI (security groups
/// for pods) has.
pub const BRANCH_ENI: &str = "vpc.amazonaws.com/pod-eni";

/// How AWS's plugin is asked for an interface on each network card: `MORE_CARDS`.
pub const NIC_CONFIG_ANNOTATION: &str = "k8s.amazonaws.com/nicConfig";

/// What [`NIC_CONFIG_ANNOTATION`] then says.
const MORE_CARDS: &str = "multi-nic-attachment";

/// How Multus is asked for more interfaces.
pub const NETWORKS_ANNOTATION: &str = "k8s.v1.cni.cncf.io/networks";

/// A pod.
#[must_use]
pub fn pod(object: api::Pod) -> Pod {
    let addresses = addresses(&object);
    let ports = ports(&object.spec);
    let interfaces = interfaces(&object);
    let phase = object.status.phase.as_deref();
    Pod {
        key: PodKey {
            namespace: NamespaceName::new(object.metadata.namespace),
            name: object.metadata.name,
        },
        uid: PodUid::new(object.metadata.uid),
        node: object
            .spec
            .node_name
            .filter(|name| !name.is_empty())
            .map(NodeName::new),
        host_network: object.spec.host_network,
        finished: matches!(phase, Some("Succeeded" | "Failed")),
        labels: Labels::from(object.metadata.labels),
        addresses,
        ports,
        interfaces,
    }
}

/// In each family the annotation where it has one, since it comes earlier; else the status. A pod
/// that is being deleted and whose annotation was blanked has given its addresses back.
fn addresses(object: &api::Pod) -> Addresses {
    let annotation = object.metadata.annotations.get(POD_IPS_ANNOTATION);
    let blank = annotation.is_some_and(|text| text.trim().is_empty());
    if blank && object.metadata.deletion_timestamp.is_some() {
        return Addresses::default();
    }
    let annotated = annotation.into_iter().flat_map(|text| text.split(','));
    let annotated: Vec<IpAddr> = annotated.filter_map(address).collect();
    let is_annotated = |family| {
        let mut families = annotated.iter().map(|it| Family::of_address(*it));
        families.any(|it| it == family)
    };
    let told = object.status.pod_ips.iter().map(|entry| entry.ip.as_str());
    let told = told.chain(object.status.pod_ip.as_deref());
    let told = told
        .filter_map(address)
        .filter(|address| !is_annotated(Family::of_address(*address)));
    annotated.iter().copied().chain(told).collect()
}

/// However it is written: an IPv4 address in IPv6's clothes is an IPv4 address.
fn address(text: &str) -> Option<IpAddr> {
    let address = text.trim().parse::<IpAddr>().ok()?;
    Some(address.to_canonical())
}

/// Of the containers and of the sidecars, as Kubernetes itself looks a name up: other init containers
/// have ended when the pod serves. What no policy can name isn't kept.
fn ports(spec: &api::PodSpec) -> Arc<[(NamedPort, NonZeroU16)]> {
    let sidecars = spec
        .init_containers
        .iter()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let containers = spec.containers.iter().chain(sidecars);
    let ports = containers.flat_map(|container| &container.ports);
    let named = ports.filter_map(|port| {
        let protocol = match port.protocol.as_deref() {
            None | Some("" | "TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            Some(_) => return None,
        };
        let name = PortName::new(port.name.as_deref()?)?;
        let number = NonZeroU16::new(u16::try_from(port.container_port).ok()?)?;
        Some((NamedPort { protocol, name }, number))
    });
    let named: BTreeSet<_> = named.collect();
    named.into_iter().collect()
}

fn interfaces(object: &api::Pod) -> Interfaces {
    let annotation = |name: &str| {
        object
            .metadata
            .annotations
            .get(name)
            .map(|text| text.trim())
    };
    let branch_limit = object
        .spec
        .containers
        .iter()
        .flat_map(|container| container.resources.limits.keys())
        .any(|resource| resource.starts_with(BRANCH_ENI));
    Interfaces {
        branch_eni: branch_limit || annotation(BRANCH_ENI).is_some_and(|text| !text.is_empty()),
        more_cards: annotation(NIC_CONFIG_ANNOTATION) == Some(MORE_CARDS),
        others: annotation(NETWORKS_ANNOTATION)
            .is_some_and(|text| !text.is_empty() && text != "[]"),
    }
}
