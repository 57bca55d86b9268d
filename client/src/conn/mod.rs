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
//! Either side may send requests. The [`Handler`] of a side answers those of the other. Requests share a few long-lived
//! bidirectional streams, the [`Lane`]s, and are distinguished by an id. All frames that wait leave in one write, which
//! is many times cheaper than a stream per request. Lanes do not block each other, so a lane full of log entries does
//! not delay a heartbeat. A body that is too large for a frame gets a stream of its own ([`Conn::open_bulk`]).
//!
//! A connection stays open until one side closes it or becomes silent. Then every call in flight ends with
//! [`CallError::Closed`]. If a peer does not read, callers wait, at most until their deadline.
//!
//! The work for one request is marked ([`is_answering`]): if it panics, the peer is told that its request failed.
//!
//! This module does *not* retry, choose a node, or decide what a peer may do. It does not wipe the buffers of messages
//! in transit; QUIC does not wipe its own either.

mod answering;
mod bulk;
mod gaps;
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

pub use answering::{answering, answering_async, is_answering};
pub use bulk::{BULK_CHUNK_BYTES_MAX, BULK_HEADER_BYTES_MAX, BulkError, BulkReceiver, BulkSender};

pub use crate::frame::{IN_FLIGHT_MAX, Limits};

use crate::frame::{self, BODY_BYTES_MAX, FrameKind, UNSENT_BYTES_MAX};
use crate::identity::{Protocol, PublicKey, peer_key};
use outbox::Outbox;

/// Codes with which a connection is closed. Each comes with a reason for people.
pub mod close {
    /// The side that closes needs the connection no longer.
    pub const DONE: u32 = 0;
    /// The other side violated the protocol.
    pub const PROTOCOL: u32 = 1;
    /// The peer is refused now and may try again.
    pub const DENIED: u32 = 2;
    /// The peer is refused for ever.
    pub const REVOKED: u32 = 3;
    /// A newer connection of the same two nodes replaces this one.
    pub const REPLACED: u32 = 4;
    /// The process of the side that closes ends.
    pub const SHUTDOWN: u32 = 5;
    /// The storage of the peer is older than the peer reported before.
    pub const STALE: u32 = 6;
}

/// One of the independent streams of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Lane {
    /// Short and urgent: heartbeats, votes, leases, pings. It is sent before the others.
    Urgent = 0,
    /// Ordinary requests.
    Ordinary = 1,
    /// Large bodies that can wait: entries of the log.
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

/// A future on the heap, which a [`Handler`] returns.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Answers the requests that arrive at one side of a connection.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request. It runs on the task that reads the lane, so work that waits must go into [`Reply::Later`].
    fn handle(&self, conn: &Conn, body: Bytes) -> Reply;

    /// Limits on what the other side may send. [`Limits::patience`] also limits how long the other side may leave
    /// answers unread, and how long its bytes wait behind a gap in a stream. The default is what the protocol allows, without a limit on time.
    fn limits(&self) -> Limits {
        Limits::default()
    }

    /// Receives one bulk transfer. The default refuses it. With [`Limits::patience`] it is not asked: the first bulk transfer closes
    /// the connection, since it has no limit on its time.
    fn bulk(&self, conn: &Conn, bulk: BulkReceiver) -> BoxFuture<()> {
        let _ = (conn, bulk);
        Box::pin(std::future::ready(()))
    }
}

/// How a request is answered.
pub enum Reply {
    /// The answer itself. Fit for work in memory, since it saves the cost of a task.
    Inline(Vec<u8>),
    /// A future that gives the answer. It is dropped when the asker no longer waits or the connection ends, so work
    /// that must finish runs on a task of its own.
    Later(BoxFuture<Vec<u8>>),
}

impl Reply {
    /// An answer that `answer` gives later.
    pub fn later(answer: impl Future<Output = Vec<u8>> + Send + 'static) -> Self {
        Self::Later(Box::pin(answer))
    }
}

/// The other side of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerInfo {
    /// The public key that it proved.
    pub key: PublicKey,
    /// The purpose of the connection.
    pub protocol: Protocol,
    /// Its address when the connection was established.
    pub remote: SocketAddr,
    /// Whether this side opened the connection.
    pub dialled: bool,
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// The code that the peer gave (see [`close`]); `None` if it gave none.
    pub code: Option<u32>,
    /// The reason for people, in one line.
    pub reason: String,
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// Longest reason of a peer for the end of a connection.
const REASON_LETTERS_MAX: usize = 200;

