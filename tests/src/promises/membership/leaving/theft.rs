//! What stolen disks hold: the disk of a revoked node, the disks of those that remain, and files from before.

use std::fs;
use std::path::{Path, PathBuf};

use quorate_client::Context;
use quorate_shares::envelope::Ciphertext;
use quorate_testnet::thief::steal;
use quorate_testnet::thief::{self, Loot};

use super::{Sealed, seal_many, settled, status, typed};
use crate::harness::{PATIENCE, TestCluster, subsets};

/// Disks that were stolen at one moment.
struct Stolen(tempfile::TempDir);

impl Stolen {
    fn now(cluster: &TestCluster, nodes: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        cluster.testnet.steal(nodes, directory.path()).expect("steals");
        Self(directory)
    }

    fn of(&self, node: &str) -> PathBuf {
        self.0.path().join(node)
    }

    fn these(&self, nodes: &[&str]) -> Vec<PathBuf> {
        nodes.iter().map(|node| self.of(node)).collect()
    }

    /// The databases of this moment with the vaults of `older`: what flash may still hold of them.
    fn with_vaults_of(&self, older: &Self, nodes: &[&str]) -> Self {
        older.with_databases_of(self, nodes)
    }

    /// The vaults of this moment with the databases of `older`: what compaction and deletion have not reached.
    fn with_databases_of(&self, older: &Self, nodes: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        for node in nodes {
            let (new, to) = (self.of(node), directory.path().join(node));
            steal::copy(&older.of(node), &to).expect("copies");
            copy_vault(&new, &to);
        }
        Self(directory)
    }
}

fn copy_vault(from: &Path, to: &Path) {
    fs::copy(from.join("vault"), to.join("vault")).expect("copies");
}

/// The loot opens every ciphertext.
fn opens_all(loot: &Loot, sealed: &[Sealed]) -> bool {
    sealed.iter().all(|sealed| {
        let ciphertext = Ciphertext::parse_text(&sealed.ciphertext).expect("our own ciphertext");
        let opened = loot.keys.iter().find_map(|key| key.open(&ciphertext, &Context::empty()));
        opened.is_some_and(|plaintext| plaintext == sealed.key.as_bytes())
    })
}

/// The loot opens some ciphertext.
fn opens_any(loot: &Loot, sealed: &[Sealed]) -> bool {
    sealed.iter().any(|sealed| {
        let ciphertext = Ciphertext::parse_text(&sealed.ciphertext).expect("our own ciphertext");
        loot.keys.iter().any(|key| key.open(&ciphertext, &Context::empty()).is_some())
    })
}

