//! An EC2 in memory, for tests and simulations: it has the limits of the real one, and fails on request.
//!
//! It is one instance in a VPC with one subnet or more. It gives the lowest free address first, so that anything reused
//! too early is reused at once.

use std::collections::VecDeque;
use std::future::Future;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::{IpNet, Ipv4Net};

use crate::action::{Action, Outcome};
use crate::cloud::{CloudError, EniFacts, EniKind, InstanceFacts, Operation, SeenEni};
use crate::ids::{EniId, InstanceId, InstanceType, Mac, SecurityGroupId, SubnetId, VpcId};
use crate::limits::Limits;
use crate::pool::Settings;

mod cloud;
mod state;
mod subnet;

use state::State;

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Not done: too many calls.
    Throttle,
    /// Done, but the reply is lost.
    Lost,
    /// Done, and then silence: the caller's deadline has to end it.
    Hang,
    /// Not done: refused with this code and status 400.
    Refuse(&'static str),
    /// Not done: the server failed (500), which the caller cannot tell from having been done.
    Broken,
}

type Delay = Arc<dyn Fn(Operation) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// The cloud of one instance. A clone is the same cloud.
#[derive(Clone)]
pub struct Ec2 {
    state: Arc<Mutex<State>>,
    delay: Option<Delay>,
}

/// Settings with the defaults of the daemon and a fixed seed.
pub fn settings() -> Settings {
    Settings::default()
}

impl Ec2 {
    /// A t3.small (3 interfaces with 4 addresses) in 10.40.0.0/20.
    pub fn small() -> Self {
        Self::with_limits(3, 4)
    }

