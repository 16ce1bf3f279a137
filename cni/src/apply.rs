//! Runs steps through netlink, as many in one send as can be; undoes them unless committed.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use selvage_nodenet::link::{self, Veth};
use selvage_nodenet::route::{self, Route};
use selvage_nodenet::sysctl::Key;
use selvage_nodenet::{
    Error, LinkIndex, Mac, NetNs, Request, Socket, TableId, addr, neigh, rule, sysctl,
};

use crate::lease::Lease;
use crate::plan::{End, HostFacts, Step, Undo, VethRoute, plan_address, plan_veth};
use crate::request::AddRequest;

/// How long ADD waits for a veth to take packets.
const LONGEST_AWAIT: Duration = Duration::from_secs(1);

/// The host's side of the work: its namespace and a socket in it. Good for any number of pods.
pub struct Host {
    netns: NetNs,
    socket: Socket,
}

/// How long ADD waits for the kernel to let a pod use its address.
const LONGEST_TENTATIVE: Duration = Duration::from_secs(10);

/// The pod's side: its namespace and a socket in it.
pub struct PodSide {
    netns: NetNs,
    socket: Socket,
}

/// Why a pod could not be wired.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The kernel refused a step.
    #[error(transparent)]
    Net(#[from] Error),
    /// The pod has an interface of that name: ADD was called twice, or another plugin came first.
    #[error("the pod has an interface {0} already")]
    Occupied(String),
    /// The kernel does not let the pod use its address.
    #[error(
        "the kernel does not let the pod use {0}: it is still tested for duplicates after {LONGEST_TENTATIVE:?}, or one was found"
    )]
    Unusable(IpAddr),
    /// No random bytes for hardware addresses.
    #[error("random bytes for a hardware address: {0}")]
    Random(#[from] io::Error),
}

impl PodSide {
    /// The socket in the pod's namespace.
    pub fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }
}

impl Host {
    /// Opens the calling thread's namespace as the host's.
    ///
    /// *Needs*: `CAP_NET_ADMIN`; `CAP_SYS_ADMIN` to enter pods.
    pub fn open() -> Result<Self, Error> {
        Ok(Host {
            netns: NetNs::current()?,
            socket: Socket::open()?,
        })
    }

    /// Opens a pod's namespace; `None` if it is the host's own. The calling thread must be in the namespace
    /// that it was in at [`Host::open`].
    pub fn enter(&self, pod: NetNs) -> Result<Option<PodSide>, Error> {
        if pod.is(&self.netns)? {
            return Ok(None);
        }
        let socket = pod.open_socket(&self.netns)?;
        Ok(Some(PodSide { netns: pod, socket }))
    }

    /// A socket in the host's namespace.
    pub fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    /// Does all that ADD does to the kernel, and nothing else: finds out what is in the way, plans, runs.
    /// What was done is undone when the guard is dropped, unless it is committed.
    ///
    /// *Errors*: [`WireError`], with everything undone. *Cost*: about 0.6 ms, most of it the making of the
    /// veth; 16 ms more if an older sandbox's link has to go first.
    pub fn wire<'a>(
        &'a mut self,
        pod: &'a mut PodSide,
        request: &AddRequest,
        lease: &Lease,
    ) -> Result<Wired<'a>, WireError> {
        let facts = self.facts(&request.host_veth)?;
        let mut wired = self.prepare(pod, request, &facts)?;
        wired.complete(request, &facts, lease)?;
        Ok(wired)
    }

    /// What a plan needs to know of the host. *Cost*: one round trip.
    pub fn facts(&mut self, host_veth: &str) -> Result<HostFacts, WireError> {
        Ok(HostFacts {
            stale_link: link::find(&mut self.socket, host_veth)?.map(|link| link.index),
            host_mac: Mac::random()?,
            pod_mac: Mac::random()?,
        })
    }

    /// The part of [`Host::wire`] that needs no address: the veth. [`Wired::complete`] is the rest.
    ///
    /// *Errors*: [`WireError`], with everything undone.
    pub fn prepare<'a>(
        &'a mut self,
        pod: &'a mut PodSide,
        request: &AddRequest,
        facts: &HostFacts,
    ) -> Result<Wired<'a>, WireError> {
        self.run(pod, &plan_veth(request, facts))
    }

    /// Runs steps, in order; the first that fails ends it.
    ///
    /// *Errors*: [`WireError`], with everything undone.
    pub fn run<'a>(
        &'a mut self,
        pod: &'a mut PodSide,
        steps: &[Step],
    ) -> Result<Wired<'a>, WireError> {
        let mut wired = Wired {
            host: self,
            pod,
            ends: None,
            undo: Vec::new(),
        };
        wired.run(steps)?;
        Ok(wired)
    }
}

