//! Voters that leave, and old copies of disks that come back: what the other nodes refuse, and what they believe.
//!
//! No command changes the voters here. A member is played by the test itself: with the disk of a node that was killed, its
//! keys, and a replica of the real kind; when it leads, it does what a leader may.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use quorate_client::conn::{Conn, Handler, Lane as ConnLane, Reply, close};
use quorate_client::identity::{Identity, Protocol, dial, peer_key, server_config};
use quorate_client::wire::Phase;
use quorate_node::messages::peer::{self, Hello, PeerRefusal, PeerReply, PeerRequest};
use quorate_node::vault::{self, Vault};
use quorate_raft::level::LEVEL;
use quorate_raft::{
    ChangePurpose, Denial, Gate, Link, LinkError, LogPlace, MessageClass, Options, Replica, StorageKeys, Timing,
};
use quorate_shares::ids::NodeId;
use quorate_shares::lock::{LockOpenCode, LockOpenReply};
use quorate_testnet::thief;
use serde_bytes::ByteBuf;
use tokio::sync::mpsc;

use crate::harness::TestCluster;
use crate::harness::impostor::{Impostor, every_peer_request};

const CALL: Duration = Duration::from_secs(5);
/// Longer than two reports of what is flushed take.
const REPORTS: Duration = Duration::from_secs(3);
/// Longer than a lease, and than a session takes to be refused again and again.
const A_WHILE: Duration = Duration::from_secs(5);

/// The nodes that the played member denies, and its connections to the others.
#[derive(Default)]
struct Ways {
    conns: Mutex<BTreeMap<NodeId, Conn>>,
    denied: Mutex<BTreeSet<NodeId>>,
    /// It says `revoked` to those that it denies, and not `denied`.
    final_word: AtomicBool,
    /// It hears no answer, so nothing that it writes is committed.
    deaf: AtomicBool,
}

#[async_trait]
impl Link for Ways {
    async fn call(
        &self,
        to: NodeId,
        _: MessageClass,
        request: Vec<u8>,
        deadline: Duration,
    ) -> Result<Vec<u8>, LinkError> {
        let conn = self.conns.lock().get(&to).filter(|conn| conn.is_open()).cloned();
        let conn = conn.filter(|_| !self.is_denied(to)).ok_or_else(|| LinkError::Unreachable("away".to_owned()))?;
        let request = peer::encode(&PeerRequest::Raft(ByteBuf::from(request)));
        match conn.call(ConnLane::Urgent, &request, deadline).await.map(|reply| peer::decode(&reply)) {
            Ok(Ok(PeerReply::Raft(reply))) if !self.deaf.load(Ordering::SeqCst) => Ok(reply.into_vec()),
            _ => Err(LinkError::Unreachable("refused".to_owned())),
        }
    }

    async fn snapshot(&self, _: NodeId, _: mpsc::Receiver<Vec<u8>>, _: Duration) -> Result<Vec<u8>, LinkError> {
        Err(LinkError::Refused("no log here is long enough".to_owned()))
    }
}

impl Gate for Ways {
    fn deny(&self, denials: &[Denial]) -> Result<(), String> {
        for denial in denials {
            self.denied.lock().insert(denial.node);
            if let Some(conn) = self.conns.lock().remove(&denial.node) {
                conn.close(close::DENIED, "denied");
            }
        }
        Ok(())
    }

    fn is_denied(&self, node: NodeId) -> bool {
        self.denied.lock().contains(&node)
    }
}

/// A member that the test plays.
struct Played {
    me: NodeId,
    replica: Replica,
    ways: Arc<Ways>,
    _endpoint: quinn::Endpoint,
}

struct PlayedDoor {
    me: NodeId,
    from: NodeId,
    replica: Replica,
    ways: Arc<Ways>,
}

