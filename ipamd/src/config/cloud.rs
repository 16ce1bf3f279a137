//! Settings of the pool, of the cloud and of the cluster; and which of them go together.

use std::collections::BTreeMap;

use selvage_ipamd_core::plan::Targets;

use super::setting::{BadSetting, Setting, truth};
use super::{Args, Config, CustomNetworking, Family, Provisioning};

pub(super) fn targets(args: &Args) -> Result<Targets, BadSetting> {
    let unless_zero = |count: Option<u32>| count.filter(|n| *n > 0);
    let max_eni = Setting::new("MAX_ENI", &args.max_eni, "-1").number(-1, 64)?;
    let count = |name, text, default, high| Setting::new(name, text, default).count(0, high);
    let warm_ips = count("WARM_IP_TARGET", &args.warm_ip_target, "0", 4096)?;
    let minimum_ips = count("MINIMUM_IP_TARGET", &args.minimum_ip_target, "0", 4096)?;
    let max_pods = count("MAX_PODS", &args.max_pods, "by the instance", 4096)?;
    Ok(Targets {
        warm_enis: count("WARM_ENI_TARGET", &args.warm_eni_target, "1", 64)?.unwrap_or(1),
        warm_prefixes: count("WARM_PREFIX_TARGET", &args.warm_prefix_target, "0", 1024)?
            .unwrap_or(0),
        warm_ips: unless_zero(warm_ips),
        minimum_ips: unless_zero(minimum_ips),
        max_enis: unless_zero(max_eni.and_then(|n| u32::try_from(n).ok())),
        max_pods: unless_zero(max_pods),
    })
}

/// Exactly one. IPv4, unless IPv6 is asked for.
pub(super) fn family(args: &Args) -> Result<Family, BadSetting> {
    let v6 = truth("ENABLE_IPv6", &args.enable_ipv6, "false")?;
    let v4 = Setting::new(
        "ENABLE_IPv4",
        &args.enable_ipv4,
        if v6 { "false" } else { "true" },
    );
    match (v4.truth()?, v6) {
        (true, false) => Ok(Family::V4),
        (false, true) => Ok(Family::V6),
        (true, true) => Err(v4.bad("want one family: ENABLE_IPv6 is true too")),
        (false, false) => Err(v4.bad("want one family: ENABLE_IPv6 is not true either")),
    }
}

pub(super) fn custom_networking(args: &Args) -> Result<Option<CustomNetworking>, BadSetting> {
    const DEFAULT: &str = "k8s.amazonaws.com/eniConfig";
    let key = |name, text| {
        let setting = Setting::new(name, text, DEFAULT);
        match is_qualified_name(setting.text()) {
            true => Ok(setting.text().to_owned()),
            false => Err(setting.bad("want a key of Kubernetes, [domain/]name")),
        }
    };
    let annotation = key("ENI_CONFIG_ANNOTATION_DEF", &args.eni_config_annotation_def)?;
    let label = key("ENI_CONFIG_LABEL_DEF", &args.eni_config_label_def)?;
    let on = truth(
        "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG",
        &args.custom_network_cfg,
        "false",
    )?;
    Ok(on.then_some(CustomNetworking { annotation, label }))
}

/// Kubernetes's own rule for keys of labels and annotations.
fn is_qualified_name(text: &str) -> bool {
    let (domain, name) = match text.split_once('/') {
        Some((domain, name)) => (Some(domain), name),
        None => (None, text),
    };
    let edged = |part: &str| {
        let ends = [part.bytes().next(), part.bytes().next_back()];
        ends.into_iter()
            .all(|byte| byte.is_some_and(|b| b.is_ascii_alphanumeric()))
    };
    let name_ok = name.len() <= 63
        && edged(name)
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    let domain_ok = domain.is_none_or(|domain| {
        domain.len() <= 253
            && domain.split('.').all(edged)
            && domain
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
    });
    name_ok && domain_ok
}

pub(super) fn provisioning(args: &Args) -> Result<Provisioning, BadSetting> {
    let metadata_only = truth(
        "ENABLE_IMDS_ONLY_MODE",
        &args.enable_imds_only_mode,
        "false",
    )?;
    let attached_only = truth(
        "DISABLE_NETWORK_RESOURCE_PROVISIONING",
        &args.disable_network_resource_provisioning,
        "false",
    )?;
    Ok(match (metadata_only, attached_only) {
        (true, _) => Provisioning::MetadataOnly,
        (false, true) => Provisioning::AttachedOnly,
        (false, false) => Provisioning::Full,
    })
}

