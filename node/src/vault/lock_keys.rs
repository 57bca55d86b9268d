//! The keys that this node holds for the locks of its peers: made, offered, committed, and erased when they are old.
//!
//! A peer's lock names one key number of this node. For each renewal of its lock the peer asks for a new number. The same
//! number is offered again until the peer uses it. Once the peer says that a lock with this number is durable, strictly older
//! keys are erased after a grace time: a minute of this node's own running time. If all other keys were erased at once, a peer
//! that crashes between its two writes could never be unlocked again.
//!
//! These functions change or read a [`Vault`]. Messages and writes to the disk are the work of [`crate::lock`] and
//! [`crate::service`].

use std::collections::{BTreeMap, BTreeSet};

use quorate_client::wire;
use quorate_raft::command::{Change, RegisterShareKey, ReportLock};
use quorate_raft::state::{LockReport, LockTerms, State};
use quorate_shares::error::LockError;
use quorate_shares::ids::{ClusterId, NodeId, ShareKeyGeneration};
use quorate_shares::kem::PublicKey;
use quorate_shares::lock::{Bundle, Lock, LockOpenRequest, LockParams, LockPeer, LockPiece, PinPlace, ShareKey};
use quorate_shares::secret::Secret;
use rand_core::CryptoRng;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::vault::{HeldForPeer, HeldKey, KEYS_PER_PEER_MAX, Vault};

/// Bytes of a pin that lies in the vault itself.
pub const PIN_BYTES: usize = 32;
/// The grace time: seconds of running time before keys older than the committed one are erased.
pub const GRACE_S: u16 = 60;

/// The generation of a lock, and the number of a holder's key that it uses. Both are 0 before there is a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockState {
    /// Generation of the durable lock.
    pub generation: u64,
    /// Number of the lock key that the holder keeps for this lock.
    pub key_number: u64,
}

/// The peer must wait: [`KEYS_PER_PEER_MAX`] keys are held for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Busy;

/// PREP. It counts first as a COMMIT of the peer's `durable` lock. Then it offers a key with a newer number.
///
/// # Errors
/// [`Busy`] while three keys are held and none of them is newer.
pub fn prepare(
    vault: &mut Vault,
    peer: NodeId,
    durable: LockState,
    rng: &mut impl CryptoRng,
) -> Result<(u64, PublicKey), Busy> {
    commit(vault, peer, durable);
    let held = vault.held_for_mut(peer);
    if let Some(newer) = held.keys.last().filter(|key| key.key_number > durable.key_number) {
        return Ok((newer.key_number, PublicKey::of_seed(&newer.seed)));
    }
    if held.keys.len() >= KEYS_PER_PEER_MAX {
        return Err(Busy);
    }
    let key_number = held
        .keys
        .last()
        .map_or(held.committed_key_number, |key| key.key_number)
        .max(durable.key_number)
        .saturating_add(1);
    let seed = Secret::random(rng);
    let public = PublicKey::of_seed(&seed);
    held.keys.push(HeldKey { key_number, seed });
    Ok((key_number, public))
}

/// COMMIT: the peer's lock of this generation, with this key number, is durable. Repeating it changes nothing.
pub fn commit(vault: &mut Vault, peer: NodeId, durable: LockState) {
    if durable.generation == 0 {
        return;
    }
    let held = vault.held_for_mut(peer);
    if durable.generation > held.last_gen {
        held.last_gen = durable.generation;
        // A lock with the same key as before does not restart the grace time of older keys.
        let newer = durable.key_number > held.committed_key_number;
        held.committed_key_number = held.committed_key_number.max(durable.key_number);
        if newer && held.keys.iter().any(|key| key.key_number < held.committed_key_number) {
            held.grace_left_s = GRACE_S;
        }
    }
}

/// The keys that the lock after `last` names. For each peer this is the key that the peer offered. If the peer was silent or
/// busy, it is the key that `last` names.
///
/// A peer may have neither, for example because it joined since and is away now. Then the lock leaves it out. If such a peer
/// `is_there`, the result is `None`: the caller keeps `last` and waits for the peer's offer.
pub fn peers_of_next(
    last: &Lock,
    offered: Vec<(NodeId, Option<LockPeer>)>,
    is_there: impl Fn(&NodeId) -> bool,
) -> Option<Vec<LockPeer>> {
    let kept = |node: NodeId| {
        let piece = last.pieces().iter().find(|piece| piece.peer == node)?;
        Some(LockPeer { peer: node, key_number: piece.key_number, public_key: piece.public_key.clone() })
    };
    let mut named = Vec::with_capacity(offered.len());
    for (node, offer) in offered {
        match offer.or_else(|| kept(node)) {
            Some(peer) => named.push(peer),
            None if is_there(&node) => return None,
            None => {}
        }
    }
    Some(named)
}

