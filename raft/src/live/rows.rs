//! The rows of the `state` column family: what `apply` asks to be written, and what a restart reads back.
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
//! 40 batch 16                          batch header, bytes of FORMATS 3
//! 41 uid 16, version u32, epoch u64    share record, bytes of FORMATS 3
//! ```
//!
//! Integers are big-endian, so that rows lie in the order of their numbers. Keys carry identifiers and never names: only
//! values are sealed. Rows below `40` make up the live state in memory; those above are read when they are asked for. A
//! value below `40` is a [`Row`], an enum with one variant per version; the variant inside must match the key.

use std::collections::BTreeMap;

use quorate_shares::codec;
use quorate_shares::ids::{BatchId, Epoch, KeyName, KeyUid, KeyVersion, NodeId};
use serde::{Deserialize, Serialize};

use crate::live::state::{
    BatchInfo, Cluster, EpochInfo, Former, InvitationInfo, LockReport, Member, Operations, Version,
};

/// Most bytes of one row of the live state.
pub const ROW_BYTES_MAX: usize = 64 * 1024;

/// Names one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RowKey {
    /// The state's time.
    Clock,
    /// The cluster itself.
    Cluster,
    /// A member.
    Member(NodeId),
    /// An epoch.
    Epoch(Epoch),
    /// What the state remembers of a batch.
    Batch(BatchId),
    /// A key.
    Key(KeyUid),
    /// A version of a key.
    Version(KeyUid, KeyVersion),
    /// A member's lock report.
    Lock(NodeId),
    /// Operations.
    Operations,
    /// A former member.
    Former(NodeId),
    /// An invitation, by SHA-256 of its V.
    Invitation([u8; 32]),
    /// A batch header.
    Header(BatchId),
    /// A share record.
    Record(KeyUid, KeyVersion, Epoch),
}

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
pub enum Row {
    /// Format 1.
    V1(RowV1),
}

/// Format 1 of the live rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RowV1 {
    /// Under [`RowKey::Clock`], in milliseconds.
    Clock(u64),
    /// Under [`RowKey::Cluster`].
    Cluster(Cluster),
    /// Under [`RowKey::Member`].
    Member(Member),
    /// Under [`RowKey::Epoch`].
    Epoch(EpochInfo),
    /// Under [`RowKey::Batch`].
    Batch(BatchInfo),
    /// Under [`RowKey::Key`].
    Key(KeyRow),
    /// Under [`RowKey::Version`].
    Version(Version),
    /// Under [`RowKey::Lock`].
    Lock(LockReport),
    /// Under [`RowKey::Operations`].
    Operations(Operations),
    /// Under [`RowKey::Former`].
    Former(Former),
    /// Under [`RowKey::Invitation`].
    Invitation(InvitationInfo),
}

/// A key without its versions, which are rows of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRow {
    /// The key's name.
    pub name: KeyName,
    /// When it was made.
    pub created_ms: u64,
    /// Notes for people: names and values.
    pub tags: BTreeMap<String, String>,
}

impl Row {
    /// Reads a row back.
    ///
    /// # Errors
    /// [`codec::CodecError`] for anything but one whole row.
    pub fn decode(bytes: &[u8]) -> Result<Self, codec::CodecError> {
        codec::decode::<Self, ROW_BYTES_MAX>(bytes)
    }
}

/// One write that `apply` asks for.
#[derive(Clone, PartialEq, Eq)]
pub struct RowWrite {
    /// Where.
    pub key: RowKey,
    /// What, or `None` to delete the row.
    pub value: Option<Vec<u8>>,
}

impl std::fmt::Debug for RowWrite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} <- {:?} bytes", self.key, self.value.as_ref().map(Vec::len))
    }
}

/// The writes of one command, in order.
#[derive(Default)]
pub(crate) struct Rows(pub(crate) Vec<RowWrite>);

impl Rows {
    pub(crate) fn put(&mut self, key: RowKey, row: RowV1) {
        let value = codec::encode(&Row::V1(row)).expect("encoding to memory has no limit to exceed");
        self.put_bytes(key, value);
    }

    pub(crate) fn put_bytes(&mut self, key: RowKey, value: Vec<u8>) {
        self.0.push(RowWrite { key, value: Some(value) });
    }

    pub(crate) fn delete(&mut self, key: RowKey) {
        self.0.push(RowWrite { key, value: None });
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
