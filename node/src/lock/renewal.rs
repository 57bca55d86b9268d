//! Lock renewal: a lock key from every peer, a fresh secret, one vault write, and a COMMIT to the peers.
//!
//! PREP asks each peer for the public half of a lock key that is durable there. Then the new lock is written, both slots.
//! COMMIT tells each peer, which may then erase older keys. Nothing is ever sealed twice under one generation: every change
//! takes a new generation.
//!
//! A lock is renewed a little after each start and then every day. So an old copy of a disk opens nothing once the peers have
//! erased the keys that it needs. A peer that is away keeps its piece: the new lock names the same key of it as the old lock.
//! Serving never waits for any of this.
//!
//! What a lock protects and which peers hold its pieces follows from the replicated state ([`LockTerms`]). A step of an
//! operation only changes these terms. Each member then renews its lock to match them, by itself, until it succeeds.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use quorate_client::conn::Lane;
use quorate_raft::Replica;
use quorate_raft::command::Change;
use quorate_raft::state::LockTerms;
use quorate_shares::ids::NodeId;
use quorate_shares::kem::PublicKey;
use quorate_shares::lock::{Bundle, Lock, LockPeer};
use rand::RngExt;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use crate::base::config::Timing;
use crate::base::phase::Phase;
use crate::base::random;
use crate::lock::pin;
use crate::messages::peer::{LockState, PeerReply, PeerRequest};
use crate::node::Node;
use crate::node::enrolment::Enrolment;
use crate::peers::propose;
use crate::vault::Vault;
use crate::vault::lock_keys;

/// If a renewal kept the key of a silent or busy peer, the next renewal comes after this many times
/// `timing.renew_lock_after_ms`. The pause doubles each time.
const INCOMPLETE: u64 = 12;
const INCOMPLETE_DOUBLINGS: u32 = 16;
/// Pause after a lock could not be made or reported. It doubles while no lock can be made.
const AGAIN: Duration = Duration::from_millis(200);
const AGAIN_DOUBLINGS: u32 = 5;
/// How often the tasks look for work when nothing changes.
const LOOK: Duration = Duration::from_secs(1);
/// How long a peer may take to make a key durable.
const PEER: Duration = Duration::from_secs(3);

/// Renews this node's lock: a little after the node begins to serve, then daily, and whenever the state demands another
/// lock. Never returns.
pub async fn keep_fresh(node: Arc<Node>, replica: Replica) {
    let timing = &node.config.timing;
    let mut changes = replica.changes();
    // The delay is random, so that not all nodes renew at once after a loss of power. A node first serves or is sealed.
    let mut due = None;
    let (mut pauses, mut failed) = (Pauses::default(), 0);
    loop {
        changes.borrow_and_update();
        if due.is_none() && matches!(node.phase(), Phase::Serving | Phase::Sealed) {
            due = Some(
                Instant::now()
                    + later(
                        random::system()
                            .random_range(timing.renew_lock_after_ms..=timing.renew_lock_after_ms.saturating_mul(4)),
                    ),
            );
        }
        let terms = replica.read(|state| {
            let (terms, own) = state.lock_terms(node.id()).zip(node.enrolment().identity.own_keys())?;
            (!lock_keys::is_behind(state, &terms, &own.bundle)).then_some(terms)
        });
        let demanded = terms.as_ref().is_some_and(|terms| !is_lock_as_due(&node.enrolment(), terms));
        let is_due = due.is_some_and(|due| due <= Instant::now());
        if let Some(terms) = terms.filter(|_| demanded || is_due) {
            match renew(&node, &replica, &terms, demanded).await {
                Ok(complete) => {
                    failed = 0;
                    due = Some(Instant::now() + later(pauses.after(timing, complete, demanded)));
                    continue;
                }
                Err(reason) => {
                    debug!(%reason, demanded, "lock not renewed yet");
                    sleep(AGAIN * (1 << failed)).await;
                    failed = (failed + 1).min(AGAIN_DOUBLINGS);
                    continue;
                }
            }
        }
        let _ = timeout(LOOK, changes.changed()).await;
    }
}

/// When the next renewal is due.
#[derive(Default)]
struct Pauses {
    /// How many renewals in a row kept a key.
    incomplete: u32,
}

