//! The pieces of a snapshot in plain.

use quorate_shares::codec;
use quorate_shares::ids::ClusterId;
use serde::{Deserialize, Serialize};

use crate::stored::format::AppliedRow;

/// Most bytes of one chunk in plain.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;

/// One chunk in plain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Chunk {
    HeaderV1 {
        cluster: ClusterId,
        applied: AppliedRow,
    },
    /// Rows in the order of their keys.
    RowsV1(Vec<ChunkRow>),
    EndV1 {
        rows: u64,
    },
}

/// A row of `state`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChunkRow {
    #[serde(with = "serde_bytes")]
    pub(super) key: Vec<u8>,
    #[serde(with = "serde_bytes")]
    pub(super) value: Vec<u8>,
}

#[cfg(fuzzing)]
impl ChunkRow {
    /// Its key and its value.
    pub(crate) fn parts(&self) -> (&[u8], &[u8]) {
        (&self.key, &self.value)
    }
}

impl Chunk {
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        // Small rows claim more for their vectors than they fill.
        codec::decode::<_, { 8 * CHUNK_BYTES_MAX }>(bytes).ok()
    }
}
