//! A founder that is killed at any step of founding is started again, and the cluster is founded all the same.
//!
//! What is durable changes by a sync and by nothing else, so a founder is killed right after one of its syncs, in another run
//! after a later one, and so on, until founding ends before the death comes. `make test` takes every second to eighth sync, from one
//! that the seed chooses; `make soak` takes every one. Nothing in the daemon knows of this: see
//! `quorate_testnet::faults::shim`. Each victim dies once in a run; the operator starts the daemon again, and
//! repeats the command if the node forgot it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use quorate_client::wire::Phase;
use quorate_testnet::Cluster;
use quorate_testnet::faults::shim::{Death, Shim};
use quorate_testnet::procs::Tool;

use crate::harness::commands::{init, join, printed_invitations};
use crate::harness::{Dice, PATIENCE, TestCluster, seed};

const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// Every change of the vault is two syncs: after the first, only one of the two copies is new.
const VAULT: &str = "/vault";
/// The log and the state: voting, the first entries, the first epoch.
const STATE: &str = "/state/";
/// No founder syncs anything so often while a cluster is founded.
const SYNCS_MAX: u32 = 1_000;
/// Set to run every single step instead of a part that the seed chooses.
const EVERY: &str = "QUORATE_EVERY_DEATH";

static SHIM: LazyLock<Shim> = LazyLock::new(|| Shim::build().expect("a C compiler"));

/// The operator who founds the cluster, at the keyboards of all nodes.
struct Operator {
    testnet: Cluster,
    init: Option<Tool>,
    joins: BTreeMap<String, Tool>,
    invitations: Vec<String>,
    /// Where victims say how they died.
    notes: PathBuf,
}

impl Operator {
    /// Daemons that wait to be founded. Each of the victims dies once.
    fn at(victims: &[&str], death: Death<'_>) -> Self {
        let mut testnet = Cluster::builder().start().expect("starts");
        let notes = testnet.directory().path().join("deaths");
        for victim in victims {
            testnet.kill(victim).expect("ends");
            testnet.set_environment(victim, SHIM.with_death(death, &notes)).expect("a node");
            testnet.start(victim).expect("starts");
        }
        Self { testnet, init: None, joins: BTreeMap::new(), invitations: Vec::new(), notes }
    }