/// What a peer says, for people. It is cut, so that it does not fill a log.
pub(crate) fn reason(text: &str) -> String {
    crate::error::printable(text).chars().take(REASON_LETTERS_MAX).collect()
}

impl From<quinn::ConnectionError> for Closed {
    fn from(error: quinn::ConnectionError) -> Self {
        match error {
            quinn::ConnectionError::ApplicationClosed(frame) => {
                let reason = reason(&String::from_utf8_lossy(&frame.reason));
                Self { code: u32::try_from(frame.error_code.into_inner()).ok(), reason }
            }
            quinn::ConnectionError::LocallyClosed => Self { code: None, reason: "closed by this side".to_owned() },
            quinn::ConnectionError::TimedOut => Self { code: None, reason: "the peer fell silent".to_owned() },
            // It has the reason of the peer's QUIC in it.
            other => Self { code: None, reason: reason(&other.to_string()) },
        }
    }
}

/// Why a call got no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// [`IN_FLIGHT_MAX`] requests are in flight, as this side or the peer counts them.
    #[error("too many requests in flight")]
    Busy,
    /// The deadline passed.
    #[error("no answer in time")]
    Deadline,
    /// The body is longer than [`BODY_BYTES_MAX`].
    #[error("message larger than {BODY_BYTES_MAX} bytes")]
    TooLarge,
    /// The peer began the request and ended it without an answer.
    #[error("the peer failed to answer")]
    Failed,
    /// The connection ended.
    #[error("connection lost: {0}")]
    Closed(Closed),
}

/// One connection. A clone is the same connection.
#[derive(Clone)]
pub struct Conn(Arc<Shared>);

struct Shared {
    connection: quinn::Connection,
    peer: PeerInfo,
    lanes: [OnceCell<Arc<CallLane>>; Lane::COUNT],
    next_id: AtomicU64,
}

impl Conn {
    /// Runs the protocol on an established connection. `handler` answers the requests of the peer; without one, no
    /// request is answered.
    ///
    /// It must be called within a tokio runtime.
    pub fn start(connection: quinn::Connection, handler: Option<Arc<dyn Handler>>) -> Self {
        let (key, protocol) = (peer_key(&connection), Protocol::of(&connection));
        if key.is_none() || protocol.is_none() {
            // Every handshake that `identity` configures has both. A connection without them is a violation.
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
            let patience = handler.limits().patience;
            serve::spawn(patience, serve::accept(conn.clone(), handler));
        }
        conn
    }

    /// Sends a request and waits for the answer, at most for `deadline`.
    ///
    /// # Errors
    /// [`CallError`]. After [`CallError::Deadline`] and [`CallError::Closed`], the peer may or may not have done the
    /// work.
    pub async fn call(&self, lane: Lane, body: &[u8], deadline: Duration) -> Result<Bytes, CallError> {
        tokio::time::timeout(deadline, self.ask(lane, body)).await.unwrap_or(Err(CallError::Deadline))
    }

    /// Sends a request and waits for the answer without a limit. If the future is dropped, the peer is told to stop.
    ///
    /// # Errors
    /// As [`Conn::call`], except [`CallError::Deadline`].
    pub async fn ask(&self, lane: Lane, body: &[u8]) -> Result<Bytes, CallError> {
        if body.len() > BODY_BYTES_MAX {
            return Err(CallError::TooLarge);
        }
        let calls = self.0.lanes[lane as usize].get_or_try_init(|| CallLane::open(self, lane)).await?;
        let id = self.0.next_id.fetch_add(1, Ordering::Relaxed);
        let (answer, wait) = oneshot::channel();
        calls.expect(id, answer)?;
        let mut waiting = WaitingCall { calls, id, sent: false };
        calls.outbox.push(FrameKind::Request, id, body).await.map_err(|()| self.lost())?;
        waiting.sent = true;
        wait.await.unwrap_or_else(|_| Err(self.lost()))
    }

