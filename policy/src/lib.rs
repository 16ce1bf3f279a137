//! The enforcement daemon as a library, generic over the source of events and over the kernel.
//!
//! ```text
//! API objects ─► direct ─► Index ─► compile ─► Ruleset ─► plan ─► kernel
//!                (watch)   └──────── selvage-policy-core ───────┘  dataplane
//! ```
//!
//! [`daemon::run`] is the loop; [`source::Source`] is where its events come from (today
//! [`direct::Direct`]: watches on the API server) and [`dataplane::Dataplane`] where its rules go.
//! Nothing in the kernel changes before every watch is in sync and the node's [`lock`] is held;
//! stopping leaves rules in place; [`cleanup`] takes them away.

use std::error::Error;

pub mod boot;
pub mod cleanup;
pub mod config;
pub mod daemon;
pub mod dataplane;
pub mod denials;
pub mod direct;
pub mod endpoint_status;
pub mod events;
pub mod failpoint;
pub mod flows;
pub mod health;
pub mod lock;
pub mod metrics;
pub mod questions;
pub mod recent;
mod record;
pub mod routes;
pub mod source;
pub mod status;
pub mod support;
pub mod taint;
mod thread;
pub mod watches;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod readme;

/// An error and everything behind it, as one line. What is in the line already is not repeated.
#[must_use]
pub fn error_chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let text = error.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        source = error.source();
    }
    line
}
