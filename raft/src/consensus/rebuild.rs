//! How a damaged state is replaced by another replica's state, without forgetting what this replica promised.
//!
//! A replica whose `state` is damaged must neither serve nor apply. But the others count on its vote and its log. So these are
//! kept, and only `state` is replaced. Any replica may give its state, leader or not: what it has applied was committed. If its
//! position is at least where this log begins, the entries after it are in this log or come from the leader.
//!
//! The state is not rebuilt from this node's own disk. Its snapshot file was written from the same rows, which may be damaged,
//! and only the log of a young cluster still has its first entry. The peers are there anyway: they opened this node's lock.
//!
//! 1. All of `meta` and `log` is read. If something is damaged there, the error names it, nothing is changed, and this node
//!    must not vote again.
//! 2. Another replica streams its rows. They are sealed under this node's own key and become a durable file.
//! 3. One synced batch writes everything that must agree with the file, and the marker that it is being installed (see
//!    `snapshot`).
//! 4. The column family `state` is dropped without being read.
//!
//! If it is interrupted before step 3, the database is unchanged, and the next start reports the damage. After step 3 every
//! start installs the file first, with or without a request to rebuild.

use std::sync::Arc;

use openraft::alias::EntryOf;
use parking_lot::Mutex;
use quorate_shares::ids::{ClusterId, NodeId};
use tokio::sync::mpsc;

use crate::consensus::error::RebuildError;
use crate::consensus::messages::{Ask, Reply, Request, RequestV1, Tell};
use crate::consensus::network::{Link, MessageClass};
use crate::consensus::options::Options;
use crate::consensus::serve::{self, STATE_DEADLINE, ServeError};
use crate::live::place::{Ballot, LogPlace};
use crate::log::{self, Flushed};
use crate::snapshot::SnapshotFile;
use crate::stored::disk::Disk;
use crate::stored::error::{OpenError, StorageError, StorageProblem};
use crate::stored::format::{self, MetaV1, encode};
use crate::stored::seal::Family;
use crate::types::Types;

/// A database that waits for another replica's state. Once the state is there, the database is closed; then call
/// [`crate::Replica::open`].
pub struct Rebuild {
    node: NodeId,
    cluster: ClusterId,
    link: Arc<dyn Link>,
    /// Where the log begins.
    purged: Option<LogPlace>,
    flushed: Mutex<Flushed>,
    /// `None` once the state is there.
    disk: Arc<Mutex<Option<Disk>>>,
    failure: Mutex<Option<StorageError>>,
}

impl Rebuild {
    /// Opens the database and checks that everything but the state is whole.
    ///
    /// # Errors
    /// [`OpenError`], with the place of what is damaged; the database is then as it was.
    pub async fn begin(options: Options) -> Result<Self, OpenError> {
        let Options { node, cluster, dir, keys, link, timing: _, gate: _ } = options;
        let checked = tokio::task::spawn_blocking(move || -> Result<_, OpenError> {
            let disk = Disk::open(&dir, keys, cluster, node)?;
            check_meta(&disk)?;
            let purged = log::read_purged(&disk)?;
            check_log(&disk, purged)?;
            let flushed = log::read_flushed(&disk)?;
            Ok((disk, purged, flushed))
        });
        let (disk, purged, flushed) = checked.await.map_err(|error| OpenError::Raft(error.to_string()))??;
        let (disk, flushed) = (Arc::new(Mutex::new(Some(disk))), Mutex::new(flushed));
        Ok(Self { node, cluster, link, purged, flushed, disk, failure: Mutex::default() })
    }

    /// What is durable here; as [`crate::Replica::flushed`].
    pub fn flushed(&self) -> Flushed {
        *self.flushed.lock()
    }

    /// Asks another replica for its state, and returns when it is here and durable.
    ///
    /// # Errors
    /// [`RebuildError`]. Ask another replica then, except after [`RebuildError::Storage`].
    pub async fn take_from(&self, peer: NodeId) -> Result<(), RebuildError> {
        let ask = Ask::WantState { reaching: self.purged };
        let request = encode(&Request::V1(RequestV1 { cluster: self.cluster, from: self.node, to: peer, ask }));
        let reply = self.link.call(peer, MessageClass::Log, request, STATE_DEADLINE).await;
        if let Some(failure) = self.failure.lock().clone() {
            return Err(failure.into());
        }
        // The state is here, even if the other side says otherwise: it may not have received the answer.
        if self.disk.try_lock().is_some_and(|disk| disk.is_none()) {
            return Ok(());
        }
        match Reply::decode(&reply?) {
            Ok((from, Tell::State { .. })) if from == peer => Err(RebuildError::NotGiven(peer)),
            _ => Err(RebuildError::Malformed(peer)),
        }
    }

