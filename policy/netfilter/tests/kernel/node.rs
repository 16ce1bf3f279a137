//! What a node is like: which iptables it uses, whether IPVS bypasses us.

use std::time::Duration;

use anyhow::Result;
use selvage_netfilter::{Backend, choose_backend, ipvs_in_use};
use selvage_tests::{assert_isolated, run, run_with_input};

const PATIENCE: Duration = Duration::from_secs(10);

fn kubelet_chain_in(backend: Backend) -> Result<()> {
    run_with_input(
        &format!("iptables-{backend}-restore --noflush"),
        "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n",
    )
    .map(drop)
}

fn rules_in(backend: Backend, count: usize) -> Result<()> {
    let rules = "-A INPUT -s 10.0.0.1 -j DROP\n".repeat(count);
    run_with_input(
        &format!("iptables-{backend}-restore --noflush"),
        &format!("*filter\n{rules}COMMIT\n"),
    )
    .map(drop)
}

#[test]
fn the_backend_is_where_the_kubelet_left_its_chain() -> Result<()> {
    assert_isolated()?;
    kubelet_chain_in(Backend::Legacy)?;
    rules_in(Backend::Nft, 9)?;
    assert_eq!(choose_backend(None, PATIENCE)?, Backend::Legacy);
    kubelet_chain_in(Backend::Nft)?;
    assert_eq!(choose_backend(None, PATIENCE)?, Backend::Nft);
    Ok(())
}

#[test]
fn without_a_kubelet_the_backend_is_where_more_rules_are() -> Result<()> {
    assert_isolated()?;
    rules_in(Backend::Legacy, 2)?;
    assert_eq!(choose_backend(None, PATIENCE)?, Backend::Legacy);
    rules_in(Backend::Nft, 3)?;
    assert_eq!(choose_backend(None, PATIENCE)?, Backend::Nft);
    Ok(())
}

#[test]
fn choosing_a_backend_creates_no_table() -> Result<()> {
    assert_isolated()?;
    assert_eq!(choose_backend(None, PATIENCE)?, Backend::Nft);
    let legacy = std::fs::read_to_string("/proc/net/ip_tables_names").unwrap_or_default();
    assert_eq!(legacy, "");
    assert_eq!(run("nft list tables")?, "");
    Ok(())
}

#[test]
fn a_backend_that_is_given_is_not_second_guessed() -> Result<()> {
    assert_isolated()?;
    kubelet_chain_in(Backend::Legacy)?;
    let chosen = choose_backend(Some(Backend::Nft), PATIENCE)?;
    assert_eq!(chosen, Backend::Nft);
    Ok(())
}

#[test]
fn kube_proxys_ipvs_interface_gives_it_away() -> Result<()> {
    assert_isolated()?;
    assert!(!ipvs_in_use()?);
    run("ip link add kube-ipvs0 type veth peer name elsewhere")?;
    assert!(ipvs_in_use()?);
    Ok(())
}
