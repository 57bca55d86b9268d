//! Locks: three nodes lock, any two open, one cannot. For each refusal, the test was seen to fail without the check.

use quorate_shares::error::{CombineError, FormatError, LockError};
use quorate_shares::ids::{NodeId, ShareKeyGeneration};
use quorate_shares::kem::PublicKey;
use quorate_shares::lock::{
    Bundle, LOCK_PEERS_MAX, LOCK_REPLY_BYTES, LOCK_REQUEST_BYTES, Lock, LockOpenCode, LockOpenReply, LockOpenRequest,
    LockParams, LockPeer, PIN_BYTES_MAX, PinPlace, RosterPosition, ShareKey, StorageKey, open_piece,
};
use quorate_shares::secret::Secret;

use crate::kit::{CLUSTER, rng};

const PIN: &[u8] = b"a pin on another device";

fn bundle() -> Bundle {
    let secret = |byte| Secret::take(&mut [byte; 32]);
    let share_key = |generation, byte| ShareKey { generation: ShareKeyGeneration(generation), seed: secret(byte) };
    Bundle {
        op_seed: secret(1),
        storage_keys: vec![StorageKey { number: 0, key: secret(2) }, StorageKey { number: 1, key: secret(3) }],
        share_keys: vec![share_key(1, 4), share_key(2, 5)],
    }
}

/// Node 1, and the peers that hold its pieces: their ids, and the seeds of the keys that they keep for it.
fn params() -> LockParams {
    LockParams { cluster: CLUSTER, node: NodeId(1), generation: 5 }
}

fn peers(count: usize) -> (Vec<LockPeer>, Vec<Secret<32>>) {
    let seeds: Vec<Secret<32>> = (0..count as u64).map(|i| Secret::random(&mut rng(50 + i))).collect();
    let peer = |(i, seed): (u64, &Secret<32>)| LockPeer {
        peer: NodeId(2 + i),
        key_number: 7 + i,
        public_key: PublicKey::of_seed(seed),
    };
    ((0..).zip(&seeds).map(peer).collect(), seeds)
}

fn sealed(needed: u8, count: usize) -> (Lock, Vec<Secret<32>>) {
    let (peers, seeds) = peers(count);
    let place = PinPlace::File("/run/pin".to_owned());
    let lock = Lock::seal(&params(), needed, place, PIN, &peers, &bundle(), &mut rng(1)).unwrap();
    (lock, seeds)
}

fn pieces(lock: &Lock, seeds: &[Secret<32>]) -> Vec<(u8, Secret<32>)> {
    let piece = |(named, seed): (&quorate_shares::lock::LockPiece, &Secret<32>)| {
        let request = lock.request(&params(), named.peer, [9; 32]).unwrap();
        (named.x, open_piece(seed, &request).unwrap())
    };
    lock.pieces().iter().zip(seeds).map(piece).collect()
}

fn same(one: &Bundle, other: &Bundle) -> bool {
    one.op_seed.same_as(&other.op_seed)
        && one.storage_keys.iter().map(|key| key.number).eq(other.storage_keys.iter().map(|key| key.number))
        && one.storage_keys.iter().zip(&other.storage_keys).all(|(a, b)| a.key.same_as(&b.key))
        && one.share_keys.iter().map(|key| key.generation).eq(other.share_keys.iter().map(|key| key.generation))
        && one.share_keys.iter().zip(&other.share_keys).all(|(a, b)| a.seed.same_as(&b.seed))
}

/// A lock names n - 1 peers and needs u = t - 1 pieces. The node and any u peers are t nodes and open it; fewer do not.
#[test]
fn any_quorum_opens_and_no_fewer() {
    for (needed, count) in [(1, 1), (1, 2), (2, 3), (2, 4), (3, 5), (4, 8)] {
        let (lock, seeds) = sealed(needed, count);
        let all = pieces(&lock, &seeds);
        for mask in 0..1u32 << count {
            let some = all.iter().filter(|(x, _)| mask >> (x - 1) & 1 == 1);
            let some: Vec<_> = some.map(|(x, piece)| (*x, piece.duplicate())).collect();
            let opened = lock.open(&params(), &some, PIN);
            match some.len() == usize::from(needed) {
                true => assert!(same(&opened.unwrap(), &bundle())),
                false => assert!(matches!(opened.err(), Some(LockError::Pieces(CombineError::Count { .. })))),
            }
        }
    }
}

/// One disk alone does not open its lock, neither with a lock that claims to need no piece, nor with guessed pieces.
#[test]
fn without_its_peers_a_lock_does_not_open() {
    let (lock, _) = sealed(1, 2);
    for guess in [Secret::zero(), Secret::random(&mut rng(3))] {
        assert_eq!(lock.open(&params(), &[(1, guess)], PIN).err(), Some(LockError::Sealed));
    }
    let mut as_solo = lock.encode();
    let bundle_at = as_solo.len() - (4 + 34 + 2 * 33 + 2 * 40 + 16);
    as_solo[8..10].fill(0);
    as_solo.drain(13 + "/run/pin".len()..bundle_at);
    let as_solo = Lock::parse(&as_solo).unwrap();
    assert_eq!(as_solo.open(&params(), &[], PIN).err(), Some(LockError::Sealed));
}

