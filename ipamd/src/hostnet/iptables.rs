//! The iptables tools and `nft`: which of them the node uses, and running them. The only file that starts processes.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use selvage_nodenet::rule::Family;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::HostError;

/// One run, the wait for the lock of the legacy tools included.
const DEADLINE: Duration = Duration::from_secs(20);
/// Seconds to wait for that lock.
const LOCK_WAIT: &str = "5";

/// Which tables of the kernel: the tools of one do not see the other's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Backend {
    /// Whatever `iptables` is; there are no tools by name.
    Plain,
    /// `iptables-nft`.
    Nft,
    /// `iptables-legacy`.
    Legacy,
}

/// The tools of one backend and family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Iptables {
    backend: Backend,
    family: Family,
}

impl Iptables {
    pub(super) fn new(backend: Backend, family: Family) -> Self {
        Self { backend, family }
    }

    pub(super) fn tool(&self) -> &'static str {
        match (self.family, self.backend) {
            (Family::V4, Backend::Plain) => "iptables",
            (Family::V4, Backend::Nft) => "iptables-nft",
            (Family::V4, Backend::Legacy) => "iptables-legacy",
            (Family::V6, Backend::Plain) => "ip6tables",
            (Family::V6, Backend::Nft) => "ip6tables-nft",
            (Family::V6, Backend::Legacy) => "ip6tables-legacy",
        }
    }

    /// The tools of the other backend, if there are any and this table of theirs exists: what is in it counts too.
    pub(super) fn other(&self, table: &str) -> Option<Self> {
        let backend = match self.backend {
            Backend::Plain => return None,
            Backend::Nft => Backend::Legacy,
            Backend::Legacy => Backend::Nft,
        };
        let other = Self { backend, ..*self };
        (in_path(other.tool()) && other.has_table(table)).then_some(other)
    }

    /// Whether a table may be looked at. To list a legacy table that nobody uses is to make it, hooks and all.
    fn has_table(&self, table: &str) -> bool {
        let names = match (self.backend, self.family) {
            (Backend::Plain | Backend::Nft, _) => return true,
            (Backend::Legacy, Family::V4) => "/proc/net/ip_tables_names",
            (Backend::Legacy, Family::V6) => "/proc/net/ip6_tables_names",
        };
        let names = std::fs::read_to_string(names).unwrap_or_default();
        names.lines().any(|name| name == table)
    }

    /// The rules of one chain as the tool writes them (`-P`, `-N` and `-A` lines); `None` if there is no such chain.
    pub(super) async fn list(
        &self,
        table: &str,
        chain: &str,
    ) -> Result<Option<Vec<String>>, HostError> {
        if !self.has_table(table) {
            return Ok(None);
        }
        let tool = self.tool();
        let arguments = ["-w", LOCK_WAIT, "-t", table, "-S", chain];
        let done = run(tool, &arguments, None).await?;
        match done.status {
            0 => Ok(Some(done.out.lines().map(str::to_owned).collect())),
            // 1: "No chain/target/match by that name", in the words of both tools.
            1 if done.words.contains("No chain") || done.words.contains("does not exist") => {
                Ok(None)
            }
            // What iptables-nft 1.8.9 says of a chain that does not exist in a table that does not either, and of one
            // that only `nft` can show.
            1 if done.words.contains("is incompatible") && !self.holds(table, chain).await? => {
                Ok(None)
            }
            _ => Err(done.error(tool, &arguments)),
        }
    }

    /// Whether the table has such a chain, by the list of everything in it.
    async fn holds(&self, table: &str, chain: &str) -> Result<bool, HostError> {
        let tool = format!("{}-save", self.tool());
        let arguments = ["-t", table];
        let done = run(&tool, &arguments, None).await?;
        if done.status != 0 || done.out.contains("is incompatible") {
            return Err(done.error(&tool, &arguments));
        }
        let declared = format!(":{chain} ");
        Ok(done.out.lines().any(|line| line.starts_with(&declared)))
    }

    /// Replaces the chains that `text` declares and adds the rules it has, all at once or not at all. Everything else
    /// stays.
    pub(super) async fn restore(&self, text: &str) -> Result<(), HostError> {
        let tool = format!("{}-restore", self.tool());
        let arguments = ["-w", LOCK_WAIT, "--noflush"];
        let done = run(&tool, &arguments, Some(text)).await?;
        if done.status == 0 {
            Ok(())
        } else {
            Err(done.error(&tool, &arguments))
        }
    }
}

