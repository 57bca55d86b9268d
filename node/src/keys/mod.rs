//! How keys are made, reshared and reconstructed.

pub mod deal;
pub mod reconstruct;
