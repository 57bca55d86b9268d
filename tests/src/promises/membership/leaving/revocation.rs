//! A revocation: of a node that is dead, alive, or leading; of three, four and five.

use std::time::{Duration, Instant};

use quorate_client::Context;
use quorate_client::conn::{BulkError, Conn, Lane};
use quorate_client::identity::{Identity, Protocol, dial};
use quorate_node::messages::peer::{self, Hello, PeerRefusal, PeerReply};
use quorate_raft::level::LEVEL;
use quorate_raft::{Ballot, Flushed};
use quorate_shares::lock::LockOpenCode;
use quorate_testnet::{Cluster, thief, wait_until};

use super::{LEASE, all_open, run, seal_many, settled, typed};
use crate::harness::impostor::{Impostor, every_peer_request};
use crate::harness::{PATIENCE, TestCluster};

/// How long a command may return after the last lease from before can have run out.
const SLACK: Duration = Duration::from_secs(1);
const LINES: [&str; 3] = ["decisive", "old disk: dead", "names safe: locks renewed"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Dead,
    Alive,
    Leading,
}

/// Revokes one of `nodes`, and returns what the command said.
fn revoke_one(nodes: u8, what: Victim) {
    let mut cluster = TestCluster::of(Cluster::builder().nodes(nodes));
    let sealed = seal_many(&cluster, 20);
    let leader = cluster.leader();
    let names = cluster.testnet.names();
    let follows = |name: &&String| **name != leader;
    let victim =
        if what == Victim::Leading { leader.clone() } else { names.iter().find(follows).cloned().expect("one") };
    let stay: Vec<&str> = names.iter().filter(|name| **name != victim).map(String::as_str).collect();
    // Its memory is warm, and its clients still reach it.
    let client = cluster.hasty(&victim);
    let asks = |cluster: &TestCluster| cluster.block(client.decrypt(&sealed[0].ciphertext, &Context::empty()));
    assert!(asks(&cluster).is_ok(), "the control: {victim} serves");
    if what == Victim::Dead {
        cluster.testnet.kill(&victim).expect("dies");
    }

    let begin = Instant::now();
    let command = typed(&cluster, &["node", "revoke", &victim, "--yes"]);
    let first = || command.so_far().lines().any(|line| line == LINES[0]).then(Instant::now);
    let decisive = wait_until("the first line", PATIENCE, first);
    let decisive = decisive.unwrap_or_else(|error| panic!("{error}: {}", command.so_far()));
    let finished = command.outcome(PATIENCE).expect("it ends");
    let ended = Instant::now();
    println!("{nodes} nodes, {what:?}: decisive after {:?}, ended after {:?}", decisive - begin, ended - begin);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    // What comes before the first line is an election at most, and takes as long as the machine is slow.
    assert!(ended - decisive < LEASE + SLACK, "{:?}: {}", ended - decisive, finished.stderr);
    // No lease from before runs any more, so it has refused for a moment.
    assert!(asks(&cluster).is_err(), "{victim} still serves when its revocation is said to be effective");
    if what == Victim::Alive {
        // Mutated: without a look at the phase, a client that stayed connected is told the status for ever.
        let asks_status = || cluster.block(client.export()).is_err().then_some(());
        cluster.until("the revoked node to answer no client at all", asks_status);
    }

    let told: Vec<_> =
        finished.stderr.lines().filter(|line| LINES.iter().any(|known| line.starts_with(known))).collect();
    let in_order = told.iter().zip(LINES).all(|(told, known)| told.starts_with(known));
    let all = told.len() == LINES.len() || finished.stderr.contains("the rest continues without this command");
    assert!(!told.is_empty() && in_order && all, "{}", finished.stderr);
    let status = settled(&cluster, &stay, 2);
    let majority = (nodes - 1) / 2 + 1;
    assert_eq!((status.threshold, status.theft_threshold), (majority, majority));
    all_open(&cluster, &stay, &sealed);
    cluster.create("afterwards");
}

fn revoke_of(nodes: u8) {
    for victim in [Victim::Dead, Victim::Alive, Victim::Leading] {
        revoke_one(nodes, victim);
    }
}

/// Mutated: a command that returns as soon as the revocation is decisive finds the node still serving.
#[test]
fn one_of_three_is_revoked() {
    revoke_of(3);
}

#[test]
fn one_of_four_is_revoked() {
    revoke_of(4);
}

#[test]
fn one_of_five_is_revoked() {
    revoke_of(5);
}

