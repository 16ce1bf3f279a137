//! One rule of a policy: understood whole, or not at all.

use std::num::NonZeroU16;

use ipnet::IpNet;

use super::BadRule;
use crate::api;
use crate::model::{
    AddressSet, BadSelector, NamespaceName, Namespaces, Peer, PeerSelector, Peers, Rule, Selector,
    Traffic,
};
use crate::ruleset::{Family, PortRange, Protocol};

pub(super) fn rule(
    namespace: &NamespaceName,
    peers: &[api::Peer],
    ports: &[api::Port],
) -> Result<Rule, BadRule> {
    let peers = if peers.is_empty() {
        Peers::Everyone
    } else {
        let listed = peers.iter().enumerate();
        let listed = listed.map(|(index, entry)| peer(namespace, index, entry));
        Peers::Listed(listed.collect::<Result<_, _>>()?)
    };
    let traffic = if ports.is_empty() {
        vec![Traffic::Any]
    } else {
        ports.iter().map(traffic).collect::<Result<_, _>>()?
    };
    Ok(Rule { peers, traffic })
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
        (None, None, Some(block)) => addresses(index, block).map(Peer::Addresses),
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
    let mut understood = Selector::everything();
    for (key, value) in &selector.match_labels {
        understood.require_label(key, value)?;
    }
    for entry in &selector.match_expressions {
        understood.require(&entry.key, &entry.operator, &entry.values)?;
    }
    Ok(understood)
}

fn addresses(index: usize, block: &api::IpBlock) -> Result<AddressSet, BadRule> {
    let parse = |text: &str| {
        text.parse::<IpNet>().map_err(|_| BadRule::Cidr {
            index,
            text: text.to_owned(),
        })
    };
    let net = parse(&block.cidr)?;
    let mut set = AddressSet::block(net);
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
        set.subtract(except);
    }
    Ok(set)
}

fn traffic(entry: &api::Port) -> Result<Traffic, BadRule> {
    let protocol = match entry.protocol.as_deref() {
        None | Some("TCP") => Protocol::Tcp,
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        Some(other) => return Err(BadRule::Protocol(other.to_owned())),
    };
    let first = match &entry.port {
        Some(api::IntOrString::Int(number)) => port(*number)?,
        Some(api::IntOrString::Text(name)) => return Err(BadRule::NamedPort(name.clone())),
        None => {
            return match entry.end_port {
                Some(end) => Err(BadRule::EndPort { end }),
                None => Ok(Traffic::Protocol(protocol)),
            };
        }
    };
    let Some(end) = entry.end_port else {
        return Ok(Traffic::Ports(protocol, PortRange::one(first)));
    };
    match PortRange::new(first, port(end)?) {
        Some(range) => Ok(Traffic::Ports(protocol, range)),
        None => Err(BadRule::EndPort { end }),
    }
}

fn port(number: i64) -> Result<NonZeroU16, BadRule> {
    u16::try_from(number)
        .ok()
        .and_then(NonZeroU16::new)
        .ok_or(BadRule::Port(number))
}
