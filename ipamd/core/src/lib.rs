//! The address pool and its planner: pure, no clock, no I/O.
//!
//! ```text
//!            now ──┐
//!  requests ──> Pool ──plan──> Actions ──(the daemon, through `Cloud`)──> Outcomes ──> Pool
//!  surveys  ──────┘
//! ```
//!
//! ```
//! # use selvage_ipamd_core::{fake, ids::*, plan::*, pool::*};
//! # use std::time::Duration;
//! let ec2 = fake::Ec2::small();
//! let now = Timestamp::from_unix(Duration::from_secs(1_700_000_000));
//! let mut pool = Pool::new(&ec2.instance(), fake::settings());
//! pool.reconcile(&ec2.enis(), now);
//! for action in plan(&pool, &Targets::default(), &ec2.instance_limits(), 0, now) {
//!     pool.begin(&action, now);
//!     let outcome = ec2.carry_out(&action);
//!     pool.apply(outcome, now);
//! }
//! # assert!(pool.can_serve() || pool.enis().count() == 1);
//! ```

pub mod action;
pub mod bucket;
pub mod cause;
pub mod cloud;
#[cfg(feature = "fake")]
pub mod fake;
pub mod ids;
pub mod limits;
pub mod metadata;
pub mod plan;
pub mod pool;
pub mod retry;
pub mod sweep;
