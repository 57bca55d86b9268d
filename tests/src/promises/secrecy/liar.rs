//! T29: a member that answers with wrong shares. It has the real op key and the real shares of its node, and lies.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quorate_client::conn::{Conn, Handler, Lane, Reply};
use quorate_client::error::Code;
use quorate_client::identity::{Identity, Protocol, dial};
use quorate_client::wire::Phase;
use quorate_node::messages::peer::{self, Hello, PeerRefusal, PeerReply, PeerRequest, SealedShare, SharesRequest};
use quorate_node::vault::Vault;
use quorate_raft::level::LEVEL;
use quorate_raft::offline::OfflineStore;
use quorate_raft::{Flushed, StorageKeys, offline};
use quorate_shares::ids::{Epoch, KeyUid, KeyVersion, NodeId, ShareKeyGeneration};
use quorate_shares::labels::EXPORTER_SHARE;
use quorate_shares::lock::Bundle;
use quorate_shares::master::KeyIdentity;
use quorate_shares::seal::{BatchHeader, BatchOpener, ShareRecord};
use quorate_shares::secret::Secret;
use quorate_shares::transit::{self, Place};
use quorate_testnet::{Cluster, thief};

use crate::harness::TestCluster;

const PATIENCE: Duration = Duration::from_secs(5);
/// With this many keys the chance that no load asks the liar first is one in 65 536.
const KEYS: usize = 16;

/// The lie that the member tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Lie {
    /// The control: it tells the truth.
    None,
    /// One bit of the share is another.
    Flipped,
    /// The right share under another number.
    OtherNumber,
    /// Its share of another key.
    OtherKey,
    /// A share of zeros.
    Zeros,
}

const LIES: [Lie; 4] = [Lie::Flipped, Lie::OtherNumber, Lie::OtherKey, Lie::Zeros];

struct Liar {
    vault: Vault,
    bundle: Bundle,
    store: OfflineStore,
    lie: AtomicU8,
    told: AtomicU64,
}

impl Liar {
    /// Becomes `node`, with what all disks together give away.
    fn become_node(cluster: &TestCluster, node: &str) -> Arc<Self> {
        let stolen = tempfile::tempdir().expect("a directory");
        let names = cluster.testnet.names();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let disks = cluster.testnet.steal(&names, stolen.path()).expect("steals");
        let place = names.iter().position(|name| *name == node).expect("a node");
        let (vault, bundle) = thief::unlock(&disks[place], &disks).expect("all disks open its bundle");
        let key = bundle.storage_keys.last().expect("a storage key");
        let store = offline::open(&disks[place].join("state"), StorageKeys::new(key.number, &key.key)).expect("opens");
        Arc::new(Self { vault, bundle, store, lie: AtomicU8::new(0), told: AtomicU64::new(0) })
    }

    fn tell(&self, lie: Lie) {
        self.lie.store(lie as u8, Ordering::SeqCst);
    }

    fn node(&self) -> NodeId {
        self.vault.identity.node.expect("an id")
    }

    /// Opens a session with another node, as the node that it plays would.
    async fn visit(self: &Arc<Self>, cluster: &TestCluster, endpoint: &quinn::Endpoint, node: &str) -> Conn {
        let file = cluster.file();
        let target = file.node(node).expect("a node");
        let me = Identity::from_seed(&self.bundle.op_seed);
        let address = target.addresses[0].parse().expect("an address");
        let connection =
            dial(endpoint, address, &me, target.key, Protocol::Peer, PATIENCE).await.expect("the op key opens");
        let conn = Conn::start(connection, Some(Arc::clone(self) as Arc<dyn Handler>));
        // Nothing is behind what the real node reported before.
        let flushed = Some(Flushed { vote: None, truncations: u64::MAX, last_log: None });
        let flushed = flushed.map(|flushed| Flushed { vote: top_vote(), ..flushed });
        let hello = PeerRequest::Hello(Hello { node: self.node(), boot_nonce: [7; 32], flushed, level: LEVEL });
        let reply = conn.call(Lane::Urgent, &peer::encode(&hello), PATIENCE).await.expect("answers");
        assert!(matches!(peer::decode(&reply), Ok(PeerReply::Hello(_))), "accepted as {node}'s peer");
        conn
    }

