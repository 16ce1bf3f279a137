//! CNI's wire: versions, results, errors with their numbers. Serde and nothing else.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// A version of the CNI specification that this plugin speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.1.0: results with one address of each family.
    V0_1_0,
    /// 0.2.0; the same results as 0.1.0.
    V0_2_0,
    /// 0.3.0; the same wire as 0.3.1.
    V0_3_0,
    /// 0.3.1: results with interfaces.
    V0_3_1,
    /// 0.4.0: CHECK; AWS's configuration.
    V0_4_0,
    /// 1.0.0: addresses without a `version` field.
    V1_0_0,
    /// 1.1.0: GC and STATUS; our configuration.
    V1_1_0,
}

impl Version {
    /// All of them, oldest first.
    pub const ALL: [Version; 7] = [
        Version::V0_1_0,
        Version::V0_2_0,
        Version::V0_3_0,
        Version::V0_3_1,
        Version::V0_4_0,
        Version::V1_0_0,
        Version::V1_1_0,
    ];
    /// The one in which errors are told when the configuration names none that we know.
    pub const NEWEST: Version = Version::V1_1_0;

    /// As it is written in a configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Version::V0_1_0 => "0.1.0",
            Version::V0_2_0 => "0.2.0",
            Version::V0_3_0 => "0.3.0",
            Version::V0_3_1 => "0.3.1",
            Version::V0_4_0 => "0.4.0",
            Version::V1_0_0 => "1.0.0",
            Version::V1_1_0 => "1.1.0",
        }
    }

    /// `None` for a version that we do not speak.
    pub fn find(text: &str) -> Option<Self> {
        Version::ALL.into_iter().find(|v| v.as_str() == text)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Error numbers: up to 99 they are the specification's, from 100 on our own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The configuration's cniVersion is not one of ours, or too old for the command.
    IncompatibleVersion = 1,
    /// The cluster's configuration asks for something that is not supported.
    UnsupportedField = 2,
    /// There is no such sandbox: the runtime need not clean up.
    UnknownContainer = 3,
    /// An environment variable is missing or cannot be.
    InvalidEnvironment = 4,
    /// Input or output failed, the kernel's included.
    Io = 5,
    /// The configuration is not JSON, or not of the right shape.
    Decode = 6,
    /// The configuration's values cannot be.
    InvalidConfig = 7,
    /// No address now; later there may be one.
    TryAgainLater = 11,
    /// STATUS: ADD would not work.
    NotAvailable = 50,
    /// CHECK: the pod's network is not as ADD made it.
    NotAsMade = 100,
}

/// An error as a runtime reads it. `kubectl describe pod` shows `msg; details`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{msg}: {details}")]
pub struct CniError {
    /// Its number.
    pub code: Code,
    /// What could not be done, in a line.
    pub msg: String,
    /// Why, and what to do about it.
    pub details: String,
}

impl CniError {
    /// An error from its parts.
    pub fn new(code: Code, msg: impl Into<String>, details: impl Into<String>) -> Self {
        CniError {
            code,
            msg: msg.into(),
            details: details.into(),
        }
    }

    /// The JSON that goes to stdout.
    pub fn to_json(&self, version: Version) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Wire<'a> {
            cni_version: &'a str,
            code: u32,
            msg: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            details: &'a str,
        }
        json(&Wire {
            cni_version: version.as_str(),
            code: self.code as u32,
            msg: &self.msg,
            details: &self.details,
        })
    }
}

/// What ADD tells the runtime, in AWS's shape: its plugin takes pods down by it after a rollback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddResult {
    /// The host's end of the veth.
    pub host_veth: String,
    /// The interface in the pod.
    pub if_name: String,
    /// The pod's network namespace.
    pub netns: String,
    /// The route table of the ENI that holds the address; travels as the interface's `mac`.
    pub table: u32,
    /// The name of the entry that carries the device number.
    pub dummy: String,
    /// The device index of that ENI; travels as the dummy's `sandbox`.
    pub device: i32,
    /// The pod's address.
    pub address: IpAddr,
}

impl AddResult {
    /// The JSON that goes to stdout, in the version that the configuration asks for.
    pub fn to_json(&self, version: Version) -> String {
        if version < Version::V0_3_0 {
            return self.to_json_without_interfaces(version);
        }
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Wire<'a> {
            cni_version: &'a str,
            interfaces: [Interface; 3],
            ips: [Ip; 1],
            dns: Empty,
        }
        #[derive(Serialize)]
        struct Ip {
            #[serde(skip_serializing_if = "Option::is_none")]
            version: Option<&'static str>,
            interface: usize,
            address: IpNet,
        }
        let entry = |name: &str, mac: String, sandbox: String| Interface {
            name: name.into(),
            mac,
            sandbox,
        };
        let family = if self.address.is_ipv4() { "4" } else { "6" };
        json(&Wire {
            cni_version: version.as_str(),
            interfaces: [
                entry(&self.host_veth, String::new(), String::new()),
                entry(&self.if_name, self.table.to_string(), self.netns.clone()),
                entry(&self.dummy, "0".into(), self.device.to_string()),
            ],
            ips: [Ip {
                // Gone since 1.0.0, where the address says it.
                version: (version < Version::V1_0_0).then_some(family),
                interface: 1,
                address: self.address.into(),
            }],
            dns: Empty {},
        })
    }

    /// Before 0.3.0 a result was an address.
    fn to_json_without_interfaces(&self, version: Version) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Wire<'a> {
            cni_version: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            ip4: Option<Ip>,
            #[serde(skip_serializing_if = "Option::is_none")]
            ip6: Option<Ip>,
            dns: Empty,
        }
        #[derive(Serialize)]
        struct Ip {
            ip: IpNet,
        }
        let of = |wanted| {
            (self.address.is_ipv4() == wanted).then_some(Ip {
                ip: self.address.into(),
            })
        };
        json(&Wire {
            cni_version: version.as_str(),
            ip4: of(true),
            ip6: of(false),
            dns: Empty {},
        })
    }
}

