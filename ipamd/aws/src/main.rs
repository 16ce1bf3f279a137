//! `selvage-ipamd`: the address daemon on AWS.
//!
//! | call | does |
//! |---|---|
//! | `selvage-ipamd` | runs until SIGTERM or SIGINT |
//! | `selvage-ipamd init` | sets the sysctls that the daemon may not set, and ends |
//! | `selvage-ipamd health [--live]` | asks the daemon on its socket; the exit status is the answer |
//! | `selvage-ipamd status [-o json]` | prints the running daemon's pool, what it does next and why |
//! | `selvage-ipamd support [FILE]` | writes a bundle for a bug report |
//! | `selvage-ipamd max-pods [TYPE]` | prints what the kubelet of an instance type should be given, by the settings |

mod cloud;
mod commands;
mod ec2;
mod http;
mod imds;
mod logging;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use selvage_ipamd::config::{self, Args, Config};
use selvage_ipamd::hostnet::Kernel;
use selvage_ipamd_core::cloud::{Cloud, InstanceFacts};
use selvage_ipamd_kube::Kubernetes;
use tokio::runtime::{self, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cloud::Aws;
use crate::http::HttpSettings;
use crate::logging::LogArgs;
use selvage_ipamd::chain::chain;

/// musl's own takes a lock and a walk for each piece.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

/// Events that are still being written when the daemon ends get this long.
const LAST_EVENTS: Duration = Duration::from_secs(2);

/// Pauses between two tries to read instance metadata, in `init`.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Gives pods addresses of the VPC: holds network interfaces and addresses of EC2, answers the CNI plugin.
#[derive(Debug, Parser)]
#[command(name = "selvage-ipamd", version)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    daemon: Args,
    /// Seconds that a call to EC2 may take, 1 to 120
    #[arg(long, env = "HTTP_TIMEOUT", default_value = "10", value_parser = seconds)]
    http_timeout: Duration,
}

/// Reads a number of seconds; an empty variable is one that is not set.
fn seconds(text: &str) -> Result<Duration, String> {
    match text.trim() {
        "" => Ok(Duration::from_secs(10)),
        text => match text.parse() {
            Ok(seconds @ 1..=120) => Ok(Duration::from_secs(seconds)),
            Ok(_) | Err(_) => Err("want a number from 1 to 120".to_owned()),
        },
    }
}

#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// Run the daemon (what is done without a command)
    Run,
    /// Set the node's sysctls; needs a privileged container
    Init,
    /// Ask the daemon: exit status 0 if it can give addresses
    Health {
        /// Only whether it answers
        #[arg(long)]
        live: bool,
    },
    /// Print how many pods the kubelet of a node should be given, by the settings (prefixes, custom networking, MAX_ENI)
    MaxPods {
        /// An instance type [default: this instance's]
        instance_type: Option<String>,
        /// A number, or an object with what it follows from
        #[arg(short, long, default_value = "text")]
        output: Output,
    },
    /// Print the running daemon's pool, what it does next and why
    Status {
        /// A table, or everything
        #[arg(short, long, default_value = "text")]
        output: Output,
    },
    /// Write a bundle for a bug report: what the daemon says and has written, what the kernel holds, what the node is
    Support {
        /// A file, or - for standard output
        #[arg(default_value = "selvage-ipamd-support.tar.gz")]
        to: PathBuf,
    },
}

/// How an answer is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

fn main() -> ExitCode {
    // One TLS provider for the AWS and the Kubernetes client, before either is made.
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        eprintln!("selvage-ipamd: a TLS provider is there already");
        return ExitCode::FAILURE;
    }
    let cli = Cli::parse();
    let done = match &cli.command {
        None | Some(Command::Run) => run(&cli),
        Some(Command::Init) => init(&cli),
        Some(Command::Health { live }) => probe(&cli, *live),
        Some(Command::MaxPods {
            instance_type,
            output,
        }) => commands::max_pods(&cli, instance_type.as_deref(), *output),
        Some(Command::Status { output }) => commands::status(&cli, *output),
        Some(Command::Support { to }) => commands::support(&cli, to),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("selvage-ipamd: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// The daemon, until it is told to end.
fn run(cli: &Cli) -> anyhow::Result<()> {
    logging::start(&cli.log)?;
    let config = Config::try_from(&cli.daemon)?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        http_timeout = ?cli.http_timeout,
        "starting"
    );
    // One thread: an ADD goes from connection to pool and back without waking another. What blocks
    // (netlink, the checkpoint's fsync) has threads of its own.
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let signals = tokio::spawn(cancel_on_signal(shutdown.clone())?);
        let (cluster, writer) = Kubernetes::start(&config).await;
        let aws = aws(cli)?;
        let ended = selvage_ipamd::run(config, aws, Kernel::new(), cluster, shutdown).await;
        signals.abort();
        if timeout(LAST_EVENTS, writer).await.is_err() {
            warn!(after = ?LAST_EVENTS, "events not written");
        }
        ended?;
        info!("ended");
        Ok(())
    })
}

/// AWS by settings and environment. Sends nothing yet.
fn aws(cli: &Cli) -> anyhow::Result<Aws> {
    let settings = HttpSettings::read(|name| std::env::var(name).ok());
    Ok(Aws::new(http::client(&settings)?, cli.http_timeout))
}

/// What SIGTERM and SIGINT do: the first one asks the daemon to end.
fn cancel_on_signal(
    shutdown: CancellationToken,
) -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    Ok(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        info!(signal = name, "ending");
        shutdown.cancel();
    })
}

/// The sysctls of the node.
fn init(cli: &Cli) -> anyhow::Result<()> {
    logging::start(&cli.log)?;
    single_threaded()?.block_on(async {
        let shutdown = CancellationToken::new();
        let signals = tokio::spawn(cancel_on_signal(shutdown.clone())?);
        let aws = aws(cli)?;
        let facts = shutdown
            .run_until_cancelled(insist_on_facts(&aws))
            .await
            .context("ended before instance metadata answered")?;
        signals.abort();
        // Blocks, as nothing else is to be done.
        let prepare = config::prepare(&cli.daemon)?;
        let changed = selvage_ipamd::prepare_node(facts.primary_mac, prepare)?;
        info!(?changed, "node prepared");
        Ok(())
    })
}

/// Metadata may be late on a young instance: asks until it answers, with growing pauses.
async fn insist_on_facts(aws: &Aws) -> InstanceFacts {
    let mut pause = FIRST_PAUSE;
    loop {
        match aws.facts().await {
            Ok(facts) => return facts,
            Err(error) => {
                warn!(%error, again_in = ?pause, "instance metadata");
                sleep(pause).await;
                pause = LONGEST_PAUSE.min(pause * 2);
            }
        }
    }
}

/// Asks the running daemon.
fn probe(cli: &Cli, live: bool) -> anyhow::Result<()> {
    let config = Config::try_from(&cli.daemon)?;
    single_threaded()?.block_on(selvage_ipamd::health(&config.socket, live))?;
    Ok(())
}

fn single_threaded() -> anyhow::Result<Runtime> {
    Ok(runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}
