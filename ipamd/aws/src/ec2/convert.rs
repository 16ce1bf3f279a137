//! EC2's interfaces as the core's: nothing is guessed, what is missing is an error that names it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use aws_sdk_ec2::types::{InstanceTypeHypervisor, InstanceTypeInfo, NetworkInterface, Subnet, Tag};
use ipnet::{IpNet, Ipv4Net};
use selvage_ipamd_core::cloud::{
    Attachment, CloudError, EniFacts, EniKind, LooseEni, Operation, SubnetFacts,
};
use selvage_ipamd_core::ids::{AttachmentId, EniId, SubnetId};
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
        prefixes: all(
            eni.ipv4_prefixes().iter().map(|found| found.ipv4_prefix()),
            || without("a prefix"),
        )?,
        ipv6_addresses: all(
            eni.ipv6_addresses()
                .iter()
                .map(|found| found.ipv6_address()),
            || without("an IPv6 address"),
        )?,
        ipv6_prefixes: all(
            eni.ipv6_prefixes().iter().map(|found| found.ipv6_prefix()),
            || without("an IPv6 prefix"),
        )?,
        attachment,
        kind: eni_kind(eni),
        description: eni.description().unwrap_or_default().to_owned(),
        tags: tags(eni.tag_set()),
    })
}

fn all<'a, T: FromStr + Ord>(
    texts: impl Iterator<Item = Option<&'a str>>,
    unreadable: impl Fn() -> CloudError,
) -> Result<BTreeSet<T>, CloudError> {
    texts
        .map(|text| {
            text.and_then(|text| text.parse().ok())
                .ok_or_else(&unreadable)
        })
        .collect()
}

/// A single address as a block of one.
pub(super) fn single(text: &str) -> Option<IpNet> {
    text.parse::<IpAddr>().ok().map(IpNet::from)
}

/// Reads an interface that is attached to nothing.
///
/// # Errors
/// `Unknown` when it has no identifier.
pub(super) fn loose_eni(eni: &NetworkInterface) -> Result<LooseEni, CloudError> {
    let id = eni
        .network_interface_id()
        .ok_or_else(|| missing(Operation::FindLooseEnis, "identifier", "an interface"))?;
    Ok(LooseEni {
        id: EniId::new(id),
        description: eni.description().unwrap_or_default().to_owned(),
        tags: tags(eni.tag_set()),
    })
}

/// Reads a subnet.
///
/// # Errors
/// `Unknown` when its identifier, block or free addresses are missing or unreadable.
pub(super) fn subnet_facts(
    operation: Operation,
    subnet: &Subnet,
) -> Result<SubnetFacts, CloudError> {
    let id = subnet
        .subnet_id()
        .ok_or_else(|| missing(operation, "identifier", "a subnet"))?;
    let block = subnet.cidr_block().and_then(|text| text.parse().ok());
    let available = subnet
        .available_ip_address_count()
        .and_then(|n| u32::try_from(n).ok());
    Ok(SubnetFacts {
        id: SubnetId::new(id),
        block: block.ok_or_else(|| missing(operation, "block", id))?,
        available: available.ok_or_else(|| missing(operation, "free addresses", id))?,
        tags: tags(subnet.tags()),
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

fn tags(tags: &[Tag]) -> BTreeMap<String, String> {
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
    let limits = limits.with_prefixes(nitro || info.bare_metal() == Some(true));
    let vcpus = info
        .v_cpu_info()
        .and_then(|vcpus| vcpus.default_v_cpus())
        .and_then(|n| u32::try_from(n).ok());
    Ok(vcpus.map_or(limits, |vcpus| limits.with_vcpus(vcpus)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sdk_ec2::types::builders::NetworkInterfaceBuilder;
    use aws_sdk_ec2::types::{
        NetworkCardInfo, NetworkInfo, NetworkInterfaceAttachment, NetworkInterfacePrivateIpAddress,
        NetworkInterfaceType,
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
        let info = InstanceTypeInfo::builder().network_info(
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
    }
}
