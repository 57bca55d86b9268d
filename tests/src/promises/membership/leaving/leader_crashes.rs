//! The leader dies at any step of an operation, and the next one finishes it.
//!
//! What is durable changes by a sync and by nothing else, so the leader is killed right after its first sync since the order,
//! in another run after its second, and so on, until the operation ends before the death comes: see `quorate_testnet::faults::shim`.
//! This is done for a removal, a revocation, a join and a replacement, in one cluster after the other. Clients go on meanwhile.
//! No node keeps a key in memory, so each answer shows that the shares of that moment are good.

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use quorate_client::wire::Status;
use quorate_testnet::Cluster;
use quorate_testnet::faults::shim::{Death, Shim, order_death};
use quorate_testnet::load::{Load, Options};
use quorate_testnet::procs::Tool;

use super::{COLD, Sealed, all_open, goes_on, none_wrong, seal_many, settled, status, typed};
use crate::harness::commands::{invite, join};
use crate::harness::{Dice, PATIENCE, TestCluster, seed};

const NODES: u8 = 5;
/// Two batches, when they are reshared.
const KEYS: usize = 300;
const MANY_KEYS: usize = 10_000;
/// The commands that reshare them: each is at least one sync of the leader.
const BATCHES: usize = MANY_KEYS.div_ceil(192);
/// Pause of the clients of such a large cluster: in the end every ciphertext must still be remembered.
const REST: Duration = Duration::from_millis(200);
/// How many steps lie between two at which the leader of a cluster with so many keys dies.
const STRIDE: usize = 21;
/// Members that stay from the first step to the last.
const STAY: [&str; 2] = ["n1", "n2"];
/// Set to die at every step from this one on, instead of at some that the seed chooses: `make soak` does, from 1 on.
const EVERY: &str = "QUORATE_EVERY_LEADER";
/// Syncs of a leader's own lock: each change is two.
const VAULT: &str = "/vault";
/// Syncs of log and state.
const STATE: &str = "/state/";
/// No leader syncs anything so often during one operation.
const SYNCS_MAX: u32 = 1_000;
/// Deaths without [`EVERY`]: so far apart that each falls into another part of an operation.
const STEPS: [(&str, u32); 4] = [(STATE, 1), (STATE, 7), (STATE, 13), (VAULT, 1)];
/// How far beyond those the dice may go.
const SPREAD: usize = 6;
/// How often a command is typed again that found no quorum.
const TYPED_MAX: usize = 20;

static SHIM: LazyLock<Shim> = LazyLock::new(|| Shim::build().expect("a C compiler"));

/// Five nodes and two spare machines, any of which may be ordered to die, under load.
struct Scene {
    cluster: TestCluster,
    load: Load,
    sealed: Vec<Sealed>,
    orders: PathBuf,
    notes: PathBuf,
    _directory: tempfile::TempDir,
}

