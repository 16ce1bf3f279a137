//! Environment and stdin into a request that is valid, or the error that says what is wrong with them.

use std::env;
use std::path::PathBuf;

use crate::log::Level;
use crate::name;
use crate::policy_ready::PolicyReady;
use crate::spec::{Attachment, CniError, Code, Config, PrevResult, TextOrNumber, Version};

/// AWS's default, and the VPC's limit.
const DEFAULT_MTU: u32 = 9001;
/// What AWS accepts for AWS_VPC_ENI_MTU and POD_MTU: below 576 IPv4 does not work.
const MTU_BOUNDS: std::ops::RangeInclusive<u32> = 576..=9001;
const DEFAULT_PREFIX: &str = "eni";
/// 11 hex digits follow it, and 15 bytes are the kernel's limit.
const LONGEST_PREFIX: usize = 4;
/// Names that a node's own links begin with.
const TAKEN_PREFIXES: [&str; 3] = ["eth", "vlan", "lo"];
/// The kernel's limit on link names.
const LONGEST_LINK_NAME: usize = 15;
const DEFAULT_LOG_FILE: &str = "/var/log/aws-routed-eni/plugin.log";
const DEFAULT_LOG_LEVEL: Level = Level::Debug;

/// The variables that a runtime sets, as it set them; unset and empty are the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `CNI_COMMAND`
    pub command: String,
    /// `CNI_CONTAINERID`
    pub container_id: String,
    /// `CNI_NETNS`
    pub netns: String,
    /// `CNI_IFNAME`
    pub if_name: String,
    /// `CNI_ARGS`: `K=V;K=V`, in any order.
    pub args: String,
}

impl Environment {
    /// Reads the process's own.
    pub fn read() -> Self {
        let get = |key| {
            let value = env::var_os(key).unwrap_or_default();
            let text = value.into_string();
            text.unwrap_or_else(|odd| odd.to_string_lossy().into_owned())
        };
        Environment {
            command: get("CNI_COMMAND"),
            container_id: get("CNI_CONTAINERID"),
            netns: get("CNI_NETNS"),
            if_name: get("CNI_IFNAME"),
            args: get("CNI_ARGS"),
        }
    }
}

/// What a runtime asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Give a sandbox its interface.
    Add(AddRequest),
    /// Look whether it is still as it was made.
    Check(CheckRequest),
    /// Take it down.
    Del(DelRequest),
    /// Free what belongs to none of the sandboxes that are named.
    Gc(GcRequest),
    /// Would ADD work?
    Status,
    /// Which versions are spoken, asked in this one.
    Version(String),
}

/// A pod's name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID, if the runtime tells it.
    pub uid: String,
    /// Its sandbox, as CNI_ARGS tell it; the same as CNI_CONTAINERID.
    pub infra_container_id: String,
}

/// What names a lease: the same in ADD, CHECK and DEL of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// Name of the network.
    pub network: String,
    /// Id of the sandbox.
    pub container_id: String,
    /// Name of the interface in the pod.
    pub if_name: String,
    /// Path of its network namespace; empty if the runtime has none left (DEL only).
    pub netns: String,
}

/// ADD, valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddRequest {
    /// The sandbox.
    pub sandbox: Sandbox,
    /// The pod.
    pub pod: Pod,
    /// Name of the host's end of the veth.
    pub host_veth: String,
    /// MTU of both ends, in bytes.
    pub mtu: u32,
    /// What is waited for before the pod is said to be ready; `None` is nothing.
    pub policy_ready: Option<PolicyReady>,
}

/// DEL, as valid as it need be: the second DEL of a sandbox has no namespace and no earlier result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DelRequest {
    /// The sandbox.
    pub sandbox: Sandbox,
    /// The pod; empty names if the runtime does not tell.
    pub pod: Pod,
    /// What ADD answered.
    pub prev_result: Option<PrevResult>,
}

/// CHECK, valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckRequest {
    /// The sandbox.
    pub sandbox: Sandbox,
    /// What ADD answered.
    pub prev_result: PrevResult,
}

/// GC, valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GcRequest {
    /// Name of the network.
    pub network: String,
    /// What is to stay.
    pub valid: Vec<Attachment>,
}

