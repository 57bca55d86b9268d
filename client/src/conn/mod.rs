//! Connections: framed requests in both directions over one pinned QUIC connection.
//!
//! ```no_run
//! # async fn example(connection: quinn::Connection) -> Result<(), quorate_client::conn::CallError> {
//! use std::time::Duration;
//! use quorate_client::conn::{Conn, Lane};
//!
//! let conn = Conn::start(connection, None);
//! let answer = conn.call(Lane::Ordinary, b"question", Duration::from_secs(1)).await?;
//! # Ok(()) }
//! ```
//!
//! Either side may ask; what a side answers is its [`Handler`]. Requests share a few long-lived bidirectional streams, the
//! [`Lane`]s, told apart by an id, and whatever is waiting to be sent leaves in one write: many times cheaper than a stream
//! per request. Lanes do not hold each other up, so a lane full of log entries does not delay a heartbeat. Bodies too large
//! for a frame get a stream of their own ([`Conn::open_bulk`]).
//!
//! A connection stays open until one side closes it or falls silent; then every call in flight ends with
//! [`CallError::Closed`]. A peer that does not read stops being written to: callers wait, at most for their deadline.
//! What is *not* done here: retries, choice of a node, and any judgement of who the peer is. Buffers under way are not
//! wiped; those of QUIC are not either.

mod bulk;
mod outbox;
mod serve;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_shares::secret::Secret;
use tokio::sync::{OnceCell, oneshot};

pub use bulk::{BULK_CHUNK_BYTES_MAX, BULK_HEADER_BYTES_MAX, BulkError, BulkReceiver, BulkSender};

pub use crate::frame::Limits;

use crate::frame::{self, BODY_BYTES_MAX, Kind};
use crate::identity::{Protocol, PublicKey, peer_key};
use outbox::Outbox;

/// Requests in flight on one lane of a connection, counted by the asker and by the answerer; the next is refused as busy.
pub const IN_FLIGHT_MAX: usize = 1024;

/// Codes that end a connection; the reason beside them is for people.
pub mod close {
    /// Nothing more to say.
    pub const DONE: u32 = 0;
    /// The other side broke the protocol.
    pub const PROTOCOL: u32 = 1;
    /// Refused for now: the peer may try again.
    pub const DENIED: u32 = 2;
    /// Refused for ever.
    pub const REVOKED: u32 = 3;
    /// Another connection of the same pair took over.
    pub const REPLACED: u32 = 4;
    /// The process ends.
    pub const SHUTDOWN: u32 = 5;
    /// The peer's storage is older than what it reported before.
    pub const STALE: u32 = 6;
}

/// Independent streams of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Lane {
    /// Short and urgent: heartbeats, votes, leases, pings. Leaves before the others.
    Urgent = 0,
    /// Ordinary requests.
    Ordinary = 1,
    /// Large bodies that may wait: entries of the log.
    Heavy = 2,
}

impl Lane {
    const COUNT: usize = 3;

    fn numbered(number: u8) -> Option<Self> {
        [Self::Urgent, Self::Ordinary, Self::Heavy].into_iter().find(|lane| *lane as u8 == number)
    }

    /// QUIC sends streams of a higher priority first.
    fn priority(self) -> i32 {
        if self == Self::Urgent { 1 } else { 0 }
    }
}

/// A future on the heap, as a [`Handler`] returns it.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What one side of a connection answers.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request. Runs on the task that reads the lane: whatever waits belongs into [`Reply::Later`].
    fn handle(&self, conn: &Conn, body: Bytes) -> Reply;

    /// What is put up with from the other side. Its patience also ends when nobody reads the answers. Unless overridden,
    /// whatever the protocol allows, for ever.
    fn limits(&self) -> Limits {
        Limits::default()
    }

    /// Takes one bulk transfer. Unless overridden it is refused.
    fn bulk(&self, conn: &Conn, bulk: BulkReceiver) -> BoxFuture<()> {
        let _ = (conn, bulk);
        Box::pin(std::future::ready(()))
    }
}

/// How a request is answered.
pub enum Reply {
    /// Here is the answer: for work in memory, without the cost of a task.
    Inline(Vec<u8>),
    /// It takes a while. The future is dropped when the asker no longer waits or the connection ends, so work that must
    /// finish runs on a task of its own.
    Later(BoxFuture<Vec<u8>>),
}

