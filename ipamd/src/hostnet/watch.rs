//! Which of the kernel's notifications may be about what is ours, and what veths were born with.
//!
//! A veth's hardware address on the host is known to its pod as that of its gateway, for ever. Who changes it (systemd
//! with MACAddressPolicy=persistent, a script) makes the pod deaf. So the first address that is seen of a link is
//! remembered: notifications come in order, and the one that tells of the veth's birth comes before any change.

use std::collections::BTreeMap;

use ipnet::IpNet;
use selvage_nodenet::link::Link;
use selvage_nodenet::route::Route;
use selvage_nodenet::{Event, LinkIndex, Mac, TableChange, TableId};

use super::{filter, nft, priority};

/// What is known of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    born: Option<Mac>,
    mac: Option<Mac>,
    mtu: u32,
    up: bool,
}

/// All links, as far as they were told of.
#[derive(Debug, Default)]
pub(super) struct Watch {
    links: BTreeMap<LinkIndex, Seen>,
}

impl Watch {
    /// Takes in a change. True if what is ours may be wrong since.
    ///
    /// New rules and routes are let pass, except by the slow look: the plugin makes them with each pod. What is removed
    /// counts, with each pod that goes too: a look costs little.
    pub(super) fn take(&mut self, event: &Event) -> bool {
        match event {
            Event::Link(link) => self.see(link),
            Event::LinkGone(index) => {
                self.links.remove(index);
                false
            }
            Event::Address(address) | Event::AddressGone(address) => address.global,
            Event::RouteGone(route) => is_of_a_pod_or_an_eni(route),
            Event::RuleGone(rule) => priority::ALL.contains(&rule.priority),
            Event::Route(_) | Event::Rule(_) => false,
            Event::Table(change) => is_of_ours(change),
            Event::Overrun => true,
        }
    }

    /// Takes in a listing, which is newer than every event taken in: links that are not in it are gone.
    pub(super) fn learn(&mut self, links: &[Link]) {
        self.links
            .retain(|index, _| links.iter().any(|link| link.index == *index));
        for link in links {
            self.see(link);
        }
    }

    /// The hardware address that a link had when it was first seen.
    pub(super) fn born(&self, index: LinkIndex) -> Option<Mac> {
        self.links.get(&index)?.born
    }

    fn see(&mut self, link: &Link) -> bool {
        let Link { mac, mtu, up, .. } = *link;
        match self.links.get_mut(&link.index) {
            None => {
                let born = mac;
                self.links.insert(link.index, Seen { born, mac, mtu, up });
                false
            }
            Some(seen) => {
                let worse = seen.mac != mac || seen.mtu != mtu || (seen.up && !up);
                *seen = Seen {
                    mac,
                    mtu,
                    up,
                    ..*seen
                };
                worse
            }
        }
    }
}

/// Whether what has changed is a chain of ours, or one in which rules of ours are guests.
fn is_of_ours(change: &TableChange) -> bool {
    let TableChange { table, chain } = change;
    let chains: &[&str] = match table.as_str() {
        "nat" => &[
            filter::SNAT_CHAIN,
            filter::CONNMARK_CHAIN,
            "PREROUTING",
            "POSTROUTING",
        ],
        "mangle" => &["PREROUTING"],
        "filter" => &["FORWARD"],
        table => return table == nft::TABLE,
    };
    chain
        .as_ref()
        .is_none_or(|chain| chains.contains(&chain.as_str()))
}

