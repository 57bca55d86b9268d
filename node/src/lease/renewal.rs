//! Lease renewal: every second a node asks the leader, and the leader asks a quorum.
//!
//! The leader answers only after a read-index round that began after the request arrived. The node then applies its log up
//! to the index in the answer. Only then is the lease valid, and it counts from the moment the node *sent* the request. So
//! every answer of a serving node reflects all changes that are older than the lease. The leader renews its own lease in
//! the same way.

use std::sync::Arc;
use std::time::Duration;

use quorate_client::conn::Lane;
use quorate_raft::state::State;
use quorate_raft::{ReadIndexError, Replica};
use quorate_shares::ids::NodeId;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::base::clock::boot_ms;
use crate::memory::lease::Renewal;
use crate::messages::peer::{PeerRefusal, PeerReply, PeerRequest};
use crate::node::Node;
use crate::node::serving::NoLease;

/// Pause between attempts while there is no lease.
const RETRY: Duration = Duration::from_millis(50);

/// How often the lease and the open batches are checked.
const WATCH: Duration = Duration::from_millis(100);

/// How often idle and old keys are removed from memory.
const SWEEP_MS: u64 = 5_000;

/// Renews the lease. Never returns.
pub async fn run(node: Arc<Node>, replica: Replica) {
    let mut leadership = replica.leadership();
    let mut said = false;
    loop {
        said = said || warn_if_lease_differs(&node, &replica);
        leadership.borrow_and_update();
        // If the leader changes, the answer of the old one is not worth waiting for.
        let renewed = tokio::select! {
            renewed = renew(&node, &replica) => renewed,
            _ = leadership.changed() => continue,
        };
        let pause = match renewed {
            Ok(()) => tick(&node, &replica),
            Err(reason) => {
                debug!(%reason, "no lease");
                *node.serving.trouble.lock() = Some(reason);
                RETRY
            }
        };
        node.settle_phase();
        // A new leader is asked at once.
        let _ = timeout(pause, leadership.changed()).await;
    }
}

/// How often this node asks: as it is configured to, and at least twice in a lease.
fn tick(node: &Node, replica: &Replica) -> Duration {
    let tick = Duration::from_millis(node.config.timing.lease_tick_ms);
    replica.read(State::lease).map_or(tick, |length| tick.min(length / 2))
}

/// Says it once in the log if the configuration of this node wants leases of another length than the cluster's.
fn warn_if_lease_differs(node: &Node, replica: &Replica) -> bool {
    let Some(cluster_ms) = replica.read(|state| state.cluster.as_ref().map(|cluster| cluster.lease_ms)) else {
        return false;
    };
    if let Some(configured_ms) = node.config.timing.lease_ms.filter(|configured| *configured != cluster_ms) {
        warn!(
            configured_ms,
            cluster_ms, "timing.lease_ms has no effect here: the cluster was founded with another length"
        );
    }
    true
}

/// Watches the lease: when it ends, the node leaves Serving at once, and wipes every key a little later. Never returns.
pub async fn watch(node: Arc<Node>, replica: Replica) {
    let wipe_after = node.config.timing.wipe_after_ms;
    let mut wiped = true;
    let mut swept_ms = boot_ms();
    loop {
        sleep(WATCH).await;
        node.settle_phase();
        node.keys.close_batch_if_over(&node.serving.lease, &replica);
        match node.serving.lease.lost_for_ms() {
            _ if node.serving.is_sealed() => {
                // In every round: a request that was accepted before the seal may load a key after it. And the leader
                // still lets the node check its shares of new and reshared keys.
                node.forget_keys();
                wiped = true;
            }
            Some(lost) if lost >= wipe_after => {
                // In every round: a request from a peer may have opened a batch since the last round.
                node.forget_keys();
                if !wiped {
                    warn!("no lease for {wipe_after} ms: every key is wiped from memory");
                }
                wiped = true;
            }
            Some(_) => {}
            None => wiped = false,
        }
        if boot_ms() - swept_ms >= SWEEP_MS {
            node.keys.keyring.sweep();
            swept_ms = boot_ms();
        }
    }
}

/// Renews the lease once.
///
/// # Errors
/// The reason why the lease is not renewed.
pub async fn renew(node: &Node, replica: &Replica) -> Result<(), NoLease> {
    if node.serving.is_sealed() {
        return Err(NoLease::Sealed);
    }
    let renewal = confirm(node, replica).await?;
    node.serving.lease.grant(renewal);
    *node.serving.trouble.lock() = None;
    Ok(())
}

/// Asks the leader, and through it a quorum, and applies what was committed before. A sealed node learns by it that the others serve.
///
/// # Errors
/// The reason why a lease could not be renewed now.
pub async fn confirm(node: &Node, replica: &Replica) -> Result<Renewal, NoLease> {
    // A node without the cluster's state has no seat either.
    let length = replica.read(State::lease).ok_or(NoLease::NoSeat)?;
    // If the leader does not answer within a third of the lease, there is still time to ask again, or to ask the next leader.
    let patience = length / 3;
    let renewal = Renewal::sent(boot_ms(), length);
    let leadership = *replica.leadership().borrow();
    let index = if leadership.am_leader {
        timeout(patience, replica.read_index()).await.ok().and_then(Result::ok).ok_or(NoLease::NoQuorum)?
    } else {
        ask(node, leadership.leader.ok_or(NoLease::NoLeader)?, patience).await?
    };
    let left = Duration::from_millis(renewal.left_ms(boot_ms()));
    replica.wait_applied(index, left).await.map_err(|_| NoLease::Behind)?;
    if !replica.read(|state| is_seated(state, node.id())) {
        return Err(NoLease::NoSeat);
    }
    Ok(renewal)
}

/// Whether `node` has a seat in the active epoch: without one it gets no lease (I9).
pub fn is_seated(state: &State, node: NodeId) -> bool {
    state.active().is_some_and(|epoch| state.x_of(epoch.epoch, node).is_some())
}

/// Applies everything that was committed before this call. Calls that wait at the same time share one lease renewal.
///
/// # Errors
/// The reason why the lease is not renewed.
pub async fn catch_up(node: &Node, replica: &Replica) -> Result<(), NoLease> {
    let asked_ms = boot_ms();
    let mut last = node.serving.catch_up.lock().await;
    if last.0 > asked_ms {
        return last.1.clone();
    }
    let sent_ms = boot_ms();
    *last = (sent_ms, renew(node, replica).await);
    last.1.clone()
}

async fn ask(node: &Node, leader: NodeId, deadline: Duration) -> Result<u64, NoLease> {
    match node.peers().sessions.ask(leader, Lane::Urgent, &PeerRequest::Lease, deadline).await {
        Ok(PeerReply::Lease { index }) => Ok(index),
        Ok(PeerReply::Refused(refusal)) => Err(NoLease::Refused(refusal)),
        Ok(_) => Err(NoLease::Refused(PeerRefusal::Malformed)),
        Err(_) => Err(NoLease::Unreachable(node.name_of(leader))),
    }
}

/// The leader's side: answers only after a read-index round that began after the request arrived.
pub async fn grant(replica: &Replica) -> PeerReply {
    match replica.read_index().await {
        Ok(index) => PeerReply::Lease { index },
        Err(ReadIndexError::NotLeader { leader }) => PeerReply::Refused(PeerRefusal::NotLeader(leader)),
        Err(_) => PeerReply::Refused(PeerRefusal::NoQuorum),
    }
}
