//! How long objects take from the watch to the kernel.

use tokio::time::Instant;

use super::Metrics;
use crate::status::Resource;

/// Objects on their way that are told apart. More than that at once is an outage, which the first
/// ones show.
const ON_THE_WAY_MAX: usize = 4096;

/// The objects whose effect is not in the kernel yet.
///
/// *Shape*: owned by the loop, in step with what it has pending: what is noticed while work is
/// under way belongs to the next piece.
#[derive(Debug, Default)]
pub struct Lag {
    waiting: Vec<(Resource, Instant)>,
    under_way: Vec<(Resource, Instant)>,
}

impl Lag {
    /// An object that was received then changes what the kernel should hold.
    pub fn noticed(&mut self, resource: Resource, received: Instant) {
        if self.waiting.len() + self.under_way.len() < ON_THE_WAY_MAX {
            self.waiting.push((resource, received));
        }
    }

    /// Work begins that holds the effect of everything noticed so far.
    pub fn begun(&mut self) {
        self.under_way.append(&mut self.waiting);
    }

    /// That work ended well.
    pub fn succeeded(&mut self, now: Instant, metrics: &Metrics) {
        for (resource, received) in self.under_way.drain(..) {
            metrics.in_kernel(resource, now.saturating_duration_since(received));
        }
    }

    /// That work failed: what was in it waits for the next piece.
    pub fn failed(&mut self) {
        self.waiting.append(&mut self.under_way);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn seen(metrics: &Metrics, resource: Resource) -> (u64, f64) {
        let text = metrics.render();
        let value = |suffix: &str| -> f64 {
            let name = format!(
                "selvage_policy_object_to_kernel_seconds_{suffix}{{resource=\"{resource}\"}} "
            );
            let line = text.lines().find_map(|line| line.strip_prefix(&name));
            line.unwrap().parse().unwrap()
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a small count"
        )]
        (value("count") as u64, value("sum"))
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_that_failed_to_get_in_counts_from_its_receipt_once_it_does() {
        let metrics = Metrics::new();
        let mut lag = Lag::default();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        lag.noticed(Resource::Pods, start);
        lag.begun();
        lag.noticed(Resource::NetworkPolicies, after(1));
        lag.failed();
        lag.succeeded(after(2), &metrics);
        assert_eq!(
            seen(&metrics, Resource::Pods),
            (0, 0.0),
            "nothing is under way"
        );
        lag.begun();
        lag.succeeded(after(3), &metrics);
        assert_eq!(seen(&metrics, Resource::Pods), (1, 3.0));
        assert_eq!(seen(&metrics, Resource::NetworkPolicies), (1, 2.0));
        lag.begun();
        lag.succeeded(after(9), &metrics);
        assert_eq!(seen(&metrics, Resource::Pods), (1, 3.0), "counted once");
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_does_not_grow_what_is_remembered_without_end() {
        let mut lag = Lag::default();
        for _ in 0..ON_THE_WAY_MAX * 2 {
            lag.noticed(Resource::Pods, Instant::now());
            lag.begun();
            lag.failed();
        }
        assert_eq!(lag.waiting.len(), ON_THE_WAY_MAX);
    }
}
