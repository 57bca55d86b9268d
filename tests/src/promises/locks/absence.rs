//! The absence window: a node that was away for too long is unlocked only after an operator allows it. A whole site without
//! power does not count as an absence.

use std::time::Duration;

use quorate_client::NodeName;
use quorate_client::conn::Lane;
use quorate_client::identity::Protocol;
use quorate_client::wire::Phase;
use quorate_node::vault;
use quorate_shares::ids::NodeId;
use quorate_shares::lock::{LockOpenCode, LockOpenReply};
use quorate_testnet::Cluster;
use quorate_testnet::procs::Tool;

use crate::harness::impostor::Impostor;
use crate::harness::{PATIENCE, TestCluster};

fn with_settings(settings: &str) -> TestCluster {
    TestCluster::of(Cluster::builder().settings(format!("[timing]\nrenew_lock_after_ms = 3600000\n{settings}")))
}

/// What `node` remembers of the absence of `peer`, in seconds.
fn away_s(cluster: &TestCluster, node: &str, peer: NodeId) -> u32 {
    let stolen = tempfile::tempdir().expect("a directory");
    let disk = cluster.testnet.steal(&[node], stolen.path()).expect("steals").remove(0);
    vault::inspect(&disk).expect("a vault").held_for(peer).map_or(0, |held| held.away_s)
}

fn quorate(cluster: &TestCluster, node: &str, typed: &str) -> String {
    let mut command = cluster.testnet.quorate(typed.split(' '));
    command.env("QUORATE_SOCKET", cluster.testnet.directory().socket(node));
    let result = Tool::start(command, b"").expect("runs").success(PATIENCE).expect("succeeds");
    String::from_utf8(result).expect("text")
}

/// What `to` answers to a thief with the disk of a node that is down.
fn code(cluster: &TestCluster, thief: &Impostor, to: &str) -> LockOpenCode {
    let request = thief.lock_open(cluster.file().node(to).expect("a node").id);
    cluster.block(async {
        let boot = thief.dial(cluster, to, Protocol::Boot).await.expect("the boot door");
        let answer = boot.call(Lane::Ordinary, &request.encode(), PATIENCE).await.expect("answers");
        LockOpenReply::parse(&answer).expect("a reply").code()
    })
}

fn alarm(cluster: &TestCluster, code: &str) {
    cluster.until(&format!("the alarm {code} about n3"), || is_open(cluster, code)?.then_some(()));
}

fn is_open(cluster: &TestCluster, code: &str) -> Option<bool> {
    let status = cluster.block(cluster.client(None).status()).ok()?;
    let about = |name: &NodeName| name.as_str() == "n3";
    Some(status.alarms.iter().any(|alarm| alarm.code == code && alarm.node.as_ref().is_some_and(about)))
}

/// For how long n3 is away, as `node` shows it.
fn away_ms(cluster: &TestCluster, node: &str) -> Option<u64> {
    let status = cluster.block(cluster.client(Some(node)).status()).ok()?;
    status.nodes.into_iter().find(|node| node.name.as_str() == "n3")?.away_ms
}

/// T19: beyond the window the peers refuse, a restart of one of them included, and say so; one command lets the node in.
/// From half of the window on the status and an alarm warn of it. Mutated: a count that is in memory only, a refusal that `admit`
/// does not end, or a warning that stays.
#[test]
fn t19_a_node_that_was_away_too_long_is_admitted_by_an_operator() {
    let mut cluster = with_settings("absence_window_ms = 6000\n");
    let third = cluster.file().node("n3").expect("a node").id;
    let thief = Impostor::steal(&cluster, "n3");
    assert_eq!(away_ms(&cluster, "n1"), None, "the control");
    cluster.testnet.kill("n3").expect("dies");
    alarm(&cluster, "away");
    assert_eq!(is_open(&cluster, "away_too_long"), Some(false), "the warning comes first");
    let shown = cluster.until("n1 to show the absence", || away_ms(&cluster, "n1"));
    assert!((3_000..60_000).contains(&shown), "from half of the window on: {shown}");
    for peer in ["n1", "n2"] {
        cluster.until(&format!("{peer} to notice the absence"), || (away_s(&cluster, peer, third) >= 6).then_some(()));
    }
    cluster.testnet.kill("n1").expect("dies");
    cluster.start(&["n1"]);
    cluster.testnet.wait_serving(&["n1", "n2"]).expect("n1 was not away for long");
    for peer in ["n1", "n2"] {
        assert_eq!(code(&cluster, &thief, peer), LockOpenCode::AwayTooLong, "{peer}");
    }
    alarm(&cluster, "away_too_long");
    cluster.start(&["n3"]);
    let waiting = cluster.until("n3 to say why it is locked", || {
        let status = cluster.testnet.status("n3").ok()?;
        assert_eq!(status.public.phase, Phase::Locked);
        status.operation
    });
    assert!(waiting.step.contains("this node was away for too long"), "{waiting:?}");

    assert_eq!(quorate(&cluster, "n1", "node admit n3"), "admitted n3 at n1, n2\n");
    cluster.testnet.wait_serving(&["n3"]).expect("is let in");
    alarm(&cluster, "admitted");
    cluster.until("the warning to end by itself", || (is_open(&cluster, "away") == Some(false)).then_some(()));
    assert_eq!(away_ms(&cluster, "n1"), None);
    for peer in ["n1", "n2"] {
        cluster.until(&format!("{peer} to forget the absence"), || (away_s(&cluster, peer, third) == 0).then_some(()));
    }
}

