//! The state machine as openraft sees it: committed entries in, rows on disk, the live state in memory.
//!
//! A group of entries is applied to the live state. Its rows are written in one batch with the applied position, and only then
//! the proposers get their answers. The live state is locked meanwhile, so a reader that sees a key finds its record on disk.
//! A refusal is an answer. A write that fails stops the node, because memory is then ahead of the disk.

use std::fmt;
use std::io;
use std::num::NonZero;
use std::panic::resume_unwind;
use std::sync::Arc;

use futures::{Stream, TryStreamExt};
use openraft::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{OptionalSend, RaftSnapshotBuilder};
use parking_lot::{Mutex, RwLock};
use quorate_shares::ids::ClusterId;
use tokio::sync::watch;

use crate::live::place::LogPlace;
use crate::live::rows::RowKey;
use crate::live::state::{State, apply_checked, is_signed};
use crate::live::voters::{Denial, Gate, Membership, denied_at_commit, denied_by_joint};
use crate::log;
use crate::snapshot::{self, SnapshotFile};
use crate::stored::disk::Disk;
use crate::stored::error::StorageError;
use crate::stored::fatal::Fatal;
use crate::stored::format::AppliedPosition;
use crate::types::{Payload, Types};

/// Most entries that are applied under one lock and written in one batch.
const GROUP_MAX: usize = 256;
/// Most bytes that such a group carries, unless a single entry carries more.
const GROUP_BYTES_MAX: usize = 4 << 20;

/// Fewest entries whose signatures are worth a thread.
const CHECKS_EACH: usize = 8;

/// What readers share with the state machine. It outlives the database.
pub(crate) struct Live {
    pub(crate) state: RwLock<State>,
    /// The position of the state. It changes only while the state is locked for writing, and is locked after the state.
    pub(crate) position: Mutex<AppliedPosition>,
    pub(crate) applied: watch::Sender<u64>,
    /// The index of the last entry that changed a member or the membership.
    pub(crate) members: watch::Sender<u64>,
    /// The index of the last entry that made key versions ready.
    pub(crate) readied: watch::Sender<u64>,
    /// Locked for writing while a snapshot replaces the rows: memory and disk disagree then.
    pub(crate) rows: RwLock<()>,
}

/// The state machine. Clones share everything.
#[derive(Clone)]
pub(crate) struct Machine {
    disk: Arc<Disk>,
    live: Arc<Live>,
    gate: Arc<dyn Gate>,
    fatal: Fatal,
    cluster: ClusterId,
}

impl Machine {
    /// Finishes the installation of a snapshot that a crash interrupted, then restores the live state from its rows.
    pub(crate) fn open(
        disk: Arc<Disk>,
        cluster: ClusterId,
        gate: Arc<dyn Gate>,
        fatal: Fatal,
    ) -> Result<Self, StorageError> {
        snapshot::recover(&disk)?;
        let position = disk.applied()?;
        let index = position.last.map_or(0, |last| last.index);
        let live = Live {
            state: RwLock::new(disk.live_state()?),
            position: Mutex::new(position),
            applied: watch::Sender::new(index),
            members: watch::Sender::new(index),
            readied: watch::Sender::new(index),
            rows: RwLock::new(()),
        };
        Ok(Self { disk, live: Arc::new(live), gate, fatal, cluster })
    }

    pub(crate) fn live(&self) -> &Arc<Live> {
        &self.live
    }

    fn guard<T>(&self, result: Result<T, StorageError>) -> Result<T, io::Error> {
        self.fatal.guard(result).map_err(io::Error::from)
    }

    /// The nodes that the memberships among these entries deny, each compared with the membership before it.
    fn denied(&self, group: &[EntryResponder<Types>]) -> Vec<Denial> {
        let memberships = group.iter().filter_map(|(entry, _)| match &entry.payload {
            Payload::Membership(_, membership) => Some((LogPlace::of(entry.log_id), Membership::from(membership))),
            Payload::Blank | Payload::Command(_) => None,
        });
        let (mut previous, mut denied) = (None, Vec::new());
        for (place, membership) in memberships {
            let before = previous.get_or_insert_with(|| Membership::of(&self.live.position.lock().membership, true));
            denied.extend(denied_at_commit(before, &membership, place));
            previous = Some(membership);
        }
        denied
    }

    /// The nodes that the membership of a snapshot denies: the ones that its entry denied at append, and the ones that it denied at
    /// commit.
    fn denied_by_snapshot(&self, position: &AppliedPosition) -> Vec<Denial> {
        let Some(place) = position.membership.log_id().map(LogPlace::of) else { return Vec::new() };
        let installed = Membership::of(&position.membership, true);
        let at_append = position.intent.map(|intent| denied_by_joint(intent, &installed, place));
        let mut denied = at_append.unwrap_or_default();
        denied.extend(denied_at_commit(
            &Membership::of(&self.live.position.lock().membership, true),
            &installed,
            place,
        ));
        denied
    }

