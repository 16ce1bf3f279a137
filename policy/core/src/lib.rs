//! NetworkPolicy to rules and sets, without a kernel: model, index, compile, plan, render.
//!
//! ```text
//! api ──convert──► model ──► Index ──compile──► Ruleset ──plan──► Plan ──render──► restore text
//!  raw objects      what      │ who is where,      what the         │ what is        and member
//!  as stored        we        │ who selects whom   kernel should    │ different      operations
//!                   read      ▼                    hold             ▼
//!                            Delta                              Observed (what it does hold)
//! ```
//!
//! Nothing imports to its left except through [`model`] (what came in) and [`ruleset`] (what goes
//! out). There is no I/O here and no clock.
//!
//! How a daemon uses it:
//!
//! 1. [`convert`] turns each API object into the model; a policy also yields
//!    [`convert::Problem`]s, to be logged and counted. What they say is denied already.
//! 2. [`index::Index::apply`] takes [`index::Event`]s, in any order between objects. Its
//!    [`index::Delta`] says that members of sets may have changed, or that chains must be compiled.
//! 3. On `delta.recompile`, and at start: [`compile::compile`] for each family, then
//!    [`plan::plan`] against what was observed, then [`render::render`]. Otherwise
//!    [`index::Index::take_member_changes`] alone go to the kernel, additions before removals.
//! 4. When that is in force: [`index::Index::judge`], and by it which established flows end.
#![forbid(unsafe_code)]

pub mod api;
pub mod compile;
pub mod convert;
#[cfg(feature = "eval")]
pub mod eval;
mod fold;
pub mod index;
pub mod model;
pub mod observe;
pub mod plan;
pub mod render;
pub mod ruleset;
pub mod shared;
pub mod verdict;
mod walk;
