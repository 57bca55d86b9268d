//! Entrances for a fuzzer: bytes that come from other replicas. Bytes that are accepted must stay the same when they are
//! written again.
//!
//! Compiled with `--cfg fuzzing` only (`.ci/fuzz`), because these formats are private to this crate.

use quorate_shares::codec;
use quorate_shares::ids::KeyUid;

use crate::consensus::messages::{Ask, Reply, Request};
use crate::live::rows::{Row, RowKey};
use crate::live::state::State;
use crate::snapshot::Chunk;
use crate::stored::format::{AppliedPosition, decode_entry, encode, encode_entry};
use crate::stored::rows::{COLD_ROWS, StoredRow};

/// Most memory that decoding rows may claim.
const ROWS_CLAIM_MAX: usize = 1 << 20;

/// A request or a reply, and the entries inside a request.
pub fn message(bytes: &[u8]) {
    if let Ok(request) = Request::decode(bytes) {
        if let Ask::Append { entries, .. } = &request.ask {
            entries.iter().for_each(|bytes| entry(&bytes.0));
        }
        let written = encode(&Request::V1(request));
        let again = Request::decode(&written).expect("our own bytes");
        assert_eq!(encode(&Request::V1(again)), written);
    }
    if let Ok((from, tell)) = Reply::decode(bytes) {
        let written = encode(&Reply::V1 { from, tell });
        let (from, tell) = Reply::decode(&written).expect("our own bytes");
        assert_eq!(encode(&Reply::V1 { from, tell }), written);
    }
}

/// An entry of the log.
pub fn entry(bytes: &[u8]) {
    if let Ok(entry) = decode_entry(bytes) {
        let written = encode_entry(&entry);
        assert_eq!(encode_entry(&decode_entry(&written).expect("our own bytes")), written);
    }
}

/// Rows of one state, in any order: they are refused, or they make a state.
pub fn rows(bytes: &[u8]) {
    let Ok(rows) = codec::decode::<Vec<StoredRow>, ROWS_CLAIM_MAX>(bytes) else { return };
    let (mut state, mut uid) = (State::default(), KeyUid([0; 16]));
    for row in rows {
        let written = encode(&row);
        assert_eq!(StoredRow::decode(&written).expect("our own bytes"), row);
        let live = Row::from(row.clone());
        assert_eq!(StoredRow::from(live.clone()), row);
        let key = match live {
            Row::Clock(_) => RowKey::Clock,
            Row::Cluster(_) => RowKey::Cluster,
            Row::Member(member) => RowKey::Member(member.node),
            Row::Epoch(epoch) => RowKey::Epoch(epoch.epoch),
            Row::Batch(batch) => RowKey::Batch(batch.batch),
            Row::Key(_) => {
                uid.0[0] = uid.0[0].wrapping_add(1);
                RowKey::Key(uid)
            }
            Row::Version(version) => RowKey::Version(uid, version.version),
            Row::Lock(report) => RowKey::Lock(report.node),
            Row::Operations(_) => RowKey::Operations,
            Row::Former(former) => RowKey::Former(former.node),
            Row::Invitation(invitation) => RowKey::Invitation(invitation.id()),
            Row::Operator(operator) => RowKey::Operator(operator.key),
            Row::Order(order) => RowKey::Order(order.request),
        };
        let Ok(()) = state.restore_row(key, &written) else { return };
    }
    drop(state.restored());
}

/// A chunk of a snapshot, and the state that its rows make.
pub fn chunk(bytes: &[u8]) {
    let Some(chunk) = Chunk::decode(bytes) else { return };
    let written = encode(&chunk);
    assert_eq!(Chunk::decode(&written).expect("our own bytes"), chunk);
    match chunk {
        Chunk::HeaderV1 { applied, .. } => drop(AppliedPosition::try_from(applied)),
        Chunk::RowsV1(rows) => {
            let mut state = State::default();
            for (key, value) in rows.iter().map(|row| row.parts()) {
                match RowKey::parse(key) {
                    Some(row) if key[0] < COLD_ROWS => {
                        assert_eq!(row.to_bytes(), key);
                        let Ok(()) = state.restore_row(row, value) else { return };
                    }
                    _ => return,
                }
            }
            drop(state.restored());
        }
        Chunk::EndV1 { .. } => {}
    }
}
