//! What this node keeps about each of its peers: sessions, rate limits, and the last report.

pub mod directory;
pub mod revocation;
pub mod roster;
pub mod sessions;

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use quorate_shares::ids::NodeId;

use crate::base::rate::Rates;
use crate::messages::peer::Report;
use crate::node::peers::sessions::Sessions;

/// What this node keeps about its peers in memory.
#[derive(Default)]
pub struct Peers {
    pub sessions: Sessions,
    /// How much each peer may ask for.
    pub rates: Rates,
    /// What each peer last reported, and when ([`crate::base::clock::boot_ms`]).
    pub reports: Mutex<BTreeMap<NodeId, (Report, u64)>>,
    /// Peers with a task that keeps a session open.
    pub keepers: Mutex<BTreeSet<NodeId>>,
}
