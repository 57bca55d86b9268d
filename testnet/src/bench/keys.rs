//! Making keys beside bare Raft writes, and what a key version takes in memory and on disk.
//!
//! A key costs two writes: the key with its sealed shares, and, when a quorum has opened and checked them, that it may be
//! used. The bare writes are entries of the size of the first, through three replicas in this process on the same disk;
//! their application does nothing.

mod bare;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use quorate_shares::ids::KeyName;
use tokio::task::JoinSet;

use super::figures::{Row, Table};
use super::machine::{disk_bytes, resident_bytes};
use super::{client_of, failed, runtime};
use crate::cluster::Cluster;
use crate::error::Error;

const IN_FLIGHT: usize = 64;
const LOAD: Duration = Duration::from_secs(6);
/// A share record for three holders.
const RECORD_BYTES: usize = 55 + 64 * 3;

pub(super) fn measure(cluster: &Cluster, table: &mut Table) -> Result<(), Error> {
    let before = footprint(cluster)?;
    let (made, rate) = runtime()?.block_on(make(cluster))?;
    let after = footprint(cluster)?;
    let bare = bare::rate(cluster.directory().path(), IN_FLIGHT, LOAD)?;

    let ratio = rate / bare;
    let row = Row::new("make keys, 64 in flight", format!("{rate:.0} /s"));
    let row = row.beside(format!("bare Raft writes {bare:.0} /s"), format!("{:.0} %", ratio * 100.0));
    table.push(row.target("≥ 50 %", ratio >= 0.5));
    let names = cluster.names().len() as f64;
    let per_key = |before: u64, after: u64| after.saturating_sub(before) as f64 / names / made as f64;
    let (memory, disk) = (per_key(before.0, after.0), per_key(before.1, after.1));
    table.push(Row::new(format!("memory of a node per key, over {made}"), format!("{memory:.0} B")));
    let row = Row::new(format!("disk of a node per key, over {made}, logs included"), format!("{disk:.0} B"));
    let times = disk / RECORD_BYTES as f64;
    table.push(row.beside(format!("its share record {RECORD_BYTES} B"), format!("{times:.1} times")));
    Ok(())
}

/// Memory and disk of all nodes together.
fn footprint(cluster: &Cluster) -> Result<(u64, u64), Error> {
    let (mut memory, mut disk) = (0, 0);
    for name in cluster.names() {
        let process = cluster.process(&name)?.ok_or_else(|| Error::Bench(format!("{name} does not run")))?;
        memory += resident_bytes(process.pid())?;
        disk += disk_bytes(&cluster.directory().node(&name))?;
    }
    Ok((memory, disk))
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
