//! The only place of the benches that starts processes, waits without being woken, and counts
//! what a process used.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Between two looks at something that nobody tells of.
const LOOK: Duration = Duration::from_millis(2);

/// Waits. Rounds are spaced with it; it is part of no figure.
#[expect(
    clippy::disallowed_methods,
    reason = "rounds have to be apart from each other"
)]
pub fn pause(length: Duration) {
    std::thread::sleep(length);
}

/// Looks until there is something to see.
///
/// *Errors*: not within `patience`, with `what` named; or the look's own.
pub fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(seen) = look()? {
            return Ok(seen);
        }
        if Instant::now() > deadline {
            bail!("{what}: not within {patience:?}");
        }
        pause(LOOK);
    }
}

/// A command whose output is kept apart.
#[expect(clippy::disallowed_methods, reason = "this is that one place")]
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    Command::new(program)
}

/// Runs a tool with an input and says how long it took, from its start to its end.
///
/// *Errors*: it ended badly; its words are in the message.
pub fn timed(command: &mut Command, input: &str) -> Result<Duration> {
    // A file and not a pipe: nobody waits for anybody while the clock runs.
    let mut file = tempfile::tempfile()?;
    file.write_all(input.as_bytes())?;
    std::io::Seek::rewind(&mut file)?;
    command
        .stdin(file)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let program = command.get_program().to_string_lossy().into_owned();
    let began = Instant::now();
    let child = command
        .spawn()
        .with_context(|| format!("start {program}"))?;
    let output = child.wait_with_output()?;
    let took = began.elapsed();
    ensure!(
        output.status.success(),
        "{program}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(took)
}

/// What a process has used so far.
#[derive(Debug, Clone, Copy)]
pub struct Used {
    /// Time on a processor, its threads together.
    pub cpu: Duration,
    /// Page faults of children that have ended: grows with each of them.
    pub child_faults: u64,
}

/// Reads `/proc/PID/stat`.
///
/// *Errors*: the process is gone.
pub fn used(pid: u32) -> Result<Used> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("read stat")?;
    let (_, fields) = stat.rsplit_once(") ").context("stat has a name")?;
    let field = |number: usize| -> Result<u64> {
        // Numbered as in proc(5); the first of these is the third.
        let text = fields
            .split_whitespace()
            .nth(number - 3)
            .context("stat has fields")?;
        Ok(text.parse()?)
    };
    // The kernel counts in ticks of USER_HZ, 100 a second on every Linux of today.
    let ticks = field(14)? + field(15)?;
    Ok(Used {
        cpu: Duration::from_millis(ticks * 10),
        child_faults: field(11)?,
    })
}

/// Resident memory of a process in kilobytes, now and at most.
///
/// *Errors*: the process is gone.
pub fn resident(pid: u32) -> Result<(u64, u64)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| -> Result<u64> {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .with_context(|| format!("no {name} in status"))?;
        Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
    };
    Ok((field("VmRSS:")?, field("VmHWM:")?))
}

/// Ends a child by a signal and waits for it.
///
/// *Errors*: it does not end in time; then it is killed.
pub fn end(child: &mut Child, patience: Duration) -> Result<()> {
    if child.try_wait()?.is_some() {
        return Ok(());
    }
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    let ended = wait_for("the agent to end", patience, || Ok(child.try_wait()?));
    if ended.is_err() {
        child.kill()?;
        child.wait()?;
    }
    ended.map(drop)
}

/// Whether a program is there to be started.
///
/// *Errors*: it is not.
pub fn is_there(program: &Path) -> Result<()> {
    ensure!(program.is_file(), "{}: no such program", program.display());
    Ok(())
}
