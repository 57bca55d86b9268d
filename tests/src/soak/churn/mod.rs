//! Churn: the members of a cluster of real processes change all the time, under every fault that the testnet has.
//!
//! Dice draw what an operator orders ([`orders`]) and what happens meanwhile ([`troubles`]); clients make and rotate keys,
//! encrypt and decrypt throughout, at nodes that keep no key in memory. When the trouble is over, the cluster must heal by
//! itself. An order that failed is repeated. Then every invariant is checked on the disks and by requests ([`checks`]), also
//! against a thief who has been collecting disks all the time ([`disk_collector`]).
//!
//! The seed fixes orders and troubles, but not the moment at which a process does what it does. A run that fails keeps the
//! directory of its cluster with all logs, and says where it is:
//!
//! ```text
//! QUORATE_SEED=7 QUORATE_CHURN_ORDERS=40 cargo test --workspace --lib churn:: -- --nocapture
//! ```

mod checks;
mod disk_collector;
mod orders;
mod troubles;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use quorate_client::wire::{Phase, Status};
use quorate_client::{Client, Context, Options};
use quorate_shares::ids::{Epoch, KeyUid, KeyVersion};
use quorate_testnet::load::{Load, Options as LoadOptions};
use quorate_testnet::procs::Finished;
use quorate_testnet::{Cluster, wait_until};
use tempfile::TempDir;

use self::disk_collector::DiskCollector;
use self::orders::Order;
use self::troubles::Trouble;
use crate::harness::{Dice, TestCluster, name, seed};

/// Machines; those that are no members wait to be used.
const MACHINES: u8 = 7;
/// Members at most: a machine is always free to take the place of another.
const MEMBERS_MAX: usize = 6;
/// Orders of the short run.
const ORDERS: usize = 8;
/// Set to give more of them: `make soak` does.
const ORDERS_VARIABLE: &str = "QUORATE_CHURN_ORDERS";
/// Orders of one cluster; a long run founds another then, of another size.
const ORDERS_OF_A_RUN: usize = 40;
/// How many clusters change side by side in a long run: most of the time each of them waits.
const SIDE_BY_SIDE: usize = 4;
/// How long all may take to be well again, on a busy machine.
const HEALING: Duration = Duration::from_secs(150);
/// No key stays in memory, leases are short, and what is owed is paid soon.
const SETTINGS: &str = "[timing]\nkey_idle_ms = 1\nkey_age_ms = 1\nlease_ms = 1500\nlease_tick_ms = 500\n\
    renew_lock_after_ms = 3000\nrenew_lock_every_ms = 20000\nrekey_pause_ms = 500\njoiner_patience_ms = 8000\n";
/// Half of the clusters keep so little of the log that a node which was away is sent a snapshot.
const SHORT_LOG: &str = "snapshot_every = 40\nentries_kept = 5\n";

/// A version of a key in an epoch.
type Record = (KeyUid, KeyVersion, Epoch);

/// One cluster, and what is known of it.
struct Churn {
    cluster: TestCluster,
    seed: u64,
    /// Seeded again for each turn: the choices of one turn do not change those of the next.
    dice: Dice,
    members: BTreeSet<String>,
    /// Machines whose disks are empty.
    free: BTreeSet<String>,
    /// How it was when all was well the last time.
    status: Status,
    /// What was encrypted here; the plaintext is the name of the key.
    sealed: Vec<String>,
    /// Every record that was ever seen: none may change.
    records: BTreeMap<Record, Vec<u8>>,
    collector: DiskCollector,
    directory: Directory,
    tally: Tally,
}

/// What happened, to show that something did.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    orders: usize,
    /// Orders that trouble stopped, and that were given again.
    again: usize,
    joins: usize,
    removals: usize,
    revocations: usize,
    replacements: usize,
    /// Epochs without an order: a member had been away.
    rekeys: u64,
    former_members: usize,
    /// Old images that were started in place of a node.
    restored: usize,
    /// Snapshots that a node which was away was sent.
    snapshots: usize,
    stolen: usize,
    requests: u64,
}

/// Where a cluster lies. It stays there if the test fails.
struct Directory(Option<TempDir>);

impl Directory {
    fn new() -> Self {
        Self(Some(TempDir::with_prefix("quorate-churn-").expect("a directory")))
    }

    fn path(&self, within: &str) -> PathBuf {
        self.0.as_ref().expect("until it is dropped").path().join(within)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(kept) = self.0.take()
        {
            println!("churn: everything is kept in {}", kept.keep().display());
        }
    }
}

impl Churn {
    fn found(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let founders = 2 + dice.below(4) as u8;
        let directory = Directory::new();
        let log = ["", SHORT_LOG][dice.below(2)];
        let builder = Cluster::builder().directory(directory.path("cluster")).settings(format!("{SETTINGS}{log}"));
        let cluster = TestCluster::of(builder.nodes(founders).spares(MACHINES - founders));
        let machine = |number| format!("n{number}");
        let (members, free) = ((1..=founders).map(machine).collect(), (founders + 1..=MACHINES).map(machine).collect());
        let status = cluster.block(cluster.client(None).status()).expect("it was just founded");
        let collector = DiskCollector::new(directory.path("stolen"));
        let (sealed, records, tally) = (Vec::new(), BTreeMap::new(), Tally::default());
        Self { cluster, seed, dice, members, free, status, sealed, records, collector, directory, tally }
    }