/// Where and what to log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// The file; `None` is stderr, since stdout is the protocol.
    pub file: Option<PathBuf>,
    /// The least that is logged.
    pub level: Level,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig {
            file: Some(DEFAULT_LOG_FILE.into()),
            level: DEFAULT_LOG_LEVEL,
        }
    }
}

/// The outcome of parsing: how to answer and where to log is known even if the request is not.
#[derive(Debug)]
pub struct Parsed {
    /// The version to answer in.
    pub version: Version,
    /// Where to log.
    pub log: LogConfig,
    /// What is asked.
    pub request: Result<Request, CniError>,
}

/// Reads a request.
///
/// *Errors* (in [`Parsed::request`]): code 1 for a version that we do not speak or a command that it does
/// not have, 4 for the environment, 6 for what is not JSON, 7 for values that cannot be.
pub fn parse(environment: &Environment, stdin: &[u8]) -> Parsed {
    let config = read(stdin);
    let known = config.as_ref().ok();
    let version = known
        .and_then(|config| config.cni_version.as_deref())
        .and_then(Version::find);
    Parsed {
        version: version.unwrap_or(Version::NEWEST),
        log: known.map(log_config).unwrap_or_default(),
        request: if environment.command == "VERSION" {
            // Asked by runtimes that do not know yet how to talk to us: answered whatever is on stdin.
            let asked = known.and_then(|config| config.cni_version.clone());
            Ok(Request::Version(
                asked.unwrap_or_else(|| Version::NEWEST.to_string()),
            ))
        } else {
            config.and_then(|config| request(environment, config, version))
        },
    }
}

fn read(stdin: &[u8]) -> Result<Config, CniError> {
    let fail = |details: String| {
        let msg = "the network configuration on stdin cannot be read";
        CniError::new(Code::Decode, msg, details)
    };
    // Serde would read a list as the fields of an object, in order.
    if stdin.trim_ascii_start().starts_with(b"[") {
        return Err(fail("a list, not an object".into()));
    }
    serde_json::from_slice(stdin).map_err(|error| fail(error.to_string()))
}

// Not inlined, as the commands are not: VERSION has no use for its pages.
#[inline(never)]
fn request(
    environment: &Environment,
    config: Config,
    version: Option<Version>,
) -> Result<Request, CniError> {
    let command = environment.command.as_str();
    // A missing command is told before a strange version: nobody can have meant to ask for anything.
    let since = match command {
        "ADD" | "DEL" => Version::V0_1_0,
        "CHECK" => Version::V0_4_0,
        "STATUS" | "GC" => Version::V1_1_0,
        "" => return Err(invalid_variable("CNI_COMMAND", "is not set")),
        other => {
            let problem = format!("is {other:?}, which is not a command");
            return Err(invalid_variable("CNI_COMMAND", problem));
        }
    };
    let version = version.ok_or_else(|| unknown_version(config.cni_version.as_deref()))?;
    if version < since {
        return Err(CniError::new(
            Code::IncompatibleVersion,
            format!("{command} needs cniVersion {since} or newer"),
            format!("the network configuration says {version}"),
        ));
    }
    match command {
        "STATUS" => return Ok(Request::Status),
        "GC" => return gc(config).map(Request::Gc),
        _ => {}
    }
    let sandbox = sandbox(environment, &config)?;
    let pod = pod(&environment.args);
    if command == "DEL" {
        return Ok(Request::Del(DelRequest {
            sandbox,
            pod,
            prev_result: config.prev_result.and_then(PrevResult::read),
        }));
    }
    if sandbox.netns.is_empty() {
        return Err(invalid_variable("CNI_NETNS", "is not set"));
    }
    if command == "CHECK" {
        let prev_result = config.prev_result.and_then(PrevResult::read);
        let prev_result = prev_result.ok_or_else(|| {
            invalid_config("CHECK needs prevResult: there is none, or none that can be read")
        })?;
        return Ok(Request::Check(CheckRequest {
            sandbox,
            prev_result,
        }));
    }
    for (key, value) in [
        ("K8S_POD_NAMESPACE", &pod.namespace),
        ("K8S_POD_NAME", &pod.name),
    ] {
        if value.is_empty() {
            return Err(invalid_variable("CNI_ARGS", format!("has no {key}")));
        }
    }
    let prefix = prefix(config.veth_prefix.as_deref())?;
    Ok(Request::Add(AddRequest {
        host_veth: name::host_veth(prefix, &pod.namespace, &pod.name),
        mtu: mtu(config.mtu.as_ref())?,
        policy_ready: config
            .policy_ready
            .map(PolicyReady::parse)
            .transpose()
            .map_err(invalid_config)?,
        sandbox,
        pod,
    }))
}

