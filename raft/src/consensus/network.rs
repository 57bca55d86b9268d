//! openraft's network over a [`Link`], which the program around this crate provides.
//!
//! The link authenticates: it knows which node is at its other end. This part decides what is sent. Of the entries, it sends as
//! many as fit one message. Heartbeats and votes have classes of their own, so a full request does not delay them. Snapshots are
//! streams of plain chunks. A reply counts only if the right node gave it, and if the vote in it can be true.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use openraft::alias::{SnapshotOf, VoteOf};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{RPCOption, RPCTypes, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::{BasicNode, OptionalSend, RaftNetworkV2};
use quorate_shares::ids::{ClusterId, NodeId};
use tokio::sync::mpsc;

use crate::consensus::messages::{self, Ask, Candidacy, Reply, Request, RequestV1, Tell};
use crate::consensus::terms::Terms;
use crate::live::place::Ballot;
use crate::snapshot::SnapshotFile;
use crate::stored::format::encode;
use crate::types::Types;

/// Most chunks of a snapshot that wait for the link.
const CHUNKS_WAITING: usize = 4;

/// Carries messages to the other members.
#[async_trait]
pub trait Link: Send + Sync + 'static {
    /// Sends one request and waits for its reply, at most for `deadline`. A request of one class must not wait for another class.
    ///
    /// # Errors
    /// [`LinkError`]. The request may have arrived nevertheless.
    async fn call(
        &self,
        to: NodeId,
        class: MessageClass,
        request: Vec<u8>,
        deadline: Duration,
    ) -> Result<Vec<u8>, LinkError>;

    /// Streams chunks of at most 1 MiB and waits for the reply. If the sender is dropped before its last chunk, the receiver
    /// notices that.
    ///
    /// # Errors
    /// As [`Link::call`].
    async fn snapshot(
        &self,
        to: NodeId,
        chunks: mpsc::Receiver<Vec<u8>>,
        deadline: Duration,
    ) -> Result<Vec<u8>, LinkError>;
}

/// Requests of one class do not wait behind those of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageClass {
    /// Entries, up to 4 MiB in one request.
    Log,
    /// The leader's sign of life, and read-index rounds.
    Heartbeat,
    Vote,
}

/// Why the link has no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// No session. Wait before the next try.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// No reply in time.
    #[error("no reply in time")]
    Timeout,
    /// The other node did not serve the request.
    #[error("refused: {0}")]
    Refused(String),
}

/// Makes clients for openraft.
pub(crate) struct Network {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    pub(crate) link: Arc<dyn Link>,
    /// How long a request with entries may take. openraft's own limit is of the size of a heartbeat; 4 MiB and a sync need longer.
    pub(crate) append_deadline: Duration,
    pub(crate) terms: Arc<Terms>,
}

/// One client: to one node, for one class of messages.
pub(crate) struct Client {
    cluster: ClusterId,
    node: NodeId,
    link: Arc<dyn Link>,
    append_deadline: Duration,
    terms: Arc<Terms>,
    to: NodeId,
    class: MessageClass,
    pace: Pace,
}

/// How many bytes of entries go into one request. A request that is too large for a slow link would miss its deadline each time.
/// So this begins small, grows while requests arrive in time, and shrinks when one is late, as a sender's window does (RFC
/// 5681).
struct Pace(usize);

impl Pace {
    const FIRST: usize = 256 << 10;
    const LEAST: usize = 16 << 10;

    fn bytes(&self) -> usize {
        self.0
    }

    fn in_time(&mut self) {
        self.0 = (self.0 * 2).min(messages::APPEND_BYTES_MAX);
    }

    fn too_late(&mut self) {
        self.0 = (self.0 / 4).max(Self::LEAST);
    }
}

impl Network {
    fn client(&self, target: u64, class: MessageClass) -> Client {
        Client {
            cluster: self.cluster,
            node: self.node,
            link: self.link.clone(),
            append_deadline: self.append_deadline,
            terms: self.terms.clone(),
            to: NodeId(target),
            class,
            pace: Pace(Pace::FIRST),
        }
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: u64, _: &BasicNode) -> Client {
        self.client(target, MessageClass::Log)
    }

