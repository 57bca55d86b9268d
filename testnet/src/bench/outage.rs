//! How long an outage lasts after power is back, and what the first use of a cold key costs.

use std::time::{Duration, Instant};

use quorate_client::route::Options;
use quorate_client::wire::Phase;
use quorate_shares::context::Context;
use quorate_shares::ids::KeyName;

use super::figures::{Row, Table, millis, quantile};
use super::{client, client_of, failed, runtime};
use crate::base::error::Error;
use crate::cluster::{Cluster, PATIENCE};

const RUNS: usize = 10;
/// Between two attempts to decrypt, and between two looks at a phase.
const RETRY: Duration = Duration::from_millis(5);
const COLD_KEYS: usize = 400;

pub(super) fn measure(cluster: &mut Cluster, table: &mut Table) -> Result<(), Error> {
    let key: KeyName = "bench/outage".parse().expect("a key name");
    let ciphertext = runtime()?.block_on(async {
        let client = client_of(cluster, "n1").await?;
        for name in (0..COLD_KEYS).map(cold_key).chain([key.clone()]) {
            client.create_key(&name, Default::default()).await.map_err(failed("make a key"))?;
        }
        client.encrypt(&key, &Context::empty(), b"still here").await.map_err(failed("encrypt"))
    })?;
    let mut samples = Vec::new();
    for _ in 0..RUNS {
        samples.push(all(cluster, &ciphertext)?);
    }
    push(table, "all three killed: last start to first decrypt", samples, (2.0, 3.5));
    let mut samples = Vec::new();
    for run in 0..RUNS {
        samples.push(one(cluster, &format!("n{}", run % 3 + 1))?);
    }
    push(table, "one of three killed: start to serving", samples, (1.0, 1.0));
    cold_keys(cluster, table)
}

fn push(table: &mut Table, what: &str, mut samples: Vec<Duration>, (median_s, worst_s): (f64, f64)) {
    let (median, worst) = (quantile(&mut samples, 0.5).as_secs_f64(), quantile(&mut samples, 1.0).as_secs_f64());
    let row = Row::new(format!("{what}, median of {RUNS}"), format!("{median:.2} s"));
    table.push(row.target(format!("≤ {median_s} s"), median <= median_s));
    let row = Row::new(format!("{what}, worst of {RUNS}"), format!("{worst:.2} s"));
    table.push(row.target(format!("≤ {worst_s} s"), worst <= worst_s));
}

/// Kills every node, starts every node, and asks all the while from the last start on.
fn all(cluster: &mut Cluster, ciphertext: &str) -> Result<Duration, Error> {
    let names = cluster.names();
    names.iter().try_for_each(|name| cluster.kill(name))?;
    let (last, others) = names.split_last().ok_or_else(|| Error::Bench("a cluster without nodes".to_owned()))?;
    others.iter().try_for_each(|name| cluster.start(name))?;
    let begun = Instant::now();
    cluster.start(last)?;
    let took = runtime()?.block_on(async {
        let options = Options { patience: Duration::ZERO, ..Options::default() };
        let client = client(cluster, options).await?;
        loop {
            match client.decrypt(ciphertext, &Context::empty()).await {
                Ok(_) => return Ok(begun.elapsed()),
                Err(error) if begun.elapsed() > PATIENCE => return Err(failed("decrypt after an outage")(error)),
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
    })?;
    cluster.wait_all_serving()?;
    Ok(took)
}

/// Kills one node and starts it again while the others serve.
fn one(cluster: &mut Cluster, name: &str) -> Result<Duration, Error> {
    cluster.kill(name)?;
    let begun = Instant::now();
    cluster.start(name)?;
    loop {
        if cluster.status(name).is_ok_and(|status| status.public.phase == Phase::Serving) {
            return Ok(begun.elapsed());
        }
        if begun.elapsed() > PATIENCE {
            return Err(Error::Bench(format!("{name} does not serve")));
        }
        std::thread::sleep(RETRY);
    }
}

fn cold_key(number: usize) -> KeyName {
    format!("bench/cold-{number:03}").parse().expect("a key name")
}

/// The first encryption under each of some keys at a node that has none of them in memory, and the second one.
fn cold_keys(cluster: &Cluster, table: &mut Table) -> Result<(), Error> {
    let (mut cold, mut warm) = runtime()?.block_on(async {
        let client = client_of(cluster, "n2").await?;
        let (mut cold, mut warm) = (Vec::new(), Vec::new());
        for key in (0..COLD_KEYS).map(cold_key) {
            for samples in [&mut cold, &mut warm] {
                let begun = Instant::now();
                let done = client.encrypt(&key, &Context::empty(), &[7; 128]).await;
                done.map_err(failed("encrypt under a cold key"))?;
                samples.push(begun.elapsed());
            }
        }
        // The first calls open the connection and its stream.
        Ok::<_, Error>((cold.split_off(1), warm.split_off(1)))
    })?;
    for (name, part, limit) in [("p50", 0.5, 3.0), ("p99", 0.99, 3.0)] {
        let (cold, warm) = (millis(quantile(&mut cold, part)), millis(quantile(&mut warm, part)));
        let row = Row::new(format!("first use of a cold key, {name}"), format!("{cold:.2} ms"));
        let row = row.beside(format!("second use {warm:.2} ms"), format!("{:+.2} ms", cold - warm));
        table.push(row.target(format!("≤ {limit} ms"), cold <= limit));
    }
    Ok(())
}
