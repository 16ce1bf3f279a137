//! Measures enforcement beside its floors: `tests/bench` starts it, a process and a network
//! namespace for each group of rows, and reads the JSON that it prints.

mod agent;
mod bare;
mod cluster;
mod figures;
mod ipset;
mod lab;
mod packets;
mod process;
mod replay;
mod row;
mod rules;
mod seed;
mod ticks;
mod twin;

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use rules::Backend;

/// Which rows.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Group {
    /// A peer's pod comes and goes.
    Members,
    /// A policy comes, changes and goes.
    Policies,
    /// What a packet costs.
    Packets,
    /// From nothing, and again with nothing to do.
    Start,
    /// Memory, and starting, in a large cluster.
    Large,
    /// A thousand events a second.
    Churn,
    /// From an API write to packets.
    Effect,
    /// Pods start under packets.
    Starts,
    /// Flows that a change forbids.
    Cut,
    /// The daemon is killed.
    Kills,
    /// A foreign hand changes rules.
    Repair,
    /// A foreign hand changes sets.
    Sets,
    /// A million pods come and go.
    Growth,
}

#[derive(Debug, Parser)]
struct Args {
    /// Which rows
    #[arg(value_enum)]
    group: Group,
    /// The daemon's binary
    #[arg(long)]
    agent: PathBuf,
    /// Which iptables it uses
    #[arg(long, value_enum, default_value = "nft")]
    backend: Backend,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    // Refuses the machine's own namespace, and makes this one forward.
    let node = selvage_tests::Node::new()?;
    let rows = match args.group {
        Group::Members => row::members::measure(&args.agent, args.backend),
        Group::Policies => row::policies::measure(&args.agent, args.backend),
        Group::Packets => row::packets::measure(&args.agent, args.backend),
        Group::Start => row::start::measure(&args.agent, args.backend),
        Group::Large => row::large::measure(&args.agent, args.backend),
        Group::Churn => row::churn::measure(&args.agent, args.backend),
        Group::Starts => row::starts::measure(&args.agent, args.backend, &node),
        Group::Growth => row::growth::measure(&args.agent, args.backend),
        Group::Cut => row::cut::measure(&args.agent, args.backend, &node),
        Group::Kills => row::kills::measure(&args.agent, args.backend, &node),
        Group::Repair => row::repair::measure(&args.agent, args.backend, &node),
        Group::Sets => row::sets::measure(&args.agent, args.backend, &node),
        Group::Effect => row::effect::measure(&args.agent, args.backend, &node),
    }?;
    figures::print(&rows)
}
