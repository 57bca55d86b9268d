//! Clocks that jump. No lease survives a suspend of the machine. A wall clock that is set forward or back changes nothing but
//! the expiry of invitations.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use quorate_client::Code;
use quorate_client::wire::{Phase, RevocationProgress};
use quorate_shares::ids::Epoch;
use quorate_testnet::faults::shim::{Clock, Clocks, Shim};
use quorate_testnet::load::{Load, Options};
use quorate_testnet::{Builder, Cluster};

use crate::harness::commands::{init, invitations, join};
use crate::harness::{PATIENCE, TestCluster, name};

const NODES: [&str; 3] = ["n1", "n2", "n3"];
const YEAR: Duration = Duration::from_secs(365 * 86_400);
const DAY: Duration = Duration::from_secs(86_400);
/// Leases that outlive everything here, unless a clock jumps.
const LONG_LEASES: &str = "[timing]\nlease_ms = 60000\n";
/// Longer than any lease.
const NAP: Duration = Duration::from_secs(600);
/// What is done before and after everything that happens to a clock.
const MORE: u64 = 100;

/// A cluster whose clocks can be moved, each by itself.
struct Adrift {
    cluster: TestCluster,
    clocks: BTreeMap<&'static str, Clocks>,
    /// Daemons load it when they start.
    _shim: Shim,
}

impl Adrift {
    fn found(settings: &str) -> Self {
        Self::of(Cluster::builder().settings(settings))
    }

    fn of(builder: Builder) -> Self {
        let mut cluster = TestCluster::of(builder);
        let shim = Shim::build().expect("a C compiler");
        let mut clocks = BTreeMap::new();
        for node in NODES {
            let own = shim.clocks(node).expect("a file");
            cluster.testnet.set_environment(node, shim.with_clocks(&own)).expect("a node");
            cluster.testnet.kill(node).expect("dies");
            clocks.insert(node, own);
        }
        cluster.start(&NODES);
        cluster.testnet.wait_serving(&NODES).expect("boots");
        Self { cluster, clocks, _shim: shim }
    }

    fn forward(&self, node: &str, clock: Clock, by: Duration) {
        self.clocks[node].forward(clock, by).expect("moves");
    }

    fn back(&self, node: &str, clock: Clock, by: Duration) {
        self.clocks[node].back(clock, by).expect("moves");
    }

    fn decrypts_everywhere(&self, ciphertext: &str) {
        for node in NODES {
            let opened = self.cluster.until("decrypts", || self.cluster.decrypt(Some(node), ciphertext).ok());
            assert_eq!(opened, b"secret", "{node}");
        }
    }

    /// A member that follows.
    fn follower(&self) -> &'static str {
        let leader = self.cluster.leader();
        NODES.into_iter().find(|node| *node != leader).expect("three nodes")
    }

    /// Begins to revoke a node, by the word of a client of node `at`.
    fn revoke(&self, at: &str, node: &str) -> Epoch {
        let names = [node.parse().expect("a name")];
        self.cluster.block(self.cluster.client(Some(at)).revoke_nodes(&names, &[])).expect("begins")
    }

    /// How far the revocation of `operation` is, as a client of node `at` is told.
    fn revocation(&self, at: &str, operation: Epoch) -> Option<RevocationProgress> {
        self.cluster.block(self.cluster.client(Some(at)).progress(operation)).ok()?.revocation
    }

    /// Makes a key, and says when that was, as the cluster sees it.
    fn make_key(&self, key: &str) -> u64 {
        let client = self.cluster.client(None);
        let made =
            self.cluster.until("a key", || self.cluster.block(client.create_key(&name(key), BTreeMap::new())).ok());
        made.created_ms
    }
}

