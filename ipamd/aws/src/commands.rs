//! What a person calls by hand, or a script that sets a node up.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use selvage_ipamd::config::Config;
use selvage_ipamd::inspect;
use selvage_ipamd::instances::{self, MaxPods};
use selvage_ipamd::support::Bundle;
use selvage_ipamd_core::cloud::Cloud;
use selvage_ipamd_core::ids::InstanceType;
use selvage_ipamd_core::limits::Limits;

use crate::{Cli, Output, aws, single_threaded};

/// The folder in a bundle.
const BUNDLE: &str = "selvage-ipamd-support";

/// Prints how many pods a kubelet should be given. Asks instance metadata where no type is named, and EC2 about a type
/// that is newer than the table.
pub(crate) fn max_pods(cli: &Cli, name: Option<&str>, output: Output) -> anyhow::Result<()> {
    let config = Config::try_from(&cli.daemon)?;
    let named = name.map(InstanceType::new);
    let known = named.as_ref().and_then(instances::find);
    let (name, limits) = match (named, known) {
        (Some(name), Some(limits)) => (name, limits),
        (named, _) => single_threaded()?.block_on(ask(cli, named))?,
    };
    let answer = MaxPods::new(&name, &limits, &config);
    match output {
        Output::Text => print(&answer.max_pods.to_string()),
        Output::Json => print(&serde_json::to_string_pretty(&answer)?),
    }
}

async fn ask(cli: &Cli, named: Option<InstanceType>) -> anyhow::Result<(InstanceType, Limits)> {
    let aws = aws(cli)?;
    let name = match named {
        Some(name) => name,
        None => aws.facts().await?.instance_type,
    };
    let limits = aws.limits(&name).await?;
    Ok((name, limits))
}

/// Prints what the daemon says of itself.
pub(crate) fn status(cli: &Cli, output: Output) -> anyhow::Result<()> {
    let config = Config::try_from(&cli.daemon)?;
    let view = single_threaded()?.block_on(inspect::status(&config.socket))?;
    match output {
        Output::Text => print(view.to_string().trim_end()),
        Output::Json => print(&serde_json::to_string_pretty(&view)?),
    }
}

/// Writes a bundle for a bug report.
pub(crate) fn support(cli: &Cli, to: &Path) -> anyhow::Result<()> {
    let config = Config::try_from(&cli.daemon)?;
    let bundle = single_threaded()?.block_on(Bundle::gather(&config));
    if to == Path::new("-") {
        bundle.write(BUNDLE, std::io::stdout().lock())?;
    } else {
        let file = File::create(to).with_context(|| format!("create {}", to.display()))?;
        bundle.write(BUNDLE, file)?;
        print(&to.display().to_string())?;
    }
    Ok(())
}

/// A reader that has gone is an error like any other.
fn print(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout().lock(), "{text}")?)
}