const CALL: Duration = Duration::from_secs(5);

/// What a node answers to bytes that are no snapshot, on the stream of a snapshot.
async fn offer_snapshot(conn: &Conn) -> Option<BulkError> {
    let offer = async {
        let mut bulk = conn.open_bulk(b"snapshot").await?;
        bulk.send(b"no snapshot").await?;
        bulk.finish(CALL).await
    };
    offer.await.err()
}

/// T16, by command: a thief with the disk of a revoked node and all its keys is refused everything by every node that stays:
/// its lock, each request of a session, and the stream of a snapshot, which is no request. The control: as long as the node is a
/// member, the stream reaches the replica, whose log says that it holds no snapshot.
#[test]
fn t16_the_other_members_hear_nothing_of_a_revoked_node() {
    let mut cluster =
        TestCluster::of(Cluster::builder().nodes(4).settings("[timing]\nrenew_lock_after_ms = 3600000\n"));
    let copies = tempfile::tempdir().expect("a directory");
    let stay = ["n1", "n2", "n3"];
    let disks = cluster.testnet.steal(&["n1", "n2", "n3", "n4"], copies.path()).expect("steals");
    let (vault, bundle) = thief::unlock(&disks[3], &disks).expect("all disks open its bundle");
    let (me, op) = (vault.identity.node.expect("an id"), Identity::from_seed(&bundle.op_seed));
    let thief = Impostor::of(&cluster, vault);
    cluster.testnet.kill("n4").expect("dies");
    let endpoint = cluster.block(async { quinn::Endpoint::client("127.0.0.1:0".parse().expect("an address")) });
    let endpoint = endpoint.expect("a socket");
    let file = cluster.file();
    let connect = async |node: &str| {
        let target = file.node(node).expect("a node");
        let address = target.addresses[0].parse().expect("an address");
        let connection = dial(&endpoint, address, &op, target.key, Protocol::Peer, CALL).await.expect("TLS is for all");
        Conn::start(connection, None)
    };
    let heard = |cluster: &TestCluster, node: &str| {
        let log = std::fs::read_to_string(cluster.testnet.directory().log(node)).expect("a log");
        log.lines().filter(|line| line.contains("snapshot refused")).count()
    };

    // More than n4 ever said of its disk, or this would be taken for an old copy.
    let vote = Some(Ballot { term: 1_000_000, node: me, committed: false });
    let hello =
        Hello { node: me, boot_nonce: [7; 32], flushed: Some(Flushed { vote, ..Flushed::default() }), level: LEVEL };
    let hello = peer::encode(&peer::PeerRequest::Hello(hello));
    let sessions = stay.map(|node| {
        let session = cluster.block(async {
            let session = connect(node).await;
            let answer = session.call(Lane::Ordinary, &hello, CALL).await.expect("an answer");
            assert!(matches!(peer::decode(&answer), Ok(PeerReply::Hello(_))), "{node}");
            assert_eq!(offer_snapshot(&session).await, Some(BulkError::Refused), "{node}");
            session
        });
        cluster.until("the control: it heard it, and its log says so", || (heard(&cluster, node) == 1).then_some(()));
        session
    });
    let revoked = run(&cluster, &["node", "revoke", "n4", "--yes", "--wait"]);
    assert_eq!(revoked.code, Some(0), "{}", revoked.stderr);
    settled(&cluster, &stay, 2);
    for (node, session) in stay.into_iter().zip(sessions) {
        assert_eq!(thief.ask(&cluster, node).0, LockOpenCode::Revoked, "{node}");
        cluster.block(async {
            let old = offer_snapshot(&session).await;
            assert!(matches!(old, Some(BulkError::Closed(_))), "{node} goes on with the old session: {old:?}");
            let conn = connect(node).await;
            for (number, request) in every_peer_request(me).into_iter().enumerate() {
                let answer = conn.call(Lane::Ordinary, &peer::encode(&request), CALL).await.expect("an answer");
                let reply = peer::decode(&answer);
                assert!(matches!(reply, Ok(PeerReply::Refused(PeerRefusal::Revoked(_)))), "{node}: request {number}");
            }
            // Only members may begin such a stream.
            let new = offer_snapshot(&conn).await;
            assert!(matches!(new, Some(BulkError::Closed(_))), "{node}: {new:?}");
        });
        assert_eq!(heard(&cluster, node), 1, "{node} heard it again");
    }
}
