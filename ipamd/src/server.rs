//! The socket: AWS's messages, answered by the keeper.

use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::stream;
use selvage_ipamd_core::ids::{PodKey, PodName};
use selvage_ipamd_core::pool::Lease;
use selvage_ipamd_rpc::HEALTH_SERVICE;
use selvage_ipamd_rpc::health::health_check_response::ServingStatus;
use selvage_ipamd_rpc::health::health_server::{Health, HealthServer};
use selvage_ipamd_rpc::health::{HealthCheckRequest, HealthCheckResponse};
use selvage_ipamd_rpc::inspection::inspection_server::{Inspection, InspectionServer};
use selvage_ipamd_rpc::inspection::{ReadReply, ReadRequest};
use selvage_ipamd_rpc::ipam::cni_backend_server::{CniBackend, CniBackendServer};
use selvage_ipamd_rpc::ipam::config_server_backend_server::{
    ConfigServerBackend, ConfigServerBackendServer,
};
use selvage_ipamd_rpc::ipam::selvage_backend_server::{SelvageBackend, SelvageBackendServer};
use selvage_ipamd_rpc::ipam::{
    AddNetworkReply, AddNetworkRequest, CollectGarbageReply, CollectGarbageRequest,
    DelNetworkReply, DelNetworkRequest, IpAllocationMetadata, NetworkPolicyAgentConfigReply,
};
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response};
use tracing::{debug, warn};

use crate::config::Family;
use crate::daemon::{Handle, Refusal, Status};
use crate::hostnet::route_table;
use crate::pages;

/// How long another daemon is given to accept.
const PROBE: Duration = Duration::from_secs(2);
/// Between two looks whether the socket is still ours.
const LOOK: Duration = Duration::from_secs(10);

/// The socket cannot be served.
#[derive(Debug, Error)]
pub enum ServerError {
    /// Another daemon answers on it.
    #[error(
        "socket {path}: another ipamd is running on this node and answers here; two would give the same addresses to \
         different pods: stop it first", path = path.display()
    )]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// Another has been put in its place, or it was removed.
    #[error(
        "socket {path}: it is no longer ours: another ipamd has put its own there, or somebody has removed it; two would \
         give the same addresses to different pods: remove the DaemonSet aws-node, or ours", path = path.display()
    )]
    Lost {
        /// The socket.
        path: PathBuf,
    },
    /// Something else lies there. Following a link would let whoever made it choose where we listen.
    #[error(
        "socket {path}: there is {there} in its place: remove it, or name another path by IPAMD_SOCKET",
        path = path.display()
    )]
    Occupied {
        /// The socket.
        path: PathBuf,
        /// What there is.
        there: &'static str,
    },
    /// The system refused.
    #[error("socket {path}: {source}", path = path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The transport gave up.
    #[error("grpc: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// A socket in its place in the file system.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    /// Of which device, which inode; `None` if it was not even there when it had been made.
    file: Option<(u64, u64)>,
}

impl Place {
    fn of(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            file: file_at(path),
        }
    }

    /// Returns when another file is there, or none: AWS's daemon removes whatever it finds. Pods no longer reach us then.
    pub async fn lost(self) -> ServerError {
        while self.file.is_some() && file_at(&self.path) == self.file {
            tokio::time::sleep(LOOK).await;
        }
        ServerError::Lost { path: self.path }
    }
}

fn file_at(path: &Path) -> Option<(u64, u64)> {
    let there = std::fs::symlink_metadata(path).ok()?;
    Some((there.dev(), there.ino()))
}

/// Listens at `path`, mode 0660, in place of a socket that nobody answers on.
///
/// # Errors
/// When somebody does answer, when something that is no socket lies there, or the system refuses.
pub async fn bind(path: &Path) -> Result<(UnixListener, Place), ServerError> {
    if let Some(there) = no_socket(path) {
        return Err(ServerError::Occupied {
            path: path.to_owned(),
            there,
        });
    }
    match tokio::time::timeout(PROBE, UnixStream::connect(path)).await {
        Ok(Err(error)) if nobody_there(&error) => {}
        Ok(Err(source)) => {
            return Err(ServerError::Io {
                path: path.to_owned(),
                source,
            });
        }
        // One that accepts, or is too busy to.
        Ok(Ok(_)) | Err(_) => {
            return Err(ServerError::Taken {
                path: path.to_owned(),
            });
        }
    }
    let listener = listen(path).map_err(|source| ServerError::Io {
        path: path.to_owned(),
        source,
    })?;
    Ok((listener, Place::of(path)))
}

