//! Several replicas over a link in memory.

use std::time::Duration;

use quorate_shares::ids::{Epoch, KeyVersion, NodeId};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::fixture::{CLUSTER, found, ready, storage_keys, uid};
use super::wire::{Cluster, Lies, PATIENCE};
use crate::live::command::{Change, Command, Outcome};
use crate::{Flushed, ProposeError, ReadIndexError, Refusal, ServeError, Timing, offline};

#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_agree_refuse_and_survive_restarts() {
    let cluster = Cluster::start(3, Timing::default()).await;
    let mut dealer = cluster.found().await;
    let create = dealer.create(1, "billing/cards");
    let made = cluster.propose(Change::CreateKey(create.clone())).await.expect("made");
    assert_eq!(cluster.propose(Change::CreateKey(create.clone())).await, Ok(made.clone()));
    let taken = dealer.create(2, "billing/cards");
    assert_eq!(cluster.propose(Change::CreateKey(taken)).await, Err(Refusal::NameTaken));
    for node in 1..=3 {
        cluster.agree(node).await;
        let record = cluster.replica(node).record(uid(1), KeyVersion(1), Epoch(1)).expect("readable");
        assert_eq!(record.as_ref(), Some(&create.records[0].0));
        let header = cluster.replica(node).batch(dealer.batch()).expect("readable");
        assert_eq!(header, Some(dealer.dealer.header().encode()));
    }

    // A follower neither proposes nor gives a read index, and knows the leader.
    let leader = cluster.leader().await.leadership().borrow().leader.expect("known").0;
    let follower = cluster.replica(leader % 3 + 1);
    let command = Command::new(1, ready(1, 1, 1, &[1, 2]));
    assert!(matches!(follower.propose(command).await, Err(ProposeError::NotLeader { .. })));
    assert!(matches!(follower.read_index().await, Err(ReadIndexError::NotLeader { .. })));
    drop(follower);

    // All lose power. What they had flushed is there again, and never less.
    let flushed: Vec<Flushed> = (1..=3).map(|node| cluster.replica(node).flushed()).collect();
    for node in 1..=3 {
        cluster.close(node).await;
    }
    for node in 1..=3 {
        cluster.open(node).await;
        assert!(cluster.replica(node).is_initialized().await.expect("runs"));
        assert!(cluster.replica(node).flushed() >= flushed[node as usize - 1]);
    }
    assert_eq!(cluster.propose(Change::CreateKey(create)).await, Ok(made));
    for node in 1..=3 {
        cluster.agree(node).await;
    }

    // A copy of a directory, taken while the node runs, opens with its key and with no other.
    let copy = tempfile::tempdir().expect("a temporary directory");
    copy_dir(cluster.dirs[&2].path(), copy.path());
    let store = offline::open(copy.path(), storage_keys(2)).expect("the copy opens");
    assert!(store.state().key_by_name(&"billing/cards".parse().expect("a name")).is_some());
    assert!(store.record(uid(1), KeyVersion(1), Epoch(1)).expect("readable").is_some());
    let wrong = offline::open(copy.path(), storage_keys(3)).map(|_| ());
    assert!(matches!(wrong, Err(crate::OpenError::WrongStorageKey { .. })));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_away_catches_up_by_log_and_by_snapshot() {
    let timing = Timing { snapshot_every: 40, entries_kept: 5, ..Timing::default() };
    let cluster = Cluster::start(3, timing).await;
    let mut dealer = cluster.found().await;
    let away = cluster.leader().await.leadership().borrow().leader.expect("known").0 % 3 + 1;

    cluster.close(away).await;
    for number in 1..=5 {
        cluster.propose(Change::CreateKey(dealer.create(number, &format!("key/{number}")))).await.expect("made");
    }
    cluster.open(away).await;
    cluster.agree(away).await;
    assert_eq!(cluster.wire.0.lock().snapshots, 0, "a few entries need no snapshot");

    cluster.close(away).await;
    for number in 6..=160 {
        cluster.propose(Change::CreateKey(dealer.create(number, &format!("key/{number}")))).await.expect("made");
    }
    let end = cluster.leader().await.applied_index();
    cluster.purged(end - 50).await;
    cluster.open(away).await;
    cluster.agree(away).await;
    let record = cluster.replica(away).record(uid(50), KeyVersion(1), Epoch(1)).expect("readable");
    assert!(record.is_some(), "records come with the snapshot");
    {
        let ends = cluster.wire.0.lock();
        assert!(ends.snapshots > 0, "the log behind it is gone");
        assert!(ends.largest_chunk <= crate::CHUNK_BYTES_MAX);
    }

    // What was installed is on disk, and so is what comes after it.
    cluster.close(away).await;
    cluster.open(away).await;
    cluster.propose(ready(1, 7, 1, &[1, 2])).await.expect("ready");
    cluster.agree(away).await;
    cluster.stop().await;
}

