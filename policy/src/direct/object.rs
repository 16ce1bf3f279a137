//! API objects as the watches read them: enough metadata for kube's watcher, and the fields of
//! `selvage_policy_core::api`; the rest of the JSON is dropped as it is read.

use std::borrow::Cow;
use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use kube::Resource;
use kube::api::ObjectMeta;
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
    /// Its API group; empty for the core one.
    const GROUP: &'static str;
}

impl Watched for api::Pod {
    const RESOURCE: status::Resource = status::Resource::Pods;
    const KIND: &'static str = "Pod";
    const GROUP: &'static str = "";
}

impl Watched for api::Namespace {
    const RESOURCE: status::Resource = status::Resource::Namespaces;
    const KIND: &'static str = "Namespace";
    const GROUP: &'static str = "";
}

impl Watched for api::NetworkPolicy {
    const RESOURCE: status::Resource = status::Resource::NetworkPolicies;
    const KIND: &'static str = "NetworkPolicy";
    const GROUP: &'static str = "networking.k8s.io";
}

/// An object whose fields are not of the types that the API says.
#[derive(Debug, Clone)]
pub(super) struct Unreadable {
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
    /// Name, namespace, uid and resource version; nothing else.
    pub(super) meta: ObjectMeta,
    /// The fields that we read.
    pub(super) content: Result<T, Box<Unreadable>>,
}

impl<T> Object<T> {
    pub(super) fn name(&self) -> &str {
        self.meta.name.as_deref().unwrap_or_default()
    }

    pub(super) fn namespace(&self) -> &str {
        self.meta.namespace.as_deref().unwrap_or_default()
    }

    pub(super) fn uid(&self) -> &str {
        self.meta.uid.as_deref().unwrap_or_default()
    }
}

/// What kube's watcher needs of the metadata.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Head {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
}

impl From<Head> for ObjectMeta {
    fn from(head: Head) -> Self {
        Self {
            name: head.name,
            namespace: head.namespace,
            uid: head.uid,
            resource_version: head.resource_version,
            ..Self::default()
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Headed {
    metadata: Head,
}

impl<'de, T: Watched> Deserialize<'de> for Object<T> {
    /// Works on JSON text only, which is all that kube reads.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // As text first: most of an object is not for us, and skipped without being taken apart.
        let text = Box::<RawValue>::deserialize(deserializer)?;
        Ok(Self::read(text.get()))
    }
}

impl<T: Watched> Object<T> {
    fn read(text: &str) -> Self {
        let head = serde_json::from_str::<Headed>(text).map(|headed| headed.metadata);
        let error = match (&head, serde_json::from_str(text)) {
            (Ok(_), Ok(content)) => {
                let meta = head.unwrap_or_default().into();
                let content = Ok(content);
                return Self { meta, content };
            }
            (Err(error), Ok(_)) => error.to_string(),
            (Ok(_) | Err(_), Err(error)) => error.to_string(),
        };
        // Not even a value: too deep, or a number that no type of ours holds.
        let Ok(json) = serde_json::from_str::<Value>(text) else {
            let json = Value::Null;
            return Self {
                meta: head.unwrap_or_default().into(),
                content: Err(Box::new(Unreadable { error, json })),
            };
        };
        let field = |name: &str| {
            let found = json.get("metadata")?.get(name)?.as_str()?;
            Some(found.to_owned())
        };
        let meta = ObjectMeta {
            name: field("name"),
            namespace: field("namespace"),
            uid: field("uid"),
            resource_version: field("resourceVersion"),
            ..ObjectMeta::default()
        };
        // A field that is there twice is an error in text and none in a value.
        let content = T::deserialize(&json).map_err(|error| {
            Box::new(Unreadable {
                error: error.to_string(),
                json,
            })
        });
        Self { meta, content }
    }
}

impl<T: Watched> Resource for Object<T> {
    type DynamicType = ();
    // Only asked for by calls within one namespace, which are never made.
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        T::KIND.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        T::GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        T::RESOURCE.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

#[cfg(test)]
mod tests {
    use kube::api::{ObjectList, WatchEvent};
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
        assert_eq!(object.meta.resource_version.as_deref(), Some("17"));
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
        assert_eq!(objects[0].meta.resource_version.as_deref(), Some("1"));
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

    /// As kube reads a list and a watch.
    #[test]
    fn an_object_is_read_in_a_list_and_in_a_watch_event() {
        let object = r#"{"metadata": {"name": "web-0", "namespace": "shop"}, "spec": {}}"#;
        let list = format!(r#"{{"kind": "PodList", "metadata": {{}}, "items": [{object}]}}"#);
        let list: ObjectList<Object<api::Pod>> = serde_json::from_str(&list).unwrap();
        assert_eq!(list.items[0].name(), "web-0");
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
