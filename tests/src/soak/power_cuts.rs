//! T12, the database's half: processes die and disks lose power at random moments while clients work, and every
//! acknowledged write is there.
//!
//! A power cut kills the process and takes from its disk what was not synced; of the pages that were on their way a few may
//! have arrived, in any order ([`quorate_testnet::faults::disk`]). Where such disks cannot be mounted only processes die. The run is
//! short; `QUORATE_SOAK_MINUTES` makes it long, and `QUORATE_SEED` repeats one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use quorate_client::Code;
use quorate_testnet::Cluster;
use quorate_testnet::faults::disk::Disk;
use quorate_testnet::load::{Load, Options};

use crate::harness::{Dice, TestCluster, name, seed};

const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// How often something happens in the short run.
const ROUNDS: u64 = 6;
/// What clients do between two events, at most.
const DONE_BETWEEN: usize = 150;
/// Vaults are written all the time, too.
const RENEWALS: &str = "[timing]\nrenew_lock_after_ms = 50\nrenew_lock_every_ms = 500\n";
/// Longer than a whole cluster takes to come back on a busy machine.
const OUTAGE: Duration = Duration::from_secs(120);

/// How long it goes on.
struct Until {
    end: Option<Instant>,
    rounds: u64,
}

impl Until {
    fn given() -> Self {
        let minutes = std::env::var("QUORATE_SOAK_MINUTES").ok();
        let minutes = minutes.map(|text| text.parse::<u64>().expect("QUORATE_SOAK_MINUTES is a number"));
        Self { end: minutes.map(|minutes| Instant::now() + Duration::from_secs(60 * minutes)), rounds: 0 }
    }

    fn goes_on(&mut self) -> bool {
        self.rounds += 1;
        self.end.map_or(self.rounds <= ROUNDS, |end| Instant::now() < end)
    }
}

/// D3, D6, D7 and L1. Mutated: acknowledging entries before they are synced loses keys when all lose power at once.
#[test]
fn power_cuts_take_nothing_that_was_acknowledged() {
    let mut dice = Dice::new(seed());
    let disks = Disk::is_possible();
    if let Err(error) = &disks {
        println!("NOT TESTED: loss of power: no disk in user space: {error}; processes die all the same");
    }
    let with_disk = |builder: quorate_testnet::Builder, node: &str| {
        if disks.is_ok() { builder.disk(node) } else { builder }
    };
    let mut cluster = TestCluster::of(NODES.into_iter().fold(Cluster::builder().settings(RENEWALS), with_disk));
    let options = Options { clients: 6, rest: Duration::from_millis(10), patience: OUTAGE };
    let load = cluster.block(Load::start(&cluster.file(), &cluster.token(), &options)).expect("clients start");
    let (mut made, mut until, mut lost) = (Vec::new(), Until::given(), 0);
    while until.goes_on() {
        let more = load.tally().done + dice.below(DONE_BETWEEN) as u64;
        cluster.until("clients to go on", || (load.tally().done >= more).then_some(()));
        // Acknowledged a moment before.
        let key = format!("made/{}", made.len());
        let client = cluster.client(None);
        cluster.until("a key is made", || match cluster.block(client.create_key(&name(&key), BTreeMap::new())) {
            Ok(_) => Some(()),
            // Made, and the answer was late.
            Err(error) => (error.code() == Code::Conflict).then_some(()),
        });
        made.push(key);

        let first = dice.below(NODES.len());
        let victims: Vec<_> = NODES.into_iter().cycle().skip(first).take(1 + dice.below(NODES.len())).collect();
        let cut = until.rounds == 1 || dice.below(4) > 0;
        let some_survive = dice.below(2) > 0;
        victims.iter().for_each(|node| cluster.testnet.kill(node).expect("dies"));
        if cut && disks.is_ok() {
            for node in &victims {
                let disk = cluster.testnet.disk(node).expect("it has one");
                lost += disk.lose_power(|| some_survive && dice.below(2) > 0).expect("the directory below is good");
            }
        }
        println!(
            "{}: {victims:?}, power lost: {cut}, some pages survive: {some_survive}; {:?}",
            until.rounds,
            load.tally()
        );
        cluster.start(&victims);
        cluster.testnet.wait_serving(&NODES).expect("all serve again");
    }
    let outcome = cluster.block(load.stop());
    println!("{} ciphertexts, {} keys besides, {lost} pages lost", outcome.sealed, made.len());
    assert!(disks.is_err() || lost > 0, "the control: something was not synced");
    assert_eq!(outcome.unexpected, Vec::<String>::new());
    for node in NODES {
        let client = cluster.client(Some(node));
        assert_eq!(cluster.block(outcome.open_all(&client)), Vec::<String>::new(), "{node}");
        for key in &made {
            cluster.block(client.show_key(&name(key))).unwrap_or_else(|error| panic!("{node}: {key}: {error}"));
        }
    }
}
