//! The keys that this node holds for the locks of its peers: which of them it offers, and when it erases old ones.
//!
//! [`lock_keys`] decides. This module makes it durable, and talks to the peers.

use std::sync::Arc;
use std::time::Duration;

use quorate_shares::ids::NodeId;
use serde_bytes::ByteBuf;
use tokio::time::sleep;
use tracing::warn;

use crate::base::random;
use crate::lock::renewal;
use crate::messages::peer::{LockState, PeerRefusal, PeerReply};
use crate::node::Node;
use crate::node::enrolment::Enrolment;
use crate::vault::lock_keys;

/// How often the grace time of lock keys is counted.
pub const GRACE_TICK_S: u16 = 10;

/// PREP: offers a key to `from`. The key is durable before its public half leaves.
pub async fn prepare(
    node: &Node,
    enrolment: &Arc<Enrolment>,
    from: NodeId,
    durable: LockState,
) -> Result<PeerReply, PeerRefusal> {
    let (me, roster) = (enrolment.identity.id(), enrolment.roster.current());
    let prepare = node.update_vault_of(Arc::clone(enrolment), move |vault| {
        // While founding, a node that holds a key for another must also know, after a loss of power, whose key it is.
        if vault.founding.is_some() && me != NodeId(0) {
            vault.identity.node = Some(me);
            vault.roster = (*roster).clone();
        }
        // A request may have come over a session that was open before. Once the vault refuses a node, the lock reports of this one
        // say that it holds nothing for that node, so it must not get a key any more.
        if vault.roster.revoked.iter().any(|revoked| revoked.node == from) {
            return Err(PeerRefusal::Denied);
        }
        lock_keys::prepare(vault, from, durable, &mut random::system()).map_err(|lock_keys::Busy| PeerRefusal::Busy)
    });
    let (key_number, public) = prepare.await.map_err(|_| PeerRefusal::Storage)??;
    Ok(PeerReply::LockKey { key_number, public: ByteBuf::from(public.as_bytes().to_vec()) })
}

/// COMMIT: the lock of `from` with this key is durable.
///
/// # Errors
/// [`PeerRefusal::Storage`].
pub async fn commit(
    node: &Node,
    enrolment: &Arc<Enrolment>,
    from: NodeId,
    durable: LockState,
) -> Result<(), PeerRefusal> {
    let noted = node.update_vault_of(Arc::clone(enrolment), move |vault| lock_keys::commit(vault, from, durable));
    noted.await.map_err(|_| PeerRefusal::Storage)
}

/// Counts this node's running time for lock keys in their grace, erases the keys when their grace ends, and tells the
/// peers that the keys were for. Also repeats COMMIT to every peer that has not acknowledged this node's lock.
pub async fn keep(node: Arc<Node>) {
    loop {
        sleep(Duration::from_secs(GRACE_TICK_S.into())).await;
        if node.with_vault(lock_keys::owes_erasure).unwrap_or_default()
            && let Err(error) = node.update_vault(|vault| lock_keys::tick(vault, GRACE_TICK_S)).await
        {
            warn!(%error, "old lock keys are not erased yet");
        }
        let enrolment = node.enrolment();
        let commit = async {
            // The id that the lock belongs to is final only when founding is over.
            if !enrolment.with_vault(|vault| vault.founding.is_some()).unwrap_or(true) {
                renewal::commit(&enrolment).await;
            }
        };
        tokio::join!(renewal::tell_erased(&enrolment), commit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::testing::{member, node_of};
    use crate::vault::{self, Founding, Invited, Revoked, Role, Roster, RosterLogId, Vault};
    use quorate_shares::ids::ClusterId;
    use quorate_shares::secret::Secret;

    /// A founder that loses power right after it answered PREP must know, when it comes back, whose lock key it holds;
    /// otherwise two founders wait for each other for ever. What the network sees of this depends on a race.
    #[tokio::test]
    async fn a_founder_makes_the_roster_durable_with_the_lock_key() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut vault = Vault::new(ClusterId([1; 16]), Secret::random(&mut random::system()));
        let key = crate::vault::invitation::InvitationKey::of(&Secret::random(&mut random::system()));
        let inviter =
            crate::vault::invitation::Inviter { boot_pk: [2; 32], address: "127.0.0.1:7250".parse().expect("one") };
        let role = Role::Founder(Invited { key, inviters: vec![inviter] });
        let name = "n2".parse().expect("a name");
        vault.founding = Some(Founding { attempt: 0, name, addresses: member(2).addresses, role });
        let node = node_of(dir.path(), vault);
        // Learned from the first founder, and in memory only so far.
        node.enrolment().identity.set_id(NodeId(2));
        let members = vec![member(1), member(2)];
        node.enrolment().roster.set(Roster { log_id: RosterLogId::default(), members, revoked: Vec::new() });

        let reply = prepare(&node, &node.enrolment(), NodeId(1), LockState { generation: 0, key_number: 0 })
            .await
            .expect("a key");
        assert!(matches!(reply, PeerReply::LockKey { key_number: 1, .. }));
        let durable = vault::inspect(dir.path()).expect("the vault on the disk");
        assert_eq!(durable.identity.node, Some(NodeId(2)));
        assert_eq!(durable.roster, *node.roster());
        assert!(durable.held_for(NodeId(1)).and_then(|held| held.key(1)).is_some());
    }

    /// The request of a node that is revoked was on its way when the roster changed. Mutated: without the look at the roster in the
    /// vault it gets a key, although this node has reported that it holds none.
    #[tokio::test]
    async fn a_revoked_node_gets_no_lock_key_over_a_session_that_was_open() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut vault = Vault::new(ClusterId([1; 16]), Secret::random(&mut random::system()));
        vault.identity.node = Some(NodeId(1));
        vault.roster.members = vec![member(1), member(3)];
        vault.roster.revoked = vec![Revoked { node: NodeId(2), boot_pk: member(2).boot_pk }];
        let node = node_of(dir.path(), vault);
        let none = || LockState { generation: 0, key_number: 0 };
        let given = prepare(&node, &node.enrolment(), NodeId(3), none()).await;
        assert!(given.is_ok(), "the control: a member gets one");
        let refused = prepare(&node, &node.enrolment(), NodeId(2), none()).await;
        assert_eq!(refused.err(), Some(PeerRefusal::Denied), "it is revoked");
        assert!(vault::inspect(dir.path()).expect("the vault on the disk").held_for(NodeId(2)).is_none());
    }
}
