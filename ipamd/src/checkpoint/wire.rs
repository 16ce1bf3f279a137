//! The two files as JSON: AWS's, and ours of what rests.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::sync::Arc;

use selvage_ipamd_core::ids::{PodKey, PodName, Timestamp};
use selvage_ipamd_core::pool::Entry;
use serde::{Deserialize, Serialize};

use super::Resting;

/// The only version of AWS's file that there is.
pub(super) const VERSION: &str = "vpc-cni-ipam/1";
/// The version of ours.
pub(super) const COOLING_VERSION: &str = "selvage-cooling/1";
/// What stands around the allocations; see [`VERSION`].
const HEAD: &[u8] = br#"{"version":"vpc-cni-ipam/1","allocations":["#;
const TAIL: &[u8] = b"]}";

/// What is wrong with a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    /// It is not what we write.
    Corrupt(String),
    /// Another version than ours.
    Foreign(String),
}

impl Wrong {
    fn json(error: serde_json::Error) -> Self {
        Wrong::Corrupt(error.to_string())
    }
}

/// Leases as AWS's agent reads them.
pub(super) fn leases_json(entries: &[Arc<Entry>]) -> serde_json::Result<Vec<u8>> {
    Leases::default().text(entries).map(<[u8]>::to_vec)
}

/// Leases as they were written last, and their text: a lease that is there still is copied from it, with its neighbours.
#[derive(Debug, Default)]
pub(super) struct Leases {
    /// In the text's order, each with the bytes it has there.
    lines: Vec<(Arc<Entry>, usize)>,
    text: Vec<u8>,
    /// The text before, to be written over.
    spare: Vec<u8>,
}

impl Leases {
    /// Leases as AWS's agent reads them; `entries` in order of their keys.
    pub(super) fn text(&mut self, entries: &[Arc<Entry>]) -> serde_json::Result<&[u8]> {
        let before = std::mem::take(self);
        self.lines.reserve(entries.len());
        self.text = before.spare;
        self.text.clear();
        self.text.extend_from_slice(HEAD);
        let mut old = before.lines.into_iter().peekable();
        // Where the next old line begins, and those before it that are still to be copied.
        let mut at = HEAD.len();
        let mut kept = at..at;
        for entry in entries {
            while let Some((_, length)) =
                old.next_if(|(old, _)| !Arc::ptr_eq(old, entry) && old.key <= entry.key)
            {
                self.copy(&before.text, kept);
                at += length + 1;
                kept = at..at;
            }
            if let Some((old, length)) = old.next_if(|(old, _)| Arc::ptr_eq(old, entry)) {
                self.lines.push((old, length));
                kept.end = at + length;
                at += length + 1;
            } else {
                self.copy(&before.text, kept);
                kept = at..at;
                let start = self.text.len();
                serde_json::to_writer(&mut self.text, &Allocation::of(entry))?;
                self.lines.push((entry.clone(), self.text.len() - start));
                self.text.push(b',');
            }
        }
        self.copy(&before.text, kept);
        self.text.pop_if(|last| *last == b',');
        self.text.extend_from_slice(TAIL);
        self.spare = before.text;
        Ok(&self.text)
    }

    fn copy(&mut self, before: &[u8], lines: Range<usize>) {
        if !lines.is_empty() {
            self.text.extend_from_slice(&before[lines]);
            self.text.push(b',');
        }
    }
}

/// What AWS's agent or ours wrote; ours of before wrote into it what rests.
pub(super) fn parse_leases(text: &[u8]) -> Result<(Vec<Arc<Entry>>, Resting), Wrong> {
    expect_version(text, VERSION)?;
    let document: Document = serde_json::from_slice(text).map_err(Wrong::json)?;
    let entries = document
        .allocations
        .into_iter()
        .map(|one| one.entry().map(Arc::new));
    let entries = entries.collect::<Result<_, _>>().map_err(Wrong::Corrupt)?;
    let cooling = document.cooling.into_iter();
    let cooling = cooling.map(|c| (IpAddr::V4(c.ipv4), Timestamp::from_unix_nanos(c.until)));
    Ok((entries, cooling.collect()))
}

/// What rests, and until when.
pub(super) fn cooling_json(resting: &[(IpAddr, Timestamp)]) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&CoolingDocument {
        version: COOLING_VERSION.into(),
        cooling: resting
            .iter()
            .map(|(address, until)| Rest {
                address: *address,
                until: until.unix_nanos(),
            })
            .collect(),
    })
}

/// What [`cooling_json`] wrote.
pub(super) fn parse_cooling(text: &[u8]) -> Result<Resting, Wrong> {
    expect_version(text, COOLING_VERSION)?;
    let document: CoolingDocument = serde_json::from_slice(text).map_err(Wrong::json)?;
    let cooling = document.cooling.into_iter();
    Ok(cooling
        .map(|one| (one.address, Timestamp::from_unix_nanos(one.until)))
        .collect())
}

