//! A snapshot file: written once, then read chunk by chunk. Each chunk is sealed.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openraft::alias::SnapshotMetaOf;

use super::chunk::{CHUNK_BYTES_MAX, Chunk};
use crate::stored::disk::Disk;
use crate::stored::error::{StorageError, StorageProblem};
use crate::stored::format::{AppliedPosition, SnapshotId};
use crate::stored::seal::{Family, SEAL_BYTES, StorageKeys};
use crate::types::Types;

const MAGIC: &[u8; 5] = b"QSNP\x01";

/// A complete snapshot file, open for reading.
#[derive(Debug)]
pub(crate) struct SnapshotFile {
    pub(super) id: SnapshotId,
    pub(super) path: PathBuf,
    file: File,
    keys: Arc<StorageKeys>,
}

impl SnapshotFile {
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

    /// The applied position in its first chunk.
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

/// Writes a snapshot file, which is valid only once it is finished.
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
        // An incomplete file must not stay.
        durable.inspect_err(|_| remove(&path)).map_err(|source| io_error(&path, number, &source))?;
        let file = File::open(&path).map_err(|source| io_error(&path, number, &source))?;
        Ok(SnapshotFile { id: self.id, path, file, keys: self.keys })
    }

    /// Removes an unfinished file.
    pub(crate) fn abandon(self) {
        remove(&self.path);
    }
}

pub(super) fn path_of(dir: &Path, id: SnapshotId) -> PathBuf {
    let name: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    dir.join(format!("{name}.snap"))
}

fn chunk_key(id: SnapshotId, number: u32) -> Vec<u8> {
    [&id[..], &number.to_be_bytes()].concat()
}

pub(super) fn error(path: &Path, number: u32, problem: StorageProblem) -> StorageError {
    let (path, key) = (path.display().to_string(), format!("chunk {number}"));
    StorageError { path, family: Family::Snapshot.name(), key, problem }
}

fn io_error(path: &Path, number: u32, source: &io::Error) -> StorageError {
    error(path, number, StorageProblem::Database(source.to_string()))
}

/// Removes a file that nothing points to. If that fails, the next open tries again.
pub(super) fn remove(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(file = %path.display(), %error, "an old snapshot file stays behind");
        }
        _ => {}
    }
}
