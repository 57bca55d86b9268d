//! Keys: announced dealings, keys that are made and rotated, versions that become ready.

use std::collections::{BTreeMap, BTreeSet};

use quorate_shares::ids::{KeyName, KeyUid, KeyVersion};
use quorate_shares::order::NewKey;
use quorate_shares::seal::{BATCH_RECORDS_MAX, BatchHeader, ShareRecord};
use sha2::{Digest, Sha256};

use super::epochs::open_epoch;
use super::{BatchInfo, KEY_VERSIONS_MAX, KEYS_MAX, Key, RecordRef, State, TAG_BYTES_MAX, TAGS_MAX, Version};
use crate::live::command::{
    CreateKey, FilledVersion, Outcome, Ready, RecordBytes, RequestId, Reshare, RotateKey, Verified,
};
use crate::live::refusal::Refusal;
use crate::live::rows::{KeyRow, Row, RowKey, Rows};

/// Most versions in one `Ready`; the rest come in the next step.
pub const VERIFY_MAX: usize = 256;
/// Most versions in one `Reshare`.
pub const RESHARE_MAX: usize = 256;

pub(super) fn open_batch(state: &mut State, bytes: &[u8], rows: &mut Rows) -> Result<Outcome, Refusal> {
    let cluster = state.cluster.as_ref().ok_or(Refusal::NotFounded)?.cluster;
    let header = BatchHeader::parse(bytes).map_err(|_| Refusal::MalformedBatch)?;
    let batch = header.batch;
    let header_hash = Sha256::digest(bytes).into();
    if let Some(known) = state.batches.get(&batch) {
        let repeated = known.header_hash == header_hash;
        return if repeated { Ok(Outcome::BatchOpened { batch }) } else { Err(Refusal::BatchTaken { batch }) };
    }
    let epoch = open_epoch(state, header.epoch)?;
    if header.committee_hash != epoch.committee_hash {
        return Err(Refusal::StaleCommittee);
    }
    let seats = header.recipients.iter().map(|holder| (holder.x, holder.node, holder.generation));
    let committee = epoch.committee.iter().zip(1..).map(|(seat, x)| (x, seat.node, seat.skgen));
    if header.cluster != cluster || !state.members.contains_key(&header.dealer) || !seats.eq(committee) {
        return Err(Refusal::BatchMismatch { batch });
    }
    let info = BatchInfo {
        batch,
        epoch: header.epoch,
        dealer: header.dealer,
        opened_ms: state.time_ms,
        header_hash,
        recovery: header.recovery.is_some(),
        used: Vec::new(),
    };
    rows.put(RowKey::Batch(batch), Row::Batch(info.clone()));
    rows.put_bytes(RowKey::Header(batch), bytes.to_vec());
    state.batches.insert(batch, info);
    Ok(Outcome::BatchOpened { batch })
}

pub(super) fn create(state: &mut State, create: &CreateKey, rows: &mut Rows) -> Result<Outcome, Refusal> {
    if let Some((uid, version)) = state.answer(&create.request) {
        let first = &state.keys[&uid];
        let repeated = first.name == create.name && version == KeyVersion(1);
        return if repeated { Ok(made(state, uid, version)) } else { Err(Refusal::RequestReused) };
    }
    if state.names.contains_key(&create.name) {
        return Err(Refusal::NameTaken);
    }
    if state.keys.contains_key(&create.uid) {
        return Err(Refusal::UidTaken { uid: create.uid });
    }
    if state.keys.len() >= KEYS_MAX {
        return Err(Refusal::KeysLimit);
    }
    let fits = |tag: &String| tag.len() <= TAG_BYTES_MAX;
    if create.tags.len() > TAGS_MAX || !create.tags.iter().all(|(name, value)| fits(name) && fits(value)) {
        return Err(Refusal::BadTags);
    }
    let version = KeyVersion(1);
    let records = check_records(state, create.uid, version, &create.records)?;

    let (name, created_ms, tags) = (create.name.clone(), state.time_ms, create.tags.clone());
    let key = Key { uid: create.uid, name: name.clone(), created_ms, tags: tags.clone(), versions: BTreeMap::new() };
    rows.put(RowKey::Key(create.uid), Row::Key(KeyRow { name, created_ms, tags }));
    state.names.insert(create.name.clone(), create.uid);
    state.keys.insert(create.uid, key);
    add_version(state, create.uid, version, create.kcv, create.request, (records, &create.records), rows);
    Ok(made(state, create.uid, version))
}

