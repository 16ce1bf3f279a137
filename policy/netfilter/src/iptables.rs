//! The iptables tools: the only place of the enforcement half that starts processes.
//!
//! A tool leaves its complaints in memory files and takes its input when it likes, so that no pipe can fill while the
//! other side waits, and it is killed at a deadline. A restore batch is atomic in both backends: killed, refused or not
//! ended, nothing of it is in force.

use std::fs::File;
use std::io::{ErrorKind, PipeWriter, Read, Seek, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::ioctl_fionbio;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use selvage_policy_core::ruleset::Family;

use crate::error::Error;

/// Which of the kernel's two iptables implementations the node's rules are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Backend {
    /// nf_tables, through `iptables-nft`.
    Nft,
    /// x_tables, through `iptables-legacy`.
    Legacy,
}

impl Backend {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Nft, Self::Legacy];

    /// As it is in the tools' names.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Nft => Self::Legacy,
            Self::Legacy => Self::Nft,
        }
    }
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `RESOURCE_PROBLEM`: the lock was not free in time, or the tables changed meanwhile.
const STATUS_RESOURCE: i32 = 4;

/// A restore is tried this often when somebody else was writing.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// A tool of a backend, `restore` or `save`.
fn program(family: Family, backend: Backend, tool: &str) -> String {
    let family = match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    };
    format!("{family}-{backend}-{tool}")
}

/// What ends a batch: until the tool reads it nothing of the batch is in force.
const COMMIT: &str = "COMMIT\n";

/// Carries out a restore batch; what it doesn't mention stays as it is (`--noflush`).
///
/// *Errors*: [`Error::Tool`] with the tool's words and the line it means; [`Error::Slow`];
/// [`Error::Spawn`].
///
/// *Needs*: the tools in `PATH`; `CAP_NET_ADMIN`, and `CAP_NET_RAW` for legacy.
///
/// *Cost*: a process, and for legacy a copy of the whole table.
pub(crate) fn restore(
    family: Family,
    backend: Backend,
    text: &str,
    patience: Duration,
) -> Result<(), Error> {
    Restore::start(family, backend, text, patience)?.commit()
}

/// A restore whose tool runs already, while what its rules need is still being made: the tool starts, reads the table
/// and works through the text meanwhile. Given up unless it is committed.
pub(crate) struct Restore<'a> {
    family: Family,
    backend: Backend,
    text: &'a str,
    patience: Duration,
    tool: Tool,
    /// How much of the text the tool has been given.
    given: usize,
}

impl<'a> Restore<'a> {
    /// Starts the tool. It has done nothing yet, and takes no lock.
    ///
    /// *Errors*: [`Error::Spawn`].
    pub(crate) fn start(
        family: Family,
        backend: Backend,
        text: &'a str,
        patience: Duration,
    ) -> Result<Self, Error> {
        // The nft tool takes no lock; the legacy one would wait for it without end. Half the time, so
        // that it can say itself what it waited for.
        let wait = format!("--wait={}", (patience / 2).as_secs().max(1));
        let arguments: &[&str] = match backend {
            Backend::Nft => &["--noflush"],
            Backend::Legacy => &["--noflush", &wait],
        };
        Ok(Self {
            family,
            backend,
            text,
            patience,
            tool: Tool::start(&program(family, backend, "restore"), arguments)?,
            given: 0,
        })
    }

    /// Gives the tool what it takes now of the text, but not its end: what the text names must be there. From here on the
    /// legacy tool holds the lock.
    pub(crate) fn feed(&mut self) {
        let end = self.text.strip_suffix(COMMIT).map_or(0, str::len);
        let more = self.text.as_bytes().get(self.given..end);
        self.given += self.tool.give(more.unwrap_or_default());
    }

    /// Gives it the rest and waits; tries again where somebody else was writing.
    ///
    /// *Errors*: as [`restore`].
    pub(crate) fn commit(self) -> Result<(), Error> {
        let Self {
            family,
            backend,
            text,
            patience,
            mut tool,
            given,
        } = self;
        let deadline = Instant::now() + patience;
        let mut rest = &text.as_bytes()[given..];
        let mut pause = FIRST_PAUSE;
        let mut attempt = 1;
        loop {
            let program = tool.program.clone();
            let finished = tool.finish(rest, deadline, patience)?;
            if finished.status.success() {
                return Ok(());
            }
            let line = complained_about(&finished.stderr, text);
            // A commit that meets another writer: legacy names its last line, COMMIT, and no reason.
            let conflict =
                finished.status.code() == Some(STATUS_RESOURCE) || line == Some("COMMIT");
            // After a wait for the lock there is no time for another.
            let time = deadline.saturating_duration_since(Instant::now()) > patience / 2 + pause;
            if !conflict || attempt == ATTEMPTS || !time {
                return Err(Error::Tool {
                    tool: program,
                    status: finished.status.to_string(),
                    stderr: finished.stderr.trim_end().to_owned(),
                    line: line.map(str::to_owned),
                });
            }
            tracing::debug!(
                tool = program,
                attempt,
                stderr = finished.stderr.trim_end(),
                "somebody else is writing rules: again"
            );
            crate::pause(pause);
            pause *= 2;
            attempt += 1;
            tool = Self::start(family, backend, text, patience)?.tool;
            rest = text.as_bytes();
        }
    }
}

