//! A warm key is served from memory: without the disk, and so without Raft, which writes every entry before it counts.

use std::fs;

use quorate_client::Context;

use crate::harness::{TestCluster, name};

/// Requests whose writes are counted together.
const WINDOW: usize = 1000;

/// A daemon writes a little now and then for reasons of its own, so one window without a write is enough to tell: if a
/// request wrote anything, no window would be.
#[test]
fn a_warm_key_is_used_without_the_disk_of_any_node() {
    let cluster = TestCluster::with_lasting_locks();
    let before = written(&cluster);
    cluster.create("key");
    assert!(
        written(&cluster).iter().zip(&before).all(|(now, before)| now > before),
        "the control: making a key writes"
    );

    let (client, key, context) = (cluster.client(Some("n1")), name("key"), Context::empty());
    let window = || async {
        for _ in 0..WINDOW / 2 {
            let ciphertext = client.encrypt(&key, &context, b"secret").await?;
            client.decrypt(&ciphertext, &context).await?;
        }
        Ok::<_, quorate_client::Error>(())
    };
    cluster.until("a thousand requests during which no node writes", || {
        let before = written(&cluster);
        cluster.block(window()).expect("n1 serves");
        (written(&cluster) == before).then_some(())
    });
}

/// Bytes that each node has sent to a file system since it started.
fn written(cluster: &TestCluster) -> Vec<u64> {
    let written = |node: String| {
        let process = cluster.testnet.process(&node).expect("exists").expect("runs");
        let io = fs::read_to_string(format!("/proc/{}/io", process.pid())).expect("the kernel counts");
        let bytes = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
        bytes.expect("as it always does").parse().expect("a number")
    };
    cluster.testnet.names().into_iter().map(written).collect()
}