/// A panic of openraft's own task is a fatal failure; a shutdown is none. Mutated: if the end of the metrics is ignored, the replica
/// seems to run, and answers nothing for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_panic_of_raft_stops_the_node() {
    let cluster = Cluster::start(1, Timing::default()).await;
    let replica = cluster.replica(1);
    let mut fatal = replica.fatal();
    assert!(fatal.borrow().is_none(), "the control: it runs");
    let panicked = replica.inner.raft.with_raft_state(|_| panic!("of this test")).await;
    assert!(panicked.is_err());
    let reason = fatal.wait_for(Option::is_some).await.expect("raised").clone().expect("a reason");
    assert!(reason.contains("raft"), "{reason}");
    drop(replica);
    cluster.close(1).await;
    cluster.open(1).await;
    let fatal = cluster.replica(1).fatal();
    cluster.stop().await;
    assert!(fatal.borrow().is_none());
}

/// Mutated once: with the counter left alone in `truncate_after`, this fails.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_answers_nothing_and_its_entries_are_truncated() {
    let cluster = Cluster::start(3, Timing::default()).await;
    let mut dealer = cluster.found().await;
    let old = cluster.leader().await;
    let node = old.leadership().borrow().leader.expect("known").0;
    let before = old.flushed();

    cluster.cut(node);
    let lost = Change::CreateKey(dealer.create(1, "lost"));
    let time_ms = old.read(|state| state.time_ms) + 1;
    let proposing = tokio::spawn({
        let old = old.clone();
        async move { old.propose(Command::new(time_ms, lost)).await }
    });
    assert!(matches!(old.read_index().await, Err(ReadIndexError::NoQuorum | ReadIndexError::NotLeader { .. })));
    let kept = dealer.create(2, "kept");
    cluster.propose(Change::CreateKey(kept)).await.expect("the others go on");

    cluster.mend();
    cluster.agree(node).await;
    let answer = proposing.await.expect("it ends");
    assert!(matches!(answer, Err(ProposeError::Unknown { .. })), "{answer:?}");
    assert!(old.read(|state| state.key_by_name(&"lost".parse().expect("a name")).is_none()));
    let after = old.flushed();
    assert_eq!(after.truncations, before.truncations + 1, "the lost entry was taken back");
    assert!(after > before);
    drop(old);
    cluster.close(node).await;
    cluster.open(node).await;
    assert!(cluster.replica(node).flushed() >= after);
    cluster.stop().await;
}

/// A member that lies, with one vote that every node would remember for ever. Mutated: without the look at the term no leader is elected
/// any more; without the look at the node, a member votes for another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_vote_is_that_of_its_sender_and_follows_on_the_terms_before() {
    use crate::Ballot;
    use crate::consensus::messages::{Ask, Candidacy, Request, RequestV1};
    let cluster = Cluster::start(3, Timing::default()).await;
    let leader = cluster.leader().await;
    let two = cluster.replica(2);
    let request = |ask: Ask| {
        let (cluster, from, to) = (CLUSTER, NodeId(1), NodeId(2));
        crate::stored::format::encode(&Request::V1(RequestV1 { cluster, from, to, ask }))
    };
    let highest = two.leadership().borrow().term;
    let all = |vote: Ballot| {
        let candidacy = || Candidacy { vote, last: None, leadership_transfer: false };
        [
            Ask::Append { vote, previous: None, entries: Vec::new(), committed: None },
            Ask::Vote(candidacy()),
            Ask::PreVote(candidacy()),
            Ask::Transfer { from_leader: vote, to: NodeId(2), last: None },
        ]
    };
    for ask in all(Ballot { term: u64::MAX, node: NodeId(1), committed: true }) {
        let refused = two.serve(NodeId(1), &request(ask)).await;
        assert!(matches!(refused, Err(ServeError::TermTooHigh { .. })), "{refused:?}");
    }
    for ask in all(Ballot { term: highest + 1, node: NodeId(3), committed: true }) {
        let refused = two.serve(NodeId(1), &request(ask)).await;
        assert!(matches!(refused, Err(ServeError::WrongVote { named: NodeId(3) })), "{refused:?}");
    }
    let snapshot = request(Ask::Snapshot { vote: Ballot { term: u64::MAX, node: NodeId(1), committed: true } });
    let (send, receive) = tokio::sync::mpsc::channel(1);
    send.send(snapshot).await.expect("room for one");
    drop(send);
    let refused = two.serve_snapshot(NodeId(1), receive).await;
    assert!(matches!(refused, Err(ServeError::TermTooHigh { .. })), "{refused:?}");
    drop((two, leader));
    cluster.stop().await;
}

