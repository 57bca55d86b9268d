//! From open bundles to keys: databases, shares, and enough of them.

use std::collections::BTreeMap;
use std::path::Path;

use quorate_raft::StorageKeys;
use quorate_raft::offline::{self, OfflineStore};
use quorate_raft::state::{Key, RecordRef, Version};
use quorate_shares::ids::{ClusterId, NodeId};
use quorate_shares::lock::{Bundle, ShareKey};
use quorate_shares::master::{KeyIdentity, MasterKey, RootPurpose};
use quorate_shares::quorum::Quorum;
use quorate_shares::seal::{BatchHeader, BatchOpener, Committee, ShareRecord};
use quorate_shares::secret::Secret;

use super::{Loot, OpenDisk, RecoveredKey, field};
use crate::thief::canary::Canary;

/// What the share keys of all open bundles make of the batches, by the bytes of their headers: each costs a decapsulation, and
/// has many records.
type Openers = BTreeMap<Vec<u8>, Vec<(NodeId, BatchOpener)>>;

/// Reads every database that opens, and reconstructs every key of which there are enough shares.
pub(super) fn read(open: &[OpenDisk<'_>], loot: &mut Loot) {
    let mut openers = Openers::new();
    for one in open {
        let label = &one.disk.label;
        match database(&one.disk.path, &one.bundle) {
            Ok(store) => {
                let (keys, versions) = (store.state().keys.len(), store.state().live_versions);
                loot.story.push(format!("{label}: database open: {keys} keys in {versions} versions"));
                read_keys(&store, one.disk.vault.identity.cluster, open, &mut openers, loot);
            }
            Err(reason) => loot.story.push(format!("{label}: the database stays shut: {reason}")),
        }
    }
}

pub(super) fn database(disk: &Path, bundle: &Bundle) -> Result<OfflineStore, String> {
    let newest_first = bundle.storage_keys.iter().rev();
    let keys = newest_first.fold(None, |keys: Option<StorageKeys>, key| {
        Some(match keys {
            Some(keys) => keys.with_older(key.number, &key.key),
            None => StorageKeys::new(key.number, &key.key),
        })
    });
    let keys = keys.ok_or("the bundle has no storage key")?;
    offline::open(&disk.join("state"), keys).map_err(|error| error.to_string())
}

fn read_keys(store: &OfflineStore, cluster: ClusterId, open: &[OpenDisk<'_>], openers: &mut Openers, loot: &mut Loot) {
    for key in store.state().keys.values() {
        if loot.key_names.insert(key.name.clone()) {
            loot.canaries.extend(Canary::text(format!("the name {}", key.name), key.name.as_str()));
        }
        for version in key.versions.values() {
            let identity = KeyIdentity { cluster, uid: key.uid, version: version.version };
            if loot.keys.iter().any(|known| known.identity == identity) {
                continue;
            }
            for place in &version.records {
                match put_together(store, &identity, version, place, (open, openers), loot) {
                    Ok(master) => keep(key, identity, master, loot),
                    Err(reason) => {
                        let (name, number, epoch) = (&key.name, version.version, place.epoch);
                        loot.story.push(format!("key {name} version {number} in epoch {epoch}: {reason}"));
                    }
                }
            }
        }
    }
}

fn keep(key: &Key, identity: KeyIdentity, master: MasterKey, loot: &mut Loot) {
    loot.story.push(format!("key {} version {}: RECOVERED, its key-check value agrees", key.name, identity.version));
    let root = master.root(&identity, RootPurpose::Encrypt);
    loot.canaries
        .push(Canary::secret(format!("the root of {} version {}", identity.uid, identity.version), root.expose()));
    loot.keys.push(RecoveredKey { name: key.name.clone(), identity, key: master });
}

/// Opens the shares of one record with every open bundle, and closes the quorum if there are enough.
fn put_together(
    store: &OfflineStore,
    identity: &KeyIdentity,
    version: &Version,
    place: &RecordRef,
    (open, openers): (&[OpenDisk<'_>], &mut Openers),
    loot: &mut Loot,
) -> Result<MasterKey, String> {
    let record = store.record(identity.uid, identity.version, place.epoch).map_err(|error| error.to_string())?;
    let record = ShareRecord::parse(&record.ok_or("its record is not there")?).map_err(|error| error.to_string())?;
    let header = store.batch(record.batch).map_err(|error| error.to_string())?;
    let header = header.ok_or("its batch is not there")?;
    let committee = store.state().committee(place.epoch).ok_or("its committee is not there")?;
    if !openers.contains_key(&header) {
        let parsed = BatchHeader::parse(&header).map_err(|error| error.to_string())?;
        openers.insert(header.clone(), open.iter().flat_map(|one| openers_of(one, &parsed, &committee)).collect());
    }

    let mut quorum =
        Quorum::new(record.clone(), *identity, &committee, version.kcv).map_err(|error| error.to_string())?;
    let mut shares = BTreeMap::new();
    for (node, opener) in &openers[&header] {
        let Ok(share) = opener.open_share(&record, identity, &version.kcv) else { continue };
        let x = opener.x();
        if shares.insert(x, share.duplicate()).is_none() {
            loot.shares += 1;
            loot.epochs.insert(committee.epoch());
            let what = format!("share {x} of {} version {}", identity.uid, identity.version);
            loot.canaries.push(Canary::secret(what, share.expose()));
            quorum.add(*node, x, share).map_err(|error| error.to_string())?;
        }
    }
    let progress = quorum.progress();
    if !progress.reached() {
        return Err(format!("{} of {} shares", progress.have, progress.need));
    }
    note_key(identity, version, &shares, progress.need, loot)?;
    quorum.close().map_err(|error| error.to_string())
}

/// What every share key of a bundle, of whichever generation, makes of a batch.
fn openers_of(one: &OpenDisk<'_>, header: &BatchHeader, committee: &Committee) -> Vec<(NodeId, BatchOpener)> {
    let node = one.disk.node;
    let keys = one.bundle.share_keys.iter();
    let open = |key: &ShareKey| BatchOpener::open(header, committee, node, key.generation, &key.seed).ok();
    keys.filter_map(open).map(|opener| (node, opener)).collect()
}

/// The real code gives out no key bytes, so the thief combines a second time to know what to look for on other disks.
fn note_key(
    identity: &KeyIdentity,
    version: &Version,
    shares: &BTreeMap<u8, Secret<32>>,
    need: usize,
    loot: &mut Loot,
) -> Result<(), String> {
    let chosen: Vec<_> = shares.iter().take(need).map(|(x, share)| (*x, share)).collect();
    let key = field::combine(&chosen);
    if !MasterKey::from_secret(key.duplicate()).matches(identity, &version.kcv) {
        return Err("the shares combine to something else".to_owned());
    }
    let what = format!("the key {} version {}", identity.uid, identity.version);
    loot.canaries.push(Canary::secret(what, key.expose()));
    Ok(())
}
