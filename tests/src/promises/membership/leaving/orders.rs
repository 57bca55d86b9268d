//! What an operator may order: the same thing again, two things at once, one instead of another; and what is refused.

use std::collections::BTreeSet;
use std::time::Instant;

use quorate_client::wire::Phase;
use quorate_shares::lock::LockOpenCode;
use quorate_testnet::Cluster;
use quorate_testnet::procs::{Finished, Tool};

use super::{COLD, LEASE, all_open, cold, run, seal_many, settled, status, typed};
use crate::harness::commands::{invite, join};
use crate::harness::impostor::Impostor;
use crate::harness::{PATIENCE, TestCluster};

/// Types a command that is refused, and returns what it says.
fn refused(cluster: &TestCluster, words: &[&str], code: i32) -> String {
    let Finished { code: ended, stderr, .. } = run(cluster, words);
    assert_eq!(ended, Some(code), "{words:?}: {stderr}");
    stderr
}

/// The epoch that a command began, or goes on to wait for.
fn begun(cluster: &TestCluster, words: &[&str]) -> u64 {
    let words: Vec<_> = words.iter().copied().chain(["--yes", "--no-wait", "--output", "json"]).collect();
    let Finished { code, stdout, stderr, .. } = run(cluster, &words);
    assert_eq!(code, Some(0), "{stderr}");
    let result: serde_json::Value = serde_json::from_slice(&stdout).expect("JSON");
    result["epoch"].as_u64().expect("a number")
}

/// L2, M2: one operation runs at a time. The same command again waits for the same operation. A command for an operation that is
/// over says so, and a command that the other nodes could not survive is refused. n2 is stopped, so that the first operation
/// waits for it. Mutated: a command is recognised by its request id alone.
#[test]
fn one_operation_runs_at_a_time_and_the_same_command_again_is_the_same_one() {
    let cluster = cold(4);
    let sealed = seal_many(&cluster, 20);
    let said = refused(&cluster, &["node", "remove", "n44", "--yes"], 5);
    assert!(said.contains("no node named n44") && said.contains("did you mean n4?"), "{said}");
    let said = refused(&cluster, &["node", "revoke", "n3", "--node", "n3", "--yes"], 2);
    assert!(said.contains("n3 leaves the cluster") && said.contains("leave out --node"), "{said}");
    let said = refused(&cluster, &["node", "revoke", "n3", "n5", "--yes"], 5);
    assert!(said.contains("no node named n5"), "nothing is done by halves: {said}");
    let said = refused(&cluster, &["node", "revoke", "n3", "n4", "--yes"], 6);
    assert!(said.contains("2 of 3 shares would remain"), "{said}");

    let still = cluster.testnet.process("n2").expect("exists").expect("runs");
    still.pause().expect("stands still");
    let operation = begun(&cluster, &["node", "remove", "n4"]);
    assert_eq!(operation, 2);
    let said = refused(&cluster, &["node", "remove", "n3", "--yes"], 6);
    assert!(said.contains("another operation is not over yet: remove n4"), "{said}");
    assert_eq!(begun(&cluster, &["node", "remove", "n4"]), operation, "it is the one that runs");
    let waiting = status(&cluster, &["n1", "n3"]).and_then(|status| status.operation).expect("it is shown");
    assert_eq!((waiting.name.as_str(), waiting.waiting_for.contains(&"n2".to_owned())), ("remove n4", true));
    still.resume().expect("goes on");
    let again = run(&cluster, &["node", "remove", "n4", "--yes"]);
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    settled(&cluster, &["n1", "n2", "n3"], operation);

    for words in [["node", "remove", "n4", "--yes"], ["node", "revoke", "n4", "--yes"]] {
        let said = refused(&cluster, &words, 5);
        assert!(said.contains("n4 was removed already"), "{said}");
    }
    let said = refused(&cluster, &["node", "remove", "n3", "--yes"], 6);
    assert!(said.contains("two nodes would remain") && said.contains("--accept-no-redundancy"), "{said}");
    let two = run(&cluster, &["node", "remove", "n3", "--yes", "--accept-no-redundancy"]);
    assert_eq!(two.code, Some(0), "{}", two.stderr);
    settled(&cluster, &["n1", "n2"], operation + 1);
    let said = refused(&cluster, &["node", "remove", "n2", "--yes"], 6);
    assert!(said.contains("1 of 2 shares would remain"), "{said}");
    all_open(&cluster, &["n1", "n2"], &sealed);
}

