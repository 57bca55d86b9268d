//! Locks that are renewed: an old copy of a disk becomes worthless, and a node that dies at any moment can still unlock itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_client::conn::Lane;
use quorate_client::identity::Protocol;
use quorate_node::vault::lock_keys;
use quorate_node::vault::{self, KEYS_PER_PEER_MAX, Vault};
use quorate_shares::lock::{Lock, LockOpenCode, LockOpenReply};
use quorate_testnet::{Cluster, thief, wait_until};

use crate::harness::impostor::Impostor;
use crate::harness::{Dice, PATIENCE, TestCluster, restart_rounds, seed, subsets};

const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// The first renewal, and no other: two to eight seconds after founding.
const ONCE: &str = "[timing]\nrenew_lock_after_ms = 2000\n";
/// As often as the peers let it.
const ALWAYS: &str = "[timing]\nrenew_lock_after_ms = 20\nrenew_lock_every_ms = 100\n";
/// The grace of a minute, on a busy machine.
const GRACE: Duration = Duration::from_secs(240);

fn with(settings: &str) -> TestCluster {
    TestCluster::of(Cluster::builder().settings(settings))
}

/// The vault of a node as it lies on its disk now.
fn vault_of(cluster: &TestCluster, node: &str) -> Vault {
    let stolen = tempfile::tempdir().expect("a directory");
    let disk = cluster.testnet.steal(&[node], stolen.path()).expect("steals").remove(0);
    vault::inspect(&disk).expect("a vault")
}

fn generation(cluster: &TestCluster, node: &str) -> u64 {
    vault_of(cluster, node).lock.as_ref().map_or(0, Lock::generation)
}

fn steal(cluster: &TestCluster, nodes: &[&str], to: &Path) -> Vec<PathBuf> {
    cluster.testnet.steal(nodes, to).expect("steals")
}

/// T07: a thief has an image of a node from before its last renewal, and t - 1 disks of today. They open nothing once these
/// nodes have erased the old lock keys. The control: before that they open it. Mutated: without the erasure it opens for ever.
#[test]
fn t07_an_old_image_opens_nothing_once_its_keys_are_erased() {
    let cluster = with(ONCE);
    cluster.create("key");
    let (old, new) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let image = steal(&cluster, &["n1"], old.path()).remove(0);
    let thief = Impostor::of(&cluster, vault::inspect(&image).expect("a vault"));
    assert_eq!(thief.vault.lock.as_ref().map(Lock::generation), Some(1), "the control: stolen before the renewal");
    cluster.until("every lock to be renewed", || NODES.iter().all(|node| generation(&cluster, node) > 1).then_some(()));

    // The control: for a minute of its running time, n2 keeps the key of the old lock.
    let disk = steal(&cluster, &["n2"], new.path()).remove(0);
    assert!(!thief::rob(&[image.clone(), disk]).is_nothing(), "the grace is not over yet");

    // A node that asks with the old lock is refused at once, and an alarm is raised.
    let code = |to: &str| {
        let request = thief.lock_open(cluster.file().node(to).expect("a node").id);
        cluster.block(async {
            let boot = thief.dial(&cluster, to, Protocol::Boot).await.expect("the boot door");
            let answer = boot.call(Lane::Ordinary, &request.encode(), PATIENCE).await.expect("answers");
            LockOpenReply::parse(&answer).expect("a reply").code()
        })
    };
    for peer in ["n2", "n3"] {
        assert_eq!(code(peer), LockOpenCode::StaleGeneration, "{peer}");
    }
    let alarms = cluster.block(cluster.client(None).status()).expect("status").alarms;
    assert!(alarms.iter().any(|alarm| alarm.code == "stale_image"), "{alarms:?}");

    let old_copies = || {
        let nodes = cluster.block(cluster.client(None).nodes()).expect("nodes");
        nodes.into_iter().map(|node| node.state.and_then(|state| state.old_copies)).collect::<Option<Vec<_>>>()
    };
    let standing = cluster.until("every node to know that it renewed its lock", old_copies);
    assert!(standing.iter().all(|copies| !copies.are_dead() && copies.needed == 2), "{standing:?}");

    let erased = || NODES.iter().all(|node| !lock_keys::owes_erasure(&vault_of(&cluster, node))).then_some(());
    wait_until("the old keys to be erased", GRACE, erased).expect("in time");
    for others in subsets(&["n2", "n3"], 1) {
        let new = tempfile::tempdir().expect("a directory");
        let mut disks = steal(&cluster, &others, new.path());
        disks.push(image.clone());
        let loot = thief::rob(&disks);
        assert!(loot.is_nothing(), "{others:?}: {loot}");
    }
    let dead = || old_copies()?.iter().all(|copies| copies.are_dead()).then_some(());
    cluster.until("every owner to hear that its old copies are dead", dead);
    let new = tempfile::tempdir().expect("a directory");
    let loot = thief::rob(&steal(&cluster, &["n1", "n2"], new.path()));
    assert!(!loot.is_nothing(), "the control: two disks of now");
}