    fn share(&self, uid: KeyUid, version: KeyVersion, epoch: Epoch) -> (u8, Secret<32>) {
        let state = self.store.state();
        let committee = state.committee(epoch).expect("a committee");
        let record = self.store.record(uid, version, epoch).expect("reads").expect("a record");
        let record = ShareRecord::parse(&record).expect("a record");
        let header = self.store.batch(record.batch).expect("reads").expect("a batch");
        let header = BatchHeader::parse(&header).expect("a header");
        let key = self.bundle.share_keys.last().expect("a share key");
        let generation: ShareKeyGeneration = key.generation;
        let opener = BatchOpener::open(&header, &committee, self.node(), generation, &key.seed).expect("opens");
        let cluster = self.vault.identity.cluster;
        let kcv = state.version(uid, version).expect("a version").kcv;
        let share = opener.open_share(&record, &KeyIdentity { cluster, uid, version }, &kcv).expect("its own share");
        (opener.x(), share)
    }

    fn answer(&self, conn: &Conn, request: &SharesRequest, body: &[u8]) -> PeerReply {
        let lie = [Lie::None, Lie::Flipped, Lie::OtherNumber, Lie::OtherKey, Lie::Zeros]
            [usize::from(self.lie.load(Ordering::SeqCst))];
        let exported = conn.export(EXPORTER_SHARE, &self.vault.identity.cluster.0);
        let shares = request.versions.iter().map(|&(uid, version)| {
            let (mut x, mut share) = self.share(uid, version, request.epoch);
            match lie {
                Lie::None => {}
                Lie::Flipped => share.expose_mut()[0] ^= 1,
                Lie::OtherNumber => x = x % 3 + 1,
                Lie::OtherKey => {
                    let other = self.store.state().keys.keys().find(|other| **other != uid).expect("several keys");
                    (x, share) = self.share(*other, KeyVersion(1), request.epoch);
                }
                Lie::Zeros => share = Secret::zero(),
            }
            // This side dialled, so it seals in direction 0.
            let place = Place { direction: 0, counter: self.told.fetch_add(1, Ordering::SeqCst) };
            let sealed = serde_bytes::ByteBuf::from(transit::seal(&exported, place, body, &share).to_vec());
            SealedShare { uid, version, x, counter: place.counter, sealed }
        });
        PeerReply::Shares(shares.collect())
    }
}

impl Handler for Liar {
    fn handle(&self, conn: &Conn, body: Bytes) -> Reply {
        let reply = match peer::decode(&body) {
            Ok(PeerRequest::Ping) => PeerReply::Pong,
            Ok(PeerRequest::Shares(request)) => self.answer(conn, &request, &body),
            _ => PeerReply::Refused(PeerRefusal::Phase(Phase::Locked)),
        };
        Reply::Inline(peer::encode(&reply))
    }
}

/// The highest vote there is, so that what the liar reports is never behind.
fn top_vote() -> Option<quorate_raft::Ballot> {
    Some(quorate_raft::Ballot { term: u64::MAX, node: NodeId(u64::MAX), committed: true })
}

/// With enough honest holders, every request succeeds whatever the liar says, and the liar is named.
#[test]
fn t29_a_wrong_share_is_refused_its_sender_named_and_the_key_loads_all_the_same() {
    let mut cluster = TestCluster::found();
    let rounds: Vec<Lie> = std::iter::once(Lie::None).chain(LIES).collect();
    let mut ciphertexts = Vec::new();
    for round in 0..rounds.len() {
        for number in 0..KEYS {
            let key = format!("round-{round}/key-{number}");
            cluster.create(&key);
            // Encrypting at n3 leaves the key cold at n1.
            ciphertexts.push(cluster.encrypt(Some("n3"), &key, key.as_bytes()).expect("encrypts"));
        }
    }
    let liar = Liar::become_node(&cluster, "n2");
    cluster.testnet.kill("n2").expect("dies");
    let endpoint = cluster.block(async { quinn::Endpoint::client("127.0.0.1:0".parse().expect("an address")) });
    let endpoint = endpoint.expect("a socket");
    let _session = cluster.block(liar.visit(&cluster, &endpoint, "n1"));
    cluster.testnet.wait_serving(&["n1", "n3"]).expect("two of three serve");
    for (round, lie) in rounds.into_iter().enumerate() {
        liar.tell(lie);
        for number in 0..KEYS {
            let plaintext =
                cluster.until("decrypts", || cluster.decrypt(Some("n1"), &ciphertexts[round * KEYS + number]).ok());
            assert_eq!(plaintext, format!("round-{round}/key-{number}").as_bytes(), "{lie:?}");
        }
        let status = cluster.block(cluster.client(Some("n1")).status()).expect("status");
        let named = status.alarms.iter().find(|alarm| alarm.code == "wrong_share");
        match lie {
            Lie::None => {
                assert!(named.is_none(), "the control: an honest answer raises nothing: {:?}", status.alarms);
                assert!(liar.told.load(Ordering::SeqCst) > 0, "the control: it was asked");
            }
            _ => {
                let about = named.and_then(|alarm| alarm.node.as_ref()).map(|node| node.as_str());
                assert_eq!(about, Some("n2"), "{lie:?}: {:?}", status.alarms);
            }
        }
    }
}

