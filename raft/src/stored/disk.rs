//! The database: three column families, every value sealed, and when each write is synced.
//!
//! ```text
//! data directory
//!   raft/       RocksDB
//!     log       index u64                     -> entry
//!     state     00                            -> how far the rows go: log id, membership
//!               see `rows`                    -> rows
//!     meta      identity                      -> cluster, node, schema version
//!               vote, committed, purged, truncations, installing, snapshot
//!   snapshots/  <id>.snap                        sealed chunks
//! ```
//!
//! All three share one write-ahead log, so writes reach the disk in the order in which they were made, and one sync makes
//! everything before it durable.
//!
//! | write | synced |
//! |---|---|
//! | votes, truncations, purges, markers | before the call returns |
//! | entries | by the flusher, before Raft acknowledges them |
//! | rows of `state`, `committed` | not at all: a crash may undo the newest, and the log brings them again |
//!
//! RocksDB cannot tell damage inside the live write-ahead log from the torn end that a loss of power leaves. It keeps what is
//! before the damage and silently drops what was synced after it. Two things notice that: the peers see that the storage went
//! back ([`crate::Flushed`]), and the terms of the remaining entries do not fit the vote (`log::check`).
//!
//! If a value does not open or decode, the error names its file, column family and key, and the node stops. In `state` a
//! snapshot of another replica repairs it. In `log` or `meta` this node must never vote again.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use openraft::alias::EntryOf;
use quorate_shares::ids::{ClusterId, NodeId};
use rocksdb::{
    ColumnFamily, ColumnFamilyDescriptor, DB, Direction, IteratorMode, ReadOptions, WriteBatch, WriteOptions,
};
use tokio::sync::watch;

use super::rows::COLD_ROWS;
use crate::live::rows::{RowKey, RowWrite};
use crate::live::state::State;
use crate::stored::error::{OpenError, StorageError, StorageProblem};
use crate::stored::format::{self, AppliedPosition, AppliedRow, Meta, MetaV1};
use crate::stored::seal::{Family, StorageKeys};
use crate::types::Types;

/// The folder of the database.
const DATABASE: &str = "raft";

/// The version of the layout of column families and rows. A program refuses a newer one than its own.
pub(crate) const SCHEMA: u32 = 2;

/// Most bytes of sorted files that RocksDB writes in a second, when a buffer is full or files are compacted. It is three times
/// what an epoch needs to which keys are dealt at full rate. Without a limit, 64 MiB take a whole processor for a second, on
/// all nodes at the same moment, and clients wait. Writes to the log are not limited.
const SORTED_PER_SECOND: i64 = 16 << 20;
/// How often a part of these bytes is released, in microseconds.
const SORTED_EVERY_US: i64 = 10_000;
/// One time in this many, a compaction goes before a full buffer. RocksDB recommends this value.
const FAIRNESS: i32 = 10;

const FAMILIES: [Family; 3] = [Family::Log, Family::State, Family::Meta];
const APPLIED_KEY: &[u8] = &[0x00];

pub(crate) struct Disk {
    db: DB,
    path: PathBuf,
    snapshots: PathBuf,
    keys: Arc<StorageKeys>,
    /// Dropped after `db`, because fields are dropped in order. So a listener hears of it when RocksDB is closed, and not
    /// earlier, when the last owner drops the database.
    open: watch::Sender<()>,
}

/// A point in time of the database.
pub(crate) type Moment<'a> = rocksdb::Snapshot<'a>;

/// Several writes that reach the disk together or not at all.
pub(crate) struct Batch<'a> {
    disk: &'a Disk,
    batch: WriteBatch,
}

impl Disk {
    /// Whether `dir` holds a database: RocksDB's file CURRENT names its manifest.
    pub(crate) fn exists(dir: &Path) -> bool {
        dir.join(DATABASE).join("CURRENT").exists()
    }

