//! The systemd units start what there is, with settings that are read.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use selvage_tests::run;

const UNITS: [(&str, &str); 2] = [
    (
        include_str!("../../packaging/selvage-policy-boot.service"),
        "boot",
    ),
    (
        include_str!("../../packaging/selvage-policy.service"),
        "run",
    ),
];

/// What `selvage-policy <subcommand> --help` says; an unknown word before `--help` is an error.
fn help(subcommand: &str) -> Result<String> {
    let program = env!("CARGO_BIN_EXE_selvage-policy");
    run(&format!("{program} {subcommand} --help"))
}

fn variables(help: &str) -> BTreeSet<String> {
    let shown = help
        .split("[env: ")
        .skip(1)
        .filter_map(|rest| rest.split('=').next());
    shown.map(ToOwned::to_owned).collect()
}

#[test]
fn each_unit_runs_a_command_that_exists() -> Result<()> {
    for (unit, subcommand) in UNITS {
        let mut lines = unit.lines();
        let command = lines
            .find_map(|line| line.strip_prefix("ExecStart=/usr/local/sbin/selvage-policy "))
            .context("no ExecStart")?;
        assert_eq!(command, subcommand);
        help(command)?;
    }
    Ok(())
}

#[test]
fn the_settings_file_names_only_what_is_read_and_what_boot_reads_run_reads_too() -> Result<()> {
    let (boot, all) = (variables(&help("boot")?), variables(&help("run")?));
    let file = include_str!("../../packaging/policy.env");
    for line in file.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split('=').next().unwrap_or_default();
        assert!(line.is_empty() || all.contains(name), "{line}");
    }
    assert!(all.contains("NODE_NAME") && all.contains("KUBECONFIG"));
    let missing: Vec<&String> = boot.difference(&all).collect();
    assert!(missing.is_empty(), "{missing:?}");
    Ok(())
}
