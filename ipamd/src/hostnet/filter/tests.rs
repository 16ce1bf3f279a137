use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use selvage_ipamd_core::ids::Mac;

use super::*;
use crate::hostnet::{DEFAULT_MARK, Pods, forward};

/// A node that leaves these blocks alone, and what it wants of its tables.
fn pods(exempt: &[&str], excluded: &[&str]) -> PodsV4 {
    let blocks = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect();
    PodsV4 {
        primary_address: Ipv4Addr::new(10, 40, 0, 4),
        snat: Snat::Here {
            exempt: blocks(exempt),
            excluded: blocks(excluded),
            randomize: RandomizeSnat::Prng,
        },
        node_port: true,
        external_services: [].into(),
    }
}

fn tables(pods: &PodsV4) -> Vec<Table> {
    let node = NodeNet {
        primary_mac: Mac([2, 0, 0, 0, 0, 5]),
        veth_prefix: "eni".into(),
        mark: DEFAULT_MARK,
        pods: Pods::V4(pods.clone()),
    };
    wanted(&node, pods, "ens5", Marking::Here).unwrap()
}

type There = BTreeMap<&'static str, Vec<String>>;

fn lines(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|t| (*t).to_owned()).collect()
}

fn text(table: &Table, there: &There) -> Option<String> {
    transaction(table, &|chain| there.get(chain).map(Vec::as_slice))
}