    /// Repeats what an operator would do until every node serves.
    fn found(&mut self) {
        quorate_testnet::wait_until("every founder to serve", PATIENCE, || {
            self.start_the_dead();
            self.type_init();
            self.type_joins();
            let serves = |node: &&str| self.phase(node) == Some(Phase::Serving);
            NODES.iter().all(serves).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}; deaths: {:?}; init says: {}", self.deaths(), self.said()));
    }

    /// The commands that still wait end well now; the client file, which `init` writes in the end, is to be had otherwise, too.
    fn receive(&mut self) {
        for (_, join) in std::mem::take(&mut self.joins) {
            join.success(PATIENCE).expect("joins");
        }
        let directory = self.testnet.directory();
        let ended = self.init.take().map(|init| init.success(PATIENCE)).transpose();
        if ended.unwrap_or_else(|error| panic!("{error}")).is_none() {
            let mut export = self.testnet.quorate(["cluster", "export", "--local", "--socket"]);
            export.arg(directory.socket(NODES[0])).arg("-o").arg(directory.client_file());
            Tool::start(export, b"").expect("runs").success(PATIENCE).expect("exports");
        }
    }

    fn start_the_dead(&mut self) {
        for node in NODES {
            if !self.testnet.is_running(node).expect("a node") {
                self.testnet.set_environment(node, Vec::new()).expect("a node");
                self.testnet.start(node).expect("starts again");
                // A command ends with the daemon that it talks to.
                self.joins.remove(node);
                if node == NODES[0] {
                    self.init = None;
                }
            }
        }
    }

    fn type_init(&mut self) {
        let forgotten = self.phase(NODES[0]) == Some(Phase::Uninitialised);
        if self.init.is_none() && (forgotten || self.invitations.is_empty()) {
            self.invitations.clear();
            self.init = Some(init(&self.testnet, NODES[0], &["--founders", "3"]));
        }
        if let Some(init) = self.init.as_ref().filter(|_| self.invitations.is_empty()) {
            let printed = printed_invitations(init);
            if printed.len() == NODES.len() - 1 {
                self.invitations = printed;
            }
        }
    }

    fn type_joins(&mut self) {
        for (node, invitation) in NODES[1..].iter().zip(&self.invitations) {
            if !self.joins.contains_key(*node) && self.phase(node) == Some(Phase::Uninitialised) {
                self.joins.insert((*node).to_owned(), join(&self.testnet, node, invitation));
            }
        }
    }

    /// `None` while no node answers.
    fn phase(&self, node: &str) -> Option<Phase> {
        self.testnet.status(node).ok().map(|status| status.public.phase)
    }

    /// How the victims died, one line for each.
    fn deaths(&self) -> Vec<String> {
        let notes = fs::read_to_string(&self.notes).unwrap_or_default();
        // The vault's file keeps the name under which it was made.
        let here = format!("{}/", self.testnet.directory().path().display());
        let short = |line: &str| line.replace(&here, "").replace(".new (deleted)", "");
        notes.lines().map(short).collect()
    }

    fn said(&self) -> String {
        self.init.as_ref().map_or_else(String::new, Tool::so_far)
    }

    /// The cluster is one that survives the loss of power, and serves.
    fn check(mut self) {
        // Whatever the founders remember in memory alone, they must not need it. Nor must a victim whose death has not come
        // yet die later on.
        for node in NODES {
            self.testnet.kill(node).expect("dies");
            self.testnet.set_environment(node, Vec::new()).expect("a node");
        }
        self.testnet.start_all().expect("starts");
        self.testnet.wait_all_serving().expect("comes back");
        let cluster = TestCluster::with(self.testnet);
        cluster.create("key");
        let ciphertext = cluster.encrypt(None, "key", b"secret").expect("encrypts");
        for node in NODES {
            assert_eq!(cluster.decrypt(Some(node), &ciphertext).expect("decrypts"), b"secret", "{node}");
        }
        let status = cluster.block(cluster.client(None).status()).expect("status");
        assert_eq!((status.threshold, status.voters, status.epoch.0), (2, 3, 1));
        assert!(status.alarms.is_empty(), "{:?}", status.alarms);
    }
}

/// Founds a cluster in which each of the victims dies; `false` once that comes too late for all of them.
fn found_with(victims: &[&str], death: Death<'_>) -> bool {
    let mut operator = Operator::at(victims, death);
    operator.found();
    operator.receive();
    let deaths = operator.deaths();
    println!("{victims:?} at sync {} of {}: {deaths:?}", death.at_sync, death.of);
    operator.check();
    !deaths.is_empty()
}

/// The victims die at one step, and at every `stride`-th step after it. The seed chooses the first. With [`EVERY`] they die at every step.
fn at_some_steps(victims: &[&str], of: &str, stride: u32) {
    let stride = if std::env::var_os(EVERY).is_some() { 1 } else { stride };
    let first = 1 + Dice::new(seed()).below(stride as usize) as u32;
    let mut steps = (first..SYNCS_MAX).step_by(stride as usize);
    let reached = steps.by_ref().take_while(|&at_sync| found_with(victims, Death { at_sync, of })).count();
    assert!(reached > 1, "{victims:?} died {reached} times: a step of {stride} syncs is too wide");
    assert!(steps.next().is_some(), "founding never ended before the death came");
}

#[test]
fn the_first_founder_dies_while_its_vault_changes() {
    at_some_steps(&["n1"], VAULT, 3);
}

#[test]
fn another_founder_dies_while_its_vault_changes() {
    at_some_steps(&["n2"], VAULT, 2);
}

#[test]
fn the_first_founder_dies_while_the_log_begins() {
    at_some_steps(&["n1"], STATE, 4);
}

#[test]
fn another_founder_dies_while_the_log_begins() {
    at_some_steps(&["n3"], STATE, 4);
}

/// The power of all machines fails at the same step: no founder is left that has in memory what is not on its disk.
#[test]
fn all_founders_die_while_their_vaults_change() {
    at_some_steps(&NODES, VAULT, 8);
}

/// The power of two machines fails at the same step.
#[test]
fn two_founders_die_at_the_same_step() {
    let mut dice = Dice::new(seed());
    let rounds = if std::env::var_os(EVERY).is_some() { 40 } else { 4 };
    let mut died = 0;
    for _ in 0..rounds {
        let spared = NODES[dice.below(NODES.len())];
        let victims: Vec<_> = NODES.into_iter().filter(|node| *node != spared).collect();
        let of = [VAULT, STATE][dice.below(2)];
        let at_sync = 1 + dice.below(14) as u32;
        died += usize::from(found_with(&victims, Death { at_sync, of }));
    }
    assert!(died > 0, "the control: a founder died");
}
