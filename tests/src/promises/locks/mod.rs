//! When a node that starts gets its lock opened, and when it does not.

mod absence;
mod pin;
mod renewal;