/// The version first: what a later version holds need not look like ours.
fn expect_version(text: &[u8], version: &str) -> Result<(), Wrong> {
    let head: Head = serde_json::from_slice(text).map_err(Wrong::json)?;
    if head.version == version {
        Ok(())
    } else {
        Err(Wrong::Foreign(head.version))
    }
}

#[derive(Serialize, Deserialize)]
struct CoolingDocument<'a> {
    version: Cow<'a, str>,
    cooling: Vec<Rest>,
}

#[derive(Serialize, Deserialize)]
struct Rest {
    address: IpAddr,
    /// Unix time in nanoseconds.
    until: u64,
}

#[derive(Deserialize)]
struct Head {
    version: String,
}

/// Behind its version, which [`Head`] reads. To be read: it is written by [`Leases`].
#[derive(Deserialize)]
struct Document<'a> {
    // Go writes an empty list as null.
    #[serde(borrow, default, deserialize_with = "null_is_empty")]
    allocations: Vec<Allocation<'a>>,
    #[serde(rename = "selvageCooling", default)]
    cooling: Vec<OldCooling>,
}

#[derive(Serialize, Deserialize)]
struct Allocation<'a> {
    #[serde(rename = "networkName")]
    network_name: Cow<'a, str>,
    #[serde(rename = "containerID")]
    container_id: Cow<'a, str>,
    #[serde(rename = "ifName")]
    if_name: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ipv4: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ipv6: Option<Cow<'a, str>>,
    #[serde(rename = "allocationTimestamp", default)]
    allocation_timestamp: i64,
    #[serde(borrow, default)]
    metadata: Metadata<'a>,
}

#[derive(Serialize, Deserialize, Default)]
struct Metadata<'a> {
    #[serde(
        rename = "k8sPodNamespace",
        default,
        skip_serializing_if = "str::is_empty"
    )]
    namespace: Cow<'a, str>,
    #[serde(rename = "k8sPodName", default, skip_serializing_if = "str::is_empty")]
    name: Cow<'a, str>,
    #[serde(rename = "interfacesCount", default)]
    interfaces: u32,
}

/// Until 0.1 this was in AWS's file.
#[derive(Deserialize)]
struct OldCooling {
    ipv4: Ipv4Addr,
    until: u64,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Vec<Allocation<'de>>, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

impl<'a> Allocation<'a> {
    fn of(entry: &'a Entry) -> Self {
        let (ipv4, ipv6) = match entry.address {
            IpAddr::V4(address) => (Some(address.to_string().into()), None),
            IpAddr::V6(address) => (None, Some(address.to_string().into())),
        };
        Allocation {
            network_name: Cow::Borrowed(&entry.key.network_name),
            container_id: Cow::Borrowed(&entry.key.container_id),
            if_name: Cow::Borrowed(&entry.key.if_name),
            ipv4,
            ipv6,
            allocation_timestamp: i64::try_from(entry.since.unix_nanos()).unwrap_or(i64::MAX),
            metadata: Metadata {
                namespace: Cow::Borrowed(&entry.pod.namespace),
                name: Cow::Borrowed(&entry.pod.name),
                interfaces: 1,
            },
        }
    }

    fn entry(self) -> Result<Entry, String> {
        let key = PodKey {
            network_name: self.network_name.into_owned(),
            container_id: self.container_id.into_owned(),
            if_name: self.if_name.into_owned(),
        };
        if self.metadata.interfaces > 1 {
            return Err(format!(
                "{key} has {} interfaces: written by a node with several network cards",
                self.metadata.interfaces
            ));
        }
        // Go leaves out the field of the other family, or writes it empty.
        let ipv4 = self.ipv4.filter(|text| !text.is_empty());
        let ipv6 = self.ipv6.filter(|text| !text.is_empty());
        let address = match (ipv4, ipv6) {
            (Some(text), None) => text.parse().map(IpAddr::V4).map_err(|_| text),
            (None, Some(text)) => text.parse().map(IpAddr::V6).map_err(|_| text),
            (Some(_), Some(_)) => return Err(format!("{key} has an address of either family")),
            (None, None) => Err(Cow::Borrowed("")),
        };
        let address = address.map_err(|text| format!("{key} has the address {text:?}"))?;
        Ok(Entry {
            key,
            pod: PodName {
                namespace: self.metadata.namespace.into_owned(),
                name: self.metadata.name.into_owned(),
            },
            address,
            since: Timestamp::from_unix_nanos(
                u64::try_from(self.allocation_timestamp).unwrap_or_default(),
            ),
        })
    }
}
