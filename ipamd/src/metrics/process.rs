//! What the process itself takes, under the names that every Prometheus client uses, AWS's daemon's too.

use procfs::{ProcResult, WithCurrentSystemInfo};

/// CPU, memory and descriptors of this process.
pub(super) struct Process {
    /// In user and system mode, in seconds.
    pub(super) cpu: f64,
    /// Bytes.
    pub(super) resident: u64,
    pub(super) descriptors: usize,
    /// Seconds since 1970.
    pub(super) started: f64,
}

impl Process {
    /// Looks: three small files of /proc and a folder with an entry for each descriptor.
    pub(super) fn look() -> ProcResult<Self> {
        let myself = procfs::process::Process::myself()?;
        let stat = myself.stat()?;
        let seconds = |ticks: u64| ticks as f64 / procfs::ticks_per_second() as f64;
        Ok(Self {
            cpu: seconds(stat.utime + stat.stime),
            resident: stat.rss_bytes().get(),
            descriptors: myself.fd_count()?,
            started: procfs::boot_time_secs()? as f64 + seconds(stat.starttime),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn a_look_sees_this_process() {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
        let before = Process::look().unwrap();
        let file = std::fs::File::open("/proc/self/stat").unwrap();
        let start = std::time::Instant::now();
        while start.elapsed() < Duration::from_millis(60) {}
        let after = Process::look().unwrap();
        assert!(after.cpu > before.cpu);
        assert!(before.resident > 1 << 20);
        assert!(
            before.descriptors > 2,
            "{file:?} and the three of each process"
        );
        // A test's process has just begun; the clock of starts is one of hundredths, and of the boot.
        let age = now.as_secs_f64() - before.started;
        assert!((-2.0..600.0).contains(&age), "{age}");
    }
}