/// A list that is missing is not one that is empty: nothing would be left.
fn gc(config: Config) -> Result<GcRequest, CniError> {
    let network = network(&config)?;
    let valid = config.valid_attachments.ok_or_else(|| {
        invalid_config(
            "GC needs cni.dev/valid-attachments: without it every pod would lose its address",
        )
    })?;
    let valid = serde_json::from_value(valid)
        .map_err(|error| invalid_config(format!("cni.dev/valid-attachments: {error}")))?;
    Ok(GcRequest { network, valid })
}

fn network(config: &Config) -> Result<String, CniError> {
    match config.name.as_deref() {
        None | Some("") => Err(invalid_config("the network has no name")),
        Some(name) => Ok(name.to_owned()),
    }
}

fn sandbox(environment: &Environment, config: &Config) -> Result<Sandbox, CniError> {
    let network = network(config)?;
    let id = &environment.container_id;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if id.is_empty() {
        return Err(invalid_variable("CNI_CONTAINERID", "is not set"));
    }
    if !id.starts_with(|c: char| c.is_ascii_alphanumeric()) || !id.chars().all(fits) {
        let problem = format!("is {id:?}: letters, digits, '_', '.' and '-' only");
        return Err(invalid_variable("CNI_CONTAINERID", problem));
    }
    let link = &environment.if_name;
    if link.is_empty() {
        return Err(invalid_variable("CNI_IFNAME", "is not set"));
    }
    let strange = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if link.len() > LONGEST_LINK_NAME || link == "." || link == ".." || link.contains(strange) {
        let problem = format!("is {link:?}, which cannot be the name of a link");
        return Err(invalid_variable("CNI_IFNAME", problem));
    }
    Ok(Sandbox {
        network,
        container_id: id.clone(),
        if_name: link.clone(),
        netns: environment.netns.clone(),
    })
}

/// The keys that we know, in whatever order; others are ignored (`IgnoreUnknown=1` is always sent).
fn pod(args: &str) -> Pod {
    let mut pod = Pod::default();
    for (key, value) in args.split(';').filter_map(|pair| pair.split_once('=')) {
        match key {
            "K8S_POD_NAMESPACE" => pod.namespace = value.into(),
            "K8S_POD_NAME" => pod.name = value.into(),
            "K8S_POD_UID" => pod.uid = value.into(),
            "K8S_POD_INFRA_CONTAINER_ID" => pod.infra_container_id = value.into(),
            _ => {}
        }
    }
    pod
}

