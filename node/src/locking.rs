//! Making this node's own lock: a key number from every peer, a fresh secret, one vault write, and the confirmation.
//!
//! PREP asks each peer for the public half of a lock key that is durable there; the new lock is then written, both slots;
//! COMMIT tells each peer, which may erase what is older. Nothing is ever sealed twice under one generation: whatever
//! changes takes a new one.
//!
//! A lock is renewed a little after each start and then every day, so that an old copy of a disk opens nothing once the
//! peers have erased what it needs. A peer that is away keeps its piece: the new lock names the key that the old one named.
//! Serving never waits for any of this.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use quorate_client::conn::Lane;
use quorate_raft::Replica;
use quorate_raft::command::ReportLock;
use quorate_shares::ids::NodeId;
use quorate_shares::kem::PublicKey;
use quorate_shares::lock::{LockPeer, PinPlace};
use tokio::time::sleep;
use tracing::{debug, info};

use crate::node::Node;
use crate::peer::{LockState, PeerReply, PeerRequest};
use crate::phase::Phase;
use crate::vault::Vault;
use crate::{lock_keys, random};

/// After a renewal that kept the key of a silent or busy peer, the next one comes after this many times
/// `timing.renew_lock_after_ms`, and twice as late each time.
const INCOMPLETE: u64 = 12;
const INCOMPLETE_DOUBLINGS: u32 = 16;
/// How long a peer may take to make a key durable.
const PEER: Duration = Duration::from_secs(3);

/// Renews this node's lock for as long as it runs, beginning a little after it serves.
pub async fn keep_fresh(node: Arc<Node>, replica: Replica) {
    let timing = &node.config.timing;
    let pause = |ms: u64| sleep(Duration::from_millis(ms));
    // Not all nodes at once after a loss of power, and none before it is useful otherwise.
    let _ = node.phases().wait_for(|phase| *phase == Phase::Serving).await;
    pause(random::between(timing.renew_lock_after_ms, timing.renew_lock_after_ms.saturating_mul(4))).await;
    let mut incomplete = 0;
    loop {
        match renew(&node, &replica).await {
            Ok(true) => {
                incomplete = 0;
                pause(timing.renew_lock_every_ms).await;
            }
            // A peer that was silent may be back soon, or not for long.
            Ok(false) => {
                let later = timing.renew_lock_after_ms.saturating_mul(INCOMPLETE << incomplete);
                incomplete = (incomplete + 1).min(INCOMPLETE_DOUBLINGS);
                pause(later.min(timing.renew_lock_every_ms)).await;
            }
            Err(reason) => {
                debug!(%reason, "lock not renewed yet");
                pause(timing.renew_lock_after_ms).await;
            }
        }
    }
}

/// Makes the next lock with what the peers offer now, and says whether all of them offered something.
async fn renew(node: &Arc<Node>, replica: &Replica) -> Result<bool, String> {
    let active = replica.read(|state| state.active().map(|epoch| epoch.threshold));
    let threshold = active.ok_or("no epoch is active")?;
    let offered = offers(node).await;
    let complete = offered.iter().all(|(_, offer)| offer.is_some());
    let last = node.with_vault(|vault| vault.lock.clone()).flatten().ok_or("there is no lock yet")?;
    let named = lock_keys::named(&last, offered).ok_or("no peer offers a key for it")?;
    lock(node, threshold, named, |_| true).await?;
    node.old_copies.lock().replaced(&last);
    commit(node).await;
    Ok(complete)
}

/// Asks every peer of the roster for a lock key. Peers that did not answer are named in the error.
///
/// # Errors
/// The peers without an answer.
pub async fn prepare(node: &Arc<Node>) -> Result<Vec<LockPeer>, Vec<NodeId>> {
    let offered = offers(node).await;
    let missing: Vec<NodeId> = offered.iter().filter(|(_, offer)| offer.is_none()).map(|(peer, _)| *peer).collect();
    if missing.is_empty() { Ok(offered.into_iter().filter_map(|(_, offer)| offer).collect()) } else { Err(missing) }
}

