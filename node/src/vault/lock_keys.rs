//! The keys that this node holds for its peers' locks: made, offered, committed, and erased when they are old.
//!
//! A peer's lock names one key number of ours. A new number is made for each rotation and offered again until it is used;
//! once the peer says that a lock with it is durable, strictly older numbers die after a minute of this node's own running
//! time. Deleting "all others" at once would brick a peer that crashes between its two writes.
//!
//! All of it is a function of a [`Vault`]; asking, answering and writing are done by `locking`, `answer` and `unlock`.

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
const PIN_BYTES: usize = 32;
/// Seconds of running time before keys older than the committed one are erased.
pub const GRACE_S: u16 = 60;

/// A lock's generation and the number of the peer's key that it uses; zeros before there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockState {
    /// Generation of the asker's durable lock.
    pub generation: u64,
    /// Number of the lock key that the asked peer holds for it.
    pub keyno: u64,
}

/// The peer must wait: as many keys are held for it as may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Busy;

/// PREP: first counts as a COMMIT of what the peer has durably, then offers it a key number newer than that.
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
    if let Some(newer) = held.keys.last().filter(|key| key.keyno > durable.keyno) {
        return Ok((newer.keyno, PublicKey::of_seed(&newer.seed)));
    }
    if held.keys.len() >= KEYS_PER_PEER_MAX {
        return Err(Busy);
    }
    let keyno = held.keys.last().map_or(held.committed_keyno, |key| key.keyno).max(durable.keyno).saturating_add(1);
    let seed = Secret::random(rng);
    let public = PublicKey::of_seed(&seed);
    held.keys.push(HeldKey { keyno, seed });
    Ok((keyno, public))
}

/// COMMIT: the peer's lock of this generation, with this key number, is durable. Repeating it changes nothing.
pub fn commit(vault: &mut Vault, peer: NodeId, durable: LockState) {
    if durable.generation == 0 {
        return;
    }
    let held = vault.held_for_mut(peer);
    if durable.generation > held.last_gen {
        held.last_gen = durable.generation;
        // A lock that names the same key again says nothing new about older ones: their grace goes on.
        let newer = durable.keyno > held.committed_keyno;
        held.committed_keyno = held.committed_keyno.max(durable.keyno);
        if newer && held.keys.iter().any(|key| key.keyno < held.committed_keyno) {
            held.grace_left_s = GRACE_S;
        }
    }
}

/// The keys that the lock after `last` names: what each peer offered for it, and for one that was silent or busy the key
/// that `last` names. One that has neither is left out while it is away, as whoever joined meanwhile; if it `is_there`, it
/// must be waited for: `None`, and `last` stays as it is.
pub fn named(
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

/// A pin that lies in the vault itself, and is a new one in each lock.
pub fn inline_pin(rng: &mut impl CryptoRng) -> (PinPlace, Zeroizing<Vec<u8>>) {
    let mut pin = Zeroizing::new(vec![0; PIN_BYTES]);
    rng.fill_bytes(&mut pin);
    (PinPlace::Inline(pin.to_vec()), pin)
}

/// The lock that follows `last` (none at founding): `bundle` under the next generation, among `peers`, of which as many
/// open it as a thief needs disks besides this one. Nothing is ever sealed twice under one generation.
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
    // With t - 1 of the others' pieces and its own disk a thief has t disks (FORMATS 4).
    let needed = threshold.saturating_sub(1);
    Lock::seal(&params, needed, place, pin, peers, bundle, rng)
}

/// What PREP and COMMIT tell `peer`: the generation of the lock in `vault`, and the number of the peer's key that it uses.
pub fn durable(vault: &Vault, peer: NodeId) -> LockState {
    let keyno = |lock: &Lock| lock.pieces().iter().find(|piece| piece.peer == peer).map_or(0, |piece| piece.key_number);
    let state = vault.lock.as_ref().map(|lock| LockState { generation: lock.generation(), keyno: keyno(lock) });
    state.unwrap_or(LockState { generation: 0, keyno: 0 })
}

/// What the replicated state should know about the lock in `vault`, which is that of `node`, protects `bundle`, and was
/// written at the latest with the last of `writes`.
pub fn report(vault: &Vault, node: NodeId, bundle: &Bundle, writes: u64) -> Option<ReportLock> {
    let lock = vault.lock.as_ref()?;
    Some(ReportLock {
        node,
        generation: lock.generation(),
        threshold: lock.needed(),
        peers: named_peers(lock),
        share_keys: bundle.share_keys.iter().map(|key| key.generation).collect(),
        holds_for: vault.held.iter().filter(|held| !held.keys.is_empty()).map(|held| held.peer).collect(),
        writes,
    })
}

