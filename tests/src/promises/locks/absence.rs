//! The absence window: a node that was away for too long is unlocked only after an operator allows it. A whole site without
//! power does not count as an absence.

use std::time::Duration;

use quorate_client::conn::Lane;
use quorate_client::identity::Protocol;
use quorate_client::wire::Phase;
use quorate_node::vault;
use quorate_shares::ids::NodeId;
use quorate_shares::lock::{LockOpenCode, LockOpenReply};
use quorate_testnet::Cluster;
use quorate_testnet::procs::Tool;

use crate::harness::impostor::Impostor;
use crate::harness::{PATIENCE, Site};

fn site(settings: &str) -> Site {
    Site::of(Cluster::builder().settings(format!("[timing]\nrenew_lock_after_ms = 3600000\n{settings}")))
}

/// What `node` remembers of the absence of `peer`, in seconds.
fn away_s(site: &Site, node: &str, peer: NodeId) -> u32 {
    let stolen = tempfile::tempdir().expect("a directory");
    let disk = site.cluster.steal(&[node], stolen.path()).expect("steals").remove(0);
    vault::inspect(&disk).expect("a vault").held_for(peer).map_or(0, |held| held.away_s)
}

fn quorate(site: &Site, node: &str, typed: &str) -> String {
    let mut command = site.cluster.quorate(typed.split(' '));
    command.env("QUORATE_SOCKET", site.cluster.directory().socket(node));
    let result = Tool::start(command, b"").expect("runs").success(PATIENCE).expect("succeeds");
    String::from_utf8(result).expect("text")
}

/// What `to` answers to a thief with the disk of a node that is down.
fn code(site: &Site, thief: &Impostor, to: &str) -> LockOpenCode {
    let request = thief.lock_open(site.file().node(to).expect("a node").id);
    site.block(async {
        let boot = thief.dial(site, to, Protocol::Boot).await.expect("the boot door");
        let answer = boot.call(Lane::Ordinary, &request.encode(), PATIENCE).await.expect("answers");
        LockOpenReply::parse(&answer).expect("a reply").code()
    })
}

fn alarm(site: &Site, code: &str) {
    let client = site.client(None);
    site.until(&format!("the alarm {code} about n3"), || {
        let status = site.block(client.status()).ok()?;
        let about = |name: &quorate_client::NodeName| name.as_str() == "n3";
        status.alarms.iter().any(|alarm| alarm.code == code && alarm.node.as_ref().is_some_and(about)).then_some(())
    });
}

/// T19: beyond the window the peers refuse, a restart of one of them included, and say so; one command lets the node in.
/// Mutated: a count that is in memory only, or a refusal that `admit` does not end.
#[test]
fn t19_a_node_that_was_away_too_long_is_admitted_by_an_operator() {
    let mut site = site("absence_window_ms = 6000\n");
    let third = site.file().node("n3").expect("a node").id;
    let thief = Impostor::steal(&site, "n3");
    site.cluster.kill("n3").expect("dies");
    for peer in ["n1", "n2"] {
        site.until(&format!("{peer} to notice the absence"), || (away_s(&site, peer, third) >= 6).then_some(()));
    }
    site.cluster.kill("n1").expect("dies");
    site.start(&["n1"]);
    site.cluster.wait_serving(&["n1", "n2"]).expect("n1 was not away for long");
    for peer in ["n1", "n2"] {
        assert_eq!(code(&site, &thief, peer), LockOpenCode::AwayTooLong, "{peer}");
    }
    alarm(&site, "away_too_long");
    site.start(&["n3"]);
    let waiting = site.until("n3 to say why it is locked", || {
        let status = site.cluster.status("n3").ok()?;
        assert_eq!(status.public.phase, Phase::Locked);
        status.operation
    });
    assert!(waiting.step.contains("this node was away for too long"), "{waiting:?}");

    assert_eq!(quorate(&site, "n1", "node admit n3"), "admitted n3 at n1, n2\n");
    site.cluster.wait_serving(&["n3"]).expect("is let in");
    alarm(&site, "admitted");
    for peer in ["n1", "n2"] {
        site.until(&format!("{peer} to forget the absence"), || (away_s(&site, peer, third) == 0).then_some(()));
    }
}

/// T19: a whole site is without a quorum for ten times the window, and comes back by itself. n1 runs all the time, and counts no
/// absence because it does not serve; without its piece n2 would stay locked. Mutated: a node counts in every phase.
#[test]
fn t19_an_outage_of_the_whole_site_does_not_count() {
    const WINDOW: Duration = Duration::from_millis(2_000);
    let mut site = site("absence_window_ms = 2000\nlease_ms = 400\nlease_tick_ms = 100\n");
    site.create("key");
    let ciphertext = site.encrypt(None, "key", b"secret").expect("encrypts");
    site.cluster.kill("n2").expect("dies");
    site.cluster.kill("n3").expect("dies");
    site.cluster.wait_phase("n1", Phase::Open).expect("its lease ends long before the window");
    // An outage is time that passes.
    std::thread::sleep(10 * WINDOW);
    site.start(&["n2"]);
    site.cluster.wait_serving(&["n1", "n2"]).expect("unattended");
    assert_eq!(site.decrypt(Some("n2"), &ciphertext).expect("decrypts"), b"secret");
}

/// T19: n3 is away beyond the window, and then n1 dies. There is no quorum and no leader: the socket of n2 lets n3 in.
#[test]
fn t19_without_a_quorum_the_socket_of_a_member_admits() {
    let mut site = site("absence_window_ms = 6000\n");
    site.create("key");
    let ciphertext = site.encrypt(None, "key", b"secret").expect("encrypts");
    let third = site.file().node("n3").expect("a node").id;
    site.cluster.kill("n3").expect("dies");
    site.until("n2 to notice the absence", || (away_s(&site, "n2", third) >= 6).then_some(()));
    site.cluster.kill("n1").expect("dies");
    site.cluster.wait_phase("n2", Phase::Open).expect("no quorum");
    site.start(&["n3"]);
    let refused = site.until("n3 to be refused", || site.cluster.status("n3").ok()?.operation);
    assert!(refused.waiting_for.contains(&"n2".to_owned()), "{refused:?}");
    assert_eq!(quorate(&site, "n2", "node admit n3 --local"), "admitted n3 at n2\n");
    site.cluster.wait_serving(&["n2", "n3"]).expect("n3 is let in, and there is a quorum again");
    assert_eq!(site.decrypt(Some("n3"), &ciphertext).expect("decrypts"), b"secret");
    let client = site.client(None);
    let status = site.block(client.status()).expect("status");
    assert!(status.alarms.iter().any(|alarm| alarm.code == "admitted"), "{:?}", status.alarms);
}
