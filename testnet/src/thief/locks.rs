//! Opening bundles with the lock keys and the pins that lie on stolen disks.
//!
//! A lock should open with enough pieces and its pin, and with nothing else. So the thief tries what should not work, too: every
//! other secret that lies in plain on some stolen disk in the place of the pin, no pin at all, and fewer pieces than the lock
//! says that it needs.

use std::collections::{BTreeMap, BTreeSet};

use quorate_shares::lock::{Bundle, Lock, LockParams, PinPlace, open_piece};
use quorate_shares::secret::Secret;

use super::{Disk, Loot, OpenDisk, bundle, field};
use crate::thief::canary::Canary;

/// Tries to open the bundle of `disk`, with pins that the thief found elsewhere.
pub(super) fn pick<'a>(disk: &'a Disk, disks: &[Disk], pins: &[Vec<u8>], loot: &mut Loot) -> Option<OpenDisk<'a>> {
    let Disk { label, vault, .. } = disk;
    let Some(lock) = &vault.lock else {
        loot.story.push(format!("{label}: no lock yet, and no keys at rest"));
        return None;
    };
    let params = LockParams { cluster: vault.identity.cluster, node: disk.node, generation: lock.generation() };
    let pieces = pieces(lock, &params, disks);
    let (generation, have, need, total) =
        (lock.generation(), pieces.len(), usize::from(lock.needed()), lock.pieces().len());
    let about = format!("{label}: lock of generation {generation}: {have} of {total} pieces, {need} needed");
    let pins = pins_to_try(lock.pin(), pins, disks);
    let opened = match open_as_meant(lock, &params, &pieces, &pins) {
        Some(bundle) => Ok(bundle),
        None => bundle::open(&params, lock, &secrets(&pieces, need), &pins).ok_or(match lock.pin() {
            _ if have < need => "its keys stay locked",
            PinPlace::Inline(_) => "and still its keys stay locked",
            PinPlace::File(_) | PinPlace::Credential(_) => "the pin lies elsewhere, and its keys stay locked",
        }),
    };
    match opened {
        Ok(bundle) => {
            loot.story.push(format!("{about}; its keys are OPEN"));
            loot.bundles += 1;
            note_secrets(label, &bundle, &pieces, loot);
            Some(OpenDisk { disk, bundle })
        }
        Err(reason) => {
            loot.story.push(format!("{about}; {reason}"));
            None
        }
    }
}

/// Opens the lock by the code of the product, with the first of `pins` that does.
fn open_as_meant(
    lock: &Lock,
    params: &LockParams,
    pieces: &BTreeMap<u8, Secret<32>>,
    pins: &[Vec<u8>],
) -> Option<Bundle> {
    let pieces = pieces.iter().take(lock.needed().into()).map(|(x, piece)| (*x, piece.duplicate()));
    let pieces: Vec<_> = pieces.collect();
    pins.iter().find_map(|pin| lock.open(params, &pieces, pin).ok())
}

/// What may be the secret of a lock: what its pieces combine to, also if they are fewer than it needs, and zeros.
fn secrets(pieces: &BTreeMap<u8, Secret<32>>, need: usize) -> Vec<Secret<32>> {
    let combined = |count| field::combine(&pieces.iter().take(count).map(|(x, piece)| (*x, piece)).collect::<Vec<_>>());
    let combined = (1..=need.min(pieces.len())).map(combined);
    // Each piece alone, for a lock whose pieces are not shares at all.
    combined.chain(pieces.values().map(Secret::duplicate)).chain([Secret::zero()]).collect()
}

/// The pin where the lock says that it is, those that the thief found elsewhere, and then whatever lies on the disks.
fn pins_to_try(place: &PinPlace, elsewhere: &[Vec<u8>], disks: &[Disk]) -> Vec<Vec<u8>> {
    let named = match place {
        PinPlace::Inline(pin) => pin.clone(),
        PinPlace::File(name) | PinPlace::Credential(name) => name.clone().into_bytes(),
    };
    let useless = [Vec::new(), vec![0; 16], vec![0; 32]];
    // Copies of one disk hold much that is the same.
    let in_plain: BTreeSet<_> =
        disks.iter().flat_map(|disk| &disk.in_plain).map(|(_, secret)| secret.clone()).collect();
    [named].into_iter().chain(elsewhere.iter().cloned()).chain(useless).chain(in_plain).collect()
}

/// Every piece of `lock` that some key on some stolen disk opens, by its number.
fn pieces(lock: &Lock, params: &LockParams, disks: &[Disk]) -> BTreeMap<u8, Secret<32>> {
    let mut opened = BTreeMap::new();
    for other in disks.iter().filter(|other| other.vault.identity.cluster == params.cluster) {
        let Some(request) = lock.request(params, other.node, [0; 32]) else { continue };
        // Also those that it holds for other nodes: no lock should open with them.
        let held = other.vault.held.iter().flat_map(|held| &held.keys);
        if let Some(piece) = held.into_iter().find_map(|key| open_piece(&key.seed, &request).ok()) {
            opened.insert(request.x, piece);
        }
    }
    opened
}

fn note_secrets(label: &str, bundle: &Bundle, pieces: &BTreeMap<u8, Secret<32>>, loot: &mut Loot) {
    let mut note = |what: String, secret: &Secret<32>| loot.canaries.push(Canary::secret(what, secret.expose()));
    note(format!("op seed of {label}"), &bundle.op_seed);
    for key in &bundle.storage_keys {
        note(format!("storage key {} of {label}", key.number), &key.key);
    }
    for key in &bundle.share_keys {
        note(format!("share key {} of {label}", key.generation), &key.seed);
    }
    for (x, piece) in pieces {
        note(format!("the lock of {label}: piece {x}"), piece);
    }
}
