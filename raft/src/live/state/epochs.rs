//! Epochs: opened, acknowledged by their holders, made active, retired, and swept.

use std::collections::BTreeMap;
use std::ops::Bound;

use quorate_shares::ids::Epoch;
use quorate_shares::kem::PublicKey;

use super::{EpochInfo, EpochPhase, State, check_threshold, keys};
use crate::live::command::{EpochAck, OpenEpoch, Outcome, Seat};
use crate::live::refusal::Refusal;
use crate::live::rows::{Row, RowKey, Rows};

/// Most versions that one [`Change::Sweep`](crate::live::command::Change::Sweep) looks at.
pub const SWEEP_MAX: usize = 1_000;

pub(super) fn open(state: &mut State, open: &OpenEpoch, rows: &mut Rows) -> Result<Outcome, Refusal> {
    if let Some(known) = state.epochs.get(&open.epoch) {
        let repeated = known.committee_hash == open.committee_hash && known.is_open();
        if repeated {
            return Ok(Outcome::EpochOpened { epoch: open.epoch });
        }
    }
    if let Some(pending) = state.pending() {
        return Err(Refusal::EpochPending { pending: pending.epoch });
    }
    let next = state.next_epoch();
    if open.epoch != next {
        return Err(Refusal::NotNextEpoch { given: open.epoch, next });
    }
    // Epoch 1 follows from the founding; every other one is part of an operation.
    if state.active().is_some() && state.operations.running.as_ref().is_none_or(|running| running.epoch != open.epoch) {
        return Err(Refusal::NoOperation { operation: open.epoch });
    }
    check_threshold(open.threshold, open.committee.len())?;
    // The position is the share number, so all replicas agree on the order, and no node has two seats. Each member that
    // stays has a seat: a member without one could not serve.
    let mut sitting = open.committee.iter().map(|seat| seat.node);
    if !open.committee.is_sorted_by(|a, b| a.node < b.node) || !sitting.all(|node| state.members.contains_key(&node)) {
        return Err(Refusal::StaleCommittee);
    }
    if !state.staying().eq(open.committee.iter().map(|seat| seat.node)) {
        return Err(Refusal::StaleCommittee);
    }
    let info = state.opened(open).filter(|info| info.committee_hash == open.committee_hash);
    let info = info.ok_or(Refusal::StaleCommittee)?;
    store(state, info, rows);
    state.to_reshare = state.key_version_ids().collect();
    Ok(Outcome::EpochOpened { epoch: open.epoch })
}

pub(super) fn ack(state: &mut State, ack: &EpochAck, rows: &mut Rows) -> Result<Outcome, Refusal> {
    let done = Outcome::EpochAcked { epoch: ack.epoch, node: ack.node };
    let mut info = open_epoch(state, ack.epoch)?.clone();
    if info.x_of(ack.node).is_none() {
        return Err(Refusal::NotAHolder { node: ack.node, epoch: ack.epoch });
    }
    if ack.reshared > info.reshared {
        return Err(Refusal::AckAhead { epoch: ack.epoch, records: info.reshared });
    }
    // An acknowledgement never shrinks: a late repetition changes nothing.
    if info.acks.get(&ack.node).is_some_and(|&reshared| reshared >= ack.reshared) {
        return Ok(done);
    }
    info.acks.insert(ack.node, ack.reshared);
    store(state, info, rows);
    Ok(done)
}

pub(super) fn activate(state: &mut State, epoch: Epoch, rows: &mut Rows) -> Result<Outcome, Refusal> {
    let mut info = open_epoch(state, epoch)?.clone();
    if info.phase == EpochPhase::Active {
        return Ok(Outcome::EpochActivated { epoch });
    }
    // I2, before anything depends on the new epoch.
    if info.records != state.live_versions {
        return Err(Refusal::VersionsUncovered { epoch, missing: state.live_versions - info.records });
    }
    let (have, need) = (info.acknowledged(), info.acks_needed());
    if have < need {
        return Err(Refusal::AcksMissing { epoch, have, need });
    }
    if let Some(mut old) = state.active().cloned() {
        old.phase = EpochPhase::Retiring;
        store(state, old, rows);
    }
    info.phase = EpochPhase::Active;
    info.activated_ms = state.time_ms;
    store(state, info, rows);
    keys::recheck_ready(state, rows);
    Ok(Outcome::EpochActivated { epoch })
}

/// I5: after this no holder needs its share key of the epoch, and each holder erases it.
pub(super) fn retire(state: &mut State, epoch: Epoch, rows: &mut Rows) -> Result<Outcome, Refusal> {
    let info = state.epoch(epoch).cloned();
    let wrong = Refusal::WrongEpoch { given: epoch, active: state.active().map(|active| active.epoch) };
    match info {
        Some(info) if info.phase == EpochPhase::Retired => {}
        Some(info) if info.phase == EpochPhase::Retiring => close(state, info, EpochPhase::Retired, rows),
        _ => return Err(wrong),
    }
    Ok(Outcome::EpochRetired { epoch })
}

