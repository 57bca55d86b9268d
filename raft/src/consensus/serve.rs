//! How this replica answers the requests of others.

use std::time::Duration;

use openraft::alias::SnapshotOf;
use quorate_shares::ids::{ClusterId, NodeId};
use tokio::sync::mpsc;

use crate::consensus::messages::{self, Ask, Reply, Request, RequestV1, Tell};
use crate::consensus::network;
use crate::consensus::replica::Replica;
use crate::live::place::LogPlace;
use crate::snapshot::{self, CHUNK_BYTES_MAX, Chunk, SNAPSHOT_BYTES_MAX, SnapshotFile, SnapshotWriter};
use crate::stored::disk::Disk;
use crate::stored::error::StorageError;
use crate::stored::format::{AppliedPosition, encode};
use crate::stored::seal::Family;
use crate::types::Types;

/// How long a replica that rebuilds its state may take to receive it.
pub(crate) const STATE_DEADLINE: Duration = Duration::from_secs(600);

/// Why a request of another replica is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Not a request, or a snapshot that is cut short or has a wrong count.
    #[error("malformed request")]
    Malformed,
    /// It is for another cluster or another node.
    #[error("the request is for another node")]
    WrongNode,
    /// It names another sender than the session does.
    #[error("the request names node {named} as its sender")]
    WrongSender { named: NodeId },
    /// It carries the vote of another node than its sender.
    #[error("the request carries a vote of node {named}")]
    WrongVote { named: NodeId },
    /// Its term is too far above every term that this replica has seen.
    #[error("the term {term} is too far above {highest}, the highest that was seen")]
    TermTooHigh { term: u64, highest: u64 },
    /// The snapshot is larger than this program takes.
    #[error("the snapshot is larger than {SNAPSHOT_BYTES_MAX} bytes")]
    TooLarge,
    /// The snapshot could not be written.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Storage failed, or the replica is shut down.
    #[error("this replica has stopped")]
    Stopped,
}

impl Replica {
    /// Answers one request. `from` is the node that the session belongs to.
    ///
    /// # Errors
    /// [`ServeError`].
    pub async fn serve(&self, from: NodeId, request: &[u8]) -> Result<Vec<u8>, ServeError> {
        let stopped = |_| ServeError::Stopped;
        let raft = &self.inner.raft;
        let ask = accept(self.inner.cluster, self.inner.node, from, request)?;
        self.check_vote(&ask, from)?;
        let tell = match ask {
            Ask::Append { vote, previous, entries, committed } => {
                let request = messages::append_request(vote, previous, &entries, committed);
                let request = request.map_err(|_| ServeError::Malformed)?;
                Tell::from(raft.append_entries(request).await.map_err(|_| ServeError::Stopped)?)
            }
            Ask::Vote(candidacy) => Tell::from(raft.vote(candidacy.request()).await.map_err(|_| ServeError::Stopped)?),
            Ask::PreVote(candidacy) => {
                Tell::from(raft.pre_vote(candidacy.request()).await.map_err(|_| ServeError::Stopped)?)
            }
            Ask::Transfer { from_leader, to, last } => {
                let request = openraft::raft::TransferLeaderRequest::new(
                    from_leader.vote(),
                    to.0,
                    last.map(crate::live::place::LogPlace::log_id),
                );
                Tell::from(raft.handle_transfer_leader(request).await.map_err(stopped)?)
            }
            Ask::WantState { reaching } => Tell::State { given: self.give_state(from, reaching).await? },
            Ask::Snapshot { .. } | Ask::State => return Err(ServeError::Malformed),
        };
        Ok(self.reply(tell))
    }

    /// Receives a snapshot, makes it durable, and installs it.
    ///
    /// # Errors
    /// [`ServeError`]. The state is unchanged then.
    pub async fn serve_snapshot(
        &self,
        from: NodeId,
        mut chunks: mpsc::Receiver<Vec<u8>>,
    ) -> Result<Vec<u8>, ServeError> {
        let start = chunks.recv().await.ok_or(ServeError::Malformed)?;
        let (cluster, node) = (self.inner.cluster, self.inner.node);
        let ask = accept(cluster, node, from, &start)?;
        self.check_vote(&ask, from)?;
        let Ask::Snapshot { vote } = ask else { return Err(ServeError::Malformed) };
        let disk = self.disk().ok_or(ServeError::Stopped)?;
        let received = tokio::task::spawn_blocking(move || receive(&disk, cluster, chunks)).await;
        let snapshot = received.map_err(|_| ServeError::Stopped)??;
        let id = snapshot.snapshot.id();
        let installed = self.inner.raft.install_full_snapshot(vote.vote(), snapshot).await;
        if let Some(disk) = self.disk() {
            self.inner.fatal.guard(snapshot::discard(&disk, id))?;
        }
        let vote = installed.map_err(|_| ServeError::Stopped)?.vote;
        Ok(self.reply(Tell::Snapshot { vote: crate::live::place::Ballot::of(vote) }))
    }

