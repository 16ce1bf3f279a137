//! What the process itself takes, under the names that every Prometheus client uses.

use std::fs;
use std::sync::atomic::AtomicU64;

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
        if let Some(ticks) = fs::read_to_string("/proc/self/stat")
            .ok()
            .and_then(|stat| cpu_ticks(&stat))
        {
            #[expect(clippy::cast_precision_loss, reason = "hundredths of seconds")]
            let seconds = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
            self.cpu.inc_by((seconds - self.cpu.get()).max(0.0));
        }
        if let Some(pages) = fs::read_to_string("/proc/self/statm")
            .ok()
            .and_then(|statm| resident_pages(&statm))
        {
            let bytes = pages.saturating_mul(rustix::param::page_size() as u64);
            self.resident.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            self.descriptors
                .set(i64::try_from(open.count()).unwrap_or(i64::MAX));
        }
    }
}

/// `utime` and `stime` of proc(5), fields 14 and 15; the name before them may hold anything.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

/// `resident` of proc(5), field 2.
fn resident_pages(statm: &str) -> Option<u64> {
    statm.split(' ').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_brackets_and_blanks_moves_no_field() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 25 17 0 0 20 0 4 0 99 1 2";
        assert_eq!(cpu_ticks(stat), Some(42));
        assert_eq!(resident_pages("3000 1200 800 1 0 400 0"), Some(1200));
    }

    #[test]
    fn a_look_sees_this_process() {
        let mut registry = Registry::default();
        let process = Process::new(&mut registry);
        process.look();
        assert!(process.resident.get() > 1 << 20);
        assert!(process.descriptors.get() > 2);
    }
}