pub(super) fn rotate(state: &mut State, rotate: &RotateKey, rows: &mut Rows) -> Result<Outcome, Refusal> {
    let uid = rotate.uid;
    if let Some((first, version)) = state.answer(&rotate.request) {
        let repeated = first == uid && version > KeyVersion(1);
        return if repeated { Ok(made(state, uid, version)) } else { Err(Refusal::RequestReused) };
    }
    let key = state.keys.get(&uid).ok_or(Refusal::UnknownKey { uid })?;
    let version = next_version(key, rotate.expect)?;
    let records = check_records(state, uid, version, &rotate.records)?;
    add_version(state, uid, version, rotate.kcv, rotate.request, (records, &rotate.records), rows);
    Ok(made(state, uid, version))
}

/// The number of the next version of `key`, whose newest version must be `expect`, and ready.
fn next_version(key: &Key, expect: KeyVersion) -> Result<KeyVersion, Refusal> {
    let newest = key.newest();
    if newest.version != expect {
        return Err(Refusal::VersionChanged { newest: newest.version });
    }
    if !newest.ready {
        return Err(Refusal::NotReady { version: newest.version });
    }
    if newest.version.0 >= KEY_VERSIONS_MAX {
        return Err(Refusal::KeyVersionsLimit);
    }
    Ok(KeyVersion(newest.version.0 + 1))
}

/// Makes keys with their version 1: all that were ordered, or none.
pub(super) fn create_all(
    state: &mut State,
    (request, keys): (RequestId, &[NewKey]),
    filled: &[FilledVersion],
    rows: &mut Rows,
) -> Result<Outcome, Refusal> {
    if keys.iter().any(|key| state.names.contains_key(&key.name)) {
        return Err(Refusal::NameTaken);
    }
    if state.keys.len() + keys.len() > KEYS_MAX {
        return Err(Refusal::KeysLimit);
    }
    if let Some(taken) = filled.iter().find(|filled| state.keys.contains_key(&filled.uid)) {
        return Err(Refusal::UidTaken { uid: taken.uid });
    }
    let uids: BTreeSet<_> = filled.iter().map(|filled| filled.uid).collect();
    if filled.len() != keys.len() || uids.len() < keys.len() {
        return Err(Refusal::WrongFilling);
    }
    let version = KeyVersion(1);
    let records = filled.iter().map(|filled| check_records(state, filled.uid, version, &filled.records));
    let records = records.collect::<Result<Vec<_>, _>>()?;
    let places: BTreeSet<_> = records.iter().flatten().map(|record| (record.batch, record.index)).collect();
    if places.len() < records.iter().map(Vec::len).sum() {
        return Err(Refusal::RecordMismatch);
    }
    for ((key, filled), records) in keys.iter().zip(filled).zip(records) {
        let (uid, name, created_ms, tags) = (filled.uid, key.name.clone(), state.time_ms, key.tags.clone());
        rows.put(RowKey::Key(uid), Row::Key(KeyRow { name: name.clone(), created_ms, tags: tags.clone() }));
        state.names.insert(name.clone(), uid);
        state.keys.insert(uid, Key { uid, name, created_ms, tags, versions: BTreeMap::new() });
        add_version(state, uid, version, filled.kcv, request, (records, &filled.records), rows);
    }
    Ok(Outcome::KeysMade { uids: filled.iter().map(|filled| filled.uid).collect() })
}

/// Makes the next version of the key of this name.
pub(super) fn rotate_named(
    state: &mut State,
    (request, name, expect): (RequestId, &KeyName, KeyVersion),
    filled: &[FilledVersion],
    rows: &mut Rows,
) -> Result<Outcome, Refusal> {
    let key = state.key_by_name(name).ok_or(Refusal::NoSuchKey)?;
    let (uid, version) = (key.uid, next_version(key, expect)?);
    let filled = filled.first().filter(|version| filled.len() == 1 && version.uid == uid);
    let filled = filled.ok_or(Refusal::WrongFilling)?;
    let records = check_records(state, uid, version, &filled.records)?;
    add_version(state, uid, version, filled.kcv, request, (records, &filled.records), rows);
    Ok(made(state, uid, version))
}

