//! One replica of the state: the handle that the rest of the program uses.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use openraft::errors::{ClientWriteError, InitializeError as RaftInitializeError, LinearizableReadError, RaftError};
use openraft::{BasicNode, ReadPolicy};
use parking_lot::Mutex;
use quorate_shares::ids::{BatchId, ClusterId, Epoch, KeyUid, KeyVersion, NodeId};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::consensus::error::{InitializeError, ProposeError, ReadError, ReadIndexError, WaitError};
use crate::consensus::machine::{Live, Machine};
use crate::consensus::network::Link;
use crate::consensus::terms::Terms;
use crate::live::command::{COMMAND_BYTES_MAX, Command, Outcome};
use crate::live::place::LogPlace;
use crate::live::rows::RowKey;
use crate::live::state::State;
use crate::live::voters::{Gate, Membership};
use crate::log::{Flushed, LogStore};
use crate::stored::disk::Disk;
use crate::stored::fatal::Fatal;
use crate::stored::format::encoded_len;
use crate::stored::seal::Family;
use crate::types::Types;

/// How long closing may wait for tasks that still hold the database.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

pub(crate) type Raft = openraft::Raft<Types, Machine>;

/// The leader, as far as this node knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leadership {
    pub leader: Option<NodeId>,
    pub term: u64,
    pub am_leader: bool,
}

