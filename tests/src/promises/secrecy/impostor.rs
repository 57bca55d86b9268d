//! A boot key lies in plain on every disk. It is good for LockOpen, and an answer to LockOpen is good for nothing else. What else
//! may be asked with it stands in `doors`.

use std::time::{Duration, Instant};

use quorate_client::conn::Lane;
use quorate_client::identity::{Identity, Protocol};
use quorate_shares::ids::NodeId;
use quorate_shares::labels::EXPORTER_LOCK;
use quorate_shares::lock::{LockOpenCode, LockOpenReply, LockOpenRequest};
use quorate_shares::secret::Secret;
use tokio::task::JoinSet;

use crate::harness::TestCluster;
use crate::harness::impostor::Impostor;

const PATIENCE: Duration = Duration::from_secs(5);

/// T20: a recorded answer to LockOpen is worth nothing on another connection, even for the same question.
#[test]
fn t20_an_answer_to_lock_open_opens_only_on_its_connection() {
    let mut cluster = TestCluster::with_lasting_locks();
    let thief = Impostor::steal(&cluster, "n2");
    cluster.testnet.kill("n2").expect("dies");
    cluster.block(async {
        let request = thief.lock_open(NodeId(1));
        let here = thief.dial(&cluster, "n1", Protocol::Boot).await.expect("connects");
        let there = thief.dial(&cluster, "n1", Protocol::Boot).await.expect("connects again");
        let answer = here.call(Lane::Ordinary, &request.encode(), PATIENCE).await.expect("answers");
        let reply = LockOpenReply::parse(&answer).expect("a reply");
        let piece = reply.open(&here.export(EXPORTER_LOCK, &request.hash())).expect("the control: it opens here");
        assert!(reply.open(&there.export(EXPORTER_LOCK, &request.hash())).is_err(), "replayed");
        // And only for its question: another nonce is another question.
        let other = LockOpenRequest { boot_nonce: [8; 32], ..thief.lock_open(NodeId(1)) };
        assert!(reply.open(&here.export(EXPORTER_LOCK, &other.hash())).is_err());
        let again = there.call(Lane::Ordinary, &request.encode(), PATIENCE).await.expect("answers");
        let again = LockOpenReply::parse(&again).expect("a reply");
        let same = again.open(&there.export(EXPORTER_LOCK, &request.hash())).expect("opens there");
        assert!(piece.same_as(&same), "the same piece, sealed again for each connection");
    });
}

/// An answer to LockOpen is bound to the node that asks, to the peer, and to the lock.
#[test]
fn lock_open_with_anything_changed_is_refused() {
    let mut cluster = TestCluster::with_lasting_locks();
    let thief = Impostor::steal(&cluster, "n2");
    cluster.testnet.kill("n2").expect("dies");
    let good = || thief.lock_open(NodeId(1));
    let me = thief.vault.identity.node.expect("an id");
    let other = if me == NodeId(2) { NodeId(3) } else { NodeId(2) };
    let with = |change: &dyn Fn(&mut LockOpenRequest)| {
        let mut request = good();
        change(&mut request);
        request
    };
    use LockOpenCode::{Denied, StaleGeneration};
    let changed = [
        ("another cluster", with(&|request| request.cluster.0[0] ^= 1), Denied),
        ("in the name of another", with(&|request| request.from = other), Denied),
        ("of another peer", with(&|request| request.to = other), Denied),
        ("an older generation", with(&|request| request.generation = 0), StaleGeneration),
        ("a key number that is not held", with(&|request| request.key_number += 9), StaleGeneration),
        ("another piece number", with(&|request| request.x ^= 3), StaleGeneration),
        ("a damaged piece", with(&|request| request.sealed[0] ^= 1), StaleGeneration),
    ];
    let stranger = Impostor::steal(&cluster, "n2").with_boot_key(Identity::from_seed(&Secret::take(&mut [9; 32])));
    cluster.block(async {
        let conn = thief.dial(&cluster, "n1", Protocol::Boot).await.expect("connects");
        for (what, request, code) in &changed {
            let answer = conn.call(Lane::Ordinary, &request.encode(), PATIENCE).await.expect("answers");
            let reply = LockOpenReply::parse(&answer).expect("a reply");
            assert_eq!(reply.code(), *code, "{what}");
        }
        let answer = conn.call(Lane::Ordinary, &good().encode(), PATIENCE).await.expect("answers");
        assert_eq!(LockOpenReply::parse(&answer).expect("a reply").code(), LockOpenCode::Ok, "the control");
        // Another boot key than the roster's for this node.
        let conn = stranger.dial(&cluster, "n1", Protocol::Boot).await.expect("connects");
        let answer = conn.call(Lane::Ordinary, &good().encode(), PATIENCE).await.expect("answers");
        assert_eq!(LockOpenReply::parse(&answer).expect("a reply").code(), Denied);
    });
}

/// The owner of a boot key asks again and again, as fast as it can. Mutated: without the limit every question is answered.
#[test]
fn lock_open_is_answered_fifty_times_a_second_and_no_more() {
    const QUESTIONS: usize = 600;
    // Fewer than a node answers at the same time for a stranger.
    const AT_ONCE: usize = 8;
    let mut cluster = TestCluster::with_lasting_locks();
    let thief = Impostor::steal(&cluster, "n2");
    cluster.testnet.kill("n2").expect("dies");
    let (codes, elapsed) = cluster.block(async {
        let conn = thief.dial(&cluster, "n1", Protocol::Boot).await.expect("connects");
        let request = thief.lock_open(NodeId(1)).encode();
        let begin = Instant::now();
        let mut codes = Vec::new();
        while codes.len() < QUESTIONS {
            let mut asked = JoinSet::new();
            for _ in 0..AT_ONCE {
                let (conn, request) = (conn.clone(), request.clone());
                asked.spawn(async move { conn.call(Lane::Ordinary, &request, PATIENCE).await });
            }
            for answer in asked.join_all().await {
                codes.push(LockOpenReply::parse(&answer.expect("answers")).expect("a reply").code());
            }
        }
        (codes, begin.elapsed())
    });
    let count = |wanted| codes.iter().filter(|code| **code == wanted).count();
    let (given, busy) = (count(LockOpenCode::Ok), count(LockOpenCode::Busy));
    println!("{given} pieces, {busy} times busy, in {elapsed:?}");
    assert_eq!(given + busy, codes.len(), "{codes:?}");
    // The bucket is full at first.
    assert!(given >= 50, "the control: {given}");
    assert!(given as f64 <= 50.0 * (elapsed.as_secs_f64() + 1.0) + 1.0, "{given} in {elapsed:?}");
    assert!(busy > 0, "the control: {QUESTIONS} questions are more than {elapsed:?} allow");
}
