//! Numbers for Prometheus: counters kept here, gauges read from the pool when somebody asks.
//!
//! The text is made by hand: the names are AWS's, whose counters do not end in `_total`, and a client library that
//! follows OpenMetrics cannot write such a counter.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use selvage_ipamd_core::cloud::{CloudError, Operation};
use selvage_ipamd_core::pool::Stats;

use crate::hostnet::Part;

mod serve;

pub use serve::{MetricsError, serve};

/// What the pool holds, at the moment of a scrape.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// Whether the pool is there yet.
    pub stats: Option<Stats>,
    /// Interfaces at most.
    pub eni_max: u32,
    /// Pod addresses at most.
    pub ip_max: u32,
    /// Addresses that pods have, by interface.
    pub assigned_per_eni: BTreeMap<String, u32>,
}

#[derive(Default)]
struct Counters {
    add_requests: u64,
    del_requests: BTreeMap<String, u64>,
    no_address: u64,
    reconciles: BTreeMap<&'static str, u64>,
    api_calls: BTreeMap<(Operation, String), (u64, Duration)>,
    api_errors: BTreeMap<(Operation, String), u64>,
    ipamd_errors: BTreeMap<&'static str, u64>,
    repairs: BTreeMap<Part, u64>,
    checkpoint_writes: u64,
    checkpoint_write_time: Duration,
}

/// The counters. Shared by whoever counts; never held over an `.await`.
#[derive(Default)]
pub struct Metrics {
    counters: Mutex<Counters>,
}

impl Metrics {
    fn lock(&self) -> MutexGuard<'_, Counters> {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An ADD came in.
    pub fn count_add(&self) {
        self.lock().add_requests += 1;
    }

    /// A DEL came in. Only known reasons become labels: the caller chooses the text.
    pub fn count_del(&self, reason: &str) {
        let known = [
            selvage_ipamd_rpc::REASON_POD_DELETED,
            selvage_ipamd_rpc::REASON_SETUP_FAILED,
        ];
        let reason = if known.contains(&reason) {
            reason
        } else {
            "other"
        };
        *self
            .lock()
            .del_requests
            .entry(reason.to_owned())
            .or_default() += 1;
    }

    /// An ADD got no address.
    pub fn count_no_address(&self) {
        self.lock().no_address += 1;
    }

    /// The pool was compared with the cloud.
    pub fn count_reconcile(&self, what: &'static str) {
        *self.lock().reconciles.entry(what).or_default() += 1;
    }

    /// The daemon failed at something of its own.
    pub fn count_error(&self, what: &'static str) {
        *self.lock().ipamd_errors.entry(what).or_default() += 1;
    }

    /// Something of the host had to be made again.
    pub fn count_repair(&self, part: Part) {
        *self.lock().repairs.entry(part).or_default() += 1;
    }

    /// The checkpoint was written: what an ADD waited for, serialising included.
    pub fn count_checkpoint(&self, took: Duration) {
        let mut counters = self.lock();
        counters.checkpoint_writes += 1;
        counters.checkpoint_write_time += took;
    }

    /// A call to the cloud has ended.
    pub fn count_call(&self, operation: Operation, took: Duration, error: Option<&CloudError>) {
        let mut counters = self.lock();
        let code = error.map(|e| e.code.clone().unwrap_or_else(|| format!("{:?}", e.kind)));
        let key = (operation, code.clone().unwrap_or_default());
        let call = counters.api_calls.entry(key).or_default();
        call.0 += 1;
        call.1 += took;
        if let Some(code) = code {
            *counters.api_errors.entry((operation, code)).or_default() += 1;
        }
    }

    /// Everything as text, in Prometheus's format 0.0.4.
    pub fn render(&self, snapshot: &Snapshot) -> String {
        let mut text = Text::default();
        let stats = snapshot.stats.unwrap_or_default();
        text.gauge(
            "awscni_eni_max",
            "Interfaces the instance can have",
            snapshot.eni_max,
        );
        text.gauge(
            "awscni_ip_max",
            "Pod addresses the instance can have",
            snapshot.ip_max,
        );
        text.gauge(
            "awscni_eni_allocated",
            "Interfaces attached and managed",
            stats.enis,
        );
        text.gauge(
            "awscni_total_ip_addresses",
            "Addresses held for pods",
            stats.total,
        );
        text.gauge(
            "awscni_assigned_ip_addresses",
            "Addresses that pods have",
            stats.assigned,
        );
        text.gauge(
            "selvage_ipamd_available_ip_addresses",
            "Addresses a pod can have now",
            stats.available,
        );
        text.gauge(
            "selvage_ipamd_cooling_ip_addresses",
            "Addresses that rest after a pod",
            stats.cooling,
        );
        text.head(
            "awscni_assigned_ip_per_eni",
            "Addresses that pods have, by interface",
            "gauge",
        );
        for (eni, count) in &snapshot.assigned_per_eni {
            text.sample("awscni_assigned_ip_per_eni", &[("eni", eni)], *count);
        }
        text.counter(
            "awscni_force_removed_enis",
            "Interfaces that vanished under us",
            stats.lost_enis,
        );
        text.counter(
            "awscni_force_removed_ips",
            "Addresses that vanished under us",
            stats.lost_addresses,
        );
        self.render_counters(&mut text);
        text.0
    }

