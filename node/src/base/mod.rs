//! What knows nothing of a node: clocks, configuration, randomness, rates, phases, and a thread of low priority.

pub mod background;
pub mod clock;
pub mod config;
pub mod paths;
pub mod phase;
pub mod random;
pub mod rate;