    /// Opens a stream of its own for a body that is too large for a frame.
    ///
    /// # Errors
    /// [`BulkError`], also for a header above [`BULK_HEADER_BYTES_MAX`].
    pub async fn open_bulk(&self, header: &[u8]) -> Result<BulkSender, BulkError> {
        BulkSender::open(&self.0.connection, header).await
    }

    /// The other side of the connection.
    pub fn peer(&self) -> &PeerInfo {
        &self.0.peer
    }

    /// Derives a key that only the two ends of this connection share (TLS exporter, RFC 8446 section 7.5).
    pub fn export(&self, label: &[u8], context: &[u8]) -> Secret<32> {
        let mut key = Secret::zero();
        self.0
            .connection
            .export_keying_material(key.expose_mut(), label, context)
            .expect("32 bytes are fewer than an exporter gives");
        key
    }

    /// Closes the connection with a code of [`close`] and a reason for people. Calls in flight end with an error on
    /// both sides.
    pub fn close(&self, code: u32, reason: &str) {
        // QUIC would overwrite the reason of an earlier close, which callers may still read.
        if self.0.connection.close_reason().is_none() {
            self.0.connection.close(code.into(), reason.as_bytes());
        }
    }

    /// Waits until the connection ends, and says how it ended.
    pub async fn closed(&self) -> Closed {
        self.0.connection.closed().await.into()
    }

    /// Whether the connection has not ended.
    pub fn is_open(&self) -> bool {
        self.0.connection.close_reason().is_none()
    }

    /// Whether both are the same connection.
    pub fn same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The underlying QUIC connection.
    pub fn quic(&self) -> &quinn::Connection {
        &self.0.connection
    }

    /// The error of a call that found the connection ended.
    fn lost(&self) -> CallError {
        let ended = self.0.connection.close_reason().map(Closed::from);
        CallError::Closed(ended.unwrap_or_else(|| Closed { code: None, reason: "the stream ended".to_owned() }))
    }
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Conn").field(&self.0.peer).finish()
    }
}

/// The asking side of one lane. The first request opens it; it ends with the connection.
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
        // Fails only if the stream is closed already, which the first write reports.
        let _ = send.set_priority(lane.priority());
        let outbox = Arc::new(Outbox::beginning_with(&[serve::LANE, lane as u8], UNSENT_BYTES_MAX));
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
        // After the end of the lane no answer comes; the caller learns it from the dropped sender.
        if !pending.ended {
            pending.calls.insert(id, answer);
        }
        Ok(())
    }

    /// Passes answers to the callers that wait for them. When the lane ends, it tells those that are left.
    async fn collect(self: Arc<Self>, conn: Conn, receive: quinn::RecvStream) {
        let mut reader = frame::FrameReader::new(receive);
        let reason = loop {
            match reader.next().await {
                Ok(Some(frame)) => {
                    let answer = match frame.kind {
                        FrameKind::Response => Ok(frame.body),
                        FrameKind::Busy => Err(CallError::Busy),
                        FrameKind::Failed => Err(CallError::Failed),
                        FrameKind::Request | FrameKind::Cancel | FrameKind::Progress => {
                            break "a request among answers".to_owned();
                        }
                    };
                    // A call that was cancelled waits for no answer.
                    if let Some(caller) = self.pending.lock().calls.remove(&frame.id) {
                        let _ = caller.send(answer);
                    }
                }
                Ok(None) => break "a lane ended".to_owned(),
                Err(error) => break error.to_string(),
            }
        };
        // A connection is useless without one of its lanes. To close a closed connection changes nothing.
        conn.close(close::PROTOCOL, &reason);
        self.outbox.stop();
        let mut pending = self.pending.lock();
        pending.ended = true;
        for (_, caller) in pending.calls.drain() {
            let _ = caller.send(Err(conn.lost()));
        }
    }
}

/// A call that waits for an answer. If it is dropped before, the peer is told to stop.
struct WaitingCall<'a> {
    calls: &'a CallLane,
    id: u64,
    sent: bool,
}

impl Drop for WaitingCall<'_> {
    fn drop(&mut self) {
        let waiting = self.calls.pending.lock().calls.remove(&self.id).is_some();
        if waiting && self.sent {
            self.calls.outbox.push_now(FrameKind::Cancel, self.id, &[]);
        }
    }
}
