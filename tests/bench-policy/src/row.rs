//! What is measured, a file a subject.

pub mod churn;
pub mod effect;
pub mod large;
pub mod members;
pub mod packets;
pub mod policies;
pub mod start;
pub mod starts;
