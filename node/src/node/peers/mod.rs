//! What this node knows about the other nodes: who they are ([`roster`], [`directory`]), the sessions with them and their limits
//! ([`Peers`]), and which of them say that this node was revoked ([`revocation`]).

pub mod directory;
pub mod revocation;
pub mod roster;
pub mod sessions;

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use quorate_shares::ids::NodeId;

use crate::base::rate::Rates;
use crate::memory::dial_misses::DialMisses;
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
    /// How often peers did not answer at their recorded addresses.
    pub dial_misses: DialMisses,
    /// Peers with a task that keeps a session open.
    pub keepers: Mutex<BTreeSet<NodeId>>,
}
