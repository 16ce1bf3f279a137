//! The README lists every setting.

use clap::{Args as _, Command};
use selvage_ipamd::config::Args;

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