/// What the tables hold after a transaction, as the tools do it.
fn after(text: &str, mut there: There, names: &[&'static str]) -> There {
    for line in text.lines() {
        for name in names {
            if line.starts_with(&format!(":{name} ")) {
                there.insert(name, vec![format!("-N {name}")]);
            } else if line.starts_with(&format!("-A {name} ")) {
                there.entry(name).or_default().push(line.to_owned());
            } else if let Some(rule) = line.strip_prefix(&format!("-D {name} ")) {
                let gone = format!("-A {name} {rule}");
                let list = there.get_mut(name).unwrap();
                let index = list
                    .iter()
                    .position(|l| *l == gone)
                    .expect("what is deleted is there");
                list.remove(index);
            }
        }
    }
    there
}

const NAT: [&str; 4] = [
    "AWS-SNAT-CHAIN-0",
    "AWS-CONNMARK-CHAIN-0",
    "POSTROUTING",
    "PREROUTING",
];

#[test]
fn a_fresh_node_gets_chains_and_jumps_in_one_transaction() {
    let tables = tables(&pods(
        &["10.40.0.0/16", "172.16.0.0/12"],
        &["172.16.0.0/12"],
    ));
    let there = There::from([
        ("POSTROUTING", lines(&["-P POSTROUTING ACCEPT"])),
        ("PREROUTING", lines(&["-P PREROUTING ACCEPT"])),
    ]);
    assert_eq!(
        text(&tables[0], &there).unwrap(),
        "*nat\n\
         :AWS-SNAT-CHAIN-0 - [0:0]\n\
         :AWS-CONNMARK-CHAIN-0 - [0:0]\n\
         -A AWS-SNAT-CHAIN-0 -d 10.40.0.0/16 -m comment --comment \"AWS SNAT CHAIN\" -j RETURN\n\
         -A AWS-SNAT-CHAIN-0 -d 172.16.0.0/12 -m comment --comment \"AWS SNAT CHAIN EXCLUSION\" -j RETURN\n\
         -A AWS-SNAT-CHAIN-0 ! -o vlan+ -m comment --comment \"AWS, SNAT\" -m addrtype ! --dst-type LOCAL -j SNAT --to-source 10.40.0.4 --random-fully\n\
         -A AWS-CONNMARK-CHAIN-0 -d 10.40.0.0/16 -m comment --comment \"AWS CONNMARK CHAIN\" -j RETURN\n\
         -A AWS-CONNMARK-CHAIN-0 -d 172.16.0.0/12 -m comment --comment \"AWS CONNMARK CHAIN\" -j RETURN\n\
         -A AWS-CONNMARK-CHAIN-0 -m comment --comment \"AWS, CONNMARK\" -j CONNMARK --set-xmark 0x80/0x80\n\
         -A POSTROUTING -m comment --comment \"AWS SNAT CHAIN\" -j AWS-SNAT-CHAIN-0\n\
         -A PREROUTING -i eni+ -m comment --comment \"AWS, outbound connections\" -j AWS-CONNMARK-CHAIN-0\n\
         -A PREROUTING -m comment --comment \"AWS, CONNMARK\" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80\n\
         COMMIT\n"
    );
    assert_eq!(
        text(&tables[1], &There::new()).unwrap(),
        "*mangle\n\
         -A PREROUTING -i ens5 -m comment --comment \"AWS, primary ENI\" -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-xmark 0x80/0x80\n\
         -A PREROUTING -i eni+ -m comment --comment \"AWS, primary ENI\" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80\n\
         -A PREROUTING -i vlan+ -m comment --comment \"AWS, primary ENI\" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80\n\
         COMMIT\n"
    );
}

#[test]
fn what_a_transaction_made_needs_no_other() {
    let first = tables(&pods(&["10.40.0.0/16"], &[]));
    let there = after(&text(&first[0], &There::new()).unwrap(), There::new(), &NAT);
    assert_eq!(text(&first[0], &there), None);

    // A new block: both chains are replaced, the jumps stay.
    let second = tables(&pods(&["10.40.0.0/16", "10.41.0.0/16"], &[]));
    let change = text(&second[0], &there).unwrap();
    assert!(!change.contains("ROUTING"), "{change}");
    let there = after(&change, there, &NAT);
    assert_eq!(text(&second[0], &there), None);

    // No longer ours to translate: jumps and rules go, in an order that the tool can follow.
    let none = tables(&PodsV4 {
        snat: Snat::External,
        node_port: false,
        ..pods(&[], &[])
    });
    let there = after(&text(&none[0], &there).unwrap(), there, &NAT);
    assert_eq!(text(&none[0], &there), None);
    assert!(
        there.values().flatten().all(|line| !line.contains("-j")),
        "{there:?}"
    );
    assert_eq!(text(&none[0], &There::new()), None, "nor on a fresh node");
}

#[test]
fn everything_is_written_without_a_destination() {
    let tables = tables(&pods(&["0.0.0.0/0"], &[]));
    let rule = &tables[0].chains[0].rules[0];
    assert_eq!(rule, "-m comment --comment \"AWS SNAT CHAIN\" -j RETURN");
}

#[test]
fn strangers_rules_are_neither_moved_nor_removed() {
    let tables = tables(&pods(&["10.40.0.0/16"], &[]));
    let there = There::from([(
        "POSTROUTING",
        lines(&[
            "-P POSTROUTING ACCEPT",
            "-A POSTROUTING -m comment --comment \"AWS SNAT CHAIN\" -j AWS-SNAT-CHAIN-0",
            "-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING",
        ]),
    )]);
    let change = text(&tables[0], &there).unwrap();
    assert!(!change.contains("POSTROUTING"), "{change}");
}

#[test]
fn forward_is_touched_only_where_its_policy_drops_and_ours_are_kept_last() {
    let ours = "-A FORWARD -i eni+ -m comment --comment \"selvage: pods\" -j ACCEPT\n\
                -A FORWARD -o eni+ -m comment --comment \"selvage: pods\" -j ACCEPT\n";
    let change = |listed: &[&str]| {
        let listed = lines(listed);
        let table = forward::wanted("eni", &listed);
        text(&table, &There::from([("FORWARD", listed)]))
    };
    assert_eq!(change(&["-P FORWARD ACCEPT", "-A FORWARD -j DROP"]), None);
    let want = format!("*filter\n{ours}COMMIT\n");
    assert_eq!(
        change(&["-P FORWARD DROP", "-A FORWARD -j agent"]),
        Some(want)
    );

    let (first, second) = ours.trim_end().split_once('\n').unwrap();
    assert_eq!(
        change(&["-P FORWARD DROP", "-A FORWARD -j agent", first, second]),
        None
    );
    let out = ours.replace("-A FORWARD", "-D FORWARD");
    assert_eq!(
        change(&["-P FORWARD DROP", first, second, "-A FORWARD -j DROP"]),
        Some(format!("*filter\n{out}{ours}COMMIT\n")),
        "somebody came after us"
    );
    assert_eq!(
        change(&["-P FORWARD ACCEPT", first, second]),
        Some(format!("*filter\n{out}COMMIT\n")),
        "the policy is no longer DROP"
    );
}
