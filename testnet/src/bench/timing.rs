//! Whether running time tells anything about secrets: Welch's t over two classes of inputs, as dudect does it
//! (Reparaz, Balasch, Verbauwhede: "Dude, is my code constant time?", DATE 2017).
//!
//! The classes are drawn at random, call by call. Below 4.5 nothing was found, which proves nothing; far above it, the
//! running time depends on the class. A comparison that stops at the first difference is measured as well: it shows that
//! the measurement would see one.

use std::hint::black_box;
use std::time::{Duration, Instant};

use quorate_node::base::random;
use quorate_shares::context::Context;
use quorate_shares::envelope::{self, Ciphertext, CiphertextHeader, CiphertextKind, Suite};
use quorate_shares::ids::{BatchId, ClusterId, Epoch, KeyUid, KeyVersion, NodeId, ShareKeyGeneration};
use quorate_shares::kem::PublicKey;
use quorate_shares::master::{EncryptionRoot, KeyIdentity, MasterKey};
use quorate_shares::quorum::Quorum;
use quorate_shares::seal::{Committee, CommitteeMember, RecordedShare, ShareRecord, share_commitment};
use quorate_shares::secret::Secret;
use quorate_shares::split::Threshold;

use super::figures::{Row, Table, micros, quantile};
use crate::base::error::Error;

/// Calls per measurement, both classes together.
const CALLS: usize = 60_000;
/// The slowest calls were interrupted by something; they are left out of both classes alike.
const KEPT: f64 = 0.95;
/// Beyond it, the classes differ.
const T_LIMIT: f64 = 4.5;
/// Ciphertexts refused per kind of damage.
const REFUSALS: usize = 20_000;

const IDENTITY: KeyIdentity = KeyIdentity { cluster: ClusterId([1; 16]), uid: KeyUid([2; 16]), version: KeyVersion(1) };

pub(super) fn measure(table: &mut Table) -> Result<(), Error> {
    let verdict = |what: &str, t: f64| {
        Row::new(what, format!("t = {:.1}", t.abs())).target(format!("< {T_LIMIT}"), t.abs() < T_LIMIT)
    };
    table.push(verdict("combine shares, fixed or random", combine()?));
    table.push(verdict("compare a commitment, first or last byte wrong", commitment()?));
    table.push(verdict("compare a key-check value, first or last byte wrong", key_check()));
    let control = format!("t = {:.1}", early_exit().abs());
    table.push(Row::new("control: a comparison that stops early", control).beside("", "must be far above"));
    refusals(table);
    Ok(())
}

/// The key is rebuilt from the same two shares again and again, or from random ones; the key-check value fits neither.
fn combine() -> Result<f64, Error> {
    let fixed = [Secret::copy_of(&[0; 32]), Secret::copy_of(&[0; 32])].map(|share| share.expect("32 bytes"));
    let committee = committee()?;
    welch(
        |random_class| {
            // Both are made for either class, so that the caches are in the same state.
            let random = [Secret::random(&mut random::system()), Secret::random(&mut random::system())];
            let fixed = fixed.each_ref().map(Secret::duplicate);
            let (shares, _unused) = if random_class { (random, fixed) } else { (fixed, random) };
            let record = record(&shares);
            let mut quorum = Quorum::new(record, IDENTITY, &committee, [0; 32]).expect("made for one another");
            for (x, share) in (1..).zip(shares) {
                quorum.add(NodeId(x.into()), x, share).expect("the record commits to it");
            }
            quorum
        },
        |quorum| drop(black_box(quorum.close())),
    )
}

/// A share is added whose commitment differs from the record's in its first byte, or in its last.
fn commitment() -> Result<f64, Error> {
    let committee = committee()?;
    let share = Secret::random(&mut random::system());
    let records = [0, 15].map(|wrong: usize| {
        let mut record = record(&[share.duplicate(), share.duplicate()]);
        record.shares[0].commitment[wrong] ^= 1;
        record
    });
    welch(
        |last| {
            let record = records[usize::from(last)].clone();
            let quorum = Quorum::new(record, IDENTITY, &committee, [0; 32]).expect("made for one another");
            (quorum, share.duplicate())
        },
        |(mut quorum, share)| {
            let refused = quorum.add(NodeId(1), 1, share).is_err();
            black_box(refused);
        },
    )
}

fn key_check() -> f64 {
    let key = MasterKey::random(&mut random::system());
    let wrong = [0, 31].map(|at: usize| {
        let mut kcv = key.kcv(&IDENTITY);
        kcv[at] ^= 1;
        kcv
    });
    let compared = welch(
        |last| wrong[usize::from(last)],
        |kcv| {
            black_box(key.matches(&IDENTITY, black_box(&kcv)));
        },
    );
    compared.unwrap_or_default()
}

fn early_exit() -> f64 {
    let right = [7u8; 256];
    let compared = welch(
        |last| {
            let mut wrong = right;
            wrong[if last { 255 } else { 0 }] ^= 1;
            wrong
        },
        |wrong| {
            for _ in 0..8 {
                let right = black_box(&right);
                black_box(right.iter().zip(black_box(&wrong)).all(|(one, other)| one == other));
            }
        },
    );
    compared.unwrap_or_default()
}

