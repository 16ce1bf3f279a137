//! A watch on host routes: which addresses the kernel sends through which pod's interface.
//!
//! ```text
//!   subscribe ─> read links, routes ─> state ─┬─> differences to what was told last
//!        notifications since the subscription ┘
//!        overrun: forget what is queued, read again
//! ```
//!
//! What a CNI plugin writes when it makes a pod is known here before any API object says it.

mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::error::Error;
use crate::listen::{self, Heard};
use crate::message::{DUMP, Message, messages};
use crate::socket::Nfnetlink;
use state::{LINK_HEADER, ROUTE_HEADER, State, parse};

/// `RTNLGRP_LINK`, `RTNLGRP_IPV4_ROUTE`, `RTNLGRP_IPV6_ROUTE`.
const GROUPS: [u32; 3] = [1, 7, 11];

/// `RTM_GETLINK` and `RTM_GETROUTE`.
const GET_LINK: u16 = 18;
const GET_ROUTE: u16 = 26;

/// Room for 10,000 notifications.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Datagrams that are read before what they changed is told.
const AT_ONCE: usize = 4096;

/// The addresses behind one interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteChange {
    /// The interface's name.
    pub interface: String,
    /// All destinations of host routes (`/32`, `/128`, in any table) that lead through it now. Empty:
    /// it has none any more, or is gone.
    pub addresses: BTreeSet<IpAddr>,
}

/// A watch on the host routes of the network namespace that [`RouteWatch::open`] ran in.
///
/// Its descriptor ([`AsFd`]) is readable when [`RouteWatch::changes`] has something to read.
pub struct RouteWatch {
    socket: Socket,
    prefixes: Vec<String>,
    patience: Duration,
    state: State,
    told: BTreeMap<String, BTreeSet<IpAddr>>,
    overruns: u64,
    buffer: Vec<u8>,
}

impl AsFd for RouteWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl RouteWatch {
    /// Subscribes, then reads. The second value is the whole state: every interface that has a host
    /// route and a name that begins with one of `prefixes`, by name. `patience` bounds each reading.
    ///
    /// *Errors*: [`Error::Socket`], [`Error::Silence`], [`Error::Refused`].
    ///
    /// *Cost*: a reading is linear in all links and routes of the node.
    pub fn open(prefixes: &[&str], patience: Duration) -> Result<(Self, Vec<RouteChange>), Error> {
        let failed = |what| move |source| Error::Socket { what, source };
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed("open"))?;
        socket
            .bind(&SocketAddr::new(0, 0))
            .map_err(failed("bind"))?;
        listen::make_room(&socket, RECEIVE_BUFFER)?;
        for group in GROUPS {
            socket
                .add_membership(group)
                .map_err(failed("subscribe to links and routes"))?;
        }
        let mut watch = Self {
            socket,
            prefixes: prefixes.iter().map(|&prefix| prefix.to_owned()).collect(),
            patience,
            state: State::default(),
            told: BTreeMap::new(),
            overruns: 0,
            buffer: Vec::with_capacity(listen::BUFFER),
        };
        watch.read()?;
        let all = watch.untold();
        Ok((watch, all))
    }

    /// Waits until `deadline` at most and returns what changed: the whole sets of the interfaces
    /// that changed, by name. Empty at the deadline. A deadline in the past does not wait.
    ///
    /// After an overrun everything is read again here, and the differences are told: nothing is
    /// missed but what came and went.
    ///
    /// *Errors*: [`Error::Socket`], [`Error::Silence`], [`Error::Refused`]: open another watch.
    pub fn changes(&mut self, deadline: Instant) -> Result<Vec<RouteChange>, Error> {
        loop {
            listen::wait(&self.socket, deadline)?;
            for _ in 0..AT_ONCE {
                let state = &mut self.state;
                match listen::receive(&self.socket, &mut self.buffer, &mut |message| {
                    if let Some(event) = parse(message) {
                        state.apply(event);
                    }
                })? {
                    Heard::Datagram => {}
                    Heard::Nothing => break,
                    Heard::Overrun => {
                        self.overruns += 1;
                        self.read_again()?;
                    }
                }
            }
            let changes = self.untold();
            if !changes.is_empty() || Instant::now() >= deadline {
                return Ok(changes);
            }
        }
    }

    /// How often the kernel had more to say than the buffer holds.
    #[must_use]
    pub fn overruns(&self) -> u64 {
        self.overruns
    }

    /// Reads everything, for what the kernel changes without a word: a route whose preferred source
    /// address is taken off the node. Differences come with the next [`RouteWatch::changes`].
    ///
    /// *Errors*: [`Error::Socket`], [`Error::Silence`], [`Error::Refused`].
    ///
    /// *Cost*: as [`RouteWatch::open`].
    pub fn read_again(&mut self) -> Result<(), Error> {
        // What is queued is older than the reading and may not be complete.
        while !matches!(
            listen::receive(&self.socket, &mut self.buffer, &mut |_| {})?,
            Heard::Nothing
        ) {}
        self.read()
    }

    /// Reads links and routes. What changes meanwhile is in the queue and applied after it: the last
    /// word on a route is either there, or unchanged since before the reading.
    fn read(&mut self) -> Result<(), Error> {
        let mut requests = Nfnetlink::open_routes(self.patience)?;
        let mut state = State::default();
        for (kind, family, header) in [
            (GET_LINK, 0, LINK_HEADER),
            (GET_ROUTE, 2, ROUTE_HEADER),
            (GET_ROUTE, 10, ROUTE_HEADER),
        ] {
            let mut bytes = vec![0; header];
            bytes[0] = family;
            let object = || "read links and routes".to_owned();
            requests.stream(
                &object,
                Message::plain(kind, DUMP, &bytes),
                &mut |message| {
                    if let Some(event) = parse(message) {
                        state.apply(event);
                    }
                },
            )?;
        }
        self.state = state;
        Ok(())
    }

    /// What differs from what was told, and tells it.
    fn untold(&mut self) -> Vec<RouteChange> {
        let now = self.state.addresses(&self.prefixes);
        let changes = differences(&self.told, &now);
        self.told = now;
        changes
    }
}

fn differences(
    before: &BTreeMap<String, BTreeSet<IpAddr>>,
    now: &BTreeMap<String, BTreeSet<IpAddr>>,
) -> Vec<RouteChange> {
    let names: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    names
        .into_iter()
        .filter(|&name| before.get(name) != now.get(name))
        .map(|name| RouteChange {
            interface: name.clone(),
            addresses: now.get(name).cloned().unwrap_or_default(),
        })
        .collect()
}

/// What a datagram alone says, whoever made it up: what the reading of notifications rests on.
///
/// *Shape*: as [`RouteWatch::open`] tells it, of interfaces of any name.
#[must_use]
pub fn told_by(datagram: &[u8]) -> Vec<RouteChange> {
    let mut state = State::default();
    messages(datagram)
        .filter_map(|message| parse(&message))
        .for_each(|event| state.apply(event));
    differences(&BTreeMap::new(), &state.addresses(&[String::new()]))
}
