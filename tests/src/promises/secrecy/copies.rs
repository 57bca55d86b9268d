//! T14, T61: a copy of a disk that runs while its node lives stays locked; a node that was killed, and starts again at once, is not taken
//! for such a copy. Both hold at any moment: while locks are renewed, while the cluster is founded, while the leader changes, and
//! just after a peer has restarted.

use std::fs;
use std::time::Duration;

use quorate_client::wire::Phase;
use quorate_node::vault::{self, Vault};
use quorate_shares::lock::{Lock, LockOpenCode};
use quorate_testnet::faults::shim::{Death, Shim};
use quorate_testnet::procs::local_status;
use quorate_testnet::{Cluster, wait_until};

use crate::harness::TestCluster;
use crate::harness::commands::{init, invitations, join};
use crate::harness::impostor::{Impostor, RunningCopy};

const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// No lock is renewed while a test runs.
const LASTING: &str = "[timing]\nrenew_lock_after_ms = 3600000\n";
/// A lock is renewed right after each start, and as often as the peers let it.
const ALWAYS: &str = "[timing]\nrenew_lock_after_ms = 20\nrenew_lock_every_ms = 100\n";

fn vault_of(cluster: &TestCluster, node: &str) -> Option<Vault> {
    vault::inspect(&cluster.testnet.directory().data(node)).ok()
}

fn configure(cluster: &TestCluster, node: &str, settings: &str) {
    fs::write(cluster.testnet.directory().config(node), settings).expect("our own directory");
}

fn phase_of(copy: &RunningCopy) -> Phase {
    local_status(&copy.socket).expect("the copy's own socket answers").public.phase
}

/// The codes of the open alarms.
fn alarms(cluster: &TestCluster) -> Vec<String> {
    let status = cluster.block(cluster.client(None).status()).expect("status");
    status.alarms.into_iter().map(|alarm| alarm.code).collect()
}

/// The steady state: the copy stays locked, raises an alarm, and does not disturb the node.
#[test]
fn t61_a_copy_of_a_living_node_stays_locked() {
    let cluster = TestCluster::with_lasting_locks();
    cluster.create("key");
    let ciphertext = cluster.encrypt(None, "key", b"secret").expect("encrypts");
    let copy = RunningCopy::start(&cluster.testnet, "n2");
    let alarm = cluster.until("an alarm", || {
        let status = cluster.block(cluster.client(None).status()).ok()?;
        status.alarms.into_iter().find(|alarm| alarm.code == "duplicate_session")
    });
    assert_eq!(alarm.node.map(|node| node.to_string()).as_deref(), Some("n2"));
    cluster.until_turned_away(&copy.socket, &["n1", "n3"]);
    assert_eq!(phase_of(&copy), Phase::Locked, "it was not revoked");
    assert_eq!(cluster.decrypt(Some("n2"), &ciphertext).expect("the real node goes on"), b"secret");
}

/// A node that stands still for a moment, as a busy machine may let it, is no node that is down. Mutated: with pings of 150 ms, n1
/// opens the copy.
#[test]
fn t61_while_the_node_stands_still_for_a_moment() {
    const MOMENT: Duration = Duration::from_millis(700);
    let cluster = TestCluster::with_lasting_locks();
    let thief = Impostor::steal(&cluster, "n2");
    assert_eq!(thief.ask(&cluster, "n1").0, LockOpenCode::DuplicateSession, "the control");
    let real = cluster.testnet.process("n2").expect("a node").expect("it runs");
    let waking = std::thread::scope(|scope| {
        real.pause().expect("stands still");
        scope.spawn(|| {
            std::thread::sleep(MOMENT);
            real.resume().expect("goes on");
        });
        thief.ask(&cluster, "n1")
    });
    assert!(waking.0 == LockOpenCode::DuplicateSession && waking.1.is_none(), "{:?}", waking.0);
}

