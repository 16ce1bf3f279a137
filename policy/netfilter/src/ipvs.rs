//! Is kube-proxy in IPVS mode? Then Services bypass FORWARD, and with it our rules.

use std::fs;

use crate::error::Error;

/// The dummy interface that kube-proxy keeps Service addresses on in IPVS mode, and only then.
const INTERFACE: &str = "kube-ipvs0";

/// The interfaces of the calling thread's network namespace. `/sys/class/net` would show those of
/// whoever mounted it.
const INTERFACES: &str = "/proc/thread-self/net/dev";

/// Whether the node has kube-proxy's interface for IPVS Services.
///
/// *Errors*: [`Error::File`].
pub fn ipvs_in_use() -> Result<bool, Error> {
    let interfaces = fs::read_to_string(INTERFACES).map_err(|source| Error::File {
        path: INTERFACES.to_owned(),
        source,
    })?;
    Ok(lists(&interfaces, INTERFACE))
}

pub(crate) fn lists(interfaces: &str, name: &str) -> bool {
    interfaces
        .lines()
        .filter_map(|line| line.split_once(':'))
        .any(|(found, _)| found.trim_start() == name)
}

#[cfg(test)]
mod tests {
    use super::lists;

    const DEV: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs
    lo:       0       0    0    0    0     0          0         0        0       0    0
kube-ipvs0:       0       0    0    0    0     0          0         0        0       0    0
";

    #[test]
    fn an_interface_is_found_by_its_whole_name() {
        assert!(lists(DEV, "kube-ipvs0"));
        assert!(lists(DEV, "lo"));
        assert!(!lists(DEV, "kube-ipvs"));
        assert!(!lists(DEV, "ipvs0"));
    }
}