    /// Streams the state of this moment to a replica that lost its own. `false` if its position is before `reaching`, the other
    /// replica did not take it, or another one is being served.
    async fn give_state(&self, to: NodeId, reaching: Option<LogPlace>) -> Result<bool, ServeError> {
        let Ok(_one) = self.inner.giving.try_lock() else { return Ok(false) };
        if reaching.is_some_and(|place| place.index > self.applied_index()) {
            return Ok(false);
        }
        let (cluster, node) = (self.inner.cluster, self.inner.node);
        let disk = self.disk().ok_or(ServeError::Stopped)?;
        let (replica, source) = (self.clone(), disk.clone());
        let written = tokio::task::spawn_blocking(move || {
            let _rows = replica.inner.live.rows.read();
            let written = snapshot::write(&source, cluster);
            // If rows cannot be read, this replica stops. If only the file for the other one cannot be written, it does not.
            match written {
                Err(error) if error.family == Family::Snapshot.name() => Err(error),
                written => replica.inner.fatal.guard(written),
            }
        });
        let file = written.await.map_err(|_| ServeError::Stopped)??;
        let id = file.id();
        let start = encode(&Request::V1(RequestV1 { cluster, from: node, to, ask: Ask::State }));
        let sent = network::stream(&self.inner.link, to, file, start, STATE_DEADLINE).await;
        snapshot::discard(&disk, id)?;
        match sent {
            Ok(_) => Ok(true),
            Err(reason) => {
                tracing::warn!(%to, reason, "the state was not taken");
                Ok(false)
            }
        }
    }

    /// Checks that a vote is that of its sender, and that its term is not too far ahead.
    fn check_vote(&self, ask: &Ask, from: NodeId) -> Result<(), ServeError> {
        let Some(vote) = ask.vote() else { return Ok(()) };
        if vote.node != from {
            return Err(ServeError::WrongVote { named: vote.node });
        }
        let checked = self.inner.terms.check(vote.term, self.leadership().borrow().term);
        checked.map_err(|highest| ServeError::TermTooHigh { term: vote.term, highest })
    }

    fn reply(&self, tell: Tell) -> Vec<u8> {
        encode(&Reply::V1 { from: self.inner.node, tell })
    }
}

/// Checks that a request is for this node, and names the sender that the session belongs to.
pub(crate) fn accept(cluster: ClusterId, node: NodeId, from: NodeId, request: &[u8]) -> Result<Ask, ServeError> {
    let request = Request::decode(request).map_err(|_| ServeError::Malformed)?;
    if (request.cluster, request.to) != (cluster, node) {
        return Err(ServeError::WrongNode);
    }
    if request.from != from {
        return Err(ServeError::WrongSender { named: request.from });
    }
    Ok(request.ask)
}

/// Writes the chunks to a file, each sealed under this node's own key, and checks that they are complete.
pub(crate) fn receive(
    disk: &Disk,
    cluster: ClusterId,
    chunks: mpsc::Receiver<Vec<u8>>,
) -> Result<SnapshotOf<Types, SnapshotFile>, ServeError> {
    let mut writer = SnapshotWriter::start(disk)?;
    match write_chunks(&mut writer, cluster, chunks) {
        Ok(()) => {
            let snapshot = writer.finish()?;
            let meta = snapshot.meta()?;
            Ok(SnapshotOf::<Types, SnapshotFile> { meta, snapshot })
        }
        Err(error) => {
            writer.abandon();
            Err(error)
        }
    }
}

fn write_chunks(
    writer: &mut SnapshotWriter,
    cluster: ClusterId,
    mut chunks: mpsc::Receiver<Vec<u8>>,
) -> Result<(), ServeError> {
    let (mut bytes, mut seen, mut first) = (0u64, 0u64, true);
    while let Some(plain) = chunks.blocking_recv() {
        bytes += plain.len() as u64;
        if plain.len() > CHUNK_BYTES_MAX || bytes > SNAPSHOT_BYTES_MAX {
            return Err(ServeError::TooLarge);
        }
        let mut ended = false;
        match Chunk::decode(&plain) {
            Some(Chunk::HeaderV1 { cluster: theirs, applied }) if first && theirs == cluster => {
                // openraft panics on a snapshot without a last entry.
                let position = AppliedPosition::try_from(applied).map_err(|_| ServeError::Malformed)?;
                position.last.ok_or(ServeError::Malformed)?;
            }
            Some(Chunk::RowsV1(rows)) if !first => seen += rows.len() as u64,
            Some(Chunk::EndV1 { rows }) if !first && rows == seen => ended = true,
            _ => return Err(ServeError::Malformed),
        }
        first = false;
        writer.write(&plain)?;
        if ended {
            return Ok(());
        }
    }
    Err(ServeError::Malformed)
}
