//! T81: sides of different versions understand each other, or refuse each other by name.

use std::time::Duration;

use quorate_client::conn::{Conn, Lane};
use quorate_client::identity::{Identity, Protocol, PublicKey, dial};
use quorate_client::wire::{self, Answered, Envelope, Request};
use quorate_client::{Code, VERSION};
use quorate_node::messages::peer::{self, Hello, PeerRefusal, PeerReply, PeerRequest};
use quorate_raft::level::LEVEL;
use quorate_raft::{Ballot, Flushed};
use quorate_testnet::thief;

use crate::harness::{PATIENCE, TestCluster};

const CALL: Duration = Duration::from_secs(10);
/// A variant that no version has yet. It takes one byte.
const NEWER: u8 = 200;

struct Newer {
    endpoint: quinn::Endpoint,
    me: Identity,
}

impl Newer {
    fn with(cluster: &TestCluster, me: Identity) -> Self {
        let endpoint = cluster.block(async { quinn::Endpoint::client("127.0.0.1:0".parse().expect("an address")) });
        Self { endpoint: endpoint.expect("a socket"), me }
    }

    async fn dial(&self, cluster: &TestCluster, protocol: Protocol) -> Conn {
        let file = cluster.file();
        let node = file.node("n1").expect("a node");
        let (address, key): (_, PublicKey) = (node.addresses[0].parse().expect("an address"), node.key);
        let connection = dial(&self.endpoint, address, &self.me, key, protocol, PATIENCE).await.expect("connects");
        Conn::start(connection, None)
    }
}

/// Mutated: if an unknown variant is refused as any other malformed message, neither side knows which of them is to be updated.
#[test]
fn a_node_that_is_sent_something_newer_says_its_version() {
    let mut cluster = TestCluster::found();
    let client = Newer::with(&cluster, cluster.token().identity());
    cluster.block(async {
        let conn = client.dial(&cluster, Protocol::Client).await;
        let ask = async |request: &[u8]| {
            let answer = conn.call(Lane::Ordinary, request, CALL).await.expect("answers");
            wire::decode::<Answered>(&answer).expect("an answer").answer
        };
        let known = wire::encode(&Envelope { deadline_ms: 5_000, request: Request::Status });
        ask(&known).await.expect("the control: a status");
        let mut newer = known.clone();
        *newer.last_mut().expect("not empty") = NEWER;
        let refused = ask(&newer).await.expect_err("no such request");
        assert_eq!(refused.code, Code::Protocol);
        assert!(refused.message.contains(&format!("quorate {VERSION}")), "{refused}");
        ask(&known).await.expect("the connection goes on");
    });

    // A member of another version, n3.
    let copies = tempfile::tempdir().expect("a directory");
    let disks = cluster.testnet.steal(&["n1", "n2", "n3"], copies.path()).expect("steals");
    let (vault, bundle) = thief::unlock(&disks[2], &disks).expect("all disks open its bundle");
    cluster.testnet.kill("n3").expect("dies");
    let node = vault.identity.node.expect("an id");
    let member = Newer::with(&cluster, Identity::from_seed(&bundle.op_seed));
    cluster.block(async {
        // More than n3 ever said of its disk, or this would be taken for an old copy.
        let vote = Some(Ballot { term: 1_000_000, node, committed: false });
        let flushed = Some(Flushed { vote, ..Flushed::default() });
        let hello = |level| PeerRequest::Hello(Hello { node, boot_nonce: [7; 32], flushed, level });
        let ask = async |conn: &Conn, request: &[u8]| {
            peer::decode::<PeerReply>(&conn.call(Lane::Ordinary, request, CALL).await.expect("answers"))
        };
        let refuses = |reply: Result<PeerReply, PeerRefusal>| {
            matches!(reply, Ok(PeerReply::Refused(PeerRefusal::Unsupported(version))) if version == VERSION)
        };
        let old = member.dial(&cluster, Protocol::Peer).await;
        let reply = ask(&old, &peer::encode(&hello(LEVEL - 1))).await;
        assert!(refuses(reply), "it would stop at the first entry that it cannot read");
        let conn = member.dial(&cluster, Protocol::Peer).await;
        let reply = ask(&conn, &peer::encode(&hello(LEVEL + 1))).await;
        assert!(matches!(reply, Ok(PeerReply::Hello(_))), "the control: one that knows more is welcome");
        assert!(refuses(ask(&conn, &[NEWER]).await));
        let reply = ask(&conn, &peer::encode(&PeerRequest::Ping)).await;
        assert!(matches!(reply, Ok(PeerReply::Pong)), "the session goes on");
    });
}
