//! Changing the members: the time and the memory that it takes, and what clients notice.
//!
//! A join and a revocation are timed in a cluster of three with ten thousand keys, as an operator waits for them. A hundred
//! thousand keys are reshared to five holders while clients encrypt at a steady pace. Each request is due at its own moment,
//! and its time counts from then: a client that waits for the end of a pause would hide the pause.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use quorate_client::route::{Client, Options, Removal};
use quorate_client::wire::{Stage, Status};
use quorate_shares::context::Context;
use quorate_shares::ids::{Epoch, KeyName, NodeName};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::figures::{Row, Table, millis, quantile};
use super::keys::layout;
use super::machine::{disk_bytes, resident_bytes};
use super::{client, client_of, failed, runtime};
use crate::base::error::Error;
use crate::cluster::Cluster;

const FEW: u64 = 10_000;
const MANY: u64 = 100_000;
/// Of the epoch that they are dealt to.
const HOLDERS: usize = 5;
const IN_FLIGHT: usize = 64;
/// How often clients encrypt while keys are reshared.
const DUE: Duration = Duration::from_millis(5);
const LOOK: Duration = Duration::from_millis(5);
/// How long clients encrypt before, for comparison.
const CALM: Duration = Duration::from_secs(5);
const LEASE_S: f64 = 3.0;

pub(super) fn measure(table: &mut Table) -> Result<(), Error> {
    let mut cluster = Cluster::builder().spares(1).found()?;
    runtime()?.block_on(make_keys(&cluster, FEW))?;
    join(&mut cluster, table)?;
    runtime()?.block_on(revoke(&cluster, table))?;
    cluster.terminate_all()?;

    let mut cluster = Cluster::builder().nodes(6).found()?;
    runtime()?.block_on(make_keys(&cluster, MANY))?;
    reshare(&cluster, table)?;
    cluster.terminate_all()
}

async fn make_keys(cluster: &Cluster, count: u64) -> Result<(), Error> {
    let client = client_of(cluster, &leader(cluster).await?).await?;
    let next = Arc::new(AtomicU64::new(0));
    let mut callers = JoinSet::new();
    for _ in 0..IN_FLIGHT {
        let (client, next) = (client.clone(), Arc::clone(&next));
        callers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(());
                }
                client.create_key(&key(number), Default::default()).await?;
            }
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller.expect("a caller does not panic").map_err(failed("make keys"))?;
    }
    Ok(())
}

fn key(number: u64) -> KeyName {
    format!("bench/{number:06}").parse().expect("a key name")
}

async fn leader(cluster: &Cluster) -> Result<String, Error> {
    let status = client(cluster, Options::default()).await?.status().await.map_err(failed("ask who leads"))?;
    status.leader.map(|leader| leader.to_string()).ok_or_else(|| Error::Bench("no leader is known".to_owned()))
}

fn join(cluster: &mut Cluster, table: &mut Table) -> Result<(), Error> {
    cluster.start("n4")?;
    let begun = Instant::now();
    cluster.join("n4")?;
    let took = begun.elapsed().as_secs_f64();
    let row =
        Row::new(format!("join of a fourth node, {FEW} key versions: invitation to serving"), format!("{took:.2} s"));
    table.push(row.target("≤ 10 s", took <= 10.0));
    runtime()?.block_on(async {
        let client = client(cluster, Options::default()).await?;
        over(&client, Epoch(2)).await.map(drop)
    })
}

/// A follower is revoked while all are up.
async fn revoke(cluster: &Cluster, table: &mut Table) -> Result<(), Error> {
    let leads = leader(cluster).await?;
    let victim = ["n1", "n2", "n3"].into_iter().find(|name| *name != leads).expect("one of them follows");
    let client = client_of(cluster, &leads).await?;
    let begun = Instant::now();
    let operation = client.revoke_nodes(&[name(victim)], &[]).await.map_err(failed("revoke"))?;
    let (mut decisive, mut returns) = (None, None);
    while returns.is_none() {
        let progress = client.progress(operation).await.map_err(failed("follow the revocation"))?;
        let now = progress.revocation.ok_or_else(|| Error::Bench("it is no revocation".to_owned()))?;
        decisive = decisive.or_else(|| now.decisive.then(|| begun.elapsed()));
        returns = now.leases_over.then(|| begun.elapsed());
        sleep(LOOK).await;
    }
    let decisive = millis(decisive.unwrap_or_default());
    let row = Row::new("revoke one of four: decisive", format!("{decisive:.0} ms"));
    table.push(row.target("≤ 300 ms", decisive <= 300.0));
    let returns = returns.unwrap_or_default().as_secs_f64();
    let row = Row::new("revoke one of four: no lease from before is left", format!("{returns:.2} s"));
    let row = row.beside(format!("lease {LEASE_S} s"), format!("{:+.2} s", returns - LEASE_S));
    table.push(row.target("≤ lease + 1 s", returns <= LEASE_S + 1.0));
    let total = over(&client, operation).await?.duration_since(begun).as_secs_f64();
    table.push(Row::new(format!("revoke one of four: all done, {FEW} key versions"), format!("{total:.2} s")));
    Ok(())
}

/// When an operation was over.
async fn over(client: &Client, operation: Epoch) -> Result<Instant, Error> {
    loop {
        let progress = client.progress(operation).await.map_err(failed("follow an operation"))?;
        if progress.stage != Stage::Runs {
            return Ok(Instant::now());
        }
        sleep(LOOK).await;
    }
}