    fn apply_group(&self, group: Vec<EntryResponder<Types>>) -> Result<(), StorageError> {
        let mut answers = Vec::with_capacity(group.len());
        let mut batch = self.disk.batch();
        let signed = signed(&group);
        let mut state = self.live.state.write();
        let mut position = self.live.position.lock();
        let (mut clock, mut readied, mut members) = (None, false, false);
        for ((entry, responder), signed) in group.into_iter().zip(signed) {
            position.last = Some(entry.log_id);
            let answer = match entry.payload {
                Payload::Blank => None,
                Payload::Command(command) => {
                    let unready = state.unready().len();
                    let applied = apply_checked(&mut state, &command, signed);
                    readied |= state.unready().len() < unready;
                    for row in applied.rows {
                        members |= matches!(row.key, RowKey::Member(_) | RowKey::Former(_));
                        // Only the time of the group's last command is written.
                        if row.key == RowKey::Clock { clock = Some(row) } else { batch.row(row) }
                    }
                    Some(applied.outcome)
                }
                Payload::Membership(intent, membership) => {
                    position.membership = StoredMembershipOf::<Types>::new(Some(entry.log_id), membership);
                    position.intent = intent;
                    members = true;
                    None
                }
            };
            answers.extend(responder.map(|responder| (responder, answer)));
        }
        clock.into_iter().for_each(|row| batch.row(row));
        batch.put_applied(&position);
        batch.write()?;
        let index = position.last.map_or(0, |last| last.index);
        drop((state, position));
        self.live.applied.send_replace(index);
        if members {
            self.live.members.send_replace(index);
        }
        if readied {
            self.live.readied.send_replace(index);
        }
        answers.into_iter().for_each(|(responder, answer)| responder.send(answer));
        Ok(())
    }

    fn install(&self, file: &SnapshotFile) -> Result<(), StorageError> {
        let _rows = self.live.rows.write();
        snapshot::install(&self.disk, file)?;
        let position = self.disk.applied()?;
        let restored = self.disk.live_state()?;
        let index = position.last.map_or(0, |last| last.index);
        {
            let mut state = self.live.state.write();
            (*state, *self.live.position.lock()) = (restored, position);
        }
        self.live.applied.send_replace(index);
        self.live.members.send_replace(index);
        self.live.readied.send_replace(index);
        Ok(())
    }

    /// Runs work that blocks on the disk for long on a thread of its own kind, so that other requests are answered meanwhile.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, io::Error> {
        let machine = self.clone();
        let done = tokio::task::spawn_blocking(move || machine.guard(work(&machine))).await;
        done.map_err(io::Error::other)?
    }
}

/// Which entries are no orders, or orders that their signers have signed. Many are shared out among the processors.
fn signed(group: &[EntryResponder<Types>]) -> Vec<bool> {
    let is_signed = |(entry, _): &EntryResponder<Types>| match &entry.payload {
        Payload::Command(command) => is_signed(command),
        Payload::Blank | Payload::Membership(..) => true,
    };
    let workers = std::thread::available_parallelism().map_or(1, NonZero::get).min(group.len() / CHECKS_EACH);
    if workers < 2 {
        return group.iter().map(is_signed).collect();
    }
    std::thread::scope(|scope| {
        let parts = group.chunks(group.len().div_ceil(workers));
        let parts: Vec<_> =
            parts.map(|part| scope.spawn(move || part.iter().map(is_signed).collect::<Vec<_>>())).collect();
        let joined = parts.into_iter().map(|part| part.join().unwrap_or_else(|panic| resume_unwind(panic)));
        joined.flatten().collect()
    })
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
        let position = self.guard(self.disk.applied())?;
        Ok((position.last, position.membership))
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
                if let Payload::Command(command) = &entry.payload {
                    bytes += command.change.carried_bytes();
                }
                group.push((entry, responder));
            }
            if group.is_empty() {
                return Ok(());
            }
            log::deny(&self.gate, self.denied(&group), &self.fatal).await?;
            self.guard(self.apply_group(group))?;
        }
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, _: &SnapshotMetaOf<Types>, file: SnapshotFile) -> Result<(), io::Error> {
        let position = self.guard(file.position())?;
        log::deny(&self.gate, self.denied_by_snapshot(&position), &self.fatal).await?;
        self.blocking(move |machine| machine.install(&file)).await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<Types, SnapshotFile>>, io::Error> {
        let Some(snapshot) = self.guard(snapshot::current(&self.disk))? else { return Ok(None) };
        let meta = self.guard(snapshot.meta())?;
        Ok(Some(SnapshotOf::<Types, SnapshotFile> { meta, snapshot }))
    }
}
