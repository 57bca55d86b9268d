//! How a node opens its lock after a start, and how it renews it.

pub(super) mod renewal;
mod unlock;