/// T04, T05, T05b: n2 is revoked, its disk stolen before. With the disks of fewer others than the threshold it opens no key from
/// the moment `old disk: dead` is printed; nothing at all, no name and no share, from `names safe`; and nothing when all is
/// done, whatever RocksDB left in its files. As many disks as the threshold open everything, before and after, which shows that
/// the thief is able; but with the files from before they open no old share, since the share keys are erased.
///
/// Mutated: a member that reports lock keys as erased and keeps them; a lock that goes on protecting old share keys.
fn a_revoked_disk_is_worth_nothing(nodes: u8) {
    let cluster = TestCluster::of(
        quorate_testnet::Cluster::builder().nodes(nodes).settings("[timing]\nrenew_lock_after_ms = 3600000\n"),
    );
    let sealed = seal_many(&cluster, 40);
    let names = cluster.testnet.names();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let stay: Vec<&str> = names.iter().copied().filter(|name| *name != "n2").collect();
    let (old, new) = (names.len() / 2 + 1, stay.len() / 2 + 1);
    let before = Stolen::now(&cluster, &names);
    for others in subsets(&stay, old - 1) {
        let loot = thief::rob(&[before.these(&others), before.these(&["n2"])].concat());
        assert!(opens_all(&loot, &sealed), "the control: {old} disks of one moment: {loot}");
    }

    let command = typed(&cluster, &["node", "revoke", "n2", "--yes", "--wait"]);
    let at = |line: &str| {
        cluster.until(line, || command.so_far().lines().any(|said| said.starts_with(line)).then_some(()));
        let disks = Stolen::now(&cluster, &stay);
        // It only falls, so it was no less when the disks were stolen.
        let threshold = cluster.until("the threshold", || status(&cluster, &stay)).theft_threshold;
        (disks, usize::from(threshold))
    };
    let ((dead, when_dead), (safe, when_safe)) = (at("old disk: dead"), at("names safe"));
    let finished = command.outcome(PATIENCE).expect("it ends");
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    println!("{nodes} nodes: of the others {} disks were too few, then {}", when_dead - 1, when_safe - 1);
    for others in subsets(&stay, when_dead - 1) {
        let loot = thief::rob(&[dead.these(&others), before.these(&["n2"])].concat());
        assert!(loot.keys.is_empty(), "T04, dead: {others:?}: {loot}");
    }
    for others in subsets(&stay, when_safe - 1) {
        let loot = thief::rob(&[safe.these(&others), before.these(&["n2"])].concat());
        assert!(loot.is_nothing(), "T04, names safe: {others:?}: {loot}");
    }

    settled(&cluster, &stay, 2);
    // Its old share keys leave a lock with the next one, which no command waits for.
    let after = cluster.until("old share keys to be erased", || {
        let after = Stolen::now(&cluster, &stay);
        let loot = thief::rob(&after.with_databases_of(&before, &stay).these(&stay));
        (loot.shares == 0).then_some(after)
    });
    let leftover = after.with_databases_of(&before, &stay);
    for others in subsets(&stay, new - 1) {
        for disks in [after.these(&others), leftover.these(&others)] {
            let loot = thief::rob(&[disks, before.these(&["n2"])].concat());
            assert!(loot.is_nothing(), "T05: {others:?}: {loot}");
        }
    }
    for others in subsets(&stay, new) {
        let loot = thief::rob(&after.these(&others));
        assert!(opens_all(&loot, &sealed), "the control: {others:?}: {loot}");
        let loot = thief::rob(&[leftover.these(&others), before.these(&["n2"])].concat());
        assert!(loot.bundles >= new && !loot.key_names.is_empty(), "the control: {loot}");
        assert!(loot.shares == 0 && loot.keys.is_empty(), "T05b, of the old epoch: {others:?}: {loot}");
    }
}

#[test]
fn t04_t05_one_of_three() {
    a_revoked_disk_is_worth_nothing(3);
}

#[test]
fn t04_t05_one_of_four() {
    a_revoked_disk_is_worth_nothing(4);
}

#[test]
fn t04_t05_one_of_five() {
    a_revoked_disk_is_worth_nothing(5);
}

/// T06: the limit of all this. If the disks of the others still have what they erased, as worn-out flash may, then the revoked
/// disk opens with them what was encrypted before. What was encrypted under a version that was made afterwards stays safe: that
/// is what `--rotate-keys` is for.
#[test]
fn t06_what_flash_remembers_opens_old_versions_only() {
    let cluster =
        TestCluster::of(quorate_testnet::Cluster::builder().settings("[timing]\nrenew_lock_after_ms = 3600000\n"));
    let sealed = seal_many(&cluster, 10);
    let (all, stay) = (["n1", "n2", "n3"], ["n1", "n3"]);
    let before = Stolen::now(&cluster, &all);
    let command = typed(&cluster, &["node", "revoke", "n2", "--yes", "--wait", "--rotate-keys"]);
    let finished = command.outcome(PATIENCE).expect("it ends");
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    settled(&cluster, &stay, 2);
    let again: Vec<Sealed> = sealed
        .iter()
        .map(|Sealed { key, .. }| {
            let ciphertext = cluster.encrypt(None, key, key.as_bytes()).expect("encrypts");
            assert!(ciphertext.starts_with(&format!("qrt1:{key}:2:")), "{ciphertext}");
            Sealed { key: key.clone(), ciphertext }
        })
        .collect();

    let after = Stolen::now(&cluster, &stay);
    for other in stay {
        // The database of now, and the vault with all that was erased from it since.
        let remembered = after.with_vaults_of(&before, &[other]);
        let loot = thief::rob(&[before.these(&["n2", other]), remembered.these(&[other])].concat());
        assert!(opens_all(&loot, &sealed), "the limit, and the control: {loot}");
        assert!(!opens_any(&loot, &again), "{other}: {loot}");
    }
    let loot = thief::rob(&after.these(&stay));
    assert!(opens_all(&loot, &again), "the control: {loot}");
}