/// The backend that the node's own agents use, as AWS's wrapper finds it: the kubelet's or kube-proxy's chains say so,
/// else the number of legacy rules.
pub(super) async fn choose(family: Family) -> Result<Iptables, HostError> {
    let tools = |backend| Iptables::new(backend, family);
    let (nft, legacy) = (tools(Backend::Nft), tools(Backend::Legacy));
    match (in_path(nft.tool()), in_path(legacy.tool())) {
        (false, false) => return Ok(tools(Backend::Plain)),
        (true, false) => return Ok(nft),
        (false, true) => return Ok(legacy),
        (true, true) => {}
    }
    if kubernetes_was_here(nft).await? {
        return Ok(nft);
    }
    if kubernetes_was_here(legacy).await? {
        return Ok(legacy);
    }
    let saved = run(&format!("{}-save", legacy.tool()), &[], None).await?;
    let rules = saved.out.lines().filter(|l| l.starts_with("-A")).count();
    Ok(if rules >= 10 { legacy } else { nft })
}

async fn kubernetes_was_here(tables: Iptables) -> Result<bool, HostError> {
    for chain in [
        "KUBE-IPTABLES-HINT",
        "KUBE-KUBELET-CANARY",
        "KUBE-PROXY-CANARY",
    ] {
        if tables.list("mangle", chain).await?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The names of nft's IPv4 tables; none without the tool.
pub(super) async fn nft_tables() -> Result<Vec<String>, HostError> {
    if !in_path("nft") {
        return Ok(Vec::new());
    }
    let listed = nft(&["list", "tables", "ip"], None).await?;
    let names = listed.lines().filter_map(|l| l.strip_prefix("table ip "));
    Ok(names.map(str::to_owned).collect())
}

/// A table's content, without counters.
pub(super) async fn nft_list(table: &str) -> Result<String, HostError> {
    nft(&["--stateless", "list", "table", "ip", table], None).await
}

/// Carries out a script, all of it or nothing.
pub(super) async fn nft_apply(script: &str) -> Result<(), HostError> {
    nft(&["--file", "-"], Some(script)).await.map(|_| ())
}

/// The chains of all tables with their hooks and policies, without rules; none without the tool.
pub(super) async fn nft_chains() -> Result<String, HostError> {
    if !in_path("nft") {
        return Ok(String::new());
    }
    nft(&["list", "chains"], None).await
}

/// The rules of one chain.
pub(super) async fn nft_chain(family: &str, table: &str, chain: &str) -> Result<String, HostError> {
    nft(
        &["--stateless", "list", "chain", family, table, chain],
        None,
    )
    .await
}

async fn nft(arguments: &[&str], input: Option<&str>) -> Result<String, HostError> {
    let done = run("nft", arguments, input).await?;
    if done.status == 0 {
        Ok(done.out)
    } else {
        Err(done.error("nft", arguments))
    }
}

/// What the tools of every backend show, by the command that shows it, for a bug report.
pub(crate) async fn dump() -> Vec<(String, Result<String, HostError>)> {
    let commands: [(&str, &[&str]); 7] = [
        ("iptables-nft-save", &["-c"]),
        ("iptables-legacy-save", &["-c"]),
        ("ip6tables-nft-save", &["-c"]),
        ("ip6tables-legacy-save", &["-c"]),
        ("iptables", &["--version"]),
        ("nft", &["list", "table", "ip", "aws-cni"]),
        ("nft", &["list", "tables"]),
    ];
    let mut shown = Vec::new();
    for (tool, arguments) in commands {
        let answer = run(tool, arguments, None).await;
        let answer = answer.and_then(|done| match done.status {
            0 => Ok(done.out),
            _ => Err(done.error(tool, arguments)),
        });
        shown.push((format!("{tool} {}", arguments.join(" ")), answer));
    }
    shown
}

fn in_path(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory: PathBuf| directory.join(tool))
        .any(|file| file.is_file())
}

struct Done {
    status: i32,
    out: String,
    words: String,
}

impl Done {
    fn error(self, tool: &str, arguments: &[&str]) -> HostError {
        HostError::Iptables {
            command: format!("{tool} {}", arguments.join(" ")),
            words: format!("exit status {}: {}", self.status, self.words.trim()),
        }
    }
}

async fn run(tool: &str, arguments: &[&str], input: Option<&str>) -> Result<Done, HostError> {
    let command = || format!("{tool} {}", arguments.join(" "));
    let failed = |error: std::io::Error| HostError::Iptables {
        command: command(),
        words: error.to_string(),
    };
    let mut child = Command::new(tool)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(if input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let stdin = child.stdin.take();
    let work = async {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            // A tool that refuses early closes its end; its words say why.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(DEADLINE, work)
        .await
        .map_err(|_| HostError::IptablesTimeout {
            command: command(),
            after: DEADLINE,
        })?
        .map_err(failed)?;
    Ok(Done {
        status: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        words: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
