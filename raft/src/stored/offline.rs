//! Reading the database of a node that is not running, with keys from elsewhere.
//!
//! For tools that show what a stolen disk reveals. Nothing is written, so the database may be a copy that was taken at any
//! moment, also from a running node. The error for a value that does not open names its place.

use std::path::Path;

use quorate_shares::ids::{BatchId, Epoch, KeyUid, KeyVersion};

use crate::live::rows::RowKey;
use crate::live::state::State;
use crate::stored::disk::Disk;
use crate::stored::error::{OpenError, StorageError};
use crate::stored::seal::{Family, StorageKeys};

/// A database, open for reading.
pub struct OfflineStore {
    disk: Disk,
    state: State,
}

/// Opens the database below the data directory `dir`.
///
/// # Errors
/// [`OpenError`], in particular [`OpenError::WrongStorageKey`].
pub fn open(dir: &Path, keys: StorageKeys) -> Result<OfflineStore, OpenError> {
    let disk = Disk::open_read_only(dir, keys)?;
    let state = disk.live_state()?;
    Ok(OfflineStore { disk, state })
}

impl OfflineStore {
    /// The state that the rows on the disk make.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The bytes of a share record.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn record(&self, uid: KeyUid, version: KeyVersion, epoch: Epoch) -> Result<Option<Vec<u8>>, StorageError> {
        self.disk.read(Family::State, &RowKey::Record(uid, version, epoch).to_bytes())
    }

    /// The bytes of a batch header.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn batch(&self, batch: BatchId) -> Result<Option<Vec<u8>>, StorageError> {
        self.disk.read(Family::State, &RowKey::Header(batch).to_bytes())
    }
}
