//! Process death and power loss at every moment of a write.
//!
//! A recording disk keeps each call. The machine can stop after every call. At that moment everything before the last sync is
//! on the medium. Of the later writes, any subset of the 512-byte sectors that differ is on the medium. If few sectors differ,
//! all subsets are tried; otherwise many random ones. The seed is printed.
//!
//! Mutated: writing both slots before one sync fails here, and so does an open that repairs nothing.

use std::io;
use std::sync::{Arc, Mutex};

use super::format::full;
use crate::vault::disk::{Disk, SLOT_BYTES, VaultSlot};
use crate::vault::file::VaultFile;
use crate::vault::{Damage, Vault, VaultError, slot};

const SECTOR: usize = 512;
const RANDOM_SUBSETS: u64 = 24;

type Image = [Vec<u8>; 2];

#[derive(Clone)]
enum Call {
    Write(VaultSlot, Vec<u8>),
    Sync,
}

#[derive(Default)]
struct Medium {
    image: Image,
    calls: Vec<Call>,
    fail_at: Option<usize>,
}

/// A disk in memory that records its calls.
#[derive(Clone)]
struct Recorder(Arc<Mutex<Medium>>);

impl Recorder {
    fn on(image: Image) -> Self {
        Self(Arc::new(Mutex::new(Medium { image, ..Medium::default() })))
    }

    fn with<R>(&self, look: impl FnOnce(&mut Medium) -> R) -> R {
        look(&mut self.0.lock().expect("no test panics while it holds this"))
    }

    fn record(&self, call: Call) -> io::Result<()> {
        self.with(|medium| {
            if medium.fail_at.is_some_and(|at| medium.calls.len() >= at) {
                return Err(io::Error::other("pulled out"));
            }
            if let Call::Write(slot, bytes) = &call {
                medium.image[index(*slot)].clone_from(bytes);
            }
            medium.calls.push(call);
            Ok(())
        })
    }
}

impl Disk for Recorder {
    fn read(&mut self, slot: VaultSlot, into: &mut [u8; SLOT_BYTES]) -> io::Result<()> {
        self.with(|medium| into.copy_from_slice(&medium.image[index(slot)]));
        Ok(())
    }

    fn write(&mut self, slot: VaultSlot, bytes: &[u8; SLOT_BYTES]) -> io::Result<()> {
        self.record(Call::Write(slot, bytes.to_vec()))
    }

    fn sync(&mut self) -> io::Result<()> {
        self.record(Call::Sync)
    }
}

fn index(slot: VaultSlot) -> usize {
    match slot {
        VaultSlot::First => 0,
        VaultSlot::Second => 1,
    }
}

fn at_rest(seq: u64, vault: &Vault) -> Image {
    let slot = slot::seal(seq, &vault.encode().expect("a small vault"));
    [slot.expose().to_vec(), slot.expose().to_vec()]
}

/// Every image that a crash after `calls` can leave on a medium that held `before`.
fn crashes(before: &Image, calls: &[Call], random: &mut impl FnMut() -> u64) -> Vec<Image> {
    let synced = calls.iter().rposition(|call| matches!(call, Call::Sync)).map_or(0, |at| at + 1);
    let mut durable = before.clone();
    let apply = |image: &mut Image, calls: &[Call]| {
        for call in calls {
            if let Call::Write(slot, bytes) = call {
                image[index(*slot)].clone_from(bytes);
            }
        }
    };
    apply(&mut durable, &calls[..synced]);
    let mut pending = durable.clone();
    apply(&mut pending, &calls[synced..]);
    let differing: Vec<_> = (0..2)
        .flat_map(|slot| (0..SLOT_BYTES / SECTOR).map(move |sector| (slot, sector * SECTOR..(sector + 1) * SECTOR)))
        .filter(|(slot, range)| durable[*slot][range.clone()] != pending[*slot][range.clone()])
        .collect();
    let subset = |chosen: &mut dyn FnMut(usize) -> bool| {
        let mut image = durable.clone();
        for (_, (slot, range)) in differing.iter().enumerate().filter(|(at, _)| chosen(*at)) {
            image[*slot][range.clone()].copy_from_slice(&pending[*slot][range.clone()]);
        }
        image
    };
    let mut images = vec![durable.clone(), pending.clone()];
    if differing.len() <= 6 {
        images.extend((1..(1u64 << differing.len()) - 1).map(|bits| subset(&mut |at| bits >> at & 1 == 1)));
    } else {
        images.extend((0..differing.len()).map(|only| subset(&mut |at| at == only)));
        images.extend((0..differing.len()).map(|without| subset(&mut |at| at != without)));
        images.extend((0..RANDOM_SUBSETS).map(|_| subset(&mut |_| random() & 1 == 1)));
    }
    images
}

/// SplitMix64: the seed is enough to replay a run.
fn seeded(mut state: u64) -> impl FnMut() -> u64 {
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}

fn short() -> Vault {
    let mut vault = full();
    vault.held.clear();
    vault.founding = None;
    vault
}

fn opens_to_one_of(image: Image, states: &[&[u8]]) -> (Vec<u8>, Recorder) {
    let disk = Recorder::on(image);
    let file = VaultFile::open_on(disk.clone()).expect("no crash costs the vault");
    let body = file.current().encode().expect("a small vault").to_vec();
    assert!(states.contains(&&body[..]), "the vault holds a state that was never written");
    let [first, second] = disk.with(|medium| medium.image.clone());
    assert!(first == second, "after an open both slots are equal, so nothing older survives");
    (body, disk)
}

