//! A stolen disk gives away nothing: no key, no share, no name. The control: enough disks of one instant give away everything,
//! so the thief is able to find it.

use std::path::{Path, PathBuf};

use quorate_client::{Code, Context, KeyName};
use quorate_node::vault;
use quorate_shares::envelope::Ciphertext;
use quorate_shares::lock::Lock;
use quorate_testnet::thief::canary::{self, Canary};
use quorate_testnet::thief::{self, Loot};
use quorate_testnet::{Cluster, wait_until};
use tempfile::TempDir;

use crate::harness::{Dice, PATIENCE, TestCluster, name, seed, subsets};

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

/// Copies of the disks of all nodes, made at many moments.
struct Collection {
    directory: TempDir,
    moments: usize,
}

impl Collection {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a directory"), moments: 0 }
    }

    /// Copies the disks of these nodes as they are now.
    fn add(&mut self, cluster: &TestCluster, nodes: &[&str]) -> PathBuf {
        let moment = self.directory.path().join(self.moments.to_string());
        cluster.testnet.steal(nodes, &moment).expect("steals");
        self.moments += 1;
        moment
    }

    /// Every copy of the disks of these nodes.
    fn of(&self, nodes: &[&str]) -> Vec<PathBuf> {
        let moments = (0..self.moments).map(|moment| self.directory.path().join(moment.to_string()));
        let copies = moments.flat_map(|moment| nodes.iter().map(move |node| moment.join(node)));
        copies.filter(|copy| copy.exists()).collect()
    }
}

/// The disks of these nodes among those that were copied at one moment.
fn these(moment: &Path, nodes: &[&str]) -> Vec<PathBuf> {
    nodes.iter().map(|node| moment.join(node)).collect()
}

fn opens(loot: &Loot, ciphertext: &str) -> bool {
    let ciphertext = Ciphertext::parse_text(ciphertext).expect("our own ciphertext");
    loot.keys.iter().any(|key| key.open(&ciphertext, &Context::empty()).is_some_and(|plaintext| plaintext == PLAINTEXT))
}

/// T01, T02 for a thief who comes again and again: any two of five disks, copied at many moments, open nothing, not even all copies
/// together. Meanwhile locks are renewed, keys are made and rotated, and nodes die, stay away and return. The control: the disks of
/// three nodes of one moment open everything that there was at that moment. Mutated: every lock but the first needs one piece
/// less (`next_lock`).
#[test]
fn t01_t02_copies_of_many_moments() {
    const NODES: [&str; 5] = ["n1", "n2", "n3", "n4", "n5"];
    const OFTEN: &str = "[timing]\nrenew_lock_after_ms = 50\nrenew_lock_every_ms = 300\n";
    const PAIRS: usize = 3;
    let mut cluster = TestCluster::of(Cluster::builder().nodes(5).settings(OFTEN));
    let (mut copies, mut sealed) = (Collection::new(), Vec::new());
    let mut seal = |cluster: &TestCluster, key: &str| {
        sealed.push(cluster.until("encrypts", || cluster.encrypt(None, key, PLAINTEXT).ok()));
        sealed.len()
    };
    copies.add(&cluster, &NODES);
    let mut controls = Vec::new();
    for (round, away) in NODES.into_iter().enumerate() {
        let key = format!("key-of-round/{round}");
        cluster.testnet.kill(away).expect("dies");
        copies.add(&cluster, &NODES);
        cluster.until("a key without it", || {
            match cluster.block(cluster.client(None).create_key(&name(&key), Default::default())) {
                Ok(_) => Some(()),
                // The first time no answer came, and it was made all the same.
                Err(error) => (error.code() == Code::Conflict).then_some(()),
            }
        });
        seal(&cluster, &key);
        copies.add(&cluster, &NODES);
        cluster.start(&[away]);
        cluster.testnet.wait_serving(&NODES).expect("all serve");
        copies.add(&cluster, &NODES);
        cluster.until("rotates", || cluster.block(cluster.client(None).rotate_key(&name(&key), None)).ok());
        let known = seal(&cluster, &key);
        controls.push((copies.add(&cluster, &NODES), known));
    }
    let generations: Vec<_> = NODES.iter().filter_map(|node| generation(&cluster, node)).collect();
    assert!(generations.len() == 5 && generations.iter().all(|generation| *generation > 1), "{generations:?}");

    // The thief tries each opening of each moment with each other one, which takes long. All pairs are alike.
    let (mut dice, pairs) = (Dice::new(seed()), subsets(&NODES, 2));
    for pair in (0..PAIRS).map(|_| &pairs[dice.below(pairs.len())]) {
        let loot = thief::rob(&copies.of(pair));
        assert!(loot.is_nothing(), "{pair:?}, {} moments: {loot}", copies.moments);
    }
    for (number, (moment, known)) in controls.iter().enumerate() {
        let three = [0, 1, 3].map(|next| NODES[(number + next) % NODES.len()]);
        let loot = thief::rob(&these(moment, &three));
        assert!(sealed[..*known].iter().all(|ciphertext| opens(&loot, ciphertext)), "the control: {three:?}: {loot}");
    }
}

