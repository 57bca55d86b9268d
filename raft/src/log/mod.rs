//! The Raft log and the vote: on disk before another node learns of them.
//!
//! Many appends share one sync. `append` writes without waiting; the flusher, one thread, takes all waiting callbacks, syncs
//! once, and completes them. Votes, truncations and purges sync before they return. openraft makes these calls one after
//! another, and RocksDB has one write-ahead log, so writes are never reordered.
//!
//! The peers must notice a disk that was restored from an older copy. So this replica reports what is durable, a [`Flushed`],
//! which never falls on an honest disk: a truncation removes entries, and raises a counter in the same batch. The report never
//! says more than what is durable, or an honest restart would look like a restored copy.
//!
//! `committed` is stored without a sync, so that a restarted replica applies at once what it had applied before. After a loss
//! of power it can be older than the state that this replica had answered from. That is safe: a replica serves nothing before
//! it has applied the leader's read index, and that covers everything that was ever acknowledged. For the same reason a
//! restarted leader does not lead again without an election.
//!
//! Some entries deny voters at append. Such an entry goes to the [`Gate`] before it goes to the log. So a node that has it in
//! its log, or acknowledged it, refuses these voters, also after a crash.

mod flusher;
mod recent;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use futures::{Stream, future, stream};
use openraft::alias::{EntryOf, LogIdOf, VoteOf};
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::live::place::{Ballot, LogPlace};
use crate::live::voters::{Denial, Gate};
use crate::stored::disk::Disk;
use crate::stored::error::{StorageError, StorageProblem};
use crate::stored::fatal::Fatal;
use crate::stored::format::{self, MetaV1};
use crate::stored::seal::Family;
use crate::types::{Types, denied_at_append};
use flusher::Flusher;
use recent::Recent;

/// Most bytes of entries that one read for replication or for applying returns, unless a single one is larger.
pub(crate) const READ_BYTES_MAX: usize = 4 << 20;

/// What is durable on this replica's disk, compared in the order of the fields. It never falls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Flushed {
    /// The newest vote.
    pub vote: Option<Ballot>,
    /// How often the log was truncated.
    pub truncations: u64,
    /// The last entry, or the last one that was purged.
    pub last_log: Option<LogPlace>,
}

/// The log, as openraft sees it. Clones share everything.
#[derive(Clone)]
pub(crate) struct LogStore {
    disk: Arc<Disk>,
    flusher: Arc<Flusher>,
    recent: Arc<Mutex<Recent>>,
    gate: Arc<dyn Gate>,
    fatal: Fatal,
}

impl LogStore {
    pub(crate) fn new(disk: Arc<Disk>, gate: Arc<dyn Gate>, fatal: Fatal) -> Result<Self, StorageError> {
        let flushed = read_flushed(&disk)?;
        let flusher = Flusher::start(disk.clone(), flushed, fatal.clone());
        Ok(Self { disk, flusher, recent: Arc::default(), gate, fatal })
    }

    /// The entry at `index`, if the log has it.
    pub(crate) fn entry(&self, index: u64) -> Result<Option<EntryOf<Types>>, StorageError> {
        Ok(self.entries(index, index + 1, usize::MAX)?.pop())
    }

    /// The thread that syncs. It must be closed before the process ends.
    pub(crate) fn flusher(&self) -> &Arc<Flusher> {
        &self.flusher
    }

    fn guard<T>(&self, result: Result<T, StorageError>) -> Result<T, io::Error> {
        self.fatal.guard(result).map_err(io::Error::from)
    }

    /// Reads entries from `start` up to `end` or `bytes_max`, in order and without a hole.
    fn entries(&self, start: u64, end: u64, bytes_max: usize) -> Result<Vec<EntryOf<Types>>, StorageError> {
        if let Some(entries) = self.recent.lock().read(start, end, bytes_max) {
            return Ok(entries);
        }
        let (mut entries, mut bytes) = (Vec::new(), 0);
        self.disk.scan(Family::Log, &start.to_be_bytes(), |key, value| {
            let malformed = || self.disk.error(Family::Log, key, StorageProblem::Malformed);
            let index = <[u8; 8]>::try_from(key).map(u64::from_be_bytes).map_err(|_| malformed())?;
            if index >= end || (bytes + value.len() > bytes_max && !entries.is_empty()) {
                return Ok(false);
            }
            bytes += value.len();
            let entry = format::decode_entry(&value).map_err(|_| malformed())?;
            let follows = entries.last().is_none_or(|last: &EntryOf<Types>| last.log_id.index + 1 == index);
            if entry.log_id.index != index || !follows {
                return Err(malformed());
            }
            entries.push(entry);
            Ok(true)
        })?;
        Ok(entries)
    }
}