/// With too few honest holders there is an error: never a wrong plaintext, never a ciphertext.
#[test]
fn t29_too_few_honest_holders_are_an_error() {
    let mut cluster = TestCluster::of(Cluster::builder().threshold(3));
    for key in ["one", "two"] {
        cluster.create(key);
    }
    let ciphertext = cluster.encrypt(Some("n3"), "one", b"secret").expect("encrypts");
    let liar = Liar::become_node(&cluster, "n2");
    cluster.testnet.kill("n2").expect("dies");
    let endpoint = cluster.block(async { quinn::Endpoint::client("127.0.0.1:0".parse().expect("an address")) });
    let endpoint = endpoint.expect("a socket");
    let _session = cluster.block(liar.visit(&cluster, &endpoint, "n1"));
    cluster.testnet.wait_serving(&["n1", "n3"]).expect("two of three keep the lease");
    for lie in LIES {
        liar.tell(lie);
        let error = cluster.decrypt(Some("n1"), &ciphertext).expect_err("two honest shares of three");
        assert_eq!(error.code(), Code::KeyUnavailable, "{lie:?}: {error}");
        let error = cluster.encrypt(Some("n1"), "two", b"secret").expect_err("two honest shares of three");
        assert_eq!(error.code(), Code::KeyUnavailable, "{lie:?}: {error}");
    }
    liar.tell(Lie::None);
    let plaintext = cluster.until("the control: it decrypts", || cluster.decrypt(Some("n1"), &ciphertext).ok());
    assert_eq!(plaintext, b"secret");
}

/// T20: a share on its way opens on the connection for which it was sealed, and on no other one of the same two nodes. Mutated: with
/// shares that are sealed under a key of the cluster, the control fails.
#[test]
fn t20_a_share_on_its_way_opens_only_on_its_connection() {
    let mut cluster = TestCluster::found();
    cluster.create("key");
    let member = Liar::become_node(&cluster, "n2");
    cluster.testnet.kill("n2").expect("dies");
    let endpoint = cluster.block(async { quinn::Endpoint::client("127.0.0.1:0".parse().expect("an address")) });
    let endpoint = endpoint.expect("a socket");
    let export = |conn: &Conn| conn.export(EXPORTER_SHARE, &member.vault.identity.cluster.0);
    let uid = *member.store.state().keys.keys().next().expect("a key");
    let request = SharesRequest { epoch: Epoch(1), versions: vec![(uid, KeyVersion(1))], request: [0; 16] };
    let request = peer::encode(&PeerRequest::Shares(request));
    let other = cluster.block(member.visit(&cluster, &endpoint, "n1"));
    let elsewhere = export(&other);
    let conn = cluster.block(member.visit(&cluster, &endpoint, "n1"));
    let here = export(&conn);
    let share = cluster.until("a share", || {
        let reply = cluster.block(conn.call(Lane::Ordinary, &request, PATIENCE)).ok()?;
        let Ok(PeerReply::Shares(mut shares)) = peer::decode(&reply) else { return None };
        shares.pop()
    });
    // The side that was dialled sealed it.
    let place = Place { direction: 1, counter: share.counter };
    let opened = transit::open(&here, place, &request, &share.sealed);
    assert!(opened.is_some_and(|opened| !opened.same_as(&Secret::zero())), "the control: it opens here");
    assert!(transit::open(&elsewhere, place, &request, &share.sealed).is_none(), "it opens on another connection");
}
