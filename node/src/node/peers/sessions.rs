//! The op sessions of a node, one for each peer: which process is on the other side, and what it reported as flushed to its
//! disk.
//!
//! [`crate::peers::session`] opens the sessions and keeps them open.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use quorate_client::conn::{CallError, Conn, Lane, close};
use quorate_raft::Flushed;
use quorate_shares::ids::{ClusterId, NodeId};
use quorate_shares::labels::EXPORTER_SHARE;
use quorate_shares::secret::Secret;
use tracing::info;

use crate::base::clock::boot_ms;
use crate::messages::peer::{self, Hello, PeerRefusal, PeerReply, PeerRequest};

/// A session is dead if two pings are not answered, each within this time. A node that was killed and starts again ends its old
/// connections itself (QUIC's stateless reset), and waits for no ping. So this may be long, and must be shorter in all than a node
/// waits for an answer to LockOpen (2 s).
const PING: Duration = Duration::from_millis(750);
/// A closing reason that the other side may show to its operator.
const ENDED: &str = "the node begins again";
/// A closing reason that the other side may show to its operator.
const REPLACED: &str = "another session of the same pair stays";

pub struct Session {
    /// The node on the other side.
    pub peer: NodeId,
    /// Identifies the process of that node.
    pub boot_nonce: [u8; 32],
    /// The highest feature level that it knows.
    pub level: u16,
    pub conn: Conn,
    /// Seals shares inside this session. Both sides derive the same key.
    pub share_key: Secret<32>,
    sent: AtomicU64,
}

impl Session {
    /// Wraps a connection whose peer said hello.
    pub fn new(cluster: ClusterId, hello: &Hello, conn: Conn) -> Arc<Self> {
        let share_key = conn.export(EXPORTER_SHARE, &cluster.0);
        let (peer, boot_nonce, level) = (hello.node, hello.boot_nonce, hello.level);
        Arc::new(Self { peer, boot_nonce, level, conn, share_key, sent: AtomicU64::new(0) })
    }

    /// The next number for sealing a share to the other side. No number is used twice.
    pub fn next_counter(&self) -> u64 {
        self.sent.fetch_add(1, Ordering::Relaxed)
    }

    /// The direction half of the nonce for what this side seals: 0 for the side that dialled, 1 for the other.
    pub fn own_direction(&self) -> u32 {
        u32::from(!self.conn.peer().dialled)
    }

    /// Sends a request and decodes the answer.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn ask(&self, lane: Lane, request: &PeerRequest, deadline: Duration) -> Result<PeerReply, CallError> {
        let bytes = self.conn.call(lane, &peer::encode(request), deadline).await?;
        Ok(peer::decode_reply(&bytes))
    }

    /// Whether the other side still answers.
    pub async fn is_alive(&self) -> bool {
        if !self.conn.is_open() {
            return false;
        }
        for _ in 0..2 {
            if matches!(self.ask(Lane::Urgent, &PeerRequest::Ping, PING).await, Ok(PeerReply::Pong)) {
                return true;
            }
        }
        false
    }

    /// The node that opened the connection.
    fn dialler(&self, me: NodeId) -> NodeId {
        if self.conn.peer().dialled { me } else { self.peer }
    }
}

/// Why a peer could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("no session with node {0}")]
    NoSession(NodeId),
    #[error(transparent)]
    Call(#[from] CallError),
}

/// The sessions that are open, one per peer.
#[derive(Default)]
pub struct Sessions {
    open: Mutex<BTreeMap<NodeId, Arc<Session>>>,
    reported: Mutex<Reported>,
    /// When each peer reported last ([`boot_ms`]).
    heard: Mutex<BTreeMap<NodeId, u64>>,
    /// Set under the lock of `open`.
    ended: AtomicBool,
}

/// The highest flushed state that each peer reported, and the process that reported it. Storage must never go back.
#[derive(Debug, Default)]
pub struct Reported(BTreeMap<NodeId, ([u8; 32], Flushed)>);

impl Reported {
    /// Notes the flushed state in a peer's hello.
    ///
    /// # Errors
    /// [`PeerRefusal::StorageWentBack`] if another process of the peer reported more before. A lower state from the same process
    /// is no error: its hellos may overtake each other, and a disk does not go back under a running process.
    pub fn note_hello(&mut self, hello: &Hello) -> Result<(), PeerRefusal> {
        match (self.0.get(&hello.node), hello.flushed) {
            (Some((process, before)), said) if *process != hello.boot_nonce => match said {
                Some(said) if said < *before => return Err(PeerRefusal::StorageWentBack),
                None if before.last_log.is_some() => return Err(PeerRefusal::StorageWentBack),
                _ => {}
            },
            (Some((_, before)), Some(said)) if said < *before => return Ok(()),
            _ => {}
        }
        if let Some(said) = hello.flushed {
            self.0.insert(hello.node, (hello.boot_nonce, said));
        }
        Ok(())
    }

