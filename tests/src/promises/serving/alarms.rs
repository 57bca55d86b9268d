//! Alarms stay until an operator disarms them: over restarts, from before the storage key was there, at all nodes.

use std::fs;

use quorate_client::conn::Lane;
use quorate_client::identity::Protocol;
use quorate_client::wire::{Alarm, Phase};
use quorate_node::vault;
use quorate_shares::lock::{Lock, LockOpenCode, LockOpenReply, LockOpenRequest};
use quorate_testnet::Cluster;
use quorate_testnet::procs::{Finished, Tool};

use crate::harness::impostor::Impostor;
use crate::harness::{PATIENCE, TestCluster};

const NODES: [&str; 3] = ["n1", "n2", "n3"];

fn quorate(cluster: &TestCluster, typed: &str) -> Finished {
    Tool::start(cluster.testnet.quorate(typed.split(' ')), b"").expect("runs").outcome(PATIENCE).expect("ends")
}

fn ask(cluster: &TestCluster, thief: &Impostor, to: &str) -> LockOpenCode {
    put(cluster, thief, to, &thief.lock_open(cluster.file().node(to).expect("a node").id))
}

fn put(cluster: &TestCluster, thief: &Impostor, to: &str, request: &LockOpenRequest) -> LockOpenCode {
    cluster.block(async {
        let boot = thief.dial(cluster, to, Protocol::Boot).await.expect("the boot door");
        let answer = boot.call(Lane::Ordinary, &request.encode(), PATIENCE).await.expect("answers");
        LockOpenReply::parse(&answer).expect("a reply").code()
    })
}

/// The alarms of that code that a serving node knows of.
fn open(cluster: &TestCluster, code: &str) -> Vec<Alarm> {
    let client = cluster.client(None);
    let alarms = cluster.until("the alarms", || cluster.block(client.alarms()).ok());
    alarms.into_iter().filter(|alarm| alarm.code == code).collect()
}

/// n4 raises an alarm, and leaves. Mutated: if every report is kept, the alarm is shown for ever and cannot be disarmed.
#[test]
fn what_a_node_said_that_left_is_not_shown() {
    let cluster = TestCluster::of(Cluster::builder().nodes(4).settings("[timing]\nrenew_lock_after_ms = 3600000\n"));
    let thief = Impostor::steal(&cluster, "n2");
    assert_eq!(ask(&cluster, &thief, "n4"), LockOpenCode::DuplicateSession);
    for node in NODES {
        let shown =
            || cluster.block(cluster.client(Some(node)).status()).ok().filter(|status| !status.alarms.is_empty());
        cluster.until(&format!("{node} to show it"), shown);
    }
    let removed = quorate(&cluster, "node remove n4 --yes");
    assert_eq!(removed.code, Some(0), "{}", removed.stderr);
    for node in NODES {
        let status = quorate(&cluster, &format!("status --node {node}"));
        assert_eq!(status.code, Some(0), "{}", String::from_utf8_lossy(&status.stdout));
    }
}

fn restart(cluster: &mut TestCluster) {
    cluster.kill_all();
    cluster.start(&NODES);
    cluster.testnet.wait_serving(&NODES).expect("boots");
}

/// An alarm is raised at n1 and all nodes are killed: it is still there, and the exit code is still 7. It is disarmed and all are
/// killed: it stays away. Mutated: without the file it is gone after the first restart; if it is disarmed in memory alone, it is
/// back after the second.
#[test]
fn an_alarm_stays_over_restarts_until_it_is_disarmed() {
    let mut cluster = TestCluster::with_lasting_locks();
    let file = cluster.testnet.directory().data("n1").join("alarms");
    assert!(!file.exists() && quorate(&cluster, "status").code == Some(0), "the control");
    let thief = Impostor::steal(&cluster, "n2");
    assert_eq!(ask(&cluster, &thief, "n1"), LockOpenCode::DuplicateSession);
    cluster.until("the alarm to be durable", || file.exists().then_some(()));
    let sealed = fs::read(&file).expect("ours");
    assert!(!sealed.windows(9).any(|bytes| bytes == b"duplicate"), "it is sealed as every value at rest");

    let before = open(&cluster, "duplicate_session");
    restart(&mut cluster);
    assert_eq!(quorate(&cluster, "status").code, Some(7));
    assert_eq!(open(&cluster, "duplicate_session"), before, "with the moment when it was raised");
    let list = String::from_utf8(quorate(&cluster, "alarm list").stdout).expect("text");
    assert!(list.lines().nth(1).is_some_and(|line| line.starts_with("duplicate_session  n2 ")), "{list}");

    let mistyped = quorate(&cluster, "alarm disarm duplicate");
    assert_eq!(mistyped.code, Some(5), "{}", mistyped.stderr);
    assert!(mistyped.stderr.contains("hint: the open alarms are duplicate_session"), "{}", mistyped.stderr);
    assert_eq!(quorate(&cluster, "alarm disarm").code, Some(2), "not all of them for want of a word");
    // By another node than the one that raised it.
    let disarmed = quorate(&cluster, "alarm disarm duplicate_session --node n3");
    assert_eq!(disarmed.stdout, b"disarmed duplicate_session about n2\n", "{}", disarmed.stderr);
    assert_eq!(quorate(&cluster, "status").code, Some(0));
    restart(&mut cluster);
    assert_eq!((open(&cluster, "duplicate_session"), quorate(&cluster, "status").code), (Vec::new(), Some(0)));

    // What happens again is raised again.
    assert_eq!(ask(&cluster, &thief, "n1"), LockOpenCode::DuplicateSession);
    assert_eq!(open(&cluster, "duplicate_session").len(), 1);
    assert_eq!(quorate(&cluster, "alarm disarm --all").code, Some(0));
    assert_eq!(quorate(&cluster, "status").code, Some(0));
}

