//! Where nodes are: addresses that move, that cannot be reached, and that differ from what is recorded.

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, UdpSocket};

use quorate_client::wire::Status;
use quorate_testnet::Cluster;
use quorate_testnet::procs::{Finished, Tool};

use crate::harness::commands::{invite, join};
use crate::harness::{PATIENCE, TestCluster};

const NODES: [&str; 3] = ["n1", "n2", "n3"];

fn quorate(cluster: &TestCluster, typed: &str) -> Finished {
    let ended = Tool::start(cluster.testnet.quorate(typed.split(' ')), b"").expect("runs").outcome(PATIENCE);
    let ended = ended.expect("ends");
    assert_eq!(ended.code, Some(0), "{typed}: {}", ended.stderr);
    ended
}

/// What the node says that needs to find no other one first.
fn status_of(cluster: &TestCluster, node: &str) -> Option<Status> {
    cluster.block(cluster.client(Some(node)).status()).ok()
}

/// The alarms about addresses: their codes and nodes.
fn alarms(status: &Status) -> BTreeSet<(String, String)> {
    let of_addresses = status.alarms.iter().filter(|alarm| alarm.code.contains("address"));
    let named = of_addresses.filter_map(|alarm| Some((alarm.code.clone(), alarm.node.as_ref()?.to_string())));
    named.collect()
}

/// T78: two of three nodes restart elsewhere. They serve over the sessions that they open to n1, and would not find each other
/// without it: the status counts on neither, and says why. Once their addresses are recorded, n1 may die.
///
/// Mutated: with reports that say that everyone is reached, one more node may fail at once. Without the roster update after
/// `set-address`, the two do not find each other.
#[test]
fn t78_nodes_that_moved_count_once_their_addresses_are_recorded() {
    let mut cluster = TestCluster::of(Cluster::builder().settings("[timing]\ndial_every_ms = 200\n"));
    cluster.create("key");
    let may_lose = |cluster: &TestCluster, count| {
        cluster.until(&format!("{count} more to be dispensable"), || {
            status_of(cluster, "n1").filter(|status| status.may_lose() == Some(count))
        })
    };
    assert_eq!(alarms(&may_lose(&cluster, 1)), BTreeSet::new(), "the control");
    let mut moved = Vec::new();
    for node in ["n2", "n3"] {
        moved.push((node, cluster.testnet.renumber(node).expect("a free port")));
        cluster.start(&[node]);
        cluster.testnet.wait_serving(&[node]).expect("serves over its own sessions");
    }
    may_lose(&cluster, 0);
    let said = |code: &str, node: &str| (code.to_owned(), node.to_owned());
    let expected: BTreeSet<_> = ["n2", "n3"]
        .iter()
        .flat_map(|node| ["unreachable_address", "address_differs"].map(|code| said(code, node)))
        .collect();
    cluster.until("the alarms", || status_of(&cluster, "n1").filter(|status| alarms(status) == expected));
    let shown = Tool::start(cluster.testnet.quorate(["status", "--node", "n1"]), b"").expect("runs");
    let shown = String::from_utf8(shown.outcome(PATIENCE).expect("ends").stdout).expect("text");
    assert!(shown.contains("outage: 0 more nodes may fail"), "{shown}");

    for (node, address) in &moved {
        quorate(&cluster, &format!("node set-address {node} {address}"));
    }
    let healed =
        cluster.until("the alarms to end", || status_of(&cluster, "n1").filter(|status| alarms(status).is_empty()));
    for (node, address) in &moved {
        let info = healed.nodes.iter().find(|info| info.name.as_str() == *node).expect("a member");
        assert_eq!(info.addresses, [address.to_string()]);
    }
    may_lose(&cluster, 1);
    cluster.export();
    let text = fs::read_to_string(cluster.testnet.directory().client_file()).expect("ours");
    assert!(moved.iter().all(|(_, address)| text.contains(&address.to_string())), "{text}");
    let sealed = cluster.encrypt(Some("n3"), "key", b"x").expect("a client finds it with the new client file");
    cluster.testnet.kill("n1").expect("dies");
    cluster.until("n2 to serve without n1", || {
        let opened = cluster.decrypt(Some("n2"), &sealed).ok()?;
        cluster.encrypt(Some("n2"), "key", &opened).ok()
    });
    cluster.start(&["n1"]);
    cluster.testnet.wait_serving(&NODES).expect("n1 finds both where they are");
}

