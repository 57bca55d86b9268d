//! A cluster that lost power comes back by itself when a quorum is up, and not before.

use std::time::Duration;

use quorate_client::wire::Phase;
use quorate_client::{Client, Context, Options};

use crate::harness::{TestCluster, name, subsets};

/// Longer than two questions of a locked node, which wait for their answers for two seconds each.
const A_WHILE: Duration = Duration::from_secs(4);

/// T22: after all nodes died at once, any majority boots unattended and every key decrypts.
fn any_majority_boots(nodes: u8) {
    let mut cluster = TestCluster::of_nodes(nodes);
    let keys = ["billing/cards", "backup"];
    keys.iter().for_each(|key| cluster.create(key));
    let ciphertexts: Vec<_> =
        keys.iter().map(|key| cluster.encrypt(None, key, key.as_bytes()).expect("encrypts")).collect();
    let names = cluster.testnet.names();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for size in usize::from(nodes) / 2 + 1..=names.len() {
        for majority in subsets(&names, size) {
            cluster.kill_all();
            cluster.start(&majority);
            cluster
                .testnet
                .wait_serving(&majority)
                .unwrap_or_else(|error| panic!("{majority:?} does not boot: {error}"));
            for node in &majority {
                for (key, ciphertext) in keys.iter().zip(&ciphertexts) {
                    let plaintext = cluster.decrypt(Some(node), ciphertext).expect("decrypts");
                    assert_eq!(plaintext, key.as_bytes(), "{node} of {majority:?}");
                }
            }
        }
    }
}

#[test]
fn t22_both_of_two_boot_unattended() {
    any_majority_boots(2);
}

#[test]
fn t22_any_majority_of_three_boots_unattended() {
    any_majority_boots(3);
}

#[test]
fn t22_any_majority_of_four_boots_unattended() {
    any_majority_boots(4);
}

#[test]
fn t22_any_majority_of_five_boots_unattended() {
    any_majority_boots(5);
}

/// T23: one node fewer than a majority stays locked, names the nodes that it waits for, and goes on asking them. The control is T22.
/// Mutated: a node that asks each peer for a while only.
#[test]
fn t23_less_than_a_majority_stays_locked_and_says_who_is_missing() {
    let mut cluster = TestCluster::found();
    cluster.create("key");
    let ciphertext = cluster.encrypt(None, "key", b"secret").expect("encrypts");
    cluster.kill_all();
    cluster.start(&["n2"]);
    let status = cluster.testnet.wait_phase("n2", Phase::Locked).expect("locked");
    assert_eq!((status.public.have, status.public.need), (1, 2));
    let missing: Vec<_> = status.public.waiting_for.iter().map(|name| name.as_str()).collect();
    assert_eq!(missing, ["n1", "n3"]);
    cluster.decrypt(Some("n2"), &ciphertext).expect_err("a locked node serves no client");
    std::thread::sleep(A_WHILE);
    cluster.start(&["n3"]);
    cluster.testnet.wait_serving(&["n2", "n3"]).expect("two of three serve");
    assert_eq!(cluster.decrypt(Some("n2"), &ciphertext).expect("decrypts"), b"secret");
}

/// T61: a node that is killed and started again at once is not taken for an impostor of itself.
#[test]
fn t61_an_immediate_restart_is_welcome() {
    let mut cluster = TestCluster::found();
    cluster.create("key");
    let ciphertext = cluster.encrypt(None, "key", b"secret").expect("encrypts");
    for node in ["n1", "n2", "n3", "n1"] {
        cluster.testnet.kill(node).expect("dies");
        cluster.start(&[node]);
        cluster.testnet.wait_serving(&[node]).expect("serves again");
        assert_eq!(cluster.decrypt(Some(node), &ciphertext).expect("decrypts"), b"secret");
    }
    let status = cluster.block(cluster.client(None).status()).expect("status");
    assert!(status.alarms.is_empty(), "{:?}", status.alarms);
}

/// A connection to a process that was killed ends with the first packet to its successor: a client that keeps one is not
/// left waiting until it is given up as idle, which takes ten seconds.
#[test]
fn a_kept_connection_ends_when_its_node_has_restarted() {
    let mut cluster = TestCluster::found();
    cluster.create("key");
    let options = Options { node: Some("n1".to_owned()), deadline: Duration::from_secs(5), ..Options::default() };
    let client = cluster.block(Client::connect(cluster.file(), &cluster.token(), options)).expect("a client");
    let encrypt = |cluster: &TestCluster| cluster.block(client.encrypt(&name("key"), &Context::empty(), b"secret"));
    encrypt(&cluster).expect("the control: the connection is open");
    // The first of these processes founded the cluster.
    for _ in 0..2 {
        cluster.testnet.kill("n1").expect("dies");
        cluster.testnet.start("n1").expect("starts");
        cluster.testnet.wait_serving(&["n1"]).expect("serves again");
        encrypt(&cluster).expect("noticed within the deadline");
    }
}