impl Pauses {
    /// The pause in milliseconds after a renewal. A silent peer may be back soon, or not for a long time. So the pause grows if it is
    /// silent at the next one, too. An operation demands many renewals in a moment, and peers that are busy with the keys of the
    /// earlier ones: these say nothing about the time after it.
    fn after(&mut self, timing: &Timing, complete: bool, demanded: bool) -> u64 {
        if complete {
            self.incomplete = 0;
            return timing.renew_lock_every_ms;
        }
        let pause = timing.renew_lock_after_ms.saturating_mul(INCOMPLETE << self.incomplete);
        if !demanded {
            self.incomplete = (self.incomplete + 1).min(INCOMPLETE_DOUBLINGS);
        }
        pause.min(timing.renew_lock_every_ms)
    }
}

fn later(pause_ms: u64) -> Duration {
    Duration::from_millis(pause_ms)
}

fn is_lock_as_due(enrolment: &Enrolment, terms: &LockTerms) -> bool {
    let present = terms.peers.iter().copied().filter(|&peer| enrolment.peers.sessions.with(peer).is_some()).collect();
    let as_due = |vault: &Vault| {
        enrolment.identity.own_keys().is_some_and(|own| lock_keys::is_as_due(vault, &own.bundle, terms, &present))
    };
    enrolment.with_vault(as_due).unwrap_or(true)
}

/// Makes the next lock as the state demands it, with the lock keys that the peers offer now. Returns whether all peers offered
/// one. If no peer did, the lock is made only if it is `demanded`: otherwise the new lock would name only old keys.
async fn renew(node: &Arc<Node>, replica: &Replica, terms: &LockTerms, demanded: bool) -> Result<bool, String> {
    let enrolment = node.enrolment();
    let own = enrolment.identity.own_keys().ok_or("the bundle is not open")?;
    let offered = offers(&enrolment, terms.peers.iter().copied()).await;
    let complete = offered.iter().all(|(_, offer)| offer.is_some());
    if !demanded && offered.iter().all(|(_, offer)| offer.is_none()) {
        return Err("no peer offers a key".to_owned());
    }
    // While the peers were asked, this node may have learned that its lock must need more peers.
    if replica.read(|state| state.lock_terms(enrolment.identity.id())).as_ref() != Some(terms) {
        return Err("the state demands another lock now".to_owned());
    }
    let last = enrolment.with_vault(|vault| vault.lock.clone()).flatten().ok_or("there is no lock yet")?;
    let is_there = |peer: &NodeId| enrolment.peers.sessions.with(*peer).is_some();
    let named = lock_keys::peers_of_next(&last, offered, is_there)
        .ok_or("a peer that must hold a piece offers no key for it")?;
    let bundle = lock_keys::next_bundle(&own.bundle, terms, &mut random::system());
    lock(node, &enrolment, terms.needed.saturating_add(1), named, bundle, |_| true).await?;
    enrolment.locks.old_copies.lock().replaced(&last);
    commit(&enrolment).await;
    Ok(complete)
}

/// Reports this node's lock to the replicated state whenever the state knows another one. Also registers the share key that
/// was drawn for the next epoch, once the lock that protects it is durable. Never returns.
pub async fn report(node: Arc<Node>, replica: Replica) {
    let mut changes = replica.changes();
    loop {
        changes.borrow_and_update();
        let enrolment = node.enrolment();
        let owed = owed_reports(&enrolment, &replica);
        let mut done = true;
        for change in owed {
            let kind = change.kind();
            if let Err(reason) = propose::propose(&node, &replica, change).await {
                debug!(kind, %reason, "not reported yet");
                done = false;
            }
        }
        if !done {
            sleep(AGAIN).await;
            continue;
        }
        tokio::select! {
            _ = changes.changed() => {}
            () = enrolment.locks.to_report.notified() => {}
            () = sleep(LOOK) => {}
        }
    }
}

fn owed_reports(enrolment: &Enrolment, replica: &Replica) -> Vec<Change> {
    let former: BTreeSet<_> = replica.read(|state| state.former.keys().copied().collect());
    // Bundle and vault are read while no write runs, so the lock in the vault protects this bundle.
    let durable = enrolment.with_written_vault(|vault, writes| {
        let own = enrolment.identity.own_keys()?;
        let report = lock_keys::report(vault, enrolment.identity.id(), &own.bundle, writes, &former)?;
        Some((own, report))
    });
    let Some((own, report)) = durable.flatten() else { return Vec::new() };
    replica.read(|state| lock_keys::owed(state, report, &own.bundle))
}