    /// An instance with these limits in 10.40.0.0/20.
    pub fn with_limits(enis: u16, addresses_per_eni: u16) -> Self {
        let subnet = "10.40.0.0/20".parse().unwrap_or_default();
        let facts = InstanceFacts {
            instance_id: InstanceId::new("i-0fake"),
            instance_type: InstanceType::new("t3.small"),
            region: "us-west-2".into(),
            availability_zone: "us-west-2a".into(),
            vpc_id: VpcId::new("vpc-1"),
            primary_eni: EniId::new("eni-0"),
            primary_mac: Mac([2, 0, 0, 0, 0, 0]),
            primary_address: Ipv4Addr::new(10, 40, 0, 4),
            primary_ipv6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 4)),
            subnet_id: SubnetId::new("subnet-1"),
            subnet,
            security_groups: vec![SecurityGroupId::new("sg-1")],
        };
        let limits = (enis, addresses_per_eni);
        Self {
            state: Arc::new(Mutex::new(State::new(facts, limits))),
            delay: None,
        }
    }

    /// Another subnet in the same zone.
    #[must_use]
    pub fn with_subnet(self, id: &str, block: Ipv4Net, tags: &[(&str, &str)]) -> Self {
        self.lock().add_subnet(SubnetId::new(id), block);
        self.tag_subnet(id, tags);
        self
    }

    /// A subnet has these tags from now on, and no others; `subnet-1` is the primary interface's.
    pub fn tag_subnet(&self, id: &str, tags: &[(&str, &str)]) {
        let tags = tags.iter();
        let tags = tags.map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        self.lock().tag_subnet(&SubnetId::new(id), tags.collect());
    }

    /// In every `/28` of the subnet that is free somebody takes an address (`true`), or gives it up again (`false`).
    pub fn fragment(&self, id: &str, fragmented: bool) {
        self.lock().fragment(&SubnetId::new(id), fragmented);
    }

    /// Every call of the [`Cloud`](crate::cloud::Cloud) first waits for what `delay` returns.
    #[must_use]
    pub fn slowed_by(
        mut self,
        delay: impl Fn(Operation) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync + 'static,
    ) -> Self {
        self.delay = Some(Arc::new(delay));
        self
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next calls of this kind fail so, one each; after them all is well again.
    pub fn fail_next(&self, operation: Operation, faults: &[Fault]) {
        let mut state = self.lock();
        let queue: &mut VecDeque<Fault> = state.faults.entry(operation).or_default();
        queue.extend(faults);
    }

    /// Calls of this kind fail so until [`Ec2::heal`].
    pub fn fail_always(&self, operation: Operation, fault: Fault) {
        self.lock().standing.insert(operation, fault);
    }

    /// Nothing fails any more, and reads are current.
    pub fn heal(&self) {
        let mut state = self.lock();
        state.faults.clear();
        state.standing.clear();
        state.lagging_reads = 0;
        state.free_left = None;
        state.mend_subnets();
    }

    /// The next `count` reads tell the state before the latest change.
    pub fn lag_reads(&self, count: u32) {
        self.lock().lagging_reads = count;
    }

    /// The subnets have `count` addresses left together (`None`: as many as it has).
    pub fn set_free_left(&self, count: Option<u32>) {
        self.lock().free_left = count;
    }

    /// How often a kind of call was made, failed ones included.
    pub fn calls(&self, operation: Operation) -> u64 {
        self.lock().calls.get(&operation).copied().unwrap_or(0)
    }

    /// Who else but us takes an address away.
    pub fn take_address(&self, eni: &EniId, address: Ipv4Addr) {
        let mut state = self.lock();
        state.remember();
        if let Some(eni) = state.enis.get_mut(eni) {
            eni.secondary_addresses.remove(&address);
        }
    }

    /// Who else but us takes a prefix away, or a single address.
    pub fn take_block(&self, eni: &EniId, net: IpNet) {
        let mut state = self.lock();
        state.remember();
        if let Some(eni) = state.enis.get_mut(eni) {
            match net {
                IpNet::V4(net) if net.prefix_len() == 32 => {
                    eni.secondary_addresses.remove(&net.addr());
                }
                IpNet::V4(net) => {
                    eni.prefixes.remove(&net);
                }
                IpNet::V6(net) => {
                    eni.ipv6_prefixes.remove(&net);
                }
            }
        }
    }

    /// Who else but us takes an interface away.
    pub fn take_eni(&self, eni: &EniId) {
        let mut state = self.lock();
        state.remember();
        state.enis.remove(eni);
    }

    /// Somebody attaches an interface with so many pod addresses, without our tags.
    pub fn attach_by_hand(&self, device_index: u16, addresses: u32) {
        let mut state = self.lock();
        state.attach_by_hand(device_index, addresses);
    }

    /// Somebody attaches an interface of a kind that is none of ours, with a tag of ours all the same.
    pub fn attach_foreign(&self, device_index: u16, kind: EniKind) -> EniId {
        let mut state = self.lock();
        state.attach_foreign(device_index, kind)
    }

    /// The attached interfaces as metadata shows them.
    pub fn seen(&self) -> Vec<SeenEni> {
        cloud::attached(&self.lock())
    }

    /// The interfaces as they truly are.
    pub fn enis(&self) -> Vec<EniFacts> {
        self.lock().enis.values().cloned().collect()
    }

    /// The instance.
    pub fn instance(&self) -> InstanceFacts {
        self.lock().facts.clone()
    }

    /// The instance's limits.
    pub fn instance_limits(&self) -> Limits {
        self.lock().limits
    }

    fn call<T>(
        &self,
        operation: Operation,
        act: impl FnOnce(&mut State) -> Result<T, CloudError>,
    ) -> Result<T, CloudError> {
        let mut state = self.lock();
        *state.calls.entry(operation).or_default() += 1;
        let queued = state
            .faults
            .get_mut(&operation)
            .and_then(VecDeque::pop_front);
        let Some(fault) = queued.or(state.standing.get(&operation).copied()) else {
            return act(&mut state);
        };
        Err(match fault {
            Fault::Throttle => CloudError::from_code(
                operation,
                "RequestLimitExceeded",
                "request limit exceeded",
                Some(503),
            ),
            Fault::Lost => {
                // Whatever came of it, nobody hears.
                drop(act(&mut state));
                CloudError::unknown(operation, "the connection was closed before a reply")
            }
            Fault::Hang => {
                drop(act(&mut state));
                CloudError::unknown(operation, HANG)
            }
            Fault::Refuse(code) => {
                CloudError::from_code(operation, code, "refused on request", Some(400))
            }
            Fault::Broken => CloudError::from_code(
                operation,
                "InternalError",
                "an internal error has occurred",
                Some(500),
            ),
        })
    }

    /// Carries an action out at once. Host steps succeed.
    pub fn carry_out(&self, action: &Action) -> Outcome {
        match action {
            Action::Create(request) => Outcome::Created(
                request.token.clone(),
                self.call(Operation::CreateEni, |s| s.create(request)),
            ),
            Action::Attach { eni, device_index } => Outcome::Attached(
                eni.clone(),
                *device_index,
                self.call(Operation::AttachEni, |s| s.attach(eni, *device_index)),
            ),
            Action::Keep { eni, attachment } => Outcome::Kept(
                eni.clone(),
                self.call(Operation::KeepWithInstance, |s| s.keep(eni, attachment)),
            ),
            Action::SetUp { eni } => Outcome::SetUp(eni.clone(), Ok(())),
            Action::Describe { eni } => Outcome::Described(
                eni.clone(),
                self.call(Operation::DescribeEnis, |s| Ok(s.read().get(eni).cloned())),
            ),
            Action::Assign { eni, want } => Outcome::Assigned(
                eni.clone(),
                *want,
                self.call(want.operation(), |s| s.assign(eni, *want)),
            ),
            Action::Unassign { eni, blocks } => Outcome::Unassigned(
                eni.clone(),
                blocks.clone(),
                self.call(Operation::unassign(blocks), |s| s.unassign(eni, blocks)),
            ),
            Action::Tag { eni, tags } => Outcome::Tagged(
                eni.clone(),
                tags.clone(),
                self.call(Operation::TagEni, |s| s.tag(eni, tags)),
            ),
            Action::Regroup { eni, groups } => Outcome::Regrouped(
                eni.clone(),
                groups.clone(),
                self.call(Operation::RegroupEni, |s| s.regroup(eni, groups)),
            ),
            Action::DescribeSubnets => {
                Outcome::Subnets(self.call(Operation::DescribeSubnets, |s| Ok(s.subnets())))
            }
            Action::TearDown { eni } => Outcome::TornDown(eni.clone(), Ok(())),
            Action::Detach { eni, attachment } => Outcome::Detached(
                eni.clone(),
                self.call(Operation::DetachEni, |s| s.detach(attachment)),
            ),
            Action::Delete { eni } => Outcome::Deleted(
                eni.clone(),
                self.call(Operation::DeleteEni, |s| s.delete(eni)),
            ),
        }
    }
}

const HANG: &str = "no reply";
