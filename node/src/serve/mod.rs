//! Doors: where questions of clients, members, strangers and the owner of the machine arrive. A door turns bytes into a
//! request and an answer into bytes. It holds no rule; those stand in [`crate::service`].

pub mod listen;
pub mod local;
pub mod peer;

mod client;
mod member_addresses;
mod newcomers;
mod places;
mod stranger;

use std::time::Duration;

use quorate_client::conn::{IN_FLIGHT_MAX, Limits};

use crate::node::Node;

/// Limits on a connection of a client. A connection beyond the limits on frames and time is closed with a reason; beyond the others
/// its requests are refused as busy, or not read. The largest request, a message of 64 KiB as text with its context, fits a frame.
fn limits_for_clients(node: &Node) -> Limits {
    Limits {
        frame_bytes: 128 << 10,
        other_lanes_bytes: 4 << 10,
        patience: Some(Duration::from_millis(node.config.timing.stranger_patience_ms)),
        in_flight: IN_FLIGHT_MAX,
        unsent_bytes: 64 << 10,
    }
}

/// As [`limits_for_clients`], for those who show no credential. They ask one thing at a time.
fn limits_for_strangers(node: &Node) -> Limits {
    Limits { in_flight: 16, ..limits_for_clients(node) }
}