    async fn new_heartbeat_client(&mut self, target: u64, _: &BasicNode) -> Client {
        self.client(target, MessageClass::Heartbeat)
    }
}

impl Client {
    fn request(&self, ask: Ask) -> Vec<u8> {
        encode(&Request::V1(RequestV1 { cluster: self.cluster, from: self.node, to: self.to, ask }))
    }

    async fn call(
        &self,
        class: MessageClass,
        action: RPCTypes,
        ask: Ask,
        limit: Duration,
    ) -> Result<Tell, RPCError<Types>> {
        let own = ask.vote();
        let request = self.request(ask);
        let timeout = || Timeout { action, id: self.node.0, target: self.to.0, timeout: limit };
        let reply = tokio::time::timeout(limit, self.link.call(self.to, class, request, limit)).await;
        match reply.map_err(|_| timeout())? {
            Ok(reply) => self.tell(&reply, own).ok_or_else(|| self.nonsense().into()),
            Err(LinkError::Timeout) => Err(timeout().into()),
            Err(error) => Err(Unreachable::new(&error).into()),
        }
    }

    /// The reply to a request with the vote `own`, if the right node gave it, and the vote in it can be true.
    fn tell(&self, reply: &[u8], own: Option<Ballot>) -> Option<Tell> {
        let (from, mut tell) = Reply::decode(reply).ok()?;
        let own = own.map_or(0, |vote| vote.term);
        if let Some(vote) = tell.vote_mut() {
            self.terms.check(vote.term, own).ok()?;
            // openraft would lead by a vote for this node at once, without an election. The term counts all the same: a node that heard
            // a lie hands it on honestly, and elects no leader before it.
            if vote.node == self.node && vote.term > own {
                *vote = Ballot { term: vote.term, node: self.to, committed: false };
            }
        }
        (from == self.to).then_some(tell)
    }

    /// Not worth an immediate second try.
    fn nonsense(&self) -> Unreachable<Types> {
        Unreachable::from_string(format!("node {} gave a reply that does not fit the request", self.to))
    }
}

impl RaftNetworkV2<Types> for Client {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let limit = match self.class {
            MessageClass::Log => self.append_deadline.max(option.soft_ttl()),
            MessageClass::Heartbeat | MessageClass::Vote => option.soft_ttl(),
        };
        let (ask, cut) = messages::append(rpc, self.pace.bytes());
        let told = self.call(self.class, RPCTypes::AppendEntries, ask, limit).await;
        match &told {
            Ok(_) => self.pace.in_time(),
            Err(RPCError::Timeout(_)) => self.pace.too_late(),
            Err(_) => {}
        }
        told?.appended(cut).ok_or_else(|| self.nonsense().into())
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let ask = Ask::Vote(Candidacy::of(&rpc));
        let tell = self.call(MessageClass::Vote, RPCTypes::Vote, ask, option.soft_ttl()).await?;
        tell.voted().ok_or_else(|| self.nonsense().into())
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let ask = Ask::PreVote(Candidacy::of(&rpc));
        let tell = self.call(MessageClass::Vote, RPCTypes::Vote, ask, option.soft_ttl()).await?;
        tell.voted().ok_or_else(|| self.nonsense().into())
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let ask = messages::transfer(&rpc);
        let tell = self.call(MessageClass::Vote, RPCTypes::TransferLeader, ask, option.soft_ttl()).await?;
        tell.transferred().ok_or_else(|| self.nonsense().into())
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<Types>,
        snapshot: SnapshotOf<Types, SnapshotFile>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let (chunks, waiting) = mpsc::channel(CHUNKS_WAITING);
        let own = Ballot::of(vote);
        let start = self.request(Ask::Snapshot { vote: own });
        let reader = tokio::task::spawn_blocking(move || read_file(&snapshot.snapshot, start, &chunks));

