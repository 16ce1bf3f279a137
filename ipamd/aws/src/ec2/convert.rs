//! EC2's interfaces as the core's: nothing is guessed, what is missing is an error that names it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::str::FromStr;

use aws_sdk_ec2::types::{
    ConnectionTrackingSpecificationRequest, InstanceTypeHypervisor, InstanceTypeInfo,
    NetworkInterface, Subnet, Tag,
};
use ipnet::Ipv4Net;
use selvage_ipamd_core::cloud::{
    Attachment, CloudError, EniFacts, EniKind, Operation, SubnetFacts,
};
use selvage_ipamd_core::ids::{AttachmentId, EniId, SecurityGroupId, SubnetId};
use selvage_ipamd_core::limits::Limits;

fn missing(operation: Operation, what: &str, of: &str) -> CloudError {
    CloudError::unknown(
        operation,
        format!("an answer that cannot be read: {what} of {of}"),
    )
}

/// Reads one interface. `subnet` is the block of the subnet it names.
///
/// # Errors
/// `Unknown` when an identifier or address is missing or unreadable.
pub(super) fn eni_facts(
    operation: Operation,
    eni: &NetworkInterface,
    subnet: Ipv4Net,
) -> Result<EniFacts, CloudError> {
    let id = eni
        .network_interface_id()
        .ok_or_else(|| missing(operation, "identifier", "an interface"))?;
    let without = |what: &str| missing(operation, what, id);
    let mac = eni.mac_address().and_then(|text| text.parse().ok());
    let subnet_id = eni.subnet_id().ok_or_else(|| without("subnet"))?;
    let primary_address: Ipv4Addr = eni
        .private_ip_address()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| without("primary address"))?;
    let mut secondary_addresses = BTreeSet::new();
    for entry in eni.private_ip_addresses() {
        let address: Ipv4Addr = entry
            .private_ip_address()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| without("a secondary address"))?;
        if entry.primary() != Some(true) && address != primary_address {
            secondary_addresses.insert(address);
        }
    }
    let prefixes = blocks(eni.ipv4_prefixes(), |entry| entry.ipv4_prefix())
        .ok_or_else(|| without("a prefix"))?;
    let ipv6_addresses = blocks(eni.ipv6_addresses(), |entry| entry.ipv6_address())
        .ok_or_else(|| without("an IPv6 address"))?;
    let ipv6_prefixes = blocks(eni.ipv6_prefixes(), |entry| entry.ipv6_prefix())
        .ok_or_else(|| without("an IPv6 prefix"))?;
    let attachment = match eni.attachment() {
        None => None,
        Some(found) => Some(Attachment {
            id: AttachmentId::new(found.attachment_id().ok_or_else(|| without("attachment"))?),
            device_index: found
                .device_index()
                .and_then(|index| u16::try_from(index).ok())
                .ok_or_else(|| without("device index"))?,
            card: u16::try_from(found.network_card_index().unwrap_or(0))
                .map_err(|_| without("network card"))?,
            delete_on_termination: found.delete_on_termination().unwrap_or(false),
        }),
    };
    Ok(EniFacts {
        id: EniId::new(id),
        mac: mac.ok_or_else(|| without("hardware address"))?,
        subnet_id: SubnetId::new(subnet_id),
        subnet,
        primary_address,
        secondary_addresses,
        prefixes,
        ipv6_addresses,
        ipv6_prefixes,
        attachment,
        kind: eni_kind(eni),
        security_groups: groups(eni),
        description: eni.description().unwrap_or_default().to_owned(),
        tags: tags(eni.tag_set()),
    })
}

/// `None` if it is not told: every interface has one.
fn groups(eni: &NetworkInterface) -> Option<BTreeSet<SecurityGroupId>> {
    let groups = eni.groups().iter().filter_map(|group| group.group_id());
    let groups: BTreeSet<SecurityGroupId> = groups.map(SecurityGroupId::new).collect();
    (!groups.is_empty()).then_some(groups)
}