/// What lies at a path, if it is neither a socket nor nothing. What cannot be looked at is found out by connecting.
fn no_socket(path: &Path) -> Option<&'static str> {
    let kind = std::fs::symlink_metadata(path).ok()?.file_type();
    if kind.is_socket() {
        None
    } else if kind.is_symlink() {
        Some("a symbolic link")
    } else if kind.is_dir() {
        Some("a directory")
    } else {
        Some("a file")
    }
}

fn nobody_there(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

/// Makes the socket beside its place and moves it there with its mode set: nobody finds it open to all.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    match std::fs::remove_file(&beside) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(&beside)?;
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o660))?;
    std::fs::rename(&beside, path)?;
    Ok(listener)
}

/// Answers until `shutdown`, then finishes what it has begun.
///
/// # Errors
/// When the transport gives up.
pub async fn serve(
    listener: UnixListener,
    handle: Handle,
    shutdown: CancellationToken,
) -> Result<(), ServerError> {
    let incoming = stream::unfold(listener, |listener| async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((Ok::<_, io::Error>(stream), listener)),
                Err(error) => {
                    // Out of descriptors, most likely.
                    warn!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    });
    let service = Service { handle };
    tonic::transport::Server::builder()
        .add_service(CniBackendServer::new(service.clone()))
        .add_service(ConfigServerBackendServer::new(service.clone()))
        .add_service(SelvageBackendServer::new(service.clone()))
        .add_service(InspectionServer::new(service.clone()))
        .add_service(HealthServer::new(service))
        .serve_with_incoming_shutdown(incoming, shutdown.cancelled_owned())
        .await?;
    Ok(())
}

#[derive(Clone)]
struct Service {
    handle: Handle,
}

#[tonic::async_trait]
impl CniBackend for Service {
    async fn add_network(
        &self,
        request: Request<AddNetworkRequest>,
    ) -> Result<Response<AddNetworkReply>, tonic::Status> {
        let request = request.into_inner();
        self.handle.metrics().count_add();
        if request.requires_multi_nic_attachment {
            return Err(tonic::Status::failed_precondition(
                "the pod asks for an interface on every network card, which this ipamd cannot give",
            ));
        }
        let key = key(request.network_name, request.container_id, request.if_name)?;
        let pod = PodName {
            namespace: request.k8s_pod_namespace,
            name: request.k8s_pod_name,
        };
        let started = Instant::now();
        let answer = self.handle.add(key, pod).await;
        let metrics = self.handle.metrics();
        metrics.count_add_answer(answer.is_ok(), started.elapsed());
        let grant = answer.map_err(status)?;
        let config = self.handle.config();
        let facts = self.handle.facts();
        let vpc = facts.into_iter().flat_map(|f| f.vpc);
        let excluded = config
            .exclude_snat_cidrs
            .iter()
            .copied()
            .filter(|_| !config.external_snat);
        Ok(Response::new(AddNetworkReply {
            success: true,
            ip_allocation_metadata: vec![metadata(&grant.lease)],
            use_external_snat: config.external_snat,
            vpc_v4_cidrs: vpc.chain(excluded).map(|b| b.to_string()).collect(),
            network_policy_mode: config.network_policy_mode.clone(),
            ..AddNetworkReply::default()
        }))
    }

    async fn del_network(
        &self,
        request: Request<DelNetworkRequest>,
    ) -> Result<Response<DelNetworkReply>, tonic::Status> {
        let request = request.into_inner();
        self.handle.metrics().count_del(&request.reason);
        let key = key(request.network_name, request.container_id, request.if_name)?;
        let grant = self.handle.del(key).await.map_err(status)?;
        Ok(Response::new(DelNetworkReply {
            success: true,
            ip_allocation_metadata: vec![metadata(&grant.lease)],
            network_policy_mode: self.handle.config().network_policy_mode.clone(),
            ..DelNetworkReply::default()
        }))
    }
}

