//! ipset's netlink messages by hand: what the daemon's own are judged by, so nothing is shared.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail, ensure};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use selvage_tests::run;

/// `NFNL_SUBSYS_IPSET`.
const SUBSYSTEM: u16 = 6 << 8;
/// `enum ipset_cmd`.
const CREATE: u16 = 2;
const ADD: u16 = 9;
const TEST: u16 = 11;
const HEADER: u16 = 12;

/// `NLM_F_REQUEST | NLM_F_ACK`, and `NLM_F_CREATE | NLM_F_EXCL`.
const REQUEST_ACK: u16 = 0x5;
const CREATE_EXCL: u16 = 0x600;

/// `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
const NESTED: u16 = 0x8000;
const NETWORK_ORDER: u16 = 0x4000;

const PROTOCOL: u8 = 7;

/// `IPSET_ERR_EXIST`: for a test, "is not in it".
const NOT_IN: i32 = 4103;
/// `ENOENT`.
const NO_SET: i32 = 2;

/// Members in one message; the length field of an attribute has 16 bits.
const BATCH: usize = 1_000;

/// Something that can be in a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The block's first address.
    pub address: Ipv4Addr,
    /// Its prefix length.
    pub prefix: u8,
    /// Number of a protocol, and a port.
    pub port: Option<(u8, u16)>,
}

/// A set as `ipset save` prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// `hash:net` and so on.
    pub kind: String,
    /// The words behind it.
    pub options: String,
    /// What is in it. Entries of families and shapes that [`Entry`] has no words for are left out.
    pub entries: Vec<Entry>,
}

/// Every set of the network namespace, by the `ipset` tool.
///
/// *Errors*: the tool's, or a line that is not understood.
pub fn saved() -> Result<BTreeMap<String, Set>> {
    parse(&run("ipset save")?)
}

/// [`saved`] without members.
///
/// *Errors*: as [`saved`].
pub fn headers() -> Result<BTreeMap<String, Set>> {
    Ok(parse_headers(&run("ipset list -terse")?))
}

/// Blocks of `Name:`, `Type:` and `Header:` lines, among others.
fn parse_headers(text: &str) -> BTreeMap<String, Set> {
    let mut sets = BTreeMap::new();
    for block in text.split("\n\n") {
        let word = |name: &str| {
            let line = block.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim().to_owned())
        };
        if let (Some(name), Some(kind), Some(options)) =
            (word("Name:"), word("Type:"), word("Header:"))
        {
            let entries = Vec::new();
            let set = Set {
                kind,
                options,
                entries,
            };
            sets.insert(name, set);
        }
    }
    sets
}

fn parse(text: &str) -> Result<BTreeMap<String, Set>> {
    let mut sets: BTreeMap<String, Set> = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words.as_slice() {
            ["create", name, kind, options] => {
                let set = Set {
                    kind: (*kind).to_owned(),
                    options: (*options).to_owned(),
                    entries: Vec::new(),
                };
                sets.insert((*name).to_owned(), set);
            }
            ["add", name, member, ..] => {
                let set = sets
                    .get_mut(*name)
                    .context("a set is made before it is filled")?;
                set.entries.extend(entry(member));
            }
            _ => bail!("ipset save: {line}"),
        }
    }
    Ok(sets)
}

fn entry(text: &str) -> Option<Entry> {
    let (block, port) = match text.split_once(',') {
        None => (text, None),
        Some((block, port)) => {
            let (protocol, port) = port.split_once(':')?;
            let number = match protocol {
                "tcp" => 6,
                "udp" => 17,
                "sctp" => 132,
                _ => return None,
            };
            (block, Some((number, port.parse().ok()?)))
        }
    };
    let (address, prefix) = block.split_once('/').unwrap_or((block, "32"));
    Some(Entry {
        address: address.parse().ok()?,
        prefix: prefix.parse().ok()?,
        port,
    })
}

/// Messages, ready to be sent.
pub struct Batch(Vec<Vec<u8>>);

impl Batch {
    /// What it takes to make sets and to fill them.
    #[must_use]
    pub fn of(sets: &BTreeMap<String, Set>) -> Self {
        let mut messages = Vec::new();
        for (name, set) in sets {
            messages.push(create(name, set));
            for some in set.entries.chunks(BATCH) {
                messages.push(members(ADD, name, some));
            }
        }
        Self(messages)
    }
}

fn attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).expect("an attribute fits its length field");
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

fn nested(bytes: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut within = Vec::new();
    fill(&mut within);
    attribute(bytes, kind | NESTED, &within);
}

fn begin(command: u16, flags: u16, name: &str) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend_from_slice(&(SUBSYSTEM | command).to_ne_bytes());
    bytes.extend_from_slice(&(REQUEST_ACK | flags).to_ne_bytes());
    // Sequence, port; then nfgenmsg: family, version, resource.
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&[2, 0, 0, 0]);
    attribute(&mut bytes, 1, &[PROTOCOL]);
    let mut name = name.as_bytes().to_vec();
    name.push(0);
    attribute(&mut bytes, 2, &name);
    bytes
}

fn end(mut bytes: Vec<u8>) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("a message is small");
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes
}

