//! The iptables tools: the only place of the enforcement half that starts processes.
//!
//! A tool gets its input and leaves its complaints in memory files, so that no pipe can fill while the
//! other side waits, and it is killed at a deadline. A restore batch is atomic in both backends:
//! killed or refused, nothing of it is in force.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
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
    let program = program(family, backend, "restore");
    let deadline = Instant::now() + patience;
    // The nft tool takes no lock; the legacy one would wait for it without end. Half the time, so
    // that it can say itself what it waited for.
    let wait = format!("--wait={}", (patience / 2).as_secs().max(1));
    let arguments: &[&str] = match backend {
        Backend::Nft => &["--noflush"],
        Backend::Legacy => &["--noflush", &wait],
    };
    let mut pause = FIRST_PAUSE;
    let mut attempt = 1;
    loop {
        let finished = run(&program, arguments, text, deadline, patience)?;
        if finished.status.success() {
            return Ok(());
        }
        let line = complained_about(&finished.stderr, text);
        // A commit that meets another writer: legacy names its last line, COMMIT, and no reason.
        let conflict = finished.status.code() == Some(STATUS_RESOURCE) || line == Some("COMMIT");
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

#[expect(
    clippy::disallowed_methods,
    reason = "the enforcement half's one place that starts processes"
)]
fn run(
    program: &str,
    arguments: &[&str],
    input: &str,
    deadline: Instant,
    patience: Duration,
) -> Result<Finished, Error> {
    let failed = |what| {
        move |source| Error::Spawn {
            tool: program.to_owned(),
            what,
            source,
        }
    };
    let mut stdin = memory_file().map_err(failed("make its input"))?;
    stdin
        .write_all(input.as_bytes())
        .and_then(|()| stdin.rewind())
        .map_err(failed("write its input"))?;
    let mut stdout = memory_file().map_err(failed("make its output"))?;
    let mut stderr = memory_file().map_err(failed("make its output"))?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(stdin)
        .stdout(stdout.try_clone().map_err(failed("share its output"))?)
        .stderr(stderr.try_clone().map_err(failed("share its output"))?)
        .spawn()
        .map_err(failed("start"))?;
    let ended = wait_until(&child, deadline).map_err(failed("wait"));
    if !matches!(ended, Ok(true)) {
        // It is ours and not reaped yet, so the number is its own still.
        child.kill().map_err(failed("kill"))?;
        child.wait().map_err(failed("wait"))?;
        ended?;
        return Err(Error::Slow {
            tool: program.to_owned(),
            patience,
        });
    }
    let status = child.wait().map_err(failed("wait"))?;
    Ok(Finished {
        status,
        stdout: contents(&mut stdout).map_err(failed("read its output"))?,
        stderr: contents(&mut stderr).map_err(failed("read its output"))?,
    })
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

/// Whether the child ended before the deadline.
fn wait_until(child: &Child, deadline: Instant) -> std::io::Result<bool> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(std::io::Error::other)?;
        let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
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

    use super::{complained_about, run};
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
