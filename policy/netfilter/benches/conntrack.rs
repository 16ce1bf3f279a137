//! Cutting one pod's forbidden flows among 100,000 conntrack entries, beside `conntrack -D`.
//!
//! 250 pods have 200 flows each as client and 200 each as server, half of them UDP. Of a pod's 400
//! flows, half are forbidden. The cutter takes those and leaves the others; the floor is
//! `conntrack -D` for all that the pod's address is in, once as source and once as destination.
//! Pods take turns, so that both see the same table shrink. Prints one line of JSON, medians.
//!
//! ```console
//! $ cargo bench -p selvage-netfilter --bench conntrack
//! ```

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use selvage_netfilter::conntrack::{Conntrack, Cutter, Entry, Scope};
use selvage_netfilter::ipset::IpSets;
use selvage_policy_core::ruleset::{Family, SetKind, guard_set};
use selvage_tests::{run, run_with_input};

const PATIENCE: Duration = Duration::from_secs(10);
const PODS: u32 = 250;
/// Flows of one pod in one direction.
const FLOWS: u32 = 200;
/// Measurements of each kind.
const ROUNDS: u32 = 15;

fn pod(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a28_0001 + number).into()
}

fn stranger(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a40_0001 + number).into()
}

/// By the client's port: every second flow of each protocol.
fn forbidden(entry: &Entry) -> bool {
    let octets = match (entry.original.source, entry.reply.source) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => source.to_bits() ^ destination.to_bits(),
        (IpAddr::V4(_) | IpAddr::V6(_), IpAddr::V4(_) | IpAddr::V6(_)) => 0,
    };
    octets & 2 == 0
}

fn fill() -> Result<()> {
    let mut lines = String::new();
    for number in 0..PODS {
        for flow in 0..FLOWS {
            let (here, there) = (pod(number), stranger(number * FLOWS + flow));
            let how = match flow % 2 {
                0 => "-p tcp --state ESTABLISHED -u ASSURED,SEEN_REPLY",
                _ => "-p udp -u ASSURED,SEEN_REPLY",
            };
            for (source, destination) in [(here, there), (there, here)] {
                let port = 1024 + flow;
                writeln!(
                    lines,
                    "-A {how} -s {source} -d {destination} --sport {port} --dport 80 -t 3600"
                )?;
            }
        }
    }
    std::fs::write("/run/entries", lines)?;
    run("conntrack -R /run/entries").map(drop)
}

fn count(address: IpAddr) -> Result<(usize, usize)> {
    let (mut bad, mut good) = (0, 0);
    Conntrack::open(PATIENCE)?.each_of(address, &mut |entry| match forbidden(entry) {
        true => bad += 1,
        false => good += 1,
    })?;
    Ok((bad, good))
}

fn median(mut all: Vec<Duration>) -> f64 {
    all.sort_unstable();
    all[all.len() / 2].as_secs_f64() * 1e3
}

fn main() -> Result<()> {
    // A rule that needs it makes the kernel track flows in this namespace.
    run_with_input(
        "iptables-nft-restore --noflush",
        "*mangle\n-A FORWARD -m conntrack --ctstate ESTABLISHED -j RETURN\nCOMMIT\n",
    )?;
    fill()?;
    let entries: usize = run("conntrack -C")?.trim().parse()?;
    let mut sets = IpSets::open(PATIENCE)?;
    let guard = guard_set(Family::V4);
    sets.create(&guard, Family::V4, SetKind::Guard, &BTreeSet::new())?;
    let mut cutter = Cutter::open(Duration::from_secs(300), PATIENCE)?;

    let (mut cut, mut floor, mut flows) = (Vec::new(), Vec::new(), 0);
    let (mut picked, mut whole) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let ours = pod(2 * round);
        let before = count(ours)?;
        let start = Instant::now();
        let report = cutter.cut(Scope::Addresses(&BTreeSet::from([ours])), &forbidden)?;
        cut.push(start.elapsed());
        flows = report.cut.len();
        ensure!(before.0 == flows && report.unfinished == 0, "{report:?}");
        ensure!(count(ours)? == (0, before.1), "an allowed flow was cut");

        let theirs = pod(2 * round + 1);
        let start = Instant::now();
        run(&format!("conntrack -D -s {theirs}"))?;
        run(&format!("conntrack -D -d {theirs}"))?;
        floor.push(start.elapsed());
        ensure!(count(theirs)? == (0, 0), "conntrack -D left something");

        let mut conntrack = Conntrack::open(PATIENCE)?;
        let start = Instant::now();
        conntrack.each_of(theirs, &mut |_| {})?;
        picked.push(start.elapsed());
        let start = Instant::now();
        conntrack.each(Family::V4, &mut |_| {})?;
        whole.push(start.elapsed());
    }
    let (cut, floor) = (median(cut), median(floor));
    println!(
        "{{\"entries\": {entries}, \"flows\": {flows}, \"value_ms\": {cut:.2}, \
         \"floor_ms\": {floor:.2}, \"ratio\": {:.4}, \"look_ms\": {:.2}, \"whole_ms\": {:.2}}}",
        cut / floor,
        median(picked),
        median(whole),
    );
    Ok(())
}