impl Handler for PlayedDoor {
    fn handle(&self, conn: &Conn, body: Bytes) -> Reply {
        let inline = |reply: PeerReply| Reply::Inline(peer::encode(&reply));
        if self.ways.is_denied(self.from) {
            let place = LogPlace { term: u64::MAX, node: self.me, index: u64::MAX };
            let last = self.ways.final_word.load(Ordering::SeqCst);
            return inline(PeerReply::Refused(if last { PeerRefusal::Revoked(place) } else { PeerRefusal::Denied }));
        }
        let (replica, from) = (self.replica.clone(), self.from);
        match peer::decode(&body) {
            Ok(PeerRequest::Hello(_)) => {
                self.ways.conns.lock().insert(from, conn.clone());
                let flushed = Some(replica.flushed());
                inline(PeerReply::Hello(Hello { node: self.me, boot_nonce: [9; 32], flushed, level: LEVEL }))
            }
            Ok(PeerRequest::Ping) => inline(PeerReply::Pong),
            Ok(PeerRequest::Raft(message)) => Reply::later(async move {
                let reply = replica.serve(from, &message).await.map(|reply| PeerReply::Raft(ByteBuf::from(reply)));
                peer::encode(&reply.unwrap_or(PeerReply::Refused(PeerRefusal::Storage)))
            }),
            Ok(PeerRequest::Lease) => Reply::later(async move {
                let index = replica.read_index().await.map(|index| PeerReply::Lease { index });
                peer::encode(&index.unwrap_or(PeerReply::Refused(PeerRefusal::NoQuorum)))
            }),
            _ => inline(PeerReply::Refused(PeerRefusal::Phase(Phase::Locked))),
        }
    }
}

impl Played {
    /// Plays a node that was killed, at its own address. `copies` is where the disks are copied to.
    fn of(cluster: &TestCluster, name: &str, copies: &Path) -> Self {
        let names = cluster.testnet.names();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let disks = cluster.testnet.steal(&names, copies).expect("steals");
        let place = names.iter().position(|other| *other == name).expect("a node");
        let (vault, bundle) = thief::unlock(&disks[place], &disks).expect("all disks open its bundle");
        let (boot, op) = (Identity::from_seed(&vault.identity.boot_seed), Identity::from_seed(&bundle.op_seed));
        let key = bundle.storage_keys.last().expect("a storage key");
        let ways = Arc::new(Ways::default());
        let me = vault.identity.node.expect("an id");
        let options = Options {
            node: me,
            cluster: vault.identity.cluster,
            dir: disks[place].join("state"),
            keys: StorageKeys::new(key.number, &key.key),
            // It stands for election before the others do.
            timing: Timing { heartbeat_ms: 30, election_min_ms: 120, election_max_ms: 240, ..Timing::default() },
            link: ways.clone(),
            gate: ways.clone(),
        };
        let manifest = cluster.testnet.directory().existing_manifest().expect("a manifest");
        let listen: SocketAddr = manifest.nodes[manifest.place(name).expect("a node")].listen;
        cluster.block(async {
            let replica = Replica::open(options).await.expect("the copy opens");
            let config = server_config(&boot, Some(&op), &[Protocol::Boot, Protocol::Peer]);
            let endpoint = quinn::Endpoint::server(config, listen).expect("the port is free");
            tokio::spawn(Self::welcome(me, vault, replica.clone(), ways.clone(), endpoint.clone()));
            Self { me, replica, ways, _endpoint: endpoint }
        })
    }

    async fn welcome(me: NodeId, vault: Vault, replica: Replica, ways: Arc<Ways>, endpoint: quinn::Endpoint) {
        while let Some(incoming) = endpoint.accept().await {
            let Ok(connection) = incoming.await else { continue };
            let from = peer_key(&connection).and_then(|key| vault.roster.node_with_op_key(&key));
            let Some(from) = from.filter(|_| Protocol::of(&connection) == Some(Protocol::Peer)) else { continue };
            let (replica, ways) = (replica.clone(), ways.clone());
            Conn::start(connection, Some(Arc::new(PlayedDoor { me, from, replica, ways })));
        }
    }

    /// Makes it lead: another node that leads instead is killed, and started again.
    fn lead(&self, cluster: &mut TestCluster, others: &[&str]) {
        loop {
            let leader = cluster.until("a leader", || self.replica.leadership().borrow().leader);
            if leader == self.me {
                return;
            }
            let name = others.iter().find(|name| cluster.file().node(name).expect("a node").id == leader);
            let name = name.expect("one of the others leads").to_string();
            cluster.testnet.kill(&name).expect("dies");
            let other = || self.replica.leadership().borrow().leader.filter(|&now| now != leader);
            cluster.until("another leader", other);
            cluster.testnet.start(&name).expect("starts");
            // The played member opens no locks, so the other one must, before it is killed in its turn.
            cluster.until("it to be unlocked", || phase(cluster, &name).filter(|phase| *phase != Phase::Locked));
        }
    }
}

