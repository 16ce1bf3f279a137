//! `aws-cni`: environment and stdin in, JSON on stdout, exit code 0 or 1.

use std::io::{Read, Write};
use std::process::ExitCode;

use selvage_cni::request::Environment;

/// musl's own allocator maps and unmaps memory for almost every buffer: in a process of a millisecond that is
/// a tenth of its life.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

/// The longest configuration that is read; a result of many addresses is a few kilobytes.
const LONGEST_CONFIG: u64 = 4 * 1024 * 1024;
/// What most configurations fit in, a result of ADD included: one read and one to see the end.
const USUAL_CONFIG: usize = 8 * 1024;

fn main() -> ExitCode {
    let mut stdin = Vec::with_capacity(USUAL_CONFIG);
    let read = std::io::stdin()
        .take(LONGEST_CONFIG)
        .read_to_end(&mut stdin);
    let answer = selvage_cni::run(&Environment::read(), read.map(|_| stdin.as_slice()));
    // Nobody is left to tell if stdout is closed: the runtime that asked has ended, and will ask for DEL.
    let _ = std::io::stdout().write_all(answer.stdout.as_bytes());
    if answer.success {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