    /// Opens or makes the database of `node` below `dir`.
    pub(crate) fn open(dir: &Path, keys: StorageKeys, cluster: ClusterId, node: NodeId) -> Result<Self, OpenError> {
        let (path, snapshots) = (dir.join(DATABASE), dir.join("snapshots"));
        for directory in [&path, &snapshots] {
            make_private(directory)
                .map_err(|source| OpenError::Directory { path: directory.display().to_string(), source })?;
        }
        let mut options = rocksdb::Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        // If a synced log file is missing or short, this notices it at open, and not at the next election.
        options.set_track_and_verify_wals_in_manifest(true);
        options.set_keep_log_file_num(4);
        options.set_max_total_wal_size(64 << 20);
        options.set_ratelimiter(SORTED_PER_SECOND, SORTED_EVERY_US, FAIRNESS);
        let families = FAMILIES.map(|family| ColumnFamilyDescriptor::new(family.name(), rocksdb::Options::default()));
        let db = DB::open_cf_descriptors(&options, &path, families).map_err(|error| unopened(&path, &error))?;
        let disk = Self { db, path, snapshots, keys: Arc::new(keys), open: watch::Sender::new(()) };
        disk.check_owner(cluster, node)?;
        disk.sync()?;
        Ok(disk)
    }

    /// Opens a copy of a database for reading.
    pub(crate) fn open_read_only(dir: &Path, keys: StorageKeys) -> Result<Self, OpenError> {
        let (path, snapshots) = (dir.join(DATABASE), dir.join("snapshots"));
        let families = FAMILIES.map(|family| ColumnFamilyDescriptor::new(family.name(), rocksdb::Options::default()));
        let options = rocksdb::Options::default();
        let db = DB::open_cf_descriptors_read_only(&options, &path, families, false)
            .map_err(|error| unopened(&path, &error))?;
        let disk = Self { db, path, snapshots, keys: Arc::new(keys), open: watch::Sender::new(()) };
        disk.identity()?;
        Ok(disk)
    }

    /// The node and cluster that the database belongs to; `None` if it is new.
    fn identity(&self) -> Result<Option<MetaV1>, OpenError> {
        self.meta("identity").map_err(|error| match error.problem {
            StorageProblem::Sealed(problem) => OpenError::WrongStorageKey { path: error.path, problem },
            _ => error.into(),
        })
    }

    fn check_owner(&self, cluster: ClusterId, node: NodeId) -> Result<(), OpenError> {
        let path = self.path.display().to_string();
        match self.identity()? {
            Some(MetaV1::Identity { schema, .. }) if schema > SCHEMA => {
                Err(OpenError::NewerSchema { path, found: schema })
            }
            Some(MetaV1::Identity { schema, .. }) if schema < SCHEMA => {
                Err(OpenError::OlderSchema { path, found: schema })
            }
            Some(MetaV1::Identity { cluster: theirs, node: owner, .. }) if (theirs, owner) != (cluster, node) => {
                Err(OpenError::WrongOwner { path, cluster: theirs, node: owner })
            }
            Some(MetaV1::Identity { .. }) => Ok(()),
            Some(_) => Err(self.error(Family::Meta, b"identity", StorageProblem::Malformed).into()),
            // The identity is written first: without it the database must be empty.
            None if !self.is_empty()? => Err(self.error(Family::Meta, b"identity", StorageProblem::Missing).into()),
            None => {
                let mut batch = self.batch();
                batch.put_meta("identity", MetaV1::Identity { cluster, node, schema: SCHEMA });
                Ok(batch.write_synced()?)
            }
        }
    }

