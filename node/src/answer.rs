//! The one door for what peers ask inside an op session.

use std::sync::Arc;

use quorate_client::conn::Conn;
use quorate_raft::command::{Change, Command};
use quorate_raft::refusal::Refusal as StateRefusal;
use quorate_raft::{ProposeError, Replica};
use quorate_shares::ids::NodeId;
use serde_bytes::ByteBuf;
use tracing::debug;

use crate::node::Node;
use crate::peer::{LockState, PeerReply, PeerRequest, Refusal};
use crate::{confirm, deal, desk, found, gather, lock_keys, members, random, status};

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
            let records = members::check_epoch(node, &replica(node)?, epoch, index).await?;
            Ok(PeerReply::EpochAck { records })
        }
        PeerRequest::LockPrepare(durable) => prepare_lock(node, from, durable).await,
        PeerRequest::LockCommit(durable) => {
            let commit = node.update_vault(move |vault| lock_keys::commit(vault, from, durable));
            commit.await.map(|()| PeerReply::Done).map_err(|_| Refusal::Storage)
        }
        PeerRequest::FoundingTerms => {
            let threshold = node.with_vault(|vault| desk::view(vault).map(|(_, first)| first.threshold)).flatten();
            threshold.map(|threshold| PeerReply::FoundingTerms { threshold }).ok_or(Refusal::NotFounding)
        }
        PeerRequest::FoundingLocked { attempt } => {
            let current = node.with_vault(|vault| desk::view(vault).map(|(attempt, _)| attempt)).flatten();
            if current != Some(attempt) {
                return Err(Refusal::NotFounding);
            }
            found::note_locked(node, from, attempt);
            Ok(PeerReply::Done)
        }
        PeerRequest::Propose(command) => propose(&replica(node)?, from, *command).await,
        PeerRequest::Change(change) => {
            let replica = replica(node)?;
            let leadership = *replica.leadership().borrow();
            if !leadership.am_leader {
                return Err(Refusal::NotLeader(leadership.leader));
            }
            // On a task of its own: a key that is half made must be finished even when the asker goes away.
            let node = Arc::clone(node);
            let task = tokio::spawn(async move { deal::change(&node, &replica, change).await });
            Ok(PeerReply::Changed(task.await.map_err(|_| Refusal::Storage)?))
        }
        PeerRequest::Report => Ok(PeerReply::Report(status::report(node))),
    }
}

fn replica(node: &Node) -> Result<Replica, Refusal> {
    node.replica().ok_or_else(|| Refusal::Phase(node.phase().to_string()))
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

/// What members may have proposed: the founding, by the first founder, and each one's own lock report.
async fn propose(replica: &Replica, from: NodeId, command: Command) -> Result<PeerReply, Refusal> {
    let allowed = match &command.change {
        Change::Found(_) => from == found::FIRST,
        Change::ReportLock(report) => report.node == from,
        _ => false,
    };
    if !allowed {
        return Err(Refusal::Malformed);
    }
    match replica.propose(command).await {
        Ok(_) | Err(ProposeError::Refused(StateRefusal::AlreadyFounded)) => Ok(PeerReply::Done),
        Err(ProposeError::NotLeader { leader }) => Err(Refusal::NotLeader(leader)),
        Err(error) => {
            debug!(%from, %error, "proposal refused");
            Err(Refusal::Behind)
        }
    }
}
