//! The one door for what peers ask inside an op session.

use std::sync::Arc;

use quorate_client::conn::Conn;
use quorate_raft::Replica;
use quorate_shares::ids::NodeId;
use serde_bytes::ByteBuf;
use tracing::debug;

use crate::base::random;
use crate::cluster::{alarms, members, operate, status};
use crate::join::desk;
use crate::keys::{deal, gather};
use crate::lease::{confirm, sealing};
use crate::lock::absence;
use crate::messages::peer::{LockState, PeerReply, PeerRequest, Refusal};
use crate::node::Node;
use crate::peers::proposal;
use crate::vault::lock_keys;

/// Answers `request` of the member `from`, whose op key was checked, on `conn`. `body` is the request as it was received.
pub async fn peer(node: &Arc<Node>, from: NodeId, conn: &Conn, request: PeerRequest, body: &[u8]) -> PeerReply {
    answer(node, from, conn, request, body).await.unwrap_or_else(PeerReply::Refused)
}

async fn answer(
    node: &Arc<Node>,
    from: NodeId,
    conn: &Conn,
    request: PeerRequest,
    body: &[u8],
) -> Result<PeerReply, Refusal> {
    match request {
        // The door itself has dealt with these two.
        PeerRequest::Hello(_) | PeerRequest::Ping => Ok(PeerReply::Pong),
        PeerRequest::Raft(message) => {
            let reply = replica(node)?.serve(from, &message).await;
            reply.map(|reply| PeerReply::Raft(ByteBuf::from(reply))).map_err(|error| {
                debug!(%from, %error, "Raft message refused");
                Refusal::Storage
            })
        }
        PeerRequest::Lease => Ok(confirm::answer(&replica(node)?).await),
        PeerRequest::Shares(request) => Ok(gather::answer(node, &replica(node)?, (from, conn), &request, body)),
        PeerRequest::Verify(request) => {
            members::check_shares(node, &replica(node)?, &request).await.map(PeerReply::Verified)
        }
        PeerRequest::AckEpoch { epoch, index } => {
            let redealt = members::check_epoch(node, &replica(node)?, epoch, index).await?;
            Ok(PeerReply::EpochAck { redealt })
        }
        PeerRequest::LockPrepare(durable) => prepare_lock(node, from, durable).await,
        PeerRequest::LockCommit(durable) => {
            let commit = node.update_vault(move |vault| lock_keys::commit(vault, from, durable));
            commit.await.map(|()| PeerReply::Done).map_err(|_| Refusal::Storage)
        }
        PeerRequest::LockErased(state) => {
            node.enrolment().locks.old_copies.lock().erased(from, state.keyno);
            Ok(PeerReply::Done)
        }
        PeerRequest::FoundingTerms => {
            let founding = node.with_vault(|vault| desk::view(vault).map(|(_, first)| first.threshold)).flatten();
            let active = || node.replica()?.read(|state| state.active().map(|epoch| epoch.threshold));
            let threshold = founding.or_else(active);
            threshold.map(|threshold| PeerReply::FoundingTerms { threshold }).ok_or(Refusal::NotFounding)
        }
        PeerRequest::FoundingLocked { attempt } => {
            let current = node.with_vault(|vault| desk::view(vault).map(|(attempt, _)| attempt)).flatten();
            if current != Some(attempt) {
                return Err(Refusal::NotFounding);
            }
            node.enrolment().joining.note_locked(from, attempt);
            Ok(PeerReply::Done)
        }
        PeerRequest::Propose(command) => proposal::answer(node, &replica(node)?, from, *command).await,
        PeerRequest::Change(change) => {
            let replica = led(node)?;
            // On a task of its own: a key that is half made must be finished even when the asker goes away.
            let node = Arc::clone(node);
            let task = tokio::spawn(async move { deal::change(&node, &replica, change).await });
            Ok(PeerReply::Changed(task.await.map_err(|_| Refusal::Storage)?))
        }
        PeerRequest::Operate(operate) => {
            let replica = led(node)?;
            Ok(PeerReply::Operated(operate::begin(node, &replica, operate).await))
        }
        PeerRequest::Progress { operation } => {
            let replica = led(node)?;
            Ok(PeerReply::Progress(operate::progress(node, &replica, operation).await))
        }
        PeerRequest::Report => Ok(PeerReply::Report(status::report(node))),
        PeerRequest::Disarm { codes } => {
            alarms::disarm(node, &codes).await.map(|()| PeerReply::Done).map_err(|_| Refusal::Storage)
        }
        PeerRequest::Admit { node: peer } => {
            absence::admit(node, peer).await.map(|()| PeerReply::Done).map_err(|error| Refusal::Phase(error.message))
        }
        PeerRequest::Seal { sealed } => {
            sealing::set(node, sealed).await.map(|()| PeerReply::Done).map_err(|error| Refusal::Phase(error.message))
        }
        PeerRequest::Flushed(flushed) => {
            node.peers().sessions.note_reported(from, flushed);
            Ok(PeerReply::Done)
        }
        PeerRequest::Roster => {
            let roster = node.with_vault(|vault| vault.roster.encode());
            let roster = roster.and_then(Result::ok).ok_or(Refusal::Storage)?;
            Ok(PeerReply::Roster(ByteBuf::from(roster)))
        }
    }
}

fn replica(node: &Node) -> Result<Replica, Refusal> {
    node.replica().ok_or_else(|| Refusal::Phase(node.phase().to_string()))
}

/// The replica, if this node leads.
fn led(node: &Node) -> Result<Replica, Refusal> {
    let replica = replica(node)?;
    let leadership = *replica.leadership().borrow();
    if leadership.am_leader { Ok(replica) } else { Err(Refusal::NotLeader(leadership.leader)) }
}

/// The key must be durable before its public half leaves.
async fn prepare_lock(node: &Arc<Node>, from: NodeId, durable: LockState) -> Result<PeerReply, Refusal> {
    let (me, roster) = (node.id(), node.roster());
    let prepare = node.update_vault(move |vault| {
        // While founding, whoever holds a key for another must also know, after a loss of power, whose key it is.
        if vault.founding.is_some() && me != NodeId(0) {
            vault.identity.node = Some(me);
            vault.roster = (*roster).clone();
        }
        lock_keys::prepare(vault, from, durable, &mut random::system())
    });
    let (keyno, public) = prepare.await.map_err(|_| Refusal::Storage)?.map_err(|lock_keys::Busy| Refusal::Busy)?;
    Ok(PeerReply::LockKey { keyno, public: ByteBuf::from(public.as_bytes().to_vec()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::testing::{member, node_of};
    use crate::vault::{self, Founding, Invited, Role, Roster, RosterLogId, Vault};
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

        let reply = prepare_lock(&node, NodeId(1), LockState { generation: 0, keyno: 0 }).await.expect("a key");
        assert!(matches!(reply, PeerReply::LockKey { keyno: 1, .. }));
        let durable = vault::inspect(dir.path()).expect("the vault on the disk");
        assert_eq!(durable.identity.node, Some(NodeId(2)));
        assert_eq!(durable.roster, *node.roster());
        assert!(durable.held_for(NodeId(1)).and_then(|held| held.key(1)).is_some());
    }
}
