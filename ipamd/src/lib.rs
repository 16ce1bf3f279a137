//! The address daemon as a library, generic over the cloud.
//!
//! It keeps a pool of VPC addresses on the node's interfaces and gives them to pods:
//!
//! | module | does |
//! |---|---|
//! | [`config`] | settings under the names of AWS's environment |
//! | [`daemon`] | owns the pool (`selvage-ipamd-core`), talks to cloud and host, answers requests |
//! | [`server`] | the unix socket: AWS's gRPC messages, health |
//! | [`checkpoint`] | who has which address, on disk in AWS's format |
//! | [`hostnet`] | rules, route tables, chains of the host |
//! | [`conflist`] | the plugin's binary and the conflist, installed once addresses can be given |
//! | [`cluster`] | what the daemon reads from the API server, and leaves there |
//! | [`metrics`] | numbers under AWS's names |
//! | [`http`] | pages that are read: metrics, introspection |
//! | [`support`] | a bundle for a bug report |
//! | [`view`], [`inspect`] | the pool as it is looked at from outside |
//! | [`instances`] | what instance types can hold |
//!
//! ```no_run
//! # use selvage_ipamd::{config::{Args, Config}, cluster::NoCluster, hostnet::Kernel};
//! # use tokio_util::sync::CancellationToken;
//! # async fn example(cloud: impl selvage_ipamd_core::cloud::Cloud) -> Result<(), Box<dyn std::error::Error>> {
//! let config = Config::try_from(&Args::default())?;
//! let shutdown = CancellationToken::new();
//! selvage_ipamd::run(config, cloud, Kernel::new(), NoCluster::default(), shutdown).await?;
//! # Ok(())
//! # }
//! ```

pub mod chain;
pub mod checkpoint;
mod clock;
pub mod cluster;
pub mod config;
pub mod conflist;
pub mod daemon;
mod health;
pub mod hostnet;
pub mod http;
pub mod inspect;
pub mod instances;
pub mod metrics;
mod pages;
pub mod server;
pub mod support;
mod sweep;
pub mod view;

pub use daemon::{RunError, run};
pub use health::{Unhealthy, health};
pub use hostnet::prepare_node;
