//! The last log lines, kept in memory for a bug report: a container's own log is out of its reach.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

/// Bytes kept: some 2,000 lines.
const KEPT_MAX: usize = 256 * 1024;

/// Logging belongs to the process as a whole; so do its last lines.
static RECENT: Mutex<Recent> = Mutex::new(Recent {
    lines: VecDeque::new(),
    bytes: 0,
});

/// Lines, oldest first.
#[derive(Debug)]
struct Recent {
    lines: VecDeque<String>,
    bytes: usize,
}

impl Recent {
    fn keep(&mut self, line: String) {
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.bytes > KEPT_MAX {
            let Some(oldest) = self.lines.pop_front() else {
                return;
            };
            self.bytes -= oldest.len();
        }
    }
}

/// Writes log lines to standard error, and keeps them. One call is one line.
#[derive(Debug)]
pub struct Log;

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line).into_owned();
        RECENT
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .keep(text);
        io::stderr().write_all(line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// The last lines of this process, oldest first; whole ones, up to 256 KiB.
#[must_use]
pub fn lines() -> String {
    let recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    recent.lines.iter().map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_lines_go_first_and_what_stays_is_bounded() {
        let mut recent = Recent {
            lines: VecDeque::new(),
            bytes: 0,
        };
        for number in 0..KEPT_MAX / 4 {
            recent.keep(format!("{number:07}\n"));
        }
        assert_eq!(recent.bytes, KEPT_MAX);
        assert_eq!(recent.lines.len(), KEPT_MAX / 8);
        let last = format!("{:07}\n", KEPT_MAX / 4 - 1);
        assert_eq!(recent.lines.back(), Some(&last));
        recent.keep("x".repeat(KEPT_MAX + 1));
        assert!(recent.bytes <= KEPT_MAX, "one endless line");
    }
}
