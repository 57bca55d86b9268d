//! How a node earns the right to serve, and how an operator takes it away.

pub mod renewal;
pub mod seal;