fn is_of_a_pod_or_an_eni(route: &Route) -> bool {
    let whole = match route.destination {
        IpNet::V4(net) => net.prefix_len() == 32,
        IpNet::V6(net) => net.prefix_len() == 128,
    };
    match route.table {
        TableId::LOCAL => false,
        TableId::MAIN => whole,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use selvage_nodenet::rule::{Family, Rule};

    fn link(index: u32, mac: u8) -> Link {
        Link {
            index: LinkIndex::new(index).unwrap(),
            name: "eni1".into(),
            mac: Some(Mac::new([2, 0, 0, 0, 0, mac])),
            mtu: 9001,
            up: true,
            operational: true,
            kind: Some("veth".into()),
            peer: None,
        }
    }

    #[test]
    fn the_address_that_a_veth_was_born_with_outlives_what_is_made_of_it() {
        let mut watch = Watch::default();
        let veth = link(7, 1);
        assert!(!watch.take(&Event::Link(veth.clone())), "a veth is born");
        assert!(!watch.take(&Event::Link(veth.clone())), "nothing new");
        assert!(watch.take(&Event::Link(link(7, 9))), "rewritten");
        watch.learn(&[link(7, 9)]);
        assert_eq!(watch.born(veth.index), veth.mac);
        watch.take(&Event::LinkGone(veth.index));
        watch.take(&Event::Link(link(7, 3)));
        assert_eq!(watch.born(veth.index), link(7, 3).mac, "another link");
        watch.learn(&[]);
        assert_eq!(watch.born(veth.index), None, "gone while nobody told");
    }

    #[test]
    fn a_link_that_goes_down_or_changes_its_mtu_is_a_disturbance_and_one_that_comes_up_is_none() {
        let mut watch = Watch::default();
        let up = link(7, 1);
        let down = Link {
            up: false,
            ..up.clone()
        };
        watch.take(&Event::Link(down.clone()));
        assert!(!watch.take(&Event::Link(up.clone())));
        assert!(watch.take(&Event::Link(down)));
        watch.take(&Event::Link(up.clone()));
        assert!(watch.take(&Event::Link(Link { mtu: 1500, ..up })));
    }

    #[test]
    fn what_is_removed_of_the_kinds_that_are_ours_is_a_disturbance() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let veth = LinkIndex::new(7).unwrap();
        let mut watch = Watch::default();
        for (table, destination, disturbs) in [
            (TableId::MAIN, "10.40.0.9/32", true),
            (TableId::MAIN, "10.40.0.0/20", false),
            (TableId::MAIN, "2001:db8::9/128", true),
            (TableId::MAIN, "fe80::/64", false),
            (TableId::LOCAL, "10.40.0.9/32", false),
            (TableId(2), "0.0.0.0/0", true),
        ] {
            let route = Route::on_link(table, net(destination), veth);
            let event = Event::RouteGone(route.clone());
            assert_eq!(watch.take(&event), disturbs, "{destination} in {table}");
            assert!(!watch.take(&Event::Route(route)), "{destination} is new");
        }
        for (priority, disturbs) in [(512, true), (1024, true), (1536, true), (100, false)] {
            let rule = Rule::new(Family::V4, priority, TableId::MAIN);
            assert_eq!(watch.take(&Event::RuleGone(rule)), disturbs, "{priority}");
        }
        assert!(watch.take(&Event::Overrun));
    }

    #[test]
    fn tables_disturb_where_rules_of_ours_are() {
        let mut watch = Watch::default();
        for (table, chain, disturbs) in [
            ("nat", Some("AWS-SNAT-CHAIN-0"), true),
            ("nat", Some("AWS-CONNMARK-CHAIN-0"), true),
            ("nat", Some("POSTROUTING"), true),
            ("nat", Some("KUBE-POSTROUTING"), false),
            ("nat", None, true),
            ("mangle", Some("PREROUTING"), true),
            ("mangle", Some("FORWARD"), false),
            ("filter", Some("FORWARD"), true),
            ("filter", Some("INPUT"), false),
            ("aws-cni", Some("snat-mark"), true),
            ("aws-cni", None, true),
            ("kube-proxy", Some("nat-postrouting"), false),
            ("kube-proxy", None, false),
        ] {
            let change = TableChange {
                table: table.to_owned(),
                chain: chain.map(str::to_owned),
            };
            let told = watch.take(&Event::Table(change));
            assert_eq!(told, disturbs, "{chain:?} of {table}");
        }
    }
}
