//! Whoever does the loop's work, one job after the other: rules and sets, then the files that tell of them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use selvage_netfilter::Suspect;
use selvage_policy_core::index::MemberChanges;
use selvage_policy_core::ruleset::Ruleset;
use tracing::{debug, warn};

use super::{Dataplane, Done, Look};
use crate::endpoint_status::{Endpoint, EndpointStatus};
use crate::failpoint::{self, Failpoint};
use crate::metrics::Work;
use crate::thread::thread_cpu;

/// A piece of work.
#[derive(Debug)]
pub(crate) enum Job {
    /// See [`Dataplane::converge`]; then the files of these pods.
    Rules(Vec<Ruleset>, Look, Vec<Endpoint>),
    /// See [`Dataplane::change_members`].
    Members(MemberChanges),
    /// The files of these pods, whose rules are in the kernel.
    Tell(Vec<Endpoint>),
    /// See [`Dataplane::is_changed`].
    Inspect(BTreeSet<Suspect>),
}

/// How it went.
#[derive(Debug)]
pub(crate) enum Finished {
    /// Something may have been written.
    Work {
        /// What it was.
        work: Work,
        /// What came of it, or why not.
        result: Result<Done, String>,
        /// How long it took.
        took: Duration,
        /// How much of that on a processor; tools' time is their own.
        used: Duration,
    },
    /// Files are as they should be, or it was said why not.
    Told,
    /// Whether somebody else changed what we hold, and what made us look.
    Inspected(Result<Option<Suspect>, String>),
}

/// Whoever does the work: the kernel's rules, then the files that tell of them.
pub(crate) struct Hand<D> {
    dataplane: D,
    files: Option<EndpointStatus>,
}

impl<D: Dataplane> Hand<D> {
    pub(crate) fn new(dataplane: D, files: Option<EndpointStatus>) -> Self {
        Self { dataplane, files }
    }

    /// Does a job and says how it went. Blocks.
    pub(crate) fn work(&mut self, job: Job) -> Finished {
        let (started, before) = (Instant::now(), thread_cpu());
        let (work, result) = match job {
            Job::Rules(want, look, endpoints) => {
                let result = self.dataplane.converge(want, look);
                if result.is_ok() {
                    self.tell(look, &endpoints);
                }
                (Work::Rules, result)
            }
            Job::Members(changes) => (Work::Members, self.dataplane.change_members(&changes)),
            Job::Tell(endpoints) => {
                self.tell(Look::Remembered, &endpoints);
                return Finished::Told;
            }
            Job::Inspect(suspects) => return Finished::Inspected(self.inspect(suspects)),
        };
        Finished::Work {
            work,
            result: result.map_err(|error| crate::error_chain(&error)),
            took: started.elapsed(),
            used: thread_cpu().saturating_sub(before),
        }
    }

    fn inspect(&mut self, suspects: BTreeSet<Suspect>) -> Result<Option<Suspect>, String> {
        // What is found first decides what is looked at, so the most comes first.
        for suspect in suspects.into_iter().rev() {
            match self.dataplane.is_changed(suspect) {
                Ok(false) => {}
                Ok(true) => return Ok(Some(suspect)),
                Err(error) => return Err(crate::error_chain(&error)),
            }
        }
        Ok(None)
    }

    /// A file that is missing delays a pod and opens nothing, so the rules' work succeeds without.
    fn tell(&mut self, look: Look, endpoints: &[Endpoint]) {
        let Some(files) = &mut self.files else { return };
        if look == Look::Afresh {
            files.look_afresh();
        }
        match files.converge(endpoints) {
            Ok(changes) => {
                debug!(
                    written = changes.written,
                    removed = changes.removed,
                    "endpoint status"
                );
            }
            Err(error) => {
                let error = crate::error_chain(&error);
                warn!(error, "pods wait for a file that says they are enforced");
            }
        }
        failpoint::hit(Failpoint::EndpointStatus);
    }
}