/// Gives existing versions their records in the PENDING epoch: all that the command names, or none.
pub(super) fn reshare(state: &mut State, reshare: &Reshare, rows: &mut Rows) -> Result<Outcome, Refusal> {
    if reshare.dealt.len() > RESHARE_MAX {
        return Err(Refusal::ListTooLong { given: reshare.dealt.len(), max: RESHARE_MAX });
    }
    let pending = state.pending().filter(|pending| pending.epoch == reshare.epoch);
    let active = state.active().map(|active| active.epoch);
    let mut info = pending.ok_or(Refusal::WrongEpoch { given: reshare.epoch, active })?.clone();
    let mut records = Vec::with_capacity(reshare.dealt.len());
    for dealt in &reshare.dealt {
        // S5: a version is dealt once in an epoch.
        let (uid, version) = (dealt.uid, dealt.version);
        if !state.to_reshare.contains(&(uid, version)) {
            return Err(Refusal::AlreadyReshared { uid, version });
        }
        let record = check_record(state, uid, version, &dealt.record.0)?;
        if record.epoch != reshare.epoch {
            return Err(Refusal::RecordMismatch);
        }
        records.push(record);
    }
    let distinct: BTreeSet<_> = reshare.dealt.iter().map(|dealt| (dealt.uid, dealt.version)).collect();
    let indices: BTreeSet<_> = records.iter().map(|record| (record.batch, record.index)).collect();
    if distinct.len() < records.len() || indices.len() < records.len() {
        return Err(Refusal::RecordMismatch);
    }
    for (dealt, record) in reshare.dealt.iter().zip(records) {
        let (uid, number) = (dealt.uid, dealt.version);
        let version = state.keys.get_mut(&uid).and_then(|key| key.versions.get_mut(&number));
        let version = version.expect("it lacks a record, so it exists");
        version.records.push(record);
        rows.put_bytes(RowKey::Record(uid, number, record.epoch), dealt.record.0.clone());
        rows.put(RowKey::Version(uid, number), Row::Version(version.as_ref().clone()));
        state.batches.get_mut(&record.batch).expect("checked with the record").mark_used(record.index);
        state.to_reshare.remove(&(uid, number));
        (info.records, info.reshared) = (info.records + 1, info.reshared + 1);
    }
    rows.put(RowKey::Epoch(info.epoch), Row::Epoch(info.clone()));
    state.epochs.insert(info.epoch, info);
    Ok(Outcome::Reshared { left: state.to_reshare.len() as u64 })
}

/// All items are checked before one is marked: a command is applied as a whole or not at all.
pub(super) fn ready(state: &mut State, ready: &Ready, rows: &mut Rows) -> Result<Outcome, Refusal> {
    if ready.verified.len() > VERIFY_MAX {
        return Err(Refusal::ListTooLong { given: ready.verified.len(), max: VERIFY_MAX });
    }
    for item in &ready.verified {
        check_verified(state, ready, item)?;
    }
    let (mut versions, open) = (0, state.record_epochs());
    for item in &ready.verified {
        let stored = state.keys.get_mut(&item.uid).and_then(|key| key.versions.get_mut(&item.version));
        let stored = stored.expect("checked above").as_mut();
        let before = stored.clone();
        stored
            .records
            .iter_mut()
            .filter(|record| record.epoch == ready.epoch)
            .for_each(|record| record.verified = true);
        stored.ready |= stored.is_verified(&open);
        if *stored == before {
            continue;
        }
        rows.put(RowKey::Version(item.uid, item.version), Row::Version(stored.clone()));
        if stored.ready && state.unready.remove(&(item.uid, item.version)) {
            versions += 1;
        }
    }
    Ok(Outcome::MadeReady { versions })
}

/// Makes versions ready after the open epochs changed. A version may have waited only for an epoch that is not open any more:
/// it is ready now, and the leader would not ask its holders again.
pub(super) fn recheck_ready(state: &mut State, rows: &mut Rows) {
    let open = state.record_epochs();
    let State { keys, unready, .. } = state;
    unready.retain(|&(uid, number)| {
        let version = keys.get_mut(&uid).and_then(|key| key.versions.get_mut(&number));
        let version = version.expect("a version that is not ready exists");
        version.ready = version.is_verified(&open);
        if version.ready {
            rows.put(RowKey::Version(uid, number), Row::Version(version.as_ref().clone()));
        }
        !version.ready
    });
}