/// I6: a revocation replaces a removal that waits, and also takes out the node that the removal would have removed. The client
/// that waits for the removal is told. Mutated: a revocation with the number of the operation that it replaced.
#[test]
fn a_revocation_takes_the_place_of_a_removal() {
    let cluster = cold(5);
    let sealed = seal_many(&cluster, 20);
    let still = cluster.testnet.process("n2").expect("exists").expect("runs");
    still.pause().expect("stands still");
    let removal = typed(&cluster, &["node", "remove", "n5", "--yes"]);
    // Nodes are named in the order in which they joined.
    let running = |words: &[&str]| {
        let operation = status(&cluster, &["n1", "n3"])?.operation?;
        let shown: BTreeSet<_> = operation.name.split(' ').collect();
        (shown == words.iter().copied().collect()).then_some(())
    };
    cluster.until("the removal to wait", || running(&["remove", "n5"]));
    let revocation = typed(&cluster, &["node", "revoke", "n4", "--yes", "--wait"]);
    cluster.until("the revocation of both", || running(&["revoke", "n4", "n5"]));
    still.resume().expect("goes on");
    let finished = revocation.outcome(PATIENCE).expect("ends");
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let finished = removal.outcome(PATIENCE).expect("ends");
    assert_eq!(finished.code, Some(6), "{}", finished.stderr);
    assert!(finished.stderr.contains("a revocation came before the removal of n5 was done"), "{}", finished.stderr);

    let stay = ["n1", "n2", "n3"];
    let epoch = status(&cluster, &stay).expect("serves").epoch.0;
    let status = settled(&cluster, &stay, epoch);
    assert_eq!((status.threshold, status.theft_threshold), (2, 2));
    for node in ["n4", "n5"] {
        let said = refused(&cluster, &["node", "revoke", node, "--yes"], 5);
        assert!(said.contains(&format!("{node} was revoked already")), "{said}");
    }
    all_open(&cluster, &stay, &sealed);
}

/// T56: a member is away, and could not unlock itself without the node that is to leave. The command is refused until the member
/// is back and its lock no longer needs that node. Mutated: if absent members are not checked, the command waits for ever.
#[test]
fn t56_a_removal_that_would_lock_out_a_member_that_is_away_is_refused() {
    let mut cluster = cold(4);
    let sealed = seal_many(&cluster, 20);
    cluster.testnet.kill("n4").expect("dies");
    let missed = || status(&cluster, &["n1"])?.waiting_for.iter().any(|name| name.as_str() == "n4").then_some(());
    cluster.until("n4 to be missed", missed);
    // The lock of n4 needs two of n1, n2 and n3.
    let removed = run(&cluster, &["node", "remove", "n3", "--yes"]);
    assert_eq!(removed.code, Some(0), "{}", removed.stderr);
    let last = ["node", "remove", "n2", "--yes", "--accept-no-redundancy"];
    let said = refused(&cluster, &last, 6);
    assert!(said.contains("n4 is away, and could not unlock itself again without this node"), "{said}");

    cluster.start(&["n4"]);
    cluster.testnet.wait_serving(&["n4"]).expect("two are enough to open its lock");
    let removed = run(&cluster, &last);
    assert_eq!(removed.code, Some(0), "{}", removed.stderr);
    settled(&cluster, &["n1", "n4"], 3);
    cluster.kill_all();
    cluster.start(&["n1", "n4"]);
    cluster.testnet.wait_serving(&["n1", "n4"]).expect("each opens the lock of the other");
    all_open(&cluster, &["n1", "n4"], &sealed);
}

