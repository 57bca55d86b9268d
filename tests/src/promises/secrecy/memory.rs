//! Secrets in the memory of a daemon: roots lie in locked memory while they are used, and nowhere afterwards. Where the
//! system grants no locked memory, a node says so and works all the same.

use std::io;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use quorate_client::wire::Phase;
use quorate_testnet::procs::Tool;
use quorate_testnet::thief::canary::Canary;
use quorate_testnet::thief::memory::{self, Scan};
use quorate_testnet::{Cluster, thief, wait_until};

use crate::harness::{PATIENCE, TestCluster};

const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// What operators are told.
const WARNING: &str = "raise RLIMIT_MEMLOCK";
const KEYS: [&str; 2] = ["billing/cards-in-memory", "backup-in-memory"];
/// Leases that end soon, so that a cut soon wipes.
const SHORT_LEASES: &str = "[timing]\nlease_ms = 1500\nlease_tick_ms = 300\nwipe_after_ms = 1000\n";

fn log(cluster: &TestCluster, node: &str) -> String {
    std::fs::read_to_string(cluster.testnet.directory().log(node)).expect("a node writes its log")
}

/// T47: without any memory to lock, secrets lie on the heap. That is worth a warning and no reason to refuse service.
#[test]
fn t47_a_node_that_may_not_lock_memory_warns_and_goes_on() {
    let usual = TestCluster::found();
    let mut cluster = TestCluster::of(Cluster::builder().memlock_bytes(0));
    for node in NODES {
        assert!(!log(&usual, node).contains(WARNING), "the control: {node} may lock memory by default");
        assert!(log(&cluster, node).contains(WARNING), "{node} says nothing: {}", log(&cluster, node));
    }
    cluster.create("key");
    let ciphertext = cluster.encrypt(None, "key", b"secret").expect("encrypts");
    cluster.kill_all();
    cluster.start(&NODES);
    cluster.testnet.wait_serving(&NODES).expect("boots");
    for node in NODES {
        assert_eq!(cluster.decrypt(Some(node), &ciphertext).expect("decrypts"), b"secret");
    }
}

/// A cluster that has made keys, loaded them at every node and used them, and what two of its disks say to look for.
struct Warm {
    cluster: TestCluster,
    ciphertexts: Vec<String>,
    /// The roots, which serving nodes keep.
    roots: Vec<Canary>,
    /// Keys and shares, which exist for moments only.
    moments: Vec<Canary>,
    /// What the locks of the nodes open to: there for as long as a node is unlocked, sealed or not.
    bundles: Vec<Canary>,
    /// Names of keys: nothing hides these, so a search that does not find them did not work.
    names: Vec<Canary>,
}

impl Warm {
    fn up(settings: &str) -> Self {
        let cluster = TestCluster::of(Cluster::builder().settings(settings));
        KEYS.iter().for_each(|key| cluster.create(key));
        let ciphertexts = KEYS.iter().map(|key| cluster.encrypt(None, key, b"plaintext").expect("encrypts")).collect();
        let stolen = tempfile::tempdir().expect("a directory");
        let disks = cluster.testnet.steal(&NODES, stolen.path()).expect("all disks of one instant");
        let loot = thief::rob(&disks);
        assert_eq!(loot.keys.len(), KEYS.len(), "{loot}");
        let root = |key: &thief::RecoveredKey| Canary::secret(format!("the root of {}", key.name), key.root().expose());
        let roots = loot.keys.iter().map(root).collect();
        let of_a_key = |canary: &Canary| {
            let what = &canary.what;
            what.starts_with("the key ") || what.starts_with("share ") && !what.starts_with("share key ")
        };
        let (names, secrets): (Vec<_>, Vec<_>) =
            loot.canaries.into_iter().partition(|canary| canary.what.starts_with("the name "));
        let (moments, bundles): (Vec<_>, Vec<_>) = secrets.into_iter().partition(of_a_key);
        assert_eq!((names.len(), moments.len()), (KEYS.len(), KEYS.len() * (1 + NODES.len())), "keys and shares");
        Self { cluster, ciphertexts, roots, moments, bundles, names }
    }

    /// Uses every key at `node`, which loads those that are not in memory.
    fn use_keys(&self, node: &str) {
        for ciphertext in &self.ciphertexts {
            let opened = self.cluster.until("decrypts", || self.cluster.decrypt(Some(node), ciphertext).ok());
            assert_eq!(opened, b"plaintext", "{node}");
        }
    }

