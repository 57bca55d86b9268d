//! Op sessions: one authenticated connection per pair of nodes, over which both sides ask and answer.
//!
//! Either side may dial. When two sessions of the same two processes exist, the one dialled by the lower node id stays. A
//! session with another boot nonce is another process of that node: it takes the place of the old one only when the old one
//! is silent to two pings, otherwise it is refused and an alarm is raised.
//!
//! Each side says in its hello, and then every second, what is flushed to its disk. A hello of another process that is behind
//! what was said before is a disk that went back in time, an older copy perhaps, and is refused before Raft sees it. A log
//! that is truncated does not go back: truncations are counted, in the same write, and the count comes first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use quorate_client::conn::{CallError, Conn, Lane};
use quorate_client::identity::Protocol;
use quorate_raft::Flushed;
use quorate_shares::ids::{ClusterId, NodeId};
use quorate_shares::labels::EXPORTER_SHARE;
use quorate_shares::secret::Secret;
use tokio::time::sleep;
use tracing::{debug, info};

use crate::base::phase::Phase;
use crate::node::Node;
use crate::peers::peer::{self, Hello, PeerReply, PeerRequest, Refusal};
use crate::peers::revocation;
use crate::serve::listen::PeerDoor;

/// A ping that is not answered within this time, twice, means that the session is dead.
const PING: Duration = Duration::from_millis(150);
/// How long one dialling may take.
const DIAL: Duration = Duration::from_secs(2);
/// Pauses between diallings grow from the first to the second.
const REDIAL: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// How often a member says what is flushed to its disk.
const FLUSHED: Duration = Duration::from_secs(1);
/// Closing reasons that the other side may show to its operator.
const REPLACED: &str = "another session of the same pair stays";

/// An op session.
pub struct Session {
    /// Who is on the other side.
    pub peer: NodeId,
    /// Which process of that node.
    pub boot_nonce: [u8; 32],
    /// The connection.
    pub conn: Conn,
    /// Seals shares inside this session; both sides derive the same.
    pub share_key: Secret<32>,
    sent: AtomicU64,
}

impl Session {
    /// Wraps a connection whose peer said hello.
    pub fn new(cluster: ClusterId, peer: NodeId, boot_nonce: [u8; 32], conn: Conn) -> Arc<Self> {
        let share_key = conn.export(EXPORTER_SHARE, &cluster.0);
        Arc::new(Self { peer, boot_nonce, conn, share_key, sent: AtomicU64::new(0) })
    }

    /// The next number for sealing a share to the other side: never the same twice.
    pub fn next_counter(&self) -> u64 {
        self.sent.fetch_add(1, Ordering::Relaxed)
    }

    /// The direction half of the nonce of what this side seals: 0 for the side that dialled.
    pub fn own_direction(&self) -> u32 {
        u32::from(!self.conn.peer().dialled)
    }

