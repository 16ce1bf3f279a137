//! The tables of iptables and nft: looks, decides by [`super::filter`], [`super::forward`] and [`super::nft`], writes.

use tracing::info;

use super::filter::{self, Marking, Table};
use super::iptables::{self, Iptables};
use super::{Change, HostError, NodeNet, Part, Pods, PodsV4, Snat, forward, nft};

/// What the last look was about.
#[derive(Debug, Default)]
pub(super) struct Tables {
    tools: Option<Iptables>,
    /// The nft script that was carried out, and what the table looked like then.
    nft: Option<(String, String)>,
    /// Chains of an older aws-node were looked for with these tools.
    swept: Option<Iptables>,
}

impl Tables {
    /// Makes our part of every table as wanted. `primary` is the name of the primary interface's link.
    pub(super) async fn ensure(
        &mut self,
        node: &NodeNet,
        primary: &str,
    ) -> Result<Vec<Change>, HostError> {
        let tools = iptables::choose(node.family()).await?;
        let before = self.tools.replace(tools);
        if before != Some(tools) {
            info!(tools = tools.tool(), "iptables");
        }
        let before = before.filter(|before| *before != tools);
        let mut changed = match &node.pods {
            Pods::V6 => Vec::new(),
            Pods::V4(pods) => self.ensure_v4(node, pods, primary, tools, before).await?,
        };
        changed.extend(ensure_forward(tools, &node.veth_prefix).await?);
        Ok(changed)
    }

    async fn ensure_v4(
        &mut self,
        node: &NodeNet,
        pods: &PodsV4,
        primary: &str,
        tools: Iptables,
        before: Option<Iptables>,
    ) -> Result<Vec<Change>, HostError> {
        let mut changed = Vec::new();
        if let Some(before) = before {
            // Rules in both would translate twice and hide from each other's listings.
            let nothing = PodsV4 {
                snat: Snat::External,
                node_port: false,
                ..pods.clone()
            };
            let tables = filter::wanted(node, &nothing, primary, Marking::Here)?;
            changed.extend(write(before, &tables).await?);
        }
        let there = iptables::nft_tables().await?;
        let marking = nft::marking(&there);
        // The new marks come before the old ones go: for a moment both are made, and they are the same.
        let script = nft::wanted(node, pods, marking)?;
        if let Some(script) = &script {
            changed.extend(ensure_nft(&mut self.nft, script, &there).await?);
        }
        let tables = filter::wanted(node, pods, primary, marking)?;
        changed.extend(write(tools, &tables).await?);
        if script.is_none() && nft::is_there(&there) {
            iptables::nft_apply(nft::REMOVE).await?;
            self.nft = None;
            changed.push(Change::new(Part::Nft, "nft table removed"));
        }
        // Now that nothing leads there.
        if self.swept != Some(tools) {
            changed.extend(sweep(tools).await?);
            self.swept = Some(tools);
        }
        Ok(changed)
    }
}

/// Accepts pods' packets wherever a policy of FORWARD drops them: the kernel asks the tables of both kinds of tools.
async fn ensure_forward(tools: Iptables, prefix: &str) -> Result<Vec<Change>, HostError> {
    let mut changed = Vec::new();
    for tools in [Some(tools), tools.other("filter")].into_iter().flatten() {
        let lines = tools.list("filter", "FORWARD").await?.unwrap_or_default();
        changed.extend(write(tools, &[forward::wanted(prefix, &lines)]).await?);
    }
    Ok(changed)
}

/// Makes tables as wanted; each in one transaction.
async fn write(tools: Iptables, tables: &[Table]) -> Result<Vec<Change>, HostError> {
    let mut changed = Vec::new();
    for table in tables {
        let listed = list(tools, table).await?;
        let look = |chain: &str| {
            listed
                .iter()
                .find(|(name, _)| name == chain)
                .and_then(|(_, lines)| lines.as_deref())
        };
        if let Some(text) = filter::transaction(table, &look) {
            tools.restore(&text).await?;
            let what = format!("{} table ({})", table.name, tools.tool());
            changed.push(Change::new(table.part, what));
        }
    }
    Ok(changed)
}

/// Removes the chains -1 to -N that aws-node made before 1.16.1, one for each block.
async fn sweep(tools: Iptables) -> Result<Option<Change>, HostError> {
    let mut old = Vec::new();
    for chain in [filter::SNAT_CHAIN, filter::CONNMARK_CHAIN] {
        let stem = chain.trim_end_matches('0');
        let mut number = 1;
        loop {
            let name = format!("{stem}{number}");
            if tools.list("nat", &name).await?.is_none() {
                break;
            }
            old.push(name);
            number += 1;
        }
    }
    let Some(text) = filter::removal(&old) else {
        return Ok(None);
    };
    tools.restore(&text).await?;
    let what = format!("chains of an older aws-node removed: {}", old.join(", "));
    Ok(Some(Change::new(Part::Nat, what)))
}

/// Makes nft's table as wanted, if it is not what the same script left the last time.
async fn ensure_nft(
    last: &mut Option<(String, String)>,
    script: &str,
    there: &[String],
) -> Result<Option<Change>, HostError> {
    if let Some((done, left)) = last.as_ref().filter(|_| nft::is_there(there))
        && done == script
        && *left == iptables::nft_list(nft::TABLE).await?
    {
        return Ok(None);
    }
    iptables::nft_apply(script).await?;
    *last = Some((script.to_owned(), iptables::nft_list(nft::TABLE).await?));
    Ok(Some(Change::new(Part::Nft, "nft table")))
}

type Listings = Vec<(String, Option<Vec<String>>)>;

async fn list(tools: Iptables, table: &Table) -> Result<Listings, HostError> {
    let own = table.chains.iter().map(|c| c.name);
    let others = table.guests.iter().map(|g| g.chain);
    let mut listings = Vec::new();
    for chain in own.chain(others) {
        listings.push((chain.to_owned(), tools.list(table.name, chain).await?));
    }
    Ok(listings)
}
