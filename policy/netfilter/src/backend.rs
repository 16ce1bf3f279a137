//! Which iptables the node uses: the kubelet's traces first, then where the rules are.
//!
//! The rule is Felix's, so that two agents on a node choose alike, but for one case: where there is
//! nothing to go by, it takes the one whose tables exist. Felix would take legacy, and thereby load
//! modules that newer kernels lack. A wrong choice is no hole: both backends are always in force.

use std::time::Duration;

use selvage_policy_core::ruleset::Family;

use crate::error::Error;
use crate::iptables::Backend;
use crate::legacy;
use crate::nftables::Nftables;
use crate::socket::Nfnetlink;

/// Chains that the kubelet makes in `mangle`, with the iptables of its host.
const KUBELET: [&str; 2] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"];

/// What one backend shows, both families together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Evidence {
    kubelet: bool,
    tables: bool,
    rules: usize,
}

/// The backend to use: `fixed` if there is one, else the node's own.
///
/// Reads by netlink, and legacy tables only where they exist, so that no module is loaded.
///
/// *Errors*: those of reading; a kernel without nf_tables or a node without legacy tools is none.
///
/// *Needs*: `CAP_NET_ADMIN`.
pub fn choose(fixed: Option<Backend>, patience: Duration) -> Result<Backend, Error> {
    if let Some(backend) = fixed {
        return Ok(backend);
    }
    let nft = nft(patience)?;
    let legacy = legacy()?;
    let chosen = decide(nft, legacy);
    tracing::info!(backend = %chosen, ?nft, ?legacy, "iptables backend chosen");
    Ok(chosen)
}

fn decide(nft: Evidence, legacy: Evidence) -> Backend {
    if nft.kubelet {
        Backend::Nft
    } else if legacy.kubelet {
        Backend::Legacy
    } else if nft.rules > legacy.rules || !legacy.tables {
        Backend::Nft
    } else {
        Backend::Legacy
    }
}

fn nft(patience: Duration) -> Result<Evidence, Error> {
    let mut nftables = Nftables::new(Nfnetlink::open(patience)?);
    let mut evidence = Evidence::default();
    for family in [Family::V6, Family::V4] {
        let census = nftables.census(family)?;
        evidence.kubelet |= has_kubelets(&census.mangle_chains);
        evidence.tables |= !census.mangle_chains.is_empty();
        evidence.rules += census.rules;
    }
    Ok(evidence)
}

fn legacy() -> Result<Evidence, Error> {
    let mut evidence = Evidence::default();
    for family in [Family::V6, Family::V4] {
        let census = legacy::census(family)?;
        evidence.kubelet |= has_kubelets(&census.mangle_chains);
        evidence.tables |= census.tables;
        evidence.rules += census.rules;
    }
    Ok(evidence)
}

fn has_kubelets(chains: &[String]) -> bool {
    chains.iter().any(|chain| KUBELET.contains(&chain.as_str()))
}

#[cfg(test)]
mod tests {
    use super::{Evidence, decide};
    use crate::iptables::Backend::{Legacy, Nft};

    fn seen(kubelet: bool, tables: bool, rules: usize) -> Evidence {
        Evidence {
            kubelet,
            tables,
            rules,
        }
    }

    #[test]
    fn the_kubelets_trace_decides_then_the_rules_then_what_exists() {
        for (nft, legacy, chosen, why) in [
            (
                seen(true, true, 1),
                seen(true, true, 9),
                Nft,
                "kubelet in both",
            ),
            (
                seen(false, true, 9),
                seen(true, true, 1),
                Legacy,
                "kubelet in legacy",
            ),
            (
                seen(false, true, 2),
                seen(false, true, 1),
                Nft,
                "more rules in nft",
            ),
            (
                seen(false, true, 1),
                seen(false, true, 2),
                Legacy,
                "more in legacy",
            ),
            (seen(false, true, 1), seen(false, true, 1), Legacy, "a tie"),
            (
                seen(false, false, 0),
                seen(false, false, 0),
                Nft,
                "nothing anywhere",
            ),
        ] {
            assert_eq!(decide(nft, legacy), chosen, "{why}");
        }
    }
}
