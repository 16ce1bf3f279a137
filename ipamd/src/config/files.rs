//! Settings of files, directories and pages.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::setting::{BadSetting, Setting, truth};
use super::{Args, Listen, PolicyReady};

pub(super) fn plugin_log_file(args: &Args) -> Result<String, BadSetting> {
    let setting = Setting::new(
        "AWS_VPC_K8S_PLUGIN_LOG_FILE",
        &args.plugin_log_file,
        "/var/log/aws-routed-eni/plugin.log",
    );
    let file = setting.text();
    if file == "stderr" || file.starts_with('/') {
        Ok(file.to_owned())
    } else {
        Err(setting.bad("want an absolute path or stderr (standard output is the plugin's answer)"))
    }
}

pub(super) fn plugin_log_level(args: &Args) -> Result<String, BadSetting> {
    let setting = Setting::new(
        "AWS_VPC_K8S_PLUGIN_LOG_LEVEL",
        &args.plugin_log_level,
        "Info",
    );
    let level = setting.text();
    let known = ["trace", "debug", "info", "warn", "warning", "error"];
    if known.contains(&level.to_ascii_lowercase().as_str()) {
        Ok(level.to_owned())
    } else {
        Err(setting.bad("want debug, info, warn or error"))
    }
}

pub(super) fn policy_ready(args: &Args) -> Result<Option<PolicyReady>, BadSetting> {
    // The bounds are the plugin's.
    let seconds = Setting::new(
        "POLICY_READY_TIMEOUT_SECONDS",
        &args.policy_ready_timeout_seconds,
        "20",
    )
    .count(1, 60)?;
    let setting = Setting::new("POLICY_READY_DIR", &args.policy_ready_dir, "");
    if setting.text.is_none() {
        return Ok(None);
    }
    Ok(Some(PolicyReady {
        directory: setting.path()?,
        timeout: Duration::from_secs(seconds.unwrap_or(20).into()),
    }))
}

pub(super) fn metrics_addr(args: &Args) -> Result<Option<SocketAddr>, BadSetting> {
    let setting = Setting::new("METRICS_ADDR", &args.metrics_addr, "0.0.0.0:61678");
    let addr = setting
        .text()
        .parse()
        .map_err(|_| setting.bad("want an address and a port (0.0.0.0:61678)"))?;
    let off = truth("DISABLE_METRICS", &args.disable_metrics, "false")?;
    Ok(Some(addr).filter(|_| !off))
}

pub(super) fn introspection(args: &Args) -> Result<Option<Listen>, BadSetting> {
    let setting = Setting::new(
        "INTROSPECTION_BIND_ADDRESS",
        &args.introspection_bind_address,
        "127.0.0.1:61679",
    );
    let bad = || setting.bad("want an address and a port (127.0.0.1:61679) or unix:/path");
    let listen = match setting.text().strip_prefix("unix:") {
        Some(path) if path.starts_with('/') => Listen::Unix(PathBuf::from(path)),
        Some(_) => return Err(bad()),
        None => Listen::Tcp(setting.text().parse().map_err(|_| bad())?),
    };
    let off = truth(
        "DISABLE_INTROSPECTION",
        &args.disable_introspection,
        "false",
    )?;
    Ok(Some(listen).filter(|_| !off))
}
