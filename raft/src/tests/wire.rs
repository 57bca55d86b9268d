//! Several replicas that find each other over a link in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use quorate_shares::ids::{Epoch, NodeId};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::fixture::{CLUSTER, Leader, found, next_changes, storage_keys};
use crate::consensus::messages::{Reply, Tell};
use crate::live::command::{Change, Command, Outcome};
use crate::log;
use crate::stored::format::encode;
use crate::{
    Ballot, Denial, Gate, Link, LinkError, LogPlace, MessageClass, OpenError, Options, ProposeError, Rebuild,
    RebuildError, Refusal, Replica, ServeError, Timing,
};

/// Longer than any step takes on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Replicas find each other here, unless they are cut off.
#[derive(Clone, Default)]
pub(super) struct Wire(pub(super) Arc<Mutex<Ends>>);

#[derive(Default)]
pub(super) struct Ends {
    pub(super) replicas: BTreeMap<NodeId, Replica>,
    /// Kept while a replica is closed, as the vault of a node is.
    pub(super) books: BTreeMap<NodeId, Arc<Book>>,
    /// Those that wait for the state of another one.
    rebuilds: BTreeMap<NodeId, Arc<Rebuild>>,
    cut: BTreeSet<NodeId>,
    /// What messages of the class `Log` may take in a second, in bytes; `None` means no limit.
    pub(super) bytes_per_second: Option<usize>,
    pub(super) snapshots: u64,
    pub(super) largest_chunk: usize,
    /// Streams of snapshots end after this many chunks.
    cut_after: Option<usize>,
    pub(super) lies: Option<Lies>,
}

/// A node that answers every request with a vote that it made up, and asks nothing.
pub(super) struct Lies {
    pub(super) liar: NodeId,
    pub(super) vote: Ballot,
    /// How many answers were lies.
    pub(super) told: u64,
}

impl Lies {
    fn answer(&mut self, class: MessageClass) -> Vec<u8> {
        self.told += 1;
        let vote = self.vote;
        let tell = match class {
            MessageClass::Log | MessageClass::Heartbeat => Tell::HigherVote(vote),
            MessageClass::Vote => Tell::Vote { vote, granted: false, last: None },
        };
        encode(&Reply::V1 { from: self.liar, tell })
    }
}

/// The nodes that a node refuses, as its vault would keep them.
#[derive(Default)]
pub(super) struct Book {
    pub(super) denials: Mutex<Vec<Denial>>,
    /// The entry that the roster reflects.
    pub(super) roster: Mutex<Option<LogPlace>>,
}

impl Book {
    /// Drops the denials that no longer stand after what `replica` has applied.
    pub(super) fn settle(&self, replica: &Replica) {
        replica.read_members(|_, applied, membership| {
            self.denials.lock().retain(|denial| applied.is_none_or(|applied| denial.stands(applied, membership)));
        });
    }
}

impl Gate for Book {
    fn deny(&self, denials: &[Denial]) -> Result<(), String> {
        let roster = *self.roster.lock();
        self.denials.lock().extend(denials.iter().filter(|denial| Some(denial.by) > roster));
        Ok(())
    }

    fn is_denied(&self, node: NodeId) -> bool {
        self.denials.lock().iter().any(|denial| denial.node == node)
    }
}

struct End {
    wire: Wire,
    node: NodeId,
}

impl End {
    fn peer(&self, to: NodeId) -> Result<Replica, LinkError> {
        let ends = self.wire.0.lock();
        let denies = |node: NodeId, other| ends.books.get(&node).is_some_and(|book| book.is_denied(other));
        let denied = denies(self.node, to) || denies(to, self.node);
        let cut = denied || ends.cut.contains(&to) || ends.cut.contains(&self.node);
        let peer = ends.replicas.get(&to).filter(|_| !cut);
        peer.cloned().ok_or_else(|| LinkError::Unreachable(format!("node {to} is away")))
    }
}

fn refused(error: ServeError) -> LinkError {
    LinkError::Refused(error.to_string())
}

