//! What EC2's instance types can hold, from a table: a start needs no answer of EC2 for them, and a kubelet can be told
//! how many pods its node takes before anything runs on it.

use selvage_ipamd_core::ids::InstanceType;
use selvage_ipamd_core::limits::{Limits, Mode};
use serde::Serialize;

use crate::config::{Config, Family};

/// See the first lines of the file.
const TABLE: &str = include_str!("instances.txt");

/// What the table says of a type, `None` for one that is newer than the table.
///
/// *Cost*: a walk through 20 KB of text.
pub fn find(instance_type: &InstanceType) -> Option<Limits> {
    rows().find_map(|(limits, mut types)| {
        let listed = types.any(|name| name == instance_type.as_str());
        listed.then_some(limits)
    })
}

/// What cannot be read is left out; a test reads all of it.
fn rows() -> impl Iterator<Item = (Limits, impl Iterator<Item = &'static str>)> {
    let lines = TABLE.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| {
        let (head, types) = line.split_once(": ")?;
        let mut words = head.split(' ');
        let mut number = || words.next()?.parse().ok();
        let limits = Limits::new(number()?, number()?).ok()?;
        let limits = limits
            .with_vcpus(words.next()?.parse().ok()?)
            .with_prefixes(words.next()? == "prefixes");
        Some((limits, types.split(' ')))
    })
}

/// What pods get their addresses from, by the settings and by what the instance can: one without Nitro has no prefixes,
/// and its interfaces then hold single addresses.
pub fn mode(config: &Config, limits: &Limits) -> Mode {
    match config.family {
        Family::V6 => Mode::Ipv6,
        Family::V4 if config.prefix_delegation && limits.can_have_prefixes() => Mode::Prefixes,
        Family::V4 => Mode::Addresses,
    }
}

/// How many pods a kubelet should be given, and from what it follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MaxPods {
    /// The type.
    pub instance_type: String,
    /// What a kubelet should be given (`--max-pods`).
    pub max_pods: u32,
    /// Interfaces that can serve pods.
    pub interfaces: u32,
    /// Pod addresses on each of them; absent with IPv6, where they are no bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub addresses_per_interface: Option<u32>,
    /// What pods get their addresses from: `addresses`, `prefixes` or `ipv6`.
    pub mode: &'static str,
}

impl MaxPods {
    /// By the node's settings: prefixes where they are on and the type has them, the primary interface not counted with
    /// custom networking, `MAX_ENI`.
    pub fn new(instance_type: &InstanceType, limits: &Limits, config: &Config) -> Self {
        let custom = config.custom_networking.is_some();
        let mode = mode(config, limits);
        let limits = limits.with_enis(config.targets.enis(limits));
        Self {
            instance_type: instance_type.to_string(),
            max_pods: limits.max_pods(mode, custom),
            interfaces: limits.enis() - u32::from(custom),
            addresses_per_interface: match mode {
                Mode::Ipv6 => None,
                Mode::Addresses | Mode::Prefixes => Some(limits.pod_addresses_per_eni(mode)),
            },
            mode: match mode {
                Mode::Addresses => "addresses",
                Mode::Prefixes => "prefixes",
                Mode::Ipv6 => "ipv6",
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Args;

    fn max_pods(name: &str, change: impl FnOnce(&mut Args)) -> u32 {
        let mut args = Args::default();
        change(&mut args);
        let config = Config::try_from(&args).unwrap();
        let name = InstanceType::new(name);
        MaxPods::new(&name, &find(&name).unwrap(), &config).max_pods
    }

    fn prefixes(args: &mut Args) {
        args.enable_prefix_delegation = Some("true".into());
        args.warm_prefix_target = Some("1".into());
    }

    #[test]
    fn every_line_of_the_table_is_read_and_every_type_is_in_it_once() {
        let lines = TABLE.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(rows().count(), lines);
        let names: Vec<&str> = rows().flat_map(|(_, types)| types).collect();
        let mut once = names.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), names.len());
        assert!(names.len() > 1000, "{}", names.len());
        assert_eq!(find(&InstanceType::new("z9.large")), None);
        assert_eq!(find(&InstanceType::new("c5")), None);
    }

    #[test]
    fn a_kubelet_is_given_what_the_published_tables_say() {
        for (name, pods) in [
            ("c5.large", 29),
            ("c5.xlarge", 58),
            ("t3.small", 11),
            ("m5.4xlarge", 234),
            ("m5.16xlarge", 737),
            ("t2.micro", 4),
            ("p4d.24xlarge", 737),
        ] {
            assert_eq!(max_pods(name, |_| {}), pods, "{name}");
        }
    }

    #[test]
    fn with_prefixes_a_kubelet_is_given_what_eks_advises() {
        for (name, pods, why) in [
            ("c5.large", 110, "432 addresses, two processors"),
            ("m5.16xlarge", 250, "64 processors"),
            ("t3.micro", 34, "2 interfaces with one slot each"),
            ("m4.large", 20, "no prefixes without Nitro"),
            ("m5.metal", 250, "bare metal has them"),
        ] {
            assert_eq!(max_pods(name, prefixes), pods, "{name}: {why}");
        }
    }

    #[test]
    fn settings_that_take_interfaces_away_count() {
        let custom = |args: &mut Args| args.custom_network_cfg = Some("true".into());
        assert_eq!(max_pods("c5.large", custom), 20);
        let two = |args: &mut Args| args.max_eni = Some("2".into());
        assert_eq!(max_pods("c5.large", two), 20);
        let v6 = |args: &mut Args| {
            args.enable_ipv6 = Some("true".into());
            args.enable_prefix_delegation = Some("true".into());
        };
        assert_eq!(max_pods("c5.large", v6), 110);
    }
}
