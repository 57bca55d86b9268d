//! The state machine as openraft sees it: committed entries in, rows on disk, the live state in memory.
//!
//! A group of entries is applied to the live state, and its rows go to disk in one batch with how far they go, before any
//! proposer hears the answer. The live state is locked meanwhile, so whoever sees a key in it finds its record on disk.
//! A refusal is an answer; a write that fails stops the node, because the memory is then ahead of the disk.

use std::fmt;
use std::io;
use std::sync::Arc;

use futures::{Stream, TryStreamExt};
use openraft::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use parking_lot::{Mutex, RwLock};
use quorate_shares::ids::ClusterId;
use tokio::sync::watch;

use crate::command::Outcome;
use crate::disk::Disk;
use crate::error::StorageError;
use crate::fatal::Fatal;
use crate::rows::RowKey;
use crate::snapshot::{self, SnapshotFile};
use crate::state::{State, apply};
use crate::types::Types;

/// Most entries that are applied under one lock and written in one batch.
const GROUP_MAX: usize = 256;
/// Most bytes that these carry, unless a single one carries more.
const GROUP_BYTES_MAX: usize = 4 << 20;

/// What readers share with the state machine. It outlives the database.
pub(crate) struct Live {
    pub(crate) state: RwLock<State>,
    pub(crate) applied: watch::Sender<u64>,
    /// The index of the last entry that made key versions ready.
    pub(crate) readied: watch::Sender<u64>,
    /// Held while a snapshot replaces the rows: memory and disk disagree then.
    pub(crate) rows: RwLock<()>,
}

/// The state machine. Clones share everything.
#[derive(Clone)]
pub(crate) struct Machine {
    disk: Arc<Disk>,
    live: Arc<Live>,
    fatal: Fatal,
    cluster: ClusterId,
    membership: Arc<Mutex<StoredMembershipOf<Types>>>,
}

impl Machine {
    /// Restores the live state from its rows, after finishing a snapshot that a crash interrupted.
    pub(crate) fn open(disk: Arc<Disk>, cluster: ClusterId, fatal: Fatal) -> Result<Self, StorageError> {
        snapshot::recover(&disk)?;
        let (last, membership) = disk.applied()?;
        let live = Live {
            state: RwLock::new(disk.live_state()?),
            applied: watch::Sender::new(last.map_or(0, |last| last.index)),
            readied: watch::Sender::new(last.map_or(0, |last| last.index)),
            rows: RwLock::new(()),
        };
        Ok(Self { disk, live: Arc::new(live), fatal, cluster, membership: Arc::new(Mutex::new(membership)) })
    }

    pub(crate) fn live(&self) -> &Arc<Live> {
        &self.live
    }

    fn guard<T>(&self, result: Result<T, StorageError>) -> Result<T, io::Error> {
        self.fatal.guard(result).map_err(io::Error::from)
    }

    fn apply_group(&self, group: Vec<EntryResponder<Types>>) -> Result<(), StorageError> {
        let mut answers = Vec::with_capacity(group.len());
        let mut batch = self.disk.batch();
        let mut state = self.live.state.write();
        let mut membership = self.membership.lock();
        let mut last: Option<LogIdOf<Types>> = None;
        let (mut clock, mut readied) = (None, false);
        for (entry, responder) in group {
            last = Some(entry.log_id);
            let answer = match entry.payload {
                EntryPayload::Blank => None,
                EntryPayload::Normal(command) => {
                    let applied = apply(&mut state, &command);
                    for row in applied.rows {
                        // The time of the group's last command is the one that stays.
                        if row.key == RowKey::Clock { clock = Some(row) } else { batch.row(&row) }
                    }
                    readied |= matches!(applied.outcome, Ok(Outcome::MadeReady { .. }));
                    Some(applied.outcome)
                }
                EntryPayload::Membership(new) => {
                    *membership = StoredMembershipOf::<Types>::new(Some(entry.log_id), new);
                    None
                }
            };
            answers.extend(responder.map(|responder| (responder, answer)));
        }
        clock.iter().for_each(|row| batch.row(row));
        batch.put_applied(last, &membership);
        batch.write()?;
        drop((state, membership));
        let index = last.map_or(0, |last| last.index);
        self.live.applied.send_replace(index);
        if readied {
            self.live.readied.send_replace(index);
        }
        answers.into_iter().for_each(|(responder, answer)| responder.send(answer));
        Ok(())
    }

    fn install(&self, file: &SnapshotFile) -> Result<(), StorageError> {
        let _rows = self.live.rows.write();
        snapshot::install(&self.disk, file)?;
        let (last, membership) = self.disk.applied()?;
        let restored = self.disk.live_state()?;
        *self.live.state.write() = restored;
        *self.membership.lock() = membership;
        self.live.applied.send_replace(last.map_or(0, |last| last.index));
        self.live.readied.send_replace(last.map_or(0, |last| last.index));
        Ok(())
    }

    /// Runs what blocks on the disk for long, away from the threads that answer.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, io::Error> {
        let machine = self.clone();
        let done = tokio::task::spawn_blocking(move || machine.guard(work(&machine))).await;
        done.map_err(io::Error::other)?
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Machine")
    }
}

impl RaftSnapshotBuilder<Types> for Machine {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<Types, SnapshotFile>, io::Error> {
        self.blocking(|machine| {
            let _rows = machine.live.rows.read();
            let snapshot = snapshot::build(&machine.disk, machine.cluster)?;
            let meta = snapshot.meta()?;
            Ok(SnapshotOf::<Types, SnapshotFile> { meta, snapshot })
        })
        .await
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogIdOf<Types>>, StoredMembershipOf<Types>), io::Error> {
        self.guard(self.disk.applied())
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        loop {
            let (mut group, mut bytes) = (Vec::new(), 0);
            while group.len() < GROUP_MAX
                && bytes < GROUP_BYTES_MAX
                && let Some((entry, responder)) = entries.try_next().await?
            {
                if let EntryPayload::Normal(command) = &entry.payload {
                    bytes += command.change.carried_bytes();
                }
                group.push((entry, responder));
            }
            if group.is_empty() {
                return Ok(());
            }
            self.guard(self.apply_group(group))?;
        }
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, _: &SnapshotMetaOf<Types>, file: SnapshotFile) -> Result<(), io::Error> {
        self.blocking(move |machine| machine.install(&file)).await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<Types, SnapshotFile>>, io::Error> {
        let Some(snapshot) = self.guard(snapshot::current(&self.disk))? else { return Ok(None) };
        let meta = self.guard(snapshot.meta())?;
        Ok(Some(SnapshotOf::<Types, SnapshotFile> { meta, snapshot }))
    }
}