/// As AWS's daemon: not in IPv6, and not where nothing is provisioned.
pub(super) fn leak_cleanup(args: &Args, family: Family) -> Result<bool, BadSetting> {
    let off = truth(
        "DISABLE_LEAKED_ENI_CLEANUP",
        &args.disable_leaked_eni_cleanup,
        "false",
    )?;
    Ok(!off && family == Family::V4 && provisioning(args)? == Provisioning::Full)
}

pub(super) fn cluster(args: &Args) -> Result<String, BadSetting> {
    let setting = Setting::new("CLUSTER_NAME", &args.cluster_name, "");
    let name = setting.text();
    // 256: EC2's limit on a tag's value.
    if name.chars().count() > 256 {
        return Err(setting.bad("want at most 256 characters"));
    }
    Ok(name.to_owned())
}

/// As AWS's daemon takes it: a URL, or a host with or without a port.
pub(super) fn cluster_endpoint(args: &Args) -> Result<Option<String>, BadSetting> {
    let setting = Setting::new("CLUSTER_ENDPOINT", &args.cluster_endpoint, "");
    let Some(text) = setting.text else {
        return Ok(None);
    };
    let (scheme, rest) = text.split_once("://").unwrap_or(("https", text));
    let plain = !rest.is_empty()
        && rest
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._~:/[]%".contains(&b));
    if !plain || !["http", "https"].contains(&scheme) {
        return Err(setting.bad("want the API server's URL (https://api.example.com:443)"));
    }
    Ok(Some(format!("{scheme}://{rest}")))
}

pub(super) fn tags(args: &Args) -> Result<BTreeMap<String, String>, BadSetting> {
    let setting = Setting::new("ADDITIONAL_ENI_TAGS", &args.additional_eni_tags, "{}");
    let tags: BTreeMap<String, String> = serde_json::from_str(setting.text())
        .map_err(|e| setting.bad(format!("want a JSON object of texts: {e}")))?;
    for (key, value) in &tags {
        if key.is_empty() || key.chars().count() > 128 || value.chars().count() > 256 {
            return Err(setting.bad(format!(
                "tag {key:?}: want a key of 1 to 128 and a value of at most 256 characters"
            )));
        }
        if key.contains("k8s.amazonaws.com") {
            return Err(setting.bad(format!("tag {key:?}: k8s.amazonaws.com is reserved")));
        }
    }
    Ok(tags)
}

/// What AWS's daemon can do and we cannot is refused, not passed over: a node that looks well and lacks what was asked
/// for would be found out by its pods.
pub(super) fn refuse_unknown_modes(args: &Args) -> Result<(), BadSetting> {
    for (name, text, what) in [
        (
            "ENABLE_POD_ENI",
            &args.enable_pod_eni,
            "security groups of pods (branch interfaces)",
        ),
        (
            "ENABLE_MULTI_NIC",
            &args.enable_multi_nic,
            "interfaces on every network card",
        ),
        (
            "ENABLE_V6_EGRESS",
            &args.enable_v6_egress,
            "IPv6 for what leaves an IPv4 node",
        ),
    ] {
        let setting = Setting::new(name, text, "false");
        if setting.truth()? {
            return Err(setting.bad(format!("want false: {what} cannot be had from this ipamd")));
        }
    }
    Ok(())
}

/// Settings that are good each and bad together; the same ones that AWS's daemon does not start with.
pub(super) fn refuse_combinations(config: &Config, args: &Args) -> Result<(), BadSetting> {
    let v6 = Setting::new("ENABLE_IPv6", &args.enable_ipv6, "false");
    match config.family {
        Family::V6 if !config.prefix_delegation => {
            Err(v6.bad("IPv6 works by prefixes: want ENABLE_PREFIX_DELEGATION=true with it"))
        }
        Family::V6 if config.custom_networking.is_some() => Err(v6.bad(
            "IPv6 has no custom networking: want AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG=false with it",
        )),
        Family::V4
            if config.prefix_delegation
                && config.targets.warm_prefixes == 0
                && config.targets.warm_ips.is_none()
                && config.targets.minimum_ips.is_none() =>
        {
            Err(Setting::new(
                "ENABLE_PREFIX_DELEGATION",
                &args.enable_prefix_delegation,
                "false",
            )
            .bad(
                "prefixes need a target above 0: want WARM_PREFIX_TARGET, WARM_IP_TARGET or MINIMUM_IP_TARGET with it \
                 (WARM_PREFIX_TARGET=1 suits most nodes)",
            ))
        }
        Family::V4 | Family::V6 => Ok(()),
    }
}
