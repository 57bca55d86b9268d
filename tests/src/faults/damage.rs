//! T30: a damaged value in the database of one node stops that node alone, which names the value; and how it is repaired.

use std::time::Duration;

use quorate_client::wire::Phase;
use quorate_testnet::faults::damage;
use quorate_testnet::faults::disk::Disk;
use quorate_testnet::{Cluster, Special, wait_until};

use crate::harness::{Dice, PATIENCE, TestCluster, seed};

/// First bytes of keys in `state`.
const KEY_ROW: u8 = 0x06;
const RECORD_ROW: u8 = 0x41;

/// A cluster with a key and a ciphertext, and a node that does not lead, which is stopped.
fn with_stopped() -> (TestCluster, String, String) {
    stopped_in(TestCluster::found())
}

fn stopped_in(mut cluster: TestCluster) -> (TestCluster, String, String) {
    cluster.create("kept");
    let ciphertext = cluster.encrypt(None, "kept", b"secret").expect("encrypts");
    let leader = cluster.leader();
    let node = cluster.testnet.names().into_iter().find(|node| *node != leader).expect("three nodes");
    cluster.testnet.terminate(&node).expect("ends");
    (cluster, node, ciphertext)
}

fn rebuilding() -> Special {
    Special { arguments: vec!["--rebuild-state".to_owned()], ..Special::default() }
}

fn flip(cluster: &TestCluster, node: &str, family: &str, chosen: impl Fn(&[u8]) -> bool) -> String {
    damage::flip(&cluster.testnet.directory().data(node), family, chosen).expect("there is such a value")
}

/// Starts a node that must end with exit code 1, and say each of `parts`.
fn ends_with(cluster: &mut TestCluster, node: &str, special: &Special, parts: &[&str]) {
    let (status, said) = cluster.testnet.start_and_wait_end(node, special).expect("it ends");
    assert_eq!(status.code(), Some(1), "{said}");
    said_all(&said, parts);
}

fn said_all(said: &str, parts: &[&str]) {
    let last = said.lines().rev().take(2).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n");
    assert!(last.starts_with("quorated: ") && last.contains("\nhint: "), "no message and hint at the end of:\n{said}");
    for part in parts {
        assert!(last.contains(part), "{part:?} is not in:\n{last}");
    }
}

/// The other two go on: a new key, a new ciphertext, the old ones.
fn others_go_on(cluster: &TestCluster, key: &str, ciphertext: &str) -> String {
    cluster.create(key);
    let fresh = cluster.encrypt(None, key, b"fresh").expect("encrypts");
    assert_eq!(cluster.decrypt(None, ciphertext).expect("decrypts"), b"secret");
    fresh
}

/// A damaged row that every start reads. The flag repairs it once; after that the node starts without the flag, and answers.
#[test]
fn t30_a_damaged_row_stops_the_node_and_is_taken_from_another() {
    let (mut cluster, node, ciphertext) = with_stopped();
    let row = flip(&cluster, &node, "state", |key| key[0] == KEY_ROW);
    let path = cluster.testnet.directory().data(&node).join("state/raft").display().to_string();
    let place = format!("{path}: column family state, key {row}");
    ends_with(&mut cluster, &node, &Special::default(), &[&place, "--rebuild-state", "the other members go on"]);
    let fresh = others_go_on(&cluster, "made/meanwhile", &ciphertext);

    cluster.testnet.start_as(&node, &rebuilding()).expect("starts");
    cluster.testnet.wait_serving(&[&node]).expect("serves again");
    assert_eq!(cluster.decrypt(Some(&node), &ciphertext).expect("decrypts"), b"secret");
    assert_eq!(cluster.decrypt(Some(&node), &fresh).expect("decrypts"), b"fresh");
    cluster.testnet.kill(&node).expect("dies");
    cluster.start(&[&node]);
    cluster.testnet.wait_serving(&[&node]).expect("starts as ever");
    assert_eq!(cluster.decrypt(Some(&node), &fresh).expect("decrypts"), b"fresh");
}

/// A share record is read when a request needs it. The node stops then, and gives no answer made of it.
#[test]
fn t30_damage_that_only_a_request_meets_stops_the_node_then() {
    let (mut cluster, node, ciphertext) = with_stopped();
    let row = flip(&cluster, &node, "state", |key| key[0] == RECORD_ROW);
    cluster.start(&[&node]);
    cluster.testnet.wait_serving(&[&node]).expect("nothing is known of it yet");
    let refused = cluster.decrypt(Some(&node), &ciphertext);
    assert!(refused.is_err(), "the control: the key was not in memory");
    let (status, said) = cluster.testnet.wait_end(&node).expect("it ends");
    assert_eq!(status.code(), Some(1), "{said}");
    said_all(&said, &[&format!("column family state, key {row}"), "--rebuild-state"]);
    others_go_on(&cluster, "made/meanwhile", &ciphertext);
    cluster.testnet.start_as(&node, &rebuilding()).expect("starts");
    cluster.testnet.wait_serving(&[&node]).expect("serves again");
    assert_eq!(cluster.decrypt(Some(&node), &ciphertext).expect("decrypts"), b"secret");
}

