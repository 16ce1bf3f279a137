//! API objects as the watches read them: the fields of `selvage_policy_core::api`; the rest of the
//! JSON is dropped as it is read.

use std::fmt::Debug;

use selvage_policy_core::api;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::status;

/// A type of `selvage_policy_core::api` that is watched.
pub(super) trait Watched: DeserializeOwned + Clone + Debug + Send + Sync + 'static {
    /// Which resource it is.
    const RESOURCE: status::Resource;
    /// Its kind in the API.
    const KIND: &'static str;
    /// Where the API server lists all there are.
    const PATH: &'static str;

    /// Its name and so on.
    fn metadata(&self) -> &api::Metadata;
}

impl Watched for api::Pod {
    const RESOURCE: status::Resource = status::Resource::Pods;
    const KIND: &'static str = "Pod";
    const PATH: &'static str = "/api/v1/pods";

    fn metadata(&self) -> &api::Metadata {
        &self.metadata
    }
}

impl Watched for api::Namespace {
    const RESOURCE: status::Resource = status::Resource::Namespaces;
    const KIND: &'static str = "Namespace";
    const PATH: &'static str = "/api/v1/namespaces";

    fn metadata(&self) -> &api::Metadata {
        &self.metadata
    }
}

impl Watched for api::NetworkPolicy {
    const RESOURCE: status::Resource = status::Resource::NetworkPolicies;
    const KIND: &'static str = "NetworkPolicy";
    const PATH: &'static str = "/apis/networking.k8s.io/v1/networkpolicies";

    fn metadata(&self) -> &api::Metadata {
        &self.metadata
    }
}

/// Which object it is, as far as that can be known of one that is not understood.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Head {
    pub(super) name: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) uid: Option<String>,
    pub(super) resource_version: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Headed {
    metadata: Head,
}

/// An object whose fields are not of the types that the API says.
#[derive(Debug, Clone)]
pub(super) struct Unreadable {
    /// Which one.
    pub(super) head: Head,
    /// What is wrong.
    pub(super) error: String,
    /// All of it.
    pub(super) json: Value,
}

/// An object of the API server, readable or not.
///
/// Reading never fails for the sake of one object: the watch would start over and meet it again,
/// and no other object would get through.
#[derive(Debug, Clone)]
pub(super) struct Object<T> {
    /// The fields that we read.
    pub(super) content: Result<T, Box<Unreadable>>,
}

impl<T> From<T> for Object<T> {
    fn from(content: T) -> Self {
        let content = Ok(content);
        Self { content }
    }
}

impl<T: Watched> Object<T> {
    pub(super) fn name(&self) -> &str {
        match &self.content {
            Ok(content) => &content.metadata().name,
            Err(unreadable) => unreadable.head.name.as_deref().unwrap_or_default(),
        }
    }

    pub(super) fn namespace(&self) -> &str {
        match &self.content {
            Ok(content) => &content.metadata().namespace,
            Err(unreadable) => unreadable.head.namespace.as_deref().unwrap_or_default(),
        }
    }

    pub(super) fn uid(&self) -> &str {
        match &self.content {
            Ok(content) => &content.metadata().uid,
            Err(unreadable) => unreadable.head.uid.as_deref().unwrap_or_default(),
        }
    }

    /// Which of its states it is, for a watch; empty when the server does not say.
    pub(super) fn version(&self) -> &str {
        match &self.content {
            Ok(content) => content.metadata().resource_version.as_deref(),
            Err(unreadable) => unreadable.head.resource_version.as_deref(),
        }
        .unwrap_or_default()
    }
}

impl<'de, T: Watched> Deserialize<'de> for Object<T> {
    /// Works on JSON text only, which is all that there is.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // As text first: where the object ends does not depend on what is in it.
        let text = <&RawValue>::deserialize(deserializer)?;
        Ok(Self::read(text.get()))
    }
}

