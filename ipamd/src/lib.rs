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
//! | [`metrics`] | numbers under AWS's names |
//!
//! ```no_run
//! # use selvage_ipamd::{config::{Args, Config}, events::NoEvents, hostnet::Kernel};
//! # use tokio_util::sync::CancellationToken;
//! # async fn example(cloud: impl selvage_ipamd_core::cloud::Cloud) -> Result<(), Box<dyn std::error::Error>> {
//! let config = Config::try_from(&Args::default())?;
//! let shutdown = CancellationToken::new();
//! selvage_ipamd::run(config, cloud, Kernel::new(), NoEvents, shutdown).await?;
//! # Ok(())
//! # }
//! ```

pub mod checkpoint;
mod clock;
pub mod config;
pub mod conflist;
pub mod daemon;
pub mod events;
mod health;
pub mod hostnet;
pub mod metrics;
pub mod server;

pub use daemon::{RunError, run};
pub use health::{Unhealthy, health};
pub use hostnet::prepare_node;