fn phase(cluster: &TestCluster, node: &str) -> Option<Phase> {
    cluster.testnet.status(node).ok().map(|status| status.public.phase)
}

/// Waits until a node that is out has noted it on its disk. It refuses its clients a moment before that.
fn noted(cluster: &TestCluster, node: &str) {
    let data = cluster.testnet.directory().data(node);
    cluster.until("it to be noted", || vault::inspect(&data).ok().filter(|vault| vault.flags.revoked).map(drop));
}

/// T16: a node that appended the revocation refuses the revoked node everything: its lock, a session, and in it Raft, shares and
/// all else. So it does from the moment that the entry is on its disk, before it is committed. The word of one peer does not put the node out of service; a majority of the voters that it knows is believed, and then
/// it is down for good. Mutated: with peers that go on answering, this fails; so does it with a node that believes one peer,
/// or that forgets it over a restart.
#[test]
fn t16_a_revoked_node_is_refused_everything_and_believes_a_majority() {
    let mut cluster = TestCluster::with_lasting_locks();
    cluster.create("key");
    let copies = tempfile::tempdir().expect("a directory");
    cluster.testnet.kill("n3").expect("dies");
    let played = Played::of(&cluster, "n3", copies.path());
    played.lead(&mut cluster, &["n1", "n2"]);
    cluster.testnet.wait_serving(&["n1", "n2"]).expect("the played member gives leases");
    let id = |name: &str| cluster.file().node(name).expect("a node").id;
    let (n1, n2) = (id("n1"), id("n2"));
    let thief = Impostor::of(&cluster, vault::inspect(&copies.path().join("n2")).expect("a vault"));
    let lock_open = || {
        let request = thief.lock_open(n1);
        cluster.block(async {
            let boot = thief.dial(&cluster, "n1", Protocol::Boot).await.expect("the boot door");
            let answer = boot.call(ConnLane::Ordinary, &request.encode(), CALL).await.expect("answers");
            LockOpenReply::parse(&answer).expect("a reply").code()
        })
    };
    assert_eq!(lock_open(), LockOpenCode::DuplicateSession, "the control: it is a member, and alive");

    let names: Vec<&str> = ["n1", "n2", "n3"].into();
    let disks: Vec<_> = names.iter().map(|name| copies.path().join(name)).collect();
    let (_, bundle) = thief::unlock(&disks[1], &disks).expect("all disks open its bundle");
    // What n1 answers to everything that n2 may ask in a session.
    let refusals = || -> Vec<PeerRefusal> {
        cluster.block(async {
            let file = cluster.file();
            let target = file.node("n1").expect("a node");
            let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().expect("an address")).expect("a socket");
            let (me, address) =
                (Identity::from_seed(&bundle.op_seed), target.addresses[0].parse().expect("an address"));
            let connection =
                dial(&endpoint, address, &me, target.key, Protocol::Peer, CALL).await.expect("TLS is for all");
            let conn = Conn::start(connection, None);
            let mut refusals = Vec::new();
            for request in every_peer_request(n2) {
                let reply = conn.call(ConnLane::Ordinary, &peer::encode(&request), CALL).await.expect("an answer");
                match peer::decode(&reply) {
                    Ok(PeerReply::Refused(refusal)) => refusals.push(refusal),
                    _ => panic!("answered"),
                }
            }
            refusals
        })
    };

    let voters: BTreeSet<NodeId> = [n1, played.me].into();
    played.ways.deaf.store(true, Ordering::SeqCst);
    let revocation = {
        let (replica, voters) = (played.replica.clone(), voters.clone());
        cluster.spawn(async move { replica.change_voters(voters, ChangePurpose::Revoke, &[n1].into()).await.map(drop) })
    };
    cluster.until("n1 to refuse it for now", || (lock_open() == LockOpenCode::Denied).then_some(()));
    assert!(refusals().iter().all(|refusal| matches!(refusal, PeerRefusal::Denied)), "appended, not committed");

    played.ways.deaf.store(false, Ordering::SeqCst);
    revocation.abort();
    cluster.until("the revocation", || {
        cluster.block(played.replica.change_voters(voters.clone(), ChangePurpose::Revoke, &[n1].into())).ok()
    });
    cluster.until("n1 to refuse it for ever", || (lock_open() == LockOpenCode::Revoked).then_some(()));
    assert!(refusals().iter().all(|refusal| matches!(refusal, PeerRefusal::Revoked(_))));
    // While the leader heard no answer, it could give no lease.
    cluster.until("the others to go on", || (phase(&cluster, "n1") == Some(Phase::Serving)).then_some(()));

    // n1 alone says so: n2 serves no client, and is not down.
    std::thread::sleep(A_WHILE);
    assert_eq!(phase(&cluster, "n2"), Some(Phase::Open), "the word of one of three");
    played.ways.final_word.store(true, Ordering::SeqCst);
    cluster.until("n2 to believe two of three", || (phase(&cluster, "n2") == Some(Phase::Revoked)).then_some(()));
    noted(&cluster, "n2");
    cluster.testnet.kill("n2").expect("dies");
    cluster.testnet.start("n2").expect("starts");
    assert_eq!(phase(&cluster, "n2"), Some(Phase::Revoked), "over a restart");
    std::thread::sleep(A_WHILE);
    assert_eq!(phase(&cluster, "n2"), Some(Phase::Revoked));
    let log = std::fs::read_to_string(cluster.testnet.directory().log("n2")).expect("a log");
    assert!(log.contains("this node was revoked: it is no member"), "and it says so");
    cluster.block(played.replica.shutdown());
}

