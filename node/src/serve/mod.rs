//! Doors: where questions of clients, members, strangers and the owner of the machine arrive. A door turns bytes into a
//! request and an answer into bytes. It holds no rule; those stand in [`crate::service`].

pub mod listen;
pub mod local;
pub mod peer;

mod client;
mod stranger;

use std::time::Duration;

use quorate_client::conn::Limits;
use tokio::sync::OwnedSemaphorePermit;

/// Per-connection limits for peers that are not members; a connection beyond them is closed with a reason. The largest request,
/// a message of 64 KiB as text, takes a third of such a frame.
const GUEST: Limits = Limits { frame_bytes: 256 << 10, patience: Some(Duration::from_secs(30)) };

/// One of the places for connections of guests; `None` for a member that found none free.
type Place = Option<OwnedSemaphorePermit>;