/// Scenario: one of four nodes is away, and its disk may be lost. The operator revokes another one. Two of the three shares that are
/// needed are there. Mutated: the others make their locks without the revoked node, the revocation waits for ever, and the next restart
/// loses every key.
#[test]
fn a_revocation_that_would_need_an_absent_node_is_refused() {
    let mut cluster = cold(4);
    let sealed = seal_many(&cluster, 20);
    lose(&mut cluster, "n4", "n1");
    let needed = |cluster: &TestCluster, node: &str| {
        let said = refused(cluster, &["node", "revoke", node, "--yes"], 6);
        let says = format!("no answer from n4: without {node}, 2 of 3 shares are there");
        assert!(said.contains(&says) && said.contains("--expect-back n4"), "{said}");
    };
    needed(&cluster, "n3");
    assert!(status(&cluster, &["n1"]).expect("serves").operation.is_none(), "nothing has begun");
    let said = refused(&cluster, &["node", "revoke", "n3", "--yes", "--expect-back", "n9"], 5);
    assert!(said.contains("no node named n9"), "{said}");
    // A removal is under way that cannot end without n4 either.
    begun(&cluster, &["node", "remove", "n3", "--abandon", "n4"]);
    needed(&cluster, "n3");

    let command = typed(&cluster, &["node", "revoke", "n3", "--yes", "--wait", "--expect-back", "n4"]);
    cluster.until("it to wait for n4", || {
        let running = status(&cluster, &["n1"])?.operation?;
        (running.name == "revoke n3" && running.waiting_for == ["n4"]).then_some(())
    });
    all_open(&cluster, &["n1", "n2", "n3"], &sealed[..1]);
    cluster.start(&["n4"]);
    let revoked = command.outcome(PATIENCE).expect("ends");
    assert_eq!(revoked.code, Some(0), "{}", revoked.stderr);
    all_open(&cluster, &["n1", "n2", "n4"], &sealed);
}

/// Kills a node and waits until another one misses it.
fn lose(cluster: &mut TestCluster, node: &str, witness: &str) {
    cluster.testnet.kill(node).expect("dies");
    let missed = || status(cluster, &[witness])?.waiting_for.iter().any(|name| name.as_str() == node).then_some(());
    cluster.until(&format!("{node} to be missed"), missed);
}

/// T56 of three: n3 is away, and n1 and n2 are to be replaced one after the other. Each of them stays and serves until n3 is
/// back, since the keys would otherwise depend on one disk. Then the replacement continues by itself.
#[test]
fn t56_a_replacement_of_one_that_opens_for_a_member_that_is_away_waits() {
    let mut cluster = TestCluster::of(Cluster::builder().spares(2).settings(COLD));
    let sealed = seal_many(&cluster, 20);
    let mut members: BTreeSet<&str> = ["n1", "n2", "n3"].into();
    for (epoch, [gone, new]) in (2..).zip([["n1", "n4"], ["n2", "n5"]]) {
        let stays = *members.iter().find(|name| ![gone, "n3"].contains(name)).expect("one of three");
        lose(&mut cluster, "n3", stays);
        let invitation = invite(&cluster);
        let replace = cluster.testnet.quorate(["node", "replace", gone, "--with", "-", "--yes"]);
        Tool::start(replace, invitation.as_bytes()).expect("runs").success(PATIENCE).expect("the invitation is known");
        cluster.start(&[new]);
        let mut joining = join(&cluster.testnet, new, &invitation);
        cluster.until("it to wait for n3", || {
            assert!(!joining.has_ended(), "{}", joining.so_far());
            let running = status(&cluster, &[gone, stays])?.operation?;
            let waits = running.step == "1 more holders of shares must be there" && running.waiting_for == ["n3"];
            waits.then(|| println!("{}: {}", running.name, running.step))
        });
        let begin = Instant::now();
        cluster.until("a lease to pass", || {
            assert!(!joining.has_ended(), "{new} joined without n3: {}", joining.so_far());
            all_open(&cluster, &[gone, stays], &sealed[..1]);
            (begin.elapsed() > LEASE).then_some(())
        });
        assert_ne!(cluster.testnet.status(gone).expect("runs").public.phase, Phase::Revoked, "{gone}");

        cluster.start(&["n3"]);
        cluster.testnet.wait_serving(&["n3"]).expect("its lock opens");
        joining.success(PATIENCE).expect("joins");
        cluster.export();
        members.remove(gone);
        members.insert(new);
        settled(&cluster, &members.iter().copied().collect::<Vec<_>>(), epoch);
        cluster.until(&format!("{gone} to be told"), || {
            (cluster.testnet.status(gone).ok()?.public.phase == Phase::Revoked).then_some(())
        });
        cluster.testnet.kill(gone).expect("dies");
    }
    let left: Vec<&str> = members.into_iter().collect();
    assert_eq!(left, ["n3", "n4", "n5"]);
    for node in &left {
        cluster.testnet.kill(node).expect("dies");
    }
    cluster.start(&["n3", "n4"]);
    cluster.testnet.wait_serving(&["n3", "n4"]).expect("each opens the lock of the other");
    all_open(&cluster, &["n3", "n4"], &sealed);
}

