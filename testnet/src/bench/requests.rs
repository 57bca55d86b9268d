//! Requests of one client to one node: how many, how fast, and what each costs the node.
//!
//! An echo takes the same way as an encryption (client, QUIC, frame, token, lease, answer) and does nothing at its end, so
//! the difference is what the work itself costs. Client and node share the cores of the machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use quorate_client::error::Error as ClientError;
use quorate_client::route::Client;
use quorate_shares::context::Context;
use quorate_shares::ids::KeyName;
use tokio::task::JoinSet;

use super::figures::{Row, Table, micros, quantile};
use super::machine::processor_time;
use super::{client_of, failed, runtime};
use crate::base::error::Error;
use crate::cluster::Cluster;

const IN_FLIGHT: usize = 64;
const BYTES: usize = 128;
/// How long each load runs, and how often: the loads take turns and the median counts.
const LOAD: Duration = Duration::from_secs(3);
const ROUNDS: usize = 3;
/// Calls one after the other, in blocks that take turns.
const BLOCKS: usize = 20;
const BLOCK: usize = 200;
const NODE: &str = "n1";

#[derive(Clone, Copy, PartialEq)]
enum Ask {
    Echo,
    Encrypt,
    Decrypt,
}

const ASKS: [Ask; 3] = [Ask::Echo, Ask::Encrypt, Ask::Decrypt];

struct Load {
    client: Client,
    key: KeyName,
    context: Context,
    ciphertext: String,
}

impl Load {
    async fn ask(&self, ask: Ask) -> Result<(), ClientError> {
        match ask {
            Ask::Echo => self.client.echo(&[7; BYTES]).await.map(drop),
            Ask::Encrypt => self.client.encrypt(&self.key, &self.context, &[7; BYTES]).await.map(drop),
            Ask::Decrypt => self.client.decrypt(&self.ciphertext, &self.context).await.map(drop),
        }
    }
}

/// Requests per second, and the node's processor time for each.
#[derive(Clone, Copy)]
struct Rate {
    per_second: f64,
    server: Duration,
}

pub(super) fn measure(cluster: &Cluster, table: &mut Table) -> Result<(), Error> {
    let pid = cluster.process(NODE)?.ok_or_else(|| Error::Bench(format!("{NODE} does not run")))?.pid();
    let (rates, medians) = runtime()?.block_on(async {
        let load = Arc::new(load(cluster).await?);
        let mut rates = [const { Vec::new() }; 3];
        for _ in 0..ROUNDS {
            for (ask, rates) in ASKS.into_iter().zip(&mut rates) {
                rates.push(rate(&load, ask, pid).await?);
            }
        }
        let medians = one_by_one(&load).await?;
        Ok::<_, Error>((rates.map(median), medians))
    })?;
    report(table, rates, medians);
    Ok(())
}

async fn load(cluster: &Cluster) -> Result<Load, Error> {
    let client = client_of(cluster, NODE).await?;
    let (key, context): (KeyName, _) = ("bench/requests".parse().expect("a key name"), Context::empty());
    client.create_key(&key, Default::default()).await.map_err(failed("make a key"))?;
    let ciphertext = client.encrypt(&key, &context, &[7; BYTES]).await.map_err(failed("encrypt"))?;
    Ok(Load { client, key, context, ciphertext })
}

async fn rate(load: &Arc<Load>, ask: Ask, pid: u32) -> Result<Rate, Error> {
    let done = Arc::new(AtomicU64::new(0));
    let (begun, used) = (Instant::now(), processor_time(pid)?);
    let mut callers = JoinSet::new();
    for _ in 0..IN_FLIGHT {
        let (load, done) = (Arc::clone(load), Arc::clone(&done));
        callers.spawn(async move {
            while begun.elapsed() < LOAD {
                load.ask(ask).await?;
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller.expect("a caller does not panic").map_err(failed("keep requests in flight"))?;
    }
    let (took, used) = (begun.elapsed(), processor_time(pid)?.saturating_sub(used));
    let done = done.load(Ordering::Relaxed);
    let server = used.div_f64(done.max(1) as f64);
    Ok(Rate { per_second: done as f64 / took.as_secs_f64(), server })
}

fn median(mut rates: Vec<Rate>) -> Rate {
    rates.sort_by(|one, other| one.per_second.total_cmp(&other.per_second));
    rates[rates.len() / 2]
}

/// The median times of calls with nothing else in flight.
async fn one_by_one(load: &Load) -> Result<[Duration; 3], Error> {
    let mut samples = [const { Vec::new() }; 3];
    for _ in 0..BLOCKS {
        for (ask, samples) in ASKS.into_iter().zip(&mut samples) {
            for _ in 0..BLOCK {
                let begun = Instant::now();
                load.ask(ask).await.map_err(failed("ask once"))?;
                samples.push(begun.elapsed());
            }
        }
    }
    Ok(samples.map(|mut samples| quantile(&mut samples, 0.5)))
}

fn report(table: &mut Table, [echo, encrypt, decrypt]: [Rate; 3], medians: [Duration; 3]) {
    let thousand = |rate: Rate| format!("{:.0} k/s", rate.per_second / 1e3);
    let row = Row::new("echo 128 B, 64 in flight", thousand(echo));
    table.push(row.target("≥ 250 k/s", echo.per_second >= 250e3));
    for (what, rate, target) in [("encrypt", encrypt, Some(150e3)), ("decrypt", decrypt, None)] {
        let ratio = format!("{:.0} %", rate.per_second / echo.per_second * 100.0);
        let row = Row::new(format!("{what} 128 B, 64 in flight"), thousand(rate));
        let row = row.beside(format!("echo {}", thousand(echo)), ratio);
        table.push(match target {
            Some(target) => row.target(format!("≥ {:.0} k/s", target / 1e3), rate.per_second >= target),
            None => row,
        });
    }
    let cost = |rate: Rate| format!("{:.2} µs", micros(rate.server));
    table.push(Row::new("processor time of the node per echo", cost(echo)));
    for (what, rate) in [("encrypt", encrypt), ("decrypt", decrypt)] {
        let more = micros(rate.server) - micros(echo.server);
        let row = Row::new(format!("processor time of the node per {what}"), cost(rate));
        table.push(row.beside(format!("echo {}", cost(echo)), format!("{more:+.2} µs")));
    }
    let [echo, encrypt, decrypt] = medians.map(micros);
    for (what, time) in [("encrypt", encrypt), ("decrypt", decrypt)] {
        let ratio = time / echo;
        let row = Row::new(format!("{what} 128 B, one in flight, p50"), format!("{time:.0} µs"));
        let row = row.beside(format!("echo {echo:.0} µs"), format!("{ratio:.2}"));
        table.push(row.target("≤ 1.5", ratio <= 1.5));
    }
}
