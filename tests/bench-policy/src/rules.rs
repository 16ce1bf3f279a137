//! When rules changed, seen from beside: by nf_tables' own notices, or by the lock file that each
//! legacy tool opens and closes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use selvage_tests::run;

use crate::process::wait_for;

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN`: the last message of a transaction.
const NEW_GENERATION: u16 = (10 << 8) | 15;

/// For a reading that nobody disturbs.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the legacy tools take turns.
const LOCK: &str = "/run/xtables.lock";

/// Which of the kernel's two iptables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// nf_tables.
    Nft,
    /// x_tables.
    Legacy,
}

impl Backend {
    /// As it is in the tools' names.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }

    /// The tool that writes rules, of a family's tools.
    #[must_use]
    pub fn restore(self, tool: &str) -> String {
        format!("{tool}-{}-restore", self.as_str())
    }
}

/// Hears of each write of rules in the network namespace that it was made in.
pub enum Writes {
    /// A socket to nf_tables' notices.
    Nft(Socket, Vec<u8>),
    /// A watch on the lock file.
    Legacy(rustix::fd::OwnedFd),
}

impl Writes {
    /// Listens from now on.
    ///
    /// *Errors*: not permitted.
    pub fn hear(backend: Backend) -> Result<Self> {
        Ok(match backend {
            Backend::Nft => {
                let mut socket = Socket::new(NETLINK_NETFILTER)?;
                socket.bind(&SocketAddr::new(0, 1 << (GROUP - 1)))?;
                // A whole table is a notice a rule; a lost one would be a lost round.
                socket.set_rx_buf_sz(32 << 20)?;
                Self::Nft(socket, Vec::with_capacity(1 << 20))
            }
            Backend::Legacy => {
                if !Path::new(LOCK).exists() {
                    std::fs::write(LOCK, "")?;
                }
                let watch = inotify::init(inotify::CreateFlags::CLOEXEC)?;
                inotify::add_watch(
                    &watch,
                    LOCK,
                    inotify::WatchFlags::CLOSE_WRITE | inotify::WatchFlags::CLOSE_NOWRITE,
                )?;
                Self::Legacy(watch)
            }
        })
    }

    /// When the next write ended; `None` when there is none for so long.
    ///
    /// *Errors*: notices were lost.
    pub fn next(&mut self, patience: Duration) -> Result<Option<Instant>> {
        let deadline = Instant::now() + patience;
        loop {
            if !self.readable(deadline)? {
                return Ok(None);
            }
            let when = Instant::now();
            match self {
                Self::Nft(socket, buffer) => {
                    buffer.clear();
                    socket.recv(buffer, 0).context("notices were lost")?;
                    if ends_a_transaction(buffer) {
                        return Ok(Some(when));
                    }
                }
                Self::Legacy(watch) => {
                    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
                    let mut reader = inotify::Reader::new(watch.as_fd(), &mut buffer);
                    reader.next()?;
                    return Ok(Some(when));
                }
            }
        }
    }

    fn readable(&self, deadline: Instant) -> Result<bool> {
        let raw;
        let fd = match self {
            Self::Nft(socket, _) => {
                raw = socket.as_raw_fd();
                borrowed(socket, raw)
            }
            Self::Legacy(watch) => watch.as_fd(),
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left)?;
        let mut wanted = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        Ok(poll(&mut wanted, Some(&left))? > 0)
    }

    /// The last write before a silence of `quiet`, if there was any.
    ///
    /// *Errors*: as [`Writes::next`].
    pub fn last(&mut self, quiet: Duration) -> Result<Option<Instant>> {
        let mut last = None;
        while let Some(when) = self.next(quiet)? {
            last = Some(when);
        }
        Ok(last)
    }
}

fn borrowed(socket: &Socket, _: i32) -> BorrowedFd<'_> {
    socket.as_fd()
}

fn ends_a_transaction(buffer: &[u8]) -> bool {
    let mut rest = buffer;
    let mut kind = 0;
    while let (Some(length), Some(word)) = (rest.get(..4), rest.get(4..6)) {
        kind = u16::from_ne_bytes([word[0], word[1]]);
        let length = u32::from_ne_bytes([length[0], length[1], length[2], length[3]]) as usize;
        rest = rest
            .get(length.next_multiple_of(4).max(16)..)
            .unwrap_or(&[]);
    }
    kind == NEW_GENERATION
}

/// The daemon's chains in table mangle of both families, each with its rules, as `iptables-save`
/// prints them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chains([Table; 2]);

/// The tools of a family, without the backend and what they do.
const TOOLS: [&str; 2] = ["iptables", "ip6tables"];

/// Restore input, by tool; only what has something to write.
pub type Texts = BTreeMap<&'static str, String>;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Table {
    chains: BTreeMap<String, Vec<String>>,
    hooks: Vec<String>,
}

impl Table {
    fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix(":selvage-") {
                let name = rest.split_whitespace().next().unwrap_or_default();
                found.chains.entry(format!("selvage-{name}")).or_default();
            } else if let Some(rest) = line.strip_prefix("-A selvage-") {
                let name = rest.split_whitespace().next().unwrap_or_default();
                let rules = found.chains.entry(format!("selvage-{name}")).or_default();
                rules.push(line.to_owned());
            } else if line.starts_with("-A ") && line.contains("selvage-") {
                found.hooks.push(line.to_owned());
            }
        }
        found
    }

    fn text(&self) -> Option<String> {
        let whole = || restore_text(self.chains.iter(), &self.hooks);
        (!self.chains.is_empty()).then(whole)
    }

    fn changed(&self, before: &Self) -> Option<String> {
        let changed: Vec<_> = self
            .chains
            .iter()
            .filter(|(name, rules)| before.chains.get(*name) != Some(*rules))
            .collect();
        (!changed.is_empty()).then(|| restore_text(changed.into_iter(), &[]))
    }
}

impl Chains {
    /// Reads them.
    ///
    /// *Errors*: the tool's.
    pub fn read(backend: Backend) -> Result<Self> {
        let [v4, v6] = TOOLS.map(|tool| {
            let words = format!("{tool}-{}-save -t mangle", backend.as_str());
            // The tool gives up when a set goes while it reads.
            wait_for(&words, PATIENCE, || Ok(run(&words).ok())).map(|text| Table::parse(&text))
        });
        Ok(Self([v4?, v6?]))
    }

    /// The chain that judges what may reach the pod behind an interface.
    #[must_use]
    pub fn profile_of(&self, interface: &str) -> Option<String> {
        let out = format!(" -o {interface} -g ");
        let [v4, _] = &self.0;
        let mut rules = v4.chains.values().flatten();
        let chain = rules.find_map(|rule| rule.split_once(&out))?.1;
        chain.split_whitespace().next().map(ToOwned::to_owned)
    }

    /// How many rules.
    #[must_use]
    pub fn rules(&self) -> usize {
        let rules = self.0.iter().flat_map(|table| table.chains.values());
        rules.map(Vec::len).sum()
    }

    /// Restore input that makes all of it.
    #[must_use]
    pub fn texts(&self) -> Texts {
        let texts = TOOLS.into_iter().zip(&self.0);
        texts
            .filter_map(|(tool, table)| Some((tool, table.text()?)))
            .collect()
    }

    /// Restore input for the chains that differ from `before`: the least that a change of policy
    /// has to write.
    ///
    /// *Errors*: nothing differs: that would be no floor.
    pub fn changed(&self, before: &Self) -> Result<Texts> {
        let both = TOOLS.into_iter().zip(self.0.iter().zip(&before.0));
        let texts: Texts = both
            .filter_map(|(tool, (after, before))| Some((tool, after.changed(before)?)))
            .collect();
        ensure!(!texts.is_empty(), "no chain differs: there is no floor");
        Ok(texts)
    }
}

fn restore_text<'a>(
    chains: impl Iterator<Item = (&'a String, &'a Vec<String>)> + Clone,
    hooks: &[String],
) -> String {
    let mut text = String::from("*mangle\n");
    for (name, _) in chains.clone() {
        let _ = writeln!(text, ":{name} - [0:0]");
    }
    for rule in chains.flat_map(|(_, rules)| rules).chain(hooks) {
        let _ = writeln!(text, "{rule}");
    }
    text.push_str("COMMIT\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = "*mangle\n:FORWARD ACCEPT [0:0]\n:KUBE-X - [0:0]\n:selvage-forward - [0:0]\n\
        :selvage-to - [0:0]\n-A FORWARD -j selvage-forward\n-A KUBE-X -j DROP\n-A selvage-forward -j selvage-to\nCOMMIT\n";

    #[test]
    fn only_chains_that_differ_are_written_again() {
        let before = Table::parse(SAVED);
        let after = Table::parse(&SAVED.replace("COMMIT", "-A selvage-to -j DROP\nCOMMIT"));
        let text = "*mangle\n:selvage-to - [0:0]\n-A selvage-to -j DROP\nCOMMIT\n";
        assert_eq!(after.changed(&before).as_deref(), Some(text));
        assert_eq!(before.changed(&before), None);
        let one = |table: &Table| Chains([table.clone(), Table::default()]);
        assert_eq!((one(&after).rules(), one(&before).rules()), (2, 1));
        assert_eq!(
            one(&after).changed(&one(&before)).unwrap()["iptables"],
            text
        );
        assert!(one(&before).changed(&one(&before)).is_err());
        let whole = &one(&after).texts()["iptables"];
        assert!(!whole.contains("KUBE-X"));
        assert!(whole.contains("-A FORWARD -j selvage-forward"));
    }
}
