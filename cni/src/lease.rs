//! Asks ipamd for a lease, gives it back, and asks whether it could give one.
//!
//! What ipamd says is carried through: it ends up in the pod's events.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use selvage_ipamd_rpc::client::{CallError, ConnectError, Deadlines, Transport, blocking, request};
use selvage_ipamd_rpc::health::HealthCheckRequest;
use selvage_ipamd_rpc::health::health_check_response::ServingStatus;
use selvage_ipamd_rpc::health::health_client::HealthClient;
use selvage_ipamd_rpc::ipam::cni_backend_client::CniBackendClient;
use selvage_ipamd_rpc::ipam::selvage_backend_client::SelvageBackendClient;
use selvage_ipamd_rpc::ipam::{
    AddNetworkReply, AddNetworkRequest, Attachment, CollectGarbageRequest, DelNetworkRequest,
    IpAllocationMetadata,
};
use selvage_ipamd_rpc::{
    CLIENT_VERSION, REASON_POD_DELETED, REASON_SETUP_FAILED, SOCKET_PATH, UNKNOWN_POD,
};
use selvage_nodenet::TableId;
use tonic::{Code, Status};

use crate::request::{GcRequest, Pod, Sandbox};
use crate::spec;

/// A daemon that runs accepts at once; the kernel even does it for one that hangs.
const CONNECT: Duration = Duration::from_secs(2);
/// ipamd waits for a pool that is being filled, and says why if that takes too long: it knows better than we
/// when to stop. This is for one that hangs, and well inside the kubelet's two minutes.
const ADD: Deadlines = Deadlines {
    connect: CONNECT,
    reply: Duration::from_secs(30),
};
/// Giving back is a look at a table and a write to tmpfs. A pod's end does not wait for a daemon that is starting or
/// hangs: its veth goes with its namespace, and the daemon takes back what has no veth when it starts.
const DEL: Deadlines = Deadlines {
    connect: Duration::from_secs(1),
    reply: Duration::from_secs(3),
};
/// As DEL, for many.
const GC: Deadlines = Deadlines {
    connect: CONNECT,
    reply: Duration::from_secs(10),
};
/// The kubelet asks for the node's status every few seconds and waits for us.
const STATUS: Deadlines = Deadlines {
    connect: CONNECT,
    reply: Duration::from_secs(3),
};

/// An address of the VPC, and the interface of the node that it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The address, of the node's family.
    pub address: IpAddr,
    /// The route table of the ENI that holds it; main for the primary one.
    pub table: TableId,
    /// Device index of that ENI.
    pub device: i32,
}

impl Lease {
    /// From a table as a daemon or an earlier result numbers it. Before 1.20 AWS's said 1 for the primary
    /// ENI, which uses main.
    pub fn new(address: impl Into<IpAddr>, table: i32, device: i32) -> Self {
        let table = match u32::try_from(table) {
            Ok(table) if table > 1 => TableId(table),
            Ok(_) | Err(_) => TableId::MAIN,
        };
        Lease {
            address: address.into(),
            table,
            device,
        }
    }
}

/// Why there is no lease, or no answer.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The daemon does not listen.
    #[error("ipamd cannot be reached ({0}); is the ipamd pod on this node running?")]
    Connect(#[from] ConnectError),
    /// It listens, but gives no answer.
    #[error("ipamd gave no answer within {0:?}: {1}")]
    Silent(Duration, String),
    /// It answers with a reason.
    #[error("{}", .0.message())]
    Refused(Status),
    /// It has no such sandbox.
    #[error("ipamd knows no lease of this sandbox")]
    Unknown,
    /// It says no, without a reason: AWS's daemon does so.
    #[error("ipamd has no address to give and does not say why; its log on the node does")]
    NoReason,
    /// It gives what this plugin cannot use.
    #[error("ipamd answered with {0}, which this plugin does not support")]
    Unsupported(String),
    /// It is there, and says that it cannot serve.
    #[error("ipamd is not ready: {0}")]
    NotServing(String),
}

impl LeaseError {
    /// Whether this means that there is no daemon, rather than that it says no.
    pub fn is_absence(&self) -> bool {
        match self {
            LeaseError::Connect(_) | LeaseError::Silent(..) => true,
            // A connection that broke; also what AWS's daemon makes of every error, and its plugin goes on.
            LeaseError::Refused(status) => {
                matches!(status.code(), Code::Unavailable | Code::Unknown)
            }
            LeaseError::Unknown
            | LeaseError::NoReason
            | LeaseError::Unsupported(_)
            | LeaseError::NotServing(_) => false,
        }
    }
}

/// Talks to the daemon behind a socket.
pub struct Ipamd {
    socket: PathBuf,
}

