//! The file in which one instance tells the next how the kernel held our chains when they were right.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use selvage_netfilter::{Backend, Record};
use tracing::{debug, warn};

/// Its name, in the folder of the lock; whoever holds that owns it.
const FILE: &str = "chains";

/// Where a record is kept.
pub(crate) struct RecordFile {
    path: PathBuf,
    /// What is in it, as far as we wrote it.
    written: Option<Record>,
    /// Whether a failure was told of.
    told: bool,
}

impl RecordFile {
    /// In this folder. Touches nothing yet.
    pub(crate) fn new(run_dir: &Path) -> Self {
        Self {
            path: run_dir.join(FILE),
            written: None,
            told: false,
        }
    }

    /// What an earlier instance left. One that cannot be read knows no chain: then all are written once.
    pub(crate) fn read(&self, backend: Backend) -> Record {
        let record = match fs::read_to_string(&self.path) {
            Ok(text) => Record::parse(&text),
            Err(error) => {
                debug!(path = %self.path.display(), %error, "no record of chains");
                None
            }
        };
        record.unwrap_or_else(|| Record::empty(backend))
    }

    /// Writes a record where it is another one. Without it the next start writes chains that are
    /// right, which is no hole.
    pub(crate) fn write(&mut self, record: &Record) {
        if self.written.as_ref() == Some(record) {
            return;
        }
        match self.replace(record) {
            Ok(()) => self.written = Some(record.clone()),
            Err(error) if !self.told => {
                self.told = true;
                warn!(path = %self.path.display(), %error, "the record of chains is not written");
            }
            Err(_) => {}
        }
    }

    fn replace(&self, record: &Record) -> io::Result<()> {
        let new = self.path.with_extension("new");
        fs::write(&new, record.to_string())?;
        fs::rename(new, &self.path)
    }

    /// Takes it away: the chains are gone.
    pub(crate) fn remove(&self) {
        match fs::remove_file(&self.path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => warn!(path = %self.path.display(), %error, "the record of chains stays"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_and_one_that_is_damaged_knows_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = RecordFile::new(folder.path());
        assert_eq!(file.read(Backend::Nft), Record::empty(Backend::Nft));
        let text = "selvage-policy chains 1 nft\n4 selvage-to 00000000000000ff\nend\n";
        let record = Record::parse(text).unwrap();
        file.write(&record);
        assert_eq!(RecordFile::new(folder.path()).read(Backend::Nft), record);
        fs::write(folder.path().join(FILE), &text[..40]).unwrap();
        assert_eq!(file.read(Backend::Nft), Record::empty(Backend::Nft));
        file.remove();
        file.remove();
        assert!(!folder.path().join(FILE).exists());
    }

    #[test]
    fn a_folder_that_is_not_there_is_no_reason_to_fail() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = RecordFile::new(&folder.path().join("missing"));
        file.write(&Record::empty(Backend::Nft));
        assert_eq!(file.written, None);
    }
}
