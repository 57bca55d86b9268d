//! A bad network: datagrams are lost, doubled and overtaken, or get through in one direction only. Answers may be late or
//! refused; none is wrong, and when the network is good again everything serves by itself.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use quorate_client::error::Blame;
use quorate_client::wire::Phase;
use quorate_client::{Client, Code, Context, Error, Options};
use quorate_testnet::Cluster;
use quorate_testnet::faults::network::LinkQuality;
use tokio::task::JoinHandle;

use crate::harness::{Dice, TestCluster, name, seed};

const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// Two for each node.
const WORKERS: usize = 2 * NODES.len();
/// So much is done at a node before it counts as serving on this network.
const ROUNDS: usize = 15;
/// In the tests of cuts.
const LEASE: Duration = Duration::from_millis(1500);
const FIRST: &str = "made/on-a-good-network";
const SECOND: &str = "made/on-a-bad-network";

/// Clients that keep encrypting at every node and decrypting at any, and what came of it.
struct Traffic {
    clients: Vec<Client>,
    keys: Mutex<Vec<&'static str>>,
    kept: Mutex<Vec<Kept>>,
    wrong: Mutex<Vec<String>>,
    /// Round trips that began at each node.
    done: [AtomicUsize; NODES.len()],
    refused: AtomicUsize,
    stop: AtomicBool,
}

/// A ciphertext that was handed out, and must open from then on.
#[derive(Clone)]
struct Kept {
    plaintext: Vec<u8>,
    context: Context,
    ciphertext: String,
}

/// Asks one node alone, and does not wait long for one that is dead.
fn hasty(node: &str) -> Options {
    let (deadline, patience) = (Duration::from_secs(2), Duration::ZERO);
    Options { node: Some(node.to_owned()), deadline, patience, ..Options::default() }
}

