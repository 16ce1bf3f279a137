//! Logging to a file, because stdout is the protocol: one JSON object a line, rotated by size.
//!
//! Many plugins write at once: each line is one `write` to a file opened for appending, and the one that
//! rotates holds a lock. Nothing here can make a command fail: a pod matters more than its log.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

use crate::request::LogConfig;

/// The file is rotated once it is longer than this: about 40,000 ADDs.
const LONGEST: u64 = 10 * 1024 * 1024;
/// Older files that are kept: `plugin.log.1` is the newest.
const KEPT: u32 = 3;

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Decisions.
    Debug,
    /// Something changed.
    Info,
    /// We recovered, or refused input.
    Warn,
    /// A person must act.
    Error,
}

impl Level {
    /// By AWS's names, in any case; FATAL is ERROR here.
    pub fn find(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "trace" | "debug" => Some(Level::Debug),
            "info" => Some(Level::Info),
            "warn" | "warning" => Some(Level::Warn),
            "error" | "fatal" => Some(Level::Error),
            _ => None,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        }
    }
}

/// Writes lines that all carry the same fields (which pod, which sandbox).
pub struct Log {
    config: LogConfig,
    /// Opened by the first line: most of a runtime's questions have none.
    out: Option<Out>,
    common: Vec<(&'static str, String)>,
}

enum Out {
    File(File),
    Stderr,
}

impl Log {
    /// A log without a line yet.
    pub fn new(config: LogConfig) -> Self {
        Log {
            config,
            out: None,
            common: Vec::new(),
        }
    }

    /// Adds a field to every line from here on.
    pub fn with(&mut self, key: &'static str, value: impl fmt::Display) {
        self.common.push((key, value.to_string()));
    }

    /// Writes a line, if its level is logged. The first opens the file, after rotating it if it has grown too long; if
    /// that cannot be done, stderr has to do.
    pub fn line(&mut self, level: Level, message: &str, fields: &[(&str, &dyn fmt::Display)]) {
        if level < self.config.level {
            return;
        }
        let text = |value: &dyn fmt::Display| Value::String(value.to_string());
        let mut object = Map::new();
        object.insert("ts".into(), text(&Utc(SystemTime::now())));
        object.insert("level".into(), level.as_str().into());
        object.insert("msg".into(), message.into());
        for (key, value) in &self.common {
            object.insert((*key).into(), text(value));
        }
        for (key, value) in fields {
            object.insert((*key).into(), text(value));
        }
        let mut line = Value::Object(object).to_string();
        line.push('\n');
        let out = self.out.get_or_insert_with(|| Out::open(&self.config));
        let _ = match out {
            Out::File(file) => file.write_all(line.as_bytes()),
            Out::Stderr => std::io::stderr().write_all(line.as_bytes()),
        };
    }
}

impl Out {
    fn open(config: &LogConfig) -> Self {
        let Some(path) = &config.file else {
            return Out::Stderr;
        };
        match open(path, LONGEST) {
            Ok(file) => Out::File(file),
            Err(error) => {
                eprintln!("log {}: {error}", path.display());
                Out::Stderr
            }
        }
    }
}

fn open(path: &Path, longest: u64) -> std::io::Result<File> {
    let append = || OpenOptions::new().create(true).append(true).open(path);
    let file = append().or_else(|error| match (error.kind(), path.parent()) {
        (std::io::ErrorKind::NotFound, Some(folder)) => {
            fs::create_dir_all(folder)?;
            append()
        }
        _ => Err(error),
    })?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() <= longest {
        return Ok(file);
    }
    // Whoever does not get the lock writes to the old file once more.
    let lock = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    let mine = rustix::fs::flock(&file, lock).is_ok()
        && fs::metadata(path).is_ok_and(|now| now.ino() == metadata.ino());
    if !mine {
        return Ok(file);
    }
    for number in (1..KEPT).rev() {
        // A gap in the numbers is no trouble.
        let _ = fs::rename(numbered(path, number), numbered(path, number + 1));
    }
    fs::rename(path, numbered(path, 1))?;
    append()
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// A time as RFC 3339 in UTC, with milliseconds.
struct Utc(SystemTime);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (seconds, millis) = (since.as_secs(), since.subsec_millis());
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        // Days to a date by counting from 1 March 0000, so that leap days come last in their year
        // (Howard Hinnant, "chrono-compatible low-level date algorithms").
        let days = days + 719_468;
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = (month_from_march + 2) % 12 + 1;
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_told_as_rfc_3339_says() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_795_219_200_123, "2026-11-21T00:00:00.123Z"),
        ] {
            let time = UNIX_EPOCH + Duration::from_millis(millis);
            assert_eq!(Utc(time).to_string(), text);
        }
    }

    #[test]
    fn a_long_log_is_set_aside_and_the_oldest_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("logs/plugin.log");
        for round in 0..6 {
            let mut file = open(&path, 8).unwrap();
            write!(file, "round {round}, long").unwrap();
        }
        let read = |path: PathBuf| fs::read_to_string(path).unwrap();
        assert_eq!(read(path.clone()), "round 5, long");
        assert_eq!(read(numbered(&path, 1)), "round 4, long");
        assert_eq!(read(numbered(&path, KEPT)), "round 2, long");
        assert!(!numbered(&path, KEPT + 1).exists());
    }

    #[test]
    fn a_line_is_one_object_and_below_the_level_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plugin.log");
        let mut log = Log::new(LogConfig {
            file: Some(path.clone()),
            level: Level::Info,
        });
        log.with("pod", "default/web-0");
        log.line(Level::Debug, "decided", &[]);
        assert!(!path.exists(), "a file for no line");
        log.line(Level::Info, "added\nindeed", &[("address", &"10.40.1.7")]);
        let text = fs::read_to_string(path).unwrap();
        assert_eq!(text.lines().count(), 1);
        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["pod"], "default/web-0");
        assert_eq!(line["address"], "10.40.1.7");
        assert_eq!(line["msg"], "added\nindeed");
    }
}
