//! The members, as this node knows them.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use quorate_client::error::Code;
use quorate_client::identity::PublicKey;
use quorate_client::wire::WireError;
use quorate_shares::ids::{NodeId, NodeName};

use crate::messages::peer::PeerRefusal;
use crate::vault::{Roster, RosterLogId};

/// A former member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone {
    pub node: NodeId,
    pub boot_pk: [u8; 32],
    pub op_pk: [u8; 32],
}

/// The roster in force. It is the roster of the vault. While this node has no lease, a newer one that a peer showed adds
/// members and addresses ([`Roster::merged_with`]).
#[derive(Default)]
pub struct KnownRoster {
    shown: RwLock<Arc<Roster>>,
    /// A roster that a peer showed, newer than this node's own log. It is never written to the vault.
    newer: Mutex<Option<Roster>>,
    /// Op keys of former members.
    gone: Mutex<BTreeMap<[u8; 32], NodeId>>,
}

impl KnownRoster {
    /// The roster of a vault is in force.
    pub fn of(roster: Roster) -> Self {
        Self { shown: RwLock::new(Arc::new(roster)), ..Self::default() }
    }

    /// The members, as this node knows them.
    pub fn current(&self) -> Arc<Roster> {
        Arc::clone(&self.shown.read())
    }

    /// Puts another roster in force. The caller has made it durable, or makes it durable with the next lock.
    pub fn set(&self, roster: Roster) {
        *self.shown.write() = Arc::new(roster);
    }

    /// Puts `own`, the vault's roster, in force at the node `me`, merged with the newer one if there is one.
    pub(in crate::node) fn show(&self, own: &Roster, me: NodeId) {
        let shown = self.newer.lock().as_ref().map_or_else(|| own.clone(), |newer| own.merged_with(newer, me));
        if *self.current() != shown {
            self.set(shown);
        }
    }

    /// Sets or removes the newer roster.
    pub(in crate::node) fn set_newer(&self, newer: Option<Roster>) {
        *self.newer.lock() = newer;
    }

    /// Whether `shown` is newer than every roster that this node knows. `own` is the log id of its own roster.
    pub(in crate::node) fn is_newer(&self, shown: &Roster, own: RosterLogId) -> bool {
        shown.log_id > own && self.newer.lock().as_ref().is_none_or(|newer| shown.log_id > newer.log_id)
    }

    /// Remembers the op keys of former members, so that this node can tell them that they were revoked.
    pub fn note_gone(&self, gone: &[Gone]) {
        self.gone.lock().extend(gone.iter().map(|gone| (gone.op_pk, gone.node)));
    }

    /// Whether any former member is remembered.
    #[cfg(test)]
    pub(in crate::node) fn knows_gone(&self) -> bool {
        !self.gone.lock().is_empty()
    }

    /// The refusal for an op key that no trusted member has; `None` for an unknown key.
    pub fn turned_away(&self, key: &PublicKey) -> Option<PeerRefusal> {
        let roster = self.current();
        if roster.members.iter().any(|member| member.op_pk == key.0 && member.standing.denied) {
            return Some(PeerRefusal::Denied);
        }
        let gone = self.gone.lock().get(&key.0).copied()?;
        roster.revoked.iter().any(|revoked| revoked.node == gone).then_some(PeerRefusal::Revoked(roster.log_id.place()))
    }
}

/// The member with that name.
///
/// # Errors
/// [`Code::NotFound`], with the names of all members.
pub fn member(roster: &Roster, name: &NodeName) -> Result<NodeId, WireError> {
    let member = roster.members.iter().find(|member| member.name == *name);
    member.map(|member| member.node).ok_or_else(|| unknown_node(roster, name))
}

/// The answer for a name that no member has.
pub fn unknown_node(roster: &Roster, name: &NodeName) -> WireError {
    let mut names: Vec<_> = roster.members.iter().map(|member| member.name.as_str()).collect();
    names.sort_unstable();
    WireError::new(Code::NotFound, format!("no node named {name}")).hint(format!("the nodes are {}", names.join(", ")))
}