impl Traffic {
    fn begin(cluster: &TestCluster, seed: u64) -> (Arc<Self>, Vec<JoinHandle<()>>) {
        let traffic = Arc::new(Self {
            clients: NODES.iter().map(|node| cluster.client_with(hasty(node))).collect(),
            keys: Mutex::new(vec![FIRST]),
            kept: Mutex::default(),
            wrong: Mutex::default(),
            done: Default::default(),
            refused: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let workers = (0..WORKERS).map(|worker| {
            let (traffic, dice) = (Arc::clone(&traffic), Dice::new(seed.wrapping_add(worker as u64)));
            cluster.spawn(async move { traffic.work(worker, dice).await })
        });
        let workers = workers.collect();
        (traffic, workers)
    }

    async fn work(&self, worker: usize, mut dice: Dice) {
        let home = worker % NODES.len();
        for round in 0.. {
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            let keys = lock(&self.keys).clone();
            let key = keys[dice.below(keys.len())];
            let plaintext = format!("{worker}/{round}/").into_bytes().repeat(1 + dice.below(200));
            let context = Context::new([("worker", worker.to_string())]).expect("a context");
            match self.clients[home].encrypt(&name(key), &context, &plaintext).await {
                Ok(ciphertext) => {
                    let kept = Kept { plaintext, context, ciphertext };
                    lock(&self.kept).push(kept.clone());
                    let anywhere = dice.below(NODES.len());
                    if self.opens(anywhere, &kept).await {
                        self.done[home].fetch_add(1, Ordering::SeqCst);
                    }
                }
                Err(error) => self.note_refusal(&format!("encrypt at {}", NODES[home]), &error),
            }
            let old = Some(lock(&self.kept)).filter(|kept| !kept.is_empty());
            let old = old.map(|kept| kept[dice.below(kept.len())].clone());
            if let Some(old) = old {
                self.opens(home, &old).await;
            }
        }
    }

    /// Decrypts at one node; `false` if it could not just then.
    async fn opens(&self, node: usize, kept: &Kept) -> bool {
        match self.clients[node].decrypt(&kept.ciphertext, &kept.context).await {
            Ok(plaintext) if plaintext.expose() == kept.plaintext => true,
            Ok(_) => {
                lock(&self.wrong).push(format!("{} gave another plaintext for {}", NODES[node], kept.ciphertext));
                false
            }
            Err(error) => {
                self.note_refusal(&format!("decrypt {} at {}", kept.ciphertext, NODES[node]), &error);
                false
            }
        }
    }

    /// "Not now" is a right answer on a bad network. "No such key", "does not open" and the like are wrong ones.
    fn note_refusal(&self, what: &str, error: &Error) {
        self.refused.fetch_add(1, Ordering::SeqCst);
        if !not_now(error) {
            lock(&self.wrong).push(format!("{what}: {} ({error})", error.code()));
        }
    }

    /// Waits until each of these nodes has done some more.
    fn advance(&self, cluster: &TestCluster, nodes: &[&str]) {
        let places = (0..NODES.len()).filter(|place| nodes.contains(&NODES[*place]));
        for (place, before) in places.map(|place| (place, self.done[place].load(Ordering::SeqCst))).collect::<Vec<_>>()
        {
            let what = format!("{} to do {ROUNDS} more", NODES[place]);
            cluster.until(&what, || (self.done[place].load(Ordering::SeqCst) >= before + ROUNDS).then_some(()));
        }
    }

    fn none_wrong(&self) {
        let wrong = lock(&self.wrong);
        assert!(wrong.is_empty(), "{} wrong answers:\n{}", wrong.len(), wrong.join("\n"));
    }
}

fn not_now(error: &Error) -> bool {
    error.code().blame() == Blame::TryAgain || error.code() == Code::Unreachable
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no worker panicked")
}

/// Makes a change however often it takes. One that was made although its answer was lost is a conflict the second time.
fn change<T>(cluster: &TestCluster, what: &str, mut attempt: impl FnMut() -> Result<T, Error>) {
    cluster.until(what, || match attempt() {
        Ok(_) => Some(()),
        Err(error) if error.code() == Code::Conflict => Some(()),
        Err(error) => {
            assert!(not_now(&error), "{what}: {error}");
            None
        }
    });
}

/// D7 and L1. An answer to another question, a refusal that is not "not now", a ciphertext that was handed out and opens
/// nowhere: each would be among the wrong answers.
#[test]
fn no_answer_is_wrong_on_any_network_and_everything_serves_when_it_is_good_again() {
    let seed = seed();
    let mut cluster = TestCluster::found();
    cluster.create(FIRST);
    let (traffic, workers) = Traffic::begin(&cluster, seed);
    traffic.advance(&cluster, &NODES);

    let delay = Duration::ZERO..=Duration::from_millis(40);
    let bad = LinkQuality { loss: 0.05, duplicate: 0.05, delay };
    cluster.faults().set_quality(bad, seed);
    let before = cluster.faults().tally();
    traffic.advance(&cluster, &NODES);
    traffic.none_wrong();

    let client = cluster.client(None);
    change(&cluster, "a key made on the bad network", || {
        cluster.block(client.create_key(&name(SECOND), Default::default()))
    });
    lock(&traffic.keys).push(SECOND);
    for key in [FIRST, SECOND] {
        let one = Some(quorate_client::KeyVersion(1));
        change(&cluster, "a key rotated on the bad network", || cluster.block(client.rotate_key(&name(key), one)));
    }
    traffic.advance(&cluster, &NODES);
    traffic.none_wrong();

    let leader = cluster.leader();
    cluster.testnet.kill(&leader).expect("dies");
    let survivors: Vec<_> = NODES.into_iter().filter(|node| *node != leader).collect();
    traffic.advance(&cluster, &survivors);
    cluster.start(&[&leader]);
    cluster.testnet.wait_serving(&[&leader]).expect("boots on the bad network");
    traffic.advance(&cluster, &NODES);
    traffic.none_wrong();

    let after = cluster.faults().tally();
    println!("{after:?}, {} refused", traffic.refused.load(Ordering::SeqCst));
    let carried = after.sent - before.sent;
    for (what, count) in [
        ("lost", after.lost - before.lost),
        ("doubled", after.doubled - before.doubled),
        ("overtaking", after.overtaking - before.overtaking),
    ] {
        assert!(count * 100 > carried, "the control: the network was bad, but only {count} of {carried} were {what}");
    }

    cluster.faults().set_quality(LinkQuality::default(), seed);
    cluster.testnet.wait_serving(&NODES).expect("the network is good");
    traffic.advance(&cluster, &NODES);
    traffic.stop.store(true, Ordering::SeqCst);
    workers.into_iter().for_each(|worker| cluster.block(worker).expect("no worker panicked"));

    // Whatever was handed out at any moment opens at every node.
    let kept = std::mem::take(&mut *lock(&traffic.kept));
    for version in ["made/on-a-good-network:1", "made/on-a-good-network:2", "made/on-a-bad-network:2"] {
        let used = kept.iter().any(|kept| kept.ciphertext.starts_with(&format!("qrt1:{version}:")));
        assert!(used, "the control: {version} was used");
    }
    for kept in &kept {
        for (place, node) in NODES.iter().enumerate() {
            assert!(cluster.block(traffic.opens(place, kept)), "{node} refuses on a good network");
        }
    }
    traffic.none_wrong();
}

/// A cluster whose leases are short, with a key and a ciphertext.
fn short_leases() -> (TestCluster, String) {
    let lease = LEASE.as_millis();
    let settings = format!("[timing]\nlease_ms = {lease}\nlease_tick_ms = 300\nwipe_after_ms = 1000\n");
    let cluster = TestCluster::of(Cluster::builder().settings(settings));
    cluster.create(FIRST);
    let ciphertext = cluster.encrypt(None, FIRST, b"secret").expect("encrypts");
    (cluster, ciphertext)
}

/// A node that hears the others and is not heard, and one that is heard and hears nothing: both lose their lease as if
/// cut off on both sides. A lease that does not end makes it fail.
#[test]
fn a_node_that_is_deaf_or_mute_refuses_within_its_lease_and_the_others_go_on() {
    let (mut cluster, ciphertext) = short_leases();
    for deaf in [true, false] {
        for of_leader in [true, false] {
            let leader = cluster.leader();
            let node = NODES.into_iter().find(|node| (*node == leader) == of_leader).expect("three nodes");
            assert_eq!(cluster.decrypt(Some(node), &ciphertext).expect("the control: warm and serving"), b"secret");
            let others: Vec<_> = NODES.into_iter().filter(|other| *other != node).collect();
            for other in &others {
                let (from, to) = if deaf { (*other, node) } else { (node, *other) };
                cluster.faults().cut_one_way(from, to).expect("they exist");
            }
            let cut = Instant::now();
            cluster.testnet.wait_phase(node, Phase::Open).expect("leaves Serving");
            let late = cut.elapsed();
            println!("{node}, leader: {of_leader}, deaf: {deaf}: left Serving {late:?} after the cut");
            assert!(late < 3 * LEASE, "{node} went on for {late:?} with a lease of {LEASE:?}");
            let client = cluster.client_with(hasty(node));
            let error = cluster.block(client.decrypt(&ciphertext, &Context::empty())).expect_err("no lease, no answer");
            assert_eq!(error.code(), Code::NoQuorum, "{error}");
            cluster.testnet.wait_serving(&others).expect("the others go on");
            for other in others {
                let opened = cluster.until("the others answer", || cluster.decrypt(Some(other), &ciphertext).ok());
                assert_eq!(opened, b"secret");
            }
            cluster.testnet.heal().expect("heals");
            cluster.testnet.wait_serving(&NODES).expect("all serve again");
            assert_eq!(cluster.decrypt(Some(node), &ciphertext).expect("decrypts"), b"secret");
        }
    }
    assert!(cluster.faults().tally().cut > 0, "the control: something was cut off");
}

/// One direction between two nodes fails. Two of three still reach each other both ways, so clients are served, and all is well
/// afterwards. Mutated: if a node says "not found" before it has caught up with the leader, this fails.
#[test]
fn one_direction_of_one_pair_may_fail() {
    let (mut cluster, ciphertext) = short_leases();
    let client = cluster.client(None);
    for toward_leader in [true, false] {
        let leader = cluster.leader();
        let follower = NODES.into_iter().find(|node| *node != leader).expect("three nodes");
        let (from, to) = if toward_leader { (follower, leader.as_str()) } else { (leader.as_str(), follower) };
        cluster.faults().cut_one_way(from, to).expect("they exist");
        let shown = cluster.until("clients are served", || cluster.block(client.show_key(&name(FIRST))).ok());
        let version = shown.newest().map(|newest| newest.version);
        change(&cluster, "a change goes through", || cluster.block(client.rotate_key(&name(FIRST), version)));
        let fresh = cluster.until("clients are served", || cluster.encrypt(None, FIRST, b"fresh").ok());
        for (ciphertext, plaintext) in [(&ciphertext, b"secret".as_slice()), (&fresh, b"fresh")] {
            assert_eq!(cluster.until("clients are served", || cluster.decrypt(None, ciphertext).ok()), plaintext);
        }
        // A node that may not know of the new version yet says "not now", and never that there is none.
        for node in NODES {
            match cluster.block(cluster.client_with(hasty(node)).decrypt(&fresh, &Context::empty())) {
                Ok(opened) => assert_eq!(opened.expose(), b"fresh", "{node}"),
                Err(error) => assert!(not_now(&error), "{node}: {error}"),
            }
        }
        cluster.testnet.heal().expect("heals");
        cluster.testnet.wait_serving(&NODES).expect("all serve again");
        for node in NODES {
            assert_eq!(cluster.decrypt(Some(node), &fresh).expect("decrypts"), b"fresh", "{node}");
        }
    }
}
