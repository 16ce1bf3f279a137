//! Ports of rules: numbers, ranges, names, and protocols without any.

use serde_json::Value;

use super::list;
use crate::probe::Traffic;

/// "protocol: TCP, UDP, or SCTP. If not specified, this field defaults to TCP."
fn protocol(port: &Value) -> &str {
    match &port["protocol"] {
        Value::Null => "TCP",
        other => other.as_str().unwrap_or(""),
    }
}

fn number(value: &Value) -> Option<u16> {
    let number = u16::try_from(value.as_u64()?).ok()?;
    (number > 0).then_some(number)
}

/// "endPort: cannot be defined if the port field is not defined or if the port field is defined as
/// a named (string) port. Must be equal or greater than port."
pub(super) fn is_understood(port: &Value) -> bool {
    let end = &port["endPort"];
    let numbers = match &port["port"] {
        Value::Null => end.is_null(),
        Value::String(name) => end.is_null() && is_name(name),
        first => match (number(first), number(end)) {
            (Some(_), None) => end.is_null(),
            (Some(first), Some(last)) => first <= last,
            (None, _) => false,
        },
    };
    numbers && ["TCP", "UDP", "SCTP"].contains(&protocol(port))
}

/// "The name must be an IANA_SVC_NAME": up to 15 of lower-case letters, digits and dashes, at least
/// one letter, no dash at an end and no two beside each other.
fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !name.is_empty()
        && name.len() <= 15
        && name.chars().all(fits)
        && name.chars().any(|c| c.is_ascii_lowercase())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--")
}

/// "If this field is not provided, this matches all port names and numbers", of the protocol.
pub(super) fn matches(port: &Value, traffic: Traffic, destinations: &[&Value]) -> bool {
    let Some((is, actual)) = traffic.protocol_and_port() else {
        return false;
    };
    if is != protocol(port) {
        return false;
    }
    match &port["port"] {
        Value::Null => true,
        Value::String(name) => destinations
            .iter()
            .any(|pod| numbers(pod, name, is).contains(&actual)),
        first => {
            let first = number(first);
            let last = number(&port["endPort"]).or(first);
            first <= Some(actual) && Some(actual) <= last
        }
    }
}

/// The numbers that a pod's containers give to a name. Init containers have ended before the pod
/// serves, except those that restart always: sidecars.
fn numbers(pod: &Value, name: &str, of: &str) -> Vec<u16> {
    let spec = &pod["spec"];
    let sidecars = list(&spec["initContainers"])
        .iter()
        .filter(|container| container["restartPolicy"] == "Always");
    list(&spec["containers"])
        .iter()
        .chain(sidecars)
        .flat_map(|container| list(&container["ports"]))
        .filter(|port| port["name"] == name && protocol(port) == of)
        .filter_map(|port| number(&port["containerPort"]))
        .collect()
}
