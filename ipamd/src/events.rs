//! Where the daemon leaves what a person should see in `kubectl describe node`.

/// Takes troubles and makes Kubernetes Events of them. Never waits: what it cannot take it drops.
pub trait EventSink: Clone + Send + Sync + 'static {
    /// A warning: `reason` one word in CamelCase, `action` what was being done (`ec2:CreateNetworkInterface`), `note`
    /// what happened, for people.
    fn warn(&self, reason: &'static str, action: String, note: String);
}

/// Drops everything: for a daemon without an API server.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoEvents;

impl EventSink for NoEvents {
    fn warn(&self, _: &'static str, _: String, _: String) {}
}