fn check_verified(state: &State, ready: &Ready, item: &Verified) -> Result<(), Refusal> {
    let epoch = open_epoch(state, ready.epoch)?;
    let (uid, version) = (item.uid, item.version);
    let stored = state.version(uid, version).ok_or(Refusal::UnknownVersion { uid, version })?;
    if stored.record(ready.epoch).is_none() {
        return Err(Refusal::RecordMismatch);
    }
    if let Some(&node) = item.holders.iter().find(|&&node| epoch.x_of(node).is_none()) {
        return Err(Refusal::NotAHolder { node, epoch: ready.epoch });
    }
    let (have, need) = (item.holders.len(), usize::from(epoch.threshold));
    if have < need { Err(Refusal::TooFewHolders { uid, version, have, need }) } else { Ok(()) }
}

/// Checks that there is one good record for each open epoch (I1, I3, I4).
fn check_records(
    state: &State,
    uid: KeyUid,
    version: KeyVersion,
    records: &[RecordBytes],
) -> Result<Vec<RecordRef>, Refusal> {
    let epochs = state.record_epochs();
    if epochs.is_empty() || epochs.len() != records.len() {
        return Err(Refusal::RecordCount { given: records.len(), need: epochs.len().max(1) });
    }
    let refs = records.iter().map(|bytes| check_record(state, uid, version, &bytes.0));
    let refs = refs.collect::<Result<Vec<_>, _>>()?;
    // Every record names an open epoch, and there are as many records as open epochs: distinct epochs cover them all.
    let covered: BTreeSet<_> = refs.iter().map(|record| record.epoch).collect();
    if covered.len() < epochs.len() { Err(Refusal::RecordMismatch) } else { Ok(refs) }
}

fn check_record(state: &State, uid: KeyUid, version: KeyVersion, bytes: &[u8]) -> Result<RecordRef, Refusal> {
    let record = ShareRecord::parse(bytes).map_err(|_| Refusal::MalformedRecord)?;
    let epoch = open_epoch(state, record.epoch)?;
    let batch = state.batches.get(&record.batch).ok_or(Refusal::UnknownBatch { batch: record.batch })?;
    let same = record.uid == uid
        && record.version == version
        && record.threshold.needed() == epoch.threshold
        && record.shares.len() == epoch.committee.len()
        && batch.epoch == record.epoch
        && batch.recovery == record.recovery.is_some();
    if !same {
        return Err(Refusal::RecordMismatch);
    }
    if record.index >= BATCH_RECORDS_MAX || batch.is_used(record.index) {
        return Err(Refusal::IndexUsed { batch: record.batch, index: record.index });
    }
    Ok(RecordRef { epoch: record.epoch, batch: record.batch, index: record.index, verified: false })
}

fn add_version(
    state: &mut State,
    uid: KeyUid,
    number: KeyVersion,
    kcv: [u8; 32],
    request: RequestId,
    (records, bytes): (Vec<RecordRef>, &[RecordBytes]),
    rows: &mut Rows,
) {
    for (record, bytes) in records.iter().zip(bytes) {
        rows.put_bytes(RowKey::Record(uid, number, record.epoch), bytes.0.clone());
    }
    let version = Version { version: number, created_ms: state.time_ms, kcv, ready: false, request, records };
    rows.put(RowKey::Version(uid, number), Row::Version(version.clone()));
    state.index_version(uid, &version);
    let key = state.keys.get_mut(&uid).expect("the key was looked up or made by the caller");
    key.versions.insert(number, Box::new(version));
}

fn made(state: &State, uid: KeyUid, version: KeyVersion) -> Outcome {
    let created_ms = state.keys[&uid].versions[&version].created_ms;
    Outcome::VersionMade { uid, version, created_ms }
}

impl State {
    /// Adds a version to all that is derived from versions. A restart does the same for each stored version.
    pub(super) fn index_version(&mut self, uid: KeyUid, version: &Version) {
        self.live_versions += 1;
        self.requests.insert(version.request, (uid, version.version));
        if !version.ready {
            self.unready.insert((uid, version.version));
        }
        for record in &version.records {
            if let Some(epoch) = self.epochs.get_mut(&record.epoch) {
                epoch.records += 1;
            }
            if let Some(batch) = self.batches.get_mut(&record.batch) {
                batch.mark_used(record.index);
            }
        }
    }
}