#[test]
fn a_solo_lock_opens_with_its_pin_alone() {
    let seal = |place, pin: &[u8]| Lock::seal(&params(), 0, place, pin, &[], &bundle(), &mut rng(1));
    let lock = seal(PinPlace::Inline(PIN.to_vec()), PIN).unwrap();
    assert!(same(&lock.open(&params(), &[], PIN).unwrap(), &bundle()));
    assert_eq!(lock.open(&params(), &[], b"another pin").err(), Some(LockError::Sealed));
    assert_eq!(lock.open(&params(), &[(1, Secret::zero())], PIN).err().map(|_| ()), Some(()));
    // The pin that is stored in the lock must be the pin that seals it.
    assert_eq!(seal(PinPlace::Inline(PIN.to_vec()), b"another pin").err(), Some(LockError::Pin));
    assert_eq!(seal(PinPlace::Inline(Vec::new()), b"").err(), Some(LockError::Pin));
    assert_eq!(seal(PinPlace::File("/pin".to_owned()), &[1; PIN_BYTES_MAX + 1]).err(), Some(LockError::Pin));
}

/// T13: all pieces together do not open the bundle, because the pin stays on the node.
#[test]
fn all_pieces_without_the_pin_do_not_open() {
    let (lock, seeds) = sealed(2, 4);
    let all = pieces(&lock, &seeds);
    let two = |a: usize, b: usize| [(all[a].0, all[a].1.duplicate()), (all[b].0, all[b].1.duplicate())];
    assert!(lock.open(&params(), &two(0, 3), PIN).is_ok());
    assert_eq!(lock.open(&params(), &two(0, 3), b"").err(), Some(LockError::Sealed));
    assert_eq!(
        lock.open(&params(), &two(1, 1), PIN).err(),
        Some(LockError::Pieces(CombineError::Number(2))),
        "a piece twice is one piece"
    );
    let mut wrong = two(0, 3);
    wrong[0].1.expose_mut()[0] ^= 1;
    assert_eq!(lock.open(&params(), &wrong, PIN).err(), Some(LockError::Sealed));
    let other = LockParams { generation: 6, ..params() };
    assert_eq!(lock.open(&other, &two(0, 3), PIN).err(), Some(LockError::Sealed));
    let other = LockParams { node: NodeId(2), ..params() };
    assert_eq!(lock.open(&other, &two(0, 3), PIN).err(), Some(LockError::Sealed));
}

/// The request names everything that the piece was sealed for. If any of it is changed, the peer opens nothing.
#[test]
fn a_piece_opens_only_for_the_request_that_it_was_sealed_for() {
    let (lock, seeds) = sealed(2, 3);
    let request = lock.request(&params(), NodeId(3), [9; 32]).unwrap();
    assert!(open_piece(&seeds[1], &request).is_ok());
    assert_eq!(open_piece(&seeds[0], &request).err(), Some(LockError::Piece), "another peer's key");
    let changes: [fn(&mut LockOpenRequest); 10] = [
        |request| request.cluster.0[0] ^= 1,
        |request| request.from = NodeId(9),
        |request| request.to = NodeId(2),
        |request| request.generation += 1,
        |request| request.needed = 1,
        |request| request.peers = 4,
        |request| request.x = 1,
        |request| request.key_number += 1,
        |request| request.sealed[0] ^= 1,
        |request| request.sealed[47] ^= 1,
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut request = request.clone();
        change(&mut request);
        assert_eq!(open_piece(&seeds[1], &request).err(), Some(LockError::Piece), "change {number}");
    }
    assert_eq!(lock.request(&params(), NodeId(9), [9; 32]), None);
}

/// T20: a reply is sealed to one connection and one request. It does not open under any other exporter key.
#[test]
fn a_reply_opens_only_on_its_connection() {
    let (piece, key, other_key) =
        (Secret::random(&mut rng(1)), Secret::random(&mut rng(2)), Secret::random(&mut rng(3)));
    let roster = RosterPosition { term: 3, leader: NodeId(2), index: 77 };
    let reply = LockOpenReply::grant(roster, &piece, &key);
    assert!(reply.open(&key).unwrap().same_as(&piece));
    assert_eq!(reply.open(&other_key).err(), Some(LockError::Reply));
    let bytes = reply.encode();
    assert_eq!(bytes.len(), LOCK_REPLY_BYTES);
    for at in 0..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        let opened = LockOpenReply::parse(&bytes).map_err(|_| LockError::Reply).and_then(|reply| reply.open(&key));
        assert_eq!(opened.err(), Some(LockError::Reply), "byte {at}");
    }
    for code in [LockOpenCode::Denied, LockOpenCode::Revoked, LockOpenCode::Busy] {
        let refusal = LockOpenReply::refuse(code, roster).unwrap();
        assert_eq!(LockOpenReply::parse(&refusal.encode()).as_ref(), Ok(&refusal));
        assert_eq!((refusal.code(), refusal.roster()), (code, roster));
        assert_eq!(refusal.open(&key).err(), Some(LockError::Reply));
        let with_piece = [refusal.encode(), vec![0; 48]].concat();
        assert_eq!(LockOpenReply::parse(&with_piece), Err(FormatError::Trailing(48)));
    }
    assert_eq!(LockOpenReply::refuse(LockOpenCode::Ok, roster), None);
    let mut unknown = LockOpenReply::refuse(LockOpenCode::Busy, roster).unwrap().encode();
    unknown[4] = 7;
    assert_eq!(LockOpenReply::parse(&unknown), Err(FormatError::Invalid("code")));
}

