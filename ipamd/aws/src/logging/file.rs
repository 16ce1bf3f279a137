//! A log file that does not fill the disk: renamed away when it is long, the oldest ones removed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tracing_subscriber::fmt::MakeWriter;

/// As AWS's daemon rotates: 100 MB, five old ones.
const LONGEST: u64 = 100 << 20;
const OLD_ONES: u32 = 5;

/// The file.
pub(super) struct LogFile {
    path: PathBuf,
    longest: u64,
    open: Mutex<Open>,
}

struct Open {
    file: File,
    length: u64,
}

impl LogFile {
    /// Opens a file for appending, and makes its folder.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Self::with_length(path, LONGEST)
    }

    fn with_length(path: &Path, longest: u64) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        Ok(Self {
            path: path.to_owned(),
            longest,
            open: Mutex::new(append(path)?),
        })
    }

    /// `ipamd.log.4` becomes `ipamd.log.5`, and so on, and the file itself `ipamd.log.1`.
    fn rotate(&self) -> io::Result<Open> {
        for number in (1..OLD_ONES).rev() {
            // One that is not there yet.
            let _ = fs::rename(self.old(number), self.old(number + 1));
        }
        fs::rename(&self.path, self.old(1))?;
        append(&self.path)
    }

    fn old(&self, number: u32) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    }
}

fn append(path: &Path) -> io::Result<Open> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    let length = file.metadata()?.len();
    Ok(Open { file, length })
}

impl Write for &LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.length >= self.longest {
            *open = self.rotate()?;
        }
        let written = open.file.write(line)?;
        open.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogFile {
    type Writer = &'a LogFile;

    fn make_writer(&'a self) -> &'a LogFile {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_file_is_renamed_and_of_the_old_ones_five_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/ipamd.log");
        let log = LogFile::with_length(&path, 10).unwrap();
        for line in 0..20 {
            (&log)
                .write_all(format!("line {line:04}\n").as_bytes())
                .unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "line 0019\n");
        assert_eq!(fs::read_to_string(log.old(1)).unwrap(), "line 0018\n");
        assert_eq!(fs::read_to_string(log.old(5)).unwrap(), "line 0014\n");
        let count = fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(count, 6);
    }

    #[test]
    fn a_new_process_goes_on_where_the_old_one_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ipamd.log");
        (&LogFile::with_length(&path, 25).unwrap())
            .write_all(b"first line\n")
            .unwrap();
        let log = LogFile::with_length(&path, 15).unwrap();
        (&log).write_all(b"second line\n").unwrap();
        (&log).write_all(b"third line\n").unwrap();
        assert_eq!(
            fs::read_to_string(log.old(1)).unwrap(),
            "first line\nsecond line\n"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), "third line\n");
    }
}