    fn render_counters(&self, text: &mut Text) {
        let counters = self.lock();
        text.counter(
            "awscni_add_ip_req_count",
            "ADD requests",
            counters.add_requests,
        );
        text.head(
            "awscni_del_ip_req_count",
            "DEL requests, by reason",
            "counter",
        );
        for (reason, count) in &counters.del_requests {
            text.sample("awscni_del_ip_req_count", &[("reason", reason)], *count);
        }
        text.counter(
            "awscni_no_available_ip_addresses",
            "ADD requests that got no address",
            counters.no_address,
        );
        text.head(
            "awscni_reconcile_count",
            "Comparisons with the cloud",
            "counter",
        );
        for (what, count) in &counters.reconciles {
            text.sample("awscni_reconcile_count", &[("fn", what)], *count);
        }
        text.head(
            "awscni_ipamd_error_count",
            "Failures of the daemon's own",
            "counter",
        );
        for (what, count) in &counters.ipamd_errors {
            text.sample("awscni_ipamd_error_count", &[("fn", what)], *count);
        }
        let name = "selvage_ipamd_host_repairs";
        text.head(
            name,
            "Times something of the host was made again, by kind",
            "counter",
        );
        for part in Part::ALL {
            let count = counters.repairs.get(&part).copied().unwrap_or(0);
            text.sample(name, &[("kind", part.name())], count);
        }
        let name = "selvage_ipamd_checkpoint_write_ms";
        text.head(name, "Writes of the checkpoint", "summary");
        text.sample(
            &format!("{name}_sum"),
            &[],
            format_args!(
                "{:.3}",
                counters.checkpoint_write_time.as_secs_f64() * 1000.0
            ),
        );
        text.sample(&format!("{name}_count"), &[], counters.checkpoint_writes);
        render_calls(&counters, text);
    }
}

fn render_calls(counters: &Counters, text: &mut Text) {
    let name = "awscni_aws_api_latency_ms";
    text.head(
        name,
        "Duration of calls to EC2 and instance metadata",
        "summary",
    );
    for ((operation, code), (count, took)) in &counters.api_calls {
        let failed = if code.is_empty() { "false" } else { "true" };
        let labels = [
            ("api", operation.api()),
            ("error", failed),
            ("status", code),
        ];
        text.sample(
            &format!("{name}_sum"),
            &labels,
            format_args!("{:.3}", took.as_secs_f64() * 1000.0),
        );
        text.sample(&format!("{name}_count"), &labels, *count);
    }
    let mut ec2_calls: BTreeMap<Operation, u64> = BTreeMap::new();
    for ((operation, _), (count, _)) in &counters.api_calls {
        if operation.is_ec2() {
            *ec2_calls.entry(*operation).or_default() += count;
        }
    }
    text.head("awscni_ec2api_req_count", "Calls to EC2", "counter");
    for (operation, count) in &ec2_calls {
        text.sample(
            "awscni_ec2api_req_count",
            &[("fn", operation.api())],
            *count,
        );
    }
    let name = "awscni_aws_api_error_count";
    text.head(name, "Calls that failed, by code", "counter");
    for ((operation, code), count) in &counters.api_errors {
        text.sample(name, &[("api", operation.api()), ("error", code)], *count);
    }
    let mut ec2_errors: BTreeMap<Operation, u64> = BTreeMap::new();
    for ((operation, _), count) in &counters.api_errors {
        if operation.is_ec2() {
            *ec2_errors.entry(*operation).or_default() += count;
        }
    }
    text.head(
        "awscni_ec2api_error_count",
        "Calls to EC2 that failed",
        "counter",
    );
    for (operation, count) in &ec2_errors {
        text.sample(
            "awscni_ec2api_error_count",
            &[("fn", operation.api())],
            *count,
        );
    }
}

/// Lines of the text format.
#[derive(Default)]
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, help: &str, kind: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let open = if index == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{open}{label}=\"{}\"", escape(text));
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: u32) {
        self.head(name, help, "gauge");
        self.sample(name, &[], value);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, help, "counter");
        self.sample(name, &[], value);
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_and_types_are_those_that_awss_dashboards_ask_for() {
        let metrics = Metrics::default();
        metrics.count_add();
        metrics.count_del("PodDeleted");
        metrics.count_repair(Part::PodRule);
        metrics.count_del("whatever a caller says");
        let error = CloudError::from_code(Operation::CreateEni, "Odd\"Code", "words", None);
        metrics.count_call(
            Operation::CreateEni,
            Duration::from_millis(12),
            Some(&error),
        );
        metrics.count_call(Operation::Facts, Duration::from_millis(3), None);
        let text = metrics.render(&Snapshot {
            stats: Some(Stats {
                total: 9,
                assigned: 2,
                ..Stats::default()
            }),
            eni_max: 3,
            ip_max: 27,
            assigned_per_eni: BTreeMap::from([("eni-1".into(), 2)]),
        });
        for line in [
            "# TYPE awscni_add_ip_req_count counter",
            "awscni_add_ip_req_count 1",
            "awscni_del_ip_req_count{reason=\"PodDeleted\"} 1",
            "awscni_del_ip_req_count{reason=\"other\"} 1",
            "awscni_total_ip_addresses 9",
            "awscni_assigned_ip_addresses 2",
            "awscni_assigned_ip_per_eni{eni=\"eni-1\"} 2",
            "awscni_eni_max 3",
            "selvage_ipamd_host_repairs{kind=\"pod_rule\"} 1",
            "selvage_ipamd_host_repairs{kind=\"nat\"} 0",
            "awscni_ip_max 27",
            "awscni_aws_api_error_count{api=\"CreateNetworkInterface\",error=\"Odd\\\"Code\"} 1",
            "awscni_ec2api_req_count{fn=\"CreateNetworkInterface\"} 1",
            "awscni_ec2api_error_count{fn=\"CreateNetworkInterface\"} 1",
            "awscni_aws_api_latency_ms_count{api=\"InstanceMetadata\",error=\"false\",status=\"\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("awscni_ec2api_req_count{fn=\"InstanceMetadata"));
    }
}
