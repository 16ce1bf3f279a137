//! A second network namespace that holds the same sets and rules, for floors: what is done there
//! disturbs nobody's watch.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use selvage_tests::{Netns, run};

use crate::ipset::{Batch, Ipset, Set};
use crate::process;
use crate::rules::{Backend, Texts};

/// The tools' lock there is a file of its own.
const LOCK: &str = "/run/twin-xtables.lock";

/// A namespace without processes; gone when dropped.
pub struct Twin {
    name: String,
    netns: Netns,
    backend: Backend,
}

impl Twin {
    /// Makes an empty one.
    ///
    /// *Errors*: `ip`'s own.
    pub fn new(name: &str, backend: Backend) -> Result<Self> {
        run(&format!("ip netns add {name}"))?;
        let netns = Netns::open(Path::new("/run/netns").join(name))?;
        Ok(Self {
            name: name.to_owned(),
            netns,
            backend,
        })
    }

    /// Makes sets, with or without members, and says how long that took: one acknowledged message
    /// after the other, all of them ready before the clock starts. The few of other types than the
    /// policies' own are made before it.
    ///
    /// *Errors*: the kernel's.
    pub fn fill(&self, sets: &BTreeMap<String, Set>) -> Result<Duration> {
        let (usual, others): (BTreeMap<_, _>, BTreeMap<_, _>) = sets
            .iter()
            .map(|(name, set)| (name.clone(), set.clone()))
            .partition(|(_, set)| set.kind.starts_with("hash:net"));
        let batch = Batch::of(&usual);
        self.netns.run(|| {
            for (name, Set { kind, options, .. }) in &others {
                run(&format!("ipset create {name} {kind} {options}"))?;
            }
            let mut ipset = Ipset::open()?;
            let began = std::time::Instant::now();
            ipset.send(&batch)?;
            Ok(began.elapsed())
        })?
    }

    /// Runs one restore, with `--noflush`, of each text and says how long they took, the tools'
    /// starts included.
    ///
    /// *Errors*: the tool's.
    pub fn restore(&self, texts: &Texts) -> Result<Duration> {
        self.netns.run(|| {
            let mut took = Duration::ZERO;
            for (tool, text) in texts {
                let mut command = process::command(self.backend.restore(tool));
                command.arg("--noflush").env("XTABLES_LOCKFILE", LOCK);
                took += process::timed(&mut command, text)?;
            }
            Ok(took)
        })?
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        let _ = run(&format!("ip netns del {}", self.name));
    }
}
