//! The other nodes, as this one knows them by their ids: sessions, limits, and what they last reported.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use quorate_shares::ids::NodeId;

use crate::base::rate::Rates;
use crate::messages::peer::Report;
use crate::node::sessions::Sessions;

/// What this node keeps of its peers in memory.
#[derive(Default)]
pub struct Peers {
    /// The op sessions.
    pub sessions: Sessions,
    /// How much each peer may ask for.
    pub rates: Rates,
    /// What each peer last reported, and when ([`crate::base::clock::boot_ms`]).
    pub reports: Mutex<BTreeMap<NodeId, (Report, u64)>>,
    /// Peers that a task keeps a session with.
    pub keepers: Mutex<BTreeSet<NodeId>>,
}