/// n2 dies right after a sync of its vault, while its next lock is half written, and when it is durable and no peer knows it yet.
/// Started at once, it is let in. A copy of its disk is not, while n2 lives and renews its lock. Mutated: a peer that refuses
/// every node that has a session, without asking whether it is alive, leaves n2 locked.
#[test]
fn t61_while_a_lock_is_renewed() {
    let shim = Shim::build().expect("a C compiler");
    let mut cluster = TestCluster::of(Cluster::builder().settings(LASTING));
    cluster.create("key");
    let ciphertext = cluster.encrypt(None, "key", b"secret").expect("encrypts");
    let note = cluster.testnet.directory().path().join("deaths");
    let generation = |cluster: &TestCluster| vault_of(cluster, "n2")?.lock.as_ref().map(Lock::generation);
    // The two syncs of one change of the vault.
    for at_sync in [1, 2] {
        let before = generation(&cluster);
        cluster.testnet.kill("n2").expect("dies");
        cluster.testnet.set_environment("n2", shim.with_death(Death { at_sync, of: "/vault" }, &note)).expect("a node");
        configure(&cluster, "n2", ALWAYS);
        cluster.start(&["n2"]);
        cluster.testnet.wait_end("n2").expect("it dies when it renews its lock");
        let died = fs::read_to_string(&note).expect("it says so");
        assert_eq!(died.lines().count(), at_sync as usize, "{died}");
        cluster.testnet.set_environment("n2", Vec::new()).expect("a node");
        configure(&cluster, "n2", LASTING);
        cluster.start(&["n2"]);
        cluster.testnet.wait_serving(&["n2"]).expect("welcome");
        assert_eq!(cluster.decrypt(Some("n2"), &ciphertext).expect("decrypts"), b"secret");
        assert!(generation(&cluster) > before, "the control: it was renewing its lock, {at_sync}");
    }
    assert_eq!(alarms(&cluster), Vec::<String>::new());

    configure(&cluster, "n2", ALWAYS);
    cluster.testnet.kill("n2").expect("dies");
    cluster.start(&["n2"]);
    cluster.testnet.wait_serving(&["n2"]).expect("serves, and renews its lock");
    let copy = RunningCopy::start(&cluster.testnet, "n2");
    cluster.until_turned_away(&copy.socket, &["n1", "n3"]);
    assert_eq!(cluster.decrypt(Some("n2"), &ciphertext).expect("the real node goes on"), b"secret");
}

/// The first founder cannot make its lock, so the founding waits when the other two have made theirs. A copy of n2 that runs
/// then is refused by both others; n2 itself, killed and started again, is let in and goes on founding. Mutated: a founder that
/// does not look at its sessions before it opens a piece.
#[test]
fn t61_while_the_cluster_is_founded() {
    let device = tempfile::tempdir().expect("a directory");
    let mount = device.path().join("not-mounted-yet");
    let mut cluster = TestCluster::with(Cluster::builder().start().expect("starts"));
    configure(&cluster, "n1", &format!("pin_file = '{}/n1.pin'\n", mount.display()));
    cluster.testnet.kill("n1").expect("ends");
    cluster.start(&["n1"]);
    let first = init(&cluster.testnet, "n1", &["--founders", "3"]);
    let invited = invitations(&first, 2);
    let begun = [join(&cluster.testnet, "n2", &invited[0]), join(&cluster.testnet, "n3", &invited[1])];
    let is_locked = |node: &&str| vault_of(&cluster, node).is_some_and(|vault| vault.lock.is_some());
    cluster.until("two founders to have their locks", || ["n2", "n3"].iter().all(is_locked).then_some(()));
    let unfinished = vault_of(&cluster, "n1").is_some_and(|vault| vault.lock.is_none() && vault.founding.is_some());
    assert!(unfinished, "the control: the founding is not over");

    let copy = RunningCopy::start(&cluster.testnet, "n2");
    cluster.until_turned_away(&copy.socket, &["n1", "n3"]);
    assert_eq!(phase_of(&copy), Phase::Locked);
    // It would be as good as n2 while n2 is dead.
    drop(copy);
    cluster.testnet.kill("n2").expect("dies");
    cluster.start(&["n2"]);
    cluster.testnet.wait_phase("n2", Phase::Joining).expect("unlocked, it goes on founding");

    fs::create_dir(&mount).expect("our own directory");
    cluster.testnet.wait_all_serving().expect("founded");
    drop((first, begun));
    let copy = RunningCopy::start(&cluster.testnet, "n2");
    cluster.until_turned_away(&copy.socket, &["n1", "n3"]);
}

