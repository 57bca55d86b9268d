//! The rows of the `state` column family as bytes: their keys, and the versions of their values.
//!
//! ```text
//! key                                  value
//! 01                                   clock: the largest time seen
//! 02                                   cluster
//! 03 node u64                          member
//! 04 epoch u64                         epoch: phase, committee, acknowledgements
//! 05 batch 16                          batch: epoch, dealer, hash of its header
//! 06 uid 16                            key: name, creation
//! 07 uid 16, version u32               version: kcv, ready, where its records are
//! 08 node u64                          lock report
//! 09                                   operations: the one that runs, and how the last one ended
//! 0a node u64                          former member
//! 0b invitation 32                     invitation, under SHA-256 of its V
//! 0c public key 32                     operator
//! 0d request 16                        what came of an order
//! 40 batch 16                          batch header, bytes of FORMATS 3
//! 41 uid 16, version u32, epoch u64    share record, bytes of FORMATS 3
//! ```
//!
//! Integers are big-endian, so rows are in the order of their numbers. Keys hold ids and never names, because only values are
//! sealed. Rows below `40` make the live state in memory; rows from `40` on are read when they are needed. A value below `40`
//! is a [`StoredRow`], an enum with one variant per version of the format ([`v1`](super::v1) draws format 1). The variant
//! inside must match the key.

use quorate_shares::codec;
use quorate_shares::ids::{BatchId, Epoch, KeyUid, KeyVersion, NodeId};
use quorate_shares::signature::PublicKey;
use serde::{Deserialize, Serialize};

use super::v1::RowV1;
use crate::live::rows::{Row, RowKey, RowValue};
use crate::live::state::{RestoreError, State};

/// Most bytes of one row of the live state.
pub(crate) const ROW_BYTES_MAX: usize = 64 * 1024;

/// The first byte of keys whose values stay on disk.
pub(crate) const COLD_ROWS: u8 = 0x40;

impl RowKey {
    /// The key's bytes in RocksDB.
    pub fn to_bytes(self) -> Vec<u8> {
        match self {
            Self::Clock => vec![0x01],
            Self::Cluster => vec![0x02],
            Self::Member(node) => join(0x03, &[&node.0.to_be_bytes()]),
            Self::Epoch(epoch) => join(0x04, &[&epoch.0.to_be_bytes()]),
            Self::Batch(batch) => join(0x05, &[&batch.0]),
            Self::Key(uid) => join(0x06, &[&uid.0]),
            Self::Version(uid, version) => join(0x07, &[&uid.0, &version.0.to_be_bytes()]),
            Self::Lock(node) => join(0x08, &[&node.0.to_be_bytes()]),
            Self::Operations => vec![0x09],
            Self::Former(node) => join(0x0a, &[&node.0.to_be_bytes()]),
            Self::Invitation(id) => join(0x0b, &[&id]),
            Self::Operator(key) => join(0x0c, &[&key.0]),
            Self::Order(request) => join(0x0d, &[&request]),
            Self::Header(batch) => join(0x40, &[&batch.0]),
            Self::Record(uid, version, epoch) => {
                join(0x41, &[&uid.0, &version.0.to_be_bytes(), &epoch.0.to_be_bytes()])
            }
        }
    }

