//! When a node believes that it was revoked, and what it does then.
//!
//! Raft does not tell a node that it was removed, so its peers do. If a former member asks to open a session or a piece of its
//! lock, the peer answers that it was revoked, and names the log entry of the roster that says so. This is an attestation.
//!
//! A node that believes it is out of service for ever. So one attestation is not enough: a member that lies, or a thief with one
//! disk who answers as its node, could otherwise put any node out of service. A node believes that it was revoked by
//!
//! - its own log: a final configuration without this node, which it applied itself, is proof without any attestation;
//! - or the attestations of a majority of the voters of the roster in its own vault. Each must come with the voter's pinned key,
//!   and with a roster that is newer than the own one. If the own log holds an entry that denies this node, it counts as this
//!   node's own attestation.
//!
//! A majority of the voters could really revoke the node, so an attacker gains nothing by making it believe so. With fewer
//! attestations the node goes on asking. Meanwhile the peers that know of the revocation do not let it in, and it gets no lease.
//!
//! A node that believes it notes that in its vault, forgets its keys and its opened bundle, stops Raft and every session, and
//! stays down over restarts. It erases nothing on the disk: the data there is worth nothing once the others have renewed their
//! locks, and erasing could not be undone. To join the cluster again, it needs an empty data directory and a new id.

use std::collections::BTreeSet;
use std::sync::Arc;

use quorate_shares::ids::NodeId;
use tracing::{error, warn};

use crate::base::phase::Phase;
use crate::node::Node;
use crate::node::enrolment::Enrolment;
use crate::vault::{Roster, RosterLogId, Vault};

/// Whether `attestations` are enough to believe that `me` was revoked. `own_log` says whether the own log holds an entry that
/// denies `me`.
pub fn is_believed(roster: &Roster, me: NodeId, attestations: &BTreeSet<NodeId>, own_log: bool) -> bool {
    let voters: BTreeSet<NodeId> = roster.voters().collect();
    let counted = attestations.iter().filter(|&&peer| peer != me && voters.contains(&peer)).count();
    !voters.is_empty() && counted + usize::from(own_log && voters.contains(&me)) > voters.len() / 2
}

/// Adds the attestation of `peer`, which has a roster of `shown`, to the earlier `attestations`. Returns whether the node of
/// `vault` now believes that it was revoked.
pub fn is_convinced(vault: &Vault, attestations: &mut BTreeSet<NodeId>, peer: NodeId, shown: RosterLogId) -> bool {
    let Some(me) = vault.identity.node.filter(|_| shown > vault.roster.log_id) else { return false };
    if attestations.insert(peer) {
        warn!(%peer, "a peer says that this node was revoked");
    }
    let own_log = vault.denials.iter().any(|denial| denial.node == me);
    is_believed(&vault.roster, me, attestations, own_log)
}

/// Notes the attestation of `peer` that this node was revoked. The peer has shown its pinned key and has a roster of `shown`.
pub fn note_attestation(enrolment: &Enrolment, peer: NodeId, shown: RosterLogId) {
    let revocation = &enrolment.revocation;
    let convinced = |vault: &Vault| is_convinced(vault, &mut revocation.attestations.lock(), peer, shown);
    if enrolment.with_vault(convinced).unwrap_or_default() {
        revocation.accept();
    }
}

/// Returns the present enrolment, once this node believes that it was revoked from its cluster.
pub async fn awaited(node: &Node) -> Arc<Enrolment> {
    let mut enrolments = node.enrolments();
    loop {
        let enrolment = Arc::clone(&enrolments.borrow_and_update());
        tokio::select! {
            biased;
            // The attestations for the earlier vault were about another cluster. The sender lives as long as the node.
            _ = enrolments.changed() => {}
            () = enrolment.revocation.accepted() => return enrolment,
        }
    }
}

