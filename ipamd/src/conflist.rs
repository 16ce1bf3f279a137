//! What the container runtime finds: the plugin's binary and the conflist that names it.
//!
//! The conflist is what makes a node Ready, so it is written only when the daemon can give addresses. It stays when
//! the daemon ends: pods that are there must be deletable, and new ones wait for the next daemon.
//!
//! What is chained behind our plugin is CNI's own `portmap`, without which `hostPort` does nothing, and by settings
//! `bandwidth` and `tuning`; and whatever somebody else has put into the list, which is kept as it is.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::Value;
use thiserror::Error;
use tracing::warn;

use crate::config::Config;

mod chain;
mod list;

pub use chain::versions_of;
pub use list::{Merged, merge};

/// Runtimes take the first file in order of name.
const CONFLIST: &str = "10-aws.conflist";
/// The name by which runtimes call the plugin.
const PLUGIN: &str = "aws-cni";

/// The system refused.
#[derive(Debug, Error)]
#[error("install {path}: {source}", path = path.display())]
pub struct InstallError {
    path: PathBuf,
    source: io::Error,
}

/// What an installation found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Installed {
    /// The files that were changed.
    pub changed: Vec<PathBuf>,
    /// What should be chained and is not on the node.
    pub missing: Vec<Missing>,
}

/// A plugin that is left out of the conflist because the node does not have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Its path.
    pub binary: PathBuf,
    /// What does not work without it.
    pub without: &'static str,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} is missing: {} does not work on this node; install the CNI plugins there (containernetworking/plugins)",
            self.binary.display(),
            self.without
        )
    }
}

/// Installs the plugin, then the conflist that calls it; each only if it is not there as it should be. `versions`
/// tells which versions of CNI a binary speaks, `None` if it cannot be asked; it is used only when the list of plugins
/// changes.
///
/// # Errors
/// When the system refuses. A file is replaced as a whole or not at all.
pub fn install(
    config: &Config,
    versions: impl Fn(&Path) -> Option<Vec<String>>,
) -> Result<Installed, InstallError> {
    let mut installed = Installed::default();
    let plugin = config.cni_bin_dir.join(PLUGIN);
    let copied = install_plugin(&config.cni_plugin, &plugin);
    if copied.map_err(|source| InstallError {
        path: plugin.clone(),
        source,
    })? {
        installed.changed.push(plugin);
    }
    let conflist = config.cni_conf_dir.join(CONFLIST);
    let written = write_conflist(config, &conflist, versions, &mut installed.missing);
    if written.map_err(|source| InstallError {
        path: conflist.clone(),
        source,
    })? {
        installed.changed.push(conflist);
    }
    Ok(installed)
}

fn write_conflist(
    config: &Config,
    path: &Path,
    versions: impl Fn(&Path) -> Option<Vec<String>>,
    missing: &mut Vec<Missing>,
) -> io::Result<bool> {
    let there = match fs::read(path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if let Some(Err(error)) = there.as_deref().map(serde_json::from_slice::<Value>) {
        warn!(path = %path.display(), %error, "the conflist was not JSON");
    }
    let binary = |kind: &str| config.cni_bin_dir.join(kind);
    let has = |kind: &str| binary(kind).exists();
    let merged = merge(config, there.as_deref(), has, |kind| {
        versions(&binary(kind))
    });
    missing.extend(merged.missing.into_iter().map(|(kind, without)| Missing {
        binary: binary(&kind),
        without,
    }));
    let text = merged.text;
    if there.is_some_and(|there| there == text.as_bytes()) {
        return Ok(false);
    }
    replace(path, 0o644, |file| file.write_all(text.as_bytes()))?;
    Ok(true)
}

fn install_plugin(source: &Path, target: &Path) -> io::Result<bool> {
    if same(source, target)? {
        return Ok(false);
    }
    let mut from = File::open(source)?;
    replace(target, 0o755, |file| io::copy(&mut from, file).map(|_| ()))?;
    Ok(true)
}

/// Whether `target` is a copy of `source` that can be executed.
fn same(source: &Path, target: &Path) -> io::Result<bool> {
    let there = match File::open(target) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let wanted = File::open(source)?;
    let (there_meta, wanted_meta) = (there.metadata()?, wanted.metadata()?);
    if there_meta.permissions().mode() & 0o777 != 0o755 || there_meta.len() != wanted_meta.len() {
        return Ok(false);
    }
    let (mut a, mut b) = (io::BufReader::new(there), io::BufReader::new(wanted));
    let (mut left, mut right) = ([0; 4096], [0; 4096]);
    loop {
        let count = a.read(&mut left)?;
        if count == 0 {
            return Ok(true);
        }
        b.read_exact(&mut right[..count])?;
        if left[..count] != right[..count] {
            return Ok(false);
        }
    }
}

/// Writes beside and renames, so that nobody runs half a plugin.
fn replace(
    path: &Path,
    mode: u32,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    // A leading dot: runtimes skip it, and so does whoever lists plugins.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.tmp"));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)?;
    // `mode` above is subject to the umask, and to nothing if the file was there.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    fill(&mut file)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests;
