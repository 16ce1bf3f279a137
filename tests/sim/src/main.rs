//! Runs the simulator: figures for `make bench`, or one trace in full.

use std::process::ExitCode;

use clap::Parser;
use selvage_ipamd_core::limits::Mode;
use selvage_sim::figures::{self, Extent, Pair, Settings};
use selvage_sim::report::Report;
use selvage_sim::trace::shape::{SHAPES, Shape, start};

/// The address pool on thousands of simulated nodes, beside AWS's own algorithm.
#[derive(Parser)]
enum Command {
    /// Prints figures of several seeds as JSON.
    Rows {
        /// Nodes of each trace.
        #[arg(long, default_value_t = 100)]
        nodes: u32,
        /// Nodes that start at once.
        #[arg(long, default_value_t = 5000)]
        starting: u32,
        /// Seeds, from 1 on.
        #[arg(long, default_value_t = 5)]
        seeds: u64,
        /// Only rows whose names begin so.
        #[arg(long, default_value = "")]
        only: String,
    },
    /// Runs one trace with one seed and prints all that is known.
    Show {
        /// Its name: rolling, burst, cron, drain, full or start.
        trace: String,
        /// Nodes.
        #[arg(long, default_value_t = 100)]
        nodes: u32,
        /// Seed.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// With prefixes.
        #[arg(long)]
        prefixes: bool,
    },
}

fn main() -> ExitCode {
    match Command::parse() {
        Command::Rows {
            nodes,
            starting,
            seeds,
            only,
        } => {
            let extent = Extent {
                nodes,
                starting,
                seeds,
                only,
            };
            match figures::rows(&extent) {
                Ok(rows) => {
                    let rows: Vec<_> = rows.iter().map(figures::Row::as_json).collect();
                    println!("{}", serde_json::Value::from(rows));
                    ExitCode::SUCCESS
                }
                Err(breaches) => {
                    breaches.iter().for_each(|words| eprintln!("{words}"));
                    ExitCode::FAILURE
                }
            }
        }
        Command::Show {
            trace,
            nodes,
            seed,
            prefixes,
        } => {
            let mode = if prefixes {
                Mode::Prefixes
            } else {
                Mode::Addresses
            };
            let shapes = SHAPES.into_iter().chain([("start", start as Shape)]);
            let Some((_, shape)) = shapes.into_iter().find(|(name, _)| *name == trace) else {
                eprintln!("no trace is called {trace}");
                return ExitCode::FAILURE;
            };
            let Pair { ours, theirs } =
                figures::run(&shape(nodes, seed, mode), &Settings::shipped(mode), seed);
            show("selvage", &ours);
            show("aws", &theirs);
            ExitCode::SUCCESS
        }
    }
}

fn show(name: &str, report: &Report) {
    println!("{name}");
    println!("  pods launched        {}", report.launched);
    println!(
        "  waited               {} ({} never had an address)",
        report.waited, report.never
    );
    for percent in [50.0, 99.0, 100.0] {
        println!(
            "  wait p{percent:<15} {:.1} s",
            report.wait(percent).as_secs_f64()
        );
    }
    println!(
        "  calls                {} ({} throttled)",
        report.calls, report.throttled
    );
    println!("  calls per 1000 pods  {:.1}", report.calls_per_thousand());
    for (api, calls, throttled) in &report.by_api {
        println!("    {api:<32} {calls:>7} {throttled:>7}");
    }
    for ((api, code), times) in &report.refused {
        println!("    {api}: {times} times {code}");
    }
    println!("  idle at rest         {}", report.idle_at_rest);
    println!("  idle on average      {:.0}", report.mean_idle());
    println!("  given while cooling  {}", report.warm_reuse);
    println!("  given and not held   {}", report.foreign);
    println!("  interfaces leaked    {}", report.leaked_enis);
    match report.all_ready() {
        Some(took) => println!("  all nodes ready in   {} s", took.as_secs()),
        None => println!("  nodes never ready    {}", report.unready),
    }
    for words in &report.breaches {
        println!("  BROKEN {words}");
    }
}
