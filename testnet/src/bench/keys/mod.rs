//! Making keys beside bare Raft writes, and what a key version takes in memory and on disk.
//!
//! A key costs two writes: the key with its sealed shares, and, when a quorum has opened and checked them, that it may be
//! used. The bare writes are the first of the two: the same entries, applied to the same rows, between replicas that are
//! joined by the same connections and write to the same disk. What a key has on top is a client with its own connection,
//! the dealing, the check by the holders, the second write, and that its nodes are processes of their own.

mod bare;
pub(super) mod layout;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use quorate_shares::ids::KeyName;
use tokio::task::JoinSet;

use super::figures::{Row, Table, micros};
use super::machine::{disk_bytes, processor_time, resident_bytes};
use super::{client_of, failed, runtime};
use crate::base::error::Error;
use crate::cluster::Cluster;

const IN_FLIGHT: usize = 64;
const LOAD: Duration = Duration::from_secs(6);

pub(super) fn measure(cluster: &Cluster, table: &mut Table) -> Result<(), Error> {
    let before = Footprint::of(cluster)?;
    let (made, rate) = runtime()?.block_on(make(cluster))?;
    let after = Footprint::of(cluster)?;
    let bare = bare::write(cluster.directory().path(), IN_FLIGHT, LOAD)?;

    let ratio = rate / bare.per_second;
    let row = Row::new("make keys, 64 in flight", format!("{rate:.0} /s"));
    let row = row.beside(format!("bare Raft writes {:.0} /s", bare.per_second), format!("{:.0} %", ratio * 100.0));
    table.push(row.target("≥ 50 %", ratio >= 0.5));
    let nodes = cluster.names().len() as f64;
    let used = micros(after.processor.saturating_sub(before.processor)) / made as f64;
    let row = Row::new("processor time of the three nodes per key", format!("{used:.0} µs"));
    let bare = micros(bare.processor);
    table.push(row.beside(format!("bare Raft write {bare:.0} µs"), format!("{:.1} times", used / bare)));

    let per_key = |before: u64, after: u64| after.saturating_sub(before) as f64 / nodes / made as f64;
    let written = per_key(before.log, after.log);
    let row = Row::new(format!("disk of a node per key, over {made}: the database's log"), format!("{written:.0} B"));
    table.push(row.beside(layout::written(), times(written, layout::WRITTEN)));
    let disk = per_key(before.disk, after.disk);
    let row = Row::new(format!("disk of a node per key, over {made}: all files"), format!("{disk:.0} B"));
    table.push(row.beside(format!("its rows {} B", layout::ROWS), times(disk, layout::ROWS)));
    let memory = per_key(before.memory, after.memory);
    let expected = layout::memory() + layout::WRITTEN;
    let beside = format!("live state {} + recent writes {} = {expected} B", layout::memory(), layout::WRITTEN);
    let row = Row::new(format!("memory of a node per key, over {made}"), format!("{memory:.0} B"));
    table.push(row.beside(beside, times(memory, expected)));
    Ok(())
}

fn times(measured: f64, expected: usize) -> String {
    format!("{:.2} times", measured / expected as f64)
}

/// What all nodes together take.
struct Footprint {
    memory: u64,
    /// Bytes of all files.
    disk: u64,
    /// RocksDB's write-ahead log among them.
    log: u64,
    processor: Duration,
}

impl Footprint {
    fn of(cluster: &Cluster) -> Result<Self, Error> {
        let mut all = Self { memory: 0, disk: 0, log: 0, processor: Duration::ZERO };
        for name in cluster.names() {
            let process = cluster.process(&name)?.ok_or_else(|| Error::Bench(format!("{name} does not run")))?;
            let directory = cluster.directory().node(&name);
            all.memory += resident_bytes(process.pid())?;
            all.disk += disk_bytes(&directory, "")?;
            all.log += disk_bytes(&directory.join("state/raft"), ".log")?;
            all.processor += processor_time(process.pid())?;
        }
        Ok(all)
    }
}

/// Makes keys at the leader; how many, and how many each second.
async fn make(cluster: &Cluster) -> Result<(u64, f64), Error> {
    let status = client_of(cluster, "n1").await?.status().await.map_err(failed("ask who leads"))?;
    let leader = status.leader.ok_or_else(|| Error::Bench("no leader is known".to_owned()))?;
    let client = client_of(cluster, leader.as_str()).await?;
    let (next, done, begun) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)), Instant::now());
    let mut callers = JoinSet::new();
    for _ in 0..IN_FLIGHT {
        let (client, next, done) = (client.clone(), Arc::clone(&next), Arc::clone(&done));
        callers.spawn(async move {
            while begun.elapsed() < LOAD {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let name: KeyName = format!("bench/key-{number:06}").parse().expect("a key name");
                client.create_key(&name, Default::default()).await?;
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller.expect("a caller does not panic").map_err(failed("make keys"))?;
    }
    let made = done.load(Ordering::Relaxed).max(1);
    Ok((made, made as f64 / begun.elapsed().as_secs_f64()))
}
