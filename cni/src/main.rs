//! `aws-cni`: environment and stdin in, JSON on stdout, exit code 0 or 1.

use std::io;
use std::process::ExitCode;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::stdio::{stdin, stdout};
use selvage_cni::request::Environment;

/// musl's own allocator maps and unmaps memory for almost every buffer: in a process of a millisecond that is
/// a tenth of its life.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

/// The longest configuration that is read; a result of many addresses is a few kilobytes.
const LONGEST_CONFIG: usize = 4 * 1024 * 1024;
/// What most configurations fit in, a result of ADD included: one read and one to see the end. What is read from it has
/// room on the same page.
const USUAL_CONFIG: usize = 2 * 1024;

fn main() -> ExitCode {
    let mut config = Vec::with_capacity(USUAL_CONFIG);
    let read = read_config(&mut config);
    let answer = selvage_cni::run(&Environment::read(), read.map(|()| config.as_slice()));
    // Nobody is left to tell if stdout is closed: the runtime that asked has ended, and will ask for DEL.
    let _ = write_answer(answer.stdout.as_bytes());
    if answer.success {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Stdin to its end. Without the standard library's buffer between: it is as large as what is read, and each page that
/// a process touches first is a part of what it takes to start.
fn read_config(config: &mut Vec<u8>) -> io::Result<()> {
    while config.len() < LONGEST_CONFIG {
        if config.len() == config.capacity() {
            config.reserve(config.len());
        }
        match rustix::io::read(stdin(), spare_capacity(config)) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    config.truncate(LONGEST_CONFIG);
    Ok(())
}

fn write_answer(mut answer: &[u8]) -> io::Result<()> {
    while !answer.is_empty() {
        match rustix::io::write(stdout(), answer) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => answer = &answer[written..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
