//! Snapshots: the whole state as a file of sealed chunks, and as a stream of plain ones.
//!
//! ```text
//! file      "QSNP" | ver u8 = 1 | id 16 | n x { len u32 | sealed chunk }
//! sealed    under D, with family 4 and key = id || number u32 from 0
//! chunk     Header { cluster, how far it goes, membership } | Rows ... | End { rows }      (each at most 1 MiB in plain)
//! ```
//!
//! D never leaves a node. So chunks travel in plain inside the session between two nodes (share records stay sealed to their
//! holders), and the receiver seals each chunk under its own D before it is written. Neither side holds more than a few chunks
//! in memory. A stream without its `End`, or with another count than `End` says, is refused.
//!
//! Records and batch headers of closed epochs are left out: they may not be used any more.
//!
//! Installing a file, in this order:
//! 1. The file is complete and durable.
//! 2. A marker says that it is being installed. A replica that finds the marker when it opens begins here again.
//! 3. The rows are replaced.
//! 4. One synced batch writes the applied position and deletes the marker.

mod chunk;
mod file;

use std::collections::BTreeSet;

use quorate_shares::ids::ClusterId;

use crate::live::rows::{Row, RowKey};
use crate::stored::disk::Disk;
use crate::stored::error::{StorageError, StorageProblem};
use crate::stored::format::{AppliedPosition, AppliedRow, MetaV1, SnapshotId, encode};
use crate::stored::rows::StoredRow;
use crate::stored::seal::Family;
use chunk::ChunkRow;
use file::{error, path_of, remove};

pub use chunk::CHUNK_BYTES_MAX;
pub(crate) use chunk::Chunk;
pub(crate) use file::{SnapshotFile, SnapshotWriter};

/// A chunk ends before a row would make it larger than this. The difference to the limit is room for the largest row.
const CHUNK_BYTES_AIM: usize = CHUNK_BYTES_MAX - (96 << 10);
/// Most bytes of a received snapshot. A longer stream is refused.
pub(crate) const SNAPSHOT_BYTES_MAX: u64 = 8 << 30;

/// Writes the state of this moment to a file, and makes it the newest snapshot.
pub(crate) fn build(disk: &Disk, cluster: ClusterId) -> Result<SnapshotFile, StorageError> {
    let file = write(disk, cluster)?;
    let previous = current_id(disk)?;
    let mut batch = disk.batch();
    batch.put_meta("snapshot", MetaV1::Snapshot(file.id));
    batch.write_synced()?;
    previous.into_iter().for_each(|id| remove(&path_of(disk.snapshots_dir(), id)));
    Ok(file)
}

/// Writes the state of this moment to a file that nothing points to.
pub(crate) fn write(disk: &Disk, cluster: ClusterId) -> Result<SnapshotFile, StorageError> {
    let mut writer = SnapshotWriter::start(disk)?;
    match write_state(disk, cluster, &mut writer) {
        Ok(()) => writer.finish(),
        Err(error) => {
            writer.abandon();
            Err(error)
        }
    }
}

fn write_state(disk: &Disk, cluster: ClusterId, writer: &mut SnapshotWriter) -> Result<(), StorageError> {
    let moment = disk.moment();
    let applied = AppliedRow::from(&disk.applied_at(&moment)?);
    writer.write(&encode(&Chunk::HeaderV1 { cluster, applied }))?;

    let (mut filter, mut rows, mut pending, mut bytes) = (Filter::default(), 0u64, Vec::new(), 0);
    disk.scan_state_at(&moment, |key, value| {
        if !filter.keeps(key, &value) {
            return Ok(());
        }
        let size = key.len() + value.len() + 16;
        if bytes + size > CHUNK_BYTES_AIM {
            writer.write(&encode(&Chunk::RowsV1(std::mem::take(&mut pending))))?;
            bytes = 0;
        }
        bytes += size;
        rows += 1;
        pending.push(ChunkRow { key: key.to_vec(), value });
        Ok(())
    })?;
    if !pending.is_empty() {
        writer.write(&encode(&Chunk::RowsV1(pending)))?;
    }
    writer.write(&encode(&Chunk::EndV1 { rows }))
}

/// Leaves out the records and headers of closed epochs. Live rows come first, so it learns the epochs before it needs them.
#[derive(Default)]
struct Filter {
    epochs: BTreeSet<quorate_shares::ids::Epoch>,
    batches: BTreeSet<quorate_shares::ids::BatchId>,
}

