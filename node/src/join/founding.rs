//! Founding: from N invitations to a cluster with an active epoch.
//!
//! 1. The founders prove their invitations, and exchange keys, names and addresses.
//! 2. Every pair of founders exchanges lock keys.
//! 3. Each founder writes its first locked vault, and tells the first founder.
//! 4. Only then does the first founder initialise Raft with all founders as voters, and the leader makes epoch 1.
//!
//! Until its first lock is durable, a founder's op key lies in memory only. If the founder crashes before that, it comes back
//! with new keys, the first founder raises the attempt, and all founders make new locks. Nothing is lost, since no key exists
//! yet. Every step can be repeated, so the loop below does the steps that are still missing.

use std::sync::Arc;
use std::time::Duration;

use quorate_client::conn::{Conn, Lane};
use quorate_raft::Replica;
use quorate_raft::command::{Change, Found, NewMember};
use quorate_shares::ids::{NodeId, ShareKeyGeneration};
use quorate_shares::labels::EXPORTER_JOIN;
use quorate_shares::lock::{Bundle, ShareKey, StorageKey};
use quorate_shares::secret::Secret;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use crate::base::clock::wall_ms;
use crate::base::endpoint::family_mismatch;
use crate::base::phase::Phase;
use crate::base::random;
use crate::cluster::replica;
use crate::join::terms::{FoundError, Terms, adopt_roster, attempt, registration};
use crate::join::{inviter, joiner, registry};
use crate::lock::renewal;
use crate::messages::peer::PeerRequest;
use crate::node::Node;
use crate::node::enrolment::Enrolment;
use crate::peers::propose;
use crate::vault::invitation::{JoinReply, JoinRequest, Registration};
use crate::vault::layout::Address;
use crate::vault::{FIRST_FOUNDER, FirstFounder, FounderKeys, FoundingStep, Roster, RosterLogId, Vault};

/// Pause between two rounds of the loop.
const ROUND: Duration = Duration::from_millis(200);
/// How long a peer may take to answer.
const PEER: Duration = Duration::from_secs(3);

/// Draws a node's own keys, unless it has them or a lock that holds them: op key, storage key and first share key.
///
/// # Errors
/// If the vault cannot be written.
async fn draw_keys_once(node: &Arc<Node>, enrolment: &Arc<Enrolment>) -> Result<(), FoundError> {
    let is_locked = enrolment.with_vault(|vault| vault.lock.is_some());
    if is_locked == Some(false) && enrolment.identity.own_keys().is_none() {
        enrolment.identity.unlock(draw_keys());
        // The op key is new.
        node.offer();
        register_self(node, enrolment).await?;
    }
    Ok(())
}

/// A bundle of new keys.
pub(crate) fn draw_keys() -> Bundle {
    let rng = &mut random::system();
    Bundle {
        op_seed: Secret::random(rng),
        storage_keys: vec![StorageKey { number: 1, key: Secret::random(rng) }],
        share_keys: vec![ShareKey { generation: ShareKeyGeneration::FIRST, seed: Secret::random(rng) }],
    }
}

/// Enters the first founder, or its new keys, into its own founder registry. On other founders this does nothing.
///
/// # Errors
/// If the vault cannot be written.
async fn register_self(node: &Node, enrolment: &Arc<Enrolment>) -> Result<(), FoundError> {
    // The other founders keep the id that they know.
    if !enrolment.with_vault(|vault| registry::view(vault).is_some()).unwrap_or_default() {
        return Ok(());
    }
    let Some(Registration { boot_pk, op_pk, share_pk, name, addresses }) = registration(enrolment) else {
        return Ok(());
    };
    let me = FounderKeys { node: FIRST_FOUNDER, boot_pk, op_pk, share_pk, name, addresses };
    enrolment.identity.set_id(FIRST_FOUNDER);
    let register = node.update_vault_of(Arc::clone(enrolment), move |vault| {
        // After a restart the locked first founder asks for its pieces under this id.
        vault.identity.node = Some(FIRST_FOUNDER);
        registry::register_self(vault, me);
    });
    register.await.map_err(|error| FoundError::Failed(error.to_string()))
}

