//! What belongs to one vault: this node in one cluster, or on its way there.
//!
//! A node that was refused when it joined discards its vault and begins again, with another identity and perhaps in another
//! cluster, where the same ids are other nodes. So everything that one vault stands for is one value. It is dropped as a whole
//! and made new; nothing is reset field by field.
//!
//! Work that is under way holds the value that it began with. That one has no vault and no sessions any more once it is over, so
//! nothing that was meant for one cluster reaches another.

use std::sync::Arc;

use parking_lot::Mutex;
use quorate_client::conn::close;
use quorate_shares::ids::NodeId;
use quorate_shares::secret::Secret;

use crate::node::identity::OwnIdentity;
use crate::node::joining::Joining;
use crate::node::locks::Locks;
use crate::node::peers::Peers;
use crate::node::revocation::Revocation;
use crate::node::roster::KnownRoster;
use crate::vault::{Roster, Vault, VaultError, VaultFile};

/// This node in one cluster.
pub struct Enrolment {
    /// Who it is.
    pub identity: OwnIdentity,
    /// Who the members are.
    pub roster: KnownRoster,
    /// What is known of the others.
    pub peers: Arc<Peers>,
    /// Its lock, and the part of the peers in it.
    pub locks: Locks,
    /// How far it is on its way into the cluster.
    pub joining: Joining,
    /// Who says that it was revoked.
    pub revocation: Revocation,
    vault: Mutex<Option<VaultFile>>,
}

impl Enrolment {
    /// That of a node without a vault; the next vault is made with this seed.
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

    /// The same, after a join that was refused for this reason.
    pub fn after_refusal(boot_seed: Secret<32>, reason: &str) -> Self {
        Self { joining: Joining::refused(reason), ..Self::without_vault(boot_seed) }
    }

    /// That of a vault: from here on the node has a boot identity.
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

    /// Ends it: its vault can be written no more, and its sessions are closed and take no others.
    pub(super) fn end(&self, reason: &str) -> Option<VaultFile> {
        let vault = self.vault.lock().take();
        self.peers.sessions.end(reason);
        vault
    }

    /// Whether there is a vault.
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

    /// Changes the vault, durable when this returns; `None` without one. Blocks on the disk.
    pub(super) fn update_vault<R>(&self, change: impl FnOnce(&mut Vault) -> R) -> Option<Result<R, VaultError>> {
        self.vault.lock().as_mut().map(|vault| vault.update(change))
    }

    /// Changes the vault's roster or denials, durable and in force when this returns; `None` without a vault. Blocks on the disk.
    pub(super) fn update_roster<R>(&self, change: impl FnOnce(&mut Vault) -> R) -> Option<Result<R, VaultError>> {
        let mut vault = self.vault.lock();
        let file = vault.as_mut()?;
        let updated = file.update(change);
        if updated.is_ok() {
            // Before the vault is free again, or an older roster could follow a newer one.
            self.roster.show(&file.current().roster, self.identity.id());
        }
        Some(updated)
    }

    /// Puts a roster that a peer showed in force, beside the own one; with `None` the own one alone is again.
    pub fn use_newer_roster(&self, newer: Option<Roster>) {
        let vault = self.vault.lock();
        let Some(file) = vault.as_ref() else { return };
        self.roster.set_newer(newer);
        self.roster.show(&file.current().roster, self.identity.id());
    }

    /// Whether a roster is newer than every one that this node knows.
    pub fn is_newer(&self, shown: &Roster) -> bool {
        self.roster.is_newer(shown, self.with_vault(|vault| vault.roster.log_id).unwrap_or_default())
    }

    /// Closes every session with a node that is not trusted any more.
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
