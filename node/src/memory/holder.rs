//! This node as a holder: its share keys, and its own shares of key versions.
//!
//! The records of a key come from a [`Source`], the replica. Opening a batch costs a decapsulation. So opened batches are kept
//! until the lease is lost, up to a limit.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use quorate_raft::state::State;
use quorate_raft::{ReadError, Replica};
use quorate_shares::error::{FormatError, ShareError};
use quorate_shares::ids::{BatchId, ClusterId, Epoch, KeyUid, KeyVersion, KeyVersionId, NodeId, ShareKeyGeneration};
use quorate_shares::master::KeyIdentity;
use quorate_shares::seal::{BatchHeader, BatchOpener, Committee, ShareRecord};
use quorate_shares::secret::Secret;

/// Opened batches kept at most. Beyond that all are dropped, and opened again when they are needed.
const BATCHES_MAX: usize = 1_024;

/// Why this node has no share of a key version.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HoldError {
    /// This node's replica does not have the version, or no record of it in this epoch.
    #[error("no record of this key version in epoch {0}")]
    NoRecord(Epoch),
    /// The bundle holds no share key of the generation that the record is sealed to.
    #[error("no share key of generation {0}")]
    NoShareKey(ShareKeyGeneration),
    /// The bytes of a stored record are not a record.
    #[error("a stored record is malformed: {0}")]
    Format(#[from] FormatError),
    /// The record does not open, or its share does not match the commitment.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// A snapshot is being installed.
    #[error("a snapshot is being installed")]
    Busy,
    #[error("storage: {0}")]
    Storage(String),
}

impl From<ReadError> for HoldError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Busy => Self::Busy,
            error => Self::Storage(error.to_string()),
        }
    }
}

/// Where a holder reads the replicated state and its records.
pub trait Source {
    /// Looks at the replicated state.
    fn state<R>(&self, look: impl FnOnce(&State) -> R) -> R;

    /// The bytes of a share record.
    ///
    /// # Errors
    /// The error of the storage.
    fn record(&self, uid: KeyUid, version: KeyVersion, epoch: Epoch) -> Result<Option<Vec<u8>>, ReadError>;

    /// The bytes of a batch header.
    ///
    /// # Errors
    /// The error of the storage.
    fn batch(&self, batch: BatchId) -> Result<Option<Vec<u8>>, ReadError>;
}

impl Source for Replica {
    fn state<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        self.read(look)
    }

    fn record(&self, uid: KeyUid, version: KeyVersion, epoch: Epoch) -> Result<Option<Vec<u8>>, ReadError> {
        Replica::record(self, uid, version, epoch)
    }

    fn batch(&self, batch: BatchId) -> Result<Option<Vec<u8>>, ReadError> {
        Replica::batch(self, batch)
    }
}

/// What the replicated state knows about one key version in one epoch. It is enough to open the own share and to check every
/// other share.
pub struct ShareRecordInfo {
    pub identity: KeyIdentity,
    pub kcv: [u8; 32],
    /// The sealed shares and their commitments.
    pub record: ShareRecord,
    /// The holders of the shares.
    pub committee: Arc<Committee>,
}

/// The share keys of this node.
pub struct Holder {
    cluster: ClusterId,
    node: NodeId,
    keys: RwLock<Vec<(ShareKeyGeneration, Secret<32>)>>,
    batches: Mutex<HashMap<BatchId, Arc<BatchOpener>>>,
}

impl Holder {
    /// A holder with the share keys of its bundle.
    pub fn new(cluster: ClusterId, node: NodeId, keys: Vec<(ShareKeyGeneration, Secret<32>)>) -> Self {
        Self { cluster, node, keys: RwLock::new(keys), batches: Mutex::default() }
    }

    /// Replaces the share keys, and forgets the batches that the old ones opened.
    pub fn set_keys(&self, keys: Vec<(ShareKeyGeneration, Secret<32>)>) {
        *self.keys.write() = keys;
        self.forget();
    }

    /// Forgets every opened batch.
    pub fn forget(&self) {
        self.batches.lock().clear();
    }

    /// Reads the record of a key version, and what belongs to it.
    ///
    /// # Errors
    /// [`HoldError::NoRecord`] if this replica does not have the record; storage errors.
    pub fn share_record_info(
        &self,
        source: &impl Source,
        epoch: Epoch,
        uid: KeyUid,
        version: KeyVersion,
    ) -> Result<ShareRecordInfo, HoldError> {
        self.share_record_infos(source, epoch, &[(uid, version)])?.pop().ok_or(HoldError::NoRecord(epoch))
    }

    /// [`Holder::share_record_info`] of many key versions of one epoch, in the order of `key_versions`.
    ///
    /// # Errors
    /// As [`Holder::share_record_info`], for the first that fails.
    pub fn share_record_infos(
        &self,
        source: &impl Source,
        epoch: Epoch,
        key_versions: &[KeyVersionId],
    ) -> Result<Vec<ShareRecordInfo>, HoldError> {
        let known = source.state(|state| {
            let kcv = |&(uid, version): &_| state.version(uid, version).map(|version| version.kcv);
            Some((key_versions.iter().map(kcv).collect::<Option<Vec<_>>>()?, Arc::new(state.committee(epoch)?)))
        });
        let (kcvs, committee) = known.ok_or(HoldError::NoRecord(epoch))?;
        let infos = key_versions.iter().zip(kcvs).map(|(&(uid, version), kcv)| {
            let bytes = source.record(uid, version, epoch)?;
            let record = ShareRecord::parse(&bytes.ok_or(HoldError::NoRecord(epoch))?)?;
            let identity = KeyIdentity { cluster: self.cluster, uid, version };
            Ok(ShareRecordInfo { identity, kcv, record, committee: Arc::clone(&committee) })
        });
        infos.collect()
    }

    /// Opens and checks this node's own share.
    ///
    /// # Errors
    /// [`HoldError`]: why this node has no share of the key version.
    pub fn open(&self, source: &impl Source, info: &ShareRecordInfo) -> Result<(u8, Secret<32>), HoldError> {
        let batch = self.batch(source, info)?;
        let share = batch.open_share(&info.record, &info.identity, &info.kcv)?;
        Ok((batch.x(), share))
    }

    fn batch(&self, source: &impl Source, info: &ShareRecordInfo) -> Result<Arc<BatchOpener>, HoldError> {
        let id = info.record.batch;
        if let Some(batch) = self.batches.lock().get(&id) {
            return Ok(Arc::clone(batch));
        }
        let bytes = source.batch(id)?;
        let header = BatchHeader::parse(&bytes.ok_or(HoldError::NoRecord(info.record.epoch))?)?;
        let seat = info.committee.holder(self.node).ok_or(ShareError::NotAHolder(self.node))?;
        let generation = seat.member.generation;
        let keys = self.keys.read();
        let (_, seed) = keys.iter().find(|(known, _)| *known == generation).ok_or(HoldError::NoShareKey(generation))?;
        let batch = Arc::new(BatchOpener::open(&header, &info.committee, self.node, generation, seed)?);
        let mut batches = self.batches.lock();
        if batches.len() >= BATCHES_MAX {
            batches.clear();
        }
        batches.insert(id, Arc::clone(&batch));
        Ok(batch)
    }
}
