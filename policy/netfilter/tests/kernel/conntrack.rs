//! The table of flows: what the `conntrack` tool made is read, picked and deleted.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use selvage_netfilter::conntrack::{Conntrack, Cutter, Deleted, Detail, Entry};
use selvage_policy_core::ruleset::Family;
use selvage_tests::{assert_isolated, run, run_with_input};

const PATIENCE: Duration = Duration::from_secs(10);

fn open() -> Result<Conntrack> {
    assert_isolated()?;
    // The first use in a namespace makes the kernel track there; entries of tools need it too.
    run_with_input(
        "iptables-nft-restore --noflush",
        "*mangle\n-A FORWARD -m conntrack --ctstate ESTABLISHED -j RETURN\nCOMMIT\n",
    )?;
    Ok(Conntrack::open(PATIENCE)?)
}

/// Makes entries: one line each, what follows `conntrack -I`.
fn make(entries: &[&str]) -> Result<()> {
    for entry in entries {
        run(&format!("conntrack -I -t 600 {entry}"))?;
    }
    Ok(())
}

fn all(conntrack: &mut Conntrack) -> Result<Vec<Entry>> {
    let mut found = Vec::new();
    for family in [Family::V4, Family::V6] {
        conntrack.each(family, &mut |entry| found.push(*entry))?;
    }
    found.sort_unstable();
    Ok(found)
}

fn of(conntrack: &mut Conntrack, addresses: &[&str]) -> Result<Vec<String>> {
    let addresses: BTreeSet<IpAddr> = addresses.iter().map(|it| it.parse().unwrap()).collect();
    let mut found = Vec::new();
    conntrack.each_of_all(&addresses, &mut |entry| {
        found.push(format!("{} {}", entry.original.source, entry.reply.source));
    })?;
    found.sort_unstable();
    Ok(found)
}

const TCP: &str = "-p tcp --state ESTABLISHED -u ASSURED,SEEN_REPLY";
const UDP: &str = "-p udp";

#[test]
fn entries_are_read_as_the_conntrack_tool_made_them() -> Result<()> {
    let mut conntrack = open()?;
    make(&[
        &format!(
            "{TCP} -s 10.40.0.1 -d 10.96.0.1 -r 10.40.0.2 -q 10.40.0.1 --sport 4000 --dport 80 --reply-port-src 8080 --reply-port-dst 4000"
        ),
        "-p sctp --state ESTABLISHED -s fd00::1 -d fd00::2 --sport 5 --dport 6 --orig-vtag 1 --reply-vtag 2",
        "-p icmp -s 10.40.0.1 -d 10.40.0.2 --icmp-type 8 --icmp-code 0 --icmp-id 77",
        "-p icmpv6 -s fd00::1 -d fd00::2 --icmpv6-type 128 --icmpv6-code 0 --icmpv6-id 78",
    ])?;
    let found = all(&mut conntrack)?;
    let shown: Vec<_> = found
        .iter()
        .map(|it| (it.protocol, it.original.detail, it.reply.detail))
        .collect();
    let ports = |source, destination| Detail::Ports {
        source,
        destination,
    };
    let echo = |id, kind| Detail::Icmp { id, kind, code: 0 };
    assert_eq!(
        shown,
        [
            (1, echo(77, 8), echo(77, 0)),
            (6, ports(4000, 80), ports(8080, 4000)),
            (58, echo(78, 128), echo(78, 129)),
            (132, ports(5, 6), ports(6, 5)),
        ]
    );
    let seen = found[1].seen();
    assert_eq!(seen.destination.to_string(), "10.40.0.2");
    assert_eq!(seen.destination_port, Some(8080));
    assert!(found.iter().all(|it| it.id.is_some() && it.zone.is_none()));
    Ok(())
}

#[test]
fn an_entry_is_found_by_either_end_once_however_many_addresses_are_asked_for() -> Result<()> {
    let mut conntrack = open()?;
    make(&[
        &format!("{UDP} -s 10.40.0.1 -d 10.40.0.2 --sport 1 --dport 53"),
        &format!("{UDP} -s 10.40.0.3 -d 10.40.0.1 --sport 1 --dport 53"),
        &format!("{UDP} -s 10.40.0.1 -d 10.40.0.1 --sport 1 --dport 53"),
        &format!("{UDP} -s 10.40.0.4 -d 10.40.0.5 --sport 1 --dport 53"),
        // Through a Service whose address is nobody's.
        &format!(
            "{UDP} -s 10.40.0.6 -d 10.96.0.1 -r 10.40.0.7 -q 10.40.0.6 --sport 1 --dport 53 --reply-port-src 53 --reply-port-dst 1"
        ),
        &format!("{UDP} -s fd00::1 -d fd00::2 --sport 1 --dport 53"),
    ])?;
    find_by_address(&mut conntrack)?;
    // Among many the kernel picks, where of a few all are handed over.
    let crowd: String = (0..6_000)
        .map(|number| {
            let (high, low) = (number / 250, number % 250);
            format!("-A {UDP} -s 10.50.{high}.{low} -d 10.60.0.1 --sport 1 --dport 53 -t 600\n")
        })
        .collect();
    std::fs::write("/run/crowd", crowd)?;
    run("conntrack -R /run/crowd")?;
    assert!(conntrack.count()? > 6_000);
    find_by_address(&mut conntrack)
}

