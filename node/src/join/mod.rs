//! How a node comes in: founding a cluster, and joining one that runs.

pub mod desk;
pub mod found;
pub mod invited;
pub mod joining;
pub mod terms;