fn create(name: &str, set: &Set) -> Vec<u8> {
    let mut bytes = begin(CREATE, CREATE_EXCL, name);
    let mut kind = set.kind.as_bytes().to_vec();
    kind.push(0);
    attribute(&mut bytes, 3, &kind);
    let revision = match set.kind.as_str() {
        "hash:net,port" => 8,
        _ => 7,
    };
    attribute(&mut bytes, 4, &[revision]);
    let family = if set.options.contains("inet6") { 10 } else { 2 };
    attribute(&mut bytes, 5, &[family]);
    // Twice what is expected, so that filling never waits for a larger table.
    let buckets = u32::try_from(set.entries.len() * 2)
        .unwrap_or(u32::MAX)
        .clamp(64, 1 << 20);
    let room = u32::try_from(set.entries.len())
        .unwrap_or(u32::MAX)
        .max(1 << 16);
    nested(&mut bytes, 7, |data| {
        attribute(data, 18 | NETWORK_ORDER, &buckets.to_be_bytes());
        attribute(data, 19 | NETWORK_ORDER, &room.to_be_bytes());
    });
    end(bytes)
}

fn put(data: &mut Vec<u8>, entry: &Entry) {
    nested(data, 1, |ip| {
        attribute(ip, 1 | NETWORK_ORDER, &entry.address.octets());
    });
    attribute(data, 3, &[entry.prefix]);
    if let Some((protocol, port)) = entry.port {
        attribute(data, 4 | NETWORK_ORDER, &port.to_be_bytes());
        attribute(data, 7, &[protocol]);
    }
}

fn members(command: u16, name: &str, entries: &[Entry]) -> Vec<u8> {
    let mut bytes = begin(command, 0, name);
    // Its presence says that the members are a list.
    attribute(&mut bytes, 9 | NETWORK_ORDER, &[0; 4]);
    nested(&mut bytes, 8, |list| {
        for (line, entry) in (1_u32..).zip(entries) {
            nested(list, 7, |data| {
                put(data, entry);
                attribute(data, 9 | NETWORK_ORDER, &line.to_be_bytes());
            });
        }
    });
    end(bytes)
}

/// One socket to ipset.
pub struct Ipset {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Ipset {
    /// Opens it in the network namespace of the calling thread.
    ///
    /// *Errors*: not permitted.
    pub fn open() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER).context("open a netlink socket")?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_cap_ack(true)?;
        Ok(Self {
            socket,
            buffer: Vec::with_capacity(1 << 16),
        })
    }

    /// Sends a message and returns the number in its acknowledgement: 0, or an error's.
    fn ask(&mut self, message: &[u8]) -> Result<i32> {
        self.socket.send(message, 0)?;
        self.buffer.clear();
        self.socket.recv(&mut self.buffer, 0)?;
        let kind = u16::from_ne_bytes([self.buffer[4], self.buffer[5]]);
        // NLMSG_ERROR; a header's answer comes first, with its acknowledgement behind it.
        if kind != 2 {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0)?;
        }
        let number = self
            .buffer
            .get(16..20)
            .context("an acknowledgement has a number")?;
        Ok(-i32::from_ne_bytes(number.try_into()?))
    }

    /// Whether a set holds an entry; one that is not there holds nothing.
    ///
    /// *Errors*: the kernel refuses the question.
    pub fn holds(&mut self, name: &str, entry: &Entry) -> Result<bool> {
        let mut bytes = begin(TEST, 0, name);
        nested(&mut bytes, 7, |data| put(data, entry));
        match self.ask(&end(bytes))? {
            0 => Ok(true),
            NOT_IN | NO_SET => Ok(false),
            number => bail!("test {entry:?} in {name}: error {number}"),
        }
    }

    /// Whether there is such a set.
    ///
    /// *Errors*: the kernel refuses the question.
    pub fn exists(&mut self, name: &str) -> Result<bool> {
        match self.ask(&end(begin(HEADER, 0, name)))? {
            0 => Ok(true),
            NO_SET => Ok(false),
            number => bail!("look at {name}: error {number}"),
        }
    }

    /// Sends messages one after the other, each acknowledged.
    ///
    /// *Errors*: one was refused.
    pub fn send(&mut self, batch: &Batch) -> Result<()> {
        for message in &batch.0 {
            let number = self.ask(message)?;
            ensure!(number == 0, "ipset: error {number}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ipset_prints_is_understood() {
        let sets = parse(
            "create a hash:net family inet hashsize 64 maxelem 65536 bucketsize 12 initval 0x1\n\
             create b hash:net,port family inet hashsize 64 maxelem 65536 bucketsize 12 initval 0x2\n\
             add a 10.0.0.0/8\nadd b 10.1.2.3,udp:53\nadd b fd00::1,tcp:1\n",
        )
        .unwrap();
        assert_eq!(sets["a"].kind, "hash:net");
        let entry = Entry {
            address: Ipv4Addr::new(10, 1, 2, 3),
            prefix: 32,
            port: Some((17, 53)),
        };
        assert_eq!(sets["b"].entries, [entry]);
        assert_eq!(sets["a"].entries[0].prefix, 8);
        let headers = parse_headers(
            "Name: a\nType: hash:net\nRevision: 7\nHeader: family inet hashsize 64\nReferences: 0\n\n\
             Name: b\nType: hash:ip\nRevision: 6\nHeader: family inet\nReferences: 1\n",
        );
        assert_eq!(headers.len(), 2);
        assert_eq!(headers["b"].kind, "hash:ip");
    }
}
