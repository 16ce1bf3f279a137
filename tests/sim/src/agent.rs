//! A node's agent: what gives pods their addresses.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use selvage_ipamd_core::ids::Timestamp;

use crate::ec2::Ec2;
use crate::machine::{Machine, NodeId, PodId};

pub mod aws;
pub mod selvage;

/// What an agent can do besides remembering: call EC2, read instance metadata, wait, answer.
pub struct Io<'a, E> {
    /// The moment.
    pub now: Timestamp,
    /// Whose agent it is.
    pub node: NodeId,
    /// What the node can hold.
    pub machine: Machine,
    /// EC2, and the metadata service.
    pub ec2: &'a mut Ec2,
    /// Nodes of the cluster whose agent does not give addresses yet, as the status of a DaemonSet tells.
    pub starting: u32,
    pub(crate) effects: Vec<Effect<E>>,
}

/// What an agent wants to happen.
pub(crate) enum Effect<E> {
    Wake(Timestamp, E),
    Granted(PodId, Ipv4Addr),
    Refused(PodId),
    Ready,
}

impl<E> Io<'_, E> {
    /// Tells the agent something later.
    pub fn wake(&mut self, at: Timestamp, event: E) {
        self.effects.push(Effect::Wake(at, event));
    }

    /// Answers an ADD with an address.
    pub fn grant(&mut self, pod: PodId, address: Ipv4Addr) {
        self.effects.push(Effect::Granted(pod, address));
    }

    /// Answers an ADD with an error: the kubelet comes again.
    pub fn refuse(&mut self, pod: PodId) {
        self.effects.push(Effect::Refused(pod));
    }

    /// From now on ADDs are answered: the node becomes Ready.
    pub fn ready(&mut self) {
        self.effects.push(Effect::Ready);
    }
}

/// An algorithm that gives addresses on one node.
pub trait Agent {
    /// Settings, the same on every node.
    type Setup;
    /// What it waits for.
    type Event;
    /// Its name in what is printed.
    const NAME: &'static str;
    /// Whether the address rules of the simulation are promises of its: a breach is a bug, not a figure.
    const PROMISES: bool;

    /// An agent that has not begun.
    fn new(setup: &Self::Setup, node: NodeId, machine: Machine, seed: u64) -> Self;

    /// The instance has booted.
    fn start(&mut self, io: &mut Io<'_, Self::Event>);

    /// Something it waited for.
    fn wake(&mut self, event: Self::Event, io: &mut Io<'_, Self::Event>);

    /// A pod asks for an address.
    fn add(&mut self, pod: PodId, io: &mut Io<'_, Self::Event>);

    /// A pod has gone.
    fn del(&mut self, pod: PodId, io: &mut Io<'_, Self::Event>);

    /// The node takes no more pods.
    fn cordon(&mut self, io: &mut Io<'_, Self::Event>);

    /// Addresses that a pod would be given at once.
    fn free(&self, now: Timestamp) -> u32;

    /// What it believes that EC2 has given to its node.
    fn holds(&self) -> BTreeSet<Ipv4Net>;
}
