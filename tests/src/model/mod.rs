//! The model: a whole cluster in one thread, in virtual time, from one seed.
//!
//! Everything that the program decides purely is run as it is: `apply` and the plan, phases, leases, the cache of roots, the
//! keys for locks, the real vault on a disk that loses power, dealing, opening and reconstructing from shares, ciphertexts. What is
//! I/O there is replaced here: tasks by a shell that keeps their order ([`node`]), openraft by a small Raft ([`raft`]), QUIC by
//! a network that delays, drops, repeats and partitions ([`network`]), the clocks by one that the scheduler moves ([`world`]).
//!
//! Processes are killed and lose power, in the middle of a write too; they are stopped and go on with an answer in hand;
//! machines sleep; holders send wrong shares; a leader proposes nonsense; a stranger asks for shares; a thief copies disks.
//! An operator has share keys renewed, and nodes removed, revoked, replaced and invited, at any moment, also while something else is
//! under way, and says it twice: epochs and voters change under all of this, nodes miss some of it, joiners die on the way or
//! never come back, and revoked disks are started again.
//! Clients remember what they were told. After every step the invariants are checked ([`invariants`]); at the end the faults
//! stop, and everything must heal.
//!
//! In reading order: [`world`] holds the machines, their network and the clock; [`actors`] act on them; [`node`] is the daemon
//! and [`raft`] its consensus; [`invariants`] are checked after each step; `heal` is the end of a run.
//!
//! A run replays from its seed, to the last byte:
//!
//! ```text
//! QUORATE_MODEL_SEED=7 QUORATE_MODEL_STEPS=100000 cargo test --workspace --lib model:: -- --nocapture
//! ```
//!
//! What it cannot see: threads and their races, openraft and RocksDB themselves, TLS and connections (a copy of a living node, an
//! old image in place of its node), founding, how an invitation is proved, rosters that are asked for, snapshots, and clocks that run at
//! different rates.

mod actors;
mod heal;
mod invariants;
mod node;
mod raft;
mod world;

use std::time::Instant;

use self::invariants::Seen;
use self::world::World;

/// Steps of one cluster; several run one after the other, each of another shape.
const STEPS_OF_A_RUN: u64 = 20_000;
/// Steps of an ordinary `cargo test`: so many that every kind of operation comes to its end in one of them.
const STEPS: u64 = 60_000;

/// One cluster: `steps` steps of faults, and then the end, when all must be well.
fn run(seed: u64, steps: u64) -> (Seen, u64, [u8; 32]) {
    let mut world = World::new(seed);
    guarded(seed, &mut world, |world| {
        while world.steps < steps {
            world.step();
        }
        world.heal();
    });
    (world.watch.seen, world.now_ms, world.trace())
}

/// Says where a run was when it ended too early.
fn guarded(seed: u64, world: &mut World, act: impl FnOnce(&mut World)) {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| act(world)));
    if let Err(panic) = outcome {
        let (nodes, threshold) = world.shape();
        println!("model: seed {seed}, {threshold} of {nodes}: broken at step {} ({} ms)", world.steps, world.now_ms);
        println!("model: again with QUORATE_MODEL_SEED={seed}");
        std::panic::resume_unwind(panic);
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

/// S1 to S7, D1 to D7, M1, M2, L1, L2, I8, I9 and the lease, for so many steps.
#[test]
fn nothing_is_broken_whatever_happens() {
    let steps = number("QUORATE_MODEL_STEPS").unwrap_or(STEPS);
    let first = number("QUORATE_MODEL_SEED").unwrap_or(1);
    let (mut left, mut seed, mut all) = (steps, first, Seen::default());
    while left > 0 {
        let (steps, began) = (left.min(STEPS_OF_A_RUN), Instant::now());
        let (seen, virtual_ms, _) = run(seed, steps);
        println!(
            "model: seed {seed}: {steps} steps, {} s of virtual time, {:?}: {seen:?}",
            virtual_ms / 1_000,
            began.elapsed()
        );
        (left, seed, all) = (left - steps, seed + 1, all.and(seen));
    }
    // A run that is repeated shows what it shows.
    let repeated = number("QUORATE_MODEL_SEED").is_some() && steps <= STEPS;
    assert!(repeated || steps < STEPS || all.is_eventful(), "too little happened to show anything: {all:?}");
}

/// The same seed is the same run, event by event; another seed is another.
#[test]
fn a_run_replays_from_its_seed() {
    let (one, again, other) = (run(77, 1_500).2, run(77, 1_500).2, run(78, 1_500).2);
    assert_eq!(one, again, "two runs of one seed");
    assert_ne!(one, other, "two seeds");
}