/// What a list holds, `None` if a part of it cannot be read.
fn blocks<E, T: FromStr + Ord>(
    entries: &[E],
    text: impl Fn(&E) -> Option<&str>,
) -> Option<BTreeSet<T>> {
    let read = |entry| text(entry).and_then(|text| text.parse().ok());
    entries.iter().map(read).collect()
}

/// A subnet, if it has an identifier and an IPv4 block.
pub(super) fn subnet_facts(subnet: &Subnet) -> Option<SubnetFacts> {
    Some(SubnetFacts {
        id: SubnetId::new(subnet.subnet_id()?),
        block: subnet.cidr_block()?.parse().ok()?,
        available: subnet
            .available_ip_address_count()
            .and_then(|count| u32::try_from(count).ok())
            .unwrap_or(0),
        tags: tags(subnet.tags()),
    })
}

/// How long an interface lets connections be silent, in the words of a request; `None` where nobody has set that.
pub(super) fn tracking(eni: &NetworkInterface) -> Option<ConnectionTrackingSpecificationRequest> {
    let found = eni.connection_tracking_configuration()?;
    let (tcp, stream, udp) = (
        found.tcp_established_timeout(),
        found.udp_stream_timeout(),
        found.udp_timeout(),
    );
    (tcp.is_some() || stream.is_some() || udp.is_some()).then(|| {
        ConnectionTrackingSpecificationRequest::builder()
            .set_tcp_established_timeout(tcp)
            .set_udp_stream_timeout(stream)
            .set_udp_timeout(udp)
            .build()
    })
}

/// EC2's interface types are an open set: one that we do not know is left alone, as EFA is.
fn eni_kind(eni: &NetworkInterface) -> EniKind {
    match eni.interface_type().map(|kind| kind.as_str()) {
        None | Some("interface") => EniKind::Interface,
        Some("trunk") => EniKind::Trunk,
        Some(_) => EniKind::Efa,
    }
}

/// Tags as a map.
pub(super) fn tags(tags: &[Tag]) -> BTreeMap<String, String> {
    tags.iter()
        .filter_map(|tag| {
            let value = tag.value().unwrap_or_default();
            tag.key().map(|key| (key.to_owned(), value.to_owned()))
        })
        .collect()
}

/// The instance an interface is attached to.
pub(super) fn owner(eni: &NetworkInterface) -> Option<&str> {
    eni.attachment().and_then(|found| found.instance_id())
}

