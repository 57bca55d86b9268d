//! A revocation that not everybody has heard of: how far the revoked node comes with those that are cut off together with it.

use std::fs;
use std::time::Instant;

use quorate_client::Context;
use quorate_client::wire::Phase;

use super::{LEASE, all_open, client_of, seal_many, settled, status, typed};
use crate::site::{PATIENCE, Site};

/// Cuts both off from all others. They reach each other.
fn cut_off(site: &Site, together: [&str; 2]) {
    for other in site.cluster.names() {
        for node in together.iter().filter(|_| !together.contains(&other.as_str())) {
            site.cluster.cut_pair(node, &other).expect("nodes");
        }
    }
}

/// T17 of five, whose threshold is three: n5 is revoked while n4 is cut off together with it. That one knows of nothing, and
/// opens the lock of n5 like any; but both together are too few to open it, or to put a key together, and neither serves when
/// its lease is over. Mutated: a lease that never ends; a lock that one peer opens.
#[test]
fn t17_one_that_has_not_heard_of_it_helps_in_vain() {
    let mut site = Site::of_nodes(5);
    let sealed = seal_many(&site, 10);
    let stay = ["n1", "n2", "n3"];
    let serves = |site: &Site, node: &str| {
        let client = site.hasty(node);
        site.block(client.decrypt(&sealed[0].ciphertext, &Context::empty())).is_ok()
    };
    assert!(serves(&site, "n4") && serves(&site, "n5"), "the control");
    cut_off(&site, ["n4", "n5"]);
    let cut = Instant::now();
    let lead = || status(&site, &stay)?.leader.filter(|leader| stay.contains(&leader.as_str()));
    site.until("one of the three to lead", lead);
    let mut revocation = typed(&site, &["node", "revoke", "n5", "--yes"]);
    site.until("the first line", || {
        let said = revocation.so_far();
        let decisive = said.lines().any(|line| line == "decisive");
        assert!(decisive || !revocation.has_ended(), "{said}");
        decisive.then_some(())
    });
    for node in ["n4", "n5"] {
        site.until(&format!("{node} to refuse"), || {
            let asked = cut.elapsed();
            let refused = !serves(&site, node);
            assert!(refused || asked < LEASE, "{node} serves {asked:?} after it was cut off");
            refused.then_some(())
        });
    }

    let log = |site: &Site| fs::read_to_string(site.cluster.directory().log("n4")).expect("a log");
    let before = log(&site).len();
    site.cluster.kill("n5").expect("dies");
    site.start(&["n5"]);
    let gave = |site: &Site| log(site)[before..].contains("opened a piece of a peer's lock");
    site.until("n4 to help, which knows no better", || gave(&site).then_some(()));
    let begin = Instant::now();
    site.until("n5 to ask for a while", || {
        let phase = site.cluster.status("n5").ok()?.public.phase;
        assert_eq!(phase, Phase::Locked, "two of five");
        assert!(!serves(&site, "n4") && !serves(&site, "n5"));
        (begin.elapsed() > LEASE).then_some(())
    });

    site.cluster.heal().expect("heals");
    let finished = revocation.outcome(PATIENCE).expect("ends");
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    settled(&site, &["n1", "n2", "n3", "n4"], 2);
    all_open(&site, &["n1", "n2", "n3", "n4"], &sealed);
    site.until("n5 to be told", || {
        let phase = site.cluster.status("n5").map(|status| status.public.phase).ok()?;
        (phase == Phase::Revoked).then_some(())
    });
}

/// T17 of `nodes`, where two are as many as the threshold or one fewer than a quorum: as long as one that has not heard of it
/// is needed, no revocation is called decisive. It is as soon as that one is back.
fn not_decisive_without(nodes: u8) {
    let site = Site::of_nodes(nodes);
    let sealed = seal_many(&site, 10);
    let names = site.cluster.names();
    let gone = names.last().expect("some").as_str();
    let stale = names[names.len() - 2].as_str();
    let rest: Vec<&str> = names.iter().map(String::as_str).filter(|name| ![gone, stale].contains(name)).collect();
    cut_off(&site, [stale, gone]);
    let no_quorum = || {
        let asked = site.block(client_of(&site, &rest).status());
        asked.ok().filter(|status| !status.quorum).map(drop)
    };
    site.until("the rest to be too few", no_quorum);
    let revocation = typed(&site, &["node", "revoke", gone, "--yes", "--wait"]);
    let begin = Instant::now();
    site.until("a lease to pass", || {
        assert!(!revocation.so_far().contains("decisive"), "{}", revocation.so_far());
        (begin.elapsed() > LEASE).then_some(())
    });
    site.cluster.heal().expect("heals");
    let mut said = revocation.outcome(PATIENCE).expect("ends");
    if said.code == Some(3) {
        // It gave up before anything was begun.
        assert!(!said.stderr.contains("decisive"), "{}", said.stderr);
        said = super::run(&site, &["node", "revoke", gone, "--yes", "--wait"]);
    }
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stderr.lines().any(|line| line == "decisive"), "{}", said.stderr);
    let stay: Vec<&str> = names.iter().map(String::as_str).filter(|name| *name != gone).collect();
    settled(&site, &stay, 2);
    all_open(&site, &stay, &sealed);
}

#[test]
fn t17_of_three_one_alone_revokes_nobody() {
    not_decisive_without(3);
}

#[test]
fn t17_of_four_two_alone_revoke_nobody() {
    not_decisive_without(4);
}

/// T18: two of five are revoked, whose disks were stolen together. Those that remain must all have heard of it, since any one
/// that has not is the third that the thief needs: two of three are not enough for `decisive`.
#[test]
fn t18_two_of_five_need_all_three_that_remain() {
    let site = Site::of_nodes(5);
    let sealed = seal_many(&site, 10);
    let still = site.cluster.process("n3").expect("exists").expect("runs");
    let leads = site.leader();
    still.pause().expect("stands still");
    // Another one leads if it did; the others, the revoked among them, are a quorum.
    site.until("a leader", || {
        status(&site, &["n1", "n2", "n4", "n5"])?.leader.filter(|leader| leader.as_str() != "n3")
    });
    println!("{leads} led");
    let revocation = typed(&site, &["node", "revoke", "n4", "n5", "--yes", "--wait"]);
    let runs = || status(&site, &["n1", "n2"])?.operation.filter(|running| running.name.starts_with("revoke"));
    site.until("the revocation to begin", runs);
    let begin = Instant::now();
    site.until("a lease to pass", || {
        assert!(!revocation.so_far().contains("decisive"), "two of three: {}", revocation.so_far());
        (begin.elapsed() > LEASE).then_some(())
    });
    still.resume().expect("goes on");
    let said = revocation.outcome(PATIENCE).expect("ends");
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stderr.lines().any(|line| line == "decisive"), "{}", said.stderr);
    let stay = ["n1", "n2", "n3"];
    settled(&site, &stay, 2);
    all_open(&site, &stay, &sealed);
}
