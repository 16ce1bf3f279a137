//! Sets: what is written is what `ipset` and we read back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::Result;
use ipnet::IpNet;
use selvage_netfilter::ipset::IpSets;
use selvage_netfilter::{Backend, Error};
use selvage_policy_core::index::{MemberChange, MemberChanges};
use selvage_policy_core::ruleset::{Family, Member, Protocol, Set, SetKind, SetName};
use selvage_tests::{assert_isolated, run, run_with_input};

fn open() -> Result<IpSets> {
    assert_isolated()?;
    Ok(IpSets::open(Duration::from_secs(10))?)
}

fn name(text: &str) -> SetName {
    SetName::new(text).unwrap()
}

pub(crate) fn members(family: Family, kind: SetKind, count: u32) -> BTreeSet<Member> {
    let ports = [
        (Protocol::Tcp, 80),
        (Protocol::Udp, 53),
        (Protocol::Sctp, 9),
    ];
    (0..count)
        .map(|number| Member {
            net: IpNet::from(match family {
                Family::V4 => IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 + number)),
                Family::V6 => IpAddr::from(Ipv6Addr::from_bits((0xfd << 120) + u128::from(number))),
            }),
            port: match kind {
                SetKind::Net => None,
                SetKind::NetPort => Some(ports[number as usize % 3]),
                SetKind::Guard => unreachable!("nobody puts a member into a guard here"),
            },
        })
        .collect()
}

fn listed(set: &str) -> Result<BTreeSet<String>> {
    let text = run(&format!("ipset list {set}"))?;
    let (_, members) = text.split_once("Members:\n").unwrap();
    Ok(members.lines().map(str::to_owned).collect())
}

#[test]
fn ten_thousand_members_of_any_shape_come_back_as_written() -> Result<()> {
    let mut sets = open()?;
    for (text, family, kind) in [
        ("selvage-4n", Family::V4, SetKind::Net),
        ("selvage-4p", Family::V4, SetKind::NetPort),
        ("selvage-6n", Family::V6, SetKind::Net),
        ("selvage-6p", Family::V6, SetKind::NetPort),
    ] {
        let set = name(text);
        let written = members(family, kind, 10_000);
        sets.create(&set, family, kind, &written)?;
        let (header, read) = sets.read(&set)?;
        assert!(read == written, "{text}: {} members", read.len());
        assert_eq!(header.members, 10_000, "{text}");
        assert_eq!((header.kind, header.family), (Some(kind), Some(family)));
        assert_eq!(listed(text)?.len(), 10_000, "{text}, by the ipset tool");
    }
    assert_eq!(sets.list()?.len(), 4);
    Ok(())
}

#[test]
fn hundreds_of_sets_made_together_hold_what_each_was_given() -> Result<()> {
    let mut sets = open()?;
    let written: BTreeMap<SetName, Set> = (0..300)
        .map(|number: u32| {
            let kind = if number.is_multiple_of(2) {
                SetKind::Net
            } else {
                SetKind::NetPort
            };
            // Some are empty, most share a message with others, and a few need many of their own.
            let count = if number % 100 == 50 {
                5_000
            } else {
                number % 7
            };
            let members = members(Family::V4, kind, count);
            let members = members.into_iter().collect();
            (
                name(&format!("selvage-4-{number:03}")),
                Set { kind, members },
            )
        })
        .collect();
    let all: Vec<(&SetName, &Set)> = written.iter().collect();
    sets.make_sets(Family::V4, &all)?;
    let headers = sets.list()?;
    assert_eq!(headers.len(), written.len());
    assert!(headers.iter().all(|it| it.members == 0));
    let mut exchanges = 0;
    sets.fill_sets(&all, &mut || exchanges += 1)?;
    // Three that need several each; the others share a few.
    assert!((3..40).contains(&exchanges), "{exchanges}");
    for (name, set) in &written {
        let (header, read) = sets.read(name)?;
        assert_eq!(read, set.members, "{name}");
        assert_eq!(
            (header.kind, header.family),
            (Some(set.kind), Some(Family::V4))
        );
    }
    let again = sets.make_sets(Family::V4, &all);
    let again = again.unwrap_err().to_string();
    assert!(again.contains("selvage-4-000"), "{again}");
    // Some more beside them: each by itself.
    let more: Vec<SetName> = (0..20)
        .map(|it| name(&format!("selvage-4-x{it}")))
        .collect();
    let some = more.iter().map(|name| (name, &written[all[51].0]));
    let some: Vec<_> = some.collect();
    sets.make_sets(Family::V4, &some)?;
    sets.fill_sets(&some, &mut || {})?;
    let (_, read) = sets.read(&more[19])?;
    assert_eq!(read, written[all[51].0].members);
    Ok(())
}