/// Erases the lock keys that this node holds for former members. Never returns.
pub async fn erase_former(node: Arc<Node>, replica: Replica) {
    let mut changes = replica.changes();
    loop {
        changes.borrow_and_update();
        let former: BTreeSet<_> = replica.read(|state| state.former.keys().copied().collect());
        let holds = |vault: &Vault| vault.held.iter().any(|held| former.contains(&held.peer));
        if node.with_vault(holds).unwrap_or_default() {
            let erased = node.update_vault(move |vault| lock_keys::erase_former(vault, |peer| former.contains(&peer)));
            match erased.await {
                Ok(_) => {
                    node.enrolment().locks.to_report.notify_one();
                    info!("lock keys of former members erased");
                }
                Err(error) => warn!(%error, "lock keys of former members are not erased yet"),
            }
        }
        let _ = timeout(LOOK, changes.changed()).await;
    }
}

/// Asks every peer of the roster for a lock key.
///
/// # Errors
/// The peers without an answer.
pub async fn prepare(enrolment: &Enrolment) -> Result<Vec<LockPeer>, Vec<NodeId>> {
    let offered = offers(enrolment, peers(enrolment).into_iter()).await;
    let missing: Vec<NodeId> = offered.iter().filter(|(_, offer)| offer.is_none()).map(|(peer, _)| *peer).collect();
    if missing.is_empty() { Ok(offered.into_iter().filter_map(|(_, offer)| offer).collect()) } else { Err(missing) }
}

/// Like [`prepare`], but peers without a session may be missing. At least `needed` peers must offer a key.
///
/// # Errors
/// The peers without an answer.
pub async fn prepare_with_present(enrolment: &Enrolment, needed: u8) -> Result<Vec<LockPeer>, Vec<NodeId>> {
    let offered = offers(enrolment, peers(enrolment).into_iter()).await;
    let is_there = |peer: &NodeId| enrolment.peers.sessions.with(*peer).is_some();
    let silent: Vec<_> = offered.iter().filter(|(_, offer)| offer.is_none()).map(|(peer, _)| *peer).collect();
    let prepared: Vec<_> = offered.into_iter().filter_map(|(_, offer)| offer).collect();
    let enough = prepared.len() >= usize::from(needed).max(1);
    if enough && !silent.iter().any(is_there) { Ok(prepared) } else { Err(silent) }
}

/// Sends PREP to each of `peers`, and returns the lock keys that they offer.
async fn offers(enrolment: &Enrolment, peers: impl Iterator<Item = NodeId>) -> Vec<(NodeId, Option<LockPeer>)> {
    join_all(peers.map(|peer| async move { (peer, offer(enrolment, peer).await) })).await
}

async fn offer(enrolment: &Enrolment, peer: NodeId) -> Option<LockPeer> {
    let request = PeerRequest::LockPrepare(durable(enrolment, peer));
    match enrolment.peers.sessions.ask(peer, Lane::Ordinary, &request, PEER).await {
        Ok(PeerReply::LockKey { key_number, public }) => {
            let public_key = PublicKey::parse(&public).ok()?;
            Some(LockPeer { peer, key_number, public_key })
        }
        Ok(PeerReply::Refused(refusal)) => {
            debug!(%peer, %refusal, "no lock key");
            None
        }
        _ => None,
    }
}

/// Seals `bundle` into a lock of the next generation, and writes it into the vault together with the changes of `also`. When
/// this returns, the lock is durable and this node uses that bundle. If `also` returns `false`, no lock is written.
///
/// # Errors
/// The reason, as a text. The node stops if the vault cannot be written.
pub async fn lock(
    node: &Node,
    enrolment: &Arc<Enrolment>,
    threshold: u8,
    peers: Vec<LockPeer>,
    bundle: Bundle,
    also: impl FnOnce(&mut Vault) -> bool + Send + 'static,
) -> Result<bool, String> {
    let last = enrolment.with_vault(|vault| vault.lock.clone()).flatten();
    let owner = (enrolment.identity.cluster(), enrolment.identity.id());
    let mut rng = random::system();
    let (place, pin) = pin::next(&node.config.pin, &node.dir, last.as_ref().map(Lock::pin)).map_err(|error| {
        let message = format!("the lock of {} cannot be made: {error}", node.name());
        node.alarm("pin_missing", node.id(), message.clone());
        message
    })?;
    let sealed = lock_keys::next_lock(last.as_ref(), owner, threshold, &peers, (place, &pin), &bundle, &mut rng);
    let lock = sealed.map_err(|error| error.to_string())?;
    let (generation, needed) = (lock.generation(), lock.needed());
    let this = Arc::clone(enrolment);
    let write = node.update_vault_of(Arc::clone(enrolment), move |vault| {
        // A revoked node has erased its keys and has nothing to lock.
        let wanted = !vault.flags.revoked && also(vault);
        if wanted {
            vault.lock = Some(lock);
            // A task that reads bundle and vault together waits until this write is durable. If it never is, the node stops.
            this.identity.unlock(bundle);
        }
        wanted
    });
    let written = write.await.map_err(|error| error.to_string())?;
    if written {
        enrolment.locks.to_report.notify_one();
        info!(generation, needed, of = peers.len(), "lock durable");
    }
    Ok(written)
}