/// Answers a request of `quorate-join/1`, at the first founder or at any serving member. Malformed requests get an empty
/// answer.
pub async fn take_proof(node: &Arc<Node>, conn: &Conn, body: &[u8]) -> Vec<u8> {
    let Ok(request) = JoinRequest::parse(body) else { return Vec::new() };
    let exporter = *conn.export(EXPORTER_JOIN, b"").expose();
    let tls_key = conn.peer().key.0;
    if let Some(replica) = node.replica().filter(|_| node.phase() == Phase::Serving) {
        return inviter::take_proof(node, &replica, request, tls_key, &exporter, conn.peer().remote).await;
    }
    // A stranger must not cost more than a look-up: only a request that proves an invitation updates the vault.
    let invited = node.with_vault(|vault| registry::knows(vault, &request, &exporter)).unwrap_or_default();
    let registered = match invited {
        true => {
            node.update_vault(move |vault| registry::register(vault, &request, tls_key, &exporter, wall_ms())).await
        }
        false => Ok(None),
    };
    let reply = match registered {
        Ok(Some((reply, key))) => {
            debug!(code = ?reply.code, node = ?reply.node, "join request");
            reply.seal(&key, &exporter)
        }
        Ok(None) => {
            inviter::note_unknown_invitation(node, &conn.peer().key, conn.peer().remote);
            JoinReply::unknown(&exporter)
        }
        Err(_) => return Vec::new(),
    };
    reply.unwrap_or_default()
}

/// Opens the replica of a founder or a joiner that restarts, if it had one before. The replica must be open before any peer
/// connects: if a member does not say what its log holds, peers assume that it lost its log.
///
/// # Errors
/// [`FoundError::Failed`].
pub async fn resume(node: &Arc<Node>) -> Result<(), FoundError> {
    let locked = node.with_vault(|vault| vault.lock.is_some()).unwrap_or_default();
    if locked && Replica::exists(&replica::directory(node)) {
        open_replica(node).await?;
    }
    Ok(())
}

/// Repeats the steps of founding until the replicated state names this node, and returns the open replica.
///
/// # Errors
/// [`FoundError::Refused`] if this node was refused before it had a lock: its vault is discarded. [`FoundError::Failed`] if the
/// vault cannot be written or the replica cannot be opened. Otherwise it tries without end.
pub async fn run(node: &Arc<Node>) -> Result<Replica, FoundError> {
    loop {
        // The vault may be discarded meanwhile. What was learned for it must not be written into the next one.
        let enrolment = node.enrolment();
        draw_keys_once(node, &enrolment).await?;
        let learned = match learn(node, &enrolment).await {
            Err(FoundError::Refused(reason)) => {
                let discarded = node.discard_vault(&enrolment, reason);
                if discarded.map_err(|error| FoundError::Failed(format!("cannot remove the vault: {error}")))? {
                    return Err(FoundError::Refused(reason));
                }
                continue;
            }
            learned => learned?,
        };
        if let Some(terms) = learned {
            adopt_roster(node, &enrolment, terms.me, &terms.roster);
            if make_lock(node, &enrolment, &terms).await {
                let replica = open_replica(node).await?;
                if is_member(node, &replica) {
                    finish(node, &enrolment, &replica).await?;
                    return Ok(replica);
                }
                announce(node, &enrolment, &terms, &replica).await;
            }
        }
        sleep(ROUND).await;
    }
}

/// Learns the terms from this node's founder registry, or from the inviting node. `None` while founders are missing.
async fn learn(node: &Arc<Node>, enrolment: &Enrolment) -> Result<Option<Terms>, FoundError> {
    let registered = enrolment.with_vault(|vault| {
        let (attempt, first) = registry::view(vault)?;
        Some(match first.so_far.len() == usize::from(first.founders) {
            true => {
                Ok(Terms { attempt, me: FIRST_FOUNDER, threshold: first.threshold, roster: registry::roster(first) })
            }
            false => Err((first.so_far.len(), first.founders)),
        })
    });
    match registered.flatten() {
        Some(Ok(terms)) => Ok(Some(terms)),
        Some(Err((have, founders))) => {
            let missing = usize::from(founders) - have;
            enrolment.joining.progress("the other founders have not joined", vec![format!("{missing} of {founders}")]);
            Ok(None)
        }
        None => joiner::ask_inviter(node, enrolment).await,
    }
}

