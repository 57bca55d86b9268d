//! Everything that belongs to one vault: this node in one cluster, or on its way into one.
//!
//! An enrolment ends in two ways: the join is refused, or an operator gives another invitation. The next enrolment may be in
//! another cluster, and in that cluster the same ids are other nodes. So everything that belongs to one vault is one value. It is
//! dropped as a whole and made new; nothing is reset field by field.
//!
//! Work that is under way holds the value with which it began, and so does the handler of each session. Once that enrolment is
//! over, it has no vault and no sessions any more, so what such work does then reaches no other cluster.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use quorate_client::conn::close;
use quorate_shares::ids::NodeId;
use quorate_shares::secret::Secret;

use crate::node::identity::OwnIdentity;
use crate::node::joining::Joining;
use crate::node::locks::Locks;
use crate::node::peers::Peers;
use crate::node::peers::revocation::Revocation;
use crate::node::peers::roster::KnownRoster;
use crate::vault::{Roster, Vault, VaultError, VaultFile};

/// This node in one cluster.
pub struct Enrolment {
    pub identity: OwnIdentity,
    pub roster: KnownRoster,
    /// What is known about the other nodes.
    pub peers: Arc<Peers>,
    /// This node's lock, and what it knows of its peers' locks.
    pub locks: Locks,
    /// The progress of founding or joining.
    pub joining: Joining,
    /// The peers that say that this node was revoked.
    pub revocation: Revocation,
    vault: Mutex<Option<VaultFile>>,
}

impl Enrolment {
    /// The enrolment of a node without a vault. The next vault is made with this seed.
    pub fn without_vault(boot_seed: Secret<32>) -> Self {
        Self {
            identity: OwnIdentity::without_vault(boot_seed),
            roster: KnownRoster::default(),
            peers: Arc::default(),
            locks: Locks::default(),
            joining: Joining::default(),
            revocation: Revocation::default(),
            vault: Mutex::default(),
        }
    }

    /// The enrolment of a node without a vault, after a join that was refused for this reason.
    pub fn after_refusal(boot_seed: Secret<32>, reason: &str) -> Self {
        Self { joining: Joining::refused(reason), ..Self::without_vault(boot_seed) }
    }

    /// The enrolment of a vault. With it the node has a boot identity.
    pub fn of(vault: VaultFile) -> Self {
        let current = vault.current();
        Self {
            identity: OwnIdentity::of(&current.identity),
            roster: KnownRoster::of(current.roster.clone()),
            peers: Arc::default(),
            locks: Locks::of(current),
            joining: Joining::default(),
            revocation: Revocation::default(),
            vault: Mutex::new(Some(vault)),
        }
    }

    /// Ends the enrolment: its vault can no longer be written, its sessions are closed, and no others are accepted.
    pub(super) fn end(&self, reason: &str) {
        *self.vault.lock() = None;
        self.peers.sessions.end(reason);
    }

    /// The vault. While the caller holds it, no one else reads or writes it.
    pub(super) fn hold_vault(&self) -> MutexGuard<'_, Option<VaultFile>> {
        self.vault.lock()
    }

    pub fn has_vault(&self) -> bool {
        self.vault.lock().is_some()
    }

    /// Reads from the vault, with the number of its writes; `None` before there is one, and after it was discarded.
    pub fn with_written_vault<R>(&self, read: impl FnOnce(&Vault, u64) -> R) -> Option<R> {
        self.vault.lock().as_ref().map(|vault| read(vault.current(), vault.writes()))
    }

    /// Reads from the vault; `None` before there is one, and after it was discarded.
    pub fn with_vault<R>(&self, read: impl FnOnce(&Vault) -> R) -> Option<R> {
        self.vault.lock().as_ref().map(|vault| read(vault.current()))
    }

    /// Changes the vault; `None` without a vault. The change is durable when this returns. This blocks on the disk.
    pub(super) fn update_vault<R>(&self, change: impl FnOnce(&mut Vault) -> R) -> Option<Result<R, VaultError>> {
        self.vault.lock().as_mut().map(|vault| vault.update(change))
    }

    /// Changes the vault's roster or denials; `None` without a vault. The change is durable and in force when this returns. This
    /// blocks on the disk.
    pub(super) fn update_roster<R>(&self, change: impl FnOnce(&mut Vault) -> R) -> Option<Result<R, VaultError>> {
        let mut vault = self.vault.lock();
        let file = vault.as_mut()?;
        let updated = file.update(change);
        if updated.is_ok() {
            // The mutex of the vault is still held. Otherwise an older roster could replace a newer one.
            self.roster.show(&file.current().roster, self.identity.id());
        }
        Some(updated)
    }

    /// Puts a roster that a peer showed in force, merged with the own one. With `None`, only the own roster is in force again.
    pub fn use_newer_roster(&self, newer: Option<Roster>) {
        let vault = self.vault.lock();
        let Some(file) = vault.as_ref() else { return };
        self.roster.set_newer(newer);
        self.roster.show(&file.current().roster, self.identity.id());
    }

    /// Whether a roster is newer than every roster that this node knows.
    pub fn is_newer(&self, shown: &Roster) -> bool {
        self.roster.is_newer(shown, self.with_vault(|vault| vault.roster.log_id).unwrap_or_default())
    }

    /// Closes every session with a node that is not a trusted member any more.
    pub fn close_sessions_with_strangers(&self) {
        let roster = self.roster.current();
        self.peers.sessions.close_where(|peer: NodeId| {
            if roster.op_key_of(peer).is_some() {
                return None;
            }
            let revoked = roster.revoked.iter().any(|revoked| revoked.node == peer);
            Some(if revoked { (close::REVOKED, "revoked") } else { (close::DENIED, "denied") })
        });
    }
}