    /// Asks and decodes the answer.
    ///
    /// # Errors
    /// What happened to the call.
    pub async fn ask(&self, lane: Lane, request: &PeerRequest, deadline: Duration) -> Result<PeerReply, CallError> {
        let bytes = self.conn.call(lane, &peer::encode(request), deadline).await?;
        Ok(peer::decode(&bytes).unwrap_or(PeerReply::Refused(Refusal::Malformed)))
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
    /// There is no session.
    #[error("no session with node {0}")]
    NoSession(NodeId),
    /// The call failed.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// The sessions that are open, one per peer.
#[derive(Default)]
pub struct Sessions {
    open: Mutex<BTreeMap<NodeId, Arc<Session>>>,
    reported: Mutex<Reported>,
}

/// The highest flushed state that each peer reported, and which process of it did: storage never goes back.
#[derive(Debug, Default)]
pub struct Reported(BTreeMap<NodeId, ([u8; 32], Flushed)>);

impl Reported {
    /// Notes what a process of a peer said in its hello.
    ///
    /// # Errors
    /// [`Refusal::StorageWentBack`] if another process of it said more before. Hellos of one process may overtake each
    /// other, and a disk does not go back under a running process.
    pub fn greeted(&mut self, hello: &Hello) -> Result<(), Refusal> {
        match (self.0.get(&hello.node), hello.flushed) {
            (Some((process, before)), said) if *process != hello.boot_nonce => match said {
                Some(said) if said < *before => return Err(Refusal::StorageWentBack),
                None if before.last_log.is_some() => return Err(Refusal::StorageWentBack),
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

    /// Notes what the process of `peer` that there is a session with says by now. What was said before stays if it is more.
    pub fn told(&mut self, peer: NodeId, boot_nonce: [u8; 32], said: Flushed) {
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
    /// No session, or what happened to the call.
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

    /// Closes and forgets every session, as when the identities of a founding attempt change.
    pub fn close_all(&self, reason: &str) {
        for (_, session) in std::mem::take(&mut *self.open.lock()) {
            session.conn.close(quorate_client::conn::close::REPLACED, reason);
        }
    }

    /// Notes what a process of a peer said is on its disk.
    ///
    /// # Errors
    /// As [`Reported::greeted`].
    pub fn note_flushed(&self, hello: &Hello) -> Result<(), Refusal> {
        self.reported.lock().greeted(hello)
    }

    /// Closes every session that `why` has a code and a reason for.
    pub fn close_where(&self, why: impl Fn(NodeId) -> Option<(u32, &'static str)>) {
        for (&peer, session) in self.open.lock().iter() {
            if let Some((code, reason)) = why(peer).filter(|_| session.conn.is_open()) {
                info!(%peer, reason, "session closed");
                session.conn.close(code, reason);
            }
        }
    }

    /// The peers that there are sessions with.
    pub fn reached(&self) -> BTreeSet<NodeId> {
        let open = self.open.lock();
        open.iter().filter(|(_, session)| session.conn.is_open()).map(|(&peer, _)| peer).collect()
    }

    /// Notes what a peer says is on its disk by now. What it said before stays if it is more.
    pub fn note_reported(&self, peer: NodeId, said: Flushed) {
        let Some(session) = self.with(peer) else { return };
        self.reported.lock().told(peer, session.boot_nonce, said);
    }

    /// Puts a session in place, unless another one of the same pair of processes has precedence. Returns whether it stays.
    fn place(&self, me: NodeId, session: &Arc<Session>) -> bool {
        let mut open = self.open.lock();
        if let Some(old) = open.get(&session.peer).filter(|old| old.conn.is_open()) {
            let lower = me.min(session.peer);
            let same_process = old.boot_nonce == session.boot_nonce;
            if same_process && old.dialler(me) == lower && session.dialler(me) != lower {
                return false;
            }
            old.conn.close(quorate_client::conn::close::REPLACED, REPLACED);
        }
        open.insert(session.peer, Arc::clone(session));
        true
    }

    fn forget(&self, session: &Arc<Session>) {
        let mut open = self.open.lock();
        if open.get(&session.peer).is_some_and(|current| Arc::ptr_eq(current, session)) {
            open.remove(&session.peer);
        }
    }
}

/// Admits a peer that said hello on a connection that it opened.
///
/// # Errors
/// Why not, by name.
pub async fn admit(node: &Arc<Node>, conn: &Conn, hello: &Hello) -> Result<Arc<Session>, Refusal> {
    if let Some(refusal) = node.turned_away(&conn.peer().key) {
        return Err(refusal);
    }
    let known = node.roster().op_key_of(hello.node);
    if known != Some(conn.peer().key) || hello.node == node.id() {
        return Err(Refusal::NotAMember);
    }
    if let Some(old) = node.sessions.with(hello.node)
        && old.boot_nonce != hello.boot_nonce
        && old.is_alive().await
    {
        let message = format!("{} asks for a second session while it lives", node.name_of(hello.node));
        node.alarm("duplicate_session", hello.node, format!("{message}: is a copy of its disk running?"));
        return Err(Refusal::DuplicateSession);
    }
    note_flushed(node, hello)?;
    let session = Session::new(node.cluster(), hello.node, hello.boot_nonce, conn.clone());
    if !node.sessions.place(node.id(), &session) {
        conn.close(quorate_client::conn::close::REPLACED, REPLACED);
    }
    // A denial may have come since the key was held against the roster.
    node.close_sessions_with_strangers();
    Ok(session)
}

/// Tells every peer each second what is flushed to this node's disk. Never returns.
pub async fn tell_flushed(node: Arc<Node>) {
    loop {
        sleep(FLUSHED).await;
        let Some(flushed) = node.hello().flushed else { continue };
        let request = PeerRequest::Flushed(flushed);
        let told = node.sessions.reached().into_iter().map(|peer| {
            let (node, request) = (&node, &request);
            async move { node.sessions.ask(peer, Lane::Ordinary, request, FLUSHED).await }
        });
        // A peer that does not hear it hears the next one.
        drop(futures::future::join_all(told).await);
    }
}

/// Keeps a session with `peer` open: dials whenever there is none, for as long as it is wanted.
pub async fn keep(node: Arc<Node>, peer: NodeId) {
    let mut pause = REDIAL.0;
    while node.keeps(peer) {
        if let Some(session) = node.sessions.with(peer) {
            pause = REDIAL.0;
            let closed = session.conn.closed().await;
            info!(%peer, reason = %closed.reason, "session closed");
            node.sessions.forget(&session);
        }
        if let Err(reason) = open(&node, peer).await {
            debug!(%peer, %reason, "no session");
            sleep(pause).await;
            pause = (pause * 2).min(REDIAL.1);
        }
    }
}

/// Dials `peer` and says hello.
async fn open(node: &Arc<Node>, peer: NodeId) -> Result<(), String> {
    let (addresses, key) = node.roster().reach(peer).ok_or("not in the roster")?;
    let op = node.op_identity().ok_or("no op key yet")?;
    let connection = crate::serve::listen::dial(node, &addresses, &op, key, Protocol::Peer, DIAL).await?;
    let admitted = Arc::new(AtomicBool::new(false));
    let conn = Conn::start(connection, Some(PeerDoor::dialled(node, peer, &admitted)));
    let greeted = greet(node, peer, &conn, &admitted).await;
    if let Err(reason) = &greeted {
        // Left open, it would be a session to the other side.
        conn.close(quorate_client::conn::close::DONE, reason);
    }
    greeted
}

/// Says hello on a connection that this node dialled, and puts the session in place if the answer is in order.
async fn greet(node: &Arc<Node>, peer: NodeId, conn: &Conn, admitted: &AtomicBool) -> Result<(), String> {
    let hello = PeerRequest::Hello(node.hello());
    let reply = conn.call(Lane::Urgent, &peer::encode(&hello), DIAL).await.map_err(|error| error.to_string())?;
    let theirs = match peer::decode(&reply) {
        Ok(PeerReply::Hello(theirs)) if theirs.node == peer => theirs,
        Ok(PeerReply::Refused(refusal)) => {
            node.note_refusal(peer, &refusal);
            if let Refusal::Revoked(place) = refusal {
                revocation::heard(node, peer, place.into());
            }
            return Err(refusal.to_string());
        }
        _ => return Err("malformed hello".to_owned()),
    };
    note_flushed(node, &theirs).map_err(|refusal| refusal.to_string())?;
    let session = Session::new(node.cluster(), peer, theirs.boot_nonce, conn.clone());
    if !node.sessions.place(node.id(), &session) {
        return Err(REPLACED.to_owned());
    }
    // A denial may have come since the key was looked up.
    node.close_sessions_with_strangers();
    admitted.store(true, Ordering::Release);
    info!(%peer, "session open");
    Ok(())
}

/// Holds what a hello says is flushed against what was seen before. While a cluster is being founded there is nothing yet
/// that could go back: a founder that restarts says nothing before its log is open.
fn note_flushed(node: &Node, hello: &Hello) -> Result<(), Refusal> {
    if node.phase() == Phase::Joining {
        return Ok(());
    }
    node.sessions.note_flushed(hello).inspect_err(|_| {
        let message = format!("the storage of {} went back in time", node.name_of(hello.node));
        node.alarm("storage_went_back", hello.node, message);
    })
}
