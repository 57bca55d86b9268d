//! How the leader changes the voters and the learners.
//!
//! ```text
//! add_learner ─► (it catches up: matched) ─► change_voters ─► joint entry ─► final entry
//! ```
//!
//! One change runs at a time. Any leader may repeat each call until it succeeds: a change that is done already succeeds, and
//! one that is half done is finished first. A leader that dies between the two entries leaves the membership joint, and the
//! next leader finishes it by itself ([`keep_finishing`]).
//!
//! Before the leader proposes a change of the voters, it counts the nodes that it can reach and that are not and will not be
//! denied. They must be a majority of the old voters and of the new ones. Otherwise the change could not be committed, and no
//! entry after it. So the leader proposes nothing, and the answer names the nodes that it waits for.

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

/// The pause before a leader finishes a joint membership that an earlier leader may still finish, and between two attempts.
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

    /// Follows [`Replica::membership`], with a small delay.
    pub fn memberships(&self) -> watch::Receiver<Membership> {
        self.inner.memberships.subscribe()
    }

    /// On the leader: the last entry of each member's log that is known to agree with its own. Empty on other nodes. A revocation
    /// is effective once enough of the remaining members have its entry.
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

    /// Makes `node` a learner: it follows the log without a vote. Returns when that is committed; the node may still be behind.
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

    /// Removes a learner, for example one whose join is given up.
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

    /// Makes `voters` the voters, and returns when that is committed. New voters must be learners. Voters that leave are removed,
    /// and denied as `purpose` says. `reachable` are the members that this node can reach now.
    ///
    /// # Errors
    /// [`ChangeError`]. After most of them, repeat the call; after a final one ([`ChangeError::is_final`]), do not.
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

    /// Makes a joint membership final, and returns when that is committed. Does nothing if the membership is not joint.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn finish_joint(&self) -> Result<(), ChangeError> {
        let _one = self.inner.changing.lock().await;
        self.settled().await.map(drop)
    }

    /// Returns the membership once it is committed and not joint.
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
        // Adding no voter is openraft's way from a joint membership to its newest half.
        self.change(&now, ChangeMembers::AddVoterIds(BTreeSet::new()), intent).await?;
        self.membership().await.map_err(|_| ChangeError::Stopped)
    }

    /// The intent of a membership, from its entry. If the entry is purged, from the applied position.
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

/// Finishes every joint membership that is left over while this node leads. A change of the voters holds the lock until it is
/// done. So a membership that is joint after the lock was taken was left by a leader that died, or by a caller that gave up.
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
