//! Snapshots: the whole state as a file of sealed chunks, and as a stream of plain ones.
//!
//! ```text
//! file      "QSNP" | ver u8 = 1 | id 16 | n x { len u32 | sealed chunk }
//! sealed    under D, with family 4 and key = id || number u32 from 0
//! chunk     Header { cluster, how far it goes, membership } | Rows ... | End { rows }      (each at most 1 MiB in plain)
//! ```
//!
//! D never leaves a node, so chunks travel in plain inside the session between two nodes (share records stay sealed to
//! their holders) and the receiver seals each under its own D before it touches the disk. Neither side holds more than a
//! few chunks in memory. A stream without its `End` is refused, and so is a count that does not agree.
//!
//! Records and batch headers of closed epochs are left out: nobody may use them any more.
//!
//! A received file is complete and durable before the state is touched. Then a marker says that it is being installed;
//! the rows are replaced; one synced batch sets how far they go and takes the marker away. A replica that finds the
//! marker when it opens starts that again.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openraft::alias::SnapshotMetaOf;
use quorate_shares::codec;
use quorate_shares::ids::ClusterId;
use serde::{Deserialize, Serialize};

use crate::live::rows::{Row, RowKey};
use crate::stored::disk::Disk;
use crate::stored::error::{StorageError, StorageProblem};
use crate::stored::format::{AppliedPosition, AppliedRow, MetaV1, SnapshotId, encode};
use crate::stored::rows::StoredRow;
use crate::stored::seal::{Family, SEAL_BYTES, StorageKeys};
use crate::types::Types;

/// Most bytes of one chunk in plain.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;
/// A chunk is closed before a row would take it beyond this; the rest is room for the largest row.
const CHUNK_BYTES_AIM: usize = CHUNK_BYTES_MAX - (96 << 10);
/// Most bytes of a snapshot that is received; a longer stream is refused.
pub(crate) const SNAPSHOT_BYTES_MAX: u64 = 8 << 30;

const MAGIC: &[u8; 5] = b"QSNP\x01";

/// One chunk in plain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Chunk {
    /// The first.
    HeaderV1 { cluster: ClusterId, applied: AppliedRow },
    /// Rows in the order of their keys.
    RowsV1(Vec<ChunkRow>),
    /// The last.
    EndV1 { rows: u64 },
}

/// A row of `state`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChunkRow {
    #[serde(with = "serde_bytes")]
    key: Vec<u8>,
    #[serde(with = "serde_bytes")]
    value: Vec<u8>,
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

/// A complete snapshot file, open for reading.
#[derive(Debug)]
pub(crate) struct SnapshotFile {
    id: SnapshotId,
    path: PathBuf,
    file: File,
    keys: Arc<StorageKeys>,
}

fn path_of(dir: &Path, id: SnapshotId) -> PathBuf {
    let name: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    dir.join(format!("{name}.snap"))
}

fn chunk_key(id: SnapshotId, number: u32) -> Vec<u8> {
    [&id[..], &number.to_be_bytes()].concat()
}

fn error(path: &Path, number: u32, problem: StorageProblem) -> StorageError {
    let (path, key) = (path.display().to_string(), format!("chunk {number}"));
    StorageError { path, family: Family::Snapshot.name(), key, problem }
}

fn io_error(path: &Path, number: u32, source: &io::Error) -> StorageError {
    error(path, number, StorageProblem::Database(source.to_string()))
}

impl SnapshotFile {
    /// Its name.
    pub(crate) fn id(&self) -> SnapshotId {
        self.id
    }

    /// Opens the file of `id`; `None` if there is none.
    pub(crate) fn open(disk: &Disk, id: SnapshotId) -> Result<Option<Self>, StorageError> {
        let path = path_of(disk.snapshots_dir(), id);
        match File::open(&path) {
            Ok(file) => Ok(Some(Self { id, path, file, keys: disk.keys().clone() })),
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(io_error(&path, 0, &source)),
        }
    }

    /// What openraft wants to know of it.
    pub(crate) fn meta(&self) -> Result<SnapshotMetaOf<Types>, StorageError> {
        self.position().map(AppliedPosition::into_meta)
    }

    /// How far it goes, as its first chunk says.
    pub(crate) fn position(&self) -> Result<AppliedPosition, StorageError> {
        let mut chunks = Chunks::new(self)?;
        let first = chunks.next().transpose()?.and_then(|bytes| Chunk::decode(&bytes));
        let Some(Chunk::HeaderV1 { applied, .. }) = first else {
            return Err(error(&self.path, 0, StorageProblem::Malformed));
        };
        AppliedPosition::try_from(applied).map_err(|_| error(&self.path, 0, StorageProblem::Malformed))
    }

    /// The chunks in plain.
    pub(crate) fn chunks(&self) -> Result<Chunks, StorageError> {
        Chunks::new(self)
    }
}

/// The chunks of a file, opened one by one.
pub(crate) struct Chunks {
    id: SnapshotId,
    path: PathBuf,
    file: BufReader<File>,
    keys: Arc<StorageKeys>,
    number: u32,
}