#[async_trait]
impl Link for End {
    async fn call(&self, to: NodeId, class: MessageClass, request: Vec<u8>, _: Duration) -> Result<Vec<u8>, LinkError> {
        assert!(request.len() <= crate::MESSAGE_BYTES_MAX);
        if self.wire.0.lock().lies.as_ref().is_some_and(|lies| lies.liar == self.node) {
            return Err(LinkError::Unreachable("a liar asks nothing".to_owned()));
        }
        let rate = self.wire.0.lock().bytes_per_second.filter(|_| matches!(class, MessageClass::Log));
        if let Some(rate) = rate {
            tokio::time::sleep(Duration::from_secs_f64(request.len() as f64 / rate as f64)).await;
        }
        let reply = self.peer(to)?.serve(self.node, &request).await.map_err(refused)?;
        // A node that was cut off meanwhile does not hear the answer.
        self.peer(to)?;
        match &mut self.wire.0.lock().lies {
            Some(lies) if lies.liar == to => Ok(lies.answer(class)),
            _ => Ok(reply),
        }
    }

    async fn snapshot(
        &self,
        to: NodeId,
        mut chunks: mpsc::Receiver<Vec<u8>>,
        _: Duration,
    ) -> Result<Vec<u8>, LinkError> {
        let rebuild = self.wire.0.lock().rebuilds.get(&to).cloned();
        let peer = if rebuild.is_none() { Some(self.peer(to)?) } else { None };
        let (forward, received) = mpsc::channel(1);
        let wire = self.wire.clone();
        wire.0.lock().snapshots += 1;
        tokio::spawn(async move {
            let cut_after = wire.0.lock().cut_after.unwrap_or(usize::MAX);
            for _ in 0..cut_after {
                let Some(chunk) = chunks.recv().await else { return };
                let largest = wire.0.lock().largest_chunk.max(chunk.len());
                wire.0.lock().largest_chunk = largest;
                if forward.send(chunk).await.is_err() {
                    return;
                }
            }
        });
        match (peer, rebuild) {
            (Some(peer), _) => peer.serve_snapshot(self.node, received).await.map_err(refused),
            (None, Some(rebuild)) => rebuild.serve_snapshot(self.node, received).await.map_err(refused),
            (None, None) => Err(LinkError::Unreachable(format!("node {to} is away"))),
        }
    }
}

pub(super) struct Cluster {
    pub(super) dirs: BTreeMap<u64, TempDir>,
    pub(super) wire: Wire,
    timing: Timing,
}

impl Cluster {
    pub(super) async fn start(nodes: u64, timing: Timing) -> Self {
        Self::start_with(nodes, nodes, timing).await
    }

    /// As [`Cluster::start`], but only the first `founders` of the replicas are voters.
    pub(super) async fn start_with(founders: u64, nodes: u64, timing: Timing) -> Self {
        let dirs = (1..=nodes).map(|node| (node, tempfile::tempdir().expect("a temporary directory"))).collect();
        let cluster = Self { dirs, wire: Wire::default(), timing };
        for node in 1..=nodes {
            cluster.open(node).await;
        }
        let labels = (1..=founders).map(|node| (NodeId(node), format!("n{node}"))).collect::<BTreeMap<_, _>>();
        cluster.replica(1).initialize(labels.clone()).await.expect("a new cluster");
        cluster.replica(1).initialize(labels).await.expect("again does no harm");
        cluster
    }

    fn options(&self, node: u64) -> Options {
        Options {
            node: NodeId(node),
            cluster: CLUSTER,
            dir: self.dirs[&node].path().to_owned(),
            keys: storage_keys(node),
            timing: self.timing.clone(),
            link: Arc::new(End { wire: self.wire.clone(), node: NodeId(node) }),
            gate: self.book(node),
        }
    }

    pub(super) fn book(&self, node: u64) -> Arc<Book> {
        self.wire.0.lock().books.entry(NodeId(node)).or_default().clone()
    }

    pub(super) async fn open(&self, node: u64) {
        self.try_open(node).await.expect("the database opens");
    }

    pub(super) async fn try_open(&self, node: u64) -> Result<(), OpenError> {
        let replica = Replica::open(self.options(node)).await?;
        self.wire.0.lock().replicas.insert(NodeId(node), replica);
        Ok(())
    }

    /// Takes the state of `peer` for the database of a replica that is closed.
    pub(super) async fn rebuild(&self, node: u64, peer: u64) -> Result<(), RebuildError> {
        let rebuild = Arc::new(Rebuild::begin(self.options(node)).await.expect("log and vote are whole"));
        self.wire.0.lock().rebuilds.insert(NodeId(node), rebuild.clone());
        let taken = rebuild.take_from(NodeId(peer)).await;
        self.wire.0.lock().rebuilds.remove(&NodeId(node));
        taken
    }