    /// Reads a key back; `None` for bytes that no row has.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (&tag, rest) = bytes.split_first()?;
        let number = || rest.try_into().ok().map(u64::from_be_bytes);
        let id = || <[u8; 16]>::try_from(rest).ok();
        Some(match (tag, rest.len()) {
            (0x01, 0) => Self::Clock,
            (0x02, 0) => Self::Cluster,
            (0x03, _) => Self::Member(NodeId(number()?)),
            (0x04, _) => Self::Epoch(Epoch(number()?)),
            (0x05, _) => Self::Batch(BatchId(id()?)),
            (0x06, _) => Self::Key(KeyUid(id()?)),
            (0x07, 20) => Self::Version(uid_of(rest)?, version_of(rest)?),
            (0x08, _) => Self::Lock(NodeId(number()?)),
            (0x09, 0) => Self::Operations,
            (0x0a, _) => Self::Former(NodeId(number()?)),
            (0x0b, _) => Self::Invitation(rest.try_into().ok()?),
            (0x0c, _) => Self::Operator(PublicKey(rest.try_into().ok()?)),
            (0x0d, _) => Self::Order(id()?),
            (0x40, _) => Self::Header(BatchId(id()?)),
            (0x41, 28) => {
                let epoch = rest[20..].try_into().ok().map(u64::from_be_bytes)?;
                Self::Record(uid_of(rest)?, version_of(rest)?, Epoch(epoch))
            }
            _ => return None,
        })
    }
}

fn join(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = vec![tag];
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

fn uid_of(rest: &[u8]) -> Option<KeyUid> {
    rest.get(..16)?.try_into().ok().map(KeyUid)
}

fn version_of(rest: &[u8]) -> Option<KeyVersion> {
    rest.get(16..20)?.try_into().ok().map(|bytes| KeyVersion(u32::from_be_bytes(bytes)))
}

/// The value of a live row, one variant per version of the format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum StoredRow {
    V1(RowV1),
}

impl StoredRow {
    /// Reads a row back.
    ///
    /// # Errors
    /// [`codec::CodecError`] for anything but one whole row.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, codec::CodecError> {
        codec::decode::<Self, ROW_BYTES_MAX>(bytes)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        codec::encode(self).expect("encoding to memory has no limit to exceed")
    }
}

/// A row is written in the newest version.
impl From<Row> for StoredRow {
    fn from(row: Row) -> Self {
        Self::V1(row.into())
    }
}

/// Every version is read for ever.
impl From<StoredRow> for Row {
    fn from(stored: StoredRow) -> Self {
        match stored {
            StoredRow::V1(row) => row.into(),
        }
    }
}

impl RowValue {
    /// The value's bytes, before they are sealed.
    pub fn into_bytes(self) -> Vec<u8> {
        match self {
            Self::Live(row) => StoredRow::from(row).encode(),
            Self::Cold(bytes) => bytes,
        }
    }
}

impl State {
    /// Adds one live row, read from its bytes; see [`State::restore`] for the order.
    ///
    /// # Errors
    /// [`RestoreError`] when the row does not decode, or cannot be part of a state.
    pub fn restore_row(&mut self, key: RowKey, value: &[u8]) -> Result<(), RestoreError> {
        let stored = StoredRow::decode(value).map_err(|_| RestoreError::Malformed)?;
        self.restore(key, stored.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_key_reads_back_and_no_prefix_of_one_is_another() {
        let keys = [
            RowKey::Clock,
            RowKey::Cluster,
            RowKey::Member(NodeId(7)),
            RowKey::Epoch(Epoch(1)),
            RowKey::Batch(BatchId([2; 16])),
            RowKey::Key(KeyUid([3; 16])),
            RowKey::Version(KeyUid([3; 16]), KeyVersion(9)),
            RowKey::Lock(NodeId(7)),
            RowKey::Operations,
            RowKey::Former(NodeId(7)),
            RowKey::Invitation([4; 32]),
            RowKey::Operator(PublicKey([5; 32])),
            RowKey::Order([6; 16]),
            RowKey::Header(BatchId([2; 16])),
            RowKey::Record(KeyUid([3; 16]), KeyVersion(9), Epoch(1)),
        ];
        for key in keys {
            let bytes = key.to_bytes();
            assert_eq!(RowKey::parse(&bytes), Some(key));
            assert_eq!(RowKey::parse(&bytes[..bytes.len() - 1]), None, "{key:?}");
            assert_eq!(RowKey::parse(&[&bytes[..], &[0]].concat()), None, "{key:?}");
        }
    }
}
