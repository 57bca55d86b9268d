//! Changing who votes, as the leader does it.
//!
//! ```text
//! add_learner ─► (it catches up: matched) ─► change_voters ─► joint entry ─► final entry
//! ```
//!
//! One change at a time. Each call may be repeated, by any leader, until it succeeds: what is done already is a success, and
//! what was left half done is finished first. A leader that dies between the two entries leaves the membership joint; the
//! next one finishes it without being asked ([`keep_finishing`]).
//!
//! Before it proposes a change of the voters, the leader counts: those it can reach, without those who are or will be
//! denied, must be a majority of the old voters and of the new ones. Otherwise the change would hang in the log and nothing
//! could follow it; so nothing is proposed, and the answer says whom it waits for.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::raft::ChangeMembershipRequest;
use openraft::{BasicNode, ChangeMembers, Precondition};
use quorate_shares::ids::NodeId;
use tokio::sync::watch;

use crate::consensus::error::ReadError;
use crate::consensus::replica::{Inner, Replica};
use crate::live::place::LogPlace;
use crate::live::voters::ChangeError;
use crate::live::voters::{self, ChangePurpose, Intent, Matched, Membership};
use crate::types::{Payload, Types};

/// How long a leader leaves a joint membership to whoever may be about to finish it, and pauses between two attempts.
const FINISH_PAUSE: Duration = Duration::from_millis(200);

impl Replica {
    /// The newest membership in the log of this replica, whether it is committed or not.
    ///
    /// # Errors
    /// [`ReadError::Stopped`].
    pub async fn membership(&self) -> Result<Membership, ReadError> {
        let membership = self.inner.raft.with_raft_state(|state| {
            let membership = &state.membership_state;
            let committed = membership.effective().log_id() == membership.committed().log_id();
            Membership::of(membership.effective(), committed)
        });
        membership.await.map_err(|_| ReadError::Stopped)
    }

    /// Follows [`Replica::membership`], a moment later.
    pub fn memberships(&self) -> watch::Receiver<Membership> {
        self.inner.memberships.subscribe()
    }

    /// On the leader, how far each member's log is known to agree with its own; empty elsewhere. A revocation is decisive
    /// once enough of those that remain are at or beyond the entry that made it.
    pub fn matched(&self) -> Matched {
        use openraft::async_runtime::WatchReceiver;
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let Some(replication) = metrics.replication.as_ref().filter(|_| metrics.state.is_leader()) else {
            return Matched::new();
        };
        let mut matched: Matched =
            replication.iter().map(|(&node, &matched)| (NodeId(node), matched.map(LogPlace::of))).collect();
        matched.insert(self.inner.node, self.flushed().last_log);
        matched
    }