/// T59: a machine that slept has no lease when it wakes, so its node answers nothing from before, and has no key in memory.
/// Mutated: with a lease on CLOCK_MONOTONIC this fails.
#[test]
fn t59_a_machine_that_was_suspended_wakes_without_a_lease() {
    let mut adrift = Adrift::found(LONG_LEASES);
    adrift.cluster.create("key");
    let ciphertext = adrift.cluster.encrypt(None, "key", b"secret").expect("encrypts");
    let leader = adrift.cluster.leader();
    let follower = NODES.into_iter().find(|node| *node != leader).expect("three nodes");
    for node in [follower, leader.as_str()] {
        adrift.decrypts_everywhere(&ciphertext);
        adrift.cluster.testnet.cut(node).expect("cut");
        assert_eq!(
            adrift.cluster.decrypt(Some(node), &ciphertext).expect("the control: its lease outlives the cut"),
            b"secret"
        );
        adrift.forward(node, Clock::Boot, NAP);
        let error = adrift.cluster.decrypt(Some(node), &ciphertext).expect_err("no lease, no answer");
        assert_eq!(error.code(), Code::NoQuorum, "{error}");
        adrift.cluster.testnet.wait_phase(node, Phase::Open).expect("says so");
        let log = adrift.cluster.testnet.directory().log(node);
        adrift.cluster.until("the keys to be wiped", || {
            fs::read_to_string(&log).ok()?.contains("every key is wiped from memory").then_some(())
        });
        adrift.cluster.testnet.heal().expect("heals");
        adrift.cluster.testnet.wait_serving(&[node]).expect("serves again");
        adrift.decrypts_everywhere(&ciphertext);
    }
}

/// A machine that starts has a clock near zero, whatever it was before.
#[test]
fn a_node_boots_on_a_machine_that_has_just_started() {
    let mut adrift = Adrift::found("");
    adrift.cluster.create("key");
    let ciphertext = adrift.cluster.encrypt(None, "key", b"secret").expect("encrypts");
    let uptime = fs::read_to_string("/proc/uptime").expect("the kernel says it");
    let seconds = uptime.split('.').next().and_then(|seconds| seconds.parse().ok()).expect("seconds");
    adrift.cluster.kill_all();
    NODES.iter().for_each(|node| adrift.back(node, Clock::Boot, Duration::from_secs(seconds)));
    adrift.cluster.start(&NODES);
    adrift.cluster.testnet.wait_serving(&NODES).expect("boots");
    adrift.decrypts_everywhere(&ciphertext);
}

/// Clients never stop while machines sleep, and while wall clocks are a year ahead or behind, on the leader and on a follower.
/// Every error passes, time in the state never goes back, and every acknowledged ciphertext opens. Mutated: if the state takes
/// the leader's clock as it is, this fails.
#[test]
fn clients_notice_no_clock_that_jumps() {
    let mut adrift = Adrift::found("");
    adrift.cluster.create("key");
    let ciphertext = adrift.cluster.encrypt(None, "key", b"secret").expect("encrypts");
    let options = Options { clients: 4, rest: Duration::from_millis(20), ..Options::default() };
    let load =
        adrift.cluster.block(Load::start(&adrift.cluster.file(), &adrift.cluster.token(), &options)).expect("starts");
    let goes_on = |cluster: &TestCluster, when: &str| {
        let before = load.tally().done;
        cluster.until(&format!("clients to go on {when}"), || (load.tally().done >= before + MORE).then_some(()));
        println!("{when}: {:?}", load.tally());
    };
    goes_on(&adrift.cluster, "with clocks that are right");
    let mut times = vec![adrift.make_key("made-at-first")];
    let leader = adrift.cluster.leader();
    let follower = NODES.into_iter().find(|node| *node != leader).expect("three nodes");
    for node in [leader.as_str(), follower] {
        adrift.forward(node, Clock::Boot, NAP);
        goes_on(&adrift.cluster, &format!("after {node} slept"));
        adrift.cluster.testnet.wait_serving(&NODES).expect("all serve again");
        adrift.forward(node, Clock::Wall, YEAR);
        times.push(adrift.make_key(&format!("made-ahead/{node}")));
        goes_on(&adrift.cluster, &format!("with {node} a year ahead"));
        adrift.back(node, Clock::Wall, YEAR);
        times.push(adrift.make_key(&format!("made-behind/{node}")));
        goes_on(&adrift.cluster, &format!("with {node} a year behind"));
        adrift.cluster.testnet.kill(node).expect("dies");
        adrift.cluster.start(&[node]);
        adrift.cluster.testnet.wait_serving(&NODES).expect("boots with that clock");
        adrift.decrypts_everywhere(&ciphertext);
        adrift.forward(node, Clock::Wall, Duration::ZERO);
    }
    // Another node may lead by now.
    NODES.iter().for_each(|node| adrift.forward(node, Clock::Wall, 2 * YEAR));
    times.push(adrift.make_key("made-two-years-ahead"));
    NODES.iter().for_each(|node| adrift.back(node, Clock::Wall, YEAR));
    times.push(adrift.make_key("made-at-last"));
    assert!(times.is_sorted(), "time went back: {times:?}");
    assert!(times.last() >= Some(&(times[0] + YEAR.as_millis() as u64)), "the control: clocks count: {times:?}");

    let outcome = adrift.cluster.block(load.stop());
    assert_eq!(outcome.unexpected, Vec::<String>::new());
    for node in NODES {
        let unopened = adrift.cluster.block(outcome.open_all(&adrift.cluster.client(Some(node))));
        assert_eq!(unopened, Vec::<String>::new(), "{node}");
    }
}

