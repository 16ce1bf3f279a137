//! Pods' traffic on a host whose filter FORWARD policy is DROP (Docker sets it).
//!
//! Two rules accept what comes from and goes to our veths. They are appended, and kept last: whoever decides in this
//! chain decides before them, so that they replace the policy for pods and nothing else. Where the policy is ACCEPT
//! they would change nothing, and are not there.

use super::Part;
use super::filter::{Guests, Table};

const MARK: &str = "--comment \"selvage: pods\"";

/// What filter should hold, by the lines of its FORWARD chain.
pub(super) fn wanted(veth_prefix: &str, listed: &[String]) -> Table {
    let policy_drops = listed.iter().any(|line| line == "-P FORWARD DROP");
    let rules = if policy_drops {
        vec![
            format!("-i {veth_prefix}+ -m comment {MARK} -j ACCEPT"),
            format!("-o {veth_prefix}+ -m comment {MARK} -j ACCEPT"),
        ]
    } else {
        Vec::new()
    };
    Table {
        name: "filter",
        part: Part::Forward,
        chains: vec![],
        guests: vec![Guests {
            chain: "FORWARD",
            rules,
            ours: &[MARK],
            last: true,
        }],
    }
}