/// An operator removes a node by command. The others tell it that it is out, so it goes down and stays down. The others go on,
/// and their status does not name it any more. Mutated: if the roster is not updated from the applied state, the removed node
/// goes on asking for ever.
#[test]
fn a_node_that_leaves_by_command_goes_down_by_itself() {
    for (command, nodes) in [("revoke", 3), ("remove", 4)] {
        let mut cluster = TestCluster::of_nodes(nodes);
        cluster.create("key");
        let ciphertext = cluster.encrypt(None, "key", b"secret").expect("encrypts");
        cluster.testnet.run(["node", command, "n3", "--yes"], b"").expect("it leaves");
        cluster
            .until("n3 to believe that it is gone", || (phase(&cluster, "n3") == Some(Phase::Revoked)).then_some(()));
        noted(&cluster, "n3");
        cluster.testnet.kill("n3").expect("dies");
        cluster.testnet.start("n3").expect("starts");
        assert_eq!(phase(&cluster, "n3"), Some(Phase::Revoked), "over a restart");
        let rest: Vec<String> = cluster.testnet.names().into_iter().filter(|name| name != "n3").collect();
        for node in &rest {
            cluster.until("the others to serve without it", || {
                let status = cluster.block(cluster.client(Some(node)).status()).ok()?;
                let named = status.nodes.iter().any(|node| node.name.as_str() == "n3");
                (status.quorum && !named && status.waiting_for.is_empty()).then_some(())
            });
            assert_eq!(cluster.decrypt(Some(node), &ciphertext).expect("decrypts"), b"secret", "{node}");
        }
        // All nodes restart: the rosters on the disks are the new ones.
        for node in &rest {
            cluster.testnet.kill(node).expect("dies");
        }
        cluster.start(&rest.iter().map(String::as_str).collect::<Vec<_>>());
        cluster.testnet.wait_serving(&rest.iter().map(String::as_str).collect::<Vec<_>>()).expect("all serve");
    }
}

