//! README.md has every flag: its table is the one that the code gives.

use std::fmt::Write as _;

use clap::{Args as _, Command};

use crate::config::{Args, LogArgs};

const README: &str = include_str!("../README.md");

/// Fails with the table to paste.
#[track_caller]
fn is_in_readme(table: &str) {
    assert!(
        README.contains(table),
        "README.md lacks this table:\n\n{table}"
    );
}

#[test]
fn the_readme_lists_every_flag_with_its_default() {
    let mut table = String::from("| flag | environment | default | what |\n|---|---|---|---|\n");
    let command = LogArgs::augment_args(Args::augment_args(Command::new("run")));
    for flag in command.get_arguments() {
        let name = flag.get_long().unwrap();
        let env = flag.get_env().unwrap().to_str().unwrap();
        let default = flag.get_default_values().first();
        let default = default.map_or("–".to_owned(), |text| {
            format!("`{}`", text.to_str().unwrap())
        });
        let help = flag.get_help().unwrap();
        let choices: Vec<String> = flag
            .get_possible_values()
            .iter()
            .map(|choice| format!("`{}`", choice.get_name()))
            .collect();
        let choices = if choices.is_empty() {
            String::new()
        } else {
            format!(": {}", choices.join(", "))
        };
        writeln!(
            table,
            "| `--{name}` | `{env}` | {default} | {help}{choices} |"
        )
        .unwrap();
    }
    is_in_readme(&table);
}
