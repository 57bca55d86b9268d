//! A boot key lies in plain on every disk. It is good for LockOpen and the public status, and for nothing else.

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use quorate_client::conn::{CallError, Lane};
use quorate_client::error::Code;
use quorate_client::identity::{Identity, Protocol};
use quorate_client::wire::{self, Answered, Envelope, PUBLIC_STATUS, Phase, PublicStatus, Request, Token};
use quorate_node::messages::peer;
use quorate_shares::ids::{Epoch, NodeId, NodeName};
use quorate_shares::labels::EXPORTER_LOCK;
use quorate_shares::lock::{LockOpenCode, LockOpenReply, LockOpenRequest};
use quorate_shares::secret::Secret;
use quorate_testnet::procs::{Binaries, Lifetime, Process, local_status};

use crate::harness::impostor::{Impostor, every_peer_request};
use crate::harness::names::of_each_variant;
use crate::harness::{TestCluster, name};

const PATIENCE: Duration = Duration::from_secs(5);

fn node(name: &str) -> NodeName {
    name.parse().expect("a name")
}

/// One of everything that a client may ask.
fn every_client_request() -> Vec<Request> {
    let empty = quorate_client::Context::empty;
    let [plaintext, invitation] = [b"x", b"y"].map(|text| wire::Plaintext::new(text.to_vec()).expect("short"));
    of_each_variant(vec![
        Request::Status,
        Request::Encrypt { key: name("key"), context: empty(), plaintext },
        Request::Decrypt { ciphertext: b"qrt1:key:1:m1:AAAA".to_vec(), context: empty() },
        Request::DataKey { key: name("key"), context: empty(), bytes: 32 },
        Request::CreateKey { request_id: [0; 16], name: name("new"), tags: Default::default() },
        Request::ListKeys { after: None, limit: 10 },
        Request::ShowKey { name: name("key") },
        Request::RotateKey { request_id: [0; 16], name: name("key"), expect: None },
        Request::ListNodes,
        Request::NodeStatus { name: node("n1") },
        Request::Export,
        Request::Echo(vec![1]),
        Request::SealNode { name: node("n1") },
        Request::UnsealNode { name: node("n1") },
        Request::AdmitNode { name: node("n1") },
        Request::ListAlarms,
        Request::DisarmAlarms { codes: None },
        Request::RemoveNode { request_id: [0; 16], name: node("n3"), accept_no_redundancy: true, abandon: Vec::new() },
        Request::RevokeNodes { request_id: [0; 16], names: vec![node("n3")] },
        Request::Progress { operation: Epoch(2) },
        Request::InviteNode { name: None, ttl_ms: 1_000 },
        Request::ReplaceNode { name: node("n3"), invitation },
    ])
}

