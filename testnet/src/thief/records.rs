//! From open bundles to keys: databases, shares, and enough of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use quorate_raft::StorageKeys;
use quorate_raft::offline::{self, OfflineStore};
use quorate_raft::state::{RecordRef, Version};
use quorate_shares::ids::{ClusterId, KeyName, NodeId};
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

/// Most shares that are tried together if they are of several epochs. It is the threshold of five nodes.
const MIXED_MAX: usize = 3;

/// The shares of one key version that opened, of all epochs.
struct Shares {
    name: KeyName,
    identity: KeyIdentity,
    kcv: [u8; 32],
    shares: Vec<(u8, Secret<32>)>,
}

impl Shares {
    fn add(&mut self, x: u8, share: &Secret<32>) {
        if !self.shares.iter().any(|(other, known)| *other == x && known.same_as(share)) {
            self.shares.push((x, share.duplicate()));
        }
    }

    /// The key, from shares of different epochs. If a new epoch repeats the polynomial of an older one, they fit together.
    fn mixed(&self) -> Option<MasterKey> {
        let mut chosen: Vec<Vec<usize>> = (0..self.shares.len()).map(|one| vec![one]).collect();
        for _ in 1..MIXED_MAX {
            let with = |few: Vec<usize>| {
                let next = few.last().map_or(0, |last| last + 1);
                (next..self.shares.len()).map(move |one| [few.as_slice(), &[one]].concat())
            };
            chosen = chosen.into_iter().flat_map(with).collect();
            let key = chosen.iter().find_map(|few| self.combined(few));
            if key.is_some() {
                return key;
            }
        }
        None
    }

    fn combined(&self, chosen: &[usize]) -> Option<MasterKey> {
        let chosen: Vec<_> = chosen.iter().map(|&one| (self.shares[one].0, &self.shares[one].1)).collect();
        let numbers: BTreeSet<u8> = chosen.iter().map(|(x, _)| *x).collect();
        let key = (numbers.len() == chosen.len()).then(|| MasterKey::from_secret(field::combine(&chosen)))?;
        key.matches(&self.identity, &self.kcv).then_some(key)
    }
}

/// What the thief has found so far.
#[derive(Default)]
struct Found {
    openers: Openers,
    shares: HashMap<KeyIdentity, Shares>,
}

/// Reads every database that opens, and reconstructs every key of which there are enough shares. Then it tries the shares of
/// different epochs together.
pub(super) fn read(open: &[OpenDisk<'_>], loot: &mut Loot) {
    let mut found = Found::default();
    for one in open {
        let label = &one.disk.label;
        match database(&one.disk.path, &one.bundle) {
            Ok(store) => {
                let (keys, versions) = (store.state().keys.len(), store.state().live_versions);
                loot.story.push(format!("{label}: database open: {keys} keys in {versions} versions"));
                read_keys(&store, one.disk.vault.identity.cluster, open, &mut found, loot);
            }
            Err(reason) => loot.story.push(format!("{label}: the database stays shut: {reason}")),
        }
    }
    for shares in found.shares.into_values() {
        if !loot.keys.iter().any(|known| known.identity == shares.identity)
            && let Some(master) = shares.mixed()
        {
            loot.story.push("shares of different epochs fit together".to_owned());
            keep(&shares.name, shares.identity, master, loot);
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

fn read_keys(store: &OfflineStore, cluster: ClusterId, open: &[OpenDisk<'_>], found: &mut Found, loot: &mut Loot) {
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
                match put_together(store, (&key.name, identity), version, place, (open, found), loot) {
                    Ok(master) => keep(&key.name, identity, master, loot),
                    Err(reason) => {
                        let (name, number, epoch) = (&key.name, version.version, place.epoch);
                        loot.story.push(format!("key {name} version {number} in epoch {epoch}: {reason}"));
                    }
                }
            }
        }
    }
}

fn keep(name: &KeyName, identity: KeyIdentity, master: MasterKey, loot: &mut Loot) {
    loot.story.push(format!("key {name} version {}: RECOVERED, its key-check value agrees", identity.version));
    let root = master.root(&identity, RootPurpose::Encrypt);
    loot.canaries
        .push(Canary::secret(format!("the root of {} version {}", identity.uid, identity.version), root.expose()));
    loot.keys.push(RecoveredKey { name: name.clone(), identity, key: master });
}

/// Opens the shares of one record with every open bundle, and closes the quorum if there are enough.
fn put_together(
    store: &OfflineStore,
    (name, identity): (&KeyName, KeyIdentity),
    version: &Version,
    place: &RecordRef,
    (open, found): (&[OpenDisk<'_>], &mut Found),
    loot: &mut Loot,
) -> Result<MasterKey, String> {
    let record = store.record(identity.uid, identity.version, place.epoch).map_err(|error| error.to_string())?;
    let record = ShareRecord::parse(&record.ok_or("its record is not there")?).map_err(|error| error.to_string())?;
    let header = store.batch(record.batch).map_err(|error| error.to_string())?;
    let header = header.ok_or("its batch is not there")?;
    let committee = store.state().committee(place.epoch).ok_or("its committee is not there")?;
    if !found.openers.contains_key(&header) {
        let parsed = BatchHeader::parse(&header).map_err(|error| error.to_string())?;
        found
            .openers
            .insert(header.clone(), open.iter().flat_map(|one| openers_of(one, &parsed, &committee)).collect());
    }

    let mut quorum =
        Quorum::new(record.clone(), identity, &committee, version.kcv).map_err(|error| error.to_string())?;
    let mut shares = BTreeMap::new();
    let of_all_epochs = found.shares.entry(identity).or_insert_with(|| Shares {
        name: name.clone(),
        identity,
        kcv: version.kcv,
        shares: Vec::new(),
    });
    for (node, opener) in &found.openers[&header] {
        let Ok(share) = opener.open_share(&record, &identity, &version.kcv) else { continue };
        let x = opener.x();
        of_all_epochs.add(x, &share);
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
    note_key(&identity, version, &shares, progress.need, loot)?;
    quorum.close().map_err(|error| error.to_string())
}

/// What every share key of a bundle, of whichever generation, makes of a batch.
fn openers_of(one: &OpenDisk<'_>, header: &BatchHeader, committee: &Committee) -> Vec<(NodeId, BatchOpener)> {
    let node = one.disk.node;
    // A key of another generation should open nothing: it is tried all the same.
    let Some(generation) = committee.holder(node).map(|holder| holder.member.generation) else { return Vec::new() };
    let open = |key: &ShareKey| BatchOpener::open(header, committee, node, generation, &key.seed).ok();
    one.bundle.share_keys.iter().filter_map(open).map(|opener| (node, opener)).collect()
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