/// Welch's t between the running times of the two classes.
fn welch<T>(mut prepare: impl FnMut(bool) -> T, mut run: impl FnMut(T)) -> Result<f64, Error> {
    let mut calls = Vec::with_capacity(CALLS);
    let classes: Vec<u8> = (0..CALLS / 8).flat_map(|_| random::bytes::<8>()).collect();
    for class in classes {
        let class = class & 1 == 1;
        let input = prepare(class);
        let begun = Instant::now();
        run(input);
        calls.push((class, begun.elapsed()));
    }
    let mut all: Vec<Duration> = calls.iter().map(|(_, time)| *time).collect();
    let limit = quantile(&mut all, KEPT);
    let class = |wanted: bool| {
        let kept = calls.iter().filter(move |(class, time)| *class == wanted && *time <= limit);
        moments(kept.map(|(_, time)| micros(*time)).collect())
    };
    let ((mean_a, square_a), (mean_b, square_b)) = (class(false), class(true));
    let error = (square_a + square_b).sqrt();
    if error.is_nan() {
        return Err(Error::Bench("a class of inputs was never drawn".to_owned()));
    }
    Ok(if error == 0.0 { 0.0 } else { (mean_a - mean_b) / error })
}

/// Mean, and variance over the number of samples.
fn moments(samples: Vec<f64>) -> (f64, f64) {
    let count = samples.len() as f64;
    let mean = samples.iter().sum::<f64>() / count;
    let variance = samples.iter().map(|sample| (sample - mean).powi(2)).sum::<f64>() / (count - 1.0);
    (mean, variance / count)
}

fn committee() -> Result<Committee, Error> {
    let member = |node: u8| {
        let seed = Secret::copy_of(&[node; 32]).expect("32 bytes");
        let (node, generation) = (NodeId(node.into()), ShareKeyGeneration(1));
        CommitteeMember { node, generation, public_key: PublicKey::of_seed(&seed) }
    };
    let committee = Committee::new(Epoch(1), 2, (1..=2).map(member).collect());
    committee.map_err(|error| Error::Bench(error.to_string()))
}

/// A record that commits to `shares`; what it holds sealed is never opened here.
fn record(shares: &[Secret<32>; 2]) -> ShareRecord {
    let threshold = Threshold::new(2, 2).expect("two of two");
    let (batch, epoch) = (BatchId([3; 16]), Epoch(1));
    let sealed = (1..).zip(shares).map(|(x, share)| RecordedShare {
        commitment: share_commitment(&IDENTITY, batch, epoch, threshold, x, share),
        sealed: [0; 48],
    });
    let (uid, version) = (IDENTITY.uid, IDENTITY.version);
    ShareRecord { batch, index: 0, epoch, uid, version, threshold, shares: sealed.collect(), recovery: None }
}

/// How long a refusal takes, by what is wrong: all have one answer, and are told apart at most by time.
fn refusals(table: &mut Table) {
    let root = EncryptionRoot::from_secret(Secret::random(&mut random::system()));
    let name = "customers/records".parse().expect("a key name");
    let header = CiphertextHeader {
        kind: CiphertextKind::Message,
        suite: Suite::ChaCha20Poly1305,
        name,
        version: KeyVersion(1),
    };
    let (context, other) = (Context::empty(), Context::new([("a", "b")]).expect("one short name"));
    let sealed = envelope::seal(&root, header, &context, &[7; 64], &mut random::system()).expect("short");
    let binary = sealed.to_binary();
    let body = binary.len() - (24 + 32 + 64 + 16);
    let damaged = |at: usize| {
        let mut bytes = binary.clone();
        bytes[at] ^= 1;
        Ciphertext::parse_binary(&bytes).expect("well formed all the same")
    };
    let cases = [
        ("context", sealed, &other),
        ("salt", damaged(body), &context),
        ("commitment", damaged(body + 24), &context),
        ("message", damaged(body + 56), &context),
        ("tag", damaged(binary.len() - 1), &context),
    ];
    let mut samples = cases.each_ref().map(|_| Vec::with_capacity(REFUSALS));
    for _ in 0..REFUSALS {
        for ((_, ciphertext, context), samples) in cases.iter().zip(&mut samples) {
            let begun = Instant::now();
            black_box(envelope::open(&root, black_box(ciphertext), context).is_err());
            samples.push(begun.elapsed());
        }
    }
    let medians = samples.map(|mut samples| micros(quantile(&mut samples, 0.5)));
    let each: Vec<_> = cases.iter().zip(medians).map(|((what, ..), time)| format!("{what} {time:.2}")).collect();
    let (least, most) = medians.iter().fold((f64::MAX, 0.0f64), |(low, high), time| (low.min(*time), high.max(*time)));
    let row = Row::new("refuse a damaged ciphertext, median", format!("{:.2} µs apart", most - least));
    table.push(row.beside(format!("{} µs", each.join(", ")), ""));
}