/// The leader dies, and a copy of another node begins to ask while no one leads. It is refused by the third node, before and after
/// there is another leader. The dead leader itself is let in when it starts.
#[test]
fn t61_while_the_leader_changes() {
    let mut cluster = TestCluster::of(Cluster::builder().settings(LASTING));
    cluster.create("key");
    let ciphertext = cluster.encrypt(None, "key", b"secret").expect("encrypts");
    for _ in 0..2 {
        let leader = cluster.leader();
        let [copied, other] = NODES.into_iter().filter(|node| *node != leader).collect::<Vec<_>>()[..] else {
            panic!("three nodes")
        };
        cluster.testnet.kill(&leader).expect("dies");
        let copy = RunningCopy::start(&cluster.testnet, copied);
        cluster.until_turned_away(&copy.socket, &[other]);
        let client = cluster.client(Some(other));
        cluster.until("another leader", || {
            assert_eq!(phase_of(&copy), Phase::Locked, "{copied} lives");
            let status = cluster.block(client.status()).ok()?;
            status.leader.filter(|new| status.quorum && new.as_str() != leader)
        });
        cluster.until_turned_away(&copy.socket, &[other]);
        // A peer that has just started has no session yet, and one piece is enough for this lock.
        drop(copy);
        cluster.start(&[&leader]);
        cluster.testnet.wait_serving(&[&leader]).expect("welcome");
        assert_eq!(cluster.decrypt(Some(&leader), &ciphertext).expect("decrypts"), b"secret");
    }
    assert!(alarms(&cluster).iter().all(|code| code == "duplicate_session"), "{:?}", alarms(&cluster));
}

/// One peer of five restarts, and a copy of another node asks it at once. The peer may give its piece before it has a session with
/// the real node; but the lock needs two, and the others refuse. As soon as the peer has a session, it refuses, too. Mutated: a peer
/// that does not look at its sessions in its first ten seconds.
#[test]
fn t61_just_after_a_peer_has_restarted() {
    const SOON: Duration = Duration::from_secs(8);
    let mut cluster = TestCluster::of(Cluster::builder().nodes(5).settings(LASTING));
    cluster.create("key");
    let ciphertext = cluster.encrypt(None, "key", b"secret").expect("encrypts");
    let thief = Impostor::steal(&cluster, "n2");
    cluster.testnet.kill("n1").expect("dies");
    cluster.start(&["n1"]);
    let copy = RunningCopy::start(&cluster.testnet, "n2");
    cluster.until_turned_away(&copy.socket, &["n3", "n4", "n5"]);
    assert_eq!(phase_of(&copy), Phase::Locked);
    cluster.testnet.wait_serving(&["n1"]).expect("serves again");
    let refuses = || (thief.ask(&cluster, "n1").0 == LockOpenCode::DuplicateSession).then_some(());
    wait_until("n1 to see that n2 lives", SOON, refuses).expect("soon");
    assert_eq!(phase_of(&copy), Phase::Locked);
    assert_eq!(cluster.decrypt(Some("n2"), &ciphertext).expect("the real node goes on"), b"secret");
}

/// The limit, as THREATS states it: a peer that is locked itself, or that hears nothing of the real node, has no session with it and
/// cannot see that it lives. It gives its piece. With the threshold of three nodes, one piece is enough.
#[test]
fn t61_the_limit_is_a_peer_without_a_session() {
    let mut cluster = TestCluster::of(Cluster::builder().settings(LASTING));
    cluster.create("key");
    let thief = Impostor::steal(&cluster, "n2");
    assert_eq!(thief.ask(&cluster, "n1").0, LockOpenCode::DuplicateSession, "the control: it has a session");
    for node in ["n2", "n3"] {
        cluster.testnet.process(node).expect("a node").expect("it runs").pause().expect("stands still");
    }
    cluster.testnet.kill("n1").expect("dies");
    cluster.start(&["n1"]);
    cluster.testnet.wait_phase("n1", Phase::Locked).expect("alone");
    let (code, piece) = thief.ask(&cluster, "n1");
    assert!(code == LockOpenCode::Ok && piece.is_some(), "{code:?}: the limit is smaller than THREATS says");
    for node in ["n2", "n3"] {
        cluster.testnet.process(node).expect("a node").expect("it runs").resume().expect("goes on");
    }
    cluster.testnet.wait_serving(&NODES).expect("all serve again");
    let refuses = || (thief.ask(&cluster, "n1").0 == LockOpenCode::DuplicateSession).then_some(());
    cluster.until("n1 to refuse again", refuses);
}