impl Chunks {
    fn new(snapshot: &SnapshotFile) -> Result<Self, StorageError> {
        let failed = |source: io::Error| io_error(&snapshot.path, 0, &source);
        let mut file = snapshot.file.try_clone().map_err(failed)?;
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        let mut file = BufReader::new(file);
        let mut head = [0; MAGIC.len() + 16];
        file.read_exact(&mut head).map_err(failed)?;
        if head[..MAGIC.len()] != *MAGIC || head[MAGIC.len()..] != snapshot.id {
            return Err(error(&snapshot.path, 0, StorageProblem::Malformed));
        }
        Ok(Self { id: snapshot.id, path: snapshot.path.clone(), file, keys: snapshot.keys.clone(), number: 0 })
    }

    fn read(&mut self) -> Result<Option<Vec<u8>>, StorageError> {
        let (path, number) = (self.path.clone(), self.number);
        let failed = |source: io::Error| io_error(&path, number, &source);
        if self.file.fill_buf_is_empty().map_err(failed)? {
            return Ok(None);
        }
        let mut length = [0; 4];
        self.file.read_exact(&mut length).map_err(failed)?;
        let length = u32::from_be_bytes(length) as usize;
        if length > CHUNK_BYTES_MAX + SEAL_BYTES {
            return Err(error(&self.path, number, StorageProblem::Malformed));
        }
        let mut sealed = vec![0; length];
        self.file.read_exact(&mut sealed).map_err(failed)?;
        let plain = self.keys.open(Family::Snapshot, &chunk_key(self.id, number), &sealed);
        self.number += 1;
        plain.map(Some).map_err(|problem| error(&self.path, number, problem.into()))
    }
}

/// Whether a buffered reader is at its end.
trait AtEnd {
    fn fill_buf_is_empty(&mut self) -> io::Result<bool>;
}

impl AtEnd for BufReader<File> {
    fn fill_buf_is_empty(&mut self) -> io::Result<bool> {
        io::BufRead::fill_buf(self).map(<[u8]>::is_empty)
    }
}

impl Iterator for Chunks {
    type Item = Result<Vec<u8>, StorageError>;
    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

/// Writes a snapshot file; it counts only once it is finished.
pub(crate) struct SnapshotWriter {
    id: SnapshotId,
    path: PathBuf,
    file: BufWriter<File>,
    keys: Arc<StorageKeys>,
    number: u32,
}

impl SnapshotWriter {
    /// Starts a file under a fresh id.
    pub(crate) fn start(disk: &Disk) -> Result<Self, StorageError> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).expect("the operating system gives randomness, or nothing here is safe");
        let path = path_of(disk.snapshots_dir(), id);
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path);
        let mut file = BufWriter::new(file.map_err(|source| io_error(&path, 0, &source))?);
        let started = file.write_all(MAGIC).and_then(|()| file.write_all(&id));
        started.map_err(|source| io_error(&path, 0, &source))?;
        Ok(Self { id, path, file, keys: disk.keys().clone(), number: 0 })
    }

    /// Seals and writes one chunk.
    pub(crate) fn write(&mut self, plain: &[u8]) -> Result<(), StorageError> {
        let sealed = self.keys.seal(Family::Snapshot, &chunk_key(self.id, self.number), plain);
        let length = u32::try_from(sealed.len()).expect("a chunk has at most 1 MiB");
        let written = self.file.write_all(&length.to_be_bytes()).and_then(|()| self.file.write_all(&sealed));
        written.map_err(|source| io_error(&self.path, self.number, &source))?;
        self.number += 1;
        Ok(())
    }

    /// Makes the file durable.
    pub(crate) fn finish(mut self) -> Result<SnapshotFile, StorageError> {
        let (path, number) = (self.path.clone(), self.number);
        let durable = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        let parent = path.parent().expect("the file was made in a directory");
        let durable = durable.and_then(|()| File::open(parent)?.sync_all());
        // A file that may lack something is in nobody's way.
        durable.inspect_err(|_| remove(&path)).map_err(|source| io_error(&path, number, &source))?;
        let file = File::open(&path).map_err(|source| io_error(&path, number, &source))?;
        Ok(SnapshotFile { id: self.id, path, file, keys: self.keys })
    }

    /// Removes an unfinished file.
    pub(crate) fn abandon(self) {
        remove(&self.path);
    }
}

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

/// Leaves out what belongs to closed epochs. Live rows come first, so it learns the epochs before it needs them.
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

/// Replaces the state by a complete file. Whoever calls this keeps readers of rows away. A file of another directory is
/// copied first, so that the marker names one that is here.
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

/// At open: finishes what a crash interrupted, and removes files that nothing points to.
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

/// The newest complete snapshot. A file that somebody removed is made again by openraft.
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

/// Removes a file that nothing points to. One that stays behind is tried again at the next open.
fn remove(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(file = %path.display(), %error, "an old snapshot file stays behind");
        }
        _ => {}
    }
}