    /// Searches the memory of `node`, and finds at least the names.
    fn scan(&self, node: &str, canaries: &[Canary]) -> Scan {
        let process = self.cluster.testnet.process(node).expect("a node").expect("it runs");
        let control = memory::search(process, &self.names).expect("as before");
        assert!(self.names.iter().all(|name| control.count(name) > 0), "the control: names are found");
        memory::search(process, canaries).expect("as before")
    }

    /// The positive control: each root is in memory, once, and that memory is locked.
    fn finds_roots_in_locked_memory_alone(&self, node: &str) {
        let scan = self.cluster.until(&format!("{node} to hold every root"), || {
            self.use_keys(node);
            let scan = self.scan(node, &self.roots);
            self.roots.iter().all(|root| scan.count(root) > 0).then_some(scan)
        });
        assert_eq!(scan.unlocked(), Vec::<&memory::Sighting>::new(), "{node}");
        assert!(self.roots.iter().all(|root| scan.count(root) == 1), "{node}: {:?}", scan.sightings);
    }

    fn holds_no_root(&self, node: &str, when: &str) {
        self.cluster.until(&format!("{node} to hold no root {when}"), || {
            self.scan(node, &self.roots).sightings.is_empty().then_some(())
        });
    }

    /// Whether this test may look at all. Only root may read the memory of a daemon, which is a promise too.
    fn may_look(&self) -> bool {
        let process = self.cluster.testnet.process(NODES[0]).expect("a node").expect("it runs");
        match memory::search(process, &[]) {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
                println!("not root, and so not let in: nothing was searched");
                false
            }
        }
    }
}

/// T46 with locked memory, which root can read: the search finds each root once, there and nowhere else, and none when the
/// lease was lost. Keys and shares are never found. Keeping K instead of a root, or leaving the wipe out, makes it fail.
#[test]
fn t46_roots_lie_in_locked_memory_until_the_lease_is_lost() {
    let mut warm = Warm::up(&format!("secret_memory = \"mlock\"\n{SHORT_LEASES}"));
    if !warm.may_look() {
        return;
    }
    for node in NODES {
        warm.finds_roots_in_locked_memory_alone(node);
        assert_eq!(warm.scan(node, &warm.moments).sightings, [], "{node}");
    }
    for node in NODES {
        warm.cluster.testnet.cut(node).expect("cut");
        warm.holds_no_root(node, "after its lease");
        assert_eq!(warm.scan(node, &warm.moments).sightings, [], "{node}");
        warm.cluster.testnet.heal().expect("heals");
        warm.cluster.testnet.wait_serving(&[node]).expect("serves again");
        warm.finds_roots_in_locked_memory_alone(node);
    }
}

/// T46: `node seal` wipes all roots before it answers, and no request of a peer loads a key again. Mutated: without the wipe the
/// roots stay for ten more seconds.
#[test]
fn t46_roots_are_gone_when_a_node_is_sealed() {
    let mut warm = Warm::up("secret_memory = \"mlock\"\n");
    if !warm.may_look() {
        return;
    }
    for (node, other) in [("n1", "n2"), ("n3", "n1")] {
        warm.finds_roots_in_locked_memory_alone(node);
        let named = node.parse().expect("a name");
        warm.cluster.block(warm.cluster.client(Some(other)).seal_node(&named)).expect("sealed");
        assert_eq!(warm.scan(node, &warm.roots).sightings, [], "{node}: at once");
        warm.use_keys(other);
        assert_eq!(warm.scan(node, &warm.roots).sightings, [], "{node}: while others serve");
        assert_eq!(warm.scan(node, &warm.moments).sightings, [], "{node}");
        warm.cluster.block(warm.cluster.client(Some(other)).unseal_node(&named)).expect("unsealed");
        warm.cluster.testnet.wait_serving(&[node]).expect("serves again");
        warm.finds_roots_in_locked_memory_alone(node);
    }
}

