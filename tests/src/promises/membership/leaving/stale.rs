//! A revocation that some nodes have not heard of: how far the revoked node comes with the nodes that are cut off with it.

use std::fs;
use std::time::Instant;

use quorate_client::Context;
use quorate_client::wire::Phase;
use quorate_shares::lock::{LockOpenCode, LockParams, PinPlace, open_piece};
use quorate_shares::secret::Secret;
use quorate_testnet::Cluster;

use super::{LEASE, Sealed, all_open, client_of, seal_many, settled, status, typed};
use crate::harness::impostor::Impostor;
use crate::harness::{PATIENCE, TestCluster};

/// Cuts both off from all others. They reach each other.
fn cut_off(cluster: &TestCluster, together: [&str; 2]) {
    for other in cluster.testnet.names() {
        for node in together.iter().filter(|_| !together.contains(&other.as_str())) {
            cluster.testnet.cut_pair(node, &other).expect("nodes");
        }
    }
}

/// Whether a node decrypts now.
fn serves(cluster: &TestCluster, node: &str, sealed: &Sealed) -> bool {
    cluster.block(cluster.hasty(node).decrypt(&sealed.ciphertext, &Context::empty())).is_ok()
}

/// The nodes were cut off from a quorum at `cut`. Each of them stops serving before a lease that began then would end.
fn refuse_within_a_lease(cluster: &TestCluster, nodes: [&str; 2], sealed: &Sealed, cut: Instant) {
    for node in nodes {
        cluster.until(&format!("{node} to refuse"), || {
            let asked = cut.elapsed();
            let refused = !serves(cluster, node, sealed);
            assert!(refused || asked < LEASE, "{node} serves {asked:?} after it was cut off");
            refused.then_some(())
        });
    }
}

/// T17 of five with a threshold of three: n5 is revoked while n4 is cut off together with it. n4 does not know of it, and gives
/// its piece of the lock of n5. But both together are too few to open the lock or to reconstruct a key, and neither serves after
/// its lease. Mutated: a lease that never ends; a lock that one peer opens.
#[test]
fn t17_the_help_of_one_that_has_not_heard_of_it_is_not_enough() {
    let mut cluster = TestCluster::of_nodes(5);
    let sealed = seal_many(&cluster, 10);
    let stay = ["n1", "n2", "n3"];
    let serves = |cluster: &TestCluster, node: &str| serves(cluster, node, &sealed[0]);
    assert!(serves(&cluster, "n4") && serves(&cluster, "n5"), "the control");
    cut_off(&cluster, ["n4", "n5"]);
    let cut = Instant::now();
    let lead = || status(&cluster, &stay)?.leader.filter(|leader| stay.contains(&leader.as_str()));
    cluster.until("one of the three to lead", lead);
    let mut revocation = typed(&cluster, &["node", "revoke", "n5", "--yes"]);
    cluster.until("the first line", || {
        let said = revocation.so_far();
        let decisive = said.lines().any(|line| line == "decisive");
        assert!(decisive || !revocation.has_ended(), "{said}");
        decisive.then_some(())
    });
    refuse_within_a_lease(&cluster, ["n4", "n5"], &sealed[0], cut);

    let log = |cluster: &TestCluster| fs::read_to_string(cluster.testnet.directory().log("n4")).expect("a log");
    let before = log(&cluster).len();
    cluster.testnet.kill("n5").expect("dies");
    cluster.start(&["n5"]);
    let gave = |cluster: &TestCluster| log(cluster)[before..].contains("opened a piece of a peer's lock");
    cluster.until("n4 to help, which knows no better", || gave(&cluster).then_some(()));
    let begin = Instant::now();
    cluster.until("n5 to ask for a while", || {
        let phase = cluster.testnet.status("n5").ok()?.public.phase;
        assert_eq!(phase, Phase::Locked, "two of five");
        assert!(!serves(&cluster, "n4") && !serves(&cluster, "n5"));
        (begin.elapsed() > LEASE).then_some(())
    });

    cluster.testnet.heal().expect("heals");
    let finished = revocation.outcome(PATIENCE).expect("ends");
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    settled(&cluster, &["n1", "n2", "n3", "n4"], 2);
    all_open(&cluster, &["n1", "n2", "n3", "n4"], &sealed);
    cluster.until("n5 to be told", || {
        let phase = cluster.testnet.status("n5").map(|status| status.public.phase).ok()?;
        (phase == Phase::Revoked).then_some(())
    });
}

