//! The enforcement daemon: watches the Kubernetes API, programs iptables and ipset.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand, ValueEnum};
use selvage_netfilter::Backend;
use selvage_policy::boot::{BootArgs, Booted, boot};
use selvage_policy::cleanup::cleanup;
use selvage_policy::config::{
    Args, BackendChoice, Config, LogArgs, LogFormat, RunDirArgs, SocketArgs,
};
use selvage_policy::dataplane::Node;
use selvage_policy::direct::{self, Direct};
use selvage_policy::metrics::{Metrics, document};
use selvage_policy::routes::WithRoutes;
use selvage_policy::support::Bundle;
use selvage_policy::{daemon, endpoint_status, events, health, recent, taint};
use selvage_policy_core::ruleset::Family;
use selvage_policy_core::ruleset::VethPrefix;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use tracing_subscriber::EnvFilter;

/// musl's own takes a lock and a walk for each piece.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

/// The folder in a bundle for a bug report.
const BUNDLE: &str = "selvage-policy-support";

/// Enforces Kubernetes NetworkPolicy at the host end of each pod's veth.
#[derive(Parser)]
#[command(name = "selvage-policy", version)]
struct Cli {
    #[command(flatten)]
    log: LogArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Watch the cluster and keep this node's rules right; rules stay in place when it stops
    Run(Args),
    /// Close this node before the kubelet starts: drop what pods' interfaces send and receive until `run` takes over
    Boot(BootArgs),
    /// Ask the running daemon how it is; the exit status says yes or no
    Health(HealthArgs),
    /// Print what the running daemon says about itself
    Status(StatusArgs),
    /// Write a bundle for a bug report: what the daemon says, what the kernel holds, what the node is
    Support(SupportArgs),
    /// Remove every rule, chain and set of ours from the node: both backends, both families
    Cleanup(CleanupArgs),
    /// Print a page of the documentation that is made from the program
    #[command(hide = true)]
    Document {
        /// Which page
        page: Page,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Page {
    /// docs/metrics.md
    Metrics,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Probe {
    /// Are the rules in force, or is it synced and standing by?
    #[arg(long)]
    ready: bool,
    /// Does its loop make progress?
    #[arg(long)]
    live: bool,
}

#[derive(clap::Args)]
struct HealthArgs {
    #[command(flatten)]
    probe: Probe,
    #[command(flatten)]
    socket: SocketArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

#[derive(clap::Args)]
struct StatusArgs {
    /// How it is printed
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
    #[command(flatten)]
    socket: SocketArgs,
}

#[derive(clap::Args)]
struct SupportArgs {
    /// Where the bundle (tar.gz) goes, or `-` for standard output
    #[arg(long, short, default_value = "-")]
    to: PathBuf,
    #[command(flatten)]
    socket: SocketArgs,
}

#[derive(clap::Args)]
struct CleanupArgs {
    /// Do it although another instance holds the lock (and will put its rules back)
    #[arg(long)]
    force: bool,
    /// Folder of the files that tell plugins which pods' rules are in force; those of ours go, too
    #[arg(long, env = "ENDPOINT_STATUS_DIR", default_value = endpoint_status::DIRECTORY)]
    endpoint_status_dir: PathBuf,
    #[command(flatten)]
    run_dir: RunDirArgs,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = start_logging(&cli.log) {
        // Nowhere else to say it.
        let _ = writeln!(io::stderr(), "selvage-policy: {error:#}");
        return ExitCode::FAILURE;
    }
    let ended = match cli.command {
        Command::Run(args) => run(args),
        Command::Boot(args) => close(&args),
        Command::Health(args) => ask(&args),
        Command::Status(args) => print_status(&args),
        Command::Support(args) => write_bundle(&args),
        Command::Cleanup(args) => clean(&args),
        Command::Document { page } => write_page(page),
    };
    match ended {
        Ok(code) => code,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start_logging(args: &LogArgs) -> anyhow::Result<()> {
    // kube logs each failed request; we say it once for each change.
    let filter = EnvFilter::try_new(format!(
        "kube_runtime=off,kube_client::client::builder=off,{}",
        args.log_level
    ))
    .with_context(|| format!("--log-level (env LOG_LEVEL) is {:?}", args.log_level))?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| recent::Log);
    match args.log_format {
        LogFormat::Text => lines.with_ansi(false).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    Ok(())
}

fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut config = args.into_config()?;
    // Started with `ipv6.disable=1`, a kernel passes no packet of it that could be judged.
    if !Path::new("/proc/net/if_inet6").exists() && config.families.remove(&Family::V6) {
        info!("the kernel has no IPv6: nothing to enforce in it");
    }
    info!(version = env!("CARGO_PKG_VERSION"), ?config, "starting");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let ended = runtime.block_on(serve(config));
    // Kernel work that did not end in time is left to the process's end.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    ended.map(|()| ExitCode::SUCCESS)
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let told = tokio::spawn({
        let stop = stop.clone();
        async move {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
                () = stop.cancelled() => return,
            };
            info!(signal = name, "told to stop");
            stop.cancel();
        }
    });
    let metrics = Arc::new(Metrics::new());
    let client =
        direct::client(config.kubeconfig.as_deref(), Arc::clone(metrics.watches())).await?;
    let (reporter, reporting) = events::channel_of(config.node.clone(), Arc::clone(&metrics));
    let reporting = tokio::spawn(reporting.run(client.clone(), stop.clone()));
    let source = Direct::new(
        client.clone(),
        config.node.clone(),
        reporter.clone(),
        Arc::clone(&metrics),
    );
    let prefixes = [config.interface_prefix.clone(), VethPrefix::branch()];
    let prefixes = prefixes.iter().map(|prefix| prefix.as_str().to_owned());
    let prefixes = prefixes.collect();
    let source = WithRoutes::new(source, prefixes);
    let fixed = match config.backend {
        BackendChoice::Auto => None,
        BackendChoice::Nft => Some(Backend::Nft),
        BackendChoice::Legacy => Some(Backend::Legacy),
    };
    let in_force = Arc::new(Notify::new());
    let untainting = tokio::spawn({
        let (in_force, stop) = (Arc::clone(&in_force), stop.clone());
        let node = config.node.clone();
        async move {
            tokio::select! {
                () = stop.cancelled() => return,
                () = in_force.notified() => {}
            }
            taint::remove(client, &node, stop).await;
        }
    });
    let dataplane = Node::new(fixed).recording(&config.run_dir);
    let ended = daemon::run(
        config,
        source,
        dataplane,
        metrics,
        in_force,
        reporter,
        stop.clone(),
    )
    .await;
    stop.cancel();
    untainting.await.context("join the taint's task")?;
    told.await.context("join the signals' task")?;
    reporting.await.context("join the task of Events")?;
    Ok(ended?)
}

fn close(args: &BootArgs) -> anyhow::Result<ExitCode> {
    match boot(args)? {
        Booted::Closed(backend) => info!(%backend, "closed until the daemon takes over"),
        Booted::InForce(backend) => info!(%backend, "rules are in force already"),
        Booted::InUse => info!("the daemon is running"),
    }
    Ok(ExitCode::SUCCESS)
}

fn ask(args: &HealthArgs) -> anyhow::Result<ExitCode> {
    let socket = &args.socket.socket;
    let verdict = if args.probe.ready {
        health::ask_ready(socket)?
    } else {
        health::ask_live(socket)?
    };
    writeln!(io::stdout(), "{}", verdict.reason)?;
    Ok(if verdict.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn print_status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let report = health::ask_status(&args.socket.socket)?;
    match args.output {
        Output::Text => writeln!(io::stdout(), "{report}")?,
        Output::Json => writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&report)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn write_page(page: Page) -> anyhow::Result<ExitCode> {
    let text = match page {
        Page::Metrics => document::page(),
    };
    write!(io::stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}

fn write_bundle(args: &SupportArgs) -> anyhow::Result<ExitCode> {
    let to_output = args.to == Path::new("-");
    if to_output && io::stdout().is_terminal() {
        bail!("standard output is a terminal: redirect it, or name a file with --to");
    }
    let bundle = Bundle::gather(&args.socket.socket, variables());
    if to_output {
        bundle.write(BUNDLE, io::stdout().lock())?;
    } else {
        let file =
            File::create(&args.to).with_context(|| format!("create {}", args.to.display()))?;
        bundle.write(BUNDLE, file)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The environment; what is no UTF-8 as near to it as can be.
fn variables() -> impl Iterator<Item = (String, String)> {
    let text = |it: OsString| it.to_string_lossy().into_owned();
    env::vars_os().map(move |(name, value)| (text(name), text(value)))
}

fn clean(args: &CleanupArgs) -> anyhow::Result<ExitCode> {
    let cleaned = cleanup(&args.run_dir.run_dir, &args.endpoint_status_dir, args.force)?;
    for error in &cleaned.left {
        error!(error = selvage_policy::error_chain(error), "left behind");
    }
    info!(
        hooks = cleaned.hooks,
        chains = cleaned.chains,
        sets = cleaned.sets,
        "removed"
    );
    Ok(if cleaned.left.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
