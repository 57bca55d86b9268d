//! Which share records of a PENDING epoch this node has opened and checked.

use std::collections::HashSet;

use quorate_raft::state::State;
use quorate_shares::ids::{Epoch, KeyVersionId};

/// The records of one epoch that this node has opened and checked. So if the leader asks again, nothing is checked twice.
#[derive(Debug, Default)]
pub struct Checked {
    epoch: Epoch,
    key_versions: HashSet<KeyVersionId>,
}

impl Checked {
    /// How many records of `epoch` are reshared, and which of its records this node has not checked yet.
    pub fn owed(&mut self, state: &State, epoch: Epoch) -> Option<(u64, Vec<KeyVersionId>)> {
        if self.epoch != epoch {
            *self = Self { epoch, key_versions: HashSet::new() };
        }
        let (reshared, mut key_versions) = records_of(state, epoch)?;
        key_versions.retain(|key_version| !self.key_versions.contains(key_version));
        Some((reshared, key_versions))
    }

    /// Notes that the records of these key versions are checked.
    pub fn note(&mut self, key_versions: impl IntoIterator<Item = KeyVersionId>) {
        self.key_versions.extend(key_versions);
    }
}

/// How many records of an epoch are reshared, and the key versions that have a record, reshared or made since.
fn records_of(state: &State, epoch: Epoch) -> Option<(u64, Vec<KeyVersionId>)> {
    let reshared = state.epoch(epoch)?.reshared;
    let versions = state
        .keys
        .values()
        .flat_map(|key| key.versions.values().map(|version| (key.uid, version)))
        .filter(|(_, version)| version.record(epoch).is_some())
        .map(|(uid, version)| (uid, version.version));
    Some((reshared, versions.collect()))
}
