//! README.md has every flag and every metric: its tables are those that the code gives.

use std::fmt::Write as _;

use clap::{Args as _, Command};

use crate::config::{Args, LogArgs};
use crate::metrics::Metrics;

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

#[test]
fn the_readme_lists_every_metric() {
    let mut table = String::from("| metric | type | what |\n|---|---|---|\n");
    let text = Metrics::new().render();
    let mut help = "";
    for line in text.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ').unwrap().1.trim_end_matches('.');
        } else if let Some(typed) = line.strip_prefix("# TYPE ") {
            let (name, kind) = typed.split_once(' ').unwrap();
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            let labels = labels(&text, name);
            writeln!(table, "| `{name}{suffix}{labels}` | {kind} | {help} |").unwrap();
        }
    }
    is_in_readme(&table);
}

/// The label names of a metric's first sample, `le` left out.
fn labels(text: &str, name: &str) -> String {
    let sample = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .find(|line| line.starts_with(name) && line[name.len()..].starts_with(['{', '_']))
        .and_then(|line| line.split_once('{'))
        .map(|(_, rest)| rest.split_once('}').unwrap().0);
    let Some(sample) = sample else {
        return String::new();
    };
    let names: Vec<&str> = sample
        .split(',')
        .map(|pair| pair.split_once('=').unwrap().0)
        .filter(|name| *name != "le")
        .collect();
    format!("{{{}}}", names.join(","))
}
