//! Who the members are, as this node knows them.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use quorate_client::error::Code;
use quorate_client::identity::PublicKey;
use quorate_client::wire::WireError;
use quorate_shares::ids::{NodeId, NodeName};

use crate::messages::peer::PeerRefusal;
use crate::vault::{Roster, RosterLogId};

/// A node that was a member once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone {
    /// Its id.
    pub node: NodeId,
    /// Its boot identity.
    pub boot_pk: [u8; 32],
    /// Its op identity.
    pub op_pk: [u8; 32],
}

/// The roster in force: that of the vault and, as long as this node has no lease, beside it a newer one that a peer showed.
#[derive(Default)]
pub struct KnownRoster {
    shown: RwLock<Arc<Roster>>,
    /// A roster that a peer showed, and that is newer than this node's own log; never in the vault.
    newer: Mutex<Option<Roster>>,
    /// Op keys of those that were members.
    gone: Mutex<BTreeMap<[u8; 32], NodeId>>,
}

impl KnownRoster {
    /// That of a vault.
    pub fn of(roster: Roster) -> Self {
        Self { shown: RwLock::new(Arc::new(roster)), ..Self::default() }
    }

    /// The members, as this node knows them.
    pub fn current(&self) -> Arc<Roster> {
        Arc::clone(&self.shown.read())
    }

    /// Another roster is in force from now on. The caller has made it durable, or will with the next lock.
    pub fn set(&self, roster: Roster) {
        *self.shown.write() = Arc::new(roster);
    }

    /// The vault's roster, now `own`, is in force at the node `me`, beside the newer one if there is one.
    pub(super) fn show(&self, own: &Roster, me: NodeId) {
        let shown = self.newer.lock().as_ref().map_or_else(|| own.clone(), |newer| own.beside(newer, me));
        if *self.current() != shown {
            self.set(shown);
        }
    }

    /// Puts a roster beside the own one, or takes it away.
    pub(super) fn set_newer(&self, newer: Option<Roster>) {
        *self.newer.lock() = newer;
    }

    /// Whether `shown` is newer than every roster that this node knows, its own being of `own`.
    pub(super) fn is_newer(&self, shown: &Roster, own: RosterLogId) -> bool {
        shown.log_id > own && self.newer.lock().as_ref().is_none_or(|newer| shown.log_id > newer.log_id)
    }

    /// Remembers the op keys of those that are not members any more, to tell them so.
    pub fn note_gone(&self, gone: &[Gone]) {
        self.gone.lock().extend(gone.iter().map(|gone| (gone.op_pk, gone.node)));
    }

    /// Whether any former member is remembered.
    #[cfg(test)]
    pub(super) fn knows_gone(&self) -> bool {
        !self.gone.lock().is_empty()
    }

    /// What to tell the owner of an op key that no trusted member has; `None` for a stranger.
    pub fn turned_away(&self, key: &PublicKey) -> Option<PeerRefusal> {
        let roster = self.current();
        if roster.members.iter().any(|member| member.op_pk == key.0 && member.standing.denied) {
            return Some(PeerRefusal::Denied);
        }
        let gone = self.gone.lock().get(&key.0).copied()?;
        roster.revoked.iter().any(|revoked| revoked.node == gone).then_some(PeerRefusal::Revoked(roster.log_id.place()))
    }
}

/// The member of that name.
///
/// # Errors
/// [`Code::NotFound`], with the names that there are.
pub fn member(roster: &Roster, name: &NodeName) -> Result<NodeId, WireError> {
    let member = roster.members.iter().find(|member| member.name == *name);
    member.map(|member| member.node).ok_or_else(|| unknown_node(roster, name))
}

/// The answer for a name that no member has.
pub fn unknown_node(roster: &Roster, name: &NodeName) -> WireError {
    let names: Vec<_> = roster.members.iter().map(|member| member.name.to_string()).collect();
    WireError::new(Code::NotFound, format!("no node named {name}")).hint(format!("the nodes are {}", names.join(", ")))
}
