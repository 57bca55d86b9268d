//! A stolen disk gives away nothing: no key, no share, no name. The control: enough disks of one instant give away everything,
//! so the thief is able to find it.

use std::path::PathBuf;

use quorate_client::Context;
use quorate_shares::envelope::Ciphertext;
use quorate_testnet::thief;
use quorate_testnet::thief::canary::{self, Canary};

use crate::harness::{TestCluster, subsets};

const KEYS: [&str; 2] = ["billing/cards-canary", "backup-canary"];
const PLAINTEXT: &[u8] = b"the plaintext canary of a message";

/// T01, T02, T03 for a cluster of `nodes` with majority threshold. Handing a share out in plain, or naming a key in a
/// log, makes it fail.
fn thieves_get_nothing_below_the_threshold(nodes: u8) {
    let cluster = TestCluster::of_nodes(nodes);
    KEYS.iter().for_each(|key| cluster.create(key));
    let ciphertexts: Vec<_> = KEYS.iter().map(|key| cluster.encrypt(None, key, PLAINTEXT).expect("encrypts")).collect();
    let names = cluster.testnet.names();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    // Warm everywhere: what a serving node holds in memory must not have leaked to its disk.
    for node in &names {
        for ciphertext in &ciphertexts {
            assert_eq!(cluster.decrypt(Some(node), ciphertext).expect("decrypts"), PLAINTEXT);
        }
    }
    let stolen = tempfile::tempdir().expect("a directory");
    let disks = cluster.testnet.steal(&names, stolen.path()).expect("all disks of one instant");
    let pick = |subset: &[&str]| -> Vec<PathBuf> { subset.iter().map(|node| stolen.path().join(node)).collect() };
    let threshold = names.len() / 2 + 1;

    // T03, the control: every subset of t disks recovers every key, and the key opens what was encrypted.
    for subset in subsets(&names, threshold) {
        let loot = thief::rob(&pick(&subset));
        for ciphertext in &ciphertexts {
            let ciphertext = Ciphertext::parse_text(ciphertext).expect("our own ciphertext");
            let opened = loot.keys.iter().find_map(|key| key.open(&ciphertext, &Context::empty()));
            assert_eq!(opened.as_deref(), Some(PLAINTEXT), "{subset:?}: {loot}");
        }
    }

    // What must be on no single disk: everything that all disks together give away, the names, and the plaintext.
    let mut canaries = thief::rob(&disks).canaries;
    assert!(canaries.len() > KEYS.len() * 2, "the control found secrets to look for");
    canaries.extend(KEYS.iter().filter_map(|key| Canary::text(format!("the name {key}"), key)));
    canaries.extend(Canary::text("a plaintext", std::str::from_utf8(PLAINTEXT).expect("ascii")));
    for disk in &disks {
        assert_eq!(canary::search(disk, &canaries).expect("every file is read"), [], "{}", disk.display());
        let plain = Canary::text("the node's own name", "n1@").or_else(|| Canary::text("an address", "127.0.0.1"));
        let found = canary::search(disk, &plain.into_iter().collect::<Vec<_>>()).expect("every file is read");
        assert!(!found.is_empty(), "the control: what is in plain by design is found");
    }

    // T01, T02: every smaller subset opens nothing.
    for size in 1..threshold {
        for subset in subsets(&names, size) {
            let loot = thief::rob(&pick(&subset));
            assert!(loot.is_nothing(), "{subset:?}: {loot}");
        }
    }
}

#[test]
fn t01_t03_two_nodes() {
    thieves_get_nothing_below_the_threshold(2);
}

#[test]
fn t01_t02_t03_three_nodes() {
    thieves_get_nothing_below_the_threshold(3);
}

#[test]
fn t01_t02_t03_five_nodes() {
    thieves_get_nothing_below_the_threshold(5);
}
