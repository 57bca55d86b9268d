//! Sealing and opening a message beside the bare cipher: what the derivation per message, the commitment and the header
//! cost on top.

use std::hint::black_box;
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use quorate_node::base::random;
use quorate_shares::context::Context;
use quorate_shares::envelope::{self, CiphertextHeader, CiphertextKind, Suite};
use quorate_shares::ids::KeyVersion;
use quorate_shares::master::EncryptionRoot;
use quorate_shares::secret::Secret;

use super::figures::{Row, Table, micros, quantile};

/// One batch is as many calls as take about this long; batches of the two that are compared take turns.
const BATCH: Duration = Duration::from_millis(4);
const BATCHES: usize = 120;

pub(super) fn measure(table: &mut Table) {
    for (bytes, label) in [(64, "64 B"), (65_536, "64 KiB")] {
        let [seal, open, bare_seal, bare_open] = times(bytes);
        let twins = [("seal", seal, bare_seal, 2.0), ("open", open, bare_open, 1.5)];
        for (verb, ours, bare, limit) in twins {
            let row = if bytes == 64 {
                let more = micros(ours) - micros(bare);
                Row::new(format!("{verb} {label}"), format!("{:.2} µs", micros(ours)))
                    .beside(format!("bare AEAD {:.2} µs", micros(bare)), format!("+{more:.2} µs"))
                    .target(format!("≤ +{limit:.1} µs"), more <= limit)
            } else {
                let bandwidth = |time: Duration| bytes as f64 / time.as_secs_f64() / 1e6;
                let ratio = bandwidth(ours) / bandwidth(bare);
                Row::new(format!("{verb} {label}"), format!("{:.0} MB/s", bandwidth(ours)))
                    .beside(format!("bare AEAD {:.0} MB/s", bandwidth(bare)), format!("{:.0} %", ratio * 100.0))
                    .target("≥ 80 %", ratio >= 0.8)
            };
            table.push(row);
        }
    }
}

/// Median time of one call: seal, open, and the bare cipher's twins of both.
fn times(bytes: usize) -> [Duration; 4] {
    let root = EncryptionRoot::from_secret(Secret::random(&mut random::system()));
    let name = "customers/records".parse().expect("a key name");
    let header = CiphertextHeader {
        kind: CiphertextKind::Message,
        suite: Suite::ChaCha20Poly1305,
        name,
        version: KeyVersion(1),
    };
    let context = Context::new([("table", "customers")]).expect("one short name");
    let plaintext = vec![7; bytes];
    let ciphertext = envelope::seal(&root, header.clone(), &context, &plaintext, &mut random::system());
    let ciphertext = ciphertext.expect("at most 64 KiB");

    let bare = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &[9; 32]).expect("32 bytes are a key"));
    let nonce = || Nonce::assume_unique_for_key([0; 12]);
    let mut sealed = plaintext.clone();
    bare.seal_in_place_append_tag(nonce(), Aad::empty(), &mut sealed).expect("short");
    let (mut body, mut bare_body) = (Vec::with_capacity(bytes + 256), Vec::with_capacity(bytes + 256));
    let (mut plain, mut bare_plain) = (Vec::with_capacity(bytes + 256), Vec::with_capacity(bytes + 256));

    let mut calls: [Box<dyn FnMut() + '_>; 4] = [
        Box::new(|| {
            body.clear();
            let rng = &mut random::system();
            envelope::seal_into(&root, &header, &context, black_box(&plaintext), rng, &mut body).expect("short");
        }),
        Box::new(|| {
            plain.clear();
            envelope::open_into(&root, black_box(&ciphertext), &context, &mut plain).expect("our own");
        }),
        Box::new(|| {
            bare_body.clear();
            bare_body.extend_from_slice(black_box(&plaintext));
            bare.seal_in_place_append_tag(nonce(), Aad::empty(), &mut bare_body).expect("short");
        }),
        Box::new(|| {
            bare_plain.clear();
            bare_plain.extend_from_slice(black_box(&sealed));
            bare.open_in_place(nonce(), Aad::empty(), &mut bare_plain).expect("our own");
        }),
    ];
    let counts = calls.each_mut().map(calls_per_batch);
    let mut samples = [const { Vec::new() }; 4];
    for _ in 0..BATCHES {
        for ((call, count), samples) in calls.iter_mut().zip(counts).zip(&mut samples) {
            samples.push(time(call, count) / count);
        }
    }
    samples.map(|mut samples| quantile(&mut samples, 0.5))
}

fn calls_per_batch(call: &mut Box<dyn FnMut() + '_>) -> u32 {
    let mut count = 1;
    while time(call, count) < BATCH {
        count *= 2;
    }
    count
}

fn time(call: &mut Box<dyn FnMut() + '_>, count: u32) -> Duration {
    let begun = Instant::now();
    (0..count).for_each(|_| call());
    begun.elapsed()
}