    /// Notes what the process of `peer` with the session `boot_nonce` reports now. An earlier report stays if it is higher.
    pub fn note_report(&mut self, peer: NodeId, boot_nonce: [u8; 32], said: Flushed) {
        let highest = self.0.entry(peer).or_insert((boot_nonce, said));
        *highest = (boot_nonce, highest.1.max(said));
    }
}

impl Sessions {
    /// The open session with `peer`.
    pub fn with(&self, peer: NodeId) -> Option<Arc<Session>> {
        self.open.lock().get(&peer).filter(|session| session.conn.is_open()).cloned()
    }

    /// Asks `peer` over its session.
    ///
    /// # Errors
    /// [`AskError`]: there is no session, or the call failed.
    pub async fn ask(
        &self,
        peer: NodeId,
        lane: Lane,
        request: &PeerRequest,
        deadline: Duration,
    ) -> Result<PeerReply, AskError> {
        let session = self.with(peer).ok_or(AskError::NoSession(peer))?;
        Ok(session.ask(lane, request, deadline).await?)
    }

    /// Closes and forgets every session, for example when a new founding attempt changes the identities.
    pub fn close_all(&self, reason: &str) {
        Self::close_each(&mut self.open.lock(), reason);
    }

    /// Closes every session, and accepts no others from now on. The enrolment is over.
    pub fn end(&self, reason: &str) {
        let mut open = self.open.lock();
        self.ended.store(true, Ordering::Release);
        Self::close_each(&mut open, reason);
    }

    /// Whether new sessions are refused.
    pub fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    fn close_each(open: &mut BTreeMap<NodeId, Arc<Session>>, reason: &str) {
        for (_, session) in std::mem::take(open) {
            session.conn.close(close::REPLACED, reason);
        }
    }

    /// Notes what a peer's hello reports as flushed to its disk.
    ///
    /// # Errors
    /// As [`Reported::note_hello`].
    pub fn note_hello(&self, hello: &Hello) -> Result<(), PeerRefusal> {
        self.reported.lock().note_hello(hello)
    }

    /// Closes every session for which `why` returns a code and a reason.
    pub fn close_where(&self, why: impl Fn(NodeId) -> Option<(u32, &'static str)>) {
        for (&peer, session) in self.open.lock().iter() {
            if let Some((code, reason)) = why(peer).filter(|_| session.conn.is_open()) {
                info!(%peer, reason, "session closed");
                session.conn.close(code, reason);
            }
        }
    }

    /// The peers with an open session.
    pub fn reached(&self) -> BTreeSet<NodeId> {
        let open = self.open.lock();
        open.iter().filter(|(_, session)| session.conn.is_open()).map(|(&peer, _)| peer).collect()
    }

    /// Notes what a peer reports as flushed to its disk now. An earlier report stays if it is higher.
    pub fn note_report(&self, peer: NodeId, said: Flushed) {
        let Some(session) = self.with(peer) else { return };
        self.heard.lock().insert(peer, boot_ms());
        self.reported.lock().note_report(peer, session.boot_nonce, said);
    }

    /// When `peer` opened its session or reported last ([`boot_ms`]), if it did since this node started. It reports each second.
    pub fn heard_ms(&self, peer: NodeId) -> Option<u64> {
        self.heard.lock().get(&peer).copied()
    }

    /// Registers a session, unless another one of the same pair of processes has precedence: the one dialled by the lower node id
    /// stays.
    ///
    /// # Errors
    /// Why it was not registered: another one stays, or the enrolment is over. The caller closes it with this reason.
    pub fn register(&self, me: NodeId, session: &Arc<Session>) -> Result<(), &'static str> {
        let mut open = self.open.lock();
        if self.is_ended() {
            return Err(ENDED);
        }
        if let Some(old) = open.get(&session.peer).filter(|old| old.conn.is_open()) {
            let lower = me.min(session.peer);
            let same_process = old.boot_nonce == session.boot_nonce;
            if same_process && old.dialler(me) == lower && session.dialler(me) != lower {
                return Err(REPLACED);
            }
            old.conn.close(close::REPLACED, REPLACED);
        }
        open.insert(session.peer, Arc::clone(session));
        self.heard.lock().insert(session.peer, boot_ms());
        Ok(())
    }

    /// Removes a closed session, unless another one has replaced it already.
    pub fn forget(&self, session: &Arc<Session>) {
        let mut open = self.open.lock();
        if open.get(&session.peer).is_some_and(|current| Arc::ptr_eq(current, session)) {
            open.remove(&session.peer);
        }
    }
}
