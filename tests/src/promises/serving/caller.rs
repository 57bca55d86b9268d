//! Who asked is known wherever a request is decided, also at a leader that another node asks for a client.

use std::fs;

use quorate_client::{Credential, CredentialKind};
use quorate_testnet::Cluster;
use quorate_testnet::procs::Tool;

use crate::harness::{PATIENCE, TestCluster};

const NODES: [&str; 3] = ["n1", "n2", "n3"];

fn run(cluster: &TestCluster, node: &str, typed: &str) {
    let mut command = cluster.testnet.quorate(typed.split(' '));
    command.env("QUORATE_SOCKET", cluster.testnet.directory().socket(node));
    let finished = Tool::start(command, b"").expect("runs").outcome(PATIENCE).expect("ends");
    assert_eq!(finished.code, Some(0), "{typed} at {node}: {}", finished.stderr);
}

/// The audit lines of a node that name `request`.
fn lines(cluster: &TestCluster, node: &str, request: &str) -> Vec<String> {
    let log = fs::read_to_string(cluster.testnet.directory().log(node)).expect("its log");
    let lines = log.lines().filter(|line| line.contains("quorate::audit") && line.contains(request));
    lines.map(str::to_owned).collect()
}

/// Mutated: a node that forwards a caller of its own making, or none, leaves the leader without the token's tag and the address; a
/// leader that takes the forwarding member from the message names the wrong node; a line that names the key shows its name.
#[test]
fn the_leader_knows_the_caller_that_another_node_forwards() {
    let cluster = TestCluster::of(Cluster::builder().nodes(3).environment("QUORATE_LOG", "info,quorate::audit=debug"));
    let leader = cluster.leader();
    let entry = *NODES.iter().find(|node| **node != leader).expect("three nodes");
    let file = cluster.file();
    let entry_id = file.nodes.iter().find(|node| node.name.as_str() == entry).expect("it is in the client file").id;
    run(&cluster, entry, &format!("key create a-secret-name --node {entry}"));

    let here = lines(&cluster, entry, "key.create");
    let there = lines(&cluster, &leader, "key.create");
    let ([here], [there]) = (&here[..], &there[..]) else { panic!("one line each: {here:?}, {there:?}") };
    let caller = |line: &str| {
        let from = line.find("operator ").unwrap_or_else(|| panic!("no caller in {line}"));
        let until = line.find(" at the client door").unwrap_or_else(|| panic!("no door in {line}"));
        line[from..until].to_owned()
    };
    assert_eq!(caller(here), caller(there), "the same key and address");
    assert!(!here.contains("door of node"), "it asked here: {here}");
    assert!(there.contains(&format!("at the client door of node {entry_id}")), "{there}");
    assert!(here.contains("outcome=\"ok\"") && there.contains("outcome=\"ok\""), "{here} {there}");
    assert!(here.contains("key.create key ") && there.contains("key.create key "), "by its uid: {here} {there}");

    // A wrong key leaves a line, too.
    let mut wrong = cluster.testnet.quorate(["key", "list", "--node", entry]);
    wrong
        .env_remove("QUORATE_TOKEN_FILE")
        .env("QUORATE_TOKEN", Credential::random(CredentialKind::Operator).text().as_str());
    let denied = Tool::start(wrong, b"").expect("runs").outcome(PATIENCE).expect("ends");
    assert_eq!(denied.code, Some(4), "{}", denied.stderr);
    let tried = lines(&cluster, entry, "key.list");
    assert!(tried.iter().any(|line| line.contains("unknown key from ") && line.contains("denied")), "{tried:?}");

    // A key that exists is named by its uid.
    run(&cluster, entry, &format!("key show a-secret-name --node {entry}"));
    let [shown] = &lines(&cluster, entry, "key.show")[..] else { panic!("one line") };
    assert!(shown.contains("key.show key ") && !shown.contains("a-secret-name"), "{shown}");

    // Someone at the machine is known by the user id.
    run(&cluster, entry, "node seal");
    let [sealed] = &lines(&cluster, entry, "node.seal")[..] else { panic!("one line") };
    assert!(sealed.contains("owner of the machine from user "), "{sealed}");
    assert!(sealed.contains("at the local door"), "{sealed}");
}
