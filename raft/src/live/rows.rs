//! The live state cut into rows: what `apply` asks to be written, and what a restart reads back.
//!
//! `stored/` says how keys and values look as bytes.

use std::collections::BTreeMap;

use quorate_shares::ids::{BatchId, Epoch, KeyName, KeyUid, KeyVersion, NodeId};
use quorate_shares::order::RequestId;
use quorate_shares::signature::PublicKey;

use crate::live::state::{
    BatchInfo, CarriedOrder, Cluster, EpochInfo, Former, InvitationInfo, LockReport, Member, Operations, Operator,
    Version,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RowKey {
    /// The state's time.
    Clock,
    Cluster,
    Member(NodeId),
    Epoch(Epoch),
    /// What the state remembers of a batch.
    Batch(BatchId),
    Key(KeyUid),
    Version(KeyUid, KeyVersion),
    Lock(NodeId),
    Operations,
    Former(NodeId),
    /// An invitation, by SHA-256 of its V.
    Invitation([u8; 32]),
    Operator(PublicKey),
    /// What came of an order, by its request id.
    Order(RequestId),
    Header(BatchId),
    Record(KeyUid, KeyVersion, Epoch),
}

/// A row of the live state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    /// Under [`RowKey::Clock`], in milliseconds.
    Clock(u64),
    Cluster(Cluster),
    Member(Member),
    Epoch(EpochInfo),
    Batch(BatchInfo),
    Key(KeyRow),
    Version(Version),
    Lock(LockReport),
    Operations(Operations),
    Former(Former),
    Invitation(InvitationInfo),
    Operator(Operator),
    Order(CarriedOrder),
}

/// A key without its versions, which are rows of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRow {
    pub name: KeyName,
    pub created_ms: u64,
    /// Notes for people: names and values.
    pub tags: BTreeMap<String, String>,
}

/// The value of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowValue {
    /// Held in memory, too.
    Live(Row),
    /// Stays on disk: a batch header or a share record, in the bytes of FORMATS 3.
    Cold(Vec<u8>),
}

/// One write that `apply` asks for.
#[derive(Clone, PartialEq, Eq)]
pub struct RowWrite {
    pub key: RowKey,
    /// `None` deletes the row.
    pub value: Option<RowValue>,
}

impl std::fmt::Debug for RowWrite {
    /// Without the value, which may hold names.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let done = if self.value.is_some() { "put" } else { "deleted" };
        write!(f, "{:?} {done}", self.key)
    }
}

/// The writes of one command, in order.
#[derive(Default)]
pub(crate) struct Rows(pub(crate) Vec<RowWrite>);

impl Rows {
    pub(crate) fn put(&mut self, key: RowKey, row: Row) {
        self.0.push(RowWrite { key, value: Some(RowValue::Live(row)) });
    }

    pub(crate) fn put_bytes(&mut self, key: RowKey, value: Vec<u8>) {
        self.0.push(RowWrite { key, value: Some(RowValue::Cold(value)) });
    }

    pub(crate) fn delete(&mut self, key: RowKey) {
        self.0.push(RowWrite { key, value: None });
    }
}
