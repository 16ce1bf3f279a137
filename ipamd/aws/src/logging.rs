//! Log lines on standard output, at AWS's level names.

use std::fmt;
use std::str::FromStr;

use clap::Args;
use tracing_subscriber::EnvFilter;

/// How to log.
#[derive(Debug, Clone, Args)]
pub(crate) struct LogArgs {
    /// What to log: debug, info, warn or error. RUST_LOG, where set, decides instead.
    #[arg(
        long,
        env = "AWS_VPC_K8S_CNI_LOGLEVEL",
        default_value = "info",
        global = true
    )]
    log_level: Level,
    /// One JSON object a line, or text for people.
    #[arg(long, env = "LOG_FORMAT", default_value = "text", global = true)]
    log_format: Format,
}

/// AWS's names, in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        })
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "trace" | "debug" => Ok(Level::Debug),
            // An empty variable is one that is not set.
            "" | "info" => Ok(Level::Info),
            "warn" | "warning" => Ok(Level::Warn),
            "error" | "fatal" | "panic" => Ok(Level::Error),
            _ => Err(format!("{text:?}: want debug, info, warn or error")),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Text,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "json" => Ok(Format::Json),
            "" | "text" => Ok(Format::Text),
            _ => Err(format!("{text:?}: want json or text")),
        }
    }
}

/// Starts logging. The libraries below us are heard from `warn` on.
///
/// # Errors
/// When RUST_LOG cannot be understood.
pub(crate) fn start(args: &LogArgs) -> anyhow::Result<()> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => EnvFilter::try_new(text)?,
        Ok(_) | Err(_) => EnvFilter::try_new(format!("warn,selvage={}", args.log_level))?,
    };
    let lines = tracing_subscriber::fmt().with_env_filter(filter);
    match args.log_format {
        Format::Json => lines.json().flatten_event(true).init(),
        Format::Text => lines.with_ansi(false).init(),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_names_of_awss_daemon_are_understood_in_any_case() {
        for (text, level) in [
            ("DEBUG", Level::Debug),
            ("Info", Level::Info),
            ("WARN", Level::Warn),
            ("fatal", Level::Error),
            ("", Level::Info),
        ] {
            assert_eq!(text.parse(), Ok(level), "{text}");
        }
        assert!("loud".parse::<Level>().is_err());
    }
}
