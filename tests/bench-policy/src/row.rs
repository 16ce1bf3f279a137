//! What is measured, a file a subject.

pub mod churn;
pub mod cut;
pub mod effect;
pub mod growth;
pub mod kills;
pub mod large;
pub mod members;
pub mod packets;
pub mod policies;
pub mod repair;
pub mod sets;
pub mod start;
pub mod starts;