/// What the replicated state should be told of a lock that is durable and of which this is the `report`: the report, unless
/// it is known, and the share key that the state wants next, once it is in `bundle`, which the lock protects.
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

/// Who holds a piece of `lock`.
pub fn named_peers(lock: &Lock) -> BTreeSet<NodeId> {
    lock.pieces().iter().map(|piece| piece.peer).collect()
}

/// Whether `report` tells the state nothing new.
pub fn is_known(known: Option<&LockReport>, report: &ReportLock) -> bool {
    known.is_some_and(|known| {
        (known.generation, known.threshold) == (report.generation, report.threshold)
            && known.peers == report.peers
            && known.share_keys == report.share_keys
            && known.holds_for == report.holds_for
    })
}

/// Whether the lock in `vault`, which protects `bundle`, is what the state demands, as far as it can be while only `present`
/// are there.
pub fn is_as_due(vault: &Vault, bundle: &Bundle, terms: &LockTerms, present: &BTreeSet<NodeId>) -> bool {
    let mut generations: BTreeSet<_> = bundle.share_keys.iter().map(|key| key.generation).collect();
    // Drawn and durable, and on its way into the state.
    let drawn = terms.next_share_key.is_none_or(|next| generations.remove(&next));
    let lock = vault.lock.as_ref();
    drawn
        && generations == terms.share_keys
        && lock.is_some_and(|lock| lock.needed() == terms.needed && terms.names(&named_peers(lock), present))
}

/// Whether `bundle` has a share key of an epoch that `state` knows nothing of. Keys are drawn because the state wants them, so
/// this one is older than the disk: what was applied and not synced is lost with power, and is applied again. Until then it
/// says nothing about the lock: others may have dealt to that key already, and nothing else opens it.
pub fn is_behind(state: &State, terms: &LockTerms, bundle: &Bundle) -> bool {
    let next = state.next_epoch();
    let wanted = |key: &ShareKeyGeneration| terms.share_keys.contains(key) || terms.next_share_key == Some(*key);
    bundle.share_keys.iter().map(|key| key.generation).any(|key| key.0 >= next.0 && !wanted(&key))
}

/// The bundle of a lock that is as the state demands: what is not needed any more is left out, and what is needed next is
/// drawn, if it was not before.
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

/// Erases what is held for nodes that are members no more. Returns whether there was anything.
pub fn erase_former(vault: &mut Vault, is_former: impl Fn(NodeId) -> bool) -> bool {
    let before = vault.held.len();
    vault.held.retain(|held| !is_former(held.peer));
    vault.held.len() < before
}

/// Why a piece of a peer's lock is not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stale {
    /// The peer confirmed a newer lock: an old copy of its disk is asking.
    OldImage,
    /// No key of this number is held for the peer.
    NoKey,
}

/// LockOpen: the seed of the lock key that `request` names, unless its lock is older than what the peer confirmed.
///
/// # Errors
/// [`Stale`], whoever asks.
pub fn seed_for(vault: &Vault, request: &LockOpenRequest) -> Result<Secret<32>, Stale> {
    let held = vault.held_for(request.from).ok_or(Stale::NoKey)?;
    if request.generation < held.last_gen {
        return Err(Stale::OldImage);
    }
    held.key(request.key_number).map(|key| key.seed.duplicate()).ok_or(Stale::NoKey)
}

/// Whether some keys wait to be erased.
pub fn owes_erasure(vault: &Vault) -> bool {
    vault.held.iter().any(|held| held.keys.iter().any(|key| key.keyno < held.committed_keyno))
}

/// The peers for which no key older than the committed one is held, and what they committed.
pub fn erased(vault: &Vault) -> Vec<(NodeId, LockState)> {
    let done = |held: &&HeldForPeer| held.last_gen > 0 && held.keys.iter().all(|key| key.keyno >= held.committed_keyno);
    let state = |held: &HeldForPeer| LockState { generation: held.last_gen, keyno: held.committed_keyno };
    vault.held.iter().filter(done).map(|held| (held.peer, state(held))).collect()
}

/// What this node knows of its locks before the present one: which keys the last of them named, and which peers have erased
/// such keys. In memory only, so nothing is known after a start until the lock is renewed.
#[derive(Debug, Default)]
pub struct OldCopies {
    named: Option<BTreeMap<NodeId, u64>>,
    erased: BTreeMap<NodeId, u64>,
}