/// Limits on the default network card, as AWS's own table counts them.
///
/// # Errors
/// `Unknown` when the answer lacks a number.
pub(super) fn limits(info: &InstanceTypeInfo) -> Result<Limits, CloudError> {
    let operation = Operation::Limits;
    let name = info.instance_type().map_or("", |kind| kind.as_str());
    let network = info
        .network_info()
        .ok_or_else(|| missing(operation, "network limits", name))?;
    let default_card = network.default_network_card_index().unwrap_or(0);
    let of_card = network
        .network_cards()
        .iter()
        .find(|card| card.network_card_index() == Some(default_card))
        .and_then(|card| card.maximum_network_interfaces());
    let enis = of_card
        .or(network.maximum_network_interfaces())
        .and_then(|n| u16::try_from(n).ok())
        .ok_or_else(|| missing(operation, "number of interfaces", name))?;
    let addresses = network
        .ipv4_addresses_per_interface()
        .and_then(|n| u16::try_from(n).ok())
        .ok_or_else(|| missing(operation, "number of addresses", name))?;
    let limits = Limits::new(enis, addresses)
        .map_err(|error| CloudError::unknown(operation, error.to_string()))?;
    let nitro = info.hypervisor() == Some(&InstanceTypeHypervisor::Nitro);
    let processors = info
        .v_cpu_info()
        .and_then(|found| found.default_v_cpus())
        .and_then(|n| u32::try_from(n).ok())
        .ok_or_else(|| missing(operation, "number of processors", name))?;
    Ok(limits
        .with_prefixes(nitro || info.bare_metal() == Some(true))
        .with_vcpus(processors))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sdk_ec2::types::builders::NetworkInterfaceBuilder;
    use aws_sdk_ec2::types::{
        NetworkCardInfo, NetworkInfo, NetworkInterfaceAttachment, NetworkInterfacePrivateIpAddress,
        NetworkInterfaceType, VCpuInfo,
    };

    fn address(text: &str, primary: bool) -> NetworkInterfacePrivateIpAddress {
        NetworkInterfacePrivateIpAddress::builder()
            .private_ip_address(text)
            .primary(primary)
            .build()
    }

    fn interface() -> NetworkInterfaceBuilder {
        NetworkInterface::builder()
            .network_interface_id("eni-1")
            .mac_address("02:00:00:00:00:01")
            .subnet_id("subnet-1")
            .private_ip_address("10.40.0.10")
            .private_ip_addresses(address("10.40.0.10", true))
            .private_ip_addresses(address("10.40.0.11", false))
    }

    fn read(eni: NetworkInterfaceBuilder) -> Result<EniFacts, CloudError> {
        eni_facts(
            Operation::DescribeEnis,
            &eni.build(),
            "10.40.0.0/20".parse().unwrap(),
        )
    }

    #[test]
    fn an_interfaces_own_address_is_never_one_for_pods() {
        let facts = read(interface()).unwrap();
        assert_eq!(facts.primary_address.to_string(), "10.40.0.10");
        let pods: Vec<_> = facts
            .secondary_addresses
            .iter()
            .map(|a| a.to_string())
            .collect();
        assert_eq!(pods, ["10.40.0.11"]);
        assert_eq!(facts.attachment, None);
    }

    #[test]
    fn an_interface_of_a_type_that_nobody_knows_is_not_used() {
        for (kind, want) in [
            (NetworkInterfaceType::Interface, EniKind::Interface),
            (NetworkInterfaceType::Trunk, EniKind::Trunk),
            (NetworkInterfaceType::Efa, EniKind::Efa),
            (NetworkInterfaceType::from("new-in-2031"), EniKind::Efa),
        ] {
            let facts = read(interface().interface_type(kind.clone())).unwrap();
            assert_eq!(facts.kind, want, "{kind}");
        }
    }

    #[test]
    fn an_answer_with_a_part_missing_is_an_error_that_names_the_interface_and_the_part() {
        let attachment = NetworkInterfaceAttachment::builder()
            .attachment_id("eni-attach-1")
            .build();
        for (eni, part) in [
            (interface().set_mac_address(None), "hardware address"),
            (interface().mac_address("nonsense"), "hardware address"),
            (interface().set_private_ip_address(None), "primary address"),
            (
                interface().private_ip_addresses(address("10.40.0", false)),
                "a secondary address",
            ),
            (interface().attachment(attachment), "device index"),
        ] {
            let error = read(eni).unwrap_err();
            assert!(
                error.message.ends_with(&format!("{part} of eni-1")),
                "{part}: {error}"
            );
        }
    }

    #[test]
    fn limits_are_those_of_the_default_network_card() {
        let info = InstanceTypeInfo::builder()
            .hypervisor(InstanceTypeHypervisor::Nitro)
            .v_cpu_info(VCpuInfo::builder().default_v_cpus(96).build())
            .network_info(
                NetworkInfo::builder()
                    .maximum_network_interfaces(60)
                    .default_network_card_index(1)
                    .network_cards(
                        NetworkCardInfo::builder()
                            .network_card_index(0)
                            .maximum_network_interfaces(7)
                            .build(),
                    )
                    .network_cards(
                        NetworkCardInfo::builder()
                            .network_card_index(1)
                            .maximum_network_interfaces(15)
                            .build(),
                    )
                    .ipv4_addresses_per_interface(50)
                    .build(),
            );
        let limits = limits(&info.build()).unwrap();
        assert_eq!((limits.enis(), limits.places_per_eni()), (15, 49));
        assert!(limits.can_have_prefixes());
        assert_eq!(limits.vcpus(), Some(96));
    }
}