/// T78: every node gets another address while all are down. Each is told in its configuration where the others are, and they
/// unlock each other. Then the addresses are recorded, and the configuration is needed no more.
///
/// Mutated: without the addresses of the configuration, they stay locked.
#[test]
fn t78_a_site_that_was_renumbered_comes_back() {
    let mut cluster = TestCluster::found();
    cluster.create("key");
    let sealed = cluster.encrypt(None, "key", b"x").expect("encrypts");
    let addresses: Vec<SocketAddr> =
        NODES.iter().map(|node| cluster.testnet.renumber(node).expect("a free port")).collect();
    for node in NODES {
        let others = NODES.iter().zip(&addresses).filter(|(other, _)| **other != node);
        let lines: String = others.map(|(other, address)| format!("{other} = [\"{address}\"]\n")).collect();
        fs::write(cluster.testnet.directory().config(node), format!("[peers]\n{lines}")).expect("our own directory");
    }
    cluster.start(&NODES);
    cluster.testnet.wait_all_serving().expect("they unlock each other");
    for (node, address) in NODES.iter().zip(&addresses) {
        quorate(&cluster, &format!("--node {} node set-address {node} {address}", addresses[0]));
    }
    let file = cluster.testnet.directory().client_file();
    quorate(&cluster, &format!("--node {} cluster export -o {}", addresses[0], file.display()));
    cluster.until("every node to know it", || {
        let knows = |node: &&str| {
            let exported = cluster.block(cluster.client(Some(node)).export()).ok()?;
            // They are in the order of their numbers, and n3 may have come before n2.
            let has = |(node, at): (&str, &SocketAddr)| {
                exported.node(node).is_some_and(|it| it.addresses == [at.to_string()])
            };
            NODES.into_iter().zip(&addresses).all(has).then_some(())
        };
        NODES.iter().all(|node| knows(node).is_some()).then_some(())
    });

    for node in NODES {
        fs::remove_file(cluster.testnet.directory().config(node)).expect("our own file");
    }
    cluster.kill_all();
    cluster.start(&NODES);
    cluster.testnet.wait_all_serving().expect("their vaults name the new addresses");
    assert_eq!(cluster.decrypt(None, &sealed).expect("opens"), b"x");
}

/// T78: a node that no other node can dial at the address that it registers is no member. The control: with the right address it joins with
/// the same invitation. Mutated: without the look before its admission it is a voter a moment later.
#[test]
fn t78_a_joiner_that_no_member_reaches_is_refused() {
    let mut cluster = TestCluster::of(Cluster::builder().spares(1));
    let silent = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let right = cluster.testnet.advertise("n4", silent.local_addr().expect("bound")).expect("a spare");
    cluster.start(&["n4"]);
    let invitation = invite(&cluster);
    let refused = join(&cluster.testnet, "n4", &invitation).outcome(PATIENCE).expect("ends");
    assert_eq!(refused.code, Some(4), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("three times a member could not dial this node at the address that it advertises"),
        "{}",
        refused.stderr
    );
    let nodes = cluster.block(cluster.client(None).nodes()).expect("nodes");
    assert_eq!(nodes.len(), 3, "{nodes:?}");

    cluster.testnet.kill("n4").expect("dies");
    cluster.testnet.advertise("n4", right).expect("a spare");
    cluster.start(&["n4"]);
    join(&cluster.testnet, "n4", &invitation).success(PATIENCE).expect("joins");
    let nodes = cluster.block(cluster.client(None).nodes()).expect("nodes");
    assert_eq!(nodes.len(), 4, "{nodes:?}");
}
