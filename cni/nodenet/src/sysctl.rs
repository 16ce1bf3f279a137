//! Sysctls of the calling thread's network namespace: read, write, compare and write.

use std::fs;
use std::io::{self, Read, Write};

use crate::Error;

/// The longest value of a network sysctl that anybody sets is a list of a few port ranges. The kernel gives a
/// value in one read.
const LONGEST: usize = 4096;

/// A key, as a path below `/proc/sys`: dots belong to names there (`net/ipv4/conf/eth0.5/rp_filter`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(String);

impl Key {
    /// A key by its path: `net/ipv4/ip_forward`.
    pub fn new(path: impl Into<String>) -> Self {
        Key(path.into())
    }

    /// A key of one link: `net/ipv6/conf/<link>/<name>`.
    pub fn ipv6_of_link(link: &str, name: &str) -> Self {
        Key(format!("net/ipv6/conf/{link}/{name}"))
    }

    /// A key of one link: `net/ipv4/conf/<link>/<name>`.
    pub fn ipv4_of_link(link: &str, name: &str) -> Self {
        Key(format!("net/ipv4/conf/{link}/{name}"))
    }

    /// The path below `/proc/sys`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn path(&self) -> String {
        format!("/proc/sys/{}", self.0)
    }

    fn error(&self, reason: io::Error) -> Error {
        Error::Sysctl {
            key: self.0.clone(),
            reason,
        }
    }
}

/// The value without its line end; `None` if this kernel has no such key (IPv6 off, feature missing).
pub fn read(key: &Key) -> Result<Option<String>, Error> {
    let mut value = [0; LONGEST];
    let length = fs::File::open(key.path()).and_then(|mut file| file.read(&mut value));
    match length {
        Ok(length) => {
            let text = String::from_utf8_lossy(&value[..length]);
            Ok(Some(text.trim_end().to_owned()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(key.error(error)),
    }
}

/// Writes a value; false if this kernel has no such key. *Cost*: 10 µs.
pub fn write(key: &Key, value: &str) -> Result<bool, Error> {
    // Not `fs::write`, which would ask to create and truncate.
    let written = fs::OpenOptions::new()
        .write(true)
        .open(key.path())
        .and_then(|mut file| file.write_all(value.as_bytes()));
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(key.error(error)),
    }
}

/// Writes a value unless it is there already, and tells whether it was written. A read-only `/proc/sys` is
/// no trouble as long as everything in it is right.
///
/// Reading first is not only politeness: writing `forwarding` needs the lock of all of the kernel's networking,
/// which it tries for in a loop, and thirty pods that start at once take turns at it.
///
/// *Errors*: [`Error::Sysctl`]; [`Error::Missing`] if this kernel has no such key. *Cost*: 10 µs, or 20.
pub fn ensure(key: &Key, value: &str) -> Result<bool, Error> {
    match read(key)? {
        Some(now) if now == value => Ok(false),
        Some(_) => write(key, value),
        None => Err(Error::Missing {
            what: format!("sysctl {}", key.0),
        }),
    }
}

/// As [`ensure`], but a key that this kernel does not have is let pass.
pub fn ensure_if_there(key: &Key, value: &str) -> Result<bool, Error> {
    match ensure(key, value) {
        Err(Error::Missing { .. }) => Ok(false),
        result => result,
    }
}
