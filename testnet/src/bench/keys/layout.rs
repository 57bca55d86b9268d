//! What one key version must take, summed up from docs/FORMATS.md: to be held against what it does take.
//!
//! Bytes of the value at rest, in the order of the fields. Numbers are those of the measurement: three holders of which two
//! answer first, a name of [`NAME_BYTES`], no tags, times in milliseconds of this century (9 bytes in section 13), log
//! indices and batch indices from 251 on (3 bytes), everything else below 251 (1 byte).

use std::mem::size_of;

use quorate_raft::state::{Key, RecordRef, Version};
use quorate_shares::ids::{KeyName, KeyUid, KeyVersion, KeyVersionId};

/// `bench/key-000000`.
pub(super) const NAME_BYTES: usize = 16;

/// Section 5: version, number of D, nonce, tag.
const SEAL: usize = 1 + 1 + 24 + 16;
/// Section 3: the share record of three holders.
const RECORD: usize = record(3);
/// Section 8, family `log`: key; V1, place, payload, time, change; request, uid, name, tags, kcv, one record with its length.
const ENTRY: usize = 8 + SEAL + 1 + (1 + 1 + 3) + 1 + 9 + 1 + 16 + 16 + (1 + NAME_BYTES) + 1 + 32 + (1 + 1 + RECORD);
/// The place of a version among many in one `Ready`: uid, version, two holders.
const READY: usize = 16 + 1 + (1 + 2);
/// Row `41`: tag, uid, version, epoch; the record.
const RECORD_ROW: usize = record_row(3);
/// Row `07`: tag, uid, version; V1, variant, version, time, kcv, ready, request; one place: epoch, batch, index, verified.
const VERSION_ROW: usize = (1 + 16 + 4) + SEAL + 1 + 1 + 1 + 9 + 32 + 1 + 16 + 1 + (1 + 16 + 3 + 1);
/// Row `06`: tag, uid; V1, variant, name, time, tags.
const KEY_ROW: usize = (1 + 16) + SEAL + 1 + 1 + (1 + NAME_BYTES) + 9 + 1;

/// What lies on a disk for good, in the three rows of the state.
pub(super) const ROWS: usize = RECORD_ROW + VERSION_ROW + KEY_ROW;

/// What is written on the way: the entry, the rows, and the version once more when it is ready.
pub(super) const WRITTEN: usize = ENTRY + READY + ROWS + VERSION_ROW;

/// Section 3: the share record of so many holders.
pub(in crate::bench) const fn record(holders: usize) -> usize {
    55 + 64 * holders
}

/// The row that it lies in.
pub(in crate::bench) const fn record_row(holders: usize) -> usize {
    (1 + 16 + 4 + 8) + SEAL + record(holders)
}

/// The sums, in words.
pub(super) fn written() -> String {
    format!(
        "entry {ENTRY} + ready {READY} + record {RECORD_ROW} + version 2 × {VERSION_ROW} + key {KEY_ROW} = {WRITTEN} B"
    )
}

/// What the live state keeps of a key with one version. A B-tree of random keys is about two thirds full, a hash table
/// between seven sixteenths and seven eighths; the tree of the versions is one leaf of eleven places.
pub(super) fn memory() -> usize {
    const LEAF: usize = 11;
    let two_thirds = |entry: usize| entry * 3 / 2;
    let key = two_thirds(size_of::<(KeyUid, Key)>()) + NAME_BYTES;
    let versions = LEAF * (size_of::<KeyVersion>() + size_of::<Box<Version>>()) + size_of::<usize>() + 4;
    let version = size_of::<Version>() + size_of::<RecordRef>();
    let name = two_thirds(size_of::<(KeyName, KeyUid)>()) + NAME_BYTES;
    let request = two_thirds(size_of::<([u8; 16], KeyVersionId)>() + 1);
    key + versions + version + name + request
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use quorate_raft::command::{Change, Command, CreateKey, RecordBytes, Verified};
    use quorate_raft::rows::{KeyRow, Row, RowKey, RowValue};
    use quorate_shares::codec;
    use quorate_shares::ids::{BatchId, Epoch, NodeId};

    use super::*;

    const TIME_MS: u64 = 1_800_000_000_000;

    fn row(key: RowKey, row: Row) -> usize {
        key.to_bytes().len() + SEAL + RowValue::Live(row).into_bytes().len()
    }

    /// The encoders agree with the sums.
    #[test]
    fn the_arithmetic_is_that_of_the_formats() {
        let (uid, version, epoch) = (KeyUid([1; 16]), KeyVersion(1), Epoch(1));
        let name: KeyName = "bench/key-000000".parse().expect("a key name");
        let place = RecordRef { epoch, batch: BatchId([2; 16]), index: 300, verified: true };
        let stored =
            Version { version, created_ms: TIME_MS, kcv: [3; 32], ready: true, request: [4; 16], records: vec![place] };
        let tags = BTreeMap::new();
        assert_eq!(name.as_str().len(), NAME_BYTES);
        assert_eq!(row(RowKey::Version(uid, version), Row::Version(stored)), VERSION_ROW);
        let key = KeyRow { name: name.clone(), created_ms: TIME_MS, tags: tags.clone() };
        assert_eq!(row(RowKey::Key(uid), Row::Key(key)), KEY_ROW);
        assert_eq!(RowKey::Record(uid, version, epoch).to_bytes().len() + SEAL + RECORD, RECORD_ROW);
        let records = vec![RecordBytes(vec![0; RECORD])];
        let create = CreateKey { request: [4; 16], uid, name, tags, kcv: [3; 32], records };
        let command = codec::encode(&Command::new(TIME_MS, Change::CreateKey(create))).expect("short");
        // In front of the command: V1, term, node, an index of three bytes, the kind of payload.
        assert_eq!(8 + SEAL + 1 + 1 + 1 + 3 + 1 + command.len(), ENTRY);
        let verified = Verified { uid, version, holders: [NodeId(1), NodeId(2)].into() };
        assert_eq!(codec::encode(&verified).expect("short").len(), READY);
    }
}
