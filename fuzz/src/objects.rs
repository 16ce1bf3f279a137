//! What the API server says: objects as JSON, and the texts in them that others write.

use std::net::IpAddr;

use selvage_policy_core::index::Event;
use selvage_policy_core::model::{Direction, Labels};
use selvage_policy_core::{api, convert};
use serde_json::Value;

use crate::feed::Feed;
use crate::rules;

/// A JSON object with lists of `namespaces`, `pods` and `policies`.
pub(crate) fn any(bytes: &[u8]) {
    let Ok(json) = serde_json::from_slice::<Value>(bytes) else {
        return;
    };
    let list = |name: &str| json[name].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut events = Vec::new();
    for object in list("namespaces") {
        if let Ok(object) = serde_json::from_value(object.clone()) {
            events.push(Event::NamespaceApplied(convert::namespace(object)));
        }
    }
    for object in list("pods") {
        if let Ok(object) = serde_json::from_value(object.clone()) {
            events.push(pod(object));
        }
    }
    for object in list("policies") {
        if let Ok(object) = serde_json::from_value(object.clone()) {
            events.push(policy(&object));
        }
    }
    rules::check(events);
}

/// The annotations that are read, the status, and whether the pod is being deleted: texts with
/// NULs between.
pub(crate) fn annotations(bytes: &[u8]) {
    let mut feed = Feed::new(bytes);
    let deleted = feed.one_in(2);
    let text = String::from_utf8_lossy(feed.rest());
    let mut texts = text.split('\0').map(str::to_owned);
    let names = [
        convert::POD_IPS_ANNOTATION,
        convert::NIC_CONFIG_ANNOTATION,
        convert::NETWORKS_ANNOTATION,
        convert::BRANCH_ENI,
    ];
    let mut object = api::Pod::default();
    for (name, text) in names.into_iter().zip(&mut texts) {
        object.metadata.annotations.insert(name.to_owned(), text);
    }
    object.metadata.deletion_timestamp = deleted.then(|| "now".to_owned());
    object.status.pod_ip = texts.next();
    object.status.pod_ips = texts.map(|ip| api::PodIp { ip }).collect();
    pod(object);
}

/// A pod, its addresses as the kernel knows them.
pub(crate) fn pod(object: api::Pod) -> Event {
    let pod = convert::pod(object);
    for address in pod.addresses.iter() {
        let canonical: IpAddr = address.to_canonical();
        assert_eq!(address, canonical, "an IPv4 address in IPv6's clothes");
    }
    Event::PodApplied(pod)
}

/// A policy: what was not understood allows nothing and is named.
pub(crate) fn policy(object: &api::NetworkPolicy) -> Event {
    let (policy, problems) = convert::policy(object);
    let void = problems.iter().any(|problem| match problem {
        convert::Problem::Subject { .. } => true,
        convert::Problem::PolicyType { .. } | convert::Problem::Rule { .. } => false,
    });
    if void {
        assert!(policy.subject.matches(&Labels::default()), "not isolated");
    }
    for (direction, asked) in [
        (Direction::Ingress, object.spec.ingress.len()),
        (Direction::Egress, object.spec.egress.len()),
    ] {
        let Some(held) = policy.rules(direction) else {
            continue;
        };
        let named = problems.iter().filter(|problem| match problem {
            convert::Problem::Rule { direction: it, .. } => *it == direction,
            convert::Problem::Subject { .. } | convert::Problem::PolicyType { .. } => false,
        });
        if void {
            assert!(held.is_empty(), "rules of nobody knows whom");
        } else {
            assert_eq!(held.len() + named.count(), asked, "a rule is lost");
        }
    }
    for problem in &problems {
        assert!(!problem.to_string().is_empty());
    }
    Event::PolicyApplied(policy)
}