#[derive(Serialize)]
struct Empty {}

/// What VERSION answers: the version that was asked in, and all that are spoken.
pub fn versions_json(asked: &str) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Wire<'a> {
        cni_version: &'a str,
        supported_versions: [&'static str; Version::ALL.len()],
    }
    json(&Wire {
        cni_version: asked,
        supported_versions: Version::ALL.map(Version::as_str),
    })
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain structs are always JSON")
}

/// The configuration on stdin, as far as anything in it is read. AWS's other fields (podSGEnforcingMode,
/// capabilities, runtimeConfig) are let pass.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Config {
    /// Version of the specification that it is written in.
    pub cni_version: Option<String>,
    /// Name of the network; part of the key of a lease.
    pub name: Option<String>,
    /// Prefix of the host's veth names.
    pub veth_prefix: Option<String>,
    /// MTU of pods, in bytes; AWS writes it as a string.
    pub mtu: Option<TextOrNumber>,
    /// Where to log: a path, or `stderr`.
    pub plugin_log_file: Option<String>,
    /// What to log: `DEBUG` and so on.
    pub plugin_log_level: Option<String>,
    /// What ADD waits for: see [`crate::policy_ready`]. Read by ADD only, so that no value of it keeps a pod from
    /// being deleted.
    pub policy_ready: Option<serde_json::Value>,
    /// GC: the attachments that the runtime still knows, a list of [`Attachment`]. Read by GC only.
    #[serde(rename = "cni.dev/valid-attachments")]
    pub valid_attachments: Option<serde_json::Value>,
    /// What ADD answered: for CHECK, and for DEL without the daemon. See [`PrevResult::read`].
    pub prev_result: Option<serde_json::Value>,
}

/// A sandbox's interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Attachment {
    /// Id of the sandbox.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// Name of the interface in the pod.
    #[serde(rename = "ifname")]
    pub if_name: String,
}

/// A number that may be written as a string.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum TextOrNumber {
    /// `"9001"`.
    Text(String),
    /// `9001`.
    Number(u64),
}

/// An earlier result, of any version: what they share.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PrevResult {
    /// In the order in which they were told.
    pub interfaces: Vec<Interface>,
    /// The addresses.
    pub ips: Vec<PrevIp>,
}

impl PrevResult {
    /// `None` if it is not of the shape of a result: a DEL must not fail for what it can do without.
    pub fn read(value: serde_json::Value) -> Option<Self> {
        serde_json::from_value(value).ok()
    }
}

/// A link, or what AWS tells in the form of one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interface {
    /// Name of the link.
    pub name: String,
    /// Hardware address; AWS: a table or a VLAN in decimal.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// The namespace that it is in, empty for the host; AWS: a device number in decimal.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
}

/// An address of an earlier result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PrevIp {
    /// With its mask.
    pub address: String,
    /// Which of the interfaces it is on.
    pub interface: Option<usize>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(address: &str) -> AddResult {
        AddResult {
            host_veth: "eni0d7763386da".into(),
            if_name: "eth0".into(),
            netns: "/var/run/netns/cni-1".into(),
            table: 3,
            dummy: "dummy0d7763386da".into(),
            device: 2,
            address: address.parse().unwrap(),
        }
    }

    #[test]
    fn results_are_of_the_shape_that_their_version_has() {
        const INTERFACES: &str = r#""interfaces":[{"name":"eni0d7763386da"},{"name":"eth0","mac":"3","sandbox":"/var/run/netns/cni-1"},{"name":"dummy0d7763386da","mac":"0","sandbox":"2"}],"#;
        for (version, address, expected) in [
            (
                Version::V0_1_0,
                "10.40.1.7",
                r#""ip4":{"ip":"10.40.1.7/32"}"#.to_owned(),
            ),
            (
                Version::V0_2_0,
                "10.40.1.7",
                r#""ip4":{"ip":"10.40.1.7/32"}"#.to_owned(),
            ),
            (
                Version::V0_2_0,
                "2600::7",
                r#""ip6":{"ip":"2600::7/128"}"#.to_owned(),
            ),
            (
                Version::V0_3_0,
                "10.40.1.7",
                format!(
                    r#"{INTERFACES}"ips":[{{"version":"4","interface":1,"address":"10.40.1.7/32"}}]"#
                ),
            ),
            (
                Version::V0_3_1,
                "10.40.1.7",
                format!(
                    r#"{INTERFACES}"ips":[{{"version":"4","interface":1,"address":"10.40.1.7/32"}}]"#
                ),
            ),
            (
                Version::V0_4_0,
                "2600::7",
                format!(
                    r#"{INTERFACES}"ips":[{{"version":"6","interface":1,"address":"2600::7/128"}}]"#
                ),
            ),
            (
                Version::V1_0_0,
                "10.40.1.7",
                format!(r#"{INTERFACES}"ips":[{{"interface":1,"address":"10.40.1.7/32"}}]"#),
            ),
            (
                Version::V1_1_0,
                "2600::7",
                format!(r#"{INTERFACES}"ips":[{{"interface":1,"address":"2600::7/128"}}]"#),
            ),
        ] {
            assert_eq!(
                result(address).to_json(version),
                format!(r#"{{"cniVersion":"{version}",{expected},"dns":{{}}}}"#)
            );
        }
    }
}