#[test]
fn the_ipset_tool_reads_blocks_ports_and_protocols_as_they_were_meant() -> Result<()> {
    let mut sets = open()?;
    let set = name("selvage-a");
    let written: BTreeSet<Member> = ["10.0.0.0/8", "10.40.3.4/32", "128.0.0.0/1"]
        .into_iter()
        .zip([
            (Protocol::Tcp, 80),
            (Protocol::Udp, 53),
            (Protocol::Sctp, 65535),
        ])
        .map(|(net, port)| Member {
            net: net.parse().unwrap(),
            port: Some(port),
        })
        .collect();
    sets.create(&set, Family::V4, SetKind::NetPort, &written)?;
    let expected = [
        "10.0.0.0/8,tcp:80",
        "10.40.3.4,udp:53",
        "128.0.0.0/1,sctp:65535",
    ];
    assert_eq!(listed("selvage-a")?, expected.map(str::to_owned).into());
    Ok(())
}

#[test]
fn adding_what_is_there_and_removing_what_is_not_changes_nothing() -> Result<()> {
    let mut sets = open()?;
    let set = name("selvage-a");
    let ten = members(Family::V4, SetKind::Net, 10);
    let four = members(Family::V4, SetKind::Net, 4);
    sets.create(&set, Family::V4, SetKind::Net, &ten)?;
    sets.add(&set, &four)?;
    assert_eq!(sets.read(&set)?.1, ten);
    sets.remove(&set, &four)?;
    sets.remove(&set, &four)?;
    let rest: BTreeSet<Member> = ten.difference(&four).copied().collect();
    assert_eq!(sets.read(&set)?.1, rest);
    sets.flush(&set)?;
    assert!(sets.read(&set)?.1.is_empty());
    Ok(())
}

#[test]
fn a_member_that_does_not_fit_is_named_and_none_is_written() -> Result<()> {
    let mut sets = open()?;
    let set = name("selvage-a");
    sets.create(&set, Family::V4, SetKind::Net, &BTreeSet::new())?;
    for (net, port) in [
        ("0.0.0.0/0", None),
        ("fd00::/8", None),
        ("10.0.0.0/8", Some((Protocol::Tcp, 80))),
    ] {
        let mut wrong = members(Family::V4, SetKind::Net, 3);
        let net = net.parse()?;
        wrong.insert(Member { net, port });
        let error = sets.add(&set, &wrong).unwrap_err();
        assert!(
            matches!(&error, Error::BadMember { member, .. } if member.net == net),
            "{error}"
        );
    }
    assert!(sets.read(&set)?.1.is_empty());
    Ok(())
}