    fn is_empty(&self) -> Result<bool, StorageError> {
        for family in FAMILIES {
            if let Some(row) = self.db.iterator_cf(self.family(family), IteratorMode::Start).next() {
                row.map_err(|error| self.database_error(family, b"", &error))?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Drops all of `state` without reading its files. After a crash in the middle the column family does not exist, and the
    /// next open makes an empty one.
    pub(crate) fn drop_state(&mut self) -> Result<(), StorageError> {
        let name = Family::State.name();
        let dropped = self.db.drop_cf(name).and_then(|()| self.db.create_cf(name, &rocksdb::Options::default()));
        dropped.map_err(|error| self.database_error(Family::State, b"(all)", &error))
    }

    /// Ends when the database is closed.
    pub(crate) fn until_closed(&self) -> watch::Receiver<()> {
        self.open.subscribe()
    }

    pub(crate) fn snapshots_dir(&self) -> &Path {
        &self.snapshots
    }

    pub(crate) fn keys(&self) -> &Arc<StorageKeys> {
        &self.keys
    }

    /// Starts a batch of writes.
    pub(crate) fn batch(&self) -> Batch<'_> {
        Batch { disk: self, batch: WriteBatch::default() }
    }

    /// Makes everything written so far durable.
    pub(crate) fn sync(&self) -> Result<(), StorageError> {
        self.db.flush_wal(true).map_err(|error| self.database_error(Family::Log, b"(write-ahead log)", &error))
    }

    /// A point in time, for reading several rows that belong together.
    pub(crate) fn moment(&self) -> Moment<'_> {
        self.db.snapshot()
    }

    /// Reads and opens one value.
    pub(crate) fn read(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        let sealed = self.db.get_pinned_cf(self.family(family), key);
        let sealed = sealed.map_err(|error| self.database_error(family, key, &error))?;
        sealed.map(|sealed| self.unseal(family, key, &sealed)).transpose()
    }

    /// Reads one row of `meta`.
    pub(crate) fn meta(&self, key: &'static str) -> Result<Option<MetaV1>, StorageError> {
        let value = self.read(Family::Meta, key.as_bytes())?;
        let decode = |value: Vec<u8>| {
            format::decode_meta(&value).map_err(|_| self.error(Family::Meta, key.as_bytes(), StorageProblem::Malformed))
        };
        value.map(decode).transpose()
    }

    /// The error for a row of `meta` whose value is of another kind than its key says.
    pub(crate) fn malformed_meta(&self, key: &'static str) -> StorageError {
        self.error(Family::Meta, key.as_bytes(), StorageProblem::Malformed)
    }

    /// Opens each value of a family from `from` on, in order, until `visit` returns `false`.
    pub(crate) fn scan(
        &self,
        family: Family,
        from: &[u8],
        mut visit: impl FnMut(&[u8], Vec<u8>) -> Result<bool, StorageError>,
    ) -> Result<(), StorageError> {
        let rows = self.db.iterator_cf(self.family(family), IteratorMode::From(from, Direction::Forward));
        for row in rows {
            let (key, sealed) = row.map_err(|error| self.database_error(family, from, &error))?;
            let value = self.unseal(family, &key, &sealed)?;
            if !visit(&key, value)? {
                break;
            }
        }
        Ok(())
    }

    /// As [`Disk::scan`], but of `state` at an earlier moment.
    pub(crate) fn scan_state_at(
        &self,
        moment: &Moment<'_>,
        mut visit: impl FnMut(&[u8], Vec<u8>) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        let rows = moment.iterator_cf_opt(self.family(Family::State), options, IteratorMode::Start);
        for row in rows {
            let (key, sealed) = row.map_err(|error| self.database_error(Family::State, b"", &error))?;
            if *key != *APPLIED_KEY {
                visit(&key, self.unseal(Family::State, &key, &sealed)?)?;
            }
        }
        Ok(())
    }

    /// The last entry of the log.
    pub(crate) fn last_entry(&self) -> Result<Option<EntryOf<Types>>, StorageError> {
        let mut rows = self.db.iterator_cf(self.family(Family::Log), IteratorMode::End);
        let Some(row) = rows.next() else { return Ok(None) };
        let (key, sealed) = row.map_err(|error| self.database_error(Family::Log, b"(last)", &error))?;
        let entry = format::decode_entry(&self.unseal(Family::Log, &key, &sealed)?);
        entry.map(Some).map_err(|_| self.error(Family::Log, &key, StorageProblem::Malformed))
    }

    /// How far the state goes.
    pub(crate) fn applied(&self) -> Result<AppliedPosition, StorageError> {
        self.decode_applied(self.read(Family::State, APPLIED_KEY)?)
    }

    /// How far the state went at an earlier moment.
    pub(crate) fn applied_at(&self, moment: &Moment<'_>) -> Result<AppliedPosition, StorageError> {
        let sealed = moment.get_pinned_cf(self.family(Family::State), APPLIED_KEY);
        let sealed = sealed.map_err(|error| self.database_error(Family::State, APPLIED_KEY, &error))?;
        let value = sealed.map(|sealed| self.unseal(Family::State, APPLIED_KEY, &sealed)).transpose()?;
        self.decode_applied(value)
    }

    fn decode_applied(&self, value: Option<Vec<u8>>) -> Result<AppliedPosition, StorageError> {
        let Some(value) = value else { return Ok(AppliedPosition::default()) };
        let position = format::decode_applied(&value).and_then(AppliedPosition::try_from);
        position.map_err(|_| self.error(Family::State, APPLIED_KEY, StorageProblem::Malformed))
    }

    /// The live state, from its rows.
    pub(crate) fn live_state(&self) -> Result<State, StorageError> {
        let mut state = State::default();
        self.scan(Family::State, &[0x01], |key, value| {
            if key[0] >= COLD_ROWS {
                return Ok(false);
            }
            let malformed = || self.error(Family::State, key, StorageProblem::Malformed);
            let row = RowKey::parse(key).ok_or_else(malformed)?;
            state.restore_row(row, &value).map_err(|_| malformed())?;
            Ok(true)
        })?;
        state.restored().map_err(|_| self.error(Family::State, b"(keys)", StorageProblem::Missing))
    }

    pub(crate) fn error(&self, family: Family, key: &[u8], problem: StorageProblem) -> StorageError {
        StorageError { path: self.path.display().to_string(), family: family.name(), key: printable(key), problem }
    }

    fn database_error(&self, family: Family, key: &[u8], error: &rocksdb::Error) -> StorageError {
        self.error(family, key, StorageProblem::Database(error.to_string()))
    }

    fn unseal(&self, family: Family, key: &[u8], sealed: &[u8]) -> Result<Vec<u8>, StorageError> {
        self.keys.open(family, key, sealed).map_err(|problem| self.error(family, key, problem.into()))
    }

    fn family(&self, family: Family) -> &ColumnFamily {
        self.db.cf_handle(family.name()).expect("every family is named at open")
    }
}

impl Batch<'_> {
    pub(crate) fn put(&mut self, family: Family, key: &[u8], value: &[u8]) {
        let sealed = self.disk.keys.seal(family, key, value);
        self.batch.put_cf(self.disk.family(family), key, sealed);
    }