/// PREP, to every peer of the roster.
async fn offers(node: &Arc<Node>) -> Vec<(NodeId, Option<LockPeer>)> {
    let peers: Vec<NodeId> = peers(node);
    join_all(peers.iter().map(|&peer| async move { (peer, offer(node, peer).await) })).await
}

async fn offer(node: &Arc<Node>, peer: NodeId) -> Option<LockPeer> {
    let request = PeerRequest::LockPrepare(durable(node, peer));
    match node.sessions.ask(peer, Lane::Ordinary, &request, PEER).await {
        Ok(PeerReply::LockKey { keyno, public }) => {
            let public_key = PublicKey::parse(&public).ok()?;
            Some(LockPeer { peer, key_number: keyno, public_key })
        }
        Ok(PeerReply::Refused(refusal)) => {
            debug!(%peer, %refusal, "no lock key");
            None
        }
        _ => None,
    }
}

/// Seals this node's bundle into a lock of the next generation, and writes it into the vault together with what `also`
/// changes; durable when this returns. If `also` answers no, nothing is written.
///
/// # Errors
/// In words; the node stops if the vault could not be written.
pub async fn lock(
    node: &Arc<Node>,
    threshold: u8,
    peers: Vec<LockPeer>,
    also: impl FnOnce(&mut Vault) -> bool + Send + 'static,
) -> Result<bool, String> {
    let own = node.own().ok_or("the bundle is not open")?;
    let last = node.with_vault(|vault| vault.lock.clone()).flatten();
    let whose = (node.cluster(), node.id());
    let mut rng = random::system();
    let (place, pin) = match last.as_ref().map(|last| last.pin().clone()) {
        None | Some(PinPlace::Inline(_)) => lock_keys::inline_pin(&mut rng),
        // Wherever the operator keeps it, there it stays.
        Some(place) => node.pin(&place).map(|pin| (place, pin))?,
    };
    let sealed = lock_keys::next_lock(last.as_ref(), whose, threshold, &peers, (place, &pin), &own.bundle, &mut rng);
    let lock = sealed.map_err(|error| error.to_string())?;
    let (generation, needed) = (lock.generation(), lock.needed());
    let write = node.update_vault(move |vault| {
        let wanted = also(vault);
        if wanted {
            vault.lock = Some(lock);
        }
        wanted
    });
    let written = write.await.map_err(|error| error.to_string())?;
    if written {
        info!(generation, needed, of = peers.len(), "lock durable");
    }
    Ok(written)
}

/// Tells every peer which lock is durable. A peer that misses it learns it from the next PREP.
pub async fn commit(node: &Arc<Node>) {
    join_all(peers(node).into_iter().map(|peer| async move {
        let request = PeerRequest::LockCommit(durable(node, peer));
        if let Err(error) = node.sessions.ask(peer, Lane::Ordinary, &request, PEER).await {
            debug!(%peer, %error, "did not hear of the new lock");
        }
    }))
    .await;
}

/// ERASED, to every peer for which no older key is held than the committed one, unless it has `told` that one already.
pub async fn tell_erased(node: &Arc<Node>, told: &mut BTreeMap<NodeId, LockState>) {
    let erased = node.with_vault(lock_keys::erased).unwrap_or_default();
    let untold = erased.into_iter().filter(|(peer, state)| told.get(peer) != Some(state));
    let heard = join_all(untold.map(|(peer, state)| async move {
        let answer = node.sessions.ask(peer, Lane::Ordinary, &PeerRequest::LockErased(state), PEER).await;
        matches!(answer, Ok(PeerReply::Done)).then_some((peer, state))
    }));
    told.extend(heard.await.into_iter().flatten());
}

/// What the replicated state should know about this node's lock.
pub fn report(node: &Node) -> Option<ReportLock> {
    node.with_vault(|vault| lock_keys::report(vault, node.id())).flatten()
}

fn peers(node: &Node) -> Vec<NodeId> {
    node.roster().members.iter().map(|member| member.node).filter(|&peer| peer != node.id()).collect()
}

/// What is durable here, as `peer` should hear it.
fn durable(node: &Node, peer: NodeId) -> LockState {
    node.with_vault(|vault| lock_keys::durable(vault, peer)).unwrap_or(LockState { generation: 0, keyno: 0 })
}
