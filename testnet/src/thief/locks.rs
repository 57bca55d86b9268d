//! Opening bundles with the lock keys that lie on other stolen disks.

use std::collections::BTreeMap;

use quorate_shares::lock::{Bundle, Lock, LockParams, PinPlace, open_piece};
use quorate_shares::secret::Secret;

use super::{Disk, Loot, OpenDisk};
use crate::thief::canary::Canary;

/// Tries to open the bundle of `disk`.
pub(super) fn pick<'a>(disk: &'a Disk, disks: &[Disk], loot: &mut Loot) -> Option<OpenDisk<'a>> {
    let Disk { label, vault, .. } = disk;
    let Some(lock) = &vault.lock else {
        loot.story.push(format!("{label}: no lock yet, and no keys at rest"));
        return None;
    };
    let params = LockParams { cluster: vault.identity.cluster, node: disk.node, generation: lock.generation() };
    let pieces = pieces(disk, lock, &params, disks);
    let (generation, have, need, total) =
        (lock.generation(), pieces.len(), usize::from(lock.needed()), lock.pieces().len());
    let about = format!("{label}: lock of generation {generation}: {have} of {total} pieces, {need} needed");
    if have < need {
        loot.story.push(format!("{about}; its keys stay locked"));
        return None;
    }
    let PinPlace::Inline(pin) = lock.pin() else {
        loot.story.push(format!("{about}; the pin lies elsewhere, and its keys stay locked"));
        return None;
    };
    let pieces: Vec<_> = pieces.into_iter().take(need).collect();
    match lock.open(&params, &pieces, pin) {
        Ok(bundle) => {
            loot.story.push(format!("{about}; its keys are OPEN"));
            loot.bundles += 1;
            note_secrets(label, &bundle, loot);
            Some(OpenDisk { disk, bundle })
        }
        Err(error) => {
            loot.story.push(format!("{about}; and still its keys stay locked: {error}"));
            None
        }
    }
}

/// Every piece of `lock` that some key on some stolen disk opens, by its number.
fn pieces(disk: &Disk, lock: &Lock, params: &LockParams, disks: &[Disk]) -> BTreeMap<u8, Secret<32>> {
    let mut opened = BTreeMap::new();
    for other in disks.iter().filter(|other| other.vault.identity.cluster == params.cluster) {
        let Some(request) = lock.request(params, other.node, [0; 32]) else { continue };
        let held = other.vault.held_for(disk.node).into_iter().flat_map(|held| &held.keys);
        if let Some(piece) = held.into_iter().find_map(|key| open_piece(&key.seed, &request).ok()) {
            opened.insert(request.x, piece);
        }
    }
    opened
}

fn note_secrets(label: &str, bundle: &Bundle, loot: &mut Loot) {
    let mut note = |what: String, secret: &Secret<32>| loot.canaries.push(Canary::secret(what, secret.expose()));
    note(format!("op seed of {label}"), &bundle.op_seed);
    for key in &bundle.storage_keys {
        note(format!("storage key {} of {label}", key.number), &key.key);
    }
    for key in &bundle.share_keys {
        note(format!("share key {} of {label}", key.generation), &key.seed);
    }
}
