//! Acknowledged keys, versions and ciphertexts survive any crash.

use std::collections::BTreeMap;

use quorate_client::frame::BODY_BYTES_MAX;
use quorate_client::wire::{TAG_BYTES_MAX, TAGS_MAX};
use quorate_node::vault;
use quorate_shares::ids::KeyVersion;

use crate::harness::{TestCluster, name};

/// D6, D3: a key is acknowledged and all nodes die at that moment. The key and what was encrypted under it are there
/// afterwards. If a node answers before its log is synced, this fails sooner or later.
#[test]
fn d6_an_acknowledged_key_survives_the_death_of_everything() {
    let mut cluster = TestCluster::found();
    let mut kept = Vec::new();
    for round in 0..4 {
        let key = format!("round-{round}");
        cluster.create(&key);
        let ciphertext = cluster.encrypt(None, &key, key.as_bytes()).expect("encrypts");
        cluster.kill_all();
        kept.push((key, ciphertext));
        cluster.start(&["n1", "n2", "n3"]);
        cluster.testnet.wait_serving(&["n1", "n2", "n3"]).expect("boots");
        for (key, ciphertext) in &kept {
            assert_eq!(cluster.decrypt(None, ciphertext).expect("decrypts"), key.as_bytes());
        }
    }
}

/// D7: what was encrypted before decrypts after rotations, deaths of the leader and restarts, at every node.
#[test]
fn d7_decrypting_gives_back_what_was_encrypted_across_rotation_and_leader_loss() {
    let mut cluster = TestCluster::found();
    cluster.create("key");
    let mut kept = Vec::new();
    for round in 0..3u32 {
        let plaintext = format!("round {round}");
        let ciphertext = cluster.encrypt(None, "key", plaintext.as_bytes()).expect("encrypts");
        assert!(ciphertext.starts_with(&format!("qrt1:key:{}:m1:", round + 1)), "{ciphertext}");
        kept.push((plaintext, ciphertext));

        let client = cluster.client(None);
        let rotated = cluster.block(client.rotate_key(&name("key"), Some(KeyVersion(round + 1)))).expect("rotates");
        assert_eq!(
            rotated.newest().map(|version| (version.version, version.ready)),
            Some((KeyVersion(round + 2), true))
        );
        let leader = cluster.block(client.status()).expect("status").leader.expect("a leader").to_string();
        cluster.testnet.kill(&leader).expect("dies");
        // The survivors elect, and go on serving every version.
        for (plaintext, ciphertext) in &kept {
            let opened = cluster.until("the survivors serve", || cluster.decrypt(None, ciphertext).ok());
            assert_eq!(opened, plaintext.as_bytes());
        }
        cluster.start(&[&leader]);
        cluster.testnet.wait_serving(&["n1", "n2", "n3"]).expect("all serve");
        for node in ["n1", "n2", "n3"] {
            for (plaintext, ciphertext) in &kept {
                assert_eq!(cluster.decrypt(Some(node), ciphertext).expect("decrypts"), plaintext.as_bytes(), "{node}");
            }
        }
    }
}

/// A change that is repeated with the same request id is made once; one that expects another version is refused.
#[test]
fn a_rotation_names_the_version_that_it_expects() {
    let cluster = TestCluster::found();
    cluster.create("key");
    let client = cluster.client(None);
    let error = cluster.block(client.rotate_key(&name("key"), Some(KeyVersion(7)))).expect_err("another version");
    assert_eq!(error.code(), quorate_client::Code::Conflict, "{error}");
    let again = cluster.block(client.create_key(&name("key"), BTreeMap::new())).expect_err("the name is taken");
    assert_eq!(again.code(), quorate_client::Code::Conflict, "{again}");
    assert_eq!(cluster.block(client.list_keys()).expect("lists").len(), 1);
}

/// 512 keys with the largest tags are more than a message holds. Mutated: with pages that only the number of keys bounds,
/// no list of this cluster is ever answered.
#[test]
fn the_list_of_the_largest_keys_arrives_whole() {
    const KEYS: usize = 512;
    /// Clients that make keys at a time.
    const CLIENTS: usize = 8;
    let cluster = TestCluster::found();
    let client = cluster.client(None);
    let tag = |number: usize| (format!("{number:0width$}", width = TAG_BYTES_MAX), "x".repeat(TAG_BYTES_MAX));
    let tags: BTreeMap<_, _> = (0..TAGS_MAX).map(tag).collect();
    let making: Vec<_> = (0..CLIENTS)
        .map(|first| {
            let (client, tags) = (client.clone(), tags.clone());
            cluster.spawn(async move {
                for number in (first..KEYS).step_by(CLIENTS) {
                    let made = client.create_key(&name(&format!("{number:0127}")), tags.clone()).await;
                    assert_eq!(made.expect("made").tags, tags);
                }
            })
        })
        .collect();
    making.into_iter().for_each(|made| cluster.block(made).expect("no panic"));
    let listed = cluster.block(client.list_keys()).expect("lists");
    let bytes: usize = listed.iter().map(|key| quorate_client::wire::encode(key).len()).sum();
    assert!(bytes > BODY_BYTES_MAX, "the control: {bytes} bytes");
    let names: Vec<_> = (0..KEYS).map(|number| name(&format!("{number:0127}"))).collect();
    assert_eq!(listed.into_iter().map(|key| key.name).collect::<Vec<_>>(), names);
}

/// D3: every lock key that a peer's lock names is on the disk of the node that offered it, since it is made durable
/// before its public half leaves.
#[test]
fn d3_every_lock_names_keys_that_are_durable_at_its_peers() {
    let cluster = TestCluster::of_nodes(5);
    let stolen = tempfile::tempdir().expect("a directory");
    let names = cluster.testnet.names();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let disks = cluster.testnet.steal(&names, stolen.path()).expect("steals");
    let vaults: Vec<_> = disks.iter().map(|disk| vault::inspect(disk).expect("a vault")).collect();
    for own in &vaults {
        let me = own.identity.node.expect("an id");
        let lock = own.lock.as_ref().expect("a lock");
        assert_eq!((lock.pieces().len(), lock.needed()), (4, 2), "u = t - 1 of n = N - 1");
        for piece in lock.pieces() {
            let peer = vaults.iter().find(|vault| vault.identity.node == Some(piece.peer)).expect("a founder");
            let held = peer.held_for(me).expect("holds for it");
            let key = held.key(piece.key_number).expect("holds this number");
            assert_eq!(quorate_shares::kem::PublicKey::of_seed(&key.seed), piece.public_key);
        }
    }
}
