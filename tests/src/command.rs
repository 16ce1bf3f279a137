//! Other people's tools, run to the end.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Runs `words` (a program and its arguments, split at spaces) and returns what it printed.
///
/// *Errors*: the program is missing, or ended with another status than 0; its stderr is the message.
pub fn run(words: &str) -> Result<String> {
    run_with_input(words, "")
}

/// [`run`], with `input` on standard input.
///
/// *Errors*: as [`run`].
#[expect(
    clippy::disallowed_methods,
    reason = "the fixtures' one place that starts processes"
)]
pub fn run_with_input(words: &str, input: &str) -> Result<String> {
    let mut parts = words.split_whitespace();
    let program = parts.next().context("no program named")?;
    let mut child = Command::new(program)
        .args(parts)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {program}"))?;
    let mut stdin = child.stdin.take().context("stdin was piped")?;
    // A tool that refuses its input early closes the pipe: its status says why.
    let written = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "{words}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    written.with_context(|| format!("write to {program}"))?;
    Ok(String::from_utf8(output.stdout)?)
}