/// The generation of the lock on the disk of a node.
fn generation(cluster: &TestCluster, node: &str) -> Option<u64> {
    vault::inspect(&cluster.testnet.directory().data(node)).ok()?.lock.as_ref().map(Lock::generation)
}

/// What a threshold that was smaller once has given away. The cluster grows from three to five, so that a thief of now needs three
/// disks. Two disks that were copied before open every version that existed then, and go on to: this is the limit that THREATS
/// states, and `key rotate` is the cure. A version that was made since stays closed, also if the thief comes again and copies the
/// same two disks. So does everything, if one disk was copied before and another one after.
#[test]
fn t01_t02_a_threshold_that_was_smaller_once() {
    const FOUNDERS: [&str; 3] = ["n1", "n2", "n3"];
    const NODES: [&str; 5] = ["n1", "n2", "n3", "n4", "n5"];
    let mut cluster = TestCluster::of(Cluster::builder().spares(2));
    cluster.create("early");
    let early = cluster.encrypt(None, "early", PLAINTEXT).expect("encrypts");
    let mut copies = Collection::new();
    let before = copies.add(&cluster, &FOUNDERS);
    for node in ["n4", "n5"] {
        cluster.testnet.join(node).expect("joins");
        cluster.export();
        let client = cluster.client(None);
        wait_until("the operation to be over", 2 * PATIENCE, || {
            cluster.block(client.status()).ok()?.operation.is_none().then_some(())
        })
        .expect("in time");
    }
    let status = cluster.block(cluster.client(None).status()).expect("status");
    assert_eq!((status.threshold, status.theft_threshold), (3, 3), "the control: it has grown");
    let early_name: KeyName = name("early");
    cluster.block(cluster.client(None).rotate_key(&early_name, None)).expect("rotates");
    let rotated = cluster.encrypt(None, "early", PLAINTEXT).expect("encrypts");
    assert!(rotated.starts_with("qrt1:early:2:"), "{rotated}");
    cluster.create("late");
    let late = cluster.encrypt(None, "late", PLAINTEXT).expect("encrypts");
    let after = copies.add(&cluster, &NODES);

    for pair in subsets(&FOUNDERS, 2) {
        let loot = thief::rob(&these(&before, &pair));
        assert!(opens(&loot, &early), "the limit, and the control: {pair:?} of before: {loot}");
        let loot = thief::rob(&copies.of(&pair));
        assert!(opens(&loot, &early), "the limit: {pair:?} of before and after: {loot}");
        let since = opens(&loot, &rotated) || opens(&loot, &late);
        assert!(!since, "{pair:?} of before and after: a version that was made since: {loot}");
        assert!(loot.key_names.contains(&name("late")), "the limit: names that were made since: {loot}");
    }
    for pair in subsets(&FOUNDERS, 2) {
        for other in NODES.into_iter().filter(|other| !pair.contains(other)) {
            let loot = thief::rob(&[these(&before, &pair), these(&after, &[other])].concat());
            let since = opens(&loot, &rotated) || opens(&loot, &late);
            assert!(!since, "{pair:?} of before and {other} of after: a version that was made since: {loot}");
        }
    }
    for one in FOUNDERS {
        for other in NODES.into_iter().filter(|other| *other != one) {
            let loot = thief::rob(&[these(&before, &[one]), these(&after, &[other])].concat());
            assert!(loot.keys.is_empty(), "{one} of before and {other} of after: {loot}");
        }
    }
    for pair in subsets(&NODES, 2) {
        let loot = thief::rob(&these(&after, &pair));
        assert!(loot.is_nothing(), "{pair:?} of after: {loot}");
    }
    for three in subsets(&NODES, 3) {
        let loot = thief::rob(&these(&after, &three));
        let all = [&early, &rotated, &late].iter().all(|ciphertext| opens(&loot, ciphertext));
        assert!(all, "the control: {three:?} of after: {loot}");
    }
}