    /// One order, and all that comes of it.
    fn turn(&mut self) {
        self.dice = Dice::new(self.seed.wrapping_add((self.tally.orders as u64 + 1) << 32));
        let order = self.draw_order();
        let trouble = self.draw_trouble(&order);
        let line = format!("{} {:?}: {order}, {trouble}", self.tally.orders + 1, self.members);
        println!("{line}");
        let options = LoadOptions { clients: 2, rest: Duration::from_millis(80), patience: HEALING };
        let load = self.cluster.block(Load::start(&self.cluster.file(), &self.cluster.token(), &options));
        let load = load.expect("clients start");
        self.seal();

        let came_off = self.carry_out(&order, &trouble);
        self.settle();
        if !self.is_done(&order) {
            assert!(!came_off, "{line}: the command says that it is done");
            println!("  again");
            self.tally.again += 1;
            self.free_machines();
            let left = self.left_of(&order);
            if left.as_ref() != Some(&order) {
                println!("  {left:?} is left");
            }
            if let Some(left) = left {
                self.give(&left).success(HEALING).unwrap_or_else(|error| panic!("{line}: L2: once more: {error}"));
                self.settle();
                assert!(self.is_done(&left), "{line}: L2: {left} was ordered, and is not done");
            } else {
                assert!(matches!(trouble, Trouble::Second(_)), "{line}: no other node can have gone");
            }
        }

        let outcome = self.cluster.block(load.stop());
        assert_eq!(outcome.unexpected, Vec::<String>::new(), "{line}: {:?}", outcome.tally);
        self.check();
        let anywhere = self.pick(&self.members.clone());
        let unopened = self.cluster.block(outcome.open_all(&self.cluster.client(Some(&anywhere))));
        assert_eq!(unopened, Vec::<String>::new(), "{line}: D7: {anywhere}");
        self.count(&order, outcome.tally.done);
        self.former_members_are_refused();
        self.free_machines();
        self.go_back_in_time();
        self.disarm();
    }

    /// Waits until all is well: no operation runs, every member serves, and no node has more keys than it must have.
    fn settle(&mut self) {
        let members = wait_until("L1, M2: the operation to end", HEALING, || {
            let status = self.quorum_status()?;
            let names: BTreeSet<String> = status.nodes.iter().map(|node| node.name.to_string()).collect();
            // A machine that asks to join is waited for.
            let asks = |node: &String| {
                self.cluster.testnet.status(node).is_ok_and(|status| status.public.phase == Phase::Joining)
            };
            (status.operation.is_none() && !self.free.iter().any(asks)).then_some(names)
        });
        let members = members.unwrap_or_else(|error| panic!("{error}: {:?}", self.quorum_status()));
        for node in &members {
            self.cluster.testnet.start(node).unwrap_or_else(|error| panic!("L1: {node}: {error}"));
        }
        let names: Vec<&str> = members.iter().map(String::as_str).collect();
        let file = self.cluster.testnet.directory().client_file();
        let serve = wait_until("L1: every member to serve", HEALING, || {
            // Who has just joined is in no client file yet.
            self.cluster.block(self.cluster.client(None).export()).ok()?.write(&file).expect("writes");
            let all: Option<Vec<Status>> = names.iter().map(|node| self.status_of(node)).collect();
            let well = |status: &Status| {
                let in_force = status.theft_threshold == status.threshold;
                let same = status.nodes.len() == names.len() && status.operation.is_none();
                in_force && same && status.epoch >= self.status.epoch
            };
            let all = all.filter(|all| all.iter().all(well))?;
            all.windows(2).all(|pair| pair[0].epoch == pair[1].epoch).then(|| all[0].clone())
        });
        self.status = serve.unwrap_or_else(|error| {
            let all: Vec<_> = names.iter().map(|node| (node, self.status_of(node))).collect();
            panic!("{error}: {all:?}")
        });
        self.members = members;
    }

    /// How the cluster is, as a node of it in a quorum sees it.
    fn quorum_status(&self) -> Option<Status> {
        let machines = self.members.iter().chain(&self.free);
        machines.filter_map(|node| self.status_of(node)).max_by_key(|status| status.epoch)
    }

    /// How one node sees the cluster, if it is in a quorum.
    fn status_of(&self, node: &str) -> Option<Status> {
        let client = self.hasty(node)?;
        self.cluster.block(client.status()).ok().filter(|status| status.quorum && status.lease_ms.is_some())
    }

