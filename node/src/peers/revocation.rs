//! When a node believes that it was revoked, and what it does then.
//!
//! Raft does not tell those that it removes, so their peers do: whoever asks for a lock to be opened or for a session, and is
//! no member any more, is told so, with how new the roster is that says it. To believe that is for ever, so one voice is not
//! enough: a member that lies, or a thief with one disk who answers in the name of its node, could otherwise put any node
//! out of service. What counts is
//!
//! - the own log: a final configuration without this node that it has applied itself is proof, and needs nobody's word;
//! - else the word of a majority of the voters of the roster that lies in the own vault, each with its pinned key, and with
//!   a roster that is newer than that one. The own log is one of these voices if it holds an entry that denies this node.
//!
//! A majority of the voters could revoke the node in earnest, so nobody gains by making it believe so. A node that hears less
//! is not let in by those that know better, holds no lease, and goes on asking.
//!
//! Then it notes that in the vault, forgets its keys and everything that its lock opened to, stops Raft and every session, and
//! stays so over restarts. It erases nothing on the disk: what lies there is worth nothing once the others have renewed their locks, and erasing could not
//! be taken back. A new place in the cluster begins with an empty data directory and a new id.

use std::collections::BTreeSet;
use std::sync::Arc;

use quorate_shares::ids::NodeId;
use tracing::{error, warn};

use crate::base::phase::Phase;
use crate::node::Node;
use crate::node::enrolment::Enrolment;
use crate::vault::{Roster, RosterLogId, Vault};

/// Whether `attestations` are enough to believe that `me` was revoked. `own_log` says that the own log holds an entry that denies it.
pub fn is_believed(roster: &Roster, me: NodeId, attestations: &BTreeSet<NodeId>, own_log: bool) -> bool {
    let voters: BTreeSet<NodeId> = roster.voters().collect();
    let counted = attestations.iter().filter(|&&peer| peer != me && voters.contains(&peer)).count();
    !voters.is_empty() && counted + usize::from(own_log && voters.contains(&me)) > voters.len() / 2
}

/// Whether the node of `vault` believes that it was revoked, now that `peer` says so by a roster of `shown`. `attestations` are
/// those of before; this one is added.
pub fn is_convinced(vault: &Vault, attestations: &mut BTreeSet<NodeId>, peer: NodeId, shown: RosterLogId) -> bool {
    let Some(me) = vault.identity.node.filter(|_| shown > vault.roster.log_id) else { return false };
    if attestations.insert(peer) {
        warn!(%peer, "says that this node was revoked");
    }
    let own_log = vault.denials.iter().any(|denial| denial.node == me);
    is_believed(&vault.roster, me, attestations, own_log)
}

/// Takes note that `peer`, by its pinned key, says that this node was revoked by the roster of `shown`.
pub fn note_attestation(enrolment: &Enrolment, peer: NodeId, shown: RosterLogId) {
    let revocation = &enrolment.revocation;
    let convinced = |vault: &Vault| is_convinced(vault, &mut revocation.attestations.lock(), peer, shown);
    if enrolment.with_vault(convinced).unwrap_or_default() {
        revocation.accept();
    }
}

/// Returns once this node believes that it was revoked from the cluster that its vault names then.
pub async fn awaited(node: &Node) {
    let mut enrolments = node.enrolments();
    loop {
        let enrolment = Arc::clone(&enrolments.borrow_and_update());
        tokio::select! {
            () = enrolment.revocation.accepted() => return,
            // What was said of an earlier vault was about another cluster. The sender lives as long as the node.
            _ = enrolments.changed() => {}
        }
    }
}

/// Stays down for ever. Never returns.
pub async fn stay_revoked(node: &Arc<Node>) {
    // Noted first: whatever happens next, it does not come back as if it knew nothing.
    if node.update_vault(|vault| vault.flags.revoked = true).await.is_err() {
        return std::future::pending().await;
    }
    node.enter(Phase::Revoked);
    node.forget_keys();
    node.peers().sessions.close_all("this node was revoked");
    error!(
        "this node was revoked: it is no member of the cluster any more, and stays down; to use the machine again, \
            empty its data directory and join it anew"
    );
    node.forget_own();
    if let Some(replica) = node.replica() {
        // With it goes what the storage keys were made into.
        replica.shutdown().await;
    }
    // Once more: a request that was let in before may have put a key together meanwhile.
    node.forget_keys();
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::{RosterMember, Standing};

    fn roster(voters: u64) -> Roster {
        let member = |id: u64| RosterMember {
            node: NodeId(id),
            boot_pk: [id as u8; 32],
            op_pk: [id as u8 + 100; 32],
            standing: Standing { admitted: true, voter: id <= voters, ..Standing::default() },
            name: format!("n{id}").parse().expect("a name"),
            addresses: Vec::new(),
        };
        Roster { members: (1..=voters + 1).map(member).collect(), ..Roster::default() }
    }

    fn believes(voters: u64, voices: &[u64], own_log: bool) -> bool {
        is_believed(&roster(voters), NodeId(1), &voices.iter().copied().map(NodeId).collect(), own_log)
    }

    /// Mutated: with one voice that is enough, or voices of others than voters, this fails.
    #[test]
    fn one_liar_cannot_put_a_node_out_of_service() {
        for voters in 2..=7 {
            assert!(!believes(voters, &[2], false), "{voters}");
            let majority = voters / 2 + 1;
            let others: Vec<u64> = (2..=majority).collect();
            assert!(!believes(voters, &others, false), "{voters}: one too few");
            assert!(believes(voters, &others, true), "{voters}: and the own log");
            if voters > 2 {
                assert!(believes(voters, &[&others[..], &[majority + 1]].concat(), false), "{voters}");
            }
        }
        assert!(!believes(3, &[1, 2], false), "itself");
        assert!(!believes(3, &[2, 4, 9], false), "a learner, a stranger");
        assert!(!is_believed(&Roster::default(), NodeId(1), &[NodeId(2)].into(), true), "nobody to ask");
    }
}
