//! I8: a new key version is not used, and no client is told that it is made, before t holders have opened and checked their
//! shares of it.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_client::wire::KeyInfo;
use quorate_client::{Client, Code, Context, Options};
use quorate_shares::ids::KeyVersion;
use quorate_testnet::Cluster;

use crate::harness::{PATIENCE, TestCluster, name};

const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// Questions that are asked while a creator waits: together they take many times as long as an answer that is not held back.
const ASKED: usize = 20;

/// A client of one node that waits as long as it takes.
fn patient(cluster: &TestCluster, node: &str) -> Client {
    cluster.client_with(Options { node: Some(node.to_owned()), deadline: PATIENCE, ..Options::default() })
}

fn newest(key: &KeyInfo) -> (KeyVersion, bool) {
    let newest = key.newest().expect("a key is made with a version");
    (newest.version, newest.ready)
}

/// Three of three holders must check a version, and one is dead. Two are enough to write the key down, and too few to use it.
/// The client that creates it waits until the third is back, both at the leader and at a follower.
///
/// Mutated: `keys::ready` alone guards the creator; if it does not look at `ready`, this fails.
#[test]
fn i8_a_version_is_neither_used_nor_acknowledged_before_t_holders_have_checked_it() {
    let mut cluster = TestCluster::of(Cluster::builder().threshold(3));
    cluster.create("rotated");
    let leader = cluster.leader();
    let others: Vec<_> = NODES.into_iter().filter(|node| *node != leader).collect();
    let (follower, dead) = (others[0], others[1]);
    cluster.testnet.kill(dead).expect("dies");

    let (at_leader, at_follower) = (patient(&cluster, &leader), patient(&cluster, follower));
    let creator = {
        let client = at_leader.clone();
        cluster.spawn(async move { client.create_key(&name("created"), BTreeMap::new()).await })
    };
    let rotator = {
        let client = at_follower.clone();
        cluster.spawn(async move { client.rotate_key(&name("rotated"), Some(KeyVersion(1))).await })
    };
    for client in [&at_leader, &at_follower] {
        for (key, version) in [("created", 1), ("rotated", 2)] {
            let made =
                || cluster.block(client.show_key(&name(key))).ok().filter(|key| newest(key).0 == KeyVersion(version));
            let made = cluster.until("the version to be written down", made);
            assert_eq!(newest(&made), (KeyVersion(version), false), "{key} cannot have been checked by three");
        }
    }
    for asked in 0..ASKED {
        let (client, node) = [(&at_leader, leader.as_str()), (&at_follower, follower)][asked % 2];
        let hasty = Options { node: Some(node.to_owned()), patience: Duration::ZERO, ..Options::default() };
        let encrypt = cluster.client_with(hasty);
        let refused =
            cluster.block(encrypt.encrypt(&name("created"), &Context::empty(), b"secret")).expect_err("too early");
        assert_eq!(refused.code(), Code::KeyUnavailable, "{node}: {refused}");
        // The versions before it are as good as ever.
        let key = cluster.block(client.show_key(&name("rotated"))).expect("shows");
        assert!(key.versions.iter().any(|version| version.ready), "{node}");
    }
    assert!(!creator.is_finished(), "the creator was answered while two of three had checked");
    assert!(!rotator.is_finished(), "the rotator was answered while two of three had checked");

    cluster.start(&[dead]);
    let created = cluster.block(creator).expect("no panic").expect("made");
    assert_eq!(newest(&created), (KeyVersion(1), true));
    let rotated = cluster.block(rotator).expect("no panic").expect("rotated");
    assert_eq!(newest(&rotated), (KeyVersion(2), true));
    cluster.testnet.wait_serving(&NODES).expect("serve");
    for (key, version) in [("created", 1), ("rotated", 2)] {
        let ciphertext = cluster.encrypt(None, key, b"secret").expect("encrypts");
        assert!(ciphertext.starts_with(&format!("qrt1:{key}:{version}:")), "{ciphertext}");
        for node in NODES {
            assert_eq!(cluster.decrypt(Some(node), &ciphertext).expect("decrypts"), b"secret", "{node}");
        }
    }
}