/// T15: with a boot key alone, every request but LockOpen and the public status is refused, on every protocol.
#[test]
fn t15_a_boot_key_opens_no_other_door() {
    let mut cluster = TestCluster::with_lasting_locks();
    cluster.create("key");
    let thief = Impostor::steal(&cluster, "n2");
    cluster.testnet.kill("n2").expect("dies, so that nothing speaks for the real node");
    let me = thief.vault.identity.node.expect("an id");
    cluster.block(async {
        // As a peer: the op key is not this one, and the connection is closed before anything is heard.
        let peer = thief.dial(&cluster, "n1", Protocol::Peer).await.expect("TLS itself accepts any key");
        for request in every_peer_request(me) {
            let error = peer.call(Lane::Ordinary, &peer::encode(&request), PATIENCE).await.expect_err("refused");
            assert!(matches!(error, CallError::Closed(_)), "{error}");
        }
        // The same bytes at the door that a boot key may knock at: no answer has any content.
        let boot = thief.dial(&cluster, "n1", Protocol::Boot).await.expect("the boot door");
        for request in every_peer_request(me) {
            let answer = boot.call(Lane::Ordinary, &peer::encode(&request), PATIENCE).await.expect("answers");
            assert!(answer.is_empty(), "{} bytes", answer.len());
        }
        for request in every_client_request() {
            let envelope = Envelope { token: Token::random(), deadline_ms: 1000, request };
            let answer = boot.call(Lane::Ordinary, &wire::encode(&envelope), PATIENCE).await.expect("answers");
            assert!(answer.is_empty(), "{} bytes", answer.len());
        }
        // As a client: the key means nothing there, and the token is not known.
        let client = thief.dial(&cluster, "n1", Protocol::Client).await.expect("any client may knock");
        for request in every_client_request() {
            let envelope = Envelope { token: Token::random(), deadline_ms: 1000, request };
            let answer = client.call(Lane::Ordinary, &wire::encode(&envelope), PATIENCE).await.expect("answers");
            let answered: Answered = wire::decode(&answer).expect("an answer");
            assert_eq!(answered.answer.expect_err("refused").code, Code::Denied);
        }
        // A joiner must prove an invitation; being a member already proves none.
        let join = thief.dial(&cluster, "n1", Protocol::Join).await.expect("anybody may knock");
        for request in every_peer_request(me) {
            let answer = join.call(Lane::Ordinary, &peer::encode(&request), PATIENCE).await.expect("answers");
            assert!(answer.is_empty(), "{} bytes", answer.len());
        }

        // The controls: the two requests that a boot key is for.
        let answer = boot.call(Lane::Ordinary, PUBLIC_STATUS, PATIENCE).await.expect("answers");
        let status: PublicStatus = wire::decode(&answer).expect("a status");
        assert_eq!(status.phase, Phase::Serving);
        let request = thief.lock_open(NodeId(1));
        let answer = boot.call(Lane::Ordinary, &request.encode(), PATIENCE).await.expect("answers");
        let reply = LockOpenReply::parse(&answer).expect("a reply");
        assert_eq!(reply.code(), LockOpenCode::Ok, "an unrevoked disk with network reach looks like a reboot");
    });
}

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
    let changed = [
        ("another cluster", with(&|request| request.cluster.0[0] ^= 1)),
        ("in the name of another", with(&|request| request.from = other)),
        ("of another peer", with(&|request| request.to = other)),
        ("an older generation", with(&|request| request.generation = 0)),
        ("a key number that is not held", with(&|request| request.key_number += 9)),
        ("another piece number", with(&|request| request.x ^= 3)),
        ("a damaged piece", with(&|request| request.sealed[0] ^= 1)),
    ];
    let stranger = Impostor::steal(&cluster, "n2").with_boot_key(Identity::from_seed(&Secret::take(&mut [9; 32])));
    cluster.block(async {
        let conn = thief.dial(&cluster, "n1", Protocol::Boot).await.expect("connects");
        for (what, request) in &changed {
            let answer = conn.call(Lane::Ordinary, &request.encode(), PATIENCE).await.expect("answers");
            let reply = LockOpenReply::parse(&answer).expect("a reply");
            assert_ne!(reply.code(), LockOpenCode::Ok, "{what}");
        }
        let answer = conn.call(Lane::Ordinary, &good().encode(), PATIENCE).await.expect("answers");
        assert_eq!(LockOpenReply::parse(&answer).expect("a reply").code(), LockOpenCode::Ok, "the control");
        // Another boot key than the roster's for this node.
        let conn = stranger.dial(&cluster, "n1", Protocol::Boot).await.expect("connects");
        let answer = conn.call(Lane::Ordinary, &good().encode(), PATIENCE).await.expect("answers");
        assert_eq!(LockOpenReply::parse(&answer).expect("a reply").code(), LockOpenCode::Denied);
    });
}

/// T14, and T61, the other half: a copy of a disk that is started while its node lives stays locked, raises an alarm, and does not
/// disturb the node.
#[test]
fn t61_a_copy_of_a_living_node_stays_locked() {
    let cluster = TestCluster::with_lasting_locks();
    cluster.create("key");
    let ciphertext = cluster.encrypt(None, "key", b"secret").expect("encrypts");
    let stolen = tempfile::tempdir().expect("a directory");
    let copy = cluster.testnet.steal(&["n2"], stolen.path()).expect("steals").remove(0);
    let port = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port");
    let socket = copy.join("impostor.sock");
    let mut command = Command::new(Binaries::find().expect("built").quorated);
    command.arg("--data").arg(&copy).arg("--socket").arg(&socket).args(["--listen", &port.to_string()]);
    let log = copy.join("impostor.log");
    let _impostor = Process::start(command, &copy, &log, Lifetime::WithUs).expect("starts");
    let alarm = cluster.until("an alarm", || {
        let status = cluster.block(cluster.client(None).status()).ok()?;
        status.alarms.into_iter().find(|alarm| alarm.code == "duplicate_session")
    });
    assert_eq!(alarm.node.map(|node| node.to_string()).as_deref(), Some("n2"));
    cluster.until_turned_away(&socket, &["n1", "n3"]);
    let status = local_status(&socket).expect("the impostor's own socket answers");
    assert_eq!(status.public.phase, Phase::Locked, "it was not revoked");
    assert_eq!(cluster.decrypt(Some("n2"), &ciphertext).expect("the real node goes on"), b"secret");
}
