//! A replica that has much to catch up with needs little memory: what is in flight does not grow with what is to be sent.
//!
//! Each test runs alone in a process of its own, and counts what the Rust side has allocated. All replicas share that
//! process, so the bound holds for the sender and the receiver together. RocksDB's memory is not in it: that is bounded
//! by its write buffers.

use std::process::Command as Process;
use std::time::Duration;

use peak_alloc::PeakAlloc;
use quorate_shares::ids::{BatchId, Epoch, NodeId};

use super::fixture::{CLUSTER, storage_keys};
use super::wire::Cluster;
use crate::live::command::{Change, Command};
use crate::live::rows::{Row, RowKey, Rows};
use crate::live::state::BatchInfo;
use crate::stored::disk::Disk;
use crate::stored::seal::Family;
use crate::{ProposeError, Refusal, Timing};

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// Set in the process that runs one test alone.
const ALONE: &str = "QUORATE_TEST_ALONE";
/// Bytes to catch up with.
const MUCH_BYTES: usize = 100 << 20;
/// Bytes of one entry.
const LARGE_BYTES: usize = 190 << 10;
/// Most bytes in flight: on each side a few messages of 4 MiB, or chunks of 1 MiB, each in several forms.
const IN_FLIGHT_BYTES_MAX: usize = 32 << 20;

/// Runs `test` in a process of its own, where nothing else allocates.
fn alone(name: &str, test: impl Future<Output = ()>) {
    if std::env::var_os(ALONE).is_some() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        return runtime.expect("a runtime").block_on(test);
    }
    let mut this = Process::new(std::env::current_exe().expect("the test binary"));
    let name = format!("tests::lag::{name}");
    let output = this.args(["--exact", &name, "--nocapture"]).env(ALONE, "1").output().expect("it runs");
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{said}{complained}");
    assert!(output.status.success() && said.contains("1 passed"), "{name} failed, alone in its process");
}

/// The most that was allocated while `work` ran, above what was allocated before.
async fn peak_of(what: &str, work: impl Future<Output = ()>) -> usize {
    let before = ALLOCATED.current_usage();
    ALLOCATED.reset_peak_usage();
    work.await;
    let peak = ALLOCATED.peak_usage().saturating_sub(before);
    println!("{what}: at most {:.1} MiB in flight", peak as f64 / f64::from(1 << 20));
    peak
}

/// T60. Mutated: with a log that is read whole in order to be applied, or applied in groups of 256 entries whatever they
/// carry, more is in flight.
#[test]
fn a_node_that_lags_behind_100_mb_of_large_entries_catches_up_in_bounded_memory() {
    alone("a_node_that_lags_behind_100_mb_of_large_entries_catches_up_in_bounded_memory", async {
        let cluster = Cluster::start(3, Timing::default()).await;
        cluster.found().await;
        let away = cluster.leader().await.leadership().borrow().leader.expect("known").0 % 3 + 1;
        cluster.close(away).await;
        let leader = cluster.leader().await;
        let (first, entries) = (leader.applied_index(), MUCH_BYTES.div_ceil(LARGE_BYTES));
        for _ in 0..entries {
            let large = Change::OpenBatch { header: vec![0; LARGE_BYTES] };
            assert_eq!(cluster.propose(large).await, Err(Refusal::MalformedBatch));
        }
        assert!(leader.applied_index() >= first + entries as u64, "the control: so much is in the log");
        let huge = Command::new(1, Change::OpenBatch { header: vec![0; 2 << 20] });
        assert!(matches!(leader.propose(huge).await, Err(ProposeError::TooLarge { .. })));
        drop(leader);
        let peak = peak_of("100 MiB of entries", async {
            cluster.open(away).await;
            cluster.agree(away).await;
        });
        assert!(peak.await < IN_FLIGHT_BYTES_MAX, "memory grows with the log");

        // Power fails everywhere before any row is on a disk. What is committed is known only once the next leader's first
        // entry is committed, so all three must apply all entries at once.
        for node in 1..=3 {
            cluster.close(node).await;
            let disk =
                Disk::open(cluster.dirs[&node].path(), storage_keys(node), CLUSTER, NodeId(node)).expect("opens");
            let mut batch = disk.batch();
            batch.delete_state();
            batch.delete_meta("committed");
            batch.write_synced().expect("written");
        }
        let peak = peak_of("the same once more, everywhere at once", async {
            for node in 1..=3 {
                cluster.open(node).await;
            }
            for node in 1..=3 {
                cluster.agree(node).await;
            }
        });
        assert!(peak.await < MUCH_BYTES / 2, "memory grows with the log");
        cluster.stop().await;
    });
}