/// Sends COMMIT: tells every peer which lock is durable here, unless the peer has acknowledged that lock already. If a peer
/// misses it, [`crate::lock::held::keep`] repeats it within ten seconds. Until the peer knows the lock, it keeps the lock key for an older copy of this
/// disk, and would unlock that copy.
pub async fn commit(enrolment: &Enrolment) {
    let known = enrolment.locks.commits.lock().clone();
    let untold = peers(enrolment).into_iter().map(|peer| (peer, durable(enrolment, peer)));
    let untold = untold.filter(|(peer, lock)| lock.generation > 0 && known.get(peer) != Some(lock));
    let acknowledged = join_all(untold.map(|(peer, lock)| async move {
        match enrolment.peers.sessions.ask(peer, Lane::Ordinary, &PeerRequest::LockCommit(lock), PEER).await {
            Ok(PeerReply::Done) => return Some((peer, lock)),
            Ok(_) => debug!(%peer, "the peer refused COMMIT"),
            Err(error) => debug!(%peer, %error, "no answer to COMMIT"),
        }
        None
    }));
    let acknowledged = acknowledged.await;
    enrolment.locks.commits.lock().extend(acknowledged.into_iter().flatten());
}

/// Sends ERASED to every peer for which this node holds no key older than the committed one, unless the peer has acknowledged
/// that already.
pub async fn tell_erased(enrolment: &Enrolment) {
    let told = enrolment.locks.told_erased.lock().clone();
    let erased = enrolment.with_vault(lock_keys::erased).unwrap_or_default();
    let untold = erased.into_iter().filter(|(peer, state)| told.get(peer) != Some(state));
    let acknowledged = join_all(untold.map(|(peer, state)| async move {
        let request = PeerRequest::LockErased(state);
        let answer = enrolment.peers.sessions.ask(peer, Lane::Ordinary, &request, PEER).await;
        matches!(answer, Ok(PeerReply::Done)).then_some((peer, state))
    }));
    let acknowledged = acknowledged.await;
    enrolment.locks.told_erased.lock().extend(acknowledged.into_iter().flatten());
}

fn peers(enrolment: &Enrolment) -> Vec<NodeId> {
    enrolment
        .roster
        .current()
        .members
        .iter()
        .map(|member| member.node)
        .filter(|&peer| peer != enrolment.identity.id())
        .collect()
}

/// The generation of the durable lock, and the number of the key of `peer` that it uses.
fn durable(enrolment: &Enrolment, peer: NodeId) -> LockState {
    enrolment.with_vault(|vault| lock_keys::durable(vault, peer)).unwrap_or(LockState { generation: 0, key_number: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutated: if the renewals that an operation demands count, the pause after it is half an hour, and old copies of the disk stay
    /// good for so long.
    #[test]
    fn an_operation_does_not_put_off_the_renewal_after_it() {
        let timing = Timing::default();
        let mut pauses = Pauses::default();
        let two_minutes = 12 * timing.renew_lock_after_ms;
        for _ in 0..8 {
            assert_eq!(pauses.after(&timing, false, true), two_minutes);
        }
        assert_eq!(pauses.after(&timing, false, false), two_minutes);
        assert_eq!(pauses.after(&timing, false, false), 2 * two_minutes, "a peer that stays away");
        assert_eq!(pauses.after(&timing, true, false), timing.renew_lock_every_ms);
        assert_eq!(pauses.after(&timing, false, false), two_minutes, "and one that is away again");
    }
}