/// T17 of `nodes`, where two nodes are the threshold, or one fewer than a quorum. A revocation is not called decisive as long as it
/// needs a node that has not heard of it; it is decisive when that node is back. Two of four are no quorum, and stop serving
/// when their leases end. Two of three are a quorum, and go on until one of them hears of it. Mutated: a lease that never ends.
fn not_decisive_without(nodes: u8) {
    let cluster = TestCluster::of_nodes(nodes);
    let sealed = seal_many(&cluster, 10);
    let names = cluster.testnet.names();
    let gone = names.last().expect("some").as_str();
    let stale = names[names.len() - 2].as_str();
    let rest: Vec<&str> = names.iter().map(String::as_str).filter(|name| ![gone, stale].contains(name)).collect();
    assert!(serves(&cluster, stale, &sealed[0]) && serves(&cluster, gone, &sealed[0]), "the control");
    cut_off(&cluster, [stale, gone]);
    let cut = Instant::now();
    let are_quorum = 2 * 2 > names.len();
    if are_quorum {
        cluster.until("two of three to serve", || serves(&cluster, stale, &sealed[0]).then_some(()));
    } else {
        refuse_within_a_lease(&cluster, [stale, gone], &sealed[0], cut);
    }
    let no_quorum = || {
        let asked = cluster.block(client_of(&cluster, &rest).status());
        asked.ok().filter(|status| !status.quorum).map(drop)
    };
    cluster.until("the rest to be too few", no_quorum);
    // Who is cut off comes back; and right after the network is whole, a session may still be missing.
    let back = names.iter().flat_map(|name| ["--expect-back", name.as_str()]);
    let words: Vec<&str> = ["node", "revoke", gone, "--yes", "--wait"].into_iter().chain(back).collect();
    let revocation = typed(&cluster, &words);
    let begin = Instant::now();
    cluster.until("a lease to pass", || {
        assert!(!revocation.so_far().contains("decisive"), "{}", revocation.so_far());
        (begin.elapsed() > LEASE).then_some(())
    });
    let serving = [stale, gone].into_iter().find(|node| !are_quorum && serves(&cluster, node, &sealed[0]));
    assert_eq!(serving, None, "without a quorum");
    cluster.testnet.heal().expect("heals");
    let mut said = revocation.outcome(PATIENCE).expect("ends");
    if said.code == Some(3) {
        // It gave up before anything was begun.
        assert!(!said.stderr.contains("decisive"), "{}", said.stderr);
        said = super::run(&cluster, &words);
    }
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stderr.lines().any(|line| line == "decisive"), "{}", said.stderr);
    let stay: Vec<&str> = names.iter().map(String::as_str).filter(|name| *name != gone).collect();
    settled(&cluster, &stay, 2);
    all_open(&cluster, &stay, &sealed);
}

#[test]
fn t17_of_three_one_alone_revokes_no_node() {
    not_decisive_without(3);
}

#[test]
fn t17_of_four_two_alone_revoke_no_node() {
    not_decisive_without(4);
}

/// Two disks that were stolen together.
struct Loot {
    victim: Impostor,
    other: Impostor,
}

impl Loot {
    fn steal(cluster: &TestCluster, victim: &str, other: &str) -> Self {
        Self { victim: Impostor::steal(cluster, victim), other: Impostor::steal(cluster, other) }
    }

