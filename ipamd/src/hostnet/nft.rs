//! Marking connections beside a kube-proxy in nftables mode: pure, the text of a table of our own.
//!
//! A connection is marked if it leaves the VPC, which nobody can say of a Service's address. In iptables mode kube-proxy's
//! jump stands before ours and a translated packet does not come by. In nftables mode kube-proxy has a chain of its own
//! at the same hook and priority as that of `iptables-nft`, and the one that was made later comes first. So the mark is
//! made in a chain that comes after both (-90; destinations are translated at -100), under the names that AWS's agent
//! uses there. AWS's chain is of type nat, and the kernel asks no second nat chain about a connection that the first
//! has translated; ours is of type filter and sees every packet.

use std::fmt::Write as _;

use super::filter::{Marking, exempt};
use super::{HostError, NodeNet, PodsV4, Snat};

/// Our table, by AWS's name.
pub(super) const TABLE: &str = "aws-cni";
/// The table by which kube-proxy in nftables mode is known.
const KUBE_PROXY: &str = "kube-proxy";
/// Takes our table away.
pub(super) const REMOVE: &str = "delete table ip aws-cni\n";

/// Where marks belong, by the tables that are there.
pub(super) fn marking(tables: &[String]) -> Marking {
    if tables.iter().any(|t| t == KUBE_PROXY) {
        Marking::Nft
    } else {
        Marking::Here
    }
}

/// Whether our table is there (or one that AWS's agent has left).
pub(super) fn is_there(tables: &[String]) -> bool {
    tables.iter().any(|t| t == TABLE)
}

/// The script that makes our table, in place of what is there; `None` if there should be none.
pub(super) fn wanted(
    node: &NodeNet,
    pods: &PodsV4,
    marking: Marking,
) -> Result<Option<String>, HostError> {
    match (&pods.snat, marking) {
        (Snat::External, _) | (Snat::Here { .. }, Marking::Here) => return Ok(None),
        (Snat::Here { .. }, Marking::Nft) => {}
    }
    let mut returns = String::new();
    for block in exempt(pods)? {
        // Writing to a String cannot fail.
        let _ = writeln!(returns, "    ip daddr {block} return");
    }
    let (prefix, mark) = (&node.veth_prefix, node.mark);
    // To declare a table, to delete it and to make it is to replace it, in one transaction, whatever it was.
    Ok(Some(format!(
        "table ip {TABLE} {{}}\n\
         delete table ip {TABLE}\n\
         table ip {TABLE} {{\n\
         \x20 chain snat-mark {{\n\
         {returns}\
         \x20   ct mark set ct mark or {mark:#x}\n\
         \x20 }}\n\
         \x20 chain nat-prerouting {{\n\
         \x20   type filter hook prerouting priority -90; policy accept;\n\
         \x20   iifname \"{prefix}*\" ct state new fib daddr type != local jump snat-mark\n\
         \x20   iifname \"{prefix}*\" ct mark and {mark:#x} == {mark:#x} meta mark set meta mark or {mark:#x}\n\
         \x20 }}\n\
         }}\n"
    )))
}