    /// Receives the state that was asked for, and makes it durable.
    ///
    /// # Errors
    /// [`ServeError`]; unless it is [`ServeError::Storage`], the database is as it was.
    pub async fn serve_snapshot(
        &self,
        from: NodeId,
        mut chunks: mpsc::Receiver<Vec<u8>>,
    ) -> Result<Vec<u8>, ServeError> {
        let start = chunks.recv().await.ok_or(ServeError::Malformed)?;
        let Ask::State = serve::accept(self.cluster, self.node, from, &start)? else {
            // A snapshot that a leader sends may end after entries of this log that must be kept.
            return Err(ServeError::Malformed);
        };
        let (place, cluster, purged) = (self.disk.clone(), self.cluster, self.purged);
        let taken = tokio::task::spawn_blocking(move || take(&mut place.lock(), cluster, purged, chunks)).await;
        match taken.map_err(|_| ServeError::Stopped)? {
            Ok(flushed) => *self.flushed.lock() = flushed,
            Err(error) => {
                if let ServeError::Storage(error) = &error {
                    *self.failure.lock() = Some(error.clone());
                }
                return Err(error);
            }
        }
        Ok(encode(&Reply::V1 { from: self.node, tell: Tell::State { given: true } }))
    }
}

/// Writes the chunks to a file, makes the log and the vote agree with it, drops the state, and closes the database.
fn take(
    place: &mut Option<Disk>,
    cluster: ClusterId,
    purged: Option<LogPlace>,
    chunks: mpsc::Receiver<Vec<u8>>,
) -> Result<Flushed, ServeError> {
    let disk = place.as_mut().ok_or(ServeError::Stopped)?;
    let file = serve::receive(disk, cluster, chunks)?;
    let last = file.meta.last_log_id.map(LogPlace::of).ok_or(ServeError::Malformed)?;
    if purged.is_some_and(|purged| last.index < purged.index) {
        // Nothing points to the file, so the next open removes it.
        return Err(ServeError::Malformed);
    }
    mark(disk, &file.snapshot, last)?;
    disk.drop_state()?;
    let flushed = log::read_flushed(disk)?;
    *place = None;
    Ok(flushed)
}

/// Writes the marker, and in the same batch what follows from the new state:
/// - If the log does not hold the state's last entry, it has no committed entry that the state lacks, and is deleted.
/// - The node that made that entry was the leader of its term, so the vote is at least the one for it.
pub(crate) fn mark(disk: &Disk, file: &SnapshotFile, last: LogPlace) -> Result<(), StorageError> {
    let flushed = log::read_flushed(disk)?;
    let mut batch = disk.batch();
    batch.put_meta("installing", MetaV1::Installing(file.id()));
    let held = entry(disk, last.index)?.map(|entry| LogPlace::of(entry.log_id));
    if held != Some(last) && log::read_purged(disk)? != Some(last) {
        batch.delete_entries(0, u64::MAX);
        batch.put_meta("purged", MetaV1::Purged(last));
        if held.is_some() {
            batch.put_meta("truncations", MetaV1::Truncations(flushed.truncations + 1));
        }
    }
    let leader = Ballot { term: last.term, node: last.node, committed: true };
    if flushed.vote.is_none_or(|vote| leader.vote() > vote.vote()) {
        batch.put_meta("vote", MetaV1::Vote(leader));
    }
    batch.write_synced()
}

/// Checks that every row of `meta` opens, and is what its key says.
fn check_meta(disk: &Disk) -> Result<(), StorageError> {
    disk.scan(Family::Meta, &[], |key, value| {
        let fits = matches!(
            (key, format::decode_meta(&value)),
            (b"identity", Ok(MetaV1::Identity { .. }))
                | (b"vote", Ok(MetaV1::Vote(_)))
                | (b"committed", Ok(MetaV1::Committed(_)))
                | (b"purged", Ok(MetaV1::Purged(_)))
                | (b"truncations", Ok(MetaV1::Truncations(_)))
                | (b"installing", Ok(MetaV1::Installing(_)))
                | (b"snapshot", Ok(MetaV1::Snapshot(_)))
        );
        if fits { Ok(true) } else { Err(disk.error(Family::Meta, key, StorageProblem::Malformed)) }
    })
}

/// Checks that every entry opens, none is missing, terms never fall, and the vote is not older than the last entry.
fn check_log(disk: &Disk, purged: Option<LogPlace>) -> Result<(), StorageError> {
    let mut last = purged;
    disk.scan(Family::Log, &[], |key, value| {
        let place = format::decode_entry(&value).map(|entry| LogPlace::of(entry.log_id));
        let place = place.map_err(|_| disk.error(Family::Log, key, StorageProblem::Malformed))?;
        let index = last.map_or(0, |last| last.index + 1);
        if key != index.to_be_bytes() {
            return Err(disk.error(Family::Log, &index.to_be_bytes(), StorageProblem::Missing));
        }
        if place.index != index || last.is_some_and(|last| place.term < last.term) {
            return Err(disk.error(Family::Log, key, StorageProblem::Malformed));
        }
        last = Some(place);
        Ok(true)
    })?;
    log::check_vote(disk, log::read_vote(disk)?, last)
}

fn entry(disk: &Disk, index: u64) -> Result<Option<EntryOf<Types>>, StorageError> {
    let key = index.to_be_bytes();
    let entry = disk.read(Family::Log, &key)?.map(|value| format::decode_entry(&value)).transpose();
    entry.map_err(|_| disk.error(Family::Log, &key, StorageProblem::Malformed))
}
