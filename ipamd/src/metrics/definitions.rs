//! Every number, by name: what it is, and the page that says so.

use std::fmt::Write as _;

/// How a number behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Goes up and down.
    Gauge,
    /// Only grows, from 0 at the start.
    Counter,
    /// A sum and a count.
    Summary,
}

impl Kind {
    /// As Prometheus writes it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
            Kind::Summary => "summary",
        }
    }
}

/// A number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Definition {
    /// Its name.
    pub name: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it counts.
    pub help: &'static str,
}

const fn define(
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
) -> Definition {
    Definition {
        name,
        kind,
        labels,
        help,
    }
}

/// All, in order of name.
pub const DEFINITIONS: &[Definition] = &[
    define(
        "awscni_add_ip_req_count",
        Kind::Counter,
        &[],
        "ADD requests",
    ),
    define(
        "awscni_assigned_ip_addresses",
        Kind::Gauge,
        &[],
        "Addresses that pods have",
    ),
    define(
        "awscni_assigned_ip_per_cidr",
        Kind::Gauge,
        &["cidr"],
        "Addresses that pods have, by prefix",
    ),
    define(
        "awscni_assigned_ip_per_eni",
        Kind::Gauge,
        &["eni"],
        "Addresses that pods have, by interface",
    ),
    define(
        "awscni_aws_api_error_count",
        Kind::Counter,
        &["api", "error"],
        "Calls that failed, by code",
    ),
    define(
        "awscni_aws_api_latency_ms",
        Kind::Summary,
        &["api", "error", "status"],
        "Duration of calls to EC2 and instance metadata",
    ),
    define(
        "awscni_del_ip_req_count",
        Kind::Counter,
        &["reason"],
        "DEL requests, by reason: PodDeleted, SetupNSFailed, other",
    ),
    define(
        "awscni_ec2api_error_count",
        Kind::Counter,
        &["fn"],
        "Calls to EC2 that failed",
    ),
    define(
        "awscni_ec2api_req_count",
        Kind::Counter,
        &["fn"],
        "Calls to EC2",
    ),
    define(
        "awscni_eni_allocated",
        Kind::Gauge,
        &[],
        "Interfaces attached and managed",
    ),
    define(
        "awscni_eni_max",
        Kind::Gauge,
        &[],
        "Interfaces the instance can have, or MAX_ENI",
    ),
    define(
        "awscni_force_removed_enis",
        Kind::Counter,
        &[],
        "Interfaces that vanished under us",
    ),
    define(
        "awscni_force_removed_ips",
        Kind::Counter,
        &[],
        "Addresses that vanished under us",
    ),
    define(
        "awscni_ip_max",
        Kind::Gauge,
        &[],
        "Pod addresses on all interfaces the instance can have",
    ),
    define(
        "awscni_ipamd_error_count",
        Kind::Counter,
        &["fn"],
        "Troubles, by the reason of their Event",
    ),
    define(
        "awscni_no_available_ip_addresses",
        Kind::Counter,
        &[],
        "ADD requests that got no address",
    ),
    define(
        "awscni_reconcile_count",
        Kind::Counter,
        &["fn"],
        "Comparisons with metadata and with ec2",
    ),
    define(
        "awscni_total_ip_addresses",
        Kind::Gauge,
        &[],
        "Addresses held for pods",
    ),
    define(
        "awscni_total_ipv4_prefixes",
        Kind::Gauge,
        &[],
        "Prefixes held for pods",
    ),
    define(
        "process_cpu_seconds_total",
        Kind::Counter,
        &[],
        "CPU time used, in user and system mode",
    ),
    define(
        "process_open_fds",
        Kind::Gauge,
        &[],
        "Open file descriptors",
    ),
    define(
        "process_resident_memory_bytes",
        Kind::Gauge,
        &[],
        "Memory in use",
    ),
    define(
        "process_start_time_seconds",
        Kind::Gauge,
        &[],
        "When the process began, in seconds since 1970",
    ),
    define(
        "selvage_ipamd_add_duration_ms",
        Kind::Summary,
        &["outcome"],
        "Duration of ADD requests, by outcome: leased, refused",
    ),
    define(
        "selvage_ipamd_available_ip_addresses",
        Kind::Gauge,
        &[],
        "Addresses a pod can have now",
    ),
    define(
        "selvage_ipamd_build_info",
        Kind::Gauge,
        &["version"],
        "What is running",
    ),
    define(
        "selvage_ipamd_checkpoint_write_ms",
        Kind::Summary,
        &[],
        "Writes of the checkpoint; an ADD waits for one",
    ),
    define(
        "selvage_ipamd_cooling_ip_addresses",
        Kind::Gauge,
        &[],
        "Addresses that rest after a pod",
    ),
    define(
        "selvage_ipamd_deleted_leaked_enis",
        Kind::Counter,
        &[],
        "Interfaces of dead nodes that this node, as the cluster's sweeper, has deleted",
    ),
    define(
        "selvage_ipamd_ec2_calls_at_once",
        Kind::Gauge,
        &["budget"],
        "Calls to EC2 that could be made at once, by budget: read, change",
    ),
    define(
        "selvage_ipamd_ec2_calls_per_second",
        Kind::Gauge,
        &["budget"],
        "Calls to EC2 in a second that may follow; halved when EC2 throttles",
    ),
    define(
        "selvage_ipamd_ec2_throttled",
        Kind::Counter,
        &["budget"],
        "Times EC2 said that there were too many calls",
    ),
    define(
        "selvage_ipamd_host_repairs",
        Kind::Counter,
        &["kind"],
        "Times something of the host was made again, by kind",
    ),
    define(
        "selvage_ipamd_ready",
        Kind::Gauge,
        &[],
        "1 while addresses can be given",
    ),
];

/// The page about them, docs/metrics-ipamd.md.
pub fn document() -> String {
    let mut page = String::from(HEAD);
    for Definition {
        name,
        kind,
        labels,
        help,
    } in DEFINITIONS
    {
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(
            page,
            "| `{name}` | {} | {} | {help} |",
            kind.as_str(),
            labels.join(", ")
        );
    }
    page
}

const HEAD: &str = "\
# Metrics of selvage-ipamd

Made from the code; `make unit` fails when it is not what the code says (`SELVAGE_BLESS=1` with that test writes it).

`GET /metrics` on `METRICS_ADDR` (port 61678 of each node), in Prometheus's text format 0.0.4. Names that begin with
`awscni_` mean what they mean in AWS's daemon, so that its dashboards and its cni-metrics-helper work; its counters do
not end in `_total`. All counters begin at 0 with the process.

What to watch:

| question | expression |
|---|---|
| Can every node give addresses? | `selvage_ipamd_ready == 0`, and nodes without the series |
| Do pods fail for want of an address? | `increase(awscni_no_available_ip_addresses[5m]) > 0`, then the pod's Events |
| How full is a node? | `awscni_assigned_ip_addresses / awscni_ip_max` |
| Does EC2 throttle us? | `rate(awscni_aws_api_error_count{error=\"RequestLimitExceeded\"}[5m]) > 0` |
| Does somebody else change the host? | `increase(selvage_ipamd_host_repairs[1h]) > 0` |
| Do addresses vanish under pods? | `increase(awscni_force_removed_ips[1h]) > 0` |

| metric | type | labels | what |
|---|---|---|---|
";