    /// The error when a closed replica cannot be rebuilt.
    pub(super) async fn refuses_rebuild(&self, node: u64) -> String {
        Rebuild::begin(self.options(node))
            .await
            .map(|_| ())
            .expect_err("something but the state is damaged")
            .to_string()
    }

    pub(super) async fn close(&self, node: u64) {
        let replica = self.wire.0.lock().replicas.remove(&NodeId(node)).expect("it runs");
        replica.shutdown().await;
    }

    pub(super) fn replica(&self, node: u64) -> Replica {
        self.wire.0.lock().replicas[&NodeId(node)].clone()
    }

    pub(super) fn cut(&self, node: u64) {
        self.wire.0.lock().cut.insert(NodeId(node));
    }

    /// Cuts this node off, and no other one.
    pub(super) fn cut_only(&self, node: u64) {
        self.wire.0.lock().cut = [NodeId(node)].into();
    }

    /// Ends every stream of a snapshot after this many chunks.
    pub(super) fn cut_snapshots_after(&self, chunks: usize) {
        self.wire.0.lock().cut_after = Some(chunks);
    }

    pub(super) fn mend(&self) {
        self.wire.0.lock().cut.clear();
    }

    /// A node that believes that it leads.
    fn claimant(&self) -> Option<Replica> {
        let ends = self.wire.0.lock();
        let mut there = ends.replicas.iter().filter(|(node, _)| !ends.cut.contains(node)).map(|(_, replica)| replica);
        there.find(|replica| replica.leadership().borrow().am_leader).cloned()
    }

    /// The node that leads among those that are not cut off.
    pub(super) async fn leader(&self) -> Replica {
        let start = Instant::now();
        loop {
            let leader = self.claimant();
            if let Some(leader) = leader
                && leader.read_index().await.is_ok()
            {
                return leader;
            }
            assert!(start.elapsed() < PATIENCE, "no leader");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Proposes until some leader answers, as a client with a request id may.
    pub(super) async fn propose(&self, change: Change) -> Result<Outcome, Refusal> {
        let start = Instant::now();
        loop {
            let leader = self.leader().await;
            let time_ms = leader.read(|state| state.time_ms) + 1;
            match leader.propose(Command::new(time_ms, change.clone())).await {
                Ok(outcome) => return Ok(outcome),
                Err(ProposeError::Refused(refusal)) => return Err(refusal),
                Err(error) => assert!(start.elapsed() < PATIENCE, "{error}"),
            }
        }
    }

    pub(super) async fn found(&self) -> Leader {
        let members = self.dirs.len() as u64;
        self.propose(Change::Found(found(members, members as u8 / 2 + 1))).await.expect("founded");
        loop {
            let changes = self.leader().await.read(next_changes);
            if changes.is_empty() {
                break;
            }
            for change in changes {
                self.propose(change).await.expect("a planned step");
            }
        }
        let dealer = self.leader().await.read(|state| Leader::new(state, Epoch(1)));
        self.propose(dealer.open_batch()).await.expect("a batch");
        dealer
    }

    /// Waits until a replica has applied all that the leader has, and compares.
    pub(super) async fn agree(&self, node: u64) {
        let leader = self.leader().await;
        let index = leader.read_index().await.expect("it leads");
        leader.wait_applied(index, PATIENCE).await.expect("applied");
        let replica = self.replica(node);
        replica.wait_applied(index, PATIENCE).await.expect("catches up");
        assert!(leader.read(Clone::clone) == replica.read(Clone::clone), "node {node} has another state");
    }

    /// Waits until each replica that runs has purged its log up to `index`, or beyond.
    pub(super) async fn purged(&self, index: u64) {
        let running = self.wire.0.lock().replicas.keys().copied().collect();
        self.purged_of(&running, index).await;
    }

    /// As [`Cluster::purged`], of these replicas only.
    pub(super) async fn purged_of(&self, nodes: &BTreeSet<NodeId>, index: u64) {
        let start = Instant::now();
        let replicas: Vec<Replica> = nodes.iter().map(|node| self.replica(node.0)).collect();
        for replica in replicas {
            let disk = replica.disk().expect("it runs");
            while log::read_purged(&disk).expect("readable").is_none_or(|purged| purged.index < index) {
                assert!(start.elapsed() < PATIENCE, "the log is not purged");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    pub(super) async fn stop(self) {
        let nodes: Vec<_> = self.wire.0.lock().replicas.keys().map(|node| node.0).collect();
        for node in nodes {
            self.close(node).await;
        }
    }
}
