//! Log lines, at AWS's level names.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Context;
use clap::Args;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

mod file;

use file::LogFile;

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
    /// Where to: stdout, stderr or a file, which is renamed at 100 MB (five old ones are kept)
    #[arg(
        long,
        env = "AWS_VPC_K8S_CNI_LOG_FILE",
        default_value = "stdout",
        global = true
    )]
    log_file: Target,
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

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    Stdout,
    Stderr,
    File(PathBuf),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "" | "stdout" => Ok(Target::Stdout),
            "stderr" => Ok(Target::Stderr),
            path if path.starts_with('/') => Ok(Target::File(PathBuf::from(path))),
            _ => Err("want stdout, stderr or an absolute path (not set: stdout)".to_owned()),
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
/// When RUST_LOG cannot be understood, or the file cannot be opened.
pub(crate) fn start(args: &LogArgs) -> anyhow::Result<()> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => EnvFilter::try_new(text)?,
        Ok(_) | Err(_) => EnvFilter::try_new(format!("warn,selvage={}", args.log_level))?,
    };
    let writer = match &args.log_file {
        Target::Stdout => BoxMakeWriter::new(std::io::stdout),
        Target::Stderr => BoxMakeWriter::new(std::io::stderr),
        Target::File(path) => BoxMakeWriter::new(
            LogFile::open(path).with_context(|| format!("AWS_VPC_K8S_CNI_LOG_FILE={path:?}"))?,
        ),
    };
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer);
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

    #[test]
    fn lines_go_where_they_are_told_to() {
        for (text, target) in [
            ("", Target::Stdout),
            ("stdout", Target::Stdout),
            ("stderr", Target::Stderr),
            ("/host/x.log", Target::File("/host/x.log".into())),
        ] {
            assert_eq!(text.parse(), Ok(target), "{text}");
        }
        assert!("x.log".parse::<Target>().unwrap_err().contains("absolute"));
    }
}
