//! Parts that need no node: clocks, configuration, the socket, the log, paths, phases, randomness, rate limits, signals, the threads of
//! the doors, and a thread of low priority.

pub mod background;
pub mod clock;
pub mod config;
pub mod doors;
pub mod endpoint;
pub mod log;
pub mod paths;
pub mod phase;
pub mod random;
pub mod rate;
pub mod signals;