    /// Has `node` follow without a vote. It returns when that is committed, not when the node has caught up.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn add_learner(&self, node: NodeId, label: String) -> Result<(), ChangeError> {
        let _one = self.inner.changing.lock().await;
        let now = self.settled().await?;
        if now.names(node) {
            return Ok(());
        }
        let nodes = [(node.0, BasicNode::new(label))].into();
        self.change(&now, ChangeMembers::AddNodes(nodes), None).await
    }

    /// Lets go of a learner, as when its joining is given up.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn remove_learner(&self, node: NodeId) -> Result<(), ChangeError> {
        let _one = self.inner.changing.lock().await;
        let now = self.settled().await?;
        if now.voters().contains(&node) {
            return Err(ChangeError::IsAVoter { node });
        }
        if !now.names(node) {
            return Ok(());
        }
        self.change(&now, ChangeMembers::RemoveNodes([node.0].into()), None).await
    }

    /// Makes `voters` the voters, and returns when that is committed. New ones must be learners; those that leave are removed
    /// and denied, as `purpose` says. `reachable` are the members that this node can reach now.
    ///
    /// # Errors
    /// [`ChangeError`]. After most of them the call is repeated; [`ChangeError::is_final`] says which are for the caller.
    pub async fn change_voters(
        &self,
        voters: BTreeSet<NodeId>,
        purpose: ChangePurpose,
        reachable: &BTreeSet<NodeId>,
    ) -> Result<(), ChangeError> {
        let _one = self.inner.changing.lock().await;
        let now = self.settled().await?;
        let old = now.newest();
        if old == voters {
            return Ok(());
        }
        let is_denied = |node| self.inner.gate.is_denied(node);
        let intent = voters::intent(&now, (&voters, purpose), self.inner.node, reachable, is_denied)?;
        tracing::info!(from = ?old, to = ?voters, %purpose, "changing the voters");
        let ids = voters.iter().map(|node| node.0).collect();
        self.change(&now, ChangeMembers::ReplaceAllVoters(ids), Some(intent)).await
    }

    /// Makes a joint membership final, and returns when that is committed. Done when there is none.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn finish_joint(&self) -> Result<(), ChangeError> {
        let _one = self.inner.changing.lock().await;
        self.settled().await.map(drop)
    }

    /// The membership, once it is committed and not joint.
    async fn settled(&self) -> Result<Membership, ChangeError> {
        let leader = *self.inner.leadership.borrow();
        if !leader.am_leader {
            return Err(ChangeError::NotLeader { leader: leader.leader });
        }
        let now = self.membership().await.map_err(|_| ChangeError::Stopped)?;
        if !now.committed {
            return Err(ChangeError::UnderWay);
        }
        if !now.is_joint() {
            return Ok(now);
        }
        let intent = self.intent_of(&now)?;
        tracing::info!(to = ?now.newest(), "finishing a joint membership");
        // To add nobody is openraft's way from a joint membership to its newest half.
        self.change(&now, ChangeMembers::AddVoterIds(BTreeSet::new()), intent).await?;
        self.membership().await.map_err(|_| ChangeError::Stopped)
    }

    /// Why a membership was proposed: as its entry says, or, if that is purged, the state.
    pub(crate) fn intent_of(&self, membership: &Membership) -> Result<Option<Intent>, ChangeError> {
        let Some(place) = membership.place else { return Ok(None) };
        let log = self.inner.log.lock().clone().ok_or(ChangeError::Stopped)?;
        let entry = self.inner.fatal.guard(log.entry(place.index)).map_err(|_| ChangeError::Stopped)?;
        if let Some(Payload::Membership(intent, _)) = entry.map(|entry| entry.payload) {
            return Ok(intent);
        }
        let position = self.inner.live.position.lock();
        Ok(position.intent.filter(|_| position.membership.log_id().map(LogPlace::of) == Some(place)))
    }

    async fn change(
        &self,
        now: &Membership,
        members: ChangeMembers<u64, BasicNode>,
        intent: Option<Intent>,
    ) -> Result<(), ChangeError> {
        let last_membership_log_id = now.place.map(LogPlace::log_id);
        let request = ChangeMembershipRequest::<Types>::new(members, false)
            .with_payload(Payload::intending(intent), Payload::intending(intent))
            .with_preconditions([Precondition::LastMembershipLogId { last_membership_log_id }]);
        match self.inner.raft.change_membership_with_payload(request).await {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(error)) => Err(match error {
                ClientWriteError::ForwardToLeader(forward) => {
                    ChangeError::NotLeader { leader: forward.leader_id.map(NodeId) }
                }
                ClientWriteError::LogEntryDiscarded(forward) => {
                    ChangeError::Unknown { leader: forward.leader_id.map(NodeId) }
                }
                ClientWriteError::ChangeMembershipError(ChangeMembershipError::LearnerNotFound(missing)) => {
                    ChangeError::NotALearner { node: NodeId(missing.node_id) }
                }
                ClientWriteError::ChangeMembershipError(_) | ClientWriteError::PreconditionFailed(_) => {
                    ChangeError::UnderWay
                }
            }),
            Err(RaftError::Fatal(_)) => Err(ChangeError::Stopped),
        }
    }
}

/// Finishes every joint membership that is left over while this node leads. Whoever changes the voters holds the lock
/// meanwhile, so what is found joint behind it was left by a leader that died, or by a caller that went away.
pub(crate) async fn keep_finishing(inner: Weak<Inner>, mut memberships: watch::Receiver<Membership>) {
    loop {
        let joint = memberships.borrow_and_update().is_joint();
        let Some(inner) = inner.upgrade() else { return };
        let mut leadership = inner.leadership.subscribe();
        let leads = leadership.borrow_and_update().am_leader;
        if joint && leads {
            let replica = Replica { inner: Arc::clone(&inner) };
            match replica.finish_joint().await {
                Ok(()) => {}
                Err(ChangeError::Stopped) => return,
                Err(reason) => tracing::debug!(%reason, "the joint membership is not finished yet"),
            }
        }
        drop(inner);
        tokio::select! {
            changed = memberships.changed() => if changed.is_err() { return },
            changed = leadership.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(FINISH_PAUSE), if joint => {}
        }
    }
}