#[test]
fn two_sets_of_one_name_are_refused_in_the_kernels_words() -> Result<()> {
    let mut sets = open()?;
    let set = name("selvage-a");
    sets.create(&set, Family::V4, SetKind::Net, &BTreeSet::new())?;
    let error = sets
        .create(&set, Family::V6, SetKind::Net, &BTreeSet::new())
        .unwrap_err();
    assert_eq!(error.to_string(), "create set selvage-a");
    let Error::Refused { source, .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!(source.to_string(), "File exists (os error 17)");
    Ok(())
}

#[test]
fn a_set_that_fills_up_is_given_room_under_the_rule_that_matches_it() -> Result<()> {
    let mut sets = open()?;
    run("ipset create selvage-small hash:net family inet hashsize 64 maxelem 10")?;
    run_with_input(
        "iptables-nft-restore --noflush",
        "*mangle\n-A FORWARD -m set --match-set selvage-small src -j DROP\nCOMMIT\n",
    )?;
    let set = name("selvage-small");
    let hundred = members(Family::V4, SetKind::Net, 100);
    sets.add(&set, &members(Family::V4, SetKind::Net, 7))?;
    sets.add(&set, &hundred)?;
    let (header, read) = sets.read(&set)?;
    assert_eq!(read, hundred);
    assert!(header.room >= 400, "{header:?}");
    assert_eq!(header.references, 1, "the rule matches the new one");
    assert_eq!(sets.list()?.len(), 1, "the old one is gone");
    Ok(())
}

#[test]
fn what_a_crash_left_of_a_rebuilding_does_not_stop_the_next() -> Result<()> {
    let mut sets = open()?;
    run("ipset create selvage-rebuild hash:net,port family inet6")?;
    run("ipset create selvage-small hash:net family inet hashsize 64 maxelem 10")?;
    let hundred = members(Family::V4, SetKind::Net, 100);
    sets.add(&name("selvage-small"), &hundred)?;
    assert_eq!(sets.read(&name("selvage-small"))?.1, hundred);
    assert_eq!(sets.list()?.len(), 1);
    Ok(())
}

#[test]
fn swapping_exchanges_members_and_leaves_names() -> Result<()> {
    let mut sets = open()?;
    let (a, b) = (name("selvage-a"), name("selvage-b"));
    let (few, many) = (
        members(Family::V4, SetKind::Net, 3),
        members(Family::V4, SetKind::Net, 3000),
    );
    sets.create(&a, Family::V4, SetKind::Net, &few)?;
    sets.create(&b, Family::V4, SetKind::Net, &many)?;
    sets.swap(&a, &b)?;
    assert_eq!(sets.read(&a)?.1, many);
    assert_eq!(sets.read(&b)?.1, few);
    Ok(())
}

#[test]
fn a_set_in_use_is_not_destroyed_and_one_just_released_is() -> Result<()> {
    let mut sets = open()?;
    let set = name("selvage-a");
    sets.create(&set, Family::V4, SetKind::Net, &BTreeSet::new())?;
    for backend in Backend::ALL {
        let tool = format!("iptables-{backend}");
        run(&format!(
            "{tool} -t mangle -A FORWARD -m set --match-set selvage-a src"
        ))?;
        let error = sets.destroy(&set).unwrap_err();
        assert!(
            matches!(&error, Error::InUse { set } if set.as_str() == "selvage-a"),
            "{backend}: {error:?}"
        );
        run(&format!("{tool} -t mangle -F FORWARD"))?;
    }
    sets.destroy(&set)?;
    assert_eq!(sets.list()?, []);
    Ok(())
}

#[test]
fn strangers_sets_are_not_listed_and_strange_types_under_our_name_are() -> Result<()> {
    let mut sets = open()?;
    run("ipset create KUBE-LOOP-BACK hash:ip,port,ip family inet")?;
    run("ipset create selvage hash:net family inet")?;
    run("ipset create selvage-odd bitmap:port range 0-100")?;
    run("ipset create selvage-list list:set")?;
    let listed = sets.list()?;
    let shown: Vec<_> = listed
        .iter()
        .map(|it| (it.name.as_str(), it.kind))
        .collect();
    assert_eq!(shown, [("selvage-list", None), ("selvage-odd", None)]);
    Ok(())
}

#[test]
fn a_set_that_is_not_there_is_an_error_with_its_name_but_for_destroying_it() -> Result<()> {
    let mut sets = open()?;
    let set = name("selvage-nowhere");
    let one = members(Family::V4, SetKind::Net, 1);
    for error in [
        sets.add(&set, &one).unwrap_err(),
        sets.remove(&set, &one).unwrap_err(),
        sets.read(&set).map(drop).unwrap_err(),
        sets.flush(&set).unwrap_err(),
    ] {
        assert!(error.to_string().contains("selvage-nowhere"), "{error}");
    }
    sets.destroy(&set)?;
    Ok(())
}

#[test]
fn members_of_hundreds_of_sets_change_at_once_and_all_that_goes_in_goes_in_first() -> Result<()> {
    let mut sets = open()?;
    let kind = SetKind::NetPort;
    let (old, new) = (members(Family::V4, kind, 3), members(Family::V4, kind, 5));
    let mut changes = MemberChanges::new();
    for number in 0..300 {
        let set = name(&format!("selvage-many-{number}"));
        sets.create(&set, Family::V4, kind, &old)?;
        let change = MemberChange {
            add: new.difference(&old).copied().collect(),
            remove: old.iter().take(1).copied().collect(),
            ..MemberChange::default()
        };
        changes.insert(set, change);
    }
    // One more that has no room, and a thousand members in two messages.
    let full = name("selvage-many-full");
    run(&format!("ipset create {full} hash:net,port maxelem 3"))?;
    let more = MemberChange {
        add: members(Family::V4, kind, 2_000),
        ..MemberChange::default()
    };
    changes.insert(full.clone(), more);
    let mut counts = Vec::new();
    sets.change_members(&changes, &mut || {
        for set in ["selvage-many-0", "selvage-many-299", full.as_str()] {
            counts.push(listed(set).unwrap().len());
        }
    })?;
    assert_eq!(counts, [5, 5, 2_000]);
    for (set, change) in &changes {
        let held: BTreeSet<Member> = sets.read(set)?.1.iter().collect();
        let expected: BTreeSet<Member> = match *set == full {
            true => change.add.clone(),
            false => new.difference(&change.remove).copied().collect(),
        };
        assert_eq!(held, expected, "{set}");
    }
    run("ipset destroy selvage-many-77")?;
    let refused = sets.change_members(&changes, &mut || {}).unwrap_err();
    assert!(refused.to_string().contains("selvage-many-77"), "{refused}");
    Ok(())
}
