//! A sealed node has no keys and serves no client until it is unsealed, over restarts too. It stays a member.

use std::fs;

use quorate_client::wire::Phase;
use quorate_client::{Code, Options};
use quorate_testnet::procs::{Finished, Tool};

use crate::harness::{PATIENCE, TestCluster};

fn quorate(cluster: &TestCluster, node: &str, typed: &str) -> Finished {
    let mut command = cluster.testnet.quorate(typed.split(' '));
    command.env("QUORATE_SOCKET", cluster.testnet.directory().socket(node));
    Tool::start(command, b"").expect("runs").outcome(PATIENCE).expect("ends")
}

fn done(cluster: &TestCluster, node: &str, typed: &str) -> String {
    let finished = quorate(cluster, node, typed);
    assert_eq!(finished.code, Some(0), "{typed} at {node}: {}", finished.stderr);
    String::from_utf8(finished.stdout).expect("text")
}

fn phase(cluster: &TestCluster, node: &str) -> Phase {
    cluster.testnet.status(node).expect("its socket answers").public.phase
}

/// Sealed by its own socket, killed the moment the answer is there: it comes back sealed, the others serve, and unsealing
/// through another node makes it serve again. Mutated: with the flag in memory only, or written after the answer, it comes back serving.
#[test]
fn a_sealed_node_stays_sealed_over_a_restart() {
    let mut cluster = TestCluster::found();
    cluster.create("key");
    let ciphertext = cluster.encrypt(None, "key", b"secret").expect("encrypts");
    assert_eq!(cluster.decrypt(Some("n2"), &ciphertext).expect("the control"), b"secret");
    assert_eq!(done(&cluster, "n2", "node seal"), "sealed n2\n");
    cluster.testnet.kill("n2").expect("dies");
    cluster.start(&["n2"]);
    cluster.testnet.wait_phase("n2", Phase::Sealed).expect("unlocks itself, and is sealed");
    assert_eq!(done(&cluster, "n2", "node seal"), "sealed n2\n", "repeating it changes nothing");

    let refused = cluster.decrypt(Some("n2"), &ciphertext).expect_err("no client is answered");
    assert_eq!(refused.code(), Code::NotServing, "{refused}");
    assert!(refused.to_string().contains("n2 is sealed"), "{refused}");
    assert_eq!(cluster.decrypt(None, &ciphertext).expect("the others serve"), b"secret");
    let list = done(&cluster, "n1", "node list");
    assert!(list.lines().any(|line| line.starts_with("n2 ") && line.contains(" sealed ")), "{list}");
    let local = quorate(&cluster, "n2", "node status");
    let said = String::from_utf8_lossy(&local.stdout).into_owned();
    assert!(local.code == Some(3) && said.starts_with("not quorate: this node is sealed\n"), "{said}");
    // Whichever node is asked first, the cluster is well.
    for _ in 0..5 {
        assert_eq!(quorate(&cluster, "n1", "status").code, Some(0));
    }

    assert_eq!(done(&cluster, "n1", "node unseal n2"), "unsealed n2\n");
    cluster.testnet.wait_serving(&["n2"]).expect("serves again");
    assert_eq!(cluster.decrypt(Some("n2"), &ciphertext).expect("decrypts"), b"secret");
    cluster.testnet.kill("n2").expect("dies");
    cluster.start(&["n2"]);
    cluster.testnet.wait_serving(&["n2"]).expect("and it stays so");
    let unknown = quorate(&cluster, "n1", "node seal n4");
    assert_eq!(unknown.code, Some(5), "{}", unknown.stderr);
}

/// The leader is sealed: another one leads, and clients notice nothing. Mutated: a sealed leader that goes on leading makes
/// no key, so that `create` fails.
#[test]
fn sealing_the_leader_leaves_the_cluster_serving() {
    let cluster = TestCluster::found();
    cluster.create("key");
    let ciphertext = cluster.encrypt(None, "key", b"secret").expect("encrypts");
    let leader = cluster.leader();
    done(&cluster, &leader, &format!("node seal {leader}"));
    assert_eq!(cluster.decrypt(None, &ciphertext).expect("at once"), b"secret");
    let client = cluster.client(None);
    cluster.until("another leader", || {
        let status = cluster.block(client.status()).ok()?;
        status.leader.filter(|new| status.quorum && new.as_str() != leader)
    });
    cluster.create("another");
    assert_eq!(phase(&cluster, &leader), Phase::Sealed);
}

/// With one node dead and one sealed there is a quorum of votes and of locks, and no quorum of shares. Mutated: a sealed node
/// that gives shares lets n1 decrypt; one that does not vote or does not answer LockOpen leaves n1 locked or without a lease.
#[test]
fn a_sealed_node_votes_and_unlocks_others_and_gives_no_share() {
    let mut cluster = TestCluster::found();
    cluster.create("key");
    let ciphertext = cluster.encrypt(None, "key", b"secret").expect("encrypts");
    done(&cluster, "n3", "node seal");
    cluster.testnet.kill("n2").expect("dies");
    cluster.testnet.kill("n1").expect("dies");
    cluster.start(&["n1"]);
    cluster.testnet.wait_serving(&["n1"]).expect("unlocked and confirmed with the help of n3");
    let impatient = Options { node: Some("n1".to_owned()), patience: std::time::Duration::ZERO, ..Options::default() };
    let client = cluster.client_with(impatient);
    let context = quorate_client::Context::empty();
    let refused = cluster.block(client.decrypt(&ciphertext, &context)).expect_err("its one share is not enough");
    assert_eq!(refused.code(), Code::KeyUnavailable, "{refused}");
    let short = quorate(&cluster, "n1", "status --node n1");
    let said = String::from_utf8_lossy(&short.stdout).into_owned();
    assert!(said.starts_with("quorate, but too few nodes give shares: ") && !said.contains("outage: "), "{said}");
    assert_eq!(short.code, Some(3));
    done(&cluster, "n1", "node unseal n3");
    cluster.testnet.wait_serving(&["n3"]).expect("serves");
    assert_eq!(cluster.decrypt(Some("n1"), &ciphertext).expect("with the share of n3"), b"secret");
}

/// A revocation does not wait for a sealed node, which checks its new shares as every other. Mutated: with one that refuses that,
/// no leader hears from it.
#[test]
fn a_node_is_revoked_while_another_is_sealed() {
    let cluster = TestCluster::of_nodes(5);
    cluster.create("key");
    let ciphertext = cluster.encrypt(None, "key", b"secret").expect("encrypts");
    done(&cluster, "n3", "node seal");
    done(&cluster, "n1", "node revoke n4 --yes --wait");
    assert_eq!(phase(&cluster, "n3"), Phase::Sealed);
    let sealed = cluster.file().node("n3").expect("a node").id;
    let acknowledged = format!("holder acknowledged the epoch epoch=2 holder={sealed} ");
    let log_of = |node| fs::read_to_string(cluster.testnet.directory().log(node)).expect("a log");
    assert!(["n1", "n2", "n5"].into_iter().any(|node| log_of(node).contains(&acknowledged)), "it checks its shares");
    assert_eq!(cluster.decrypt(Some("n1"), &ciphertext).expect("the others serve"), b"secret");
    done(&cluster, "n1", "node unseal n3");
    let opened = cluster.until("n3 to serve", || cluster.decrypt(Some("n3"), &ciphertext).ok());
    assert_eq!(opened, b"secret");
}
