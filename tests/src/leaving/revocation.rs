//! A revocation: of a node that is dead, alive, or leading; of three, four and five.

use std::time::{Duration, Instant};

use quorate_client::Context;
use quorate_testnet::{Cluster, wait_until};

use super::{LEASE, all_open, seal_many, settled, typed};
use crate::site::{PATIENCE, Site};

/// How long a command may return after the last lease from before can have run out.
const SLACK: Duration = Duration::from_secs(1);
const LINES: [&str; 3] = ["decisive", "old disk: dead", "names safe: locks renewed"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Dead,
    Alive,
    Leading,
}

/// Revokes one of `nodes`, and returns what the command said.
fn revoke_one(nodes: u8, what: Victim) {
    let mut site = Site::of(Cluster::builder().nodes(nodes));
    let sealed = seal_many(&site, 20);
    let leader = site.leader();
    let names = site.cluster.names();
    let follows = |name: &&String| **name != leader;
    let victim =
        if what == Victim::Leading { leader.clone() } else { names.iter().find(follows).cloned().expect("one") };
    let stay: Vec<&str> = names.iter().filter(|name| **name != victim).map(String::as_str).collect();
    // Its memory is warm, and its clients still reach it.
    let client = site.hasty(&victim);
    let asks = |site: &Site| site.block(client.decrypt(&sealed[0].ciphertext, &Context::empty()));
    assert!(asks(&site).is_ok(), "the control: {victim} serves");
    if what == Victim::Dead {
        site.cluster.kill(&victim).expect("dies");
    }

    let begin = Instant::now();
    let command = typed(&site, &["node", "revoke", &victim, "--yes"]);
    let first = || command.so_far().lines().any(|line| line == LINES[0]).then(Instant::now);
    let decisive = wait_until("the first line", PATIENCE, first);
    let decisive = decisive.unwrap_or_else(|error| panic!("{error}: {}", command.so_far()));
    let finished = command.outcome(PATIENCE).expect("it ends");
    let ended = Instant::now();
    println!("{nodes} nodes, {what:?}: decisive after {:?}, ended after {:?}", decisive - begin, ended - begin);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    // What comes before the first line is an election at most, and takes as long as the machine is slow.
    assert!(ended - decisive < LEASE + SLACK, "{:?}: {}", ended - decisive, finished.stderr);
    // No lease from before runs any more, so it has refused for a moment.
    assert!(asks(&site).is_err(), "{victim} still serves when its revocation is said to be effective");

    let told: Vec<_> =
        finished.stderr.lines().filter(|line| LINES.iter().any(|known| line.starts_with(known))).collect();
    let in_order = told.iter().zip(LINES).all(|(told, known)| told.starts_with(known));
    let all = told.len() == LINES.len() || finished.stderr.contains("the rest goes on by itself");
    assert!(!told.is_empty() && in_order && all, "{}", finished.stderr);
    let status = settled(&site, &stay, 2);
    let majority = (nodes - 1) / 2 + 1;
    assert_eq!((status.threshold, status.theft_threshold), (majority, majority));
    all_open(&site, &stay, &sealed);
    site.create("afterwards");
}

fn revoke_of(nodes: u8) {
    for victim in [Victim::Dead, Victim::Alive, Victim::Leading] {
        revoke_one(nodes, victim);
    }
}

/// Mutated: a command that returns as soon as the revocation is decisive finds the node still serving.
#[test]
fn one_of_three_is_revoked() {
    revoke_of(3);
}

#[test]
fn one_of_four_is_revoked() {
    revoke_of(4);
}

#[test]
fn one_of_five_is_revoked() {
    revoke_of(5);
}