/// A peer that is away when a lock is renewed still opens its piece of it when it is back.
#[test]
fn a_peer_that_is_away_keeps_its_piece_of_the_renewed_lock() {
    let mut cluster = with(ONCE);
    cluster.testnet.kill("n3").expect("dies");
    cluster.create("key");
    let ciphertext = cluster.encrypt(None, "key", b"secret").expect("encrypts");
    assert_eq!(generation(&cluster, "n1"), 1, "the control: n3 died before the renewal");
    let renewed = || ["n1", "n2"].iter().all(|node| generation(&cluster, node) > 1).then_some(());
    cluster.until("renewals without n3", renewed);
    for pair in [["n1", "n3"], ["n2", "n3"]] {
        cluster.kill_all();
        cluster.start(&pair);
        cluster.testnet.wait_serving(&pair).expect("both are there");
        assert_eq!(cluster.decrypt(Some("n3"), &ciphertext).expect("decrypts"), b"secret");
    }
}

/// A peer that was away at a renewal, or that the confirmation was lost on the way to, hears of the lock as soon as it is back:
/// until then it lets an older copy of the disk in. Mutated: told once, it learns of it with the next renewal, a minute later.
#[test]
fn a_peer_that_comes_back_hears_of_the_lock_that_it_missed() {
    const SOON: Duration = Duration::from_secs(40);
    let mut cluster = with("[timing]\nrenew_lock_after_ms = 5000\n");
    cluster.testnet.kill("n3").expect("dies");
    let first = cluster.file().node("n1").expect("a node").id;
    let known = |cluster: &TestCluster| vault_of(cluster, "n3").held_for(first).map(|held| held.last_gen);
    cluster.until("a renewal without n3", || (generation(&cluster, "n1") > 1).then_some(()));
    let renewed = generation(&cluster, "n1");
    assert!(known(&cluster) < Some(renewed), "the control: n3 is away");
    cluster.start(&["n3"]);
    wait_until("n3 to hear of it", SOON, || (known(&cluster) == Some(renewed)).then_some(())).expect("in time");
    assert_eq!(generation(&cluster, "n1"), renewed, "and not by the next renewal");
}

/// A peer that was away at a renewal is asked again when it is back, and not only a day later.
#[test]
fn a_peer_that_comes_back_soon_has_a_new_piece() {
    let mut cluster = with("[timing]\nrenew_lock_after_ms = 50\n");
    let third = cluster.file().node("n3").expect("a node").id;
    let key_number = |cluster: &TestCluster| {
        let lock = vault_of(cluster, "n1").lock.expect("a lock");
        lock.pieces().iter().find(|piece| piece.peer == third).map(|piece| piece.key_number)
    };
    cluster.until("a renewal with n3", || (key_number(&cluster) > Some(1)).then_some(()));
    cluster.testnet.kill("n3").expect("dies");
    cluster.testnet.kill("n1").expect("dies");
    let (generation_before, number_before) = (generation(&cluster, "n1"), key_number(&cluster));
    cluster.start(&["n1"]);
    cluster.until("a renewal without n3", || (generation(&cluster, "n1") > generation_before).then_some(()));
    assert_eq!(key_number(&cluster), number_before, "the control: n3 is away");
    cluster.start(&["n3"]);
    cluster.until("a renewal with n3 again", || (key_number(&cluster) > number_before).then_some(()));
}

/// T22, T57: one node dies again and again in the middle of its renewals, and so do the others now and then. No node runs out
/// of lock keys, and any two boot. Mutated: a COMMIT that erases at once, or a lock that is reported before it is durable.
#[test]
fn t57_a_node_that_dies_again_and_again_never_uses_up_its_lock_keys() {
    const ROUNDS: usize = 15;
    const LIFE_MS: usize = 1_500;
    let mut dice = Dice::new(seed());
    let mut cluster = with(ALWAYS);
    cluster.create("key");
    let ciphertext = cluster.encrypt(None, "key", b"secret").expect("encrypts");
    for round in 0..restart_rounds(ROUNDS) {
        let victim = if dice.below(3) > 0 { "n1" } else { NODES[dice.below(NODES.len())] };
        cluster.testnet.kill(victim).expect("dies");
        cluster.start(&[victim]);
        std::thread::sleep(Duration::from_millis(dice.below(LIFE_MS) as u64));
        if round % 5 == 4 {
            let away = NODES[dice.below(NODES.len())];
            cluster.kill_all();
            let pair: Vec<_> = NODES.into_iter().filter(|node| *node != away).collect();
            cluster.start(&pair);
            cluster.testnet.wait_serving(&pair).expect("any two boot");
            assert_eq!(cluster.decrypt(Some(pair[0]), &ciphertext).expect("decrypts"), b"secret");
            cluster.start(&[away]);
        }
    }
    cluster.testnet.wait_serving(&NODES).expect("all serve");
    // Peers that keep three keys for it let it wait, until the grace of the older ones is over.
    let before = generation(&cluster, "n1");
    let renewed = || (generation(&cluster, "n1") > before).then_some(());
    wait_until("n1 renews its lock again", GRACE, renewed).expect("in time");
    for node in NODES {
        let held = vault_of(&cluster, node).held;
        assert!(held.iter().all(|held| held.keys.len() <= KEYS_PER_PEER_MAX), "{node}");
    }
    let status = cluster.block(cluster.client(None).status()).expect("status");
    assert!(status.alarms.is_empty(), "{:?}", status.alarms);
}
