//! Packets that rules log, on both backends.

use std::net::{Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Result;
use selvage_netfilter::nflog::Nflog;
use selvage_netfilter::{Backend, Error};
use selvage_tests::{assert_isolated, run};

const PATIENCE: Duration = Duration::from_secs(10);

/// Logs what is sent to UDP ports 9 and 10.
fn log(backend: Backend, group: u16) -> Result<()> {
    for tool in ["iptables", "ip6tables"] {
        for (port, prefix) in [(9, "selvage-i-0123456789abcdef"), (10, "ten")] {
            run(&format!(
                "{tool}-{backend} -t mangle -A OUTPUT -p udp --dport {port} \
                 -j NFLOG --nflog-group {group} --nflog-prefix {prefix}"
            ))?;
        }
    }
    Ok(())
}

fn send(to: &str, port: u16) -> Result<u16> {
    let from = if to.contains(':') { "::" } else { "0.0.0.0" };
    let socket = UdpSocket::bind((from, 0))?;
    socket.send_to(&[0; 600], (to, port))?;
    Ok(socket.local_addr()?.port())
}

/// Everything logged, as text, once `count` are there.
fn heard(log: &mut Nflog, count: usize) -> Result<Vec<String>> {
    let mut all = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while all.len() < count && Instant::now() < deadline {
        log.receive(deadline, |logged| {
            let header = logged.header.unwrap();
            let (from, to) = header.ports.unwrap();
            all.push(format!(
                "{} in {:?} out {:?}: {} {} {from} -> {} {to}, {}",
                logged.prefix,
                logged.interface_in,
                logged.interface_out,
                header.protocol,
                header.source,
                header.destination,
                header.length
            ));
        })?;
    }
    Ok(all)
}

#[test]
fn a_logged_packet_says_who_to_whom_by_which_rule_and_interface() -> Result<()> {
    assert_isolated()?;
    for (backend, group) in [(Backend::Nft, 5), (Backend::Legacy, 6)] {
        run("iptables-nft -t mangle -F")?;
        run("ip6tables-nft -t mangle -F")?;
        log(backend, group)?;
        let mut log = Nflog::open(group, PATIENCE)?;
        let port = send("127.0.0.1", 9)?;
        let port6 = send(&Ipv6Addr::LOCALHOST.to_string(), 10)?;
        send("127.0.0.1", 11)?;
        let expected = [
            format!(
                "selvage-i-0123456789abcdef in None out Some(1): 17 127.0.0.1 {port} -> 127.0.0.1 9, 628"
            ),
            format!("ten in None out Some(1): 17 ::1 {port6} -> ::1 10, 648"),
        ];
        assert_eq!(heard(&mut log, 2)?, expected, "{backend}");
        assert_eq!(log.lost(), 0);
        assert_eq!(
            log.receive(Instant::now(), |_| {})?,
            0,
            "port 11 is not logged"
        );
    }
    Ok(())
}

#[test]
fn a_group_belongs_to_one_at_a_time() -> Result<()> {
    assert_isolated()?;
    let first = Nflog::open(7, PATIENCE)?;
    let error = Nflog::open(7, PATIENCE).map(drop).unwrap_err();
    assert_eq!(error.to_string(), "take NFLOG group 7");
    let Error::Refused { source, .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!(source.to_string(), "Operation not permitted (os error 1)");
    drop(first);
    Nflog::open(7, PATIENCE)?;
    Ok(())
}

#[test]
fn packets_that_did_not_fit_are_counted_to_the_last_one() -> Result<()> {
    assert_isolated()?;
    log(Backend::Nft, 5)?;
    let mut log = Nflog::open(5, PATIENCE)?;
    let sent = 20_000;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    for _ in 0..sent {
        socket.send_to(&[0; 100], "127.0.0.1:9")?;
    }
    let mut handed = 0;
    while let more @ 1.. = log.receive(Instant::now() + Duration::from_millis(500), |_| {})? {
        handed += more;
    }
    assert!(handed < sent, "the buffer held everything");
    // A gap shows with the next packet.
    send("127.0.0.1", 9)?;
    assert_eq!(heard(&mut log, 1)?.len(), 1);
    assert_eq!(log.lost(), u64::try_from(sent - handed)?);
    Ok(())
}