/// A link carries 1 MB in a second, a replica has 4 MB to catch up with, and each request must arrive within a third of a second.
/// The requests become small enough. Mutated: with requests of 4 MB it never catches up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_link_is_sent_as_much_as_arrives_in_time() {
    let cluster = Cluster::start(3, Timing { append_ms: 330, ..Timing::default() }).await;
    cluster.found().await;
    let away = cluster.leader().await.leadership().borrow().leader.expect("known").0 % 3 + 1;
    cluster.close(away).await;
    for _ in 0..(4 << 20) / LARGE_BYTES {
        let large = Change::OpenBatch { header: vec![0; LARGE_BYTES] };
        assert_eq!(cluster.propose(large).await, Err(Refusal::MalformedBatch));
    }
    cluster.wire.0.lock().bytes_per_second = Some(1 << 20);
    cluster.open(away).await;
    cluster.agree(away).await;
    cluster.stop().await;
}

/// A state of 100 MiB and more goes to a replica that lost its own: written to a file, sent, received, installed and
/// read. Mutated: with a snapshot that is read whole before it is sent, more is in flight.
#[test]
fn a_large_state_is_sent_and_installed_in_bounded_memory() {
    const HEADER_BYTES: usize = 40 << 10;
    alone("a_large_state_is_sent_and_installed_in_bounded_memory", async {
        let cluster = Cluster::start(3, Timing::default()).await;
        let dealer = cluster.found().await;
        let info = cluster.leader().await.read(|state| state.batches[&dealer.batch()].clone());
        for node in 1..=3 {
            cluster.agree(node).await;
        }
        for node in 1..=3 {
            cluster.close(node).await;
        }
        for node in [1, 2] {
            let disk =
                Disk::open(cluster.dirs[&node].path(), storage_keys(node), CLUSTER, NodeId(node)).expect("opens");
            for number in 0..MUCH_BYTES.div_ceil(HEADER_BYTES) as u128 {
                let batch_id = BatchId(number.to_be_bytes());
                let mut rows = Rows::default();
                rows.put(RowKey::Batch(batch_id), Row::Batch(BatchInfo { batch: batch_id, ..info.clone() }));
                let mut batch = disk.batch();
                rows.0.into_iter().for_each(|row| batch.row(row));
                batch.put(Family::State, &RowKey::Header(batch_id).to_bytes(), &[number as u8; HEADER_BYTES]);
                batch.write().expect("written");
            }
        }
        for node in [1, 2] {
            cluster.open(node).await;
        }
        assert!(cluster.leader().await.read(|state| state.batches.len()) > MUCH_BYTES / HEADER_BYTES);
        let giver = cluster.leader().await.leadership().borrow().leader.expect("known").0;
        let peak = peak_of("100 MiB of state", async {
            cluster.rebuild(3, giver).await.expect("given");
            cluster.open(3).await;
            cluster.agree(3).await;
        });
        assert!(peak.await < IN_FLIGHT_BYTES_MAX, "memory grows with the state");
        let header = cluster.replica(3).batch(BatchId(7u128.to_be_bytes())).expect("readable").expect("there");
        assert_eq!(header, [7; HEADER_BYTES]);
        assert_eq!(cluster.replica(3).read(|state| state.active().map(|epoch| epoch.epoch)), Some(Epoch(1)));
        tokio::time::timeout(Duration::from_secs(60), cluster.stop()).await.expect("closes");
    });
}