/// The line of the input that a restore tool names: `line 7 failed`, `line: 7`, `line 7:`.
pub(crate) fn complained_about<'a>(stderr: &str, text: &'a str) -> Option<&'a str> {
    let after = stderr.split("line").skip(1);
    let number = after
        .filter_map(|rest| {
            let digits = rest.trim_start_matches([':', ' ']);
            let end = digits
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(digits.len());
            digits[..end].parse::<usize>().ok()
        })
        .next()?;
    text.lines().nth(number.checked_sub(1)?)
}

struct Finished {
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

/// What the save tool prints of all tables of a backend, strangers' rules included. For reports:
/// with native rules in a table the nft tool leaves that table out. Empty when the legacy backend
/// has no tables; looking must not make them.
///
/// *Errors*: [`Error::Tool`] with the tool's words; [`Error::Slow`]; [`Error::Spawn`].
pub fn saved_tables(family: Family, backend: Backend, patience: Duration) -> Result<String, Error> {
    match backend {
        Backend::Nft => {}
        Backend::Legacy if crate::legacy::has_tables(family)? => {}
        Backend::Legacy => return Ok(String::new()),
    }
    let program = program(family, backend, "save");
    let finished = run(&program, &[], "", Instant::now() + patience, patience)?;
    if finished.status.success() {
        return Ok(finished.stdout);
    }
    Err(Error::Tool {
        tool: program,
        status: finished.status.to_string(),
        stderr: finished.stderr.trim_end().to_owned(),
        line: None,
    })
}

fn run(
    program: &str,
    arguments: &[&str],
    input: &str,
    deadline: Instant,
    patience: Duration,
) -> Result<Finished, Error> {
    Tool::start(program, arguments)?.finish(input.as_bytes(), deadline, patience)
}

/// A tool that runs. Killed when it is dropped.
struct Tool {
    program: String,
    child: Child,
    /// Never waited for: it is written to when it takes something.
    input: Option<PipeWriter>,
    stdout: File,
    stderr: File,
}

impl Tool {
    #[expect(
        clippy::disallowed_methods,
        reason = "the enforcement half's one place that starts processes"
    )]
    fn start(program: &str, arguments: &[&str]) -> Result<Self, Error> {
        let failed = |what| failed(program, what);
        let (stdin, input) = std::io::pipe().map_err(failed("make its input"))?;
        ioctl_fionbio(&input, true)
            .map_err(std::io::Error::from)
            .map_err(failed("make its input"))?;
        let stdout = memory_file().map_err(failed("make its output"))?;
        let stderr = memory_file().map_err(failed("make its output"))?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(stdin)
            .stdout(stdout.try_clone().map_err(failed("share its output"))?)
            .stderr(stderr.try_clone().map_err(failed("share its output"))?)
            .spawn()
            .map_err(failed("start"))?;
        Ok(Self {
            program: program.to_owned(),
            child,
            input: Some(input),
            stdout,
            stderr,
        })
    }

    /// Gives it what it takes now, and tells how much that was. One that has ended takes everything: why it has, is told
    /// at the end.
    fn give(&mut self, bytes: &[u8]) -> usize {
        let Some(input) = &mut self.input else {
            return bytes.len();
        };
        let mut given = 0;
        while given < bytes.len() {
            match input.write(&bytes[given..]) {
                Ok(count) => given += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return given,
                Err(_) => {
                    self.input = None;
                    return bytes.len();
                }
            }
        }
        given
    }

    /// Gives it the rest of its input and waits for its end; kills it at the deadline.
    fn finish(
        mut self,
        mut rest: &[u8],
        deadline: Instant,
        patience: Duration,
    ) -> Result<Finished, Error> {
        let program = self.program.clone();
        let failed = |what| failed(&program, what);
        let slow = || Error::Slow {
            tool: program.clone(),
            patience,
        };
        loop {
            rest = &rest[self.give(rest)..];
            let Some(input) = self.input.as_ref().filter(|_| !rest.is_empty()) else {
                break;
            };
            // Also ends when nobody reads any more.
            if !ready(input, PollFlags::OUT, deadline).map_err(failed("wait"))? {
                return Err(slow());
            }
        }
        self.input = None;
        let pidfd = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty());
        let pidfd = pidfd
            .map_err(std::io::Error::from)
            .map_err(failed("wait"))?;
        if !ready(&pidfd, PollFlags::IN, deadline).map_err(failed("wait"))? {
            return Err(slow());
        }
        Ok(Finished {
            status: self.child.wait().map_err(failed("wait"))?,
            stdout: contents(&mut self.stdout).map_err(failed("read its output"))?,
            stderr: contents(&mut self.stderr).map_err(failed("read its output"))?,
        })
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        // It is ours, and has its number until it is waited for: once that is done, neither does anything. Killed it ends
        // at once.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What an error of the system becomes, by what was being done with which tool.