#[test]
fn a_crash_at_any_moment_leaves_the_old_state_or_the_new_one() {
    let seed = 0x51_0e;
    println!("seed {seed:#x}");
    let mut random = seeded(seed);
    let mut cases = 0;
    for (before, after) in [(full(), short()), (short(), full())] {
        let (old, new) = (before.encode().expect("small"), after.encode().expect("small"));
        for seq in [6, 7] {
            let start = at_rest(seq, &before);
            let disk = Recorder::on(start.clone());
            let mut file = VaultFile::open_on(disk.clone()).expect("it is at rest");
            file.update(|vault| *vault = Vault::parse(&new).expect("it was just encoded")).expect("the disk works");
            let calls = disk.with(|medium| medium.calls.clone());
            for moment in 0..=calls.len() {
                for image in crashes(&start, &calls[..moment], &mut random) {
                    cases += 1;
                    let (body, opened) = opens_to_one_of(image.clone(), &[&old, &new]);
                    if calls[..moment].iter().any(|call| matches!(call, Call::Sync)) {
                        assert!(body == *new, "the new state was durable on one slot, so it wins");
                    }
                    let expected = if body == *new { at_rest(seq + 1, &after) } else { start.clone() };
                    assert!(opened.with(|medium| medium.image == expected), "something else is left on the medium");
                    // Power fails again while the slots are made equal.
                    let mending = opened.with(|medium| medium.calls.clone());
                    for moment in 0..mending.len() {
                        let again = crashes(&image, &mending[..moment], &mut random);
                        for image in again.into_iter().step_by(9) {
                            cases += 1;
                            assert!(opens_to_one_of(image, &[&old, &new]).0 == body, "a second crash turned it back");
                        }
                    }
                }
            }
        }
    }
    println!("{cases} crashes");
    assert!(cases > 1_000);
}

#[test]
fn one_damaged_slot_is_mended_from_the_other() {
    let vault = short();
    let body = vault.encode().expect("small");
    let good = at_rest(4, &vault);
    for slot in [0, 1] {
        let damages: [fn(&mut Vec<u8>); 5] = [
            |slot| slot.fill(0),
            |slot| slot.fill(0xff),
            |slot| slot[20] ^= 1,
            |slot| slot[SLOT_BYTES - 1] = 1,
            |slot| slot[14] = 0xff,
        ];
        for damage in damages {
            let mut image = good.clone();
            damage(&mut image[slot]);
            let (_, disk) = opens_to_one_of(image, &[&body]);
            assert!(disk.with(|medium| medium.image == good));
        }
    }
}

#[test]
fn two_damaged_slots_are_refused_and_left_alone() {
    let mut image = at_rest(4, &short());
    image[0][20] ^= 1;
    image[1].fill(0);
    let disk = Recorder::on(image.clone());
    let error = VaultFile::open_on(disk.clone()).err().expect("nothing to open");
    assert!(matches!(error, VaultError::BothDamaged { first: Damage::Checksum, second: Damage::Header }));
    assert!(error.hint().contains("old copy"));
    assert!(disk.with(|medium| medium.image == image && medium.calls.is_empty()));
}

#[test]
fn what_another_version_wrote_is_refused_and_left_alone() {
    let older = at_rest(4, &short());
    let mut newer = older.clone();
    let body = short().encode().expect("small");
    let unknown = slot::seal(5, &[&body[..], &[7, 0, 0, 0, 1, 9]].concat());
    newer[1] = unknown.expose().to_vec();
    let disk = Recorder::on(newer.clone());
    assert!(matches!(VaultFile::open_on(disk.clone()), Err(VaultError::Content(_))));
    assert!(disk.with(|medium| medium.image == newer && medium.calls.is_empty()));

    let mut other_format = older[1].clone();
    other_format[5] = 1;
    let end = 18 + body.len();
    let checksum = <sha2::Sha256 as sha2::Digest>::digest(&other_format[..end]);
    other_format[end..end + 32].copy_from_slice(&checksum);
    let disk = Recorder::on([older[0].clone(), other_format]);
    assert!(matches!(VaultFile::open_on(disk.clone()), Err(VaultError::Version(1))));
    assert!(disk.with(|medium| medium.calls.is_empty()));
}

#[test]
fn equal_numbers_with_different_content_are_refused() {
    let image = [at_rest(4, &short())[0].clone(), at_rest(4, &full())[0].clone()];
    assert!(matches!(VaultFile::open_on(Recorder::on(image)), Err(VaultError::Contradiction)));
}

#[test]
fn after_a_failed_write_nothing_more_is_written() {
    for fail_at in 0..4 {
        let disk = Recorder::on(at_rest(4, &short()));
        let mut file = VaultFile::open_on(disk.clone()).expect("it is at rest");
        disk.with(|medium| medium.fail_at = Some(fail_at));
        let failed = file.update(|vault| vault.flags.sealed = false);
        assert!(matches!(failed, Err(VaultError::Io { .. })));
        assert!(file.current().flags.sealed, "what is not durable is not shown");
        disk.with(|medium| medium.fail_at = None);
        assert!(matches!(file.update(|vault| vault.flags.sealed = false), Err(VaultError::Broken)));
        assert_eq!(disk.with(|medium| medium.calls.len()), fail_at);
        VaultFile::open_on(disk).expect("the next start opens it");
    }
}

#[test]
fn a_change_that_could_not_be_read_again_is_not_written() {
    let disk = Recorder::on(at_rest(4, &short()));
    let mut file = VaultFile::open_on(disk.clone()).expect("it is at rest");
    let refused = file.update(|vault| vault.roster.members.reverse());
    assert!(matches!(refused, Err(VaultError::Content(_))));
    assert!(disk.with(|medium| medium.calls.is_empty()));
    file.update(|vault| vault.flags.sealed = false).expect("a refused change breaks nothing");
    file.update(|_| ()).expect("no change is no write");
    assert_eq!(disk.with(|medium| medium.calls.len()), 4);
}