/// A locked node has no storage key yet. An alarm that it raises then is kept all the same when it has one.
#[test]
fn an_alarm_of_a_locked_node_waits_for_the_storage_key() {
    let mut cluster = TestCluster::of(Cluster::builder().settings("[timing]\nrenew_lock_after_ms = 2000\n"));
    let stolen = tempfile::tempdir().expect("a directory");
    let image = cluster.testnet.steal(&["n2"], stolen.path()).expect("steals").remove(0);
    let thief = Impostor::of(&cluster, vault::inspect(&image).expect("a vault"));
    assert_eq!(thief.vault.lock.as_ref().map(Lock::generation), Some(1), "the control: from before the renewal");
    cluster.until("n1 to know of the renewal", || {
        let now = tempfile::tempdir().expect("a directory");
        let disk = cluster.testnet.steal(&["n1"], now.path()).expect("steals").remove(0);
        let held = vault::inspect(&disk).expect("a vault");
        let second = thief.vault.identity.node.expect("an id");
        held.held_for(second).is_some_and(|held| held.last_gen > 1).then_some(())
    });
    cluster.kill_all();
    cluster.start(&["n1"]);
    cluster.testnet.wait_phase("n1", Phase::Locked).expect("alone");
    assert_eq!(ask(&cluster, &thief, "n1"), LockOpenCode::StaleGeneration);
    let file = cluster.testnet.directory().data("n1").join("alarms");
    assert!(!file.exists(), "the control: nothing can be sealed yet");
    cluster.start(&["n2", "n3"]);
    cluster.testnet.wait_serving(&NODES).expect("boots");
    cluster.until("the alarm to be durable", || file.exists().then_some(()));
    restart(&mut cluster);
    assert_eq!(open(&cluster, "stale_image").len(), 1);
}

/// Each former member whose disk asks raises an alarm of its own, with its name. Its key identifies it, not the id in its
/// request. Mutated: if alarms are told apart by names of members alone, n5 raises none after n4; if the id of the request is
/// believed, the alarm calls a healthy node a former member.
#[test]
fn each_former_member_raises_an_alarm_of_its_own() {
    let mut cluster =
        TestCluster::of(Cluster::builder().nodes(5).settings("[timing]\nrenew_lock_after_ms = 3600000\n"));
    let thieves = ["n4", "n5"].map(|node| Impostor::steal(&cluster, node));
    for node in ["n4", "n5"] {
        cluster.testnet.kill(node).expect("dies");
    }
    cluster.testnet.run(["node", "revoke", "n4", "n5", "--yes"], b"").expect("revoked");
    let over = || cluster.block(cluster.client(Some("n1")).status()).ok()?.operation.is_none().then_some(());
    cluster.until("the operation to be over", over);
    let file = cluster.file();
    let [first, healthy] = ["n1", "n2"].map(|node| file.node(node).expect("a node").id);
    assert_eq!(open(&cluster, "former_member"), [], "the control: no node has asked");
    for thief in &thieves {
        let lie = LockOpenRequest { from: healthy, ..thief.lock_open(first) };
        for request in [lie, thief.lock_open(first)] {
            assert_eq!(put(&cluster, thief, "n1", &request), LockOpenCode::Revoked);
        }
    }
    let alarms = open(&cluster, "former_member");
    let about: Vec<_> = alarms.iter().map(|alarm| alarm.node.as_ref().map(ToString::to_string)).collect();
    assert_eq!(about, [Some("n4".to_owned()), Some("n5".to_owned())]);
    for (name, alarm) in ["n4", "n5"].iter().zip(&alarms) {
        assert!(alarm.message.starts_with(&format!("{name} is no member")), "{alarm:?}");
    }
}