/// T51, the first half: an older copy of a node's disk, whose lock is still good, replaces the disk. The peers know up to the
/// last second what the node had flushed, and refuse the copy before Raft receives anything from it. Mutated: if members do not
/// report each second what is flushed, only hellos count, and the copy is newer than those. If only the first report counts, it is
/// newer than that, too.
#[test]
fn t51_an_old_copy_of_a_live_generation_is_refused() {
    let mut cluster = TestCluster::with_lasting_locks();
    let (old, new) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let (old, new) = (old.path().join("n3"), new.path().join("n3"));
    // Until each member has reported: what it says later must count, and not only its first word.
    std::thread::sleep(REPORTS);
    cluster.create("before");
    cluster.testnet.steal_one("n3", &old).expect("steals");
    cluster.create("after");
    std::thread::sleep(REPORTS);
    cluster.testnet.kill("n3").expect("dies");
    cluster.testnet.steal_one("n3", &new).expect("steals");
    let data = cluster.testnet.directory().data("n3");
    let put = |copy: &Path| {
        for part in ["vault", "state"] {
            let (from, to) = (copy.join(part), data.join(part));
            if to.is_dir() {
                std::fs::remove_dir_all(&to).expect("removed");
            }
            copy_all(&from, &to);
        }
    };
    put(&old);
    cluster.testnet.start("n3").expect("starts");
    let alarm = cluster.until("an alarm", || {
        let status = cluster.block(cluster.client(Some("n1")).status()).ok()?;
        status.alarms.into_iter().find(|alarm| alarm.code == "storage_went_back")
    });
    assert_eq!(alarm.node.map(|node| node.to_string()).as_deref(), Some("n3"));
    cluster.testnet.wait_phase("n3", Phase::Open).expect("it unlocked itself: its lock is good");
    std::thread::sleep(A_WHILE);
    assert_eq!(phase(&cluster, "n3"), Some(Phase::Open), "and that is all");
    let log = std::fs::read_to_string(cluster.testnet.directory().log("n3")).expect("a log");
    assert!(log.contains("storage went back in time: re-join"));
    cluster.testnet.kill("n3").expect("dies");

    put(&new);
    cluster.testnet.start("n3").expect("starts");
    cluster.testnet.wait_serving(&["n3"]).expect("the control: what it had at the end is welcome");
}

fn copy_all(from: &Path, to: &Path) {
    if !from.is_dir() {
        std::fs::copy(from, to).expect("copied");
        return;
    }
    std::fs::create_dir_all(to).expect("a directory");
    std::fs::set_permissions(to, std::fs::metadata(from).expect("there").permissions()).expect("the same mode");
    for entry in std::fs::read_dir(from).expect("a directory").flatten() {
        copy_all(&entry.path(), &to.join(entry.file_name()));
    }
}

/// T51, the other half: a leader that is cut off writes what is never committed, and reports it as flushed to the nodes that
/// still hear it; back among the others its log is truncated, and it is killed and started at once. It is no copy, and is let in.
/// That truncations count for more than the end of the log is shown by `raft/src/tests/cluster.rs`.
#[test]
fn t51_a_truncated_log_is_not_taken_for_an_old_copy() {
    let mut cluster = TestCluster::with_lasting_locks();
    cluster.create("key");
    for round in 0..3 {
        let leader = cluster.leader();
        let others: Vec<String> = cluster.testnet.names().into_iter().filter(|name| *name != leader).collect();
        // The others hear it, and are not heard: it goes on leading for a moment, and nothing that it writes is committed.
        for other in &others {
            cluster.faults().cut_one_way(other, &leader).expect("they exist");
        }
        let client = cluster.client(Some(&leader));
        let key = crate::harness::name(&format!("lost/{round}"));
        let lost = cluster.spawn(async move { client.create_key(&key, BTreeMap::new()).await.map(drop) });
        std::thread::sleep(Duration::from_secs(2));
        cluster.faults().heal();
        let names: Vec<&str> = others.iter().map(String::as_str).collect();
        cluster.testnet.wait_serving(&names).expect("the others serve");
        cluster.testnet.kill(&leader).expect("dies");
        cluster.testnet.start(&leader).expect("starts");
        cluster.testnet.wait_serving(&[&leader]).expect("let in");
        lost.abort();
        let status = cluster.block(cluster.client(None).status()).expect("status");
        assert!(status.alarms.is_empty(), "{:?}", status.alarms);
    }
    assert!(cluster.faults().tally().cut > 0, "the control: something was cut off");
}