#[tonic::async_trait]
impl SelvageBackend for Service {
    async fn collect_garbage(
        &self,
        request: Request<CollectGarbageRequest>,
    ) -> Result<Response<CollectGarbageReply>, tonic::Status> {
        let request = request.into_inner();
        if request.network_name.is_empty() {
            return Err(tonic::Status::invalid_argument("NetworkName is empty"));
        }
        let valid = request.valid.into_iter();
        let valid = valid.map(|one| (one.container_id, one.if_name)).collect();
        let freed = self.handle.collect(request.network_name, valid).await;
        let freed = freed.map_err(status)?;
        Ok(Response::new(CollectGarbageReply {
            ip_allocation_metadata: freed.iter().map(metadata).collect(),
        }))
    }
}

#[tonic::async_trait]
impl ConfigServerBackend for Service {
    async fn get_network_policy_configs(
        &self,
        _: Request<()>,
    ) -> Result<Response<NetworkPolicyAgentConfigReply>, tonic::Status> {
        let facts = self
            .handle
            .facts()
            .ok_or_else(|| tonic::Status::unavailable("ipamd is starting"))?;
        let config = self.handle.config();
        // Of the family that pods have, and of no other.
        let (node_ipv4, node_ipv6) = match config.family {
            Family::V4 => (facts.address.to_string(), String::new()),
            Family::V6 => (
                String::new(),
                facts.ipv6.map_or(String::new(), |a| a.to_string()),
            ),
        };
        Ok(Response::new(NetworkPolicyAgentConfigReply {
            network_policy_mode: config.network_policy_mode.clone(),
            node_ipv4,
            node_ipv6,
            instance_id: facts.instance_id,
            region: facts.region,
            ..NetworkPolicyAgentConfigReply::default()
        }))
    }
}

#[tonic::async_trait]
impl Inspection for Service {
    async fn read(
        &self,
        request: Request<ReadRequest>,
    ) -> Result<Response<ReadReply>, tonic::Status> {
        let path = request.into_inner().path;
        let page = match path.as_str() {
            "/metrics" => pages::metrics(self.handle.clone(), path).await,
            _ => pages::introspection(self.handle.clone(), path).await,
        };
        Ok(Response::new(ReadReply {
            status: page.status.into(),
            body: page.body,
        }))
    }
}

#[tonic::async_trait]
impl Health for Service {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, tonic::Status> {
        let service = request.into_inner().service;
        if !service.is_empty() && service != HEALTH_SERVICE {
            return Err(tonic::Status::not_found(format!("no service {service:?}")));
        }
        let serving = match self.handle.status() {
            Status::Ready => ServingStatus::Serving,
            Status::Starting { doing: why } | Status::NotReady { why } => {
                debug!(why, "not serving");
                ServingStatus::NotServing
            }
        };
        Ok(Response::new(HealthCheckResponse {
            status: serving.into(),
        }))
    }
}

fn key(
    network_name: String,
    container_id: String,
    if_name: String,
) -> Result<PodKey, tonic::Status> {
    for (name, text) in [
        ("NetworkName", &network_name),
        ("ContainerID", &container_id),
        ("IfName", &if_name),
    ] {
        if text.is_empty() {
            return Err(tonic::Status::invalid_argument(format!("{name} is empty")));
        }
    }
    Ok(PodKey {
        network_name,
        container_id,
        if_name,
    })
}

fn metadata(lease: &Lease) -> IpAllocationMetadata {
    let (ipv4_addr, ipv6_addr) = match lease.address {
        IpAddr::V4(address) => (address.to_string(), String::new()),
        IpAddr::V6(address) => (String::new(), address.to_string()),
    };
    // A lease without an interface has no rule that names a table: as on the primary interface.
    let device = lease.device_index.unwrap_or(0);
    IpAllocationMetadata {
        ipv4_addr,
        ipv6_addr,
        device_number: device.into(),
        route_table_id: i32::try_from(route_table(device)).unwrap_or(i32::MAX),
    }
}

fn status(refusal: Refusal) -> tonic::Status {
    let words = refusal.to_string();
    match refusal {
        Refusal::Starting(_) | Refusal::Stopping => tonic::Status::unavailable(words),
        Refusal::Empty { .. } => tonic::Status::resource_exhausted(words),
        Refusal::Withdrawn => tonic::Status::aborted(words),
        Refusal::Checkpoint(_) => tonic::Status::internal(words),
        // AWS's plugin looks for the words, not for the code.
        Refusal::UnknownPod => tonic::Status::not_found(words),
        Refusal::Busy(_) => tonic::Status::deadline_exceeded(words),
    }
}