/// A new pin that lies in the vault itself. Each lock gets its own.
pub fn inline_pin(rng: &mut impl CryptoRng) -> (PinPlace, Zeroizing<Vec<u8>>) {
    let mut pin = Zeroizing::new(vec![0; PIN_BYTES]);
    rng.fill_bytes(&mut pin);
    (PinPlace::Inline(pin.to_vec()), pin)
}

/// The lock that follows `last` (`None` at founding). It seals `bundle` under the next generation for `peers`. Any
/// `threshold - 1` of them can open it. No two locks have the same generation.
///
/// # Errors
/// [`LockError`] if peers and threshold do not go together.
pub fn next_lock(
    last: Option<&Lock>,
    (cluster, node): (ClusterId, NodeId),
    threshold: u8,
    peers: &[LockPeer],
    (place, pin): (PinPlace, &[u8]),
    bundle: &Bundle,
    rng: &mut impl CryptoRng,
) -> Result<Lock, LockError> {
    let params = LockParams { cluster, node, generation: last.map_or(0, Lock::generation) + 1 };
    // A thief who has this disk and t - 1 disks of peers has t disks, and could reconstruct keys anyway (FORMATS 4).
    let needed = threshold.saturating_sub(1);
    Lock::seal(&params, needed, place, pin, peers, bundle, rng)
}

/// What PREP and COMMIT say to `peer`: the generation of the lock in `vault`, and the number of the peer's key that it uses.
pub fn durable(vault: &Vault, peer: NodeId) -> LockState {
    let key_number =
        |lock: &Lock| lock.pieces().iter().find(|piece| piece.peer == peer).map_or(0, |piece| piece.key_number);
    let state =
        vault.lock.as_ref().map(|lock| LockState { generation: lock.generation(), key_number: key_number(lock) });
    state.unwrap_or(LockState { generation: 0, key_number: 0 })
}

/// The report about the lock of `node` for the replicated state. The lock lies in `vault` and protects `bundle`. `writes` is
/// the number of writes of the vault, and the lock was written with the last of them or before. `former`: the former members
/// that this node's replica knows.
pub fn report(
    vault: &Vault,
    node: NodeId,
    bundle: &Bundle,
    writes: u64,
    former: &BTreeSet<NodeId>,
) -> Option<ReportLock> {
    let lock = vault.lock.as_ref()?;
    // While the roster names one of them, it may still get a lock key here.
    let refused = former.iter().all(|node| vault.roster.member(*node).is_none());
    Some(ReportLock {
        node,
        generation: lock.generation(),
        threshold: lock.needed(),
        peers: named_peers(lock),
        share_keys: bundle.share_keys.iter().map(|key| key.generation).collect(),
        holds_for: vault.held.iter().filter(|held| !held.keys.is_empty()).map(|held| held.peer).collect(),
        writes,
        former: if refused { former.len() as u64 } else { 0 },
    })
}

/// The changes to propose for a durable lock with this `report`. The first is the report, unless the state knows it. The
/// second registers the share key that the state wants next, once it is in `bundle`, which the lock protects.
pub fn owed(state: &State, report: ReportLock, bundle: &Bundle) -> Vec<Change> {
    let node = report.node;
    let next = state.lock_terms(node).and_then(|terms| terms.next_share_key);
    let drawn = next.and_then(|next| bundle.share_keys.iter().find(|key| key.generation == next));
    let register = drawn.map(|key| {
        let share_pk = PublicKey::of_seed(&key.seed).as_bytes().to_vec();
        Change::RegisterShareKey(RegisterShareKey { node, skgen: key.generation, share_pk })
    });
    let report = (!is_known(state.locks.get(&node), &report)).then_some(Change::ReportLock(report));
    report.into_iter().chain(register).collect()
}

/// The peers that can open a piece of `lock`.
pub fn named_peers(lock: &Lock) -> BTreeSet<NodeId> {
    lock.pieces().iter().map(|piece| piece.peer).collect()
}

/// Whether the state knows everything in `report` already.
pub fn is_known(known: Option<&LockReport>, report: &ReportLock) -> bool {
    known.is_some_and(|known| {
        (known.generation, known.threshold) == (report.generation, report.threshold)
            && known.peers == report.peers
            && known.share_keys == report.share_keys
            && known.holds_for == report.holds_for
            && known.former >= report.former
    })
}

