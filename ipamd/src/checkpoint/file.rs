//! A file that is replaced as a whole, again and again.
//!
//! ```text
//!  name.tmp ──write, fsync──> exchanged with name ──fsync of the directory──> name.tmp: the one before, written over next
//! ```
//!
//! After a crash at any point the file is the old one or the new one. Most of what a new file costs is its pages, so
//! from the second time on the two files change places, and the older is written over. Who reads while two
//! more are written may read a part of either; the daemon reads only before it writes.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

/// A file, and what is known of it.
#[derive(Debug)]
pub(super) struct Replaced {
    path: PathBuf,
    temporary: PathBuf,
    /// Since when the file is ours alone, and nothing on the disk calls the temporary one by its name.
    mine: Mine,
}

/// What of the two files this process has made, and the disk has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Mine {
    /// Nothing is known: the temporary one may be what the disk has under the file's name.
    #[default]
    Neither,
    /// The file; there is no other.
    File,
    /// The file, and the one before.
    Both,
}

impl Replaced {
    pub(super) fn new(path: PathBuf) -> Self {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".tmp");
        Self {
            path,
            temporary: temporary.into(),
            mine: Mine::Neither,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// When this returns, the text is on the disk.
    ///
    /// # Errors
    /// When the system refuses; the old file is whole then.
    pub(super) fn replace(&mut self, text: &[u8]) -> io::Result<()> {
        // After an error nothing is known any more.
        let mine = std::mem::take(&mut self.mine);
        let mut file = self.open(mine)?;
        file.write_all(text)?;
        if mine == Mine::Both {
            file.set_len(text.len() as u64)?;
        }
        file.sync_all()?;
        let now = self.put_in_place(mine)?;
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        File::open(directory)?.sync_all()?;
        self.mine = now;
        Ok(())
    }

    fn open(&self, mine: Mine) -> io::Result<File> {
        if mine != Mine::Both {
            match std::fs::remove_file(&self.temporary) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&self.temporary)
    }

    /// The temporary file under the file's name; says what there is then.
    fn put_in_place(&self, mine: Mine) -> io::Result<Mine> {
        if mine != Mine::Neither {
            let (from, to) = (&self.temporary, &self.path);
            match renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE) {
                Ok(()) => return Ok(Mine::Both),
                // Not every file system can, and somebody may have removed the file.
                Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        std::fs::rename(&self.temporary, &self.path)?;
        Ok(Mine::File)
    }
}