    /// Opens the lock of one disk with the piece that the other one can open and with those that were given over the wire.
    fn opens_with(&self, given: Vec<(u8, Secret<32>)>) -> bool {
        let (vault, helper) = (&self.victim.vault, &self.other.vault);
        let lock = vault.lock.as_ref().expect("a lock");
        let node = vault.identity.node.expect("an id");
        let params = LockParams { cluster: vault.identity.cluster, node, generation: lock.generation() };
        let request = self.victim.lock_open(helper.identity.node.expect("an id"));
        let held = helper.held_for(node).expect("keys for its peer");
        let own = held.keys.iter().find_map(|key| open_piece(&key.seed, &request).ok()).expect("one of them fits");
        let PinPlace::Inline(pin) = lock.pin() else { panic!("the pin is in the vault") };
        let pieces: Vec<_> = given.into_iter().chain([(request.x, own)]).collect();
        lock.open(&params, &pieces, pin).is_ok()
    }
}

/// T18: the disks of two of five nodes were stolen together, and both nodes are revoked. All three others must know of it before
/// it is `decisive`, since one that does not know is the third node that the thief needs. One of them hears nothing: it gives its
/// piece to the thief, who opens the lock of one disk with that piece and the other disk, while the two that know refuse. After
/// the command has said `decisive`, no node gives a piece.
#[test]
fn t18_two_of_five_need_all_three_that_remain() {
    let cluster = TestCluster::of(Cluster::builder().nodes(5).settings("[timing]\nrenew_lock_after_ms = 3600000\n"));
    let sealed = seal_many(&cluster, 10);
    // The leader stays and hears of it, whichever it is.
    let leader = cluster.leader();
    let names = cluster.testnet.names();
    let others: Vec<&str> = names.iter().map(String::as_str).filter(|name| *name != leader).collect();
    let [knows, stale, gone, accomplice] = others[..] else { panic!("five nodes") };
    let stay = [&leader, knows, stale];
    println!("{leader} leads, {stale} hears nothing, {gone} and {accomplice} are stolen");
    let loot = Loot::steal(&cluster, gone, accomplice);
    assert!(!loot.opens_with(Vec::new()), "two disks of five alone");
    for node in stay {
        assert_eq!(
            loot.victim.ask(&cluster, node).0,
            LockOpenCode::DuplicateSession,
            "the control: a member, and alive"
        );
    }

    // The others go on hearing of it for a while. A leader that believes it to be away does not even begin: it would lose its quorum.
    for from in names.iter().filter(|name| *name != stale) {
        cluster.faults().cut_one_way(from, stale).expect("nodes");
    }
    let order = ["node", "revoke", gone, accomplice, "--yes", "--wait", "--expect-back", stale, "--node", &leader];
    let mut revocation = typed(&cluster, &order);
    for node in [&leader, knows] {
        cluster.until(&format!("{node} to refuse"), || {
            assert!(!revocation.has_ended(), "{}", revocation.so_far());
            (loot.victim.ask(&cluster, node).0 == LockOpenCode::Denied).then_some(())
        });
    }
    let (code, piece) = loot.victim.ask(&cluster, stale);
    assert_eq!(code, LockOpenCode::Ok, "{stale} knows no better");
    assert!(loot.opens_with(piece.into_iter().collect()), "the attack, which is why this is not decisive");
    let begin = Instant::now();
    cluster.until("a lease to pass", || {
        assert!(!revocation.so_far().contains("decisive"), "two of three: {}", revocation.so_far());
        (begin.elapsed() > LEASE).then_some(())
    });
    assert_eq!(loot.victim.ask(&cluster, stale).0, LockOpenCode::Ok, "it still knows no better");

    cluster.testnet.heal().expect("heals");
    cluster.until("the first line", || revocation.so_far().lines().any(|line| line == "decisive").then_some(()));
    for node in stay {
        let (code, piece) = loot.victim.ask(&cluster, node);
        assert!(matches!(code, LockOpenCode::Denied | LockOpenCode::Revoked), "{node} after `decisive`: {code:?}");
        assert!(piece.is_none());
    }
    let said = revocation.outcome(PATIENCE).expect("ends");
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    settled(&cluster, &stay, 2);
    for node in stay {
        assert_eq!(loot.victim.ask(&cluster, node).0, LockOpenCode::Revoked, "{node}");
        assert_eq!(loot.other.ask(&cluster, node).0, LockOpenCode::Revoked, "{node}");
    }
    all_open(&cluster, &stay, &sealed);
}
