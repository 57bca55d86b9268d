//! What other replicas ask of this one.

use openraft::alias::SnapshotOf;
use quorate_shares::ids::NodeId;
use tokio::sync::mpsc;

use crate::error::StorageError;
use crate::format::encode;
use crate::messages::{self, Ask, Reply, Request, RequestV1, Tell};
use crate::replica::Replica;
use crate::snapshot::{self, CHUNK_BYTES_MAX, Chunk, SNAPSHOT_BYTES_MAX, SnapshotFile, SnapshotWriter};
use crate::types::Types;

/// Why a request of another replica is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Not a request, or a snapshot that is cut short or does not add up.
    #[error("malformed request")]
    Malformed,
    /// It is for another cluster or another node.
    #[error("the request is for another node")]
    WrongNode,
    /// It names another sender than the session does.
    #[error("the request names node {named} as its sender")]
    WrongSender {
        /// In the request.
        named: NodeId,
    },
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
        let tell = match self.accept(from, request)? {
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
                    last.map(crate::format::LogPlace::log_id),
                );
                Tell::from(raft.handle_transfer_leader(request).await.map_err(stopped)?)
            }
            Ask::Snapshot { .. } => return Err(ServeError::Malformed),
        };
        Ok(self.reply(tell))
    }

    /// Receives a snapshot, makes it durable, and installs it.
    ///
    /// # Errors
    /// [`ServeError`]; the state is untouched then.
    pub async fn serve_snapshot(
        &self,
        from: NodeId,
        mut chunks: mpsc::Receiver<Vec<u8>>,
    ) -> Result<Vec<u8>, ServeError> {
        let start = chunks.recv().await.ok_or(ServeError::Malformed)?;
        let Ask::Snapshot { vote } = self.accept(from, &start)? else { return Err(ServeError::Malformed) };
        let replica = self.clone();
        let received = tokio::task::spawn_blocking(move || replica.receive(chunks)).await;
        let snapshot = received.map_err(|_| ServeError::Stopped)??;
        let id = snapshot.snapshot.id();
        let installed = self.inner.raft.install_full_snapshot(vote.vote(), snapshot).await;
        if let Some(disk) = self.disk() {
            self.inner.fatal.guard(snapshot::discard(&disk, id))?;
        }
        let vote = installed.map_err(|_| ServeError::Stopped)?.vote;
        Ok(self.reply(Tell::Snapshot { vote: crate::format::Ballot::of(vote) }))
    }

    /// Checks that a request is for this node and from whom the session says.
    fn accept(&self, from: NodeId, request: &[u8]) -> Result<Ask, ServeError> {
        let RequestV1 { cluster, from: named, to, ask } =
            Request::decode(request).map_err(|_| ServeError::Malformed)?;
        if (cluster, to) != (self.inner.cluster, self.inner.node) {
            return Err(ServeError::WrongNode);
        }
        if named != from {
            return Err(ServeError::WrongSender { named });
        }
        Ok(ask)
    }

    fn reply(&self, tell: Tell) -> Vec<u8> {
        encode(&Reply::V1 { from: self.inner.node, tell })
    }

    /// Writes the chunks to a file, each sealed under this node's own key, and checks that they are whole.
    fn receive(&self, chunks: mpsc::Receiver<Vec<u8>>) -> Result<SnapshotOf<Types, SnapshotFile>, ServeError> {
        let disk = self.disk().ok_or(ServeError::Stopped)?;
        let mut writer = SnapshotWriter::start(&disk)?;
        match self.write_chunks(&mut writer, chunks) {
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

    fn write_chunks(&self, writer: &mut SnapshotWriter, mut chunks: mpsc::Receiver<Vec<u8>>) -> Result<(), ServeError> {
        let (mut bytes, mut seen, mut first) = (0u64, 0u64, true);
        while let Some(plain) = chunks.blocking_recv() {
            bytes += plain.len() as u64;
            if plain.len() > CHUNK_BYTES_MAX || bytes > SNAPSHOT_BYTES_MAX {
                return Err(ServeError::TooLarge);
            }
            let mut ended = false;
            match Chunk::decode(&plain) {
                Some(Chunk::HeaderV1 { cluster, applied }) if first && cluster == self.inner.cluster => {
                    // openraft panics on a snapshot that ends nowhere.
                    let meta = snapshot::meta_of(applied).ok_or(ServeError::Malformed)?;
                    meta.last_log_id.ok_or(ServeError::Malformed)?;
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
}
