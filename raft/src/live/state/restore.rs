//! The live state, read back from its rows.

use std::collections::BTreeMap;

use quorate_shares::seal::BATCH_RECORDS_MAX;

use super::{Key, State};
use crate::live::rows::{Row, RowKey};

/// Why the rows on disk are no state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The value does not decode, or holds another kind of row than its key says.
    #[error("the row is malformed")]
    Malformed,
    /// A version without its key, or a key without versions.
    #[error("the row belongs to a key that is not there")]
    Orphan,
}

impl State {
    /// Adds one live row. Rows must come in the order of their keys: what others refer to comes first.
    ///
    /// # Errors
    /// [`RestoreError`] when the row cannot be part of a state.
    pub fn restore(&mut self, key: RowKey, row: Row) -> Result<(), RestoreError> {
        match (key, row) {
            (RowKey::Clock, Row::Clock(time_ms)) => self.time_ms = time_ms,
            (RowKey::Cluster, Row::Cluster(cluster)) => self.cluster = Some(cluster),
            (RowKey::Member(node), Row::Member(member)) if member.node == node => {
                self.members.insert(node, member);
            }
            (RowKey::Epoch(epoch), Row::Epoch(info)) if info.epoch == epoch => {
                self.epochs.insert(epoch, info);
            }
            (RowKey::Batch(batch), Row::Batch(info)) if info.batch == batch => {
                self.batches.insert(batch, info);
            }
            (RowKey::Key(uid), Row::Key(row)) => {
                self.names.insert(row.name.clone(), uid);
                let (name, created_ms, tags) = (row.name, row.created_ms, row.tags);
                let key = Key { uid, name, created_ms, tags, versions: BTreeMap::new() };
                self.keys.insert(uid, key);
            }
            (RowKey::Version(uid, number), Row::Version(version)) if version.version == number => {
                if !self.keys.contains_key(&uid) {
                    return Err(RestoreError::Orphan);
                }
                // Used indices are kept as bits up to the largest: one from a liar's snapshot must not cost memory.
                if version.records.iter().any(|record| record.index >= BATCH_RECORDS_MAX) {
                    return Err(RestoreError::Malformed);
                }
                self.index_version(uid, &version);
                self.keys.entry(uid).and_modify(|key| drop(key.versions.insert(number, Box::new(version))));
            }
            (RowKey::Lock(node), Row::Lock(report)) if report.node == node => {
                self.locks.insert(node, report);
            }
            (RowKey::Operations, Row::Operations(operations)) => self.operations = operations,
            (RowKey::Former(node), Row::Former(former)) if former.node == node => {
                self.former.insert(node, former);
            }
            (RowKey::Invitation(id), Row::Invitation(invitation)) if invitation.id() == id => {
                self.invitations.insert(id, invitation);
            }
            (RowKey::Operator(key), Row::Operator(operator)) if operator.key == key => {
                self.operators.insert(key, operator);
            }
            (RowKey::Order(request), Row::Order(order)) if order.request == request => self.orders.insert(order),
            _ => return Err(RestoreError::Malformed),
        }
        Ok(())
    }

    /// Checks what only the whole can show, after the last row.
    ///
    /// # Errors
    /// [`RestoreError::Orphan`] naming nothing more: a key has no versions.
    pub fn restored(mut self) -> Result<Self, RestoreError> {
        if !self.keys.values().all(|key| !key.versions.is_empty()) {
            return Err(RestoreError::Orphan);
        }
        if let Some(pending) = self.pending().map(|pending| pending.epoch) {
            let lacks =
                |&(uid, number): &(_, _)| self.version(uid, number).is_some_and(|v| v.record(pending).is_none());
            self.to_reshare = self.key_version_ids().filter(lacks).collect();
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use quorate_shares::ids::{BatchId, Epoch, KeyUid, KeyVersion};

    use super::*;
    use crate::live::rows::KeyRow;
    use crate::live::state::{RecordRef, Version};

    #[test]
    fn a_record_beyond_its_batch_is_malformed() {
        let (uid, number) = (KeyUid([1; 16]), KeyVersion(1));
        let restored = |index| {
            let mut state = State::default();
            let key = KeyRow { name: "k".parse().expect("a name"), created_ms: 0, tags: BTreeMap::new() };
            state.restore(RowKey::Key(uid), Row::Key(key)).expect("a row");
            let records = vec![RecordRef { epoch: Epoch(1), batch: BatchId([2; 16]), index, verified: true }];
            let version =
                Version { version: number, created_ms: 0, kcv: [0; 32], ready: true, request: [0; 16], records };
            state.restore(RowKey::Version(uid, number), Row::Version(version))
        };
        assert_eq!(restored(BATCH_RECORDS_MAX - 1), Ok(()), "the control");
        assert_eq!(restored(BATCH_RECORDS_MAX), Err(RestoreError::Malformed));
        assert_eq!(restored(u32::MAX), Err(RestoreError::Malformed));
    }
}
