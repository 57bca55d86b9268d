//! A damaged state is replaced by another replica's, and nothing that this one promised is forgotten.
//!
//! A replica whose `state` is damaged must neither serve nor apply. Its vote and its log are another matter: the others
//! count on them. So they are kept as they are, and only `state` is taken from somewhere else. Any replica may give its
//! own, leader or not: what it has applied was committed, and if it reaches to where this log was purged, the entries
//! behind it are either in this log or come from the leader.
//!
//! Not from here: the own snapshot file was written from the very rows that are in doubt, and a log that still has its
//! first entry is that of a young cluster only. The peers that opened this node's lock are there anyway.
//!
//! 1. `meta` and `log` are read whole. What is damaged there is named, nothing is changed, and this node must not vote again.
//! 2. A replica is asked, and streams its rows. Sealed under this node's own key they become a file, durable.
//! 3. One synced batch writes what must agree with the file, and the marker that it is being installed (see `snapshot`).
//! 4. The column family `state` is dropped, without reading what is in it.
//!
//! Interrupted before the third step the database is as it was, and the next start says that it is damaged. After it every
//! start, asked to rebuild or not, installs the file before it does anything else.

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

/// A database that waits for another replica's state. Once it has it, it is closed, and [`crate::Replica::open`] goes on.
pub struct Rebuild {
    node: NodeId,
    cluster: ClusterId,
    link: Arc<dyn Link>,
    /// Where the log begins.
    purged: Option<LogPlace>,
    flushed: Mutex<Flushed>,
    /// Gone once the state is there.
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
    /// [`RebuildError`]. Only after [`RebuildError::Storage`] is there no use in asking another one.
    pub async fn take_from(&self, peer: NodeId) -> Result<(), RebuildError> {
        let ask = Ask::WantState { reaching: self.purged };
        let request = encode(&Request::V1(RequestV1 { cluster: self.cluster, from: self.node, to: peer, ask }));
        let reply = self.link.call(peer, MessageClass::Log, request, STATE_DEADLINE).await;
        if let Some(failure) = self.failure.lock().clone() {
            return Err(failure.into());
        }
        // Whatever the other side says of it: it may not have heard the answer.
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
            // A leader's own snapshot may begin further on than the log that must be kept.
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

/// Writes the chunks to a file, lets the log and the vote agree with it, and closes the database without its state.
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
        // Removed at the next open, as nothing points to it.
        return Err(ServeError::Malformed);
    }
    mark(disk, &file.snapshot, last)?;
    disk.drop_state()?;
    let flushed = log::read_flushed(disk)?;
    *place = None;
    Ok(flushed)
}

/// Writes the marker, and with it all that follows from the state that is to be: a log that does not hold its last entry
/// has nothing behind it that was committed and is not in the state, so it gives way; and whoever made that entry led.
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

/// Every row of `meta` opens, and is what its key says.
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

/// Every entry opens, none is missing, terms never fall, and the vote is no older than the last of them.
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