/// T19: a sealed node serves no client, and still opens the locks of others. So it counts, too. Mutated: it counts only while it serves,
/// and a thief goes to it.
#[test]
fn t19_a_sealed_node_counts_an_absence() {
    let mut cluster = with_settings("absence_window_ms = 2000\n");
    let third = cluster.file().node("n3").expect("a node").id;
    quorate(&cluster, "n1", "node seal n1");
    let thief = Impostor::steal(&cluster, "n3");
    cluster.testnet.kill("n3").expect("dies");
    cluster.until("n1 to notice the absence", || (away_s(&cluster, "n1", third) >= 2).then_some(()));
    assert_eq!(code(&cluster, &thief, "n1"), LockOpenCode::AwayTooLong);
}

/// T19: a whole site is without a quorum for ten times the window, and comes back by itself. n1 runs all the time, and counts no
/// absence because it does not serve; without its piece n2 would stay locked. Mutated: a node counts in every phase.
#[test]
fn t19_an_outage_of_the_whole_site_does_not_count() {
    const WINDOW: Duration = Duration::from_millis(2_000);
    let mut cluster = with_settings("absence_window_ms = 2000\nlease_ms = 400\nlease_tick_ms = 100\n");
    cluster.create("key");
    let ciphertext = cluster.encrypt(None, "key", b"secret").expect("encrypts");
    cluster.testnet.kill("n2").expect("dies");
    cluster.testnet.kill("n3").expect("dies");
    cluster.testnet.wait_phase("n1", Phase::Open).expect("its lease ends long before the window");
    // An outage is time that passes.
    std::thread::sleep(10 * WINDOW);
    cluster.start(&["n2"]);
    cluster.testnet.wait_serving(&["n1", "n2"]).expect("unattended");
    assert_eq!(cluster.decrypt(Some("n2"), &ciphertext).expect("decrypts"), b"secret");
}

/// T19: n3 is away beyond the window, and then n1 dies. There is no quorum and no leader: the socket of n2 lets n3 in.
#[test]
fn t19_without_a_quorum_the_socket_of_a_member_admits() {
    let mut cluster = with_settings("absence_window_ms = 6000\n");
    cluster.create("key");
    let ciphertext = cluster.encrypt(None, "key", b"secret").expect("encrypts");
    let third = cluster.file().node("n3").expect("a node").id;
    cluster.testnet.kill("n3").expect("dies");
    cluster.until("n2 to notice the absence", || (away_s(&cluster, "n2", third) >= 6).then_some(()));
    cluster.testnet.kill("n1").expect("dies");
    cluster.testnet.wait_phase("n2", Phase::Open).expect("no quorum");
    cluster.start(&["n3"]);
    let refused = cluster.until("n3 to be refused", || cluster.testnet.status("n3").ok()?.operation);
    assert!(refused.waiting_for.contains(&"n2".to_owned()), "{refused:?}");
    assert_eq!(quorate(&cluster, "n2", "node admit n3 --local"), "admitted n3 at n2\n");
    cluster.testnet.wait_serving(&["n2", "n3"]).expect("n3 is let in, and there is a quorum again");
    assert_eq!(cluster.decrypt(Some("n3"), &ciphertext).expect("decrypts"), b"secret");
    let client = cluster.client(None);
    let status = cluster.block(client.status()).expect("status");
    assert!(status.alarms.iter().any(|alarm| alarm.code == "admitted"), "{:?}", status.alarms);
}