impl Default for Ipamd {
    /// The daemon of this node.
    fn default() -> Self {
        Ipamd {
            socket: SOCKET_PATH.into(),
        }
    }
}

impl Ipamd {
    /// Leases an address to a pod's sandbox. `meanwhile` is done while ipamd works, if it can be asked at all.
    ///
    /// *Errors*: [`LeaseError::Refused`] with ipamd's own words if it has none. If the answer is one that we
    /// cannot use the sandbox may hold a lease: give it back.
    pub fn lease(
        &self,
        sandbox: &Sandbox,
        pod: &Pod,
        meanwhile: impl FnOnce(),
    ) -> Result<Lease, LeaseError> {
        let message = AddNetworkRequest {
            k8s_pod_name: pod.name.clone(),
            k8s_pod_namespace: pod.namespace.clone(),
            k8s_pod_infra_container_id: infra_container_id(sandbox, pod),
            netns: sandbox.netns.clone(),
            if_name: sandbox.if_name.clone(),
            network_name: sandbox.network.clone(),
            container_id: sandbox.container_id.clone(),
            client_version: CLIENT_VERSION.into(),
            requires_multi_nic_attachment: false,
        };
        let ask = async |ipamd| {
            CniBackendClient::new(ipamd)
                .add_network(request(message, ADD))
                .await
        };
        let reply = self.call(ADD, ask, meanwhile)?;
        read(&reply)
    }

    /// Gives back what a sandbox holds, because the pod is gone; tells what it was.
    ///
    /// *Errors*: [`LeaseError::Unknown`] if it holds nothing.
    pub fn release(&self, sandbox: &Sandbox, pod: &Pod) -> Result<Vec<Lease>, LeaseError> {
        self.give_back(sandbox, pod, REASON_POD_DELETED)
    }

