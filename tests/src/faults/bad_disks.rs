//! Disks that are full, read-only, failing or slow: what was acknowledged is there, nothing hangs for ever, and the node
//! with the bad disk says what is wrong with it.
//!
//! A limit on the size of files makes a full disk on every machine. The other disks are file systems in user space
//! ([`quorate_testnet::faults::disk`]), which take the right to mount; without it their tests say so and end.

use std::time::{Duration, Instant};

use quorate_testnet::faults::disk::{Condition, Disk};
use quorate_testnet::{Cluster, Special};

use crate::harness::{PATIENCE, TestCluster, name};

const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// More than any test here needs until a disk has shown what it is.
const KEYS_MAX: usize = 1_000;
/// Room for the vault, and for some changes.
const FILE_BYTES: u64 = 400 << 10;

/// A node that stops for its disk: exit code 1, and the cause as the last thing that it says.
fn stopped_for(cluster: &mut TestCluster, node: &str, cause: &str) {
    let (status, said) = cluster.testnet.wait_end(node).expect("it ends");
    assert_eq!(status.code(), Some(1), "{said}");
    explains(cluster, node, &said, cause);
}

fn explains(cluster: &TestCluster, node: &str, said: &str, cause: &str) {
    let message = said.lines().rev().find(|line| line.starts_with("quorated: ")).unwrap_or_default();
    let path = cluster.testnet.directory().data(node).display().to_string();
    assert!(message.contains(&path) && message.contains(cause), "no {path} or {cause:?} in {message:?} of:\n{said}");
    assert!(said.lines().next_back().is_some_and(|line| line.starts_with("hint: ")), "no hint in:\n{said}");
}

/// What was handed out, and must be there from then on.
#[derive(Default)]
struct Kept(Vec<(String, String)>);

impl Kept {
    /// Makes keys and ciphertexts until `node` has ended.
    fn grow_until_end_of(&mut self, cluster: &mut TestCluster, node: &str) {
        for _ in 0..KEYS_MAX {
            if !cluster.testnet.is_running(node).expect("a node") {
                return;
            }
            self.grow(cluster);
        }
        panic!("{node} goes on although its disk takes nothing");
    }

    /// One more key and ciphertext, acknowledged in time whichever node leads.
    fn grow(&mut self, cluster: &TestCluster) {
        let key = format!("key/{}", self.0.len());
        let client = cluster.client(None);
        let begin = Instant::now();
        cluster.until("a key is made", || match cluster.block(client.create_key(&name(&key), Default::default())) {
            Ok(_) => Some(()),
            // Made, and the answer was lost with the leader.
            Err(error) if error.code() == quorate_client::Code::Conflict => Some(()),
            Err(_) => None,
        });
        let ciphertext = cluster.until("it is used", || cluster.encrypt(None, &key, key.as_bytes()).ok());
        assert!(begin.elapsed() < PATIENCE, "{key} took {:?}", begin.elapsed());
        self.0.push((key, ciphertext));
    }

    fn all_open_at(&self, cluster: &TestCluster, node: Option<&str>) {
        let client = cluster.client(node);
        for (key, ciphertext) in &self.0 {
            let context = quorate_client::Context::empty();
            let opened = cluster.until("an answer", || cluster.block(client.decrypt(ciphertext, &context)).ok());
            assert_eq!(opened.expose(), key.as_bytes(), "{node:?}");
        }
    }
}

/// Whether bad disks can be had here. Not a silent no.
fn disks_are_possible(test: &str) -> bool {
    Disk::is_possible().inspect_err(|error| println!("NOT TESTED: {test}: no disk in user space: {error}")).is_ok()
}

/// A follower, then the leader. Mutated: if the error of a write is ignored, the node goes on, and the test fails.
#[test]
fn a_full_disk_stops_its_node_and_nothing_acknowledged_is_lost() {
    let mut cluster = TestCluster::found();
    let mut kept = Kept::default();
    kept.grow(&cluster);
    for leads in [false, true] {
        let leader = cluster.leader();
        let node = NODES.into_iter().find(|node| (*node == leader) == leads).expect("three nodes");
        cluster.testnet.terminate(node).expect("ends");
        let full = Special { file_bytes: Some(FILE_BYTES), ..Special::default() };
        cluster.testnet.start_as(node, &full).expect("starts");
        cluster.testnet.wait_serving(&[node]).expect("it has room yet");
        kept.grow_until_end_of(&mut cluster, node);
        stopped_for(&mut cluster, node, "File too large");
        kept.grow(&cluster);
        kept.all_open_at(&cluster, None);
        cluster.start(&[node]);
        cluster.testnet.wait_serving(&[node]).expect("there is room again");
        kept.all_open_at(&cluster, Some(node));
    }
    println!("{} keys", kept.0.len());
}

/// Only the vault cannot be written: of its two copies the second lies beyond the limit. The node renews its lock, and stops. Mutated:
/// a node whose vault cannot be written goes on with the lock that it has.
#[test]
fn a_vault_that_cannot_be_written_stops_its_node() {
    const HALF_A_VAULT: u64 = 160 << 10;
    let mut cluster = TestCluster::of(
        Cluster::builder().settings("[timing]\nrenew_lock_after_ms = 500\nrenew_lock_every_ms = 500\n"),
    );
    cluster.testnet.terminate("n3").expect("ends");
    let full = Special { file_bytes: Some(HALF_A_VAULT), ..Special::default() };
    let (status, said) = cluster.testnet.start_and_wait_end("n3", &full).expect("it ends");
    assert_eq!(status.code(), Some(1), "{said}");
    explains(&cluster, "n3", &said, "File too large");
    assert!(said.contains("vault"), "{said}");
    cluster.start(&["n3"]);
    cluster.testnet.wait_serving(&["n3"]).expect("there is room again");
}