impl OldCopies {
    /// Another lock took the place of `last`.
    pub fn replaced(&mut self, last: &Lock) {
        self.named = Some(last.pieces().iter().map(|piece| (piece.peer, piece.key_number)).collect());
    }

    /// `holder` holds no key older than `key_number`.
    pub fn erased(&mut self, holder: NodeId, key_number: u64) {
        let known = self.erased.entry(holder).or_default();
        *known = (*known).max(key_number);
    }

    /// How many peers of `lock`, which is the present one, can open no piece of an older one. A peer whose key the renewal
    /// kept still can. An older lock is dead when fewer peers are left than it needs pieces.
    pub fn standing(&self, lock: &Lock) -> Option<wire::OldCopies> {
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

/// Counts `seconds` of running time, and erases what has outlived its grace.
pub fn tick(vault: &mut Vault, seconds: u16) {
    for held in &mut vault.held {
        held.grace_left_s = held.grace_left_s.saturating_sub(seconds);
        if held.grace_left_s == 0 {
            let committed = held.committed_keyno;
            held.keys.retain(|key| key.keyno >= committed);
        }
    }
}

#[cfg(test)]
mod exchange_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random;

    const PEER: NodeId = NodeId(2);

    fn vault() -> Vault {
        Vault::new(ClusterId([1; 16]), Secret::random(&mut random::system()))
    }

    fn prepare(vault: &mut Vault, generation: u64, keyno: u64) -> Result<u64, Busy> {
        super::prepare(vault, PEER, LockState { generation, keyno }, &mut random::system()).map(|(keyno, _)| keyno)
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
    fn only_strictly_older_keys_die_and_only_after_the_grace() {
        let mut vault = vault();
        assert_eq!(prepare(&mut vault, 0, 0), Ok(1));
        assert_eq!(prepare(&mut vault, 1, 1), Ok(2));
        commit(&mut vault, PEER, LockState { generation: 2, keyno: 2 });
        tick(&mut vault, GRACE_S - 1);
        assert!(owes_erasure(&vault), "a crash in between must find the older key");
        tick(&mut vault, 1);
        assert!(!owes_erasure(&vault));
        assert_eq!(vault.held_for(PEER).map(|held| held.keys.len()), Some(1));
        assert!(vault.held_for(PEER).and_then(|held| held.key(2)).is_some(), "the committed key stays");
    }

    #[test]
    fn a_peer_that_never_lets_the_grace_end_is_told_to_wait_and_keeps_its_keys() {
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

    #[test]
    fn the_next_lock_keeps_the_keys_of_silent_peers() {
        let last = lock(None, [4, 5, 6]);
        let fresh = lock(None, [7, 7, 7]).pieces()[0].public_key.clone();
        let offer = LockPeer { peer: NodeId(3), key_number: 7, public_key: fresh };
        let silent = |peer| (NodeId(peer), None);
        let offered = vec![silent(2), (NodeId(3), Some(offer)), silent(4), silent(9)];
        let named = named(&last, offered, |peer| *peer == NodeId(2)).expect("whoever is there has a key in it");
        assert_eq!(named.iter().map(|peer| peer.key_number).collect::<Vec<_>>(), [4, 7, 6]);
        let kept = |at: usize| named[at].public_key == last.pieces()[at].public_key;
        assert_eq!([kept(0), kept(1), kept(2)], [true, false, true]);
        assert!(super::named(&last, vec![silent(9)], |_| true).is_none(), "it is there, and has no key in it yet");
    }

    /// Two pieces open the lock, so two of the three peers must be unable.
    #[test]
    fn old_copies_are_dead_when_enough_renewed_keys_are_erased() {
        let last = lock(None, [4, 5, 6]);
        let next = lock(Some(&last), [5, 6, 6]);
        let mut copies = OldCopies::default();
        assert_eq!(copies.standing(&next), None, "nothing is known of the lock before");
        copies.replaced(&last);
        let mut erased = |holder, key_number| {
            copies.erased(NodeId(holder), key_number);
            copies.standing(&next).map(|copies| (copies.erased, copies.needed))
        };
        assert_eq!(erased(2, 4), Some((0, 2)), "that was about the lock before");
        assert_eq!(erased(2, 5), Some((1, 2)));
        assert_eq!(erased(4, 6), Some((1, 2)), "the renewal kept this key, and the old lock names it, too");
        assert_eq!(erased(3, 6), Some((2, 2)));
        assert_eq!(erased(3, 5), Some((2, 2)), "a late repetition takes nothing back");
    }
}