    pub(crate) fn put_meta(&mut self, key: &'static str, row: MetaV1) {
        self.put(Family::Meta, key.as_bytes(), &format::encode(&Meta::V1(row)));
    }

    pub(crate) fn delete_meta(&mut self, key: &'static str) {
        self.batch.delete_cf(self.disk.family(Family::Meta), key);
    }

    pub(crate) fn put_applied(&mut self, position: &AppliedPosition) {
        self.put(Family::State, APPLIED_KEY, &format::encode(&AppliedRow::from(position)));
    }

    pub(crate) fn row(&mut self, write: RowWrite) {
        let key = write.key.to_bytes();
        match write.value {
            Some(value) => self.put(Family::State, &key, &value.into_bytes()),
            None => self.batch.delete_cf(self.disk.family(Family::State), key),
        }
    }

    /// Deletes the entries in `from..to`.
    pub(crate) fn delete_entries(&mut self, from: u64, to: u64) {
        self.batch.delete_range_cf(self.disk.family(Family::Log), from.to_be_bytes(), to.to_be_bytes());
    }

    /// Deletes every row of `state`, and how far it went.
    pub(crate) fn delete_state(&mut self) {
        self.batch.delete_range_cf(self.disk.family(Family::State), &[][..], &[0xff; 32][..]);
    }

    /// Writes; durable with the next sync.
    pub(crate) fn write(self) -> Result<(), StorageError> {
        self.write_with(false)
    }

    /// Writes; durable on return, with everything before it.
    pub(crate) fn write_synced(self) -> Result<(), StorageError> {
        self.write_with(true)
    }

    fn write_with(self, synced: bool) -> Result<(), StorageError> {
        let mut options = WriteOptions::default();
        options.set_sync(synced);
        let written = self.disk.db.write_opt(self.batch, &options);
        written.map_err(|error| self.disk.database_error(Family::Log, b"(write-ahead log)", &error))
    }
}

fn unopened(path: &Path, error: &rocksdb::Error) -> OpenError {
    // RocksDB has no error kind for a held lock.
    if error.to_string().contains("/LOCK:") {
        return OpenError::InUse { path: path.display().to_string() };
    }
    let problem = StorageProblem::Database(error.to_string());
    StorageError { path: path.display().to_string(), family: "all", key: "(open)".to_owned(), problem }.into()
}

/// Makes a directory that only this user can read.
fn make_private(directory: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// Keys of `meta` are text; the others are numbers, printed in hexadecimal.
fn printable(key: &[u8]) -> String {
    match std::str::from_utf8(key) {
        Ok(text) if !key.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') => {
            text.to_owned()
        }
        _ => key.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}