/// A revocation returns although the clock of a leader was a day ahead once, and the state has stood at that time since.
/// Mutated: by the time in the state the leases are over a day later.
#[test]
fn a_revocation_is_over_although_a_clock_was_ahead() {
    let adrift = Adrift::found("");
    NODES.iter().for_each(|node| adrift.forward(node, Clock::Wall, DAY));
    let ahead = adrift.make_key("made-ahead");
    NODES.iter().for_each(|node| adrift.forward(node, Clock::Wall, Duration::ZERO));
    assert!(adrift.make_key("made-since") >= ahead, "the control: time never goes back");
    let (leader, follower) = (adrift.cluster.leader(), adrift.follower());
    let operation = adrift.revoke(&leader, follower);
    adrift.cluster.until("its leases to be over", || {
        adrift.revocation(&leader, operation).filter(|revocation| revocation.leases_over)
    });
}

/// Wall clocks that step forward end no lease: as long as a node that is revoked may answer, no client is told that
/// it does not. The clock that counts while a machine sleeps does end it. Mutated: by the wall clock the leases are over while the node answers.
#[test]
fn no_wall_clock_that_steps_forward_ends_the_leases_of_a_revoked_node() {
    let adrift = Adrift::found(LONG_LEASES);
    adrift.cluster.create("key");
    let ciphertext = adrift.cluster.encrypt(None, "key", b"secret").expect("encrypts");
    adrift.decrypts_everywhere(&ciphertext);
    // The one that is cut off would wait for the leader as long as it has a lease.
    let (leader, revoked) = (adrift.cluster.leader(), adrift.follower());
    adrift.cluster.testnet.cut(revoked).expect("cut");
    let operation = adrift.revoke(&leader, revoked);
    adrift.cluster.until("the revocation to be done", || {
        let revocation = adrift.revocation(&leader, operation)?;
        (revocation.decisive && revocation.names_are_safe()).then_some(())
    });
    NODES.iter().filter(|node| **node != revoked).for_each(|node| adrift.forward(node, Clock::Wall, YEAR));
    let told = adrift.cluster.until("the leader", || adrift.revocation(&leader, operation));
    let opened = adrift.cluster.decrypt(Some(revoked), &ciphertext).expect("the control: its lease outlives all this");
    assert_eq!(opened, b"secret");
    assert!(told.decisive && !told.leases_over, "{told:?}");

    let mut slept = Duration::ZERO;
    adrift.cluster.until("its leases to be over", || {
        // A new leader counts from the beginning.
        slept += NAP;
        NODES.iter().for_each(|node| adrift.forward(node, Clock::Boot, slept));
        adrift.revocation(&leader, operation).filter(|revocation| revocation.leases_over)
    });
}

/// A member that was away erases its old share key in an epoch of its own, although a clock was a day ahead when the last one
/// became ACTIVE. Mutated: by the time in the state that epoch comes a day later.
#[test]
fn a_member_that_was_away_is_rekeyed_although_a_clock_was_ahead() {
    let mut adrift = Adrift::of(Cluster::builder().spares(1).settings("[timing]\nrekey_pause_ms = 2000\n"));
    let over = |cluster: &TestCluster| {
        let status = cluster.block(cluster.client(None).status()).ok()?;
        status.operation.is_none().then_some(status.epoch.0)
    };
    NODES.iter().for_each(|node| adrift.forward(node, Clock::Wall, DAY));
    let away = adrift.follower();
    adrift.cluster.testnet.kill(away).expect("dies");
    adrift.cluster.testnet.join("n4").expect("joins");
    adrift.cluster.until("the join", || over(&adrift.cluster).filter(|epoch| *epoch == 2));
    NODES.iter().for_each(|node| adrift.forward(node, Clock::Wall, Duration::ZERO));
    adrift.cluster.start(&[away]);
    adrift.cluster.until("an epoch of its own", || over(&adrift.cluster).filter(|epoch| *epoch == 3));
}