/// Makes this node's lock for the attempt, unless it is durable already. Returns whether it is.
async fn make_lock(node: &Arc<Node>, enrolment: &Arc<Enrolment>, terms: &Terms) -> bool {
    let is_first = terms.me == FIRST_FOUNDER;
    let done = match is_first {
        // The registry names the newest attempt, and not the attempt of this node's lock: that one is known only in memory.
        // So the first founder makes one more lock after a restart, unless it has started Raft: that needs the last lock of
        // every founder.
        true => *enrolment.joining.locked_attempt.lock() == Some(terms.attempt) || has_started(enrolment),
        false => enrolment
            .with_vault(|vault| vault.lock.is_some() && attempt(vault) == Some(terms.attempt))
            .unwrap_or_default(),
    };
    if done {
        return true;
    }
    if !is_first && !keep_roster(node, enrolment, terms).await {
        return false;
    }
    let prepared = match terms.joins() {
        // A node can join while a member is away: that member then holds no piece yet.
        true => renewal::prepare_with_present(enrolment, terms.threshold.saturating_sub(1)).await,
        false => renewal::prepare(enrolment).await,
    };
    let peers = match prepared {
        Ok(peers) => peers,
        Err(missing) => {
            let step = match missing.iter().find_map(|&peer| family_mismatch_of(node, &terms.roster, peer)) {
                Some(mismatch) => format!("exchanging lock keys: {mismatch}"),
                None => "exchanging lock keys".to_owned(),
            };
            let missing = missing.into_iter().map(|peer| node.name_of(peer)).collect();
            enrolment.joining.progress(&step, missing);
            return false;
        }
    };
    let (me, made_for, roster) = (terms.me, terms.attempt, terms.roster.clone());
    let Some(own) = enrolment.identity.own_keys() else { return false };
    let locked = renewal::lock(node, enrolment, terms.lock_threshold(), peers, own.bundle.duplicate(), move |vault| {
        if is_first && attempt(vault) != Some(made_for) {
            // A founder came back with new keys while this lock was made, and the lock would name the old ones.
            return false;
        }
        vault.identity.node = Some(me);
        vault.roster = roster;
        if let Some(founding) = vault.founding.as_mut() {
            founding.attempt = made_for;
        }
        true
    });
    match locked.await {
        Ok(true) => {}
        Ok(false) => return false,
        Err(reason) => {
            warn!(%reason, "no lock yet");
            return false;
        }
    }
    *enrolment.joining.locked_attempt.lock() = Some(terms.attempt);
    renewal::commit(enrolment).await;
    true
}

/// Why this node cannot reach `peer`, if all addresses of `peer` are of the family that this node's socket does not take. A host
/// name may be of both.
fn family_mismatch_of(node: &Node, roster: &Roster, peer: NodeId) -> Option<String> {
    let local = node.endpoint.local_addr().ok()?;
    let member = roster.members.iter().find(|member| member.node == peer)?;
    let mismatches = member.addresses.iter().map(|address| family_mismatch(local, address.as_str().parse().ok()?));
    mismatches.collect::<Option<Vec<_>>>()?.into_iter().next()
}

/// Whether the first founder has started Raft. From then on no founder may come with new keys.
fn has_started(enrolment: &Enrolment) -> bool {
    let started = |vault: &Vault| {
        vault.lock.is_some() && registry::view(vault).is_some_and(|(_, first)| first.step == FoundingStep::Starting)
    };
    enrolment.with_vault(started).unwrap_or_default()
}

/// Makes the roster durable before any lock depends on it: after a loss of power a founder must know which nodes it unlocks.
async fn keep_roster(node: &Node, enrolment: &Arc<Enrolment>, terms: &Terms) -> bool {
    let (me, roster, joins) = (terms.me, terms.roster.clone(), terms.joins());
    let kept = node.update_vault_of(Arc::clone(enrolment), move |vault| {
        vault.identity.node = Some(me);
        vault.roster = roster;
        if joins && let Some(founding) = vault.founding.as_mut() {
            founding.role.join();
        }
    });
    kept.await.is_ok()
}

