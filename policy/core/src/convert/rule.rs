//! One rule of a policy: understood whole, or not at all.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU16;

use ipnet::{IpNet, Ipv4Net};

use super::BadRule;
use crate::api;
use crate::model::{
    AddressSet, BadSelector, NamedPort, NamespaceName, Namespaces, Peer, PeerSelector, Peers,
    PortName, Requirements, Rule, Selector, Traffic,
};
use crate::ruleset::{Family, PortRange, Protocol};

/// 2^18: blocks times single ports that one rule may put into sets. A `::/0` with 500 exceptions
/// comes to 64,000 blocks at most, 10,000 addresses on 20 ports to 200,000; filling such a set
/// takes the kernel 0.1 s.
const MEMBERS_MAX: usize = 1 << 18;

pub(super) fn rule(
    namespace: &NamespaceName,
    peers: &[api::Peer],
    ports: &[api::Port],
) -> Result<Rule, BadRule> {
    let (mut numbers, mut named) = (BTreeSet::new(), BTreeSet::new());
    for entry in ports {
        match traffic(entry)? {
            Asked::Numbers(traffic) => {
                numbers.insert(traffic);
            }
            Asked::Name(name) => {
                named.insert(name);
            }
        }
    }
    if ports.is_empty() {
        numbers.insert(Traffic::Any);
    }
    let mut allowed = Peers::Everyone;
    if !peers.is_empty() {
        let (mut listed, mut blocks) = (Vec::new(), Vec::new());
        for (index, entry) in peers.iter().enumerate() {
            match peer(namespace, index, entry)? {
                Peer::Addresses(addresses) => blocks.push(*addresses),
                pods @ Peer::Pods(_) => listed.push(pods),
            }
        }
        if !blocks.is_empty() {
            let blocks = AddressSet::union(&blocks);
            check_size(&blocks, &numbers)?;
            listed.push(Peer::Addresses(Box::new(blocks)));
        }
        allowed = Peers::Listed(listed.into());
    }
    Ok(Rule {
        peers: allowed,
        traffic: numbers.into_iter().collect(),
        named: named.into_iter().collect(),
    })
}

fn check_size(blocks: &AddressSet, traffic: &BTreeSet<Traffic>) -> Result<(), BadRule> {
    let single = traffic
        .iter()
        .filter(|traffic| matches!(traffic, Traffic::Ports(_, ports) if ports.single().is_some()));
    let nets = [Family::V4, Family::V6].map(|family| blocks.nets(family).len());
    let members = (nets[0] + nets[1]).saturating_mul(single.count().max(1));
    if members > MEMBERS_MAX {
        let limit = MEMBERS_MAX;
        return Err(BadRule::TooLarge { members, limit });
    }
    Ok(())
}

fn peer(namespace: &NamespaceName, index: usize, entry: &api::Peer) -> Result<Peer, BadRule> {
    let bad = |reason| BadRule::Selector { index, reason };
    let pods = |selector| self::selector(selector).map_err(bad);
    match (
        &entry.namespace_selector,
        &entry.pod_selector,
        &entry.ip_block,
    ) {
        (None, None, None) => Err(BadRule::EmptyPeer { index }),
        (None, None, Some(block)) => {
            addresses(index, block).map(|it| Peer::Addresses(Box::new(it)))
        }
        (Some(_), _, Some(_)) | (_, Some(_), Some(_)) => Err(BadRule::MixedPeer { index }),
        (None, Some(selector), None) => Ok(Peer::Pods(PeerSelector {
            namespaces: Namespaces::Named(namespace.clone()),
            pods: pods(selector)?,
        })),
        (Some(namespaces), selector, None) => Ok(Peer::Pods(PeerSelector {
            namespaces: Namespaces::Matching(pods(namespaces)?),
            pods: match selector {
                Some(selector) => pods(selector)?,
                None => Selector::everything(),
            },
        })),
    }
}

pub(super) fn selector(selector: &api::LabelSelector) -> Result<Selector, BadSelector> {
    let mut understood = Requirements::default();
    for (key, value) in &selector.match_labels {
        understood.require_label(key, value)?;
    }
    for entry in &selector.match_expressions {
        understood.require(&entry.key, &entry.operator, &entry.values)?;
    }
    Ok(understood.into())
}

fn addresses(index: usize, block: &api::IpBlock) -> Result<AddressSet, BadRule> {
    let parse = |text: &str| {
        text.parse::<IpNet>()
            .map(canonical)
            .map_err(|_| BadRule::Cidr {
                index,
                text: text.to_owned(),
            })
    };
    let net = parse(&block.cidr)?;
    let mut exceptions = Vec::new();
    for text in &block.except {
        let except = parse(text)?;
        let inside = Family::of(&except) == Family::of(&net)
            && except.prefix_len() > net.prefix_len()
            && net.contains(&except.network());
        if !inside {
            return Err(BadRule::Except {
                index,
                cidr: block.cidr.clone(),
                except: text.clone(),
            });
        }
        exceptions.push(AddressSet::block(except));
    }
    let mut set = AddressSet::block(net);
    set.subtract(&AddressSet::union(&exceptions));
    Ok(set)
}

/// A block of IPv4 addresses in IPv6's clothes is a block of IPv4 addresses.
fn canonical(net: IpNet) -> IpNet {
    const MAPPED: u8 = 96;
    let mapped = match (
        net.network().to_canonical(),
        net.prefix_len().checked_sub(MAPPED),
    ) {
        (IpAddr::V4(address), Some(prefix)) if matches!(net, IpNet::V6(_)) => {
            Ipv4Net::new(address, prefix).ok()
        }
        _ => None,
    };
    mapped.map_or(net, IpNet::V4)
}

/// What a port entry asks for.
enum Asked {
    Numbers(Traffic),
    Name(NamedPort),
}

fn traffic(entry: &api::Port) -> Result<Asked, BadRule> {
    let protocol = match entry.protocol.as_deref() {
        None | Some("TCP") => Protocol::Tcp,
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        Some(other) => return Err(BadRule::Protocol(other.to_owned())),
    };
    let first = match &entry.port {
        Some(api::IntOrString::Int(number)) => port(*number)?,
        Some(api::IntOrString::Text(text)) => {
            let name = PortName::new(text).ok_or_else(|| BadRule::PortName(text.clone()))?;
            return match entry.end_port {
                Some(end) => Err(BadRule::NamedRange {
                    name: text.clone(),
                    end,
                }),
                None => Ok(Asked::Name(NamedPort { protocol, name })),
            };
        }
        None => {
            return match entry.end_port {
                Some(end) => Err(BadRule::EndPort { end }),
                None => Ok(Asked::Numbers(Traffic::Protocol(protocol))),
            };
        }
    };
    let Some(end) = entry.end_port else {
        return Ok(Asked::Numbers(Traffic::Ports(
            protocol,
            PortRange::one(first),
        )));
    };
    match PortRange::new(first, port(end)?) {
        Some(range) => Ok(Asked::Numbers(Traffic::Ports(protocol, range))),
        None => Err(BadRule::EndPort { end }),
    }
}

fn port(number: i64) -> Result<NonZeroU16, BadRule> {
    u16::try_from(number)
        .ok()
        .and_then(NonZeroU16::new)
        .ok_or(BadRule::Port(number))
}
