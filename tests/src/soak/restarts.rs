//! Nodes that restart again and again, faster than anything settles: two of three, then all three. Lock keys are handed over
//! within a grace of a minute of running time; here no process lives so long.

use std::thread::sleep;
use std::time::Duration;

use quorate_client::wire::Phase;
use quorate_testnet::Cluster;
use quorate_testnet::load::{Load, Options};

use crate::harness::{Dice, TestCluster, restart_rounds, seed};

const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// Rounds without the variable `QUORATE_RESTART_ROUNDS`.
const ROUNDS: usize = 6;
/// The longest that a node may run in a round before it dies, in milliseconds. Zero is among them.
const LIFE_MS: usize = 2_500;
/// Locks are renewed all the time meanwhile.
const RENEWALS: &str = "[timing]\nrenew_lock_after_ms = 50\nrenew_lock_every_ms = 500\n";
/// What clients do between two rounds in which a quorum is up.
const MORE: u64 = 20;

/// The generation of each node's lock.
fn newest_locks(cluster: &TestCluster) -> Vec<u64> {
    let nodes = cluster.block(cluster.client(None).nodes()).expect("nodes");
    nodes.iter().filter_map(|node| node.state.as_ref()).map(|state| state.lock_generation).collect()
}

fn nap(dice: &mut Dice) {
    sleep(Duration::from_millis(dice.below(LIFE_MS) as u64));
}

fn load(cluster: &TestCluster) -> Load {
    // While both other nodes are away no operation succeeds; one that fails for longer than this is an error.
    let options = Options { clients: 3, rest: Duration::from_millis(20), patience: Duration::from_secs(60) };
    cluster.block(Load::start(&cluster.file(), &cluster.token(), &options)).expect("clients start")
}

/// Starts a node. From its first word on it says that it has a cluster.
fn start(cluster: &mut TestCluster, node: &str) {
    cluster.start(&[node]);
    let phase = cluster.testnet.status(node).expect("it has just answered").public.phase;
    assert_ne!(phase, Phase::Uninitialised, "{node}");
}

/// Nothing unexpected was seen, and all that was handed out opens everywhere.
fn none_wrong(cluster: &TestCluster, load: Load) {
    let outcome = cluster.block(load.stop());
    println!("{:?}", outcome.tally);
    assert_eq!(outcome.unexpected, Vec::<String>::new());
    for node in NODES {
        let unopened = cluster.block(outcome.open_all(&cluster.client(Some(node))));
        assert_eq!(unopened, Vec::<String>::new(), "{node}");
    }
    let status = cluster.block(cluster.client(None).status()).expect("status");
    assert!(status.alarms.is_empty(), "{:?}", status.alarms);
    // Each was founded with its first lock, a moment ago.
    let made = newest_locks(cluster);
    assert!(made.iter().any(|generation| *generation > 1), "the control: locks were renewed: {made:?}");
}

/// T22: two nodes go down and up, each in a loop of its own, so that both are away now and then. The third stays. Clients work
/// whenever there is a quorum.
#[test]
fn t22_two_nodes_restart_in_loops() {
    let mut dice = Dice::new(seed());
    let mut cluster = TestCluster::of(Cluster::builder().settings(RENEWALS));
    let load = load(&cluster);
    for _ in 0..restart_rounds(ROUNDS) {
        for _ in 0..4 {
            let node = ["n1", "n2"][dice.below(2)];
            if cluster.testnet.is_running(node).expect("a node") {
                cluster.testnet.kill(node).expect("dies");
            } else {
                start(&mut cluster, node);
            }
            nap(&mut dice);
        }
        // One of them is enough.
        cluster.start(&["n1"]);
        let before = load.tally().done;
        cluster.until("clients to go on", || (load.tally().done >= before + MORE).then_some(()));
    }
    cluster.start(&NODES);
    cluster.testnet.wait_serving(&NODES).expect("all serve in the end");
    none_wrong(&cluster, load);
}

/// T22: all three restart again and again, at moments of their own, often in the middle of unlocking each other.
#[test]
fn t22_all_nodes_restart_again_and_again() {
    let mut dice = Dice::new(seed());
    let mut cluster = TestCluster::of(Cluster::builder().settings(RENEWALS));
    let load = load(&cluster);
    for round in 0..restart_rounds(ROUNDS) {
        // Now all at once, now one after the other, in an order that the dice make.
        let mut order = NODES;
        order.swap(0, dice.below(NODES.len()));
        if round % 2 == 0 {
            cluster.kill_all();
        }
        for node in order {
            cluster.testnet.kill(node).expect("dies");
            nap(&mut dice);
            start(&mut cluster, node);
        }
        nap(&mut dice);
        if round % 2 == 1 {
            cluster.testnet.wait_serving(&NODES).expect("boots");
        }
    }
    cluster.testnet.wait_serving(&NODES).expect("boots");
    none_wrong(&cluster, load);
}
