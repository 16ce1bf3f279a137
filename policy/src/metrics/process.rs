//! What the process itself takes, under the names that every Prometheus client uses.

use std::sync::atomic::AtomicU64;

use procfs::{ProcResult, WithCurrentSystemInfo};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// CPU, memory and descriptors, as of the last look.
#[derive(Debug)]
pub(super) struct Process {
    cpu: Counter<f64, AtomicU64>,
    resident: Gauge,
    descriptors: Gauge,
}

impl Process {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let process = Self {
            cpu: Counter::default(),
            resident: Gauge::default(),
            descriptors: Gauge::default(),
        };
        registry.register_with_unit(
            "process_cpu",
            "CPU time used, in user and system mode",
            Unit::Seconds,
            process.cpu.clone(),
        );
        registry.register_with_unit(
            "process_resident_memory",
            "Memory in use",
            Unit::Bytes,
            process.resident.clone(),
        );
        registry.register(
            "process_open_fds",
            "Open file descriptors",
            process.descriptors.clone(),
        );
        process
    }

    /// Looks. What cannot be read stays what it was.
    pub(super) fn look(&self) {
        if let Err(error) = self.read() {
            tracing::debug!("the process's own numbers are not known: {error}");
        }
    }

    fn read(&self) -> ProcResult<()> {
        let myself = procfs::process::Process::myself()?;
        let stat = myself.stat()?;
        #[expect(clippy::cast_precision_loss, reason = "hundredths of seconds")]
        let seconds = (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64;
        self.cpu.inc_by((seconds - self.cpu.get()).max(0.0));
        let bytes = stat.rss_bytes().get();
        self.resident.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        let open = myself.fd_count()?;
        self.descriptors
            .set(i64::try_from(open).unwrap_or(i64::MAX));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_sees_this_process() {
        let mut registry = Registry::default();
        let process = Process::new(&mut registry);
        process.look();
        assert!(process.resident.get() > 1 << 20);
        assert!(process.descriptors.get() > 2);
    }
}