impl Reply {
    /// An answer that takes a while.
    pub fn later(answer: impl Future<Output = Vec<u8>> + Send + 'static) -> Self {
        Self::Later(Box::pin(answer))
    }
}

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerInfo {
    /// The key that it proved.
    pub key: PublicKey,
    /// What the connection is for.
    pub protocol: Protocol,
    /// Its address when the connection was made.
    pub remote: SocketAddr,
    /// Whether this side opened the connection.
    pub dialled: bool,
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// The code that the peer gave ([`close`]); `None` if it gave none.
    pub code: Option<u32>,
    /// For people, one line.
    pub reason: String,
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl From<quinn::ConnectionError> for Closed {
    fn from(error: quinn::ConnectionError) -> Self {
        match error {
            quinn::ConnectionError::ApplicationClosed(frame) => {
                // The peer chose these bytes: nothing of them may steer a terminal or fill a log.
                let text = String::from_utf8_lossy(&frame.reason);
                let reason = text.chars().filter(|c| !c.is_control()).take(200).collect();
                Self { code: u32::try_from(frame.error_code.into_inner()).ok(), reason }
            }
            quinn::ConnectionError::LocallyClosed => Self { code: None, reason: "closed by this side".to_owned() },
            quinn::ConnectionError::TimedOut => Self { code: None, reason: "the peer fell silent".to_owned() },
            other => Self { code: None, reason: other.to_string() },
        }
    }
}

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// [`IN_FLIGHT_MAX`] requests are in flight, counted here or there.
    #[error("too many requests in flight")]
    Busy,
    /// The time was up.
    #[error("no answer in time")]
    Deadline,
    /// The body is larger than a frame takes.
    #[error("message larger than {BODY_BYTES_MAX} bytes")]
    TooLarge,
    /// The peer gave up without an answer.
    #[error("the peer failed to answer")]
    Failed,
    /// The connection ended.
    #[error("connection lost: {0}")]
    Closed(Closed),
}

/// One connection. Clones are the same connection.
#[derive(Clone)]
pub struct Conn(Arc<Shared>);

struct Shared {
    connection: quinn::Connection,
    peer: PeerInfo,
    lanes: [OnceCell<Arc<CallLane>>; Lane::COUNT],
    next_id: AtomicU64,
}

impl Conn {
    /// Runs the protocol on an established connection, answering with `handler`; without one nothing is answered.
    ///
    /// Must be called within a tokio runtime.
    pub fn start(connection: quinn::Connection, handler: Option<Arc<dyn Handler>>) -> Self {
        let (key, protocol) = (peer_key(&connection), Protocol::of(&connection));
        if key.is_none() || protocol.is_none() {
            // Both are part of every handshake that `identity` configures; one that lacks them is not for us.
            connection.close(close::PROTOCOL.into(), b"no identity");
        }
        let peer = PeerInfo {
            key: key.unwrap_or(PublicKey([0; 32])),
            protocol: protocol.unwrap_or(Protocol::Boot),
            remote: connection.remote_address(),
            dialled: connection.side() == quinn::Side::Client,
        };
        let conn = Self(Arc::new(Shared { connection, peer, lanes: Default::default(), next_id: AtomicU64::new(1) }));
        if let Some(handler) = handler {
            tokio::spawn(serve::accept(conn.clone(), handler));
        }
        conn
    }

    /// Asks, and waits for the answer at most for `deadline`.
    ///
    /// # Errors
    /// [`CallError`]. After [`CallError::Deadline`] and [`CallError::Closed`] the peer may have done the work or not.
    pub async fn call(&self, lane: Lane, body: &[u8], deadline: Duration) -> Result<Bytes, CallError> {
        tokio::time::timeout(deadline, self.ask(lane, body)).await.unwrap_or(Err(CallError::Deadline))
    }

    /// Asks, and waits as long as the caller does. Dropping the future tells the peer to give up.
    ///
    /// # Errors
    /// As [`Conn::call`], but for [`CallError::Deadline`].
    pub async fn ask(&self, lane: Lane, body: &[u8]) -> Result<Bytes, CallError> {
        if body.len() > BODY_BYTES_MAX {
            return Err(CallError::TooLarge);
        }
        let calls = self.0.lanes[lane as usize].get_or_try_init(|| CallLane::open(self, lane)).await?;
        let id = self.0.next_id.fetch_add(1, Ordering::Relaxed);
        let (answer, wait) = oneshot::channel();
        calls.expect(id, answer)?;
        let mut interest = Interest { calls, id, sent: false };
        calls.outbox.push(Kind::Request, id, body).await.map_err(|()| self.lost())?;
        interest.sent = true;
        wait.await.unwrap_or_else(|_| Err(self.lost()))
    }