/// Whichever node it is, it stops, stays down as long as the disk is bad, and catches up when it is good again.
#[test]
fn a_disk_that_takes_nothing_stops_its_node() {
    if !disks_are_possible("full, read-only and failing disks") {
        return;
    }
    let mut cluster = TestCluster::of(NODES.into_iter().fold(Cluster::builder(), |builder, node| builder.disk(node)));
    let mut kept = Kept::default();
    kept.grow(&cluster);
    for (condition, cause, leads) in [
        (Condition::Full, "No space left on device", true),
        (Condition::ReadOnly, "Read-only file system", false),
        (Condition::Failing, "Input/output error", true),
    ] {
        let leader = cluster.leader();
        let node = NODES.into_iter().find(|node| (*node == leader) == leads).expect("three nodes");
        cluster.testnet.disk(node).expect("it has one").turn(condition);
        kept.grow_until_end_of(&mut cluster, node);
        stopped_for(&mut cluster, node, cause);
        let (status, said) = cluster.testnet.start_and_wait_end(node, &Special::default()).expect("it does not start");
        assert_eq!(status.code(), Some(1), "{said}");
        explains(&cluster, node, &said, cause);
        kept.grow(&cluster);
        kept.all_open_at(&cluster, None);
        cluster.testnet.disk(node).expect("it has one").turn(Condition::Good);
        cluster.start(&[node]);
        cluster.testnet.wait_serving(&[node]).expect("the disk is good again");
        kept.all_open_at(&cluster, Some(node));
    }
}

/// One copy of the vault is damaged and there is no room to write it again: the good one stays as it is. Mutated: without
/// the error of the write, the node would come up.
#[test]
fn a_vault_that_cannot_be_written_stays_whole() {
    use std::os::unix::fs::FileExt;
    if !disks_are_possible("a vault on a full disk") {
        return;
    }
    let mut cluster = TestCluster::of(Cluster::builder().disk("n2"));
    let mut kept = Kept::default();
    kept.grow(&cluster);
    cluster.testnet.terminate("n2").expect("ends");
    let path = cluster.testnet.directory().data("n2").join("vault");
    let before = std::fs::read(&path).expect("readable");
    let (first, second) = before.split_at(before.len() / 2);
    assert!(first == second, "the control: at rest both copies are equal");
    {
        let vault = std::fs::OpenOptions::new().write(true).open(&path).expect("our own file");
        vault.write_all_at(b"damaged", second.len() as u64 + 1000).expect("written");
        vault.sync_all().expect("synced");
    }
    cluster.testnet.disk("n2").expect("it has one").turn(Condition::Full);
    let (status, said) = cluster.testnet.start_and_wait_end("n2", &Special::default()).expect("it does not start");
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("quorated: the vault could not be written") && said.contains("No space left"), "{said}");
    assert!(std::fs::read(&path).expect("readable")[..first.len()] == *first, "the good copy is as it was");
    kept.grow(&cluster);

    cluster.testnet.disk("n2").expect("it has one").turn(Condition::Good);
    cluster.start(&["n2"]);
    cluster.testnet.wait_serving(&["n2"]).expect("mended");
    kept.all_open_at(&cluster, Some("n2"));
    assert!(std::fs::read(&path).expect("readable") == before, "both copies are whole again");
}

/// A slow disk under a follower delays no client; under the leader, changes are late and are made. A disk so slow that the
/// leader is not heard any more costs it the lead, and nothing else.
#[test]
fn a_slow_disk_makes_things_late_and_nothing_else() {
    const SLOW: Duration = Duration::from_millis(100);
    const HARDLY_MOVES: Duration = Duration::from_secs(3);
    if !disks_are_possible("slow disks") {
        return;
    }
    let mut cluster = TestCluster::of(NODES.into_iter().fold(Cluster::builder(), |builder, node| builder.disk(node)));
    let mut kept = Kept::default();
    kept.grow(&cluster);
    for (delay, leads, keys) in [(SLOW, false, 3), (SLOW, true, 3), (HARDLY_MOVES, false, 2), (HARDLY_MOVES, true, 2)] {
        let leader = cluster.leader();
        let node = NODES.into_iter().find(|node| (*node == leader) == leads).expect("three nodes");
        cluster.testnet.disk(node).expect("it has one").turn(Condition::Slow(delay));
        let begin = Instant::now();
        (0..keys).for_each(|_| kept.grow(&cluster));
        println!("{node} takes {delay:?}, leads: {leads}: {keys} keys in {:?}", begin.elapsed());
        kept.all_open_at(&cluster, None);
        assert!(cluster.testnet.is_running(node).expect("a node"), "late is not broken");
        cluster.testnet.disk(node).expect("it has one").turn(Condition::Good);
        cluster.testnet.wait_serving(&NODES).expect("all serve");
        kept.all_open_at(&cluster, Some(node));
    }
}