impl Scene {
    fn set(keys: usize, rest: Duration) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let (orders, notes) = (directory.path().join("orders"), directory.path().join("deaths"));
        let variables = SHIM.with_orders(&orders, &notes);
        let builder = Cluster::builder().nodes(NODES).spares(2).settings(COLD);
        let builder = variables.into_iter().fold(builder, |builder, (name, value)| builder.environment(name, value));
        let cluster = TestCluster::of(builder);
        let sealed = seal_many(&cluster, keys);
        let options = Options { clients: 3, rest, ..Options::default() };
        let load = cluster.block(Load::start(&cluster.file(), &cluster.token(), &options)).expect("clients start");
        Self { cluster, load, sealed, orders, notes, _directory: directory }
    }

    fn deaths(&self) -> usize {
        fs::read_to_string(&self.notes).unwrap_or_default().lines().count()
    }

    /// Gives an order during which the leader dies, and waits for its end. Returns whether the leader died.
    fn order(&mut self, words: &[&str], death: Death<'_>, comes_back_late: bool) -> bool {
        self.see_through(&format!("{words:?}"), |cluster| typed(cluster, words), death, comes_back_late)
    }

    /// Lets a machine join, in place of `gone` if there is one, and waits until the members that stay know of it.
    fn join(&mut self, node: &str, gone: Option<&str>, death: Death<'_>) -> bool {
        let epoch = self.cluster.until("an epoch", || status(&self.cluster, &STAY)).epoch;
        let invitation = invite(&self.cluster);
        if let Some(gone) = gone {
            let replace = self.cluster.testnet.quorate(["node", "replace", gone, "--with", "-", "--yes"]);
            let replace = Tool::start(replace, invitation.as_bytes()).expect("runs");
            replace.success(PATIENCE).expect("the invitation is known");
        }
        self.cluster.testnet.start(node).expect("starts on an empty disk");
        let begin = |cluster: &TestCluster| join(&cluster.testnet, node, &invitation);
        let died = self.see_through(&format!("{node} joins in place of {gone:?}"), begin, death, false);
        self.cluster.until(&format!("all nodes to be done with {node}"), || {
            let all: Option<Vec<_>> = STAY.iter().map(|stays| status(&self.cluster, &[stays])).collect();
            let done = |status: &Status| {
                let is = |name: &str| status.nodes.iter().any(|node| node.name.as_str() == name);
                status.operation.is_none() && status.epoch > epoch && is(node) && !gone.is_some_and(is)
            };
            all?.iter().all(done).then_some(())
        });
        self.cluster.export();
        died
    }

    fn see_through(
        &mut self,
        what: &str,
        begin: impl Fn(&TestCluster) -> Tool,
        death: Death<'_>,
        comes_back_late: bool,
    ) -> bool {
        // Not as the one that is out sees it: it may know of none, or of one from before.
        let leader =
            self.cluster.until("a leader", || status(&self.cluster, &["n1", "n2", "n3", "n4"])?.leader).to_string();
        let pid = self.cluster.testnet.process(&leader).expect("exists").expect("runs").pid();
        let before = self.deaths();
        order_death(&self.orders, pid, death).expect("written");
        for attempt in 1.. {
            let mut command = begin(&self.cluster);
            quorate_testnet::wait_until(format!("{what} to end"), PATIENCE, || {
                self.revive(&leader, !comes_back_late);
                command.has_ended().then_some(())
            })
            .unwrap_or_else(|error| panic!("{error}: {}", command.so_far()));
            let ended = command.outcome(PATIENCE).expect("it has ended");
            // Whether an order whose answer was lost was heard is told by its repetition.
            match ended.code {
                Some(0) => break,
                Some(5) if attempt > 1 && ended.stderr.contains("already") => break,
                Some(3) if attempt < TYPED_MAX => {}
                code => panic!("{what} ended with {code:?} when {leader} was to die: {}", ended.stderr),
            }
        }
        // A leader that has not died by now lives on.
        order_death(&self.orders, 0, Death { at_sync: 1, of: "nothing" }).expect("written");
        let died = self.deaths() > before;
        if died {
            // A process that has noted its death is gone a moment later.
            let again = quorate_testnet::wait_until(format!("{leader} to be there again"), PATIENCE, || {
                self.revive(&leader, true);
                let process = self.cluster.testnet.process(&leader).expect("exists");
                process.is_some_and(|process| process.pid() != pid).then_some(())
            });
            again.unwrap_or_else(|error| panic!("{error}"));
        }
        println!(
            "{what}: {leader} {} at sync {} of {}",
            if died { "died" } else { "lived on" },
            death.at_sync,
            death.of
        );
        died
    }

    fn revive(&mut self, node: &str, now: bool) {
        if now && !self.cluster.testnet.is_running(node).expect("a node") {
            self.cluster.start(&[node]);
        }
    }

    /// Nodes join and leave, and each time the leader dies at that step. Returns how often one did.
    fn play(mut self, death: Death<'_>) -> usize {
        goes_on(&self.cluster, &self.load, "in peace");
        let late = death.at_sync.is_multiple_of(2);
        let removal = self.order(&["node", "remove", "n5", "--yes"], death, late);
        settled(&self.cluster, &["n1", "n2", "n3", "n4"], 2);
        goes_on(&self.cluster, &self.load, "without n5");
        // Those that remain are a majority of the old and of the new voters only together with the one that dies.
        let revocation = self.order(&["node", "revoke", "n4", "--yes", "--wait"], death, false);
        let status = settled(&self.cluster, &["n1", "n2", "n3"], 3);
        assert_eq!((status.threshold, status.theft_threshold), (2, 2));
        goes_on(&self.cluster, &self.load, "without n4");
        let joining = self.join("n6", None, death);
        goes_on(&self.cluster, &self.load, "with n6");
        let replacement = self.join("n7", Some("n3"), death);
        goes_on(&self.cluster, &self.load, "with n7 in place of n3");
        let members = ["n1", "n2", "n6", "n7"];
        none_wrong(&self.cluster, self.load, &members);
        all_open(&self.cluster, &members, &self.sealed);
        [removal, revocation, joining, replacement].into_iter().filter(|died| *died).count()
    }
}