/// The numbers of a veth's two ends, each in its own namespace.
#[derive(Debug, Clone, Copy)]
struct Ends {
    pod: LinkIndex,
    host: LinkIndex,
}

/// Steps that have been run: dropped, they are undone, the last one first.
pub struct Wired<'a> {
    host: &'a mut Host,
    pod: &'a mut PodSide,
    ends: Option<Ends>,
    undo: Vec<Undo>,
}

impl Wired<'_> {
    /// Gives a prepared veth its address, and the host the way to it.
    ///
    /// *Errors*: [`WireError`]; everything is undone when the guard is dropped.
    pub fn complete(
        &mut self,
        request: &AddRequest,
        facts: &HostFacts,
        lease: &Lease,
    ) -> Result<(), WireError> {
        self.run(&plan_address(request, facts, lease))
    }

    /// Keeps what was done.
    pub fn commit(mut self) {
        self.undo.clear();
    }

    fn run(&mut self, steps: &[Step]) -> Result<(), WireError> {
        let mut rest = steps;
        while let Some((step, others)) = rest.split_first() {
            rest = others;
            match step {
                Step::CreateVeth(veth) => {
                    self.create(veth)?;
                    self.undo.extend(step.inverse());
                }
                Step::SetSysctl(key, value) => {
                    sysctl::ensure_if_there(key, value)?;
                }
                Step::Await(end) => {
                    let index = self.index(*end)?;
                    // If it takes longer the first packets are lost, which TCP and DNS survive.
                    link::await_operational(self.socket(*end), index, LONGEST_AWAIT)?;
                }
                Step::EnableIpv6(if_name) => self.enable_ipv6(if_name)?,
                Step::AwaitAddress(address) => {
                    let index = self.index(End::Pod)?;
                    let socket = &mut self.pod.socket;
                    if !addr::await_usable(socket, index, *address, LONGEST_TENTATIVE)? {
                        return Err(WireError::Unusable(*address));
                    }
                }
                Step::RemoveRules(priority, direction) => {
                    rule::remove_every(&mut self.host.socket, *priority, *direction)?;
                }
                Step::RemoveLink(_)
                | Step::SetUp(_)
                | Step::AddRoute(..)
                | Step::AddAddress(_)
                | Step::Introduce(..)
                | Step::SetNeighbour(..)
                | Step::AddRule(_) => {
                    // As many neighbouring steps as go through the same socket.
                    let (end, first) = self.request(step)?.expect("this step is a request");
                    let mut batch = vec![first];
                    self.undo.extend(step.inverse());
                    while let Some((next, others)) = rest.split_first()
                        && let Some((next_end, request)) = self.request(next)?
                        && next_end == end
                    {
                        batch.push(request);
                        // Before it is run: those behind one that is refused are tried all the same.
                        self.undo.extend(next.inverse());
                        rest = others;
                    }
                    self.socket(end).run_all(&batch)?;
                }
            }
        }
        Ok(())
    }

    /// Makes the veth and learns both ends' numbers in one round trip: the pod's end tells its peer's.
    fn create(&mut self, veth: &Veth) -> Result<(), WireError> {
        let requests = [
            link::create_veth(veth, &self.host.netns),
            link::get(&veth.name),
        ];
        let mut results = self.pod.socket.run(&requests)?.into_iter();
        let (Some(made), Some(found)) = (results.next(), results.next()) else {
            unreachable!("one result for each request"); // Socket::run's contract
        };
        let found = found?.messages.first().map(link::parse).transpose()?;
        if let Err(error) = made {
            // It was not made, and yet there is one.
            return Err(match found {
                Some(_) => WireError::Occupied(veth.name.clone()),
                None => error.into(),
            });
        }
        let missing = || Error::Missing {
            what: format!("the new link {}", veth.name),
        };
        let found = found.ok_or_else(missing)?;
        self.ends = Some(Ends {
            pod: found.index,
            host: found.peer.ok_or_else(missing)?,
        });
        Ok(())
    }

    /// What `/proc/sys/net` shows is the namespace of whoever looks.
    fn enable_ipv6(&self, if_name: &str) -> Result<(), Error> {
        let keys = [if_name, "lo"].map(|link| Key::ipv6_of_link(link, "disable_ipv6"));
        self.pod.netns.run(|| {
            keys.iter()
                .try_for_each(|key| sysctl::ensure_if_there(key, "0").map(drop))
        })?
    }

    /// The request that a step is, and the side whose socket it goes through; `None` for steps of other kinds.
    fn request(&self, step: &Step) -> Result<Option<(End, Request)>, Error> {
        Ok(Some(match step {
            Step::RemoveLink(index) => (End::Host, link::remove(*index)),
            Step::SetUp(end) => (*end, link::set_up(self.index(*end)?)),
            Step::AddRoute(end, route) => {
                let route = on_veth(route, self.index(*end)?);
                // On the host the address is ours by lease: whoever had a route to it is gone.
                let request = match end {
                    End::Host => route::replace(&route),
                    End::Pod => route::add(&route),
                };
                (*end, request)
            }
            Step::AddAddress(net) => {
                let index = self.index(End::Pod)?;
                (End::Pod, addr::ensure_at_once(index, *net))
            }
            Step::Introduce(ip, mac) => {
                let index = self.index(End::Host)?;
                (End::Host, neigh::introduce(index, *ip, *mac))
            }
            Step::SetNeighbour(ip, mac) => {
                let index = self.index(End::Pod)?;
                (End::Pod, neigh::replace(index, *ip, *mac))
            }
            Step::AddRule(rule) => (End::Host, rule::ensure(rule)),
            Step::CreateVeth(_)
            | Step::SetSysctl(..)
            | Step::Await(_)
            | Step::EnableIpv6(_)
            | Step::AwaitAddress(_)
            | Step::RemoveRules(..) => return Ok(None),
        }))
    }

    fn index(&self, end: End) -> Result<LinkIndex, Error> {
        let ends = self.ends.ok_or_else(|| Error::Missing {
            what: "the pod's veth".into(),
        })?;
        Ok(match end {
            End::Pod => ends.pod,
            End::Host => ends.host,
        })
    }

    fn socket(&mut self, end: End) -> &mut Socket {
        match end {
            End::Pod => &mut self.pod.socket,
            End::Host => &mut self.host.socket,
        }
    }
}

impl Drop for Wired<'_> {
    fn drop(&mut self) {
        let mut host = Vec::new();
        for undo in std::mem::take(&mut self.undo).into_iter().rev() {
            match undo {
                Undo::RemoveRule(rule) => host.push(rule::remove(&rule)),
                Undo::RemoveHostRoute(net) => {
                    host.push(route::remove(TableId::MAIN, net, None));
                }
                Undo::RemoveVeth => {
                    // The veth was made first, so this comes last.
                    let _ = self.host.socket.run(&std::mem::take(&mut host));
                    if let Some(ends) = self.ends {
                        // What cannot be undone is told by DEL, which the runtime sends after every failure.
                        let _ = self.pod.socket.run_one(link::remove(ends.pod));
                    }
                }
            }
        }
        let _ = self.host.socket.run(&host);
    }
}

fn on_veth(route: &VethRoute, index: LinkIndex) -> Route {
    match route.gateway {
        Some(gateway) => Route::default_via(TableId::MAIN, gateway, index),
        None => Route::on_link(TableId::MAIN, route.destination, index),
    }
}