/// T56, the way out: n3 of three is away for good. n4 and n5 have joined, and n1 and n2 leave one after the other. The second
/// removal is refused, since only n2 still opens the lock of n3, until `--abandon n3` counts n3 as lost. Then n3 is a member
/// that can never unlock itself again, and can be removed like any other.
#[test]
fn t56_a_member_that_is_counted_as_lost_keeps_no_node_from_leaving() {
    let mut cluster = TestCluster::of(Cluster::builder().spares(2).settings(COLD));
    let sealed = seal_many(&cluster, 20);
    lose(&mut cluster, "n3", "n1");
    let taken_in = |cluster: &mut TestCluster, new: &str, members: &[&str], epoch: u64| {
        cluster.testnet.join(new).expect("joins");
        cluster.export();
        settled(cluster, members, epoch);
    };
    taken_in(&mut cluster, "n4", &["n1", "n2", "n4"], 2);
    let removed = run(&cluster, &["node", "remove", "n1", "--yes"]);
    assert_eq!(removed.code, Some(0), "n2 still opens for n3: {}", removed.stderr);
    cluster.testnet.kill("n1").expect("dies");
    cluster.export();
    taken_in(&mut cluster, "n5", &["n2", "n4", "n5"], 4);

    let said = refused(&cluster, &["node", "remove", "n2", "--yes"], 6);
    assert!(said.contains("n3 is away, and could not unlock itself again without this node"), "{said}");
    assert!(said.contains("--abandon n3"), "{said}");
    // An --abandon of another node does not count.
    refused(&cluster, &["node", "remove", "n2", "--yes", "--abandon", "n4"], 6);
    let lost = Impostor::steal(&cluster, "n3");
    assert_eq!(lost.ask(&cluster, "n2").0, LockOpenCode::Ok, "the control: as it is, n3 could come back");
    let removed = run(&cluster, &["node", "remove", "n2", "--yes", "--abandon", "n3"]);
    assert_eq!(removed.code, Some(0), "{}", removed.stderr);
    cluster.testnet.kill("n2").expect("dies");
    cluster.export();
    let stay = ["n4", "n5"];
    settled(&cluster, &stay, 5);
    all_open(&cluster, &stay, &sealed);

    cluster.start(&["n3"]);
    let begin = Instant::now();
    cluster.until("n3 to ask for a while", || {
        let seen = cluster.testnet.status("n3").ok()?;
        assert_eq!(seen.public.phase, Phase::Locked, "no peer is left that opens its lock");
        (begin.elapsed() > LEASE).then(|| println!("{:?}", seen.operation))
    });
    let named = |cluster: &TestCluster| {
        let nodes = cluster.block(super::client_of(cluster, &stay).nodes()).expect("nodes");
        nodes.iter().any(|node| node.name.as_str() == "n3")
    };
    assert!(named(&cluster), "it is a member all the same");
    let removed = run(&cluster, &["node", "remove", "n3", "--yes", "--accept-no-redundancy"]);
    assert_eq!(removed.code, Some(0), "{}", removed.stderr);
    settled(&cluster, &stay, 6);
    assert!(!named(&cluster));
    for node in stay {
        cluster.testnet.kill(node).expect("dies");
    }
    cluster.start(&stay);
    cluster.testnet.wait_serving(&stay).expect("each opens the lock of the other");
    all_open(&cluster, &stay, &sealed);
}