    /// Opens a stream of its own for a body that is larger than a frame.
    ///
    /// # Errors
    /// [`BulkError`].
    pub async fn open_bulk(&self, header: &[u8]) -> Result<BulkSender, BulkError> {
        BulkSender::open(&self.0.connection, header).await
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &PeerInfo {
        &self.0.peer
    }

    /// A key that both ends of this one connection share (RFC 8446 section 7.5).
    pub fn export(&self, label: &[u8], context: &[u8]) -> Secret<32> {
        let mut key = Secret::zero();
        self.0
            .connection
            .export_keying_material(key.expose_mut(), label, context)
            .expect("32 bytes are fewer than an exporter gives");
        key
    }

    /// Ends the connection: a code of [`close`] and a line for people. Calls in flight, on both sides, end with an error.
    pub fn close(&self, code: u32, reason: &str) {
        // QUIC would overwrite the reason of an earlier end, which callers still want to read.
        if self.0.connection.close_reason().is_none() {
            self.0.connection.close(code.into(), reason.as_bytes());
        }
    }

    /// Waits for the end.
    pub async fn closed(&self) -> Closed {
        self.0.connection.closed().await.into()
    }

    /// How the connection ended, if it has.
    pub fn is_closed(&self) -> Option<Closed> {
        self.0.connection.close_reason().map(Closed::from)
    }

    /// Whether both are the same connection.
    pub fn same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The connection underneath.
    pub fn quic(&self) -> &quinn::Connection {
        &self.0.connection
    }

    /// How the connection ended, as a call reports it.
    fn lost(&self) -> CallError {
        let unknown = || Closed { code: None, reason: "the stream ended".to_owned() };
        CallError::Closed(self.is_closed().unwrap_or_else(unknown))
    }
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Conn").field(&self.0.peer).finish()
    }
}

/// The asking side of one lane: opened with the first request, gone with the connection.
struct CallLane {
    outbox: Arc<Outbox>,
    pending: Mutex<Pending>,
}

#[derive(Default)]
struct Pending {
    calls: HashMap<u64, oneshot::Sender<Result<Bytes, CallError>>>,
    ended: bool,
}

impl CallLane {
    async fn open(conn: &Conn, lane: Lane) -> Result<Arc<Self>, CallError> {
        let opened = conn.0.connection.open_bi().await;
        let (send, receive) = opened.map_err(|error| CallError::Closed(error.into()))?;
        // Fails only for a stream that is closed already, which the first write reports.
        let _ = send.set_priority(lane.priority());
        let outbox = Arc::new(Outbox::beginning_with(&[serve::LANE, lane as u8]));
        let calls = Arc::new(Self { outbox: outbox.clone(), pending: Mutex::default() });
        tokio::spawn(outbox.run(send));
        tokio::spawn(calls.clone().collect(conn.clone(), receive));
        Ok(calls)
    }

    fn expect(&self, id: u64, answer: oneshot::Sender<Result<Bytes, CallError>>) -> Result<(), CallError> {
        let mut pending = self.pending.lock();
        if pending.calls.len() >= IN_FLIGHT_MAX {
            return Err(CallError::Busy);
        }
        // After the end nobody would answer; the dropped sender reports it.
        if !pending.ended {
            pending.calls.insert(id, answer);
        }
        Ok(())
    }

    /// Hands answers to those who wait, until the lane ends; then everybody left is told.
    async fn collect(self: Arc<Self>, conn: Conn, receive: quinn::RecvStream) {
        let mut reader = frame::Reader::new(receive);
        let reason = loop {
            match reader.next().await {
                Ok(Some(frame)) => {
                    let answer = match frame.kind {
                        Kind::Response => Ok(frame.body),
                        Kind::Busy => Err(CallError::Busy),
                        Kind::Failed => Err(CallError::Failed),
                        Kind::Request | Kind::Cancel | Kind::Progress => break "a request among answers".to_owned(),
                    };
                    // Nobody waits for an answer to a cancelled call.
                    if let Some(caller) = self.pending.lock().calls.remove(&frame.id) {
                        let _ = caller.send(answer);
                    }
                }
                Ok(None) => break "a lane ended".to_owned(),
                Err(error) => break error.to_string(),
            }
        };
        // Without one of its lanes a connection is of no use. Closing a closed one changes nothing.
        conn.close(close::PROTOCOL, &reason);
        self.outbox.stop();
        let mut pending = self.pending.lock();
        pending.ended = true;
        for (_, caller) in pending.calls.drain() {
            let _ = caller.send(Err(conn.lost()));
        }
    }
}

/// Somebody waits for an answer. When he no longer does, the peer is told.
struct Interest<'a> {
    calls: &'a CallLane,
    id: u64,
    sent: bool,
}

impl Drop for Interest<'_> {
    fn drop(&mut self) {
        let waiting = self.calls.pending.lock().calls.remove(&self.id).is_some();
        if waiting && self.sent {
            self.calls.outbox.push_now(Kind::Cancel, self.id, &[]);
        }
    }
}
