//! A member that answers and never does its part: the pin of its lock is missing, so it makes no other lock.

use std::collections::BTreeSet;
use std::fs;

use quorate_node::vault;
use quorate_shares::ids::NodeId;
use quorate_testnet::Cluster;

use super::{run, settled, status};
use crate::harness::TestCluster;

const OTHERS: [&str; 3] = ["n1", "n2", "n4"];

/// The peers that hold a piece of n4's lock.
fn pieces(cluster: &TestCluster) -> BTreeSet<NodeId> {
    let stolen = tempfile::tempdir().expect("a directory");
    let disk = cluster.testnet.steal(&["n4"], stolen.path()).expect("steals").remove(0);
    let lock = vault::inspect(&disk).expect("a vault").lock.expect("a lock");
    lock.pieces().iter().map(|piece| piece.peer).collect()
}

/// The removal waits for n4, and then goes on as if n4 were away, with an alarm that names it. When n4 can act again, its lock
/// becomes what it must be. Mutated: without the count of idle members the command never ends.
#[test]
fn an_operation_does_not_wait_for_ever_for_a_member_that_never_acts() {
    let pins = tempfile::tempdir().expect("another device");
    let timing = "[timing]\nmember_patience_ms = 3000\nrekey_pause_ms = 1000\n";
    let settings = format!("pin_file = '{}/{{name}}.pin'\n{timing}", pins.path().display());
    let cluster = TestCluster::of(Cluster::builder().nodes(4).settings(settings));
    cluster.create("key");
    let ciphertext = cluster.encrypt(None, "key", b"secret").expect("encrypts");
    // A founder's number says when it joined, not what it is called.
    let file = cluster.file();
    let [n1, n2, n3] = ["n1", "n2", "n3"].map(|name| file.node(name).expect("a founder").id);
    let (pin, away) = (pins.path().join("n4.pin"), pins.path().join("away"));
    fs::rename(&pin, &away).expect("ours");

    let removed = run(&cluster, &["node", "remove", "n3", "--yes"]);
    let said = &removed.stderr;
    assert_eq!(removed.code, Some(0), "{said}");
    assert!(said.contains("(waiting for n4)"), "the control: it was waited for: {said}");
    let alarmed = cluster.until("an alarm that names n4", || {
        let status = status(&cluster, &OTHERS)?;
        let idle = status.alarms.into_iter().find(|alarm| alarm.code == "member_idle")?;
        Some((idle.node?.to_string(), idle.message))
    });
    assert_eq!(alarmed.0, "n4", "{}", alarmed.1);
    assert!(alarmed.1.contains("`remove n3`"), "{}", alarmed.1);
    settled(&cluster, &OTHERS, 2);
    assert_eq!(cluster.decrypt(Some("n4"), &ciphertext).expect("decrypts"), b"secret", "it holds shares as before");
    assert!(pieces(&cluster).contains(&n3), "the control: its lock is the old one");

    fs::rename(&away, &pin).expect("ours");
    let wanted = BTreeSet::from([n1, n2]);
    cluster.until("the lock of n4 to be what it must be", || (pieces(&cluster) == wanted).then_some(()));
    settled(&cluster, &OTHERS, 3);
}
