//! NetworkPolicy to rules and sets, without a kernel: model, index, compile, plan, render.

pub mod ruleset;
