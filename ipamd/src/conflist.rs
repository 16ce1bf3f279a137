//! What the container runtime finds: the plugin's binary and the conflist that names it.
//!
//! The conflist is what makes a node Ready, so it is written only when the daemon can give addresses. It stays when
//! the daemon ends: pods that are there must be deletable, and new ones wait for the next daemon.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::json;
use thiserror::Error;

use crate::config::Config;

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

/// Installs the plugin, then the conflist that calls it; each only if it is not there as it should be. Returns the
/// files that were changed.
///
/// # Errors
/// When the system refuses. A file is replaced as a whole or not at all.
pub fn install(config: &Config) -> Result<Vec<PathBuf>, InstallError> {
    let mut changed = Vec::new();
    let plugin = config.cni_bin_dir.join(PLUGIN);
    let installed = install_plugin(&config.cni_plugin, &plugin);
    if installed.map_err(|source| InstallError {
        path: plugin.clone(),
        source,
    })? {
        changed.push(plugin);
    }
    let conflist = config.cni_conf_dir.join(CONFLIST);
    let written = write_conflist(config, &conflist);
    if written.map_err(|source| InstallError {
        path: conflist.clone(),
        source,
    })? {
        changed.push(conflist);
    }
    Ok(changed)
}

/// The conflist, as text.
pub fn render(config: &Config) -> String {
    let mut plugin = json!({
        "name": "aws-cni",
        "type": PLUGIN,
        "vethPrefix": config.veth_prefix,
        "mtu": config.pod_mtu.to_string(),
        "pluginLogFile": config.plugin_log_file,
        "pluginLogLevel": config.plugin_log_level,
    });
    if let Some(ready) = &config.policy_ready {
        plugin["policyReady"] = json!({
            "directory": ready.directory,
            "timeoutSeconds": ready.timeout.as_secs(),
        });
    }
    let list = json!({"cniVersion": "1.1.0", "name": "aws-cni", "plugins": [plugin]});
    format!("{list:#}\n")
}

fn write_conflist(config: &Config, path: &Path) -> io::Result<bool> {
    let text = render(config);
    match fs::read(path) {
        Ok(there) if there == text.as_bytes() => return Ok(false),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
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
mod tests {
    use super::*;
    use crate::config::Args;

    fn config(root: &Path) -> Config {
        let text = |p: &str| Some(root.join(p).to_string_lossy().into_owned());
        fs::create_dir_all(root.join("bin")).unwrap();
        fs::create_dir_all(root.join("net.d")).unwrap();
        fs::write(root.join("aws-cni"), "#!/bin/sh\n# one\n").unwrap();
        let args = Args {
            cni_bin_dir: text("bin"),
            cni_conf_dir: text("net.d"),
            cni_plugin: text("aws-cni"),
            ..Args::default()
        };
        Config::try_from(&args).unwrap()
    }

    #[test]
    fn the_conflist_names_the_plugin_with_texts_as_awss_plugin_wants_them() {
        let root = tempfile::tempdir().unwrap();
        let list: serde_json::Value = serde_json::from_str(&render(&config(root.path()))).unwrap();
        assert_eq!(list["cniVersion"], "1.1.0");
        assert_eq!(list["name"], "aws-cni");
        assert_eq!(list["plugins"][0]["type"], "aws-cni");
        assert_eq!(list["plugins"][0]["mtu"], "9001");
        assert_eq!(list["plugins"][0]["vethPrefix"], "eni");
        assert_eq!(list["plugins"].as_array().unwrap().len(), 1);
        assert!(list["plugins"][0].get("policyReady").is_none());
    }

    #[test]
    fn an_add_waits_for_policy_only_where_the_daemon_was_told_a_directory() {
        let rows = [
            (None, None, json!(null)),
            (Some(""), Some("9"), json!(null)),
            (
                Some("/run/ready"),
                None,
                json!({"directory": "/run/ready", "timeoutSeconds": 20}),
            ),
            (
                Some("/run/ready"),
                Some("60"),
                json!({"directory": "/run/ready", "timeoutSeconds": 60}),
            ),
        ];
        for (directory, seconds, expected) in rows {
            let args = Args {
                policy_ready_dir: directory.map(ToOwned::to_owned),
                policy_ready_timeout_seconds: seconds.map(ToOwned::to_owned),
                ..Args::default()
            };
            let text = render(&Config::try_from(&args).unwrap());
            let list: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(list["plugins"][0]["policyReady"], expected, "{directory:?}");
        }
    }

    #[test]
    fn what_is_right_is_not_written_again_and_what_is_wrong_is() {
        let root = tempfile::tempdir().unwrap();
        let config = config(root.path());
        assert_eq!(install(&config).unwrap().len(), 2);
        assert_eq!(install(&config).unwrap(), Vec::<PathBuf>::new());

        let plugin = root.path().join("bin/aws-cni");
        assert_eq!(
            fs::metadata(&plugin).unwrap().permissions().mode() & 0o777,
            0o755
        );
        // Same length, other content.
        fs::write(root.path().join("aws-cni"), "#!/bin/sh\n# two\n").unwrap();
        assert_eq!(install(&config).unwrap(), [plugin.as_path()]);
        fs::set_permissions(&plugin, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(install(&config).unwrap(), [plugin.as_path()]);

        let conflist = root.path().join("net.d/10-aws.conflist");
        fs::write(&conflist, "{}").unwrap();
        assert_eq!(install(&config).unwrap(), [conflist.as_path()]);
        let left: Vec<_> = fs::read_dir(root.path().join("net.d")).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn a_directory_that_is_missing_is_named() {
        let root = tempfile::tempdir().unwrap();
        let config = config(root.path());
        fs::remove_dir(root.path().join("net.d")).unwrap();
        let error = install(&config).unwrap_err().to_string();
        assert!(error.contains("net.d/10-aws.conflist"), "{error}");
    }
}
