//! Numbers as text, in Prometheus's format 0.0.4. By hand: the names are AWS's, whose counters do not end in `_total`,
//! and a client library that follows OpenMetrics cannot write such a counter.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::time::Duration;

use super::Counters;
use super::definitions::DEFINITIONS;
use super::process::Process;
use crate::hostnet::Part;
use crate::view::View;

/// The whole page; without the numbers of a process that could not be looked at.
pub(super) fn render(view: &View, counters: &Counters, process: Option<&Process>) -> String {
    let mut text = Text::default();
    for definition in DEFINITIONS {
        let name = definition.name;
        let own = name.starts_with("process_");
        if own && process.is_none() {
            continue;
        }
        // Writing to a String cannot fail.
        let _ = writeln!(
            text.0,
            "# HELP {name} {}\n# TYPE {name} {}",
            definition.help,
            definition.kind.as_str()
        );
        match process {
            Some(process) if own => text.process(name, process),
            _ => samples(&mut text, name, view, counters),
        }
    }
    text.0
}

/// The samples of one number.
fn samples(text: &mut Text, name: &'static str, view: &View, counters: &Counters) {
    let numbers = &view.numbers;
    let mut one = |value: &dyn Display| text.sample(name, &[], value);
    match name {
        "awscni_add_ip_req_count" => one(&counters.add_requests),
        "awscni_assigned_ip_addresses" => one(&numbers.assigned),
        "awscni_eni_allocated" => one(&numbers.enis),
        "awscni_eni_max" => one(&numbers.eni_max),
        "awscni_force_removed_enis" => one(&numbers.lost_enis),
        "awscni_force_removed_ips" => one(&numbers.lost_addresses),
        "awscni_ip_max" => one(&numbers.ip_max),
        "awscni_no_available_ip_addresses" => one(&counters.no_address),
        "awscni_total_ip_addresses" => one(&numbers.total),
        "awscni_total_ipv4_prefixes" => one(&numbers.prefixes),
        "selvage_ipamd_available_ip_addresses" => one(&numbers.available),
        "selvage_ipamd_cooling_ip_addresses" => one(&numbers.cooling),
        "selvage_ipamd_deleted_leaked_enis" => one(&counters.leaked),
        "selvage_ipamd_ready" => one(&u8::from(view.status == "ready")),
        _ => labelled(text, name, view, counters),
    }
}

/// The samples of a number that has labels.
fn labelled(text: &mut Text, name: &'static str, view: &View, counters: &Counters) {
    match name {
        "awscni_assigned_ip_per_eni" => {
            for eni in &view.interfaces {
                let pods: usize = eni.blocks.iter().map(|block| block.pods.len()).sum();
                text.sample(name, &[("eni", &eni.id)], &pods);
            }
        }
        "awscni_assigned_ip_per_cidr" => {
            let blocks = view.interfaces.iter().flat_map(|eni| &eni.blocks);
            for block in blocks.filter(|block| block.is_prefix()) {
                let cidr = block.block.to_string();
                text.sample(name, &[("cidr", &cidr)], &block.pods.len());
            }
        }
        "selvage_ipamd_ec2_calls_at_once" => {
            for calls in &view.calls {
                text.sample(name, &[("budget", &calls.budget)], &calls.at_once);
            }
        }
        "selvage_ipamd_ec2_calls_per_second" => {
            for calls in &view.calls {
                text.sample(name, &[("budget", &calls.budget)], &calls.per_second);
            }
        }
        "selvage_ipamd_ec2_throttled" => {
            for calls in &view.calls {
                text.sample(name, &[("budget", &calls.budget)], &calls.throttled);
            }
        }
        "awscni_del_ip_req_count" => by(text, name, "reason", &counters.del_requests),
        "awscni_reconcile_count" => by(text, name, "fn", &counters.reconciles),
        "awscni_ipamd_error_count" => by(text, name, "fn", &counters.ipamd_errors),
        "awscni_aws_api_error_count" => {
            for ((api, code), call) in &counters.api_calls {
                if !code.is_empty() {
                    text.sample(name, &[("api", api), ("error", code)], &call.count);
                }
            }
        }
        "awscni_aws_api_latency_ms" => {
            for ((api, code), call) in &counters.api_calls {
                let failed = if code.is_empty() { "false" } else { "true" };
                let labels = [("api", *api), ("error", failed), ("status", code)];
                text.summary(name, &labels, (call.count, call.took));
            }
        }
        "awscni_ec2api_req_count" => {
            let calls = counters.api_calls.iter().filter(|(_, call)| call.ec2);
            let calls = calls.map(|((api, _), call)| (*api, call.count));
            by(text, name, "fn", &sums(calls));
        }
        "awscni_ec2api_error_count" => {
            let failed = |code: &String, ec2: bool| ec2 && !code.is_empty();
            let calls = counters.api_calls.iter();
            let calls = calls.filter(|((_, code), call)| failed(code, call.ec2));
            let calls = calls.map(|((api, _), call)| (*api, call.count));
            by(text, name, "fn", &sums(calls));
        }
        "selvage_ipamd_add_duration_ms" => {
            for (outcome, spent) in &counters.adds {
                text.summary(name, &[("outcome", outcome)], *spent);
            }
        }
        "selvage_ipamd_checkpoint_write_ms" => {
            let spent = (counters.checkpoint_writes, counters.checkpoint_write_time);
            text.summary(name, &[], spent);
        }
        "selvage_ipamd_host_repairs" => {
            for part in Part::ALL {
                let count = counters.repairs.get(&part).copied().unwrap_or(0);
                text.sample(name, &[("kind", part.name())], &count);
            }
        }
        "selvage_ipamd_build_info" => {
            text.sample(name, &[("version", env!("CARGO_PKG_VERSION"))], &1);
        }
        // A test asks for a sample of every definition.
        _ => {}
    }
}

fn by<K: AsRef<str>, V: Display>(
    text: &mut Text,
    name: &str,
    label: &str,
    values: &BTreeMap<K, V>,
) {
    for (key, value) in values {
        text.sample(name, &[(label, key.as_ref())], value);
    }
}

fn sums<'a>(calls: impl Iterator<Item = (&'a str, u64)>) -> BTreeMap<&'a str, u64> {
    let mut sums = BTreeMap::new();
    for (api, count) in calls {
        *sums.entry(api).or_default() += count;
    }
    sums
}

/// Lines of the text format.
#[derive(Default)]
struct Text(String);

impl Text {
    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: &dyn Display) {
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

    /// The sample of a number of the process itself.
    fn process(&mut self, name: &str, process: &Process) {
        let value: &dyn Display = match name {
            "process_cpu_seconds_total" => &process.cpu,
            "process_open_fds" => &process.descriptors,
            "process_resident_memory_bytes" => &process.resident,
            "process_start_time_seconds" => &process.started,
            _ => return,
        };
        self.sample(name, &[], value);
    }

    fn summary(&mut self, name: &str, labels: &[(&str, &str)], (count, took): (u64, Duration)) {
        let milliseconds = took.as_secs_f64() * 1000.0;
        let sum = format_args!("{milliseconds:.3}").to_string();
        self.sample(&format!("{name}_sum"), labels, &sum);
        self.sample(&format!("{name}_count"), labels, &count);
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}