/// A member that lies in its replies. Mutated: without the look at the term, the leader takes the vote over, and hands it to the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_answers_with_the_largest_term_ends_no_leader() {
    use crate::Ballot;
    let cluster = Cluster::start(3, Timing::default()).await;
    let mut dealer = cluster.found().await;
    let leader = cluster.leader().await;
    let now = *leader.leadership().borrow();
    let liar = NodeId(now.leader.expect("known").0 % 3 + 1);
    cluster.wire.0.lock().lies =
        Some(Lies { liar, vote: Ballot { term: u64::MAX, node: liar, committed: true }, told: 0 });
    let start = Instant::now();
    while cluster.wire.0.lock().lies.as_ref().is_some_and(|lies| lies.told < 10) {
        assert!(start.elapsed() < PATIENCE, "the leader no longer asks");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let change = Change::CreateKey(dealer.create(1, "after"));
    cluster.propose(change).await.expect("the honest two go on");
    assert_eq!(leader.leadership().borrow().term, now.term);
    assert_eq!(leader.leadership().borrow().leader, now.leader);
    cluster.wire.0.lock().lies = None;
    drop(leader);
    cluster.stop().await;
}

/// Scenario: a member tells another one, as a lie, that the leader has a later term. That member hands it on to the leader, honestly. Then
/// the liar is gone. Mutated: if the leader takes no such reply, it never learns the term, the other one has the shorter log, and there is
/// no leader for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_term_that_a_liar_made_up_is_learnt_by_the_node_that_it_names() {
    use crate::Ballot;
    let cluster = Cluster::start(3, Timing::default()).await;
    let mut dealer = cluster.found().await;
    let now = *cluster.leader().await.leadership().borrow();
    let leader = now.leader.expect("known");
    let (liar, other) = (NodeId(leader.0 % 3 + 1), (leader.0 + 1) % 3 + 1);
    let vote = Ballot { term: now.term + 5, node: leader, committed: false };
    cluster.wire.0.lock().lies = Some(Lies { liar, vote, told: 0 });
    cluster.cut(leader.0);
    let start = Instant::now();
    while cluster.replica(other).leadership().borrow().term < vote.term {
        assert!(start.elapsed() < PATIENCE, "the control: it believes the lie");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cluster.cut_only(other);
    cluster.wire.0.lock().lies = None;
    cluster
        .propose(Change::CreateKey(dealer.create(1, "with-the-liar")))
        .await
        .expect("the other one lacks this entry");
    cluster.cut_only(liar.0);
    cluster.propose(Change::CreateKey(dealer.create(2, "without"))).await.expect("two honest nodes");
    cluster.mend();
    cluster.stop().await;
}

