//! Nodes that leave. A removal is in good order: clients notice nothing. A revocation is at once: the disk is then worth nothing.
//!
//! Orders are typed on the command line, as an operator types them. Clients check what must hold meanwhile. Their nodes keep no
//! key in memory ([`COLD`]), so each answer shows that enough shares of the key are there at that moment.

mod idle;
mod leader_crashes;
mod orders;
mod removal;
mod revocation;
mod stale;
mod theft;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use quorate_client::wire::Status;
use quorate_client::{Client, Context, Options};
use quorate_testnet::Cluster;
use quorate_testnet::load::Load;
use quorate_testnet::procs::{Finished, Tool};

use crate::harness::{PATIENCE, TestCluster, name};

/// Every key is reconstructed for each request.
const COLD: &str = "[timing]\nkey_idle_ms = 1\nkey_age_ms = 1\n";
/// The lease of a cluster with default settings.
const LEASE: Duration = Duration::from_secs(3);
/// How many keys are made, or used, at a time.
const LANES: usize = 16;

fn cold(nodes: u8) -> TestCluster {
    TestCluster::of(Cluster::builder().nodes(nodes).settings(COLD))
}

/// Types a command, which runs on in the background.
fn typed(cluster: &TestCluster, words: &[&str]) -> Tool {
    Tool::start(cluster.testnet.quorate(words.iter().copied()), b"").expect("runs")
}

/// Types a command and waits for its end.
fn run(cluster: &TestCluster, words: &[&str]) -> Finished {
    typed(cluster, words).outcome(PATIENCE).expect("it ends")
}

/// A client of some nodes alone.
fn client_of(cluster: &TestCluster, nodes: &[&str]) -> Client {
    let mut file = cluster.file();
    file.nodes.retain(|node| nodes.contains(&node.name.as_str()));
    cluster.block(Client::connect(file, &cluster.token(), Options::default())).expect("the client file names a node")
}

/// How the cluster is, as one of these nodes sees it.
fn status(cluster: &TestCluster, nodes: &[&str]) -> Option<Status> {
    cluster.block(client_of(cluster, nodes).status()).ok().filter(|status| status.quorum)
}

/// Waits until no operation runs and epoch `epoch` is the active one, for each of these nodes.
fn settled(cluster: &TestCluster, nodes: &[&str], epoch: u64) -> Status {
    let seen = || {
        let all: Option<Vec<_>> = nodes.iter().map(|node| status(cluster, &[node])).collect();
        all.filter(|all| all.iter().all(|status| status.epoch.0 == epoch && status.operation.is_none()))?.pop()
    };
    cluster.until(&format!("{nodes:?} to be done with epoch {epoch}"), seen)
}

/// A key that was made, and what was encrypted under it.
struct Sealed {
    key: String,
    ciphertext: String,
}

/// Makes many keys, and encrypts the name of each under itself.
fn seal_many(cluster: &TestCluster, count: usize) -> Vec<Sealed> {
    let (client, next) = (cluster.client(None), Arc::new(AtomicUsize::new(0)));
    let lanes: Vec<_> = (0..LANES)
        .map(|_| {
            let (client, next) = (client.clone(), Arc::clone(&next));
            cluster.spawn(async move {
                let mut sealed = Vec::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return sealed;
                    }
                    let key = format!("many/{number}");
                    client.create_key(&name(&key), BTreeMap::new()).await.expect("makes a key");
                    let ciphertext = client.encrypt(&name(&key), &Context::empty(), key.as_bytes()).await;
                    sealed.push(Sealed { key, ciphertext: ciphertext.expect("encrypts") });
                }
            })
        })
        .collect();
    lanes.into_iter().flat_map(|lane| cluster.block(lane).expect("no panic")).collect()
}

/// Every one of these ciphertexts opens at each of the nodes.
fn all_open(cluster: &TestCluster, nodes: &[&str], sealed: &[Sealed]) {
    for node in nodes {
        let client = cluster.client(Some(node));
        let open = |lane: &[Sealed]| {
            let lane: Vec<_> = lane.iter().map(|sealed| (sealed.key.clone(), sealed.ciphertext.clone())).collect();
            let client = client.clone();
            cluster.spawn(async move {
                for (key, ciphertext) in lane {
                    let plaintext = client.decrypt(&ciphertext, &Context::empty()).await;
                    let plaintext = plaintext.unwrap_or_else(|error| panic!("{key}: {error}"));
                    assert_eq!(plaintext.expose(), key.as_bytes());
                }
            })
        };
        let lanes: Vec<_> = sealed.chunks(sealed.len().div_ceil(LANES).max(1)).map(open).collect();
        lanes.into_iter().for_each(|lane| cluster.block(lane).expect("everything opens"));
    }
}

/// Lets clients do a little more, and says how long that took.
fn goes_on(cluster: &TestCluster, load: &Load, when: &str) {
    const MORE: u64 = 100;
    let (before, begin) = (load.tally().done, Instant::now());
    cluster.until(&format!("clients to go on {when}"), || (load.tally().done >= before + MORE).then_some(()));
    println!("{when}: {:?}, the last {MORE} in {:?}", load.tally(), begin.elapsed());
}

/// Clients saw nothing that they should not have, and all that they were handed opens at each of the nodes.
fn none_wrong(cluster: &TestCluster, load: Load, nodes: &[&str]) {
    let outcome = cluster.block(load.stop());
    println!("{:?}", outcome.tally);
    assert_eq!(outcome.unexpected, Vec::<String>::new());
    assert_eq!(outcome.kept() as u64, outcome.sealed, "all are remembered");
    for node in nodes {
        let unopened = cluster.block(outcome.open_all(&cluster.client(Some(node))));
        assert_eq!(unopened, Vec::<String>::new(), "{node}");
    }
}
