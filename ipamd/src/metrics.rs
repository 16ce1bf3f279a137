//! Numbers for Prometheus: counters kept here, gauges read from the pool when somebody asks.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use selvage_ipamd_core::cloud::{CloudError, Operation};

use crate::hostnet::Part;
use crate::view::View;

mod definitions;
mod process;
mod render;

pub use definitions::{DEFINITIONS, Definition, Kind, document};

/// Calls of one name and one outcome.
#[derive(Default)]
struct Calls {
    ec2: bool,
    count: u64,
    took: Duration,
}

#[derive(Default)]
struct Counters {
    add_requests: u64,
    del_requests: BTreeMap<String, u64>,
    no_address: u64,
    reconciles: BTreeMap<&'static str, u64>,
    /// By name and by code, which is empty if it went well. Two operations may be one call of EC2.
    api_calls: BTreeMap<(&'static str, String), Calls>,
    adds: BTreeMap<&'static str, (u64, Duration)>,
    ipamd_errors: BTreeMap<&'static str, u64>,
    repairs: BTreeMap<Part, u64>,
    checkpoint_writes: u64,
    checkpoint_write_time: Duration,
    leaked: u64,
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
        let code = error.map(|e| e.code.clone().unwrap_or_else(|| format!("{:?}", e.kind)));
        let key = (operation.api(), code.unwrap_or_default());
        let mut counters = self.lock();
        let calls = counters.api_calls.entry(key).or_default();
        calls.ec2 = operation.is_ec2();
        calls.count += 1;
        calls.took += took;
    }

    /// An interface that a dead node left behind was deleted.
    pub fn count_leaked(&self) {
        self.lock().leaked += 1;
    }

    /// An ADD was answered.
    pub fn count_add_answer(&self, leased: bool, took: Duration) {
        let outcome = if leased { "leased" } else { "refused" };
        let mut counters = self.lock();
        let spent = counters.adds.entry(outcome).or_default();
        spent.0 += 1;
        spent.1 += took;
    }

    /// Everything as text, in Prometheus's format 0.0.4. What cannot be read of the process itself is left out.
    pub fn render(&self, view: &View) -> String {
        let process = process::Process::look();
        render::render(view, &self.lock(), process.ok().as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::example;

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
        metrics.count_add_answer(true, Duration::from_micros(1500));
        let text = metrics.render(&example());
        for line in [
            "# TYPE awscni_add_ip_req_count counter",
            "awscni_add_ip_req_count 1",
            "awscni_del_ip_req_count{reason=\"PodDeleted\"} 1",
            "awscni_del_ip_req_count{reason=\"other\"} 1",
            "awscni_total_ip_addresses 20",
            "awscni_assigned_ip_addresses 1",
            "awscni_assigned_ip_per_eni{eni=\"eni-0\"} 1",
            "awscni_assigned_ip_per_cidr{cidr=\"10.0.1.16/28\"} 0",
            "selvage_ipamd_ec2_calls_at_once{budget=\"change\"} 9",
            "selvage_ipamd_ec2_throttled{budget=\"change\"} 1",
            "awscni_eni_max 3",
            "selvage_ipamd_host_repairs{kind=\"pod_rule\"} 1",
            "selvage_ipamd_host_repairs{kind=\"nat\"} 0",
            "awscni_ip_max 27",
            "awscni_aws_api_error_count{api=\"CreateNetworkInterface\",error=\"Odd\\\"Code\"} 1",
            "awscni_ec2api_req_count{fn=\"CreateNetworkInterface\"} 1",
            "awscni_ec2api_error_count{fn=\"CreateNetworkInterface\"} 1",
            "# TYPE process_cpu_seconds_total counter",
            "selvage_ipamd_ready 1",
            "selvage_ipamd_add_duration_ms_sum{outcome=\"leased\"} 1.500",
            "awscni_aws_api_latency_ms_count{api=\"InstanceMetadata\",error=\"false\",status=\"\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("awscni_ec2api_req_count{fn=\"InstanceMetadata"));
    }

    #[test]
    fn every_number_has_a_sample_with_its_labels_once_there_is_something_to_count() {
        let metrics = Metrics::default();
        metrics.count_del("PodDeleted");
        metrics.count_reconcile("ec2");
        metrics.count_error("CloudThrottled");
        metrics.count_add_answer(false, Duration::ZERO);
        let error = CloudError::from_code(Operation::CreateEni, "Code", "words", None);
        metrics.count_call(Operation::CreateEni, Duration::ZERO, Some(&error));
        let text = metrics.render(&example());
        for definition in DEFINITIONS {
            let name = match definition.kind {
                Kind::Summary => format!("{}_sum", definition.name),
                Kind::Gauge | Kind::Counter => definition.name.to_owned(),
            };
            let start = match definition.labels.first() {
                Some(label) => format!("{name}{{{label}=\""),
                None => format!("{name} "),
            };
            let line = text.lines().find(|line| line.starts_with(&start));
            let line = line.unwrap_or_else(|| panic!("{start} is not in\n{text}"));
            for label in definition.labels {
                assert!(line.contains(&format!("{label}=\"")), "{line}");
            }
        }
    }

    #[test]
    fn definitions_are_in_order_and_each_name_is_there_once() {
        assert!(DEFINITIONS.is_sorted_by(|a, b| a.name < b.name));
    }

    #[test]
    fn the_page_about_metrics_is_what_the_code_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics-ipamd.md");
        if std::env::var_os("SELVAGE_BLESS").is_some() {
            std::fs::write(path, document()).unwrap();
        }
        let there = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            there == document(),
            "docs/metrics-ipamd.md: run this test with SELVAGE_BLESS=1"
        );
    }
}