/// Whether the lock in `vault`, which protects `bundle`, is as the state demands. While only the nodes in `present` are there,
/// the lock need not name the others.
pub fn is_as_due(vault: &Vault, bundle: &Bundle, terms: &LockTerms, present: &BTreeSet<NodeId>) -> bool {
    let mut generations: BTreeSet<_> = bundle.share_keys.iter().map(|key| key.generation).collect();
    // The next share key is drawn and durable. Its registration in the state may still be under way.
    let drawn = terms.next_share_key.is_none_or(|next| generations.remove(&next));
    let lock = vault.lock.as_ref();
    drawn
        && generations == terms.share_keys
        && lock.is_some_and(|lock| lock.needed() == terms.needed && terms.names(&named_peers(lock), present))
}

/// Whether the `state` of this node is older than its `bundle`: the bundle has a share key of an epoch that the state does not
/// know.
///
/// Scenario: the state asks for a share key, and this node draws it and locks it. Then power fails. The log entries that were
/// applied but not synced are lost, and this node applies them again after its start. Until then the state must not decide
/// which share keys to drop: others may have dealt shares to this key already, and no other key opens them.
pub fn is_behind(state: &State, terms: &LockTerms, bundle: &Bundle) -> bool {
    let next = state.next_epoch();
    let wanted = |key: &ShareKeyGeneration| terms.share_keys.contains(key) || terms.next_share_key == Some(*key);
    bundle.share_keys.iter().map(|key| key.generation).any(|key| key.0 >= next.0 && !wanted(&key))
}

/// The bundle that the state demands. Share keys that are not needed any more are left out. The share key that is needed next is
/// drawn, unless `bundle` has it.
pub fn next_bundle(bundle: &Bundle, terms: &LockTerms, rng: &mut impl CryptoRng) -> Bundle {
    let mut next = bundle.duplicate();
    let needed = |generation| terms.share_keys.contains(&generation) || terms.next_share_key == Some(generation);
    next.share_keys.retain(|key| needed(key.generation));
    let drawn = |generation| next.share_keys.iter().any(|key| key.generation == generation);
    if let Some(generation) = terms.next_share_key.filter(|&generation| !drawn(generation)) {
        next.share_keys.push(ShareKey { generation, seed: Secret::random(rng) });
    }
    next
}

/// Erases what is held for former members. Returns whether there was anything to erase.
pub fn erase_former(vault: &mut Vault, is_former: impl Fn(NodeId) -> bool) -> bool {
    let before = vault.held.len();
    vault.held.retain(|held| !is_former(held.peer));
    vault.held.len() < before
}

/// Why a piece of a peer's lock is not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stale {
    /// The peer has confirmed a newer lock. So the request comes from an old copy of its disk.
    OldImage,
    /// No key of this number is held for the peer.
    NoKey,
}

/// LockOpen: the seed of the lock key that `request` names. The lock must not be older than the one that the peer confirmed.
///
/// # Errors
/// [`Stale`].
pub fn seed_for(vault: &Vault, request: &LockOpenRequest) -> Result<Secret<32>, Stale> {
    let held = vault.held_for(request.from).ok_or(Stale::NoKey)?;
    if request.generation < held.last_gen {
        return Err(Stale::OldImage);
    }
    held.key(request.key_number).map(|key| key.seed.duplicate()).ok_or(Stale::NoKey)
}

/// Whether some keys must still be erased.
pub fn owes_erasure(vault: &Vault) -> bool {
    vault.held.iter().any(|held| held.keys.iter().any(|key| key.key_number < held.committed_key_number))
}

/// The peers whose older keys are all erased, and the lock that each of them committed.
pub fn erased(vault: &Vault) -> Vec<(NodeId, LockState)> {
    let done = |held: &&HeldForPeer| {
        held.last_gen > 0 && held.keys.iter().all(|key| key.key_number >= held.committed_key_number)
    };
    let state = |held: &HeldForPeer| LockState { generation: held.last_gen, key_number: held.committed_key_number };
    vault.held.iter().filter(done).map(|held| (held.peer, state(held))).collect()
}

/// What this node knows of its older locks: which keys the lock before the current one named, and which peers have erased such
/// keys. It is in memory only, so after a start nothing is known until the lock is renewed.
#[derive(Debug, Default)]
pub struct OldCopies {
    named: Option<BTreeMap<NodeId, u64>>,
    erased: BTreeMap<NodeId, u64>,
}

impl OldCopies {
    /// Notes that another lock replaced `last`.
    pub fn replaced(&mut self, last: &Lock) {
        self.named = Some(last.pieces().iter().map(|piece| (piece.peer, piece.key_number)).collect());
    }