    /// Gives back what a sandbox holds, because ADD could not use it.
    pub fn refuse(&self, sandbox: &Sandbox, pod: &Pod) -> Result<(), LeaseError> {
        match self.give_back(sandbox, pod, REASON_SETUP_FAILED) {
            Ok(_) | Err(LeaseError::Unknown) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn give_back(
        &self,
        sandbox: &Sandbox,
        pod: &Pod,
        reason: &str,
    ) -> Result<Vec<Lease>, LeaseError> {
        let message = DelNetworkRequest {
            k8s_pod_name: pod.name.clone(),
            k8s_pod_namespace: pod.namespace.clone(),
            k8s_pod_infra_container_id: infra_container_id(sandbox, pod),
            reason: reason.into(),
            if_name: sandbox.if_name.clone(),
            network_name: sandbox.network.clone(),
            container_id: sandbox.container_id.clone(),
            client_version: CLIENT_VERSION.into(),
            k8s_pod_uid: pod.uid.clone(),
        };
        let ask = async |ipamd| {
            CniBackendClient::new(ipamd)
                .del_network(request(message, DEL))
                .await
        };
        let reply = self.call(DEL, ask, || ())?;
        if !reply.success {
            return Err(LeaseError::NoReason);
        }
        // An address of another kind was not made by this plugin: nothing of ours to take down.
        Ok(leases(&reply.ip_allocation_metadata))
    }

    /// Has everything given back that is of a network and not listed; tells what it was, or `None` if this daemon
    /// cannot.
    pub fn collect(&self, gc: &GcRequest) -> Result<Option<Vec<Lease>>, LeaseError> {
        let attachment = |one: &spec::Attachment| Attachment {
            container_id: one.container_id.clone(),
            if_name: one.if_name.clone(),
        };
        let message = CollectGarbageRequest {
            network_name: gc.network.clone(),
            valid: gc.valid.iter().map(attachment).collect(),
        };
        let ask = async |ipamd| {
            SelvageBackendClient::new(ipamd)
                .collect_garbage(request(message, GC))
                .await
        };
        match self.call(GC, ask, || ()) {
            Ok(reply) => Ok(Some(leases(&reply.ip_allocation_metadata))),
            Err(LeaseError::Refused(status)) if status.code() == Code::Unimplemented => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether ipamd says that it can give addresses.
    pub fn health(&self) -> Result<(), LeaseError> {
        let ask = async |ipamd| {
            HealthClient::new(ipamd)
                .check(request(HealthCheckRequest::default(), STATUS))
                .await
        };
        let reply = self.call(STATUS, ask, || ())?;
        match reply.status() {
            ServingStatus::Serving => Ok(()),
            other @ (ServingStatus::Unknown
            | ServingStatus::NotServing
            | ServingStatus::ServiceUnknown) => {
                Err(LeaseError::NotServing(other.as_str_name().to_owned()))
            }
        }
    }

    fn call<T>(
        &self,
        deadlines: Deadlines,
        ask: impl AsyncFnOnce(Transport) -> Result<tonic::Response<T>, Status>,
        meanwhile: impl FnOnce(),
    ) -> Result<T, LeaseError> {
        blocking::call(&self.socket, deadlines, ask, meanwhile).map_err(|error| match error {
            CallError::Connect(error) => LeaseError::Connect(error),
            CallError::Status(status) => refusal(*status, deadlines),
        })
    }
}

fn infra_container_id(sandbox: &Sandbox, pod: &Pod) -> String {
    if pod.infra_container_id.is_empty() {
        sandbox.container_id.clone()
    } else {
        pod.infra_container_id.clone()
    }
}

fn refusal(status: Status, deadlines: Deadlines) -> LeaseError {
    if status.message().contains(UNKNOWN_POD) {
        return LeaseError::Unknown;
    }
    match status.code() {
        // What the transport makes of a deadline or a broken connection.
        Code::Cancelled | Code::DeadlineExceeded => {
            LeaseError::Silent(deadlines.reply, status.message().to_owned())
        }
        _ => LeaseError::Refused(status),
    }
}

fn read(reply: &AddNetworkReply) -> Result<Lease, LeaseError> {
    if !reply.success {
        return Err(LeaseError::NoReason);
    }
    if reply.pod_vlan_id != 0 {
        let what = format!("a branch interface (VLAN {})", reply.pod_vlan_id);
        return Err(LeaseError::Unsupported(what));
    }
    let [metadata] = reply.ip_allocation_metadata.as_slice() else {
        let count = reply.ip_allocation_metadata.len();
        return Err(LeaseError::Unsupported(format!("{count} addresses")));
    };
    lease(metadata).ok_or_else(|| {
        LeaseError::Unsupported(format!(
            "the addresses {:?} and {:?}",
            metadata.ipv4_addr, metadata.ipv6_addr
        ))
    })
}

fn leases(metadata: &[IpAllocationMetadata]) -> Vec<Lease> {
    metadata.iter().filter_map(lease).collect()
}

/// `None` for what is no address, and for two: a pod has one.
fn lease(metadata: &IpAllocationMetadata) -> Option<Lease> {
    let address: IpAddr = match (metadata.ipv4_addr.as_str(), metadata.ipv6_addr.as_str()) {
        (v4, "") => v4.parse::<Ipv4Addr>().ok()?.into(),
        ("", v6) => v6.parse::<Ipv6Addr>().ok()?.into(),
        _ => return None,
    };
    Some(Lease::new(
        address,
        metadata.route_table_id,
        metadata.device_number,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply() -> AddNetworkReply {
        AddNetworkReply {
            success: true,
            ip_allocation_metadata: vec![IpAllocationMetadata {
                ipv4_addr: "10.40.1.7".into(),
                ipv6_addr: String::new(),
                device_number: 2,
                route_table_id: 3,
            }],
            ..AddNetworkReply::default()
        }
    }

    #[test]
    fn the_primary_interface_uses_main_however_a_daemon_numbers_it() {
        for (number, table) in [
            (254, 254),
            (1, 254),
            (0, 254),
            (-1, 254),
            (2, 2),
            (10_102, 10_102),
        ] {
            let lease = Lease::new(Ipv4Addr::new(10, 40, 1, 7), number, 0);
            assert_eq!(lease.table, TableId(table), "{number}");
        }
    }

    #[test]
    fn an_address_of_either_family_is_a_lease() {
        let mut reply = reply();
        assert_eq!(read(&reply).unwrap().address.to_string(), "10.40.1.7");
        let metadata = &mut reply.ip_allocation_metadata[0];
        metadata.ipv4_addr.clear();
        metadata.ipv6_addr = "2600:1f00::7".into();
        assert_eq!(read(&reply).unwrap().address.to_string(), "2600:1f00::7");
    }

    #[test]
    fn an_answer_that_cannot_be_used_is_refused_and_says_what_it_is() {
        assert_eq!(read(&reply()).unwrap().device, 2);
        let change = |change: &dyn Fn(&mut AddNetworkReply)| {
            let mut reply = reply();
            change(&mut reply);
            read(&reply).unwrap_err().to_string()
        };
        for (says, error) in [
            ("does not say why", change(&|r| r.success = false)),
            ("VLAN 7", change(&|r| r.pod_vlan_id = 7)),
            ("0 addresses", change(&|r| r.ip_allocation_metadata.clear())),
            (
                "fd00::7",
                change(&|r| r.ip_allocation_metadata[0].ipv6_addr = "fd00::7".into()),
            ),
            (
                "10.40.1.7.9",
                change(&|r| r.ip_allocation_metadata[0].ipv4_addr = "10.40.1.7.9".into()),
            ),
        ] {
            assert!(error.contains(says), "{error}");
        }
    }
}