/// Puts the node, which was revoked from the cluster of `enrolment`, out of service for ever. It returns only if that enrolment is
/// over: its join was refused, or an operator gave another invitation.
pub async fn stay_revoked(node: &Arc<Node>, enrolment: &Arc<Enrolment>) {
    // At once, however slow the disk is: what is open here, clients and peers, is refused from now on. A node in these phases has a
    // lock, so no other enrolment takes the place of this one.
    if matches!(node.phase(), Phase::Open | Phase::Serving | Phase::Sealed) {
        node.enter(Phase::Revoked);
        node.forget_keys();
    }
    // Noted before the rest: after a crash in the next lines the node must still know that it was revoked.
    let noted = node.update_vault_of(Arc::clone(enrolment), |vault| vault.flags.revoked = true);
    if noted.await.is_err() {
        if !Arc::ptr_eq(enrolment, &node.enrolment()) {
            return;
        }
        // The disk failed, and the node stops.
        return std::future::pending().await;
    }
    node.enter(Phase::Revoked);
    node.forget_keys();
    node.peers().sessions.close_all("this node was revoked");
    error!(
        "this node was revoked: it is no member of the cluster any more, and stays down; to use the machine again, \
            empty its data directory and join it again"
    );
    node.forget_own_keys();
    if let Some(replica) = node.replica() {
        // This also drops what was derived from the storage keys.
        replica.shutdown().await;
    }
    // Once more: a request that was accepted before may have reconstructed a key since.
    node.forget_keys();
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use quorate_shares::ids::ClusterId;
    use quorate_shares::secret::Secret;

    use super::*;
    use crate::base::random;
    use crate::node::testing::node_of;
    use crate::vault::{RosterMember, Standing};

    /// The disk hangs at the moment at which the node learns that it was revoked. Its open connections are refused meanwhile.
    /// Mutated: if the phase changes only when the note is durable, the node serves until the disk answers.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_node_that_learns_of_its_revocation_does_not_wait_for_its_disk() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let node = node_of(dir.path(), Vault::new(ClusterId([1; 16]), Secret::random(&mut random::system())));
        node.enter(Phase::Serving);
        let (held, release) = (mpsc::channel::<()>(), mpsc::channel::<()>());
        let hangs = std::thread::spawn({
            let (node, held, release) = (Arc::clone(&node), held.0, release.1);
            move || {
                node.with_vault(|_| {
                    held.send(()).expect("the test waits");
                    release.recv().expect("the test lets go");
                })
            }
        });
        held.1.recv().expect("the vault is held");
        let stays = tokio::spawn({
            let node = Arc::clone(&node);
            async move { stay_revoked(&node, &node.enrolment()).await }
        });
        let mut phases = node.serving.phases();
        let left = tokio::time::timeout(Duration::from_secs(30), phases.wait_for(|phase| *phase == Phase::Revoked));
        left.await.expect("although the disk hangs").expect("the node is there");
        release.0.send(()).expect("it waits");
        hangs.join().expect("no panic");
        let noted = async {
            while !node.with_vault(|vault| vault.flags.revoked).unwrap_or_default() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), noted).await.expect("and it is noted");
        stays.abort();
    }

    fn roster(voters: u64) -> Roster {
        let member = |id: u64| RosterMember {
            node: NodeId(id),
            boot_pk: [id as u8; 32],
            op_pk: [id as u8 + 100; 32],
            standing: Standing { member: true, voter: id <= voters, ..Standing::default() },
            name: format!("n{id}").parse().expect("a name"),
            addresses: Vec::new(),
        };
        Roster { members: (1..=voters + 1).map(member).collect(), ..Roster::default() }
    }

    fn believes(voters: u64, attestations: &[u64], own_log: bool) -> bool {
        is_believed(&roster(voters), NodeId(1), &attestations.iter().copied().map(NodeId).collect(), own_log)
    }

    /// Mutated: if one attestation is enough, or attestations of nodes count that are not voters, this fails.
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
        assert!(!is_believed(&Roster::default(), NodeId(1), &[NodeId(2)].into(), true), "no voters");
    }

    /// A member that was cut off before the newest change of the roster says nothing about that change. Mutated: if its roster is
    /// not compared, old members put a node out of service that has joined since.
    #[test]
    fn only_a_newer_roster_says_that_this_node_is_out() {
        let mut vault = Vault::new(ClusterId([1; 16]), Secret::random(&mut random::system()));
        vault.identity.node = Some(NodeId(1));
        let at = |index| RosterLogId { term: 2, leader: 1, index };
        vault.roster = Roster { log_id: at(10), ..roster(3) };
        let convinced = |index| {
            let mut attestations = BTreeSet::new();
            [2, 3].map(|peer| is_convinced(&vault, &mut attestations, NodeId(peer), at(index)))
        };
        assert_eq!(convinced(9), [false, false], "older");
        assert_eq!(convinced(10), [false, false], "the own one");
        assert_eq!(convinced(11), [false, true], "the control: newer, and a majority of the voters");
        let mut attestations = BTreeSet::new();
        assert!(!is_convinced(&vault, &mut attestations, NodeId(2), at(11)));
        assert!(!is_convinced(&vault, &mut attestations, NodeId(2), at(12)), "one peer counts once");
    }
}