/// A replica. Clones are cheap and are the same replica.
#[derive(Clone)]
pub struct Replica {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) node: NodeId,
    pub(crate) cluster: ClusterId,
    pub(crate) raft: Raft,
    pub(crate) live: Arc<Live>,
    pub(crate) link: Arc<dyn Link>,
    pub(crate) terms: Arc<Terms>,
    /// Held while this replica gives its state to another one: one at a time.
    pub(crate) giving: tokio::sync::Mutex<()>,
    pub(crate) gate: Arc<dyn Gate>,
    /// Held while the membership is changed: one change at a time.
    pub(crate) changing: tokio::sync::Mutex<()>,
    pub(crate) memberships: watch::Sender<Membership>,
    pub(crate) log: Mutex<Option<LogStore>>,
    pub(super) disk: Mutex<Option<Arc<Disk>>>,
    pub(crate) fatal: Fatal,
    pub(crate) leadership: watch::Sender<Leadership>,
    pub(super) tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Replica {
    /// Whether `dir` holds a database, so that [`Replica::open`] would not begin an empty one.
    pub fn exists(dir: &Path) -> bool {
        Disk::exists(dir)
    }

    /// Makes the founders the voters of a new cluster. Only the first founder calls this, once all are ready. Calling it again
    /// after a crash is safe. The labels are for messages.
    ///
    /// # Errors
    /// [`InitializeError`].
    pub async fn initialize(&self, members: BTreeMap<NodeId, String>) -> Result<(), InitializeError> {
        let nodes: BTreeMap<_, _> = members.iter().map(|(id, label)| (id.0, BasicNode::new(label.clone()))).collect();
        match self.inner.raft.initialize(nodes).await {
            Ok(()) => Ok(()),
            Err(RaftError::APIError(RaftInitializeError::NotInMembers(_))) => Err(InitializeError::NotAMember),
            Err(RaftError::APIError(RaftInitializeError::NotAllowed(_))) => {
                // Not from the metrics: they are published a moment later.
                let voters = self.inner.raft.with_raft_state(|state| {
                    let voters = state.membership_state.effective().voter_ids();
                    voters.map(NodeId).collect::<BTreeSet<_>>()
                });
                let voters = voters.await.map_err(|_| InitializeError::Stopped)?;
                if voters.iter().eq(members.keys()) { Ok(()) } else { Err(InitializeError::Initialized) }
            }
            Err(RaftError::Fatal(_)) => Err(InitializeError::Stopped),
        }
    }

    /// Whether this replica has a vote or a log, so that it belongs to a founded cluster.
    ///
    /// # Errors
    /// [`ReadError::Stopped`].
    pub async fn is_initialized(&self) -> Result<bool, ReadError> {
        self.inner.raft.is_initialized().await.map_err(|_| ReadError::Stopped)
    }

    /// Proposes a command and waits until it is applied here. Only the leader can do this.
    ///
    /// # Errors
    /// [`ProposeError`].
    pub async fn propose(&self, command: Command) -> Result<Outcome, ProposeError> {
        let bytes = encoded_len(&command);
        if bytes > COMMAND_BYTES_MAX {
            return Err(ProposeError::TooLarge { bytes });
        }
        let (level, needs) = (self.read(State::level), command.change.level());
        if needs > level {
            return Err(ProposeError::AboveLevel { level, needs });
        }
        match self.inner.raft.client_write(command).await {
            Ok(written) => match written.data {
                Some(answer) => Ok(answer?),
                // Only openraft's own entries have no answer.
                None => Err(ProposeError::Stopped),
            },
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(ProposeError::NotLeader { leader: forward.leader_id.map(NodeId) })
            }
            Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(forward))) => {
                Err(ProposeError::Unknown { leader: forward.leader_id.map(NodeId) })
            }
            Err(_) => Err(ProposeError::Stopped),
        }
    }

    /// The index that a reader must have applied to see everything that was acknowledged before this call. Only the leader knows
    /// it, and only after a quorum confirmed that it still leads, in a round that began after this call.
    ///
    /// # Errors
    /// [`ReadIndexError`].
    pub async fn read_index(&self) -> Result<u64, ReadIndexError> {
        match self.inner.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => Ok(linearizer.read_log_id().index()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(ReadIndexError::NotLeader { leader: forward.leader_id.map(NodeId) })
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => Err(ReadIndexError::NoQuorum),
            Err(RaftError::Fatal(_)) => Err(ReadIndexError::Stopped),
        }
    }

    /// Waits until this replica applied `index`.
    ///
    /// # Errors
    /// [`WaitError`].
    pub async fn wait_applied(&self, index: u64, deadline: Duration) -> Result<(), WaitError> {
        let mut applied = self.changes();
        let reached = applied.wait_for(|&applied| applied >= index);
        match tokio::time::timeout(deadline, reached).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(WaitError::Stopped),
            Err(_) => Err(WaitError::Timeout { index }),
        }
    }

    /// Reads the live state. `read` must be short, because no entry is applied meanwhile.
    pub fn read<R>(&self, read: impl FnOnce(&State) -> R) -> R {
        read(&self.inner.live.state.read())
    }

    /// Reads the live state with its applied position: its last entry, and the newest membership in it.
    pub fn read_members<R>(&self, read: impl FnOnce(&State, Option<LogPlace>, &Membership) -> R) -> R {
        let state = self.inner.live.state.read();
        let position = self.inner.live.position.lock();
        read(&state, position.last.map(LogPlace::of), &Membership::of(&position.membership, true))
    }

    /// Changes when an applied entry changed a member or the membership, and when a snapshot was installed.
    pub fn members_changed(&self) -> watch::Receiver<u64> {
        self.inner.live.members.subscribe()
    }

    /// The index of the last applied entry.
    pub fn applied_index(&self) -> u64 {
        *self.inner.live.applied.borrow()
    }

    /// Follows the index of the last applied entry.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.live.applied.subscribe()
    }

    /// Changes when key versions became ready. A caller that waits for one need not look at every entry.
    pub fn readied(&self) -> watch::Receiver<u64> {
        self.inner.live.readied.subscribe()
    }

    /// Follows who leads.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.subscribe()
    }

    /// The bytes of a share record.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn record(&self, uid: KeyUid, version: KeyVersion, epoch: Epoch) -> Result<Option<Vec<u8>>, ReadError> {
        self.row(RowKey::Record(uid, version, epoch))
    }

    /// The bytes of a batch header.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn batch(&self, batch: BatchId) -> Result<Option<Vec<u8>>, ReadError> {
        self.row(RowKey::Header(batch))
    }

    fn row(&self, key: RowKey) -> Result<Option<Vec<u8>>, ReadError> {
        let disk = self.disk().ok_or(ReadError::Stopped)?;
        // Do not wait: the installation of a snapshot rewrites every row, and callers are async.
        let _rows = self.inner.live.rows.try_read().ok_or(ReadError::Busy)?;
        Ok(self.inner.fatal.guard(disk.read(Family::State, &key.to_bytes()))?)
    }

    pub(crate) fn disk(&self) -> Option<Arc<Disk>> {
        self.inner.disk.lock().clone()
    }

    /// What is durable here. The peers watch it to notice a restored copy of the disk. Zero after [`Replica::shutdown`].
    pub fn flushed(&self) -> Flushed {
        self.inner.log.lock().as_ref().map(|log| log.flusher().flushed()).unwrap_or_default()
    }

    /// The reason why the node must stop, once it must.
    pub fn fatal(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.inner.fatal.watch()
    }

    /// Asks another voter to lead. [`Replica::leadership`] shows whether it does.
    ///
    /// # Errors
    /// [`ReadError::Stopped`].
    pub async fn transfer_leadership(&self, to: NodeId) -> Result<(), ReadError> {
        self.inner.raft.trigger().transfer_leader(to.0).await.map_err(|_| ReadError::Stopped)
    }

    /// Builds a snapshot now, in the background.
    ///
    /// # Errors
    /// [`ReadError::Stopped`].
    pub async fn build_snapshot(&self) -> Result<(), ReadError> {
        self.inner.raft.trigger().snapshot().await.map_err(|_| ReadError::Stopped)
    }

    /// Stops Raft and closes the database. When this returns, no thread of this crate holds the database, and the directory may
    /// be opened again. Other clones of the handle can still read the live state, and refuse everything else.
    pub async fn shutdown(self) {
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::warn!(%error, "raft did not stop cleanly");
        }
        let tasks = std::mem::take(&mut *self.inner.tasks.lock());
        for task in tasks {
            task.abort();
            // Its error says that it was aborted.
            drop(task.await);
        }
        let (log, disk) = (self.inner.log.lock().take(), self.inner.disk.lock().take());
        if let Some(log) = log {
            // Joining a thread may wait for a sync.
            drop(tokio::task::spawn_blocking(move || log.flusher().close()).await);
        }
        let Some(mut open) = disk.map(|disk| disk.until_closed()) else { return };
        // No value is ever sent: the channel ends with the database.
        if tokio::time::timeout(CLOSE_LIMIT, open.changed()).await.is_err() {
            tracing::error!("something still holds the database");
        }
    }
}
