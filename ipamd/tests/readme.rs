//! The README lists every setting and every number.

use clap::{Args as _, Command};
use selvage_ipamd::config::Args;
use selvage_ipamd::metrics::{Metrics, Snapshot};

const README: &str = include_str!("../README.md");

#[test]
fn every_setting_is_in_the_readme_under_its_variable_and_its_flag() {
    let command = Args::augment_args(Command::new("selvage-ipamd"));
    let mut count = 0;
    for argument in command.get_arguments() {
        let variable = argument.get_env().expect("every flag has a variable");
        let flag = argument.get_long().expect("every variable has a flag");
        let row = format!("| `{}` | `--{flag}` |", variable.to_string_lossy());
        assert!(README.contains(&row), "{row}");
        count += 1;
    }
    let rows = README.lines().filter(|line| line.contains("| `--")).count();
    assert_eq!(rows, count, "the README has settings that are not there");
}

#[test]
fn every_number_is_in_the_readme_with_its_type() {
    let page = Metrics::default().render(&Snapshot::default());
    let mut count = 0;
    for line in page.lines() {
        let Some(metric) = line.strip_prefix("# TYPE ") else {
            continue;
        };
        let (name, kind) = metric.split_once(' ').unwrap();
        let row = README.lines().find(|row| {
            row.starts_with(&format!("| `{name}` ")) || row.starts_with(&format!("| `{name}{{"))
        });
        let row = row.unwrap_or_else(|| panic!("{name} is missing"));
        assert!(row.contains(&format!("` | {kind} |")), "{row}");
        count += 1;
    }
    let rows = README
        .lines()
        .filter(|row| row.starts_with("| `awscni_") || row.starts_with("| `selvage_"))
        .count();
    assert_eq!(rows, count, "the README has numbers that are not there");
}
