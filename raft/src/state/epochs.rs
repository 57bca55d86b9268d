//! Epochs: opened, acknowledged by their holders, made active.

use std::collections::BTreeMap;

use quorate_shares::ids::Epoch;

use super::{EpochInfo, EpochPhase, State, check_threshold};
use crate::command::{EpochAck, OpenEpoch, Outcome};
use crate::refusal::Refusal;
use crate::rows::{RowKey, RowV1, Rows};

pub(super) fn open(state: &mut State, open: &OpenEpoch, rows: &mut Rows) -> Result<Outcome, Refusal> {
    let cluster = state.cluster.as_ref().ok_or(Refusal::NotFounded)?.cluster;
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
    check_threshold(open.threshold, open.committee.len())?;
    // The position is the share number, so the order is part of what is agreed, and nobody sits twice.
    if !open.committee.is_sorted_by(|a, b| a.node < b.node) {
        return Err(Refusal::StaleCommittee);
    }
    let committee = state.committee_of(open.epoch, open.threshold, &open.committee).ok_or(Refusal::StaleCommittee)?;
    if committee.hash(cluster) != open.committee_hash {
        return Err(Refusal::StaleCommittee);
    }
    let info = EpochInfo {
        epoch: open.epoch,
        phase: EpochPhase::Pending,
        threshold: open.threshold,
        committee: open.committee.clone(),
        committee_hash: open.committee_hash,
        acks: BTreeMap::new(),
        records: 0,
    };
    store(state, info, rows);
    Ok(Outcome::EpochOpened { epoch: open.epoch })
}

pub(super) fn ack(state: &mut State, ack: &EpochAck, rows: &mut Rows) -> Result<Outcome, Refusal> {
    let done = Outcome::EpochAcked { epoch: ack.epoch, node: ack.node };
    let mut info = open_epoch(state, ack.epoch)?.clone();
    if info.x_of(ack.node).is_none() {
        return Err(Refusal::NotAHolder { node: ack.node, epoch: ack.epoch });
    }
    if ack.records > info.records {
        return Err(Refusal::AckAhead { epoch: ack.epoch, records: info.records });
    }
    // An acknowledgement never shrinks: a late repetition changes nothing.
    if info.acks.get(&ack.node).is_some_and(|&records| records >= ack.records) {
        return Ok(done);
    }
    info.acks.insert(ack.node, ack.records);
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
    store(state, info, rows);
    Ok(Outcome::EpochActivated { epoch })
}

/// The fence (I3): a command that names an epoch reaches it only while it is open.
pub(super) fn open_epoch(state: &State, epoch: Epoch) -> Result<&EpochInfo, Refusal> {
    let active = state.active().map(|active| active.epoch);
    state.epoch(epoch).filter(|info| info.is_open()).ok_or(Refusal::WrongEpoch { given: epoch, active })
}

fn store(state: &mut State, info: EpochInfo, rows: &mut Rows) {
    rows.put(RowKey::Epoch(info.epoch), RowV1::Epoch(info.clone()));
    state.epochs.insert(info.epoch, info);
}
