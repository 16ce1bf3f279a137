//! The conflist as data: what is ours in it, what is others'. Decides; touches nothing.

use serde_json::{Value, json};

use super::PLUGIN;
use crate::config::Config;

/// What our plugin speaks and is in use, the newest first.
const VERSIONS: [&str; 3] = ["1.1.0", "1.0.0", OLDEST];
/// AWS's conflist is in this one; each plugin that is to be found speaks it.
const OLDEST: &str = "0.4.0";
/// Plugins that AWS's agent puts into its conflist, and that go with it.
const AWS: [&str; 2] = [PLUGIN, "egress-cni"];
const PORTMAP: &str = "portmap";
const BANDWIDTH: &str = "bandwidth";
const TUNING: &str = "tuning";

/// A conflist that is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// Its text.
    pub text: String,
    /// Plugins that are left out because the node does not have them, and what does not work without them.
    pub missing: Vec<(String, &'static str)>,
}

/// The conflist by settings and by what is `there`, which others may have added to. `has` tells whether the node has a
/// plugin, `versions` what it speaks.
///
/// *Shape*: our plugin, what we chain, what others chained, each in its order. What cannot be read is replaced: no
/// runtime could read it either.
pub fn merge(
    config: &Config,
    there: Option<&[u8]>,
    has: impl Fn(&str) -> bool,
    versions: impl Fn(&str) -> Option<Vec<String>>,
) -> Merged {
    let there: Option<Value> = there.and_then(|text| serde_json::from_slice(text).ok());
    let mut plugins = Vec::new();
    let mut missing = Vec::new();
    for Plugin { entry, without } in wanted(config, there.as_ref()) {
        match without {
            Some(without) if !has(kind(&entry)) => missing.push((kind(&entry).to_owned(), without)),
            Some(_) | None => plugins.push(entry),
        }
    }
    let version = version(there.as_ref(), &plugins, versions);
    Merged {
        text: text(there.as_ref(), version, plugins),
        missing,
    }
}

/// A plugin in the list.
struct Plugin {
    entry: Value,
    /// What does not work without it; `None`: it is in the list whether the node has it or not.
    without: Option<&'static str>,
}

/// The plugins in the order in which they are called.
fn wanted(config: &Config, there: Option<&Value>) -> Vec<Plugin> {
    let theirs: Vec<&Value> = there
        .and_then(|list| list["plugins"].as_array())
        .into_iter()
        .flatten()
        // What has no type is no plugin: no runtime takes a list with one.
        .filter(|entry| !kind(entry).is_empty() && !AWS.contains(&kind(entry)))
        .collect();
    let settings = [
        (true, portmap(), "hostPort"),
        (config.bandwidth, bandwidth(), "the bandwidth annotation"),
        (config.disable_pod_v6, no_ipv6(), "DISABLE_POD_V6"),
    ];
    let mut plugins = vec![Plugin {
        entry: own(config),
        without: None,
    }];
    for (_, entry, without) in settings.iter().filter(|(wanted, ..)| *wanted) {
        // Somebody's own settings of the same plugin do as well; two of them would do it twice.
        let kept = theirs.iter().find(|their| is_for(their, entry));
        plugins.push(Plugin {
            entry: kept.map_or(entry, |their| their).clone(),
            without: Some(without),
        });
    }
    for their in theirs {
        let done = settings.iter().any(|(wanted, entry, _)| match wanted {
            true => is_for(their, entry),
            // What an earlier setting put there, AWS's agent's too.
            false => their == entry,
        });
        if !done {
            plugins.push(Plugin {
                entry: their.clone(),
                without: None,
            });
        }
    }
    plugins
}

/// Whether an entry does what ours would. `tuning` is for anything: it must set the same.
fn is_for(their: &Value, ours: &Value) -> bool {
    match kind(ours) {
        TUNING => their == ours,
        kind_of_ours => kind(their) == kind_of_ours,
    }
}

/// The version for a list: the one that it has as long as its plugins are the same, or else the newest that each of
/// them speaks.
fn version(
    there: Option<&Value>,
    plugins: &[Value],
    versions: impl Fn(&str) -> Option<Vec<String>>,
) -> &'static str {
    let same = there.filter(|list| {
        list["plugins"]
            .as_array()
            .is_some_and(|there| there == plugins)
    });
    if let Some(list) = same
        && let Some(version) = VERSIONS.into_iter().find(|v| list["cniVersion"] == *v)
    {
        return version;
    }
    let spoken: Vec<Vec<String>> = plugins
        .iter()
        .map(kind)
        .filter(|kind| *kind != PLUGIN)
        .map(|kind| versions(kind).unwrap_or_else(|| vec![OLDEST.to_owned()]))
        .collect();
    let by_all = |version: &&str| spoken.iter().all(|one| one.iter().any(|v| v == version));
    VERSIONS.into_iter().find(by_all).unwrap_or(OLDEST)
}

/// The conflist's text. Fields of the list itself that others set are kept.
fn text(there: Option<&Value>, version: &str, plugins: Vec<Value>) -> String {
    let mut list = there
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    // AWS's plugin has no CHECK; ours has.
    list.remove("disableCheck");
    list.insert("cniVersion".into(), version.into());
    list.insert("name".into(), PLUGIN.into());
    list.insert("plugins".into(), plugins.into());
    format!("{:#}\n", Value::Object(list))
}

/// In AWS's form, so that its binary under our conflist works, too.
fn own(config: &Config) -> Value {
    let mut plugin = json!({
        "name": PLUGIN,
        "type": PLUGIN,
        "vethPrefix": config.veth_prefix,
        // A text: AWS's plugin reads nothing else.
        "mtu": config.pod_mtu.to_string(),
        "podSGEnforcingMode": "strict",
        "pluginLogFile": config.plugin_log_file,
        "pluginLogLevel": config.plugin_log_level,
        "capabilities": {"io.kubernetes.cri.pod-annotations": true},
    });
    if let Some(ready) = &config.policy_ready {
        plugin["policyReady"] = json!({
            "directory": ready.directory,
            "timeoutSeconds": ready.timeout.as_secs(),
        });
    }
    plugin
}

fn portmap() -> Value {
    json!({"type": PORTMAP, "capabilities": {"portMappings": true}, "snat": true})
}

fn bandwidth() -> Value {
    json!({"type": BANDWIDTH, "capabilities": {"bandwidth": true}})
}

fn no_ipv6() -> Value {
    json!({"type": TUNING, "sysctl": {
        "net.ipv6.conf.all.disable_ipv6": "1",
        "net.ipv6.conf.default.disable_ipv6": "1",
        "net.ipv6.conf.lo.disable_ipv6": "1",
    }})
}

fn kind(entry: &Value) -> &str {
    entry["type"].as_str().unwrap_or_default()
}