/// What the others count on cannot be taken from them: neither the vote nor an entry that was acknowledged.
#[test]
fn t30_damage_in_the_log_or_the_vote_is_not_rebuilt() {
    let (mut cluster, node, ciphertext) = with_stopped();
    let usual = Special::default();
    flip(&cluster, &node, "meta", |key| key == b"vote");
    for special in [&usual, &rebuilding()] {
        ends_with(&mut cluster, &node, special, &["column family meta, key vote", "node replace"]);
    }
    let fresh = others_go_on(&cluster, "made/meanwhile", &ciphertext);
    flip(&cluster, &node, "meta", |key| key == b"vote");

    let last = flip(&cluster, &node, "log", |_| true);
    for special in [&usual, &rebuilding()] {
        ends_with(&mut cluster, &node, special, &[&format!("column family log, key {last}"), "node replace"]);
    }
    flip(&cluster, &node, "log", |_| true);

    // Long applied, and not read again by a usual start; but no node may build on it.
    let third = 3u64.to_be_bytes();
    flip(&cluster, &node, "log", |key| key == third);
    ends_with(&mut cluster, &node, &rebuilding(), &["column family log, key 0000000000000003", "node replace"]);
    flip(&cluster, &node, "log", |key| key == third);

    // The bits are as they were, and nothing else was touched.
    cluster.start(&[&node]);
    cluster.testnet.wait_serving(&[&node]).expect("serves");
    assert_eq!(cluster.decrypt(Some(&node), &fresh).expect("decrypts"), b"fresh");
}

/// A rebuild dies at a random moment, and the disk loses what was not synced. A start without the flag then names the damage, or
/// serves the whole state. There is nothing in between.
#[test]
fn t30_a_rebuild_that_dies_leaves_the_damage_or_the_whole() {
    const ROUNDS: usize = 8;
    const LONGEST_MS: usize = 600;
    const BEGINS: &str = "taking the state from another node";
    let mut dice = Dice::new(seed());
    let disks = Disk::is_possible().inspect_err(|error| println!("NOT TESTED: loss of power: {error}")).is_ok();
    let names = ["n1", "n2", "n3"].into_iter();
    let builder = names.fold(Cluster::builder(), |all, name| if disks { all.disk(name) } else { all });
    let (mut cluster, node, ciphertext) = stopped_in(TestCluster::of(builder));
    let row = flip(&cluster, &node, "state", |key| key[0] == KEY_ROW);
    let (mut whole, mut damaged) = (0, 0);
    for _ in 0..ROUNDS {
        let log = cluster.testnet.directory().log(&node);
        let begun = || std::fs::read_to_string(&log).unwrap_or_default().matches(BEGINS).count();
        let before = begun();
        cluster.testnet.start_as(&node, &rebuilding()).expect("starts");
        cluster.until("the rebuild to begin", || (begun() > before).then_some(()));
        std::thread::sleep(Duration::from_millis(dice.below(LONGEST_MS) as u64));
        cluster.testnet.kill(&node).expect("dies");
        if disks {
            let disk = cluster.testnet.disk(&node).expect("it has one");
            disk.lose_power(|| dice.below(2) > 0).expect("the directory below is good");
        }
        // It may end before its socket opens.
        drop(cluster.testnet.start(&node));
        let testnet = &mut cluster.testnet;
        let serves = wait_until("it serves or ends", PATIENCE, || {
            let serves = testnet.status(&node).is_ok_and(|status| status.public.phase == Phase::Serving);
            (serves || !testnet.is_running(&node).expect("a node")).then_some(serves)
        });
        let serves = serves.expect("in time");
        if serves {
            whole += 1;
            assert_eq!(cluster.decrypt(Some(&node), &ciphertext).expect("decrypts"), b"secret");
            cluster.testnet.terminate(&node).expect("ends");
            flip(&cluster, &node, "state", |key| key[0] == KEY_ROW);
        } else {
            damaged += 1;
            let (_, said) = cluster.testnet.wait_end(&node).expect("it has ended");
            said_all(&said, &[&format!("column family state, key {row}")]);
        }
    }
    println!("{whole} times whole, {damaged} times as damaged as before");
    cluster.testnet.start_as(&node, &rebuilding()).expect("starts");
    cluster.testnet.wait_serving(&[&node]).expect("serves again");
    assert_eq!(cluster.decrypt(Some(&node), &ciphertext).expect("decrypts"), b"secret");
}
