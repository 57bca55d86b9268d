//! Which nodes are members, which are refused, and what a node does when it is no member itself: `roster_update::run`, the `VaultGate`, `revocation`.

use quorate_node::base::phase::Phase;
use quorate_node::cluster::roster_update::{self, Seen};
use quorate_node::peers::revocation;
use quorate_node::vault::lock_keys;
use quorate_node::vault::{RosterLogId, VaultFile};
use quorate_raft::Denial;
use quorate_shares::ids::NodeId;

use crate::model::node::{Context, Daemon, Killed};
use crate::model::raft::{Gate, RaftMessage};
use crate::model::world::disk::VaultDisk;

/// How often denials are compared with the applied state, while there are any.
const LOOK_MS: u64 = 500;

/// Denials in the vault, durable before the log has their entry.
pub(in crate::model::node) struct VaultGate<'a>(&'a mut VaultFile<VaultDisk>);

impl<'a> VaultGate<'a> {
    pub(in crate::model::node) fn new(vault: &'a mut VaultFile<VaultDisk>) -> Self {
        Self(vault)
    }
}

impl Gate for VaultGate<'_> {
    fn deny(&mut self, denials: &[Denial]) -> Result<(), Killed> {
        if denials.is_empty() {
            return Ok(());
        }
        self.0.update(|vault| roster_update::deny(vault, denials)).map_err(|_| Killed)
    }
}

impl Daemon {
    pub(in crate::model::node) fn gate(&mut self) -> VaultGate<'_> {
        VaultGate(&mut self.vault)
    }

    pub(in crate::model::node) fn hear_raft(
        &mut self,
        context: &mut Context<'_>,
        from: NodeId,
        message: RaftMessage,
    ) -> Result<(), Killed> {
        let Some(unlocked) = &mut self.unlocked else { return Ok(()) };
        unlocked.raft.receive(from, message, (context.db, &mut VaultGate(&mut self.vault)), context.now_ms)
    }

    pub(in crate::model::node) fn tick_raft(&mut self, context: &mut Context<'_>) -> Result<(), Killed> {
        let Some(unlocked) = &mut self.unlocked else { return Ok(()) };
        unlocked.raft.tick((context.db, &mut VaultGate(&mut self.vault)), context.now_ms, context.dice)
    }

    /// `roster_update::run` and `step`, a moment after a change of the members was applied.
    pub(in crate::model::node) fn update_roster(&mut self, context: &mut Context<'_>) -> Result<(), Killed> {
        let Some(unlocked) = &mut self.unlocked else { return Ok(()) };
        let open = !self.vault.current().denials.is_empty() && context.now_ms >= self.roster_updated_ms + LOOK_MS;
        let changed = unlocked.members_changed && !context.dice.chance(300);
        // Before the founding the state has no members, and a joiner may not have applied the entry that lets it in.
        let joins = self.vault.current().founding.is_some();
        if joins || unlocked.state.cluster.is_none() || (!changed && !open) {
            return Ok(());
        }
        unlocked.members_changed = false;
        self.roster_updated_ms = context.now_ms;
        let image = context.db.now();
        let seen = Seen::of(&unlocked.state, image.place(image.applied), &image.membership(image.applied));
        let followed = self.vault.update(|vault| {
            let next = roster_update::next(&vault.roster, &vault.denials, &seen);
            (vault.roster, vault.denials) = (next.roster.clone(), next.denials.clone());
            next
        });
        let gone = followed.map_err(|_| Killed)?.gone;
        self.gone.extend(gone.iter().map(|gone| gone.node));
        self.revoked |= gone.iter().any(|gone| gone.node == self.me.node);
        Ok(())
    }

    /// `revocation::note_attestation`.
    pub(in crate::model::node) fn hear_of_revocation(&mut self, peer: NodeId, shown: RosterLogId) {
        self.revoked |= revocation::is_convinced(self.vault.current(), &mut self.attestations, peer, shown);
    }

    /// `revocation::stay_revoked`: noted first, then every key is forgotten, for ever.
    pub(in crate::model::node) fn stay_revoked(&mut self) -> Result<(), Killed> {
        self.vault.update(|vault| vault.flags.revoked = true).map_err(|_| Killed)?;
        self.phase = Phase::Revoked;
        self.unlocked = None;
        self.pieces.clear();
        self.sessions.clear();
        self.asked.clear();
        Ok(())
    }

    /// `renewal::erase_former`.
    pub(in crate::model::node) fn erase_former(&mut self) -> Result<(), Killed> {
        let Some(unlocked) = &self.unlocked else { return Ok(()) };
        let former = &unlocked.state.former;
        if self.vault.current().held.iter().any(|held| former.contains_key(&held.peer)) {
            let erased = self.vault.update(|vault| lock_keys::erase_former(vault, |peer| former.contains_key(&peer)));
            erased.map_err(|_| Killed)?;
        }
        Ok(())
    }
}