fn failed(tool: &str, what: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Spawn {
        tool: tool.to_owned(),
        what,
        source,
    }
}

fn memory_file() -> std::io::Result<File> {
    Ok(File::from(memfd_create("iptables", MemfdFlags::CLOEXEC)?))
}

fn contents(file: &mut File) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether a descriptor is ready before the deadline.
fn ready(what: &impl AsFd, flags: PollFlags, deadline: Instant) -> std::io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(std::io::Error::other)?;
        let mut polled = [PollFd::new(what, flags)];
        match poll(&mut polled, Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Tool, complained_about, run};
    use crate::error::Error;

    #[test]
    fn the_line_that_a_tool_means_is_found_in_any_of_its_phrasings() {
        let text = "*mangle\n:selvage-a - [0:0]\n-A selvage-a -j NOWHERE\nCOMMIT\n";
        for (stderr, line) in [
            (
                "iptables-restore v1.8.9 (nf_tables): \nline 3: RULE_APPEND failed (No such file)",
                Some("-A selvage-a -j NOWHERE"),
            ),
            ("iptables-restore: line 4 failed", Some("COMMIT")),
            (
                "bad argument\nError occurred at line: 2\nTry `iptables-restore -h'",
                Some(":selvage-a - [0:0]"),
            ),
            ("line 99 failed", None),
            ("line 0 failed", None),
            ("out of memory", None),
        ] {
            assert_eq!(complained_about(stderr, text), line, "{stderr:?}");
        }
    }

    #[test]
    fn a_tool_gets_its_input_and_what_it_says_and_complains_about_is_kept() {
        let patience = Duration::from_secs(10);
        let deadline = Instant::now() + patience;
        let finished = run(
            "sh",
            &["-c", "cat >&2; echo out; exit 3"],
            "in",
            deadline,
            patience,
        );
        let finished = finished.unwrap();
        assert_eq!(
            (finished.stdout.as_str(), finished.stderr.as_str()),
            ("out\n", "in")
        );
        assert_eq!(finished.status.code(), Some(3));
    }

    /// A pipe holds 64 kB.
    const MUCH: usize = 1 << 20;

    #[test]
    fn a_tool_takes_more_input_than_a_pipe_holds_at_its_own_pace() {
        let patience = Duration::from_secs(30);
        let mut tool = Tool::start("sh", &["-c", "sleep 0.1; wc -c"]).unwrap();
        let input = "x".repeat(MUCH);
        let given = tool.give(input.as_bytes());
        assert!(given > 0 && given < MUCH, "{given} at once");
        let rest = &input.as_bytes()[given..];
        let finished = tool.finish(rest, Instant::now() + patience, patience);
        assert_eq!(finished.unwrap().stdout.trim(), MUCH.to_string());
    }

    #[test]
    fn a_tool_that_ends_without_reading_is_told_by_its_status() {
        let patience = Duration::from_secs(30);
        let input = "x".repeat(MUCH);
        let ended = run("false", &[], &input, Instant::now() + patience, patience);
        assert_eq!(ended.unwrap().status.code(), Some(1));
    }

    #[test]
    fn a_tool_that_never_reads_is_killed_at_its_deadline() {
        let patience = Duration::from_millis(50);
        let started = Instant::now();
        let input = "x".repeat(MUCH);
        let ended = run("sleep", &["60"], &input, started + patience, patience);
        assert!(matches!(ended, Err(Error::Slow { .. })));
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_tool_that_is_given_up_ends() {
        let tool = Tool::start("sleep", &["60"]).unwrap();
        let process = format!("/proc/{}", tool.child.id());
        assert!(std::path::Path::new(&process).exists());
        drop(tool);
        assert!(!std::path::Path::new(&process).exists());
    }

    #[test]
    fn a_tool_that_hangs_is_killed_at_its_deadline() {
        let patience = Duration::from_millis(50);
        let started = Instant::now();
        let ended = run("sleep", &["60"], "", started + patience, patience);
        assert!(matches!(ended, Err(Error::Slow { .. })));
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_tool_that_is_missing_is_named() {
        let patience = Duration::from_secs(1);
        let ended = run("selvage-no-tool", &[], "", Instant::now(), patience);
        let error = ended.err().unwrap().to_string();
        assert!(error.contains("selvage-no-tool"), "{error}");
    }
}
