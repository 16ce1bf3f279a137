//! A profile laid out without folding: a rule for each peer on each port or range, and one set for
//! each selector, which every profile uses that has it.
//!
//! Rules are bounded by what the policies say, peers times ports; members by the selectors in use,
//! however many ports and profiles these are for. A packet passes by what is about other ports
//! before any set is looked into.

use std::sync::Arc;

use super::{Bucket, Contents, Fill, Folded, Kind, SetId, Stamp};
use crate::model::{NamedPort, PeerSelector};
use crate::ruleset::{PortRange, Protocol};

impl Folded {
    /// The same, laid out apart.
    pub(crate) fn apart(&self) -> Self {
        let mut buckets = Vec::new();
        for bucket in &self.buckets {
            let contents = &bucket.contents;
            match bucket.kind {
                Kind::Any | Kind::Protocol(_) | Kind::Range(..) => {
                    for fill in contents.fills.values() {
                        fill.apart(bucket.kind, &mut buckets);
                    }
                }
                Kind::SinglePorts => {
                    for (protocol, ports, fill) in runs(contents) {
                        fill.apart(Kind::Range(protocol, ports), &mut buckets);
                    }
                    for (named, selector) in contents.named() {
                        buckets.push(of_named(named, selector));
                    }
                }
            }
        }
        Self {
            chain: self.chain.clone(),
            buckets,
        }
    }
}

impl Fill {
    /// A bucket for each peer.
    fn apart(&self, kind: Kind, buckets: &mut Vec<Bucket>) {
        let mut push = |set, fill| {
            let mut contents = Contents::new(set);
            contents.fills.insert(None, fill);
            buckets.push(Bucket {
                kind,
                contents: Arc::new(contents),
            });
        };
        if self.everyone || !self.blocks.is_empty() {
            let fill = Self {
                everyone: self.everyone,
                blocks: self.blocks.clone(),
                ..Self::default()
            };
            push(SetId::of_blocks(&self.blocks), fill);
        }
        for selector in &self.selectors {
            let fill = Self {
                selectors: [selector.clone()].into(),
                ..Self::default()
            };
            push(SetId::of_selector(selector, None), fill);
        }
    }
}

/// A peer's pods on the numbers that they call by a name: the set knows which.
fn of_named(named: &NamedPort, selector: &PeerSelector) -> Bucket {
    let mut contents = Contents::new(SetId::of_selector(selector, Some(named)));
    let selectors = [selector.clone()].into();
    contents.named.insert(named.clone(), selectors);
    Bucket {
        kind: Kind::SinglePorts,
        contents: Arc::new(contents),
    }
}

/// Single ports, those joined that stand side by side and are for the same peers.
fn runs(contents: &Contents) -> Vec<(Protocol, PortRange, &Fill)> {
    let mut runs: Vec<(Protocol, PortRange, &Fill)> = Vec::new();
    for (stamp, fill) in &contents.fills {
        let Some((protocol, port)) = port(*stamp) else {
            continue;
        };
        let joined = runs.last().and_then(|(before, ports, other)| {
            let joined = ports.and_next(port)?;
            (*before == protocol && *other == fill).then_some(joined)
        });
        match (joined, runs.last_mut()) {
            (Some(joined), Some(last)) => last.1 = joined,
            (Some(_) | None, _) => runs.push((protocol, port, fill)),
        }
    }
    runs
}

/// A single port has a number above zero, as the API has it.
fn port(stamp: Stamp) -> Option<(Protocol, PortRange)> {
    let (protocol, port) = stamp?;
    Some((protocol, PortRange::one(port.try_into().ok()?)))
}