async fn open_replica(node: &Arc<Node>) -> Result<Replica, FoundError> {
    if let Some(replica) = node.replica() {
        return Ok(replica);
    }
    let replica = replica::open(node).await.map_err(FoundError::Failed)?;
    node.database.adopt(replica.clone());
    Ok(replica)
}

fn is_member(node: &Node, replica: &Replica) -> bool {
    replica.read(|state| state.members.contains_key(&node.id()))
}

/// Reports that this node's lock is durable. The first founder starts Raft once all founders have reported that.
async fn announce(node: &Arc<Node>, enrolment: &Enrolment, terms: &Terms, replica: &Replica) {
    if terms.joins() {
        return inviter::announce(node, enrolment, terms).await;
    }
    if terms.me != FIRST_FOUNDER {
        let request = PeerRequest::FoundingLocked { attempt: terms.attempt };
        if let Err(error) = enrolment.peers.sessions.ask(FIRST_FOUNDER, Lane::Ordinary, &request, PEER).await {
            debug!(%error, "the first founder did not hear that the lock is durable");
        }
        enrolment.joining.progress("locked; the first founder starts the cluster", vec![node.name_of(FIRST_FOUNDER)]);
        return;
    }
    enrolment.joining.note_locked(FIRST_FOUNDER, terms.attempt);
    let locked = enrolment.joining.locked();
    let missing: Vec<NodeId> =
        terms.roster.members.iter().map(|member| member.node).filter(|node| !locked.contains(node)).collect();
    if !missing.is_empty() && !has_started(enrolment) {
        enrolment
            .joining
            .progress("the other founders make their locks", missing.iter().map(|&id| node.name_of(id)).collect());
        return;
    }
    enrolment.joining.progress("starting the cluster", Vec::new());
    if let Err(reason) = start(node, terms, replica).await {
        debug!(%reason, "the cluster is not founded yet; trying again");
    }
}

/// Initialises Raft, and proposes the first entry through the leader.
async fn start(node: &Arc<Node>, terms: &Terms, replica: &Replica) -> Result<(), String> {
    node.update_vault(|vault| {
        if let Some((_, first)) = registry::of(vault) {
            first.step = FoundingStep::Starting;
        }
    })
    .await
    .map_err(|error| error.to_string())?;
    let voters = terms.roster.members.iter().map(|member| (member.node, member.name.to_string())).collect();
    replica.initialize(voters).await.map_err(|error| error.to_string())?;
    let found = node
        .with_vault(|vault| registry::view(vault).map(|(_, first)| founding_entry(node, first)))
        .flatten()
        .ok_or("the founder registry is closed")?;
    propose::propose(node, replica, Change::Found(found)).await.map_err(|error| error.to_string())
}

fn founding_entry(node: &Node, first: &FirstFounder) -> Found {
    let members = first.so_far.iter().map(|founder| NewMember {
        node: founder.node,
        name: founder.name.clone(),
        addresses: founder.addresses.iter().map(Address::to_string).collect(),
        boot_pk: founder.boot_pk,
        op_pk: founder.op_pk,
        share_pk: founder.share_pk.as_bytes().to_vec(),
        skgen: ShareKeyGeneration::FIRST,
    });
    Found {
        cluster: node.cluster(),
        operator: first.operator.key,
        operator_label: first.operator.label.clone(),
        threshold: first.threshold,
        allow_solo: first.founders == 1,
        accept_no_redundancy: first.founders == 2,
        lease_ms: node.config.timing.lease_ms(),
        members: members.collect(),
    }
}

/// Removes the founding section from the vault, now that the replicated state names this node.
async fn finish(node: &Node, enrolment: &Arc<Enrolment>, replica: &Replica) -> Result<(), FoundError> {
    let log_id = replica.read_members(|_, place, _| place).map(RosterLogId::from).unwrap_or_default();
    let founded = node.update_vault_of(Arc::clone(enrolment), move |vault| {
        vault.founding = None;
        vault.roster.log_id = log_id;
        vault.roster.clone()
    });
    enrolment.roster.set(founded.await.map_err(|error| FoundError::Failed(error.to_string()))?);
    enrolment.joining.progress("a member, without a seat in an epoch yet", Vec::new());
    info!(cluster = %node.cluster(), node = %node.id(), "a member of the cluster");
    Ok(())
}