/// Scenario: a member that lies has raised the term twice, as far as a message may. A learner that is new and a voter that was away
/// follow nevertheless. Mutated: if a refused term does not raise what is believed, both stay behind for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_far_behind_in_terms_follows() {
    use crate::Ballot;
    use crate::consensus::messages::{Ask, Request, RequestV1};
    use crate::consensus::terms::STEP;
    let cluster = Cluster::start_with(3, 4, Timing::default()).await;
    let leader = cluster.leader().await.leadership().borrow().leader.expect("known").0;
    let (liar, away) = (leader, leader % 3 + 1);
    let other = away % 3 + 1;
    cluster.cut(away);
    for _ in 0..2 {
        let term = cluster.replica(other).leadership().borrow().term + STEP;
        let vote = Ballot { term, node: NodeId(liar), committed: true };
        let ask = Ask::Append { vote, previous: None, entries: Vec::new(), committed: None };
        let (from, to) = (NodeId(liar), NodeId(other));
        let request = Request::V1(RequestV1 { cluster: CLUSTER, from, to, ask });
        cluster.replica(other).serve(from, &crate::stored::format::encode(&request)).await.expect("not too far ahead");
        let start = Instant::now();
        while cluster.leader().await.leadership().borrow().term <= term {
            assert!(start.elapsed() < PATIENCE, "no later leader");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    cluster.mend();
    cluster.agree(away).await;
    cluster.leader().await.add_learner(NodeId(4), "n4".to_owned()).await.expect("added");
    cluster.agree(4).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_for_others_are_refused() {
    let cluster = Cluster::start(3, Timing::default()).await;
    cluster.leader().await;
    let (two, three) = (cluster.replica(2), cluster.replica(3));
    let request = |to: u64| {
        use crate::consensus::messages::{Ask, Request, RequestV1};
        let (cluster, from) = (CLUSTER, NodeId(1));
        let vote = crate::Ballot { term: 0, node: NodeId(1), committed: false };
        let ask = Ask::Append { vote, previous: None, entries: Vec::new(), committed: None };
        crate::stored::format::encode(&Request::V1(RequestV1 { cluster, from, to: NodeId(to), ask }))
    };
    assert!(two.serve(NodeId(1), &request(2)).await.is_ok());
    assert!(matches!(three.serve(NodeId(1), &request(2)).await, Err(ServeError::WrongNode)));
    assert!(matches!(two.serve(NodeId(3), &request(2)).await, Err(ServeError::WrongSender { named: NodeId(1) })));
    assert!(matches!(two.serve(NodeId(1), &[0xff; 9]).await, Err(ServeError::Malformed)));
    drop((two, three));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_solo_replica_leads_itself() {
    let cluster = Cluster::start(1, Timing::default()).await;
    let solo = crate::live::command::Found { threshold: 1, allow_solo: true, ..found(1, 1) };
    assert_eq!(cluster.propose(Change::Found(solo)).await, Ok(Outcome::Founded));
    // When closing returns, the database is closed.
    for _ in 0..20 {
        cluster.close(1).await;
        cluster.open(1).await;
        assert!(cluster.replica(1).read(|state| state.cluster.is_some()), "what was acknowledged is there at once");
    }
    cluster.agree(1).await;
    cluster.stop().await;
}

/// A stream that ends early, or has a wrong count, does not change the state.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_snapshot_stream_is_refused() {
    use crate::consensus::messages::{Ask, Request, RequestV1};
    let cluster = Cluster::start(3, Timing::default()).await;
    let mut dealer = cluster.found().await;
    cluster.propose(Change::CreateKey(dealer.create(1, "kept"))).await.expect("made");
    let leader = cluster.leader().await;
    let from = leader.leadership().borrow().leader.expect("known");
    let to = NodeId(from.0 % 3 + 1);
    cluster.agree(to.0).await;

    let file = crate::snapshot::build(&leader.disk().expect("open"), CLUSTER).expect("built");
    let chunks: Vec<Vec<u8>> = file.chunks().expect("a file").collect::<Result<_, _>>().expect("good chunks");
    assert!(chunks.len() >= 3);
    let vote = leader.flushed().vote.expect("it was elected");
    let ask = Ask::Snapshot { vote };
    let start = crate::stored::format::encode(&Request::V1(RequestV1 { cluster: CLUSTER, from, to, ask }));

    let end = crate::stored::format::encode(&crate::snapshot::Chunk::EndV1 { rows: 1 });
    let headless = [&chunks[1..]].concat();
    let short = chunks[..chunks.len() - 1].to_vec();
    let miscounted = [&chunks[..chunks.len() - 1], &[end]].concat();
    let oversized = [&chunks[..1], &[vec![0; crate::CHUNK_BYTES_MAX + 1]]].concat();
    for broken in [headless, short, miscounted, oversized] {
        let (send, receive) = mpsc::channel(broken.len() + 1);
        for chunk in std::iter::once(start.clone()).chain(broken) {
            send.send(chunk).await.expect("room");
        }
        drop(send);
        let error = cluster.replica(to.0).serve_snapshot(from, receive).await.expect_err("broken");
        assert!(matches!(error, ServeError::Malformed | ServeError::TooLarge), "{error}");
    }
    cluster.agree(to.0).await;
    let left = std::fs::read_dir(cluster.dirs[&to.0].path().join("snapshots")).expect("a directory").count();
    assert_eq!(left, 0, "unfinished files are removed");
    drop((leader, file));
    cluster.stop().await;
}

fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("a directory").flatten() {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).expect("copied");
        }
    }
}