fn prefix(prefix: Option<&str>) -> Result<&str, CniError> {
    let prefix = match prefix {
        None | Some("") => DEFAULT_PREFIX,
        Some(prefix) => prefix,
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if prefix.len() > LONGEST_PREFIX
        || !prefix.chars().all(fits)
        || TAKEN_PREFIXES.contains(&prefix)
    {
        return Err(invalid_config(format!(
            "vethPrefix is {prefix:?}: at most {LONGEST_PREFIX} letters, digits, '_' or '-', \
             and not one of eth, vlan, lo"
        )));
    }
    Ok(prefix)
}

fn mtu(mtu: Option<&TextOrNumber>) -> Result<u32, CniError> {
    let (text, number) = match mtu {
        None => return Ok(DEFAULT_MTU),
        Some(TextOrNumber::Text(text)) if text.is_empty() => return Ok(DEFAULT_MTU),
        Some(TextOrNumber::Text(text)) => (text.clone(), text.parse().ok()),
        Some(TextOrNumber::Number(number)) => (number.to_string(), u32::try_from(*number).ok()),
    };
    number
        .filter(|mtu| MTU_BOUNDS.contains(mtu))
        .ok_or_else(|| {
            let (least, most) = (MTU_BOUNDS.start(), MTU_BOUNDS.end());
            invalid_config(format!("mtu is {text:?}: {least} to {most} bytes"))
        })
}

fn log_config(config: &Config) -> LogConfig {
    let level = config.plugin_log_level.as_deref().and_then(Level::find);
    LogConfig {
        file: match config.plugin_log_file.as_deref() {
            None | Some("") => Some(DEFAULT_LOG_FILE.into()),
            Some("stdout" | "stderr") => None,
            Some(path) => Some(path.into()),
        },
        level: level.unwrap_or(DEFAULT_LOG_LEVEL),
    }
}

fn unknown_version(found: Option<&str>) -> CniError {
    let spoken = Version::ALL.map(Version::as_str).join(", ");
    let found = match found {
        None | Some("") => "the network configuration has no cniVersion".to_owned(),
        Some(version) => format!("the network configuration says cniVersion {version:?}"),
    };
    CniError::new(
        Code::IncompatibleVersion,
        "incompatible CNI version",
        format!("{found}; this plugin speaks {spoken}"),
    )
}

fn invalid_variable(variable: &str, problem: impl std::fmt::Display) -> CniError {
    CniError::new(
        Code::InvalidEnvironment,
        "invalid environment",
        format!("{variable} {problem}"),
    )
}

fn invalid_config(problem: impl Into<String>) -> CniError {
    CniError::new(
        Code::InvalidConfig,
        "invalid network configuration",
        problem,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"cniVersion":"1.1.0","name":"aws-cni","type":"aws-cni","vethPrefix":"eni","mtu":"1500","podSGEnforcingMode":"strict","pluginLogFile":"/tmp/x.log","pluginLogLevel":"INFO"}"#;

    fn environment(command: &str) -> Environment {
        Environment {
            command: command.into(),
            container_id: "0123abcd".into(),
            netns: "/var/run/netns/cni-1".into(),
            if_name: "eth0".into(),
            args: "K8S_POD_UID=u;IgnoreUnknown=1;K8S_POD_NAME=web-0;K8S_POD_NAMESPACE=default"
                .into(),
        }
    }

    fn error(environment: &Environment, stdin: &str) -> CniError {
        parse(environment, stdin.as_bytes()).request.unwrap_err()
    }

    #[test]
    fn an_add_in_awss_form_is_understood() {
        let parsed = parse(&environment("ADD"), CONFIG.as_bytes());
        assert_eq!(parsed.version, Version::V1_1_0);
        assert_eq!(
            parsed.log,
            LogConfig {
                file: Some("/tmp/x.log".into()),
                level: Level::Info
            }
        );
        let Ok(Request::Add(add)) = parsed.request else {
            panic!("{:?}", parsed.request);
        };
        assert_eq!(add.host_veth, "eni0d7763386da");
        assert_eq!(add.mtu, 1500);
        assert_eq!(add.pod.uid, "u");
        assert_eq!(add.sandbox.network, "aws-cni");
    }

    #[test]
    fn every_bad_variable_is_named_with_code_4() {
        let change = |change: &dyn Fn(&mut Environment)| {
            let mut environment = environment("ADD");
            change(&mut environment);
            error(&environment, CONFIG)
        };
        for (variable, error) in [
            ("CNI_COMMAND", change(&|e| e.command.clear())),
            ("CNI_COMMAND", change(&|e| e.command = "PLUS".into())),
            ("CNI_CONTAINERID", change(&|e| e.container_id.clear())),
            (
                "CNI_CONTAINERID",
                change(&|e| e.container_id = "a/b".into()),
            ),
            ("CNI_CONTAINERID", change(&|e| e.container_id = "-a".into())),
            ("CNI_IFNAME", change(&|e| e.if_name.clear())),
            ("CNI_IFNAME", change(&|e| e.if_name = "..".into())),
            (
                "CNI_IFNAME",
                change(&|e| e.if_name = "eth0123456789abc".into()),
            ),
            ("CNI_NETNS", change(&|e| e.netns.clear())),
            ("CNI_ARGS", change(&|e| e.args.clear())),
            (
                "CNI_ARGS",
                change(&|e| e.args = "K8S_POD_NAME=web-0".into()),
            ),
        ] {
            assert_eq!(error.code, Code::InvalidEnvironment, "{error}");
            assert!(error.details.starts_with(variable), "{error}");
        }
    }

    #[test]
    fn values_that_cannot_be_are_refused_with_code_7() {
        for (field, value) in [
            ("mtu", r#""575""#),
            ("mtu", r#""9002""#),
            ("mtu", r#""big""#),
            ("mtu", "4294968796"),
            ("vethPrefix", r#""toolong""#),
            ("vethPrefix", r#""eth""#),
            ("vethPrefix", r#""a/b""#),
            ("name", r#""""#),
            ("policyReady", r#"{"directory":"run"}"#),
        ] {
            let mut config: serde_json::Value = serde_json::from_str(CONFIG).unwrap();
            config[field] = serde_json::from_str(value).unwrap();
            let error = error(&environment("ADD"), &config.to_string());
            assert_eq!(error.code, Code::InvalidConfig, "{field} {value}: {error}");
        }
    }

    #[test]
    fn a_configuration_without_a_version_is_told_which_ones_there_are() {
        for (version, says) in [("", "no cniVersion"), ("2.0.0", "\"2.0.0\"")] {
            let config = format!(r#"{{"name":"aws-cni","cniVersion":"{version}"}}"#);
            let error = error(&environment("ADD"), &config);
            assert_eq!(error.code, Code::IncompatibleVersion);
            assert!(error.details.contains(says), "{error}");
            assert!(
                error
                    .details
                    .contains("0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"),
                "{error}"
            );
        }
    }

    #[test]
    fn commands_exist_from_the_version_that_brought_them() {
        for (command, version, exists) in [
            ("CHECK", "0.3.1", false),
            ("STATUS", "1.0.0", false),
            ("STATUS", "1.1.0", true),
            ("GC", "1.0.0", false),
            ("GC", "1.1.0", true),
            ("DEL", "0.1.0", true),
        ] {
            let config = format!(
                r#"{{"name":"aws-cni","cniVersion":"{version}","cni.dev/valid-attachments":[]}}"#
            );
            let parsed = parse(&environment(command), config.as_bytes());
            assert_eq!(parsed.request.is_ok(), exists, "{command} at {version}");
        }
    }

    #[test]
    fn a_gc_without_a_list_of_what_is_to_stay_is_refused() {
        let gc = |rest: &str| {
            let config = format!(r#"{{"name":"aws-cni","cniVersion":"1.1.0"{rest}}}"#);
            parse(&environment("GC"), config.as_bytes()).request
        };
        for missing in ["", r#","cni.dev/valid-attachments":null"#] {
            let error = gc(missing).unwrap_err();
            assert_eq!(error.code, Code::InvalidConfig, "{missing}");
            assert!(error.details.contains("valid-attachments"), "{error}");
        }
        for strange in ["7", r#"[{"containerID":"c1"}]"#] {
            let error = gc(&format!(r#","cni.dev/valid-attachments":{strange}"#)).unwrap_err();
            assert_eq!(error.code, Code::InvalidConfig, "{strange}");
        }
        let listed = r#","cni.dev/valid-attachments":[{"containerID":"c1","ifname":"eth0"}]"#;
        let expected = GcRequest {
            network: "aws-cni".into(),
            valid: vec![Attachment {
                container_id: "c1".into(),
                if_name: "eth0".into(),
            }],
        };
        assert_eq!(gc(listed).unwrap(), Request::Gc(expected));
    }

    #[test]
    fn a_del_with_nothing_but_a_sandbox_is_a_request_whatever_its_prev_result_is() {
        let mut environment = environment("DEL");
        environment.netns.clear();
        environment.args.clear();
        for prev_result in ["null", "7", r#"{"ips":"none"}"#] {
            let mut config: serde_json::Value = serde_json::from_str(CONFIG).unwrap();
            config["prevResult"] = serde_json::from_str(prev_result).unwrap();
            let Ok(Request::Del(del)) = parse(&environment, config.to_string().as_bytes()).request
            else {
                panic!("{prev_result}");
            };
            assert_eq!(del.prev_result, None);
        }
    }
}
