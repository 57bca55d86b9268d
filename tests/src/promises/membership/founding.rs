//! Founding: an invitation is for one node, a founder that dies continues where it was, and no cluster is founded twice.

use quorate_client::wire::Phase;
use quorate_testnet::Cluster;
use quorate_testnet::procs::Tool;

use crate::harness::commands::{init, invitations, join};
use crate::harness::{PATIENCE, TestCluster};

fn fails(tool: Tool, code: i32, says: &str) {
    let finished = tool.outcome(PATIENCE).expect("ends");
    assert_eq!(finished.code, Some(code), "{}", finished.stderr);
    assert!(finished.stderr.contains(says), "{}", finished.stderr);
    assert!(finished.stderr.contains("hint: "), "an error says what to do: {}", finished.stderr);
}

#[test]
fn a_founded_cluster_is_not_founded_again() {
    let cluster = TestCluster::found();
    fails(init(&cluster.testnet, "n1", &["--founders", "3"]), 6, "belongs to a cluster already");
    fails(init(&cluster.testnet, "n2", &["--founders", "3"]), 6, "belongs to a cluster already");
}

#[test]
fn other_options_while_founding_is_under_way_are_refused() {
    let testnet = Cluster::builder().start().expect("starts");
    let first = init(&testnet, "n1", &["--founders", "3"]);
    invitations(&first, 2);
    fails(init(&testnet, "n1", &["--founders", "5"]), 6, "under way with other options");
    fails(init(&testnet, "n1", &["--founders", "3", "--threshold", "3"]), 6, "under way with other options");
}

#[test]
fn impossible_options_are_refused() {
    let testnet = Cluster::builder().start().expect("starts");
    for options in [
        &["--founders", "2"][..],
        &["--founders", "1"],
        &["--founders", "3", "--threshold", "1"],
        &["--founders", "12"],
    ] {
        let finished = init(&testnet, "n1", options).outcome(PATIENCE).expect("ends");
        assert!(finished.code != Some(0), "{options:?}: {}", finished.stderr);
        assert!(
            finished.stderr.starts_with("quorate: ") || finished.stderr.starts_with("error: "),
            "{}",
            finished.stderr
        );
    }
}

#[test]
fn an_invitation_is_for_one_node() {
    let mut testnet = Cluster::builder().start().expect("starts");
    let first = init(&testnet, "n1", &["--founders", "3"]);
    let invited = invitations(&first, 2);
    let second = join(&testnet, "n2", &invited[0]);
    testnet.wait_phase("n2", Phase::Joining).expect("joins");
    quorate_testnet::wait_until("n2 has proved its invitation", PATIENCE, || {
        testnet.status("n2").ok()?.operation.filter(|operation| operation.step.contains("other founders"))
    })
    .expect("in time");
    fails(join(&testnet, "n3", &invited[0]), 4, "used by another node");
    // It is where it began, and the right invitation is welcome.
    join(&testnet, "n3", &invited[1]).success(PATIENCE).expect("joins");
    second.success(PATIENCE).expect("joins");
    first.success(PATIENCE).expect("founded");
}

#[test]
fn a_foreign_or_damaged_invitation_is_refused() {
    let here = Cluster::builder().start().expect("starts");
    let there = Cluster::builder().start().expect("starts");
    let (first, foreign) = (init(&here, "n1", &["--founders", "3"]), init(&there, "n1", &["--founders", "3"]));
    let (ours, theirs) = (invitations(&first, 2), invitations(&foreign, 2));
    for damaged in [&ours[0][..ours[0].len() - 1], &format!("{}!", ours[0]), &ours[0][1..], "", "hello"] {
        let finished = join(&here, "n2", damaged).outcome(PATIENCE).expect("ends");
        assert!(matches!(finished.code, Some(1 | 2)), "{damaged}: {}", finished.stderr);
        assert!(finished.stderr.contains("hint: "), "{damaged}: {}", finished.stderr);
    }
    // An invitation that was replaced by a repeated `init` is unknown from then on.
    let again = init(&here, "n1", &["--founders", "3"]);
    let fresh = invitations(&again, 2);
    fails(join(&here, "n2", &ours[0]), 4, "does not know this invitation");
    assert!(fresh.iter().all(|invitation| !ours.contains(invitation) && !theirs.contains(invitation)));
    // A node that was given the invitation of another cluster by mistake waits there; the right one brings it here.
    let mut here = here;
    let mistaken = join(&here, "n2", &theirs[0]);
    here.wait_phase("n2", Phase::Joining).expect("joins the other cluster");
    drop(mistaken);
    let joining = [join(&here, "n2", &fresh[0]), join(&here, "n3", &fresh[1])];
    joining.into_iter().for_each(|join| drop(join.success(PATIENCE).expect("joins")));
    here.wait_serving(&["n1", "n2", "n3"]).expect("founded");
}

/// The first founder dies after one invitation was proved, and an invited one before its lock is durable: both come back
/// and founding ends well.
#[test]
fn a_founder_that_dies_half_way_is_started_again_and_finishes() {
    let mut testnet = Cluster::builder().start().expect("starts");
    let first = init(&testnet, "n1", &["--founders", "3"]);
    let invited = invitations(&first, 2);
    let second = join(&testnet, "n2", &invited[0]);
    quorate_testnet::wait_until("n2 has proved its invitation", PATIENCE, || {
        testnet.status("n2").ok()?.operation.filter(|operation| operation.step.contains("other founders"))
    })
    .expect("in time");
    testnet.kill("n1").expect("dies");
    testnet.kill("n2").expect("dies");
    drop((first, second));
    testnet.start("n1").expect("starts");
    testnet.start("n2").expect("starts");
    let third = join(&testnet, "n3", &invited[1]);
    // Nothing needs to be typed again for founding to end.
    third.success(PATIENCE).expect("joins");
    testnet.wait_serving(&["n1", "n2", "n3"]).expect("all serve");
}