/// Gives up the PENDING epoch, if there is one. Its number is never used again.
pub(super) fn abandon_pending(state: &mut State, rows: &mut Rows) {
    if let Some(pending) = state.pending().cloned() {
        close(state, pending, EpochPhase::Abandoned, rows);
        state.to_reshare.clear();
        keys::recheck_ready(state, rows);
    }
}

fn close(state: &mut State, mut info: EpochInfo, phase: EpochPhase, rows: &mut Rows) {
    info.phase = phase;
    info.share_keys.clear();
    store(state, info, rows);
}

/// Drops the remains of an epoch that is over, a bounded part at a time: records first, then batches.
pub(super) fn sweep(state: &mut State, epoch: Epoch, rows: &mut Rows) -> Result<Outcome, Refusal> {
    let active = state.active().map(|active| active.epoch);
    let info = state.epoch(epoch).filter(|info| info.is_over());
    let mut info = info.ok_or(Refusal::WrongEpoch { given: epoch, active })?.clone();
    if info.records > 0 {
        let start = info.swept.map_or(Bound::Unbounded, |(uid, _)| Bound::Included(uid));
        let keys = state.keys.range_mut((start, Bound::Unbounded));
        let versions = keys.flat_map(|(&uid, key)| key.versions.values_mut().map(move |version| (uid, version)));
        let swept = info.swept;
        let behind = versions.filter(|(uid, version)| swept.is_none_or(|swept| (*uid, version.version) > swept));
        for (uid, version) in behind.take(SWEEP_MAX) {
            info.swept = Some((uid, version.version));
            let before = version.records.len();
            version.records.retain(|record| record.epoch != epoch);
            if version.records.len() < before {
                info.records -= 1;
                rows.delete(RowKey::Record(uid, version.version, epoch));
                rows.put(RowKey::Version(uid, version.version), Row::Version(version.as_ref().clone()));
            }
        }
    }
    if info.records == 0 {
        let batches: Vec<_> = state.batches.values().filter(|batch| batch.epoch == epoch).map(|b| b.batch).collect();
        for batch in batches.into_iter().take(SWEEP_MAX) {
            state.batches.remove(&batch);
            rows.delete(RowKey::Batch(batch));
            rows.delete(RowKey::Header(batch));
        }
    }
    store(state, info, rows);
    Ok(Outcome::Swept { epoch, done: !state.is_unswept(epoch) })
}

/// The fence (I3): a command that names an epoch reaches it only while it is open.
pub(super) fn open_epoch(state: &State, epoch: Epoch) -> Result<&EpochInfo, Refusal> {
    let active = state.active().map(|active| active.epoch);
    state.epoch(epoch).filter(|info| info.is_open()).ok_or(Refusal::WrongEpoch { given: epoch, active })
}

fn store(state: &mut State, info: EpochInfo, rows: &mut Rows) {
    rows.put(RowKey::Epoch(info.epoch), Row::Epoch(info.clone()));
    state.epochs.insert(info.epoch, info);
}

impl State {
    /// Whether the epoch is over and has records or batches left.
    pub fn is_unswept(&self, epoch: Epoch) -> bool {
        let over = self.epoch(epoch).filter(|info| info.is_over());
        over.is_some_and(|info| info.records > 0 || self.batches.values().any(|batch| batch.epoch == epoch))
    }

    /// The epoch that `open` asks for, if shares may be sealed to the share key of each seat: a key that was drawn for this
    /// epoch. A member that is away drew none, and keeps the key of its seat in the ACTIVE epoch.
    pub(crate) fn opened(&self, open: &OpenEpoch) -> Option<EpochInfo> {
        let cluster = self.cluster.as_ref()?.cluster;
        let share_keys = open.committee.iter().map(|seat| self.share_key_of(open.epoch, seat));
        let mut info = EpochInfo {
            epoch: open.epoch,
            phase: EpochPhase::Pending,
            threshold: open.threshold,
            committee: open.committee.clone(),
            share_keys: share_keys.collect::<Option<_>>()?,
            committee_hash: [0; 32],
            acks: BTreeMap::new(),
            activated_ms: 0,
            swept: None,
            reshared: 0,
            records: 0,
        };
        info.committee_hash = info.seated()?.hash(cluster);
        Some(info)
    }

    fn share_key_of(&self, epoch: Epoch, seat: &Seat) -> Option<PublicKey> {
        let member = self.members.get(&seat.node)?;
        if member.skgen == seat.skgen && seat.skgen.0 >= epoch.0 {
            return Some(member.share_pk.clone());
        }
        let active = self.active()?;
        let position = active.committee.iter().position(|held| held == seat)?;
        active.share_keys.get(position).cloned()
    }
}
