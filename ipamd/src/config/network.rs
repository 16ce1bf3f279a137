//! Settings of the host's and the pods' network.

use std::num::NonZeroU32;

use super::setting::{BadSetting, Setting};
use super::{Args, Family, RandomizeSnat};

/// 576 and 1280: what every host must take in (RFC 791, RFC 8200); 9001: EC2's largest.
fn mtu(setting: &Setting<'_>, family: Family) -> Result<Option<u32>, BadSetting> {
    let least = match family {
        Family::V4 => 576,
        Family::V6 => 1280,
    };
    setting.count(least, 9001)
}

pub(super) fn eni_mtu(args: &Args, family: Family) -> Result<u32, BadSetting> {
    let setting = Setting::new("AWS_VPC_ENI_MTU", &args.eni_mtu, "9001");
    Ok(mtu(&setting, family)?.unwrap_or(9001))
}

pub(super) fn pod_mtu(args: &Args, family: Family) -> Result<Option<u32>, BadSetting> {
    mtu(
        &Setting::new("POD_MTU", &args.pod_mtu, "as AWS_VPC_ENI_MTU"),
        family,
    )
}

pub(super) fn randomize(args: &Args) -> Result<RandomizeSnat, BadSetting> {
    let setting = Setting::new("AWS_VPC_K8S_CNI_RANDOMIZESNAT", &args.randomizesnat, "prng");
    match setting.text() {
        "prng" => Ok(RandomizeSnat::Prng),
        "hashrandom" => Ok(RandomizeSnat::Hash),
        "none" => Ok(RandomizeSnat::None),
        _ => Err(setting.bad("want prng, hashrandom or none")),
    }
}

/// Decimal, or hexadecimal after `0x`.
pub(super) fn connmark(args: &Args) -> Result<NonZeroU32, BadSetting> {
    let setting = Setting::new("AWS_VPC_K8S_CNI_CONNMARK", &args.connmark, "0x80");
    let text = setting.text();
    let mark = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    mark.ok()
        .and_then(NonZeroU32::new)
        .ok_or_else(|| setting.bad("want a number from 1 (0x1) to 4294967295 (0xffffffff)"))
}

/// The prefix becomes part of rules: letters and digits only.
pub(super) fn veth_prefix(args: &Args) -> Result<String, BadSetting> {
    let setting = Setting::new("AWS_VPC_K8S_CNI_VETHPREFIX", &args.vethprefix, "eni");
    let prefix = setting.text();
    let plain = prefix.len() <= 4 && prefix.bytes().all(|b| b.is_ascii_alphanumeric());
    if !plain || ["eth", "lo", "vlan"].contains(&prefix) {
        return Err(setting.bad("want 1 to 4 letters and digits, not eth, lo or vlan"));
    }
    Ok(prefix.to_owned())
}

pub(super) fn policy_mode(args: &Args) -> Result<String, BadSetting> {
    let setting = Setting::new(
        "NETWORK_POLICY_ENFORCING_MODE",
        &args.network_policy_enforcing_mode,
        "",
    );
    match setting.text() {
        mode @ ("" | "none" | "standard" | "strict") => Ok(mode.to_owned()),
        _ => Err(setting.bad("want none, standard or strict")),
    }
}