    /// A client of one node that does not wait for it; `None` if the client file does not know the node.
    fn hasty(&self, node: &str) -> Option<Client> {
        let (deadline, patience) = (Duration::from_secs(2), Duration::ZERO);
        let options = Options { node: Some(node.to_owned()), deadline, patience, ..Options::default() };
        self.cluster.block(Client::connect(self.cluster.file(), &self.cluster.token(), options)).ok()
    }

    /// A key more, and something that is encrypted under it.
    fn seal(&mut self) {
        let key = format!("churn/{}", self.sealed.len());
        self.cluster.create(&key);
        let sealed =
            self.cluster.block(self.cluster.client(None).encrypt(&name(&key), &Context::empty(), key.as_bytes()));
        self.sealed.push(sealed.expect("encrypts"));
    }

    fn nap(&mut self, longest_ms: usize) {
        sleep(Duration::from_millis(self.dice.below(longest_ms) as u64));
    }

    /// One of these nodes, drawn by the dice.
    fn pick(&mut self, of: &BTreeSet<String>) -> String {
        let place = self.dice.below(of.len());
        of.iter().nth(place).expect("below its length").clone()
    }

    fn run(&self, words: &[&str]) -> Finished {
        let tool = quorate_testnet::procs::Tool::start(self.cluster.testnet.quorate(words.iter().copied()), b"");
        tool.expect("runs").outcome(HEALING).expect("it ends")
    }

    fn count_snapshots(&self) -> usize {
        let logs = self.machines().into_iter().map(|node| self.cluster.testnet.directory().log(&node));
        // A machine that was never used has none.
        let logs = logs.filter_map(|log| std::fs::read_to_string(log).ok());
        logs.map(|log| log.lines().filter(|line| line.contains("snapshot received")).count()).sum()
    }

    fn count(&mut self, order: &Order, requests: u64) {
        let tally = &mut self.tally;
        tally.orders += 1;
        tally.requests += requests;
        *match order {
            Order::Join(_) => &mut tally.joins,
            Order::Remove(_) => &mut tally.removals,
            Order::Revoke(_) => &mut tally.revocations,
            Order::Replace { .. } => &mut tally.replacements,
        } += 1;
    }
}

/// So many orders to a cluster of its own.
fn run(seed: u64, orders: usize) -> Tally {
    let mut churn = Churn::found(seed);
    println!("churn: seed {seed}: founded with {:?}", churn.members);
    (0..orders).for_each(|_| churn.turn());
    churn.tally.stolen = churn.collector.taken();
    churn.tally.snapshots = churn.count_snapshots();
    println!("churn: seed {seed}: {:?}", churn.tally);
    churn.tally
}

/// What a long run must have seen, and did not: dice that never fall on something test nothing.
fn never_happened(tallies: &[Tally]) -> Vec<&'static str> {
    let any = |of: fn(&Tally) -> bool| tallies.iter().any(of);
    let all = [
        ("a join", any(|tally| tally.joins > 0)),
        ("a removal", any(|tally| tally.removals > 0)),
        ("a revocation", any(|tally| tally.revocations > 0)),
        ("a replacement", any(|tally| tally.replacements > 0)),
        ("an order that trouble stopped", any(|tally| tally.again > 0)),
        ("an epoch for a member that was away", any(|tally| tally.rekeys > 0)),
        ("a former member that is refused", any(|tally| tally.former_members > 0)),
        ("an old image", any(|tally| tally.restored > 0)),
        ("a snapshot", any(|tally| tally.snapshots > 0)),
        ("a theft", any(|tally| tally.stolen > 0)),
        ("a request", any(|tally| tally.requests > 0)),
    ];
    all.into_iter().filter(|(_, happened)| !happened).map(|(what, _)| what).collect()
}

/// S1 to S8, D1 to D7, M1, M2, L1, L2, of real processes.
#[test]
fn nothing_breaks_while_members_come_and_go() {
    let orders = std::env::var(ORDERS_VARIABLE).ok();
    let seed = seed();
    let Some(orders) = orders else {
        run(seed, ORDERS);
        return;
    };
    let orders: usize = orders.parse().unwrap_or_else(|_| panic!("{ORDERS_VARIABLE} is a number"));
    let runs = orders.div_ceil(ORDERS_OF_A_RUN);
    let lane = |lane: usize| {
        let seeds = (lane..runs).step_by(SIDE_BY_SIDE).map(|run| seed.wrapping_add(run as u64));
        seeds.map(|seed| run(seed, ORDERS_OF_A_RUN)).collect::<Vec<_>>()
    };
    let tallies: Vec<Tally> = std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..SIDE_BY_SIDE).map(|number| scope.spawn(move || lane(number))).collect();
        lanes.into_iter().flat_map(|lane| lane.join().expect("nothing was broken")).collect()
    });
    let done: usize = tallies.iter().map(|tally| tally.orders).sum();
    println!("churn: {done} orders were carried out");
    assert!(done >= orders, "{done} orders");
    assert_eq!(never_happened(&tallies), Vec::<&str>::new(), "in {done} orders");
}