    /// Notes that `holder` has no key older than `key_number`.
    pub fn erased(&mut self, holder: NodeId, key_number: u64) {
        let known = self.erased.entry(holder).or_default();
        *known = (*known).max(key_number);
    }

    /// How many peers of `lock`, the current one, can no longer open a piece of an older lock. A peer whose key the renewal
    /// kept can still open one. An older lock is dead when fewer peers can open a piece than the lock needs pieces.
    pub fn status_of(&self, lock: &Lock) -> Option<wire::OldCopies> {
        let named = self.named.as_ref()?;
        let cannot = |piece: &&LockPiece| {
            let renewed = named.get(&piece.peer).is_none_or(|&before| before < piece.key_number);
            renewed && self.erased.get(&piece.peer).is_some_and(|&oldest| oldest >= piece.key_number)
        };
        let count = |pieces: usize| u8::try_from(pieces).unwrap_or(u8::MAX);
        let erased = count(lock.pieces().iter().filter(cannot).count());
        Some(wire::OldCopies { erased, needed: count(lock.pieces().len() + 1 - usize::from(lock.needed())) })
    }
}

/// Counts `seconds` of running time, and erases old keys whose grace time is over.
pub fn tick(vault: &mut Vault, seconds: u16) {
    for held in &mut vault.held {
        held.grace_left_s = held.grace_left_s.saturating_sub(seconds);
        if held.grace_left_s == 0 {
            let committed = held.committed_key_number;
            held.keys.retain(|key| key.key_number >= committed);
        }
    }
}