/// n6 of six is removed: every key is reshared to five holders.
fn reshare(cluster: &Cluster, table: &mut Table) -> Result<(), Error> {
    let runtime = runtime()?;
    let leads = runtime.block_on(leader(cluster))?;
    let gone = if leads == "n6" { "n5" } else { "n6" };
    let memory = || {
        let process = cluster.process(&leads)?.ok_or_else(|| Error::Bench(format!("{leads} does not run")))?;
        resident_bytes(process.pid())
    };
    let disk = || disk_bytes(&cluster.directory().node(&leads), "");
    let (memory_before, disk_before) = (memory()?, disk()?);
    let (mut calm, mut busy, lost, took, peaks) = runtime.block_on(async {
        // Away from the leader, and from the one that goes.
        let away = ["n1", "n2"].into_iter().find(|name| *name != leads).expect("one of them follows");
        let load = client_of(cluster, away).await?;
        let (calm, lost_before) = Steady::begin(load.clone()).after(sleep(CALM)).await;

        let client = client_of(cluster, &leads).await?;
        let steady = Steady::begin(load);
        let begun = Instant::now();
        let operation = client.remove_node(&name(gone), &Removal::default()).await.map_err(failed("remove"))?;
        // Of the first half of the keys, and of all.
        let mut peaks = [memory_before; 2];
        // Until it is the ACTIVE epoch.
        loop {
            let status = client.status().await.map_err(failed("ask for the epoch"))?;
            if status.epoch >= operation {
                break;
            }
            let now = memory()?;
            peaks[1] = peaks[1].max(now);
            if keys_left(&status).is_none_or(|left| left > MANY / 2) {
                peaks[0] = peaks[1];
            }
            sleep(10 * LOOK).await;
        }
        let took = begun.elapsed();
        let (busy, lost) = steady.after(std::future::ready(())).await;
        over(&client, operation).await?;
        Ok::<_, Error>((calm, busy, lost_before + lost, took, peaks))
    })?;

    let seconds = took.as_secs_f64();
    let row = Row::new(format!("reshare {MANY} key versions to five, clients at work"), format!("{seconds:.1} s"));
    table.push(row.target("≤ 30 s", seconds <= 30.0));
    let rate = MANY as f64 / seconds;
    let row = Row::new("the same, key versions a second", format!("{rate:.0} /s"));
    table.push(row.target("≥ 5000 /s", rate >= 5_000.0));
    for (what, part) in [("p50", 0.5), ("p99", 0.99)] {
        let (before, during) = (millis(quantile(&mut calm, part)), millis(quantile(&mut busy, part)));
        let row = Row::new(
            format!("encrypt 128 B meanwhile, {} a second, {what}", 1_000 / DUE.as_millis()),
            format!("{during:.2} ms"),
        );
        let row = row.beside(format!("before {before:.2} ms"), format!("{:+.2} ms", during - before));
        table.push(if what == "p99" { row.target("≤ 10 ms", during <= 10.0) } else { row });
    }
    let row = Row::new(format!("encrypt meanwhile: requests lost, of {}", calm.len() + busy.len()), lost.to_string());
    table.push(row.target("0", lost == 0));
    let [half, all] = peaks.map(|peak| (peak - memory_before) as f64 / 1e6);
    let records = (layout::record(HOLDERS) as u64 * MANY) as f64 / 1e6;
    let row = Row::new(format!("memory of the leader: growth while it deals {MANY}"), format!("{all:.0} MB"));
    table.push(row.beside(format!("all new records {records:.0} MB"), format!("{:.1} times", all / records)));
    let row = Row::new("memory of the leader: growth with the second half", format!("{:.0} MB", all - half));
    let bytes = (all - half) * 1e6 / (MANY / 2) as f64;
    table.push(row.beside(format!("with the first {half:.0} MB"), format!("{bytes:.0} B per key version")));
    let written = disk()?.saturating_sub(disk_before) as f64 / MANY as f64;
    let row = Row::new("disk of the leader: growth, per key version", format!("{written:.0} B"));
    let rows = layout::record_row(HOLDERS);
    table.push(row.beside(format!("its new record {rows} B"), format!("{:.1} times", written / rows as f64)));
    Ok(())
}

/// How many versions are still to be reshared.
fn keys_left(status: &Status) -> Option<u64> {
    status.operation.as_ref()?.left
}

fn name(node: &str) -> NodeName {
    node.parse().expect("a name")
}

/// Clients that encrypt at a steady pace, whatever becomes of what they asked before.
struct Steady {
    stop: Arc<AtomicBool>,
    task: JoinHandle<(Vec<Duration>, usize)>,
}

impl Steady {
    fn begin(client: Client) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let (mut due, mut asked) = (interval(DUE), JoinSet::new());
            due.set_missed_tick_behavior(MissedTickBehavior::Burst);
            for number in 0.. {
                let moment = due.tick().await;
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let client = client.clone();
                asked.spawn(async move {
                    let done = client.encrypt(&key(number % 100), &Context::empty(), &[7; 128]).await;
                    done.ok().map(|_| moment.elapsed())
                });
            }
            let all = asked.join_all().await;
            let count = all.len();
            let taken: Vec<Duration> = all.into_iter().flatten().collect();
            let lost = count - taken.len();
            (taken, lost)
        });
        Self { stop, task }
    }

    /// How long each request took until `end` came, and how many failed.
    async fn after(self, end: impl Future<Output = ()>) -> (Vec<Duration>, usize) {
        end.await;
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("it does not panic")
    }
}