        let sent = self.link.snapshot(self.to, waiting, option.hard_ttl());
        let reply = tokio::select! {
            closed = cancel => return Err(closed.into()),
            reply = tokio::time::timeout(option.hard_ttl(), sent) => reply.unwrap_or(Err(LinkError::Timeout)),
        };
        match reply {
            Ok(reply) => match self.tell(&reply, Some(own)) {
                Some(Tell::Snapshot { vote }) => Ok(SnapshotResponse::new(vote.vote())),
                _ => Err(self.nonsense().into()),
            },
            Err(error) => {
                // The receiver's refusal of a short stream hides why it was short.
                if let Ok(Err(reason)) = reader.await {
                    return Err(NetworkError::<Types>::from_string(reason).into());
                }
                Err(Unreachable::<Types>::new(&error).into())
            }
        }
    }
}

/// Streams a snapshot file to `to`, after `start`, and returns its reply; or says why there is none.
pub(crate) async fn stream(
    link: &Arc<dyn Link>,
    to: NodeId,
    file: SnapshotFile,
    start: Vec<u8>,
    deadline: Duration,
) -> Result<Vec<u8>, String> {
    let (chunks, waiting) = mpsc::channel(CHUNKS_WAITING);
    let reader = tokio::task::spawn_blocking(move || read_file(&file, start, &chunks));
    let sent = tokio::time::timeout(deadline, link.snapshot(to, waiting, deadline)).await;
    match sent.unwrap_or(Err(LinkError::Timeout)) {
        Ok(reply) => Ok(reply),
        // The receiver's refusal of a short stream hides why it was short.
        Err(error) => Err(reader.await.ok().and_then(Result::err).unwrap_or_else(|| error.to_string())),
    }
}

/// Feeds the link with a file's chunks. It ends early when the link stops reading.
fn read_file(file: &SnapshotFile, start: Vec<u8>, chunks: &mpsc::Sender<Vec<u8>>) -> Result<(), String> {
    if chunks.blocking_send(start).is_err() {
        return Ok(());
    }
    for chunk in file.chunks().map_err(|error| error.to_string())? {
        if chunks.blocking_send(chunk.map_err(|error| error.to_string())?).is_err() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consensus::terms::STEP;

    struct Nowhere;

    #[async_trait]
    impl Link for Nowhere {
        async fn call(&self, _: NodeId, _: MessageClass, _: Vec<u8>, _: Duration) -> Result<Vec<u8>, LinkError> {
            Err(LinkError::Timeout)
        }

        async fn snapshot(&self, _: NodeId, _: mpsc::Receiver<Vec<u8>>, _: Duration) -> Result<Vec<u8>, LinkError> {
            Err(LinkError::Timeout)
        }
    }

    /// Mutated: without the look at the term, a vote is taken over that no election can follow; without the look at the node, a leader
    /// leads a term in which no one elected it.
    #[test]
    fn a_reply_with_a_vote_that_cannot_be_is_none() {
        let (cluster, link) = (ClusterId([7; 16]), Arc::new(Nowhere));
        let own = Ballot { term: 5, node: NodeId(1), committed: true };
        // Each reply with a vote.
        let tells: [fn(Ballot) -> Tell; 4] = [
            Tell::HigherVote,
            |vote| Tell::Vote { vote, granted: false, last: None },
            |vote| Tell::VoteChanged { expected: vote, actual: vote },
            |vote| Tell::Snapshot { vote },
        ];
        for tell in tells {
            let client = || {
                let terms = Arc::default();
                let network =
                    Network { cluster, node: NodeId(1), link: link.clone(), append_deadline: Duration::ZERO, terms };
                network.client(2, MessageClass::Vote)
            };
            let vote = |term, node| Ballot { term, node: NodeId(node), committed: true };
            let taken = |vote| {
                let mut told = client().tell(&encode(&Reply::V1 { from: NodeId(2), tell: tell(vote) }), Some(own))?;
                told.vote_mut().copied()
            };
            assert_eq!((taken(vote(5 + STEP + 1, 3)), taken(vote(u64::MAX, 2))), (None, None));
            assert_eq!(taken(vote(5 + STEP, 3)), Some(vote(5 + STEP, 3)), "the control");
            let not_mine = Ballot { term: 6, node: NodeId(2), committed: false };
            assert_eq!((taken(vote(6, 1)), taken(own)), (Some(not_mine), Some(own)));
        }
    }
}