/// A node that learns that it was revoked wipes its keys and all that its lock opened to: op seed, storage key, share keys. It goes
/// on saying that it is revoked, also when it is started again. Mutated: without the wipe of what the lock opened to, all three
/// are found.
#[test]
fn a_node_that_learns_that_it_was_revoked_holds_no_key_of_its_own() {
    let mut warm = Warm::up("secret_memory = \"mlock\"\n");
    if !warm.may_look() {
        return;
    }
    warm.finds_roots_in_locked_memory_alone("n3");
    let (own, others): (Vec<_>, Vec<_>) =
        std::mem::take(&mut warm.bundles).into_iter().partition(|canary| canary.what.ends_with(" of n3"));
    assert!(own.len() >= 3 && !others.is_empty(), "{:?}", own.iter().map(|canary| &canary.what).collect::<Vec<_>>());
    let before = warm.scan("n3", &own);
    assert!(own.iter().all(|secret| before.count(secret) > 0), "the control: {:?}", before.sightings);

    let revoked = Tool::start(warm.cluster.testnet.quorate(["node", "revoke", "n3", "--yes"]), b"").expect("runs");
    let revoked = revoked.outcome(PATIENCE).expect("it ends");
    assert_eq!(revoked.code, Some(0), "{}", revoked.stderr);
    warm.cluster.testnet.wait_phase("n3", Phase::Revoked).expect("it is told");
    let all: Vec<_> = own.into_iter().chain(std::mem::take(&mut warm.roots)).collect();
    let mut seen = Vec::new();
    let wiped = wait_until("n3 to hold nothing", PATIENCE, || {
        seen = warm.scan("n3", &all).sightings;
        seen.is_empty().then_some(())
    });
    wiped.unwrap_or_else(|_| panic!("{seen:?}"));
    assert_eq!(warm.scan("n3", &warm.moments).sightings, []);

    warm.cluster.testnet.wait_phase("n3", Phase::Revoked).expect("and says so");
    warm.cluster.testnet.kill("n3").expect("dies");
    warm.cluster.start(&["n3"]);
    warm.cluster.testnet.wait_phase("n3", Phase::Revoked).expect("over a restart");
}

/// An operator proves a key and never sends it, also not to the daemon that founds the cluster. So a thief who reads the memory of
/// all nodes does not learn the key. Mutated: with the key as its own label, every node knows it.
#[test]
fn no_node_holds_the_key_of_an_operator() {
    let warm = Warm::up("");
    if !warm.may_look() {
        return;
    }
    let credential = warm.cluster.token();
    let text = credential.text();
    let text = text.strip_prefix(credential.kind().text_prefix()).expect("its prefix");
    let seed = URL_SAFE_NO_PAD.decode(text).expect("base64url");
    let looked_for = [Canary::secret("the key", &seed.try_into().expect("32 bytes"))];
    let public = [Canary::secret("the public half", &credential.public().0)];
    for node in NODES {
        warm.use_keys(node);
        assert_eq!(warm.scan(node, &looked_for).sightings, [], "{node}");
        assert!(warm.scan(node, &public).count(&public[0]) > 0, "the control: {node} knows the operator");
    }
}

/// T46: an unused key is forgotten, although the lease is good.
#[test]
fn t46_roots_are_gone_when_they_were_not_used_for_a_while() {
    let warm = Warm::up("secret_memory = \"mlock\"\n[timing]\nkey_idle_ms = 10000\n");
    if !warm.may_look() {
        return;
    }
    for node in NODES {
        warm.finds_roots_in_locked_memory_alone(node);
    }
    for node in NODES {
        warm.holds_no_root(node, "that is not used");
        assert!(!log(&warm.cluster, node).contains("every key is wiped"), "the control: {node} kept its lease");
    }
}

/// T46 with memory that the kernel hides even from itself: not even root finds a root, at any time.
#[test]
fn t46_hidden_memory_shows_no_root_to_anybody() {
    let warm = Warm::up("");
    if !warm.may_look() {
        return;
    }
    for node in NODES {
        warm.use_keys(node);
        let scan = warm.scan(node, &warm.roots);
        assert_eq!(warm.scan(node, &warm.moments).sightings, [], "{node}");
        assert_eq!(scan.unlocked(), Vec::<&memory::Sighting>::new(), "{node}");
        if log(&warm.cluster, node).contains("backing=MemfdSecret") {
            assert_eq!(scan.sightings, [], "{node}");
            assert!(scan.hidden.iter().any(|name| name.contains("secretmem")), "{node}: {:?}", scan.hidden);
        }
    }
}