/// Repeated while founding is unfinished, the command goes on, keeps the token, and draws new invitations.
#[test]
fn init_can_be_repeated_until_the_cluster_is_founded() {
    let mut testnet = Cluster::builder().start().expect("starts");
    let first = init(&testnet, "n1", &["--founders", "3"]);
    invitations(&first, 2);
    let token = std::fs::read(testnet.directory().token()).expect("a token");
    drop(first);
    testnet.kill("n1").expect("dies");
    testnet.start("n1").expect("starts");
    let again = init(&testnet, "n1", &["--founders", "3"]);
    let invited = invitations(&again, 2);
    let others: Vec<_> = ["n2", "n3"].iter().zip(&invited).map(|(node, text)| join(&testnet, node, text)).collect();
    others.into_iter().for_each(|join| drop(join.success(PATIENCE).expect("joins")));
    again.success(PATIENCE).expect("founded");
    assert_eq!(std::fs::read(testnet.directory().token()).expect("a token"), token, "the token file is kept");
    let keys = testnet.run(["key", "list"], b"").expect("the token and the client file work");
    assert!(!String::from_utf8_lossy(&keys).contains("error"));
}

/// Deaths after the locks are durable: the founders unlock each other although there is no cluster yet.
#[test]
fn founders_that_die_again_and_again_still_found() {
    let mut testnet = Cluster::builder().start().expect("starts");
    let first = init(&testnet, "n1", &["--founders", "3"]);
    let invited = invitations(&first, 2);
    let others: Vec<_> = ["n2", "n3"].iter().zip(&invited).map(|(node, text)| join(&testnet, node, text)).collect();
    let seed = u64::from_be_bytes(std::array::from_fn(|_| {
        let mut byte = [0];
        getrandom::fill(&mut byte).expect("randomness");
        byte[0]
    }));
    println!("seed {seed}");
    for round in 0..6u32 {
        let node = ["n1", "n2", "n3"][(seed.rotate_left(round * 7) % 3) as usize];
        std::thread::sleep(std::time::Duration::from_millis(seed.rotate_left(round * 11) % 300));
        testnet.kill(node).expect("dies");
        testnet.start(node).expect("starts");
    }
    testnet.wait_serving(&["n1", "n2", "n3"]).expect("founded all the same");
    drop((first, others));
    let status = quorate_testnet::wait_until("status", PATIENCE, || testnet.status("n1").ok()?.full).expect("status");
    assert_eq!((status.threshold, status.voters, status.epoch.0), (2, 3, 1));
}

/// All nodes lose power when the lock of the first founder is durable and no other lock is. The holders of its lock keys must
/// still know whose keys they hold, and who they are themselves. How far the others come depends on the machine, so it is
/// tried more than once.
#[test]
fn power_lost_between_the_first_lock_and_the_others_is_survived() {
    for nodes in [2, 3, 3, 3] {
        let mut testnet = Cluster::builder().nodes(nodes).start().expect("starts");
        let (first, others) = begin(&testnet, nodes);
        logged(&testnet, "n1", "lock durable");
        let names = testnet.names();
        names.iter().for_each(|node| testnet.kill(node).expect("dies"));
        names.iter().for_each(|node| testnet.start(node).expect("starts"));
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        testnet.wait_serving(&names).expect("founded all the same");
        drop((first, others));
    }
}

/// Once the first founder has started Raft, a quorum is enough, as it is ever after: the third disk may be gone.
#[test]
fn after_raft_has_begun_founding_needs_a_quorum_and_not_everybody() {
    let mut testnet = Cluster::builder().start().expect("starts");
    let (first, others) = begin(&testnet, 3);
    logged(&testnet, "n1", "starting the cluster");
    testnet.kill("n3").expect("dies");
    testnet.kill("n1").expect("dies");
    testnet.start("n1").expect("starts");
    testnet.wait_serving(&["n1", "n2"]).expect("two of three serve");
    drop((first, others));
}

/// Nine nodes are the most that may found a cluster; a key of theirs needs five.
#[test]
fn the_largest_cluster_founds_and_serves() {
    let cluster = TestCluster::of_nodes(9);
    cluster.create("key");
    let ciphertext = cluster.encrypt(Some("n1"), "key", b"secret").expect("encrypts");
    for node in cluster.testnet.names() {
        assert_eq!(cluster.decrypt(Some(&node), &ciphertext).expect("decrypts"), b"secret", "{node}");
    }
    let status = cluster.block(cluster.client(None).status()).expect("status");
    assert_eq!((status.threshold, status.theft_threshold, status.voters), (5, 5, 9));
}

/// `init` at n1 and `join` everywhere else.
fn begin(testnet: &Cluster, nodes: u8) -> (Tool, Vec<Tool>) {
    let founders = nodes.to_string();
    let mut options = vec!["--founders", &founders];
    if nodes == 2 {
        options.push("--accept-no-redundancy");
    }
    let first = init(testnet, "n1", &options);
    let invited = invitations(&first, usize::from(nodes) - 1);
    let names = testnet.names();
    let others = names[1..].iter().zip(&invited).map(|(node, text)| join(testnet, node, text)).collect();
    (first, others)
}

fn logged(testnet: &Cluster, node: &str, words: &str) {
    let log = testnet.directory().log(node);
    quorate_testnet::wait_until(format!("{node} to say {words:?}"), PATIENCE, || {
        std::fs::read_to_string(&log).ok()?.contains(words).then_some(())
    })
    .expect("in time");
}