#[cfg(test)]
mod exchange_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random;
    use crate::vault::{RosterMember, Standing};

    const PEER: NodeId = NodeId(2);

    fn vault() -> Vault {
        Vault::new(ClusterId([1; 16]), Secret::random(&mut random::system()))
    }

    fn prepare(vault: &mut Vault, generation: u64, key_number: u64) -> Result<u64, Busy> {
        super::prepare(vault, PEER, LockState { generation, key_number }, &mut random::system())
            .map(|(key_number, _)| key_number)
    }

    #[test]
    fn a_number_that_was_offered_is_offered_again_until_it_is_used() {
        let mut vault = vault();
        assert_eq!(prepare(&mut vault, 0, 0), Ok(1));
        assert_eq!(prepare(&mut vault, 0, 0), Ok(1), "the answer was lost, the number is not");
        assert_eq!(prepare(&mut vault, 1, 1), Ok(2));
        assert_eq!(prepare(&mut vault, 1, 1), Ok(2));
    }

    #[test]
    fn only_strictly_older_keys_are_erased_and_only_after_the_grace() {
        let mut vault = vault();
        assert_eq!(prepare(&mut vault, 0, 0), Ok(1));
        assert_eq!(prepare(&mut vault, 1, 1), Ok(2));
        commit(&mut vault, PEER, LockState { generation: 2, key_number: 2 });
        tick(&mut vault, GRACE_S - 1);
        assert!(owes_erasure(&vault), "a crash in between must find the older key");
        tick(&mut vault, 1);
        assert!(!owes_erasure(&vault));
        assert_eq!(vault.held_for(PEER).map(|held| held.keys.len()), Some(1));
        assert!(vault.held_for(PEER).and_then(|held| held.key(2)).is_some(), "the committed key stays");
    }

    #[test]
    fn a_peer_that_renews_too_often_is_told_to_wait_and_keeps_its_keys() {
        let mut vault = vault();
        for round in 0..3 {
            assert_eq!(prepare(&mut vault, round, round), Ok(round + 1));
        }
        assert_eq!(prepare(&mut vault, 3, 3), Err(Busy));
        tick(&mut vault, GRACE_S);
        assert_eq!(prepare(&mut vault, 3, 3), Ok(4), "busy ends with the grace");
    }

    /// A lock of three peers, any two of which open it, with these of their keys.
    fn lock(last: Option<&Lock>, numbers: [u64; 3]) -> Lock {
        let mut rng = random::system();
        let peer = |(peer, key_number): (u64, u64)| LockPeer {
            peer: NodeId(peer),
            key_number,
            public_key: PublicKey::of_seed(&Secret::random(&mut random::system())),
        };
        let peers: Vec<_> = (2..).zip(numbers).map(peer).collect();
        let bundle = Bundle { op_seed: Secret::random(&mut rng), storage_keys: Vec::new(), share_keys: Vec::new() };
        let (place, pin) = inline_pin(&mut rng);
        let whose = (ClusterId([1; 16]), NodeId(1));
        next_lock(last, whose, 3, &peers, (place, &pin), &bundle, &mut rng).expect("they go together")
    }

    /// While the roster in the vault still names a former member, that node may get a lock key here, so a report must not say that
    /// this node refuses it. Mutated: with the number of former members alone, an old disk is called dead too early.
    #[test]
    fn a_report_knows_a_former_member_once_the_roster_refuses_it() {
        let mut vault = vault();
        vault.lock = Some(lock(None, [1, 1, 1]));
        let member = |node: u64| RosterMember {
            node: NodeId(node),
            boot_pk: [node as u8; 32],
            op_pk: [node as u8 + 100; 32],
            standing: Standing::default(),
            name: format!("n{node}").parse().expect("a name"),
            addresses: Vec::new(),
        };
        vault.roster.members = vec![member(2), member(3)];
        let mut rng = random::system();
        let bundle = Bundle { op_seed: Secret::random(&mut rng), storage_keys: Vec::new(), share_keys: Vec::new() };
        let former = |vault: &Vault| {
            report(vault, NodeId(1), &bundle, 7, &[NodeId(2), NodeId(9)].into()).map(|report| report.former)
        };
        assert_eq!(former(&vault), Some(0));
        vault.roster.members.retain(|member| member.node != NodeId(2));
        assert_eq!(former(&vault), Some(2));
    }

    /// Mutated: a share key that is the one of before opens the shares of two epochs.
    #[test]
    fn a_new_share_key_has_nothing_of_the_one_before() {
        let mut rng = random::system();
        let old = ShareKey { generation: ShareKeyGeneration(1), seed: Secret::random(&mut rng) };
        let (generation, seed) = (old.generation, old.seed.duplicate());
        let bundle = Bundle { op_seed: Secret::random(&mut rng), storage_keys: Vec::new(), share_keys: vec![old] };
        let terms = LockTerms {
            peers: BTreeSet::new(),
            needed: 1,
            share_keys: BTreeSet::from([generation]),
            next_share_key: Some(ShareKeyGeneration(2)),
        };
        let next = next_bundle(&bundle, &terms, &mut rng);
        let [kept, drawn] = &next.share_keys[..] else { panic!("two share keys") };
        assert!(kept.seed.same_as(&seed) && !drawn.seed.same_as(&seed));
        let again = next_bundle(&next, &terms, &mut rng);
        assert!(again.share_keys[1].seed.same_as(&drawn.seed), "one that is drawn stays");
    }

    #[test]
    fn the_next_lock_keeps_the_keys_of_silent_peers() {
        let last = lock(None, [4, 5, 6]);
        let fresh = lock(None, [7, 7, 7]).pieces()[0].public_key.clone();
        let offer = LockPeer { peer: NodeId(3), key_number: 7, public_key: fresh };
        let silent = |peer| (NodeId(peer), None);
        let offered = vec![silent(2), (NodeId(3), Some(offer)), silent(4), silent(9)];
        let named =
            peers_of_next(&last, offered, |peer| *peer == NodeId(2)).expect("every peer that is there has a key in it");
        assert_eq!(named.iter().map(|peer| peer.key_number).collect::<Vec<_>>(), [4, 7, 6]);
        let kept = |at: usize| named[at].public_key == last.pieces()[at].public_key;
        assert_eq!([kept(0), kept(1), kept(2)], [true, false, true]);
        assert!(
            super::peers_of_next(&last, vec![silent(9)], |_| true).is_none(),
            "it is there, and has no key in it yet"
        );
    }

    /// Two pieces open the lock. So an old copy is dead when two of the three peers cannot open their pieces.
    #[test]
    fn old_copies_are_dead_when_enough_renewed_keys_are_erased() {
        let last = lock(None, [4, 5, 6]);
        let next = lock(Some(&last), [5, 6, 6]);
        let mut copies = OldCopies::default();
        assert_eq!(copies.status_of(&next), None, "nothing is known of the lock before");
        copies.replaced(&last);
        let mut erased = |holder, key_number| {
            copies.erased(NodeId(holder), key_number);
            copies.status_of(&next).map(|copies| (copies.erased, copies.needed))
        };
        assert_eq!(erased(2, 4), Some((0, 2)), "that was about the lock before");
        assert_eq!(erased(2, 5), Some((1, 2)));
        assert_eq!(erased(4, 6), Some((1, 2)), "the renewal kept this key, and the old lock names it, too");
        assert_eq!(erased(3, 6), Some((2, 2)));
        assert_eq!(erased(3, 5), Some((2, 2)), "a late repetition takes nothing back");
    }
}