/// One node leaves and another one joins, again and again in one cluster with many keys. Each time the leader dies a little
/// later: before the first batch, between batches, and after the last.
fn die_at_each_batch() {
    let mut scene = Scene::set(MANY_KEYS, REST);
    let (mut leaves, mut comes, mut died) = ("n5", "n6", 0);
    for at_sync in (1..SYNCS_MAX).step_by(STRIDE) {
        let death = Death { at_sync, of: STATE };
        let removal = scene.order(&["node", "remove", leaves, "--yes"], death, at_sync.is_multiple_of(2));
        scene.cluster.testnet.erase(comes).expect("a machine");
        let joining = scene.join(comes, None, death);
        goes_on(&scene.cluster, &scene.load, &format!("with {comes} in place of {leaves}"));
        (leaves, comes) = (comes, if comes == "n6" { "n7" } else { "n6" });
        died += usize::from(removal) + usize::from(joining);
        // A joiner goes on writing after it was let in: a leader dies of that, however late it is.
        if !removal {
            break;
        }
    }
    println!("{died} leaders died");
    assert!(died > 2 * BATCHES / STRIDE, "the control: {died} leaders died");
    let members = ["n1", "n2", "n3", "n4", leaves];
    none_wrong(&scene.cluster, scene.load, &members);
    all_open(&scene.cluster, &members, &scene.sealed);
}

/// T26. Mutated: a leader that continues only the operations that it began itself.
#[test]
fn t26_the_next_leader_finishes_what_the_last_one_began() {
    if let Ok(first) = std::env::var(EVERY) {
        die_at_each_batch();
        let first: u32 = first.parse().unwrap_or_else(|_| panic!("{EVERY} is a number"));
        for of in [VAULT, STATE] {
            let mut steps = if of == STATE { first..SYNCS_MAX } else { 1..SYNCS_MAX };
            let reached = steps
                .by_ref()
                .take_while(|&at_sync| Scene::set(KEYS, Duration::ZERO).play(Death { at_sync, of }) > 0)
                .count();
            assert!(reached > 1, "the control: leaders died {reached} times");
            assert!(steps.next().is_some(), "no operation ever ended before the death came");
        }
        return;
    }
    let mut dice = Dice::new(seed());
    let rounds = 2;
    let mut died = 0;
    for _ in 0..rounds {
        let (of, first) = STEPS[dice.below(STEPS.len())];
        let further = if of == STATE { dice.below(SPREAD) as u32 } else { dice.below(2) as u32 };
        died += Scene::set(KEYS, Duration::ZERO).play(Death { at_sync: first + further, of });
    }
    assert!(died > 0, "the control: some leader died");
}