fn find_by_address(conntrack: &mut Conntrack) -> Result<()> {
    let expected = [
        "10.40.0.1 10.40.0.1",
        "10.40.0.1 10.40.0.2",
        "10.40.0.3 10.40.0.1",
    ];
    assert_eq!(of(conntrack, &["10.40.0.1"])?, expected);
    assert_eq!(of(conntrack, &["10.40.0.1", "10.40.0.2"])?, expected);
    let many = ["10.40.0.1", "10.40.0.2", "10.40.0.3", "10.40.0.9"];
    assert_eq!(of(conntrack, &many)?, expected);
    assert_eq!(
        of(conntrack, &["10.40.0.7", "fd00::2"])?,
        ["10.40.0.6 10.40.0.7", "fd00::1 fd00::2"]
    );
    assert_eq!(of(conntrack, &["10.96.0.1"])?, [""; 0]);
    Ok(())
}

#[test]
fn a_thousand_are_deleted_and_those_that_are_gone_already_are_no_matter() -> Result<()> {
    let mut conntrack = open()?;
    let lines: String = (0..1000)
        .map(|port| {
            format!(
                "-A {UDP} -t 600 -s fd00::1 -d fd00::2 --sport {} --dport 53\n",
                port + 1
            )
        })
        .collect();
    std::fs::write("/run/entries", lines)?;
    run("conntrack -R /run/entries")?;
    make(&[&format!(
        "{UDP} -s 10.40.0.1 -d 10.40.0.2 --sport 1 --dport 53"
    )])?;
    let found = all(&mut conntrack)?;
    assert_eq!(found.len(), 1001);
    let (keep, rest): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|it| it.original.source.is_ipv4());
    run("conntrack -D -s fd00::1 -p udp --sport 7")?;
    let all_but_one = Deleted {
        deleted: 999,
        gone: 1,
    };
    assert_eq!(conntrack.delete(&rest)?, all_but_one);
    assert_eq!(all(&mut conntrack)?, keep);
    Ok(())
}

#[test]
fn a_new_flow_that_took_the_tuple_of_a_cut_one_stays() -> Result<()> {
    let mut conntrack = open()?;
    let answering =
        "-r 10.40.0.2 -q 10.40.0.1 --sport 4000 --reply-port-src 8080 --reply-port-dst 4000";
    make(&[&format!(
        "{TCP} -s 10.40.0.1 -d 10.96.0.1 --dport 80 {answering}"
    )])?;
    let old = all(&mut conntrack)?;
    run("conntrack -F")?;
    // The same pods and ports in the reply direction, by another Service.
    make(&[&format!(
        "{TCP} -s 10.40.0.1 -d 10.96.0.2 --dport 81 {answering}"
    )])?;
    let new = all(&mut conntrack)?;
    assert_eq!(old[0].reply, new[0].reply, "the tuple was reused");
    assert_eq!(
        conntrack.delete(&old)?,
        Deleted {
            deleted: 0,
            gone: 1
        }
    );
    assert_eq!(all(&mut conntrack)?, new);
    Ok(())
}

#[test]
fn entries_of_a_zone_are_read_and_deleted_and_their_twins_outside_stay() -> Result<()> {
    let mut conntrack = open()?;
    let flow = format!("{UDP} -s 10.40.0.1 -d 10.40.0.2 --sport 1 --dport 53");
    make(&[
        &flow,
        &format!("{flow} --zone 7"),
        &format!("{UDP} -s 10.40.0.8 -d 10.40.0.9 --sport 1 --dport 53 --orig-zone 5"),
        &format!("{UDP} -s 10.40.0.6 -d 10.40.0.7 --sport 1 --dport 53 --reply-zone 6"),
    ])?;
    let mut found = all(&mut conntrack)?;
    found.sort_by_key(|it| (it.original.source, it.zone));
    let zones: Vec<_> = found
        .iter()
        .map(|it| (it.zone, it.original.zone, it.reply.zone))
        .collect();
    assert_eq!(
        zones,
        [
            (None, None, None),
            (Some(7), None, None),
            (None, None, Some(6)),
            (None, Some(5), None),
        ]
    );
    assert_eq!(conntrack.delete(&found[1..])?.deleted, 3);
    assert_eq!(all(&mut conntrack)?, found[..1]);
    Ok(())
}

#[test]
fn an_address_that_leaves_its_pod_takes_its_entries_with_it_and_no_others() -> Result<()> {
    let mut conntrack = open()?;
    make(&[
        &format!("{TCP} -s 10.40.0.1 -d 10.40.0.2 --sport 1 --dport 80"),
        &format!(
            "{UDP} -s 10.40.0.3 -d 10.96.0.1 -r 10.40.0.1 -q 10.40.0.3 --sport 1 --dport 53 --reply-port-src 53 --reply-port-dst 1"
        ),
        "-p icmp -s 10.40.0.4 -d 10.40.0.1 --icmp-type 8 --icmp-code 0 --icmp-id 77",
        &format!("{TCP} -s 10.40.0.3 -d 10.40.0.2 --sport 1 --dport 80"),
        &format!("{TCP} -s fd00::1 -d fd00::2 --sport 1 --dport 80"),
    ])?;
    let mut cutter = Cutter::open(Duration::from_secs(60), PATIENCE)?;
    let left = BTreeSet::from(["10.40.0.1".parse()?]);
    assert_eq!(
        cutter.forget(&left)?,
        Deleted {
            deleted: 3,
            gone: 0
        }
    );
    let rest: Vec<_> = all(&mut conntrack)?
        .iter()
        .map(|it| it.original.source.to_string())
        .collect();
    assert_eq!(rest, ["10.40.0.3", "fd00::1"]);
    Ok(())
}