impl<T: Watched> Object<T> {
    fn read(text: &str) -> Self {
        let error = match serde_json::from_str::<T>(text) {
            Ok(content) => return content.into(),
            Err(error) => error.to_string(),
        };
        // Null when it is not even a value: too deep, or a number that no type of ours holds.
        let json = serde_json::from_str::<Value>(text).unwrap_or_default();
        let field = |name: &str| {
            let found = json.get("metadata")?.get(name)?.as_str()?;
            Some(found.to_owned())
        };
        let head = match serde_json::from_str::<Headed>(text) {
            Ok(headed) => headed.metadata,
            Err(_) => Head {
                name: field("name"),
                namespace: field("namespace"),
                uid: field("uid"),
                resource_version: field("resourceVersion"),
            },
        };
        // A field that is there twice is an error in text and none in a value.
        let content = T::deserialize(&json).map_err(|_| Box::new(Unreadable { head, error, json }));
        Self { content }
    }
}

#[cfg(test)]
mod tests {
    use kube::api::WatchEvent;
    use serde_json::json;

    use super::*;

    fn read<T: DeserializeOwned>(json: Value) -> T {
        serde_json::from_str(&json.to_string()).unwrap()
    }

    #[test]
    fn a_pod_is_read_with_what_the_watcher_needs() {
        let object: Object<api::Pod> = read(json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": "web-0", "namespace": "shop", "uid": "u1", "resourceVersion": "17",
                "labels": {"app": "web"},
                "managedFields": [{"manager": "kubelet"}],
            },
            "spec": {"nodeName": "node-1", "containers": [{"name": "web"}]},
            "status": {"podIPs": [{"ip": "10.0.0.7"}]},
        }));
        assert_eq!(object.version(), "17");
        assert_eq!(
            (object.namespace(), object.name(), object.uid()),
            ("shop", "web-0", "u1")
        );
        let pod = object.content.unwrap();
        assert_eq!(pod.spec.node_name.as_deref(), Some("node-1"));
        assert_eq!(pod.status.pod_ips[0].ip, "10.0.0.7");
    }

    #[test]
    fn an_unreadable_object_keeps_its_name_and_stops_nothing() {
        let objects: Vec<Object<api::Pod>> = read(json!([
            {"metadata": {"name": "bad", "namespace": "shop", "resourceVersion": "1"}, "spec": 7},
            {"metadata": {"name": "good", "namespace": "shop", "resourceVersion": "2"}},
        ]));
        assert_eq!(objects[0].name(), "bad");
        assert_eq!(objects[0].version(), "1");
        assert!(objects[0].content.is_err());
        assert!(objects[1].content.is_ok());
    }

    #[test]
    fn json_that_no_value_holds_is_an_unreadable_object_and_stops_nothing() {
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        for strange in ["1e999", deep.as_str()] {
            let text = format!(
                r#"[{{"metadata": {{"name": "bad"}}, "spec": {strange}}}, {{"metadata": {{"name": "good"}}}}]"#
            );
            let objects: Vec<Object<api::NetworkPolicy>> = serde_json::from_str(&text).unwrap();
            assert_eq!(objects[0].name(), "bad", "{strange}");
            assert!(objects[0].content.is_err(), "{strange}");
            assert!(objects[1].content.is_ok(), "{strange}");
        }
    }

    /// As kube reads it.
    #[test]
    fn an_object_is_read_in_a_watch_event() {
        let object = r#"{"metadata": {"name": "web-0", "namespace": "shop"}, "spec": {}}"#;
        let event = format!(r#"{{"type": "ADDED", "object": {object}}}"#);
        let event: WatchEvent<Object<api::Pod>> = serde_json::from_str(&event).unwrap();
        let WatchEvent::Added(added) = event else {
            panic!("not added")
        };
        assert_eq!(added.name(), "web-0");
    }

    #[test]
    fn a_field_that_is_there_twice_does_not_make_an_object_unreadable() {
        let text = r#"{"metadata": {"name": "x", "name": "web-0"}, "spec": {"nodeName": "n1"}}"#;
        let object: Object<api::Pod> = serde_json::from_str(text).unwrap();
        assert_eq!(object.name(), "web-0");
        assert_eq!(
            object.content.unwrap().spec.node_name.as_deref(),
            Some("n1")
        );
    }
}