/// What a member has the leader propose is dated by the leader. Mutated: with the time that the member says, the state is a
/// year ahead for ever.
#[test]
fn the_clock_of_a_member_that_follows_moves_no_time() {
    let adrift = Adrift::found("[timing]\nrenew_lock_after_ms = 500\nrenew_lock_every_ms = 500\n");
    let before = adrift.make_key("made-before");
    let follower = adrift.follower();
    adrift.forward(follower, Clock::Wall, YEAR);
    // The member reports each lock that it makes.
    let generation = || {
        let nodes = adrift.cluster.block(adrift.cluster.client(None).nodes()).ok()?;
        let member = nodes.into_iter().find(|node| node.name.as_str() == follower)?;
        Some(member.state?.lock_generation)
    };
    let made = adrift.cluster.until("its generation", generation);
    adrift.cluster.until("two more locks", || generation().filter(|generation| *generation > made + 1));
    let client = adrift.cluster.client(Some(follower));
    adrift.cluster.until("an invitation", || adrift.cluster.block(client.invite_node(None, NAP)).ok());
    assert_ne!(adrift.cluster.leader(), follower, "the control: it asked another one");
    let after = adrift.make_key("made-after");
    assert!((before..before + DAY.as_millis() as u64).contains(&after), "{before} {after}");
}

/// An invitation expires although time in the state is a day ahead of every clock. Mutated: with the wall clocks alone it is good
/// for that day.
#[test]
fn an_invitation_expires_although_a_clock_was_ahead() {
    let mut adrift = Adrift::of(Cluster::builder().spares(1));
    NODES.iter().for_each(|node| adrift.forward(node, Clock::Wall, DAY));
    adrift.make_key("made-ahead");
    let ciphertext = adrift.cluster.encrypt(None, "made-ahead", b"secret").expect("encrypts");
    adrift.decrypts_everywhere(&ciphertext);
    NODES.iter().for_each(|node| adrift.forward(node, Clock::Wall, Duration::ZERO));
    let client = adrift.cluster.client(None);
    let invitation = adrift.cluster.block(client.invite_node(None, NAP)).expect("an invitation");
    let invitation = String::from_utf8(invitation.expose().to_vec()).expect("text");
    NODES.iter().for_each(|node| adrift.forward(node, Clock::Boot, Duration::from_secs(3_600)));
    adrift.cluster.start(&["n4"]);
    let late = join(&adrift.cluster.testnet, "n4", &invitation).outcome(PATIENCE).expect("ends");
    assert_eq!(late.code, Some(4), "{}", late.stderr);
    assert!(late.stderr.contains("has expired") && late.stderr.contains("node invite"), "{}", late.stderr);
}

/// An invitation lasts for an hour by the clock of the first founder. A node that comes too late is told so, and what helps.
#[test]
fn an_invitation_expires_by_the_clock_of_the_first_founder() {
    let mut testnet = Cluster::builder().nodes(2).start().expect("starts");
    let shim = Shim::build().expect("a C compiler");
    let clocks = shim.clocks("n1").expect("a file");
    testnet.kill("n1").expect("ends");
    testnet.set_environment("n1", shim.with_clocks(&clocks)).expect("a node");
    testnet.start("n1").expect("starts");
    let options = ["--founders", "2", "--accept-no-redundancy"];
    let first = init(&testnet, "n1", &options);
    let expired = invitations(&first, 1).remove(0);
    clocks.forward(Clock::Wall, Duration::from_secs(3_700)).expect("moves");
    let late = join(&testnet, "n2", &expired).outcome(PATIENCE).expect("ends");
    assert_eq!(late.code, Some(4), "{}", late.stderr);
    assert!(late.stderr.contains("has expired") && late.stderr.contains("cluster init"), "{}", late.stderr);
    drop(first);
    let again = init(&testnet, "n1", &options);
    let fresh = invitations(&again, 1).remove(0);
    // Set back, it only lasts longer.
    clocks.back(Clock::Wall, YEAR).expect("moves");
    join(&testnet, "n2", &fresh).success(PATIENCE).expect("joins");
    again.success(PATIENCE).expect("founded");
    testnet.wait_all_serving().expect("serves");
}