impl fmt::Debug for LogStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogStore")
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + fmt::Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<EntryOf<Types>>, io::Error> {
        let (start, end) = bounds(&range);
        self.guard(self.entries(start, end, usize::MAX))
    }

    async fn read_vote(&mut self) -> Result<Option<VoteOf<Types>>, io::Error> {
        self.guard(read_vote(&self.disk).map(|vote| vote.map(Ballot::vote)))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<EntryOf<Types>>, io::Error> {
        self.guard(self.entries(start, end, READ_BYTES_MAX))
    }

    /// Entries to be applied, piece by piece: a replica that was away may have to apply more than its memory holds.
    async fn entries_stream<R: RangeBounds<u64> + Clone + fmt::Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> impl Stream<Item = Result<EntryOf<Types>, io::Error>> + OptionalSend {
        let (start, end) = bounds(&range);
        let log = self.clone();
        Box::pin(stream::try_unfold((start, VecDeque::new()), move |(mut next, mut piece)| {
            let read =
                if piece.is_empty() { log.guard(log.entries(next, end, READ_BYTES_MAX)) } else { Ok(Vec::new()) };
            future::ready(read.map(|entries| {
                piece.extend(entries);
                let entry: Option<EntryOf<Types>> = piece.pop_front();
                entry.map(|entry| {
                    next = entry.log_id.index + 1;
                    (entry, (next, piece))
                })
            }))
        }))
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let purged = self.guard(read_purged(&self.disk))?.map(LogPlace::log_id);
        let last = self.guard(read_last(&self.disk))?.map(LogPlace::log_id);
        Ok(LogState { last_purged_log_id: purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<Types>) -> Result<(), io::Error> {
        let ballot = Ballot::of(*vote);
        let mut batch = self.disk.batch();
        batch.put_meta("vote", MetaV1::Vote(ballot));
        self.guard(batch.write_synced())?;
        self.flusher.with_flushed(|flushed| flushed.vote = Some(ballot));
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogIdOf<Types>>) -> Result<(), io::Error> {
        let mut batch = self.disk.batch();
        batch.put_meta("committed", MetaV1::Committed(committed.map(LogPlace::of)));
        self.guard(batch.write())
    }

    async fn read_committed(&mut self) -> Result<Option<LogIdOf<Types>>, io::Error> {
        let committed = match self.guard(self.disk.meta("committed"))? {
            None => None,
            Some(MetaV1::Committed(committed)) => committed,
            Some(_) => return self.guard(Err(self.disk.malformed_meta("committed"))),
        };
        Ok(committed.map(LogPlace::log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = EntryOf<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<EntryOf<Types>> = entries.into_iter().collect();
        deny(&self.gate, entries.iter().flat_map(denied_at_append).collect(), &self.fatal).await?;
        let mut batch = self.disk.batch();
        let mut written = Vec::with_capacity(entries.len());
        for entry in entries {
            let encoded = format::encode_entry(&entry);
            batch.put(Family::Log, &entry.log_id.index.to_be_bytes(), &encoded);
            written.push((entry, encoded.len()));
        }
        let last = written.last().map(|(entry, _)| LogPlace::of(entry.log_id));
        // Readable when this returns; durable when the callback is completed.
        self.guard(batch.write())?;
        let mut recent = self.recent.lock();
        written.into_iter().for_each(|(entry, bytes)| recent.push(entry, bytes));
        drop(recent);
        self.flusher.push(last, callback);
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<Types>>) -> Result<(), io::Error> {
        self.recent.lock().truncate_after(last.map(|last| last.index));
        let truncations = self.flusher.flushed().truncations + 1;
        let mut batch = self.disk.batch();
        batch.delete_entries(last.map_or(0, |last| last.index + 1), u64::MAX);
        batch.put_meta("truncations", MetaV1::Truncations(truncations));
        self.guard(batch.write_synced())?;
        let last_log = last.map(LogPlace::of);
        self.flusher.with_flushed(|flushed| (flushed.truncations, flushed.last_log) = (truncations, last_log));
        Ok(())
    }

    async fn purge(&mut self, upto: LogIdOf<Types>) -> Result<(), io::Error> {
        self.recent.lock().purge(upto.index);
        let mut batch = self.disk.batch();
        batch.put_meta("purged", MetaV1::Purged(LogPlace::of(upto)));
        batch.delete_entries(0, upto.index + 1);
        self.guard(batch.write_synced())?;
        // After the installation of a snapshot the log begins after everything that it had.
        let purged = LogPlace::of(upto);
        self.flusher.with_flushed(|flushed| {
            if flushed.last_log.is_none_or(|last| last.index < purged.index) {
                flushed.last_log = Some(purged);
            }
        });
        Ok(())
    }
}

/// Lets the gate refuse these nodes, durably, before anything else is done about the entry.
pub(crate) async fn deny(gate: &Arc<dyn Gate>, denials: Vec<Denial>, fatal: &Fatal) -> Result<(), io::Error> {
    if denials.is_empty() {
        return Ok(());
    }
    let gate = gate.clone();
    let denied = tokio::task::spawn_blocking(move || gate.deny(&denials)).await;
    denied.map_err(io::Error::other)?.map_err(|reason| {
        fatal.raise(&reason);
        io::Error::other(reason)
    })
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&start) => start + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&end) => end.saturating_add(1),
        Bound::Excluded(&end) => end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

pub(crate) fn read_vote(disk: &Disk) -> Result<Option<Ballot>, StorageError> {
    match disk.meta("vote")? {
        None => Ok(None),
        Some(MetaV1::Vote(vote)) => Ok(Some(vote)),
        Some(_) => Err(disk.malformed_meta("vote")),
    }
}

pub(crate) fn read_purged(disk: &Disk) -> Result<Option<LogPlace>, StorageError> {
    match disk.meta("purged")? {
        None => Ok(None),
        Some(MetaV1::Purged(purged)) => Ok(Some(purged)),
        Some(_) => Err(disk.malformed_meta("purged")),
    }
}

/// The last entry, or the last purged one when there is none.
fn read_last(disk: &Disk) -> Result<Option<LogPlace>, StorageError> {
    match disk.last_entry()? {
        Some(entry) => Ok(Some(LogPlace::of(entry.log_id))),
        None => read_purged(disk),
    }
}

pub(crate) fn read_flushed(disk: &Disk) -> Result<Flushed, StorageError> {
    let truncations = match disk.meta("truncations")? {
        None => 0,
        Some(MetaV1::Truncations(truncations)) => truncations,
        Some(_) => return Err(disk.malformed_meta("truncations")),
    };
    Ok(Flushed { vote: read_vote(disk)?, truncations, last_log: read_last(disk)? })
}

/// Checks what this replica promised: its vote, and where its log ends. It comes before all other checks: after damage there
/// this node must never vote again, even if other things are damaged, too.
pub(crate) fn check(disk: &Disk) -> Result<(), StorageError> {
    let flushed = read_flushed(disk)?;
    check_vote(disk, flushed.vote, flushed.last_log)
}

/// Refuses a vote that is older than the last entry. The vote of a term is durable before an entry of that term is accepted, so
/// an older vote means that a newer one was lost, and this node no longer knows which node it voted for. Only the first entry
/// of all, of term 0, comes before any vote.
pub(crate) fn check_vote(disk: &Disk, vote: Option<Ballot>, last: Option<LogPlace>) -> Result<(), StorageError> {
    let term = last.map_or(0, |last| last.term);
    if term > vote.map_or(0, |vote| vote.term) {
        let problem = if vote.is_none() { StorageProblem::Missing } else { StorageProblem::Malformed };
        return Err(disk.error(Family::Meta, b"vote", problem));
    }
    Ok(())
}
