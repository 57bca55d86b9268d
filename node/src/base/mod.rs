//! Parts that need no node: clocks, configuration, the socket, the log, paths, phases, randomness, rate limits, signals, and a thread
//! of low priority.

pub mod background;
pub mod clock;
pub mod config;
pub mod endpoint;
pub mod log;
pub mod paths;
pub mod phase;
pub mod random;
pub mod rate;
pub mod signals;
