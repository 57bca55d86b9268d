//! Which records of a PENDING epoch this node has opened and checked.

use std::collections::HashSet;

use quorate_raft::state::State;
use quorate_shares::ids::Epoch;

use crate::memory::keyring::Slot;

/// The records of one epoch that this node opened and checked, so that being asked again costs nothing.
#[derive(Debug, Default)]
pub struct Checked {
    epoch: Epoch,
    slots: HashSet<Slot>,
}

impl Checked {
    /// How many records of `epoch` were dealt anew, and those of its records that were not checked here yet.
    pub fn owed(&mut self, state: &State, epoch: Epoch) -> Option<(u64, Vec<Slot>)> {
        if self.epoch != epoch {
            *self = Self { epoch, slots: HashSet::new() };
        }
        let (reshared, mut slots) = records_of(state, epoch)?;
        slots.retain(|slot| !self.slots.contains(slot));
        Some((reshared, slots))
    }

    /// These were.
    pub fn note(&mut self, slots: impl IntoIterator<Item = Slot>) {
        self.slots.extend(slots);
    }
}

/// How many records of an epoch were dealt anew, and the versions that have one, dealt anew or made since.
fn records_of(state: &State, epoch: Epoch) -> Option<(u64, Vec<Slot>)> {
    let reshared = state.epoch(epoch)?.reshared;
    let versions = state
        .keys
        .values()
        .flat_map(|key| key.versions.values().map(|version| (key.uid, version)))
        .filter(|(_, version)| version.record(epoch).is_some())
        .map(|(uid, version)| (uid, version.version));
    Some((reshared, versions.collect()))
}
