//! The gRPC contract between the CNI plugin and ipamd: AWS's messages, with AWS's numbers, on a unix socket.
//!
//! The messages are in `proto/ipam.proto`, the health protocol in `proto/health.proto`; `proto/inspection.proto` is our
//! own, for people who look at the daemon. The Rust code made
//! from them is checked in, so that building needs no `protoc`; a test makes it again and compares.
//!
//! | feature | gives | for |
//! |---|---|---|
//! | `client` | [`client`], `cni_backend_client`, `health_client`, `inspection_client` | the plugin, probes, `status` |
//! | `server` | `cni_backend_server`, `config_server_backend_server`, `health_server`, `inspection_server` | the daemon |
//!
//! ```
//! use selvage_ipamd_rpc::{CLIENT_VERSION, ipam::AddNetworkRequest};
//!
//! let request = AddNetworkRequest {
//!     k8s_pod_namespace: "default".into(),
//!     k8s_pod_name: "web-0".into(),
//!     client_version: CLIENT_VERSION.into(),
//!     ..AddNetworkRequest::default()
//! };
//! assert_eq!(request.client_version, "");
//! ```

#[cfg(feature = "client")]
pub mod client;
#[rustfmt::skip]
mod generated;

pub use generated::{health, inspection, ipam};

/// Where ipamd listens: the same path on the host and in its container.
pub const SOCKET_PATH: &str = "/var/run/aws-node/ipamd.sock";

/// What a client says its version is. AWS's daemon refuses a version that is not its own, and compares with
/// the empty string (the link flags of its Makefile name symbols that do not exist; seen in 1.23).
pub const CLIENT_VERSION: &str = "";

/// The name under which AWS's probes ask for ipamd's health; the empty name asks for the whole server.
pub const HEALTH_SERVICE: &str = "grpc.health.v1.aws-node";

/// The text by which a client knows that a DEL named a sandbox that holds no address.
pub const UNKNOWN_POD: &str = "datastore: unknown pod";

/// [`ipam::DelNetworkRequest::reason`] when the pod is gone.
pub const REASON_POD_DELETED: &str = "PodDeleted";

/// [`ipam::DelNetworkRequest::reason`] when ADD could not use the address that it was given.
pub const REASON_SETUP_FAILED: &str = "SetupNSFailed";