#[test]
fn requests_are_read_strictly() {
    let (lock, _) = sealed(2, 3);
    let request = lock.request(&params(), NodeId(3), [9; 32]).unwrap();
    let bytes = request.encode();
    assert_eq!(bytes.len(), LOCK_REQUEST_BYTES);
    assert_eq!(LockOpenRequest::parse(&bytes).as_ref(), Ok(&request));
    assert!((0..bytes.len()).all(|length| LockOpenRequest::parse(&bytes[..length]).is_err()));
    assert_eq!(LockOpenRequest::parse(&[&bytes[..], &[0]].concat()), Err(FormatError::Trailing(1)));
    let refused: [fn(&mut LockOpenRequest); 8] = [
        |request| request.from = NodeId(0),
        |request| request.to = NodeId(0),
        |request| request.to = request.from,
        |request| request.needed = 0,
        |request| request.needed = 4,
        |request| request.peers = LOCK_PEERS_MAX as u8 + 1,
        |request| request.x = 0,
        |request| request.x = 4,
    ];
    for change in refused {
        let mut request = request.clone();
        change(&mut request);
        assert!(matches!(LockOpenRequest::parse(&request.encode()), Err(FormatError::Invalid(_))));
    }
}

/// A lock has one byte form, and after a change to any byte the bundle does not open.
#[test]
fn locks_are_read_strictly_and_bound_to_the_last_byte() {
    let (lock, seeds) = sealed(1, 2);
    let all = pieces(&lock, &seeds);
    let bytes = lock.encode();
    assert_eq!(Lock::parse(&bytes).as_ref(), Ok(&lock));
    assert!((0..bytes.len()).step_by(5).all(|length| Lock::parse(&bytes[..length]).is_err()));
    assert_eq!(Lock::parse(&[&bytes[..], &[0]].concat()), Err(FormatError::Trailing(1)));
    for at in (0..bytes.len()).filter(|at| at % 3 == 0 || *at < 64 || bytes.len() - at < 64) {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        let Ok(changed) = Lock::parse(&bytes) else { continue };
        assert_eq!(changed.encode(), bytes);
        let generation = changed.generation();
        let opened = changed.open(&LockParams { generation, ..params() }, &[(1, all[0].1.duplicate())], PIN);
        assert!(opened.is_err(), "byte {at}");
    }
}

#[test]
fn locks_with_wrong_numbers_are_refused() {
    let seal = |needed, peers: &[LockPeer], bundle: &Bundle| {
        Lock::seal(&params(), needed, PinPlace::File("p".to_owned()), PIN, peers, bundle, &mut rng(1)).err()
    };
    let (two, _) = peers(2);
    assert!(matches!(seal(0, &two, &bundle()), Some(LockError::Threshold { .. })));
    assert!(matches!(seal(3, &two, &bundle()), Some(LockError::Threshold { .. })));
    assert!(matches!(seal(1, &[], &bundle()), Some(LockError::Threshold { .. })));
    let many = vec![two[0].clone(); LOCK_PEERS_MAX + 1];
    assert!(matches!(seal(1, &many, &bundle()), Some(LockError::Threshold { .. })));
    assert_eq!(seal(1, &[two[0].clone(), two[0].clone()], &bundle()), Some(LockError::Peer(NodeId(2))));
    let itself = LockPeer { peer: NodeId(1), ..two[0].clone() };
    assert_eq!(seal(1, &[itself], &bundle()), Some(LockError::Peer(NodeId(1))));
    let mut repeated = bundle();
    repeated.storage_keys[1].number = 0;
    assert_eq!(seal(1, &two, &repeated), Some(LockError::Bundle));
    let mut repeated = bundle();
    repeated.share_keys.swap(0, 1);
    assert_eq!(seal(1, &two, &repeated), Some(LockError::Bundle));
}

/// Two locks of the same bundle have nothing in common: each draws a new w.
#[test]
fn two_locks_of_one_bundle_have_nothing_in_common() {
    let (peers, seeds) = peers(2);
    let mut rng = rng(1);
    let mut seal = || {
        let place = PinPlace::File("/run/pin".to_owned());
        Lock::seal(&params(), 1, place, PIN, &peers, &bundle(), &mut rng).unwrap()
    };
    let (one, other) = (seal(), seal());
    let stale = pieces(&one, &seeds);
    assert_eq!(other.open(&params(), &stale[..1], PIN).err(), Some(LockError::Sealed));
    assert!(!stale[0].1.same_as(&pieces(&other, &seeds)[0].1));
}