impl Filter {
    fn keeps(&mut self, key: &[u8], value: &[u8]) -> bool {
        match RowKey::parse(key) {
            Some(RowKey::Epoch(epoch)) => {
                if matches!(live_row(value), Some(Row::Epoch(info)) if !info.is_over()) {
                    self.epochs.insert(epoch);
                }
            }
            Some(RowKey::Batch(batch)) => {
                if matches!(live_row(value), Some(Row::Batch(info)) if self.epochs.contains(&info.epoch)) {
                    self.batches.insert(batch);
                }
            }
            Some(RowKey::Header(batch)) => return self.batches.contains(&batch),
            Some(RowKey::Record(_, _, epoch)) => return self.epochs.contains(&epoch),
            _ => {}
        }
        true
    }
}

fn live_row(value: &[u8]) -> Option<Row> {
    StoredRow::decode(value).ok().map(Row::from)
}

/// Replaces the state by a complete file. The caller keeps readers of rows away. A file of another directory is copied first,
/// so that the marker names a file of this directory.
pub(crate) fn install(disk: &Disk, snapshot: &SnapshotFile) -> Result<(), StorageError> {
    if snapshot.path.parent() != Some(disk.snapshots_dir()) {
        let mut copy = SnapshotWriter::start(disk)?;
        for chunk in snapshot.chunks()? {
            copy.write(&chunk?)?;
        }
        return install(disk, &copy.finish()?);
    }
    let mut marker = disk.batch();
    marker.put_meta("installing", MetaV1::Installing(snapshot.id));
    marker.write_synced()?;

    let mut wipe = disk.batch();
    wipe.delete_state();
    wipe.write()?;

    let malformed = |number| error(&snapshot.path, number, StorageProblem::Malformed);
    let (mut header, mut rows, mut end) = (None, 0u64, None);
    for (number, plain) in (0..).zip(snapshot.chunks()?) {
        match Chunk::decode(&plain?) {
            Some(Chunk::HeaderV1 { applied, .. }) if number == 0 => header = Some(applied),
            Some(Chunk::RowsV1(chunk)) if number > 0 && end.is_none() => {
                rows += chunk.len() as u64;
                let mut batch = disk.batch();
                chunk.iter().for_each(|row| batch.put(Family::State, &row.key, &row.value));
                batch.write()?;
            }
            Some(Chunk::EndV1 { rows }) if number > 0 && end.is_none() => end = Some(rows),
            _ => return Err(malformed(number)),
        }
    }
    let position = header.and_then(|applied| AppliedPosition::try_from(applied).ok());
    let Some(position) = position.filter(|_| end == Some(rows)) else { return Err(malformed(0)) };

    let previous = current_id(disk)?.filter(|&id| id != snapshot.id);
    let mut done = disk.batch();
    done.put_applied(&position);
    done.put_meta("snapshot", MetaV1::Snapshot(snapshot.id));
    done.delete_meta("installing");
    done.write_synced()?;
    previous.into_iter().for_each(|id| remove(&path_of(disk.snapshots_dir(), id)));
    Ok(())
}

/// At open: finishes an interrupted installation, and removes files that nothing points to.
pub(crate) fn recover(disk: &Disk) -> Result<(), StorageError> {
    match disk.meta("installing")? {
        None => {}
        Some(MetaV1::Installing(id)) => {
            let file = SnapshotFile::open(disk, id)?;
            let missing = || error(&path_of(disk.snapshots_dir(), id), 0, StorageProblem::Missing);
            install(disk, &file.ok_or_else(missing)?)?;
        }
        Some(_) => return Err(disk.malformed_meta("installing")),
    }
    let keep = current_id(disk)?.map(|id| path_of(disk.snapshots_dir(), id));
    let files = std::fs::read_dir(disk.snapshots_dir()).into_iter().flatten().flatten().map(|file| file.path());
    files.filter(|path| Some(path) != keep.as_ref()).for_each(|path| remove(&path));
    Ok(())
}

/// Removes a received file, unless it was installed and is now the current one.
pub(crate) fn discard(disk: &Disk, id: SnapshotId) -> Result<(), StorageError> {
    if current_id(disk)? != Some(id) {
        remove(&path_of(disk.snapshots_dir(), id));
    }
    Ok(())
}

/// The newest complete snapshot. If its file was removed, openraft builds a new one.
pub(crate) fn current(disk: &Disk) -> Result<Option<SnapshotFile>, StorageError> {
    match current_id(disk)? {
        Some(id) => SnapshotFile::open(disk, id),
        None => Ok(None),
    }
}

fn current_id(disk: &Disk) -> Result<Option<SnapshotId>, StorageError> {
    match disk.meta("snapshot")? {
        None => Ok(None),
        Some(MetaV1::Snapshot(id)) => Ok(Some(id)),
        Some(_) => Err(disk.malformed_meta("snapshot")),
    }
}
