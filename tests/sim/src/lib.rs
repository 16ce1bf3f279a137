//! A simulator: thousands of nodes, each with its agent, against one EC2 with quotas.
//!
//! ```text
//!  trace (nodes and pods that come and go) ──> world ──> agents ──calls──> EC2: subnets, interfaces, quotas
//!                                                │          selvage (ipamd/core, unchanged)
//!                                                └──> report    aws (its algorithm restated)
//! ```
//!
//! ```
//! use selvage_sim::{agent::{aws::Aws, selvage::Selvage}, trace::shape, world};
//!
//! let trace = shape::rolling(4, 1, Default::default());
//! let ours = world::run::<Selvage>(&trace, &Default::default(), 1);
//! let theirs = world::run::<Aws>(&trace, &Default::default(), 1);
//! assert_eq!(ours.breaches, Vec::<String>::new());
//! assert_eq!(ours.launched, theirs.launched);
//! ```

pub mod agent;
pub mod ec2;
pub mod figures;
pub mod machine;
pub mod queue;
pub mod quota;
pub mod report;
pub mod trace;
pub mod world;
