//! The answering side of a connection: the streams that the peer opens, and the requests on them.
//!
//! ```text
//! lane:  01 | lane u8 | frames                                   answers come back as frames
//! bulk:  02 | 00 | len u32 header | (len u32 chunk)* | 00000000  one answer comes back: len u32 | body
//! ```

use std::collections::HashMap;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::answering::{answering, answering_async};
use super::bulk::BulkReceiver;
use super::gaps::{HeldBack, InOrder, QuicChunks};
use super::outbox::Outbox;
use super::{BoxFuture, Conn, Handler, Lane, Reply, close};
use crate::frame::{self, FrameError, FrameKind};

/// Reasons to close the connection of a peer that is too slow, or may not do what it does.
const SLOW: &str = "the rest of a message did not arrive in time";
const UNREAD: &str = "answers are not read";
const NO_BULK: &str = "no bulk transfer is taken here";

/// Bytes that say what a stream is.
const PREAMBLE_BYTES: usize = 2;
/// First byte of a lane.
pub(super) const LANE: u8 = 1;
/// First byte of a bulk transfer.
pub(super) const BULK: u8 = 2;

/// Accepts every stream that the peer opens, until the connection ends.
pub(super) async fn accept(conn: Conn, handler: Arc<dyn Handler>) {
    let (lanes_open, held) = (Arc::new(AtomicU8::new(0)), HeldBack::new(conn.quic().clone()));
    while let Ok((send, receive)) = conn.quic().accept_bi().await {
        let work = serve(conn.clone(), handler.clone(), lanes_open.clone(), held.clone(), send, receive);
        spawn(handler.limits().patience, work);
    }
}

/// Runs the work for a connection. It ends with the connection, so no other task waits for its end; a panic is reported by the
/// panic hook. If the peer is not trusted, which is why it has a limit on time, a panic costs its connection.
pub(super) fn spawn(patience: Option<Duration>, work: impl Future<Output = ()> + Send + 'static) {
    if patience.is_some() {
        tokio::spawn(answering_async(work));
    } else {
        tokio::spawn(work);
    }
}

async fn serve(
    conn: Conn,
    handler: Arc<dyn Handler>,
    lanes_open: Arc<AtomicU8>,
    held: Arc<HeldBack>,
    send: quinn::SendStream,
    mut receive: quinn::RecvStream,
) {
    let Some(patience) = handler.limits().patience else {
        let Ok(preamble) = read_preamble(&mut receive).await else { return };
        match begin(&lanes_open, preamble) {
            Ok(Begun::Lane(lane)) => serve_lane(conn, handler, lane, send, receive).await,
            Ok(Begun::Bulk) => {
                if let Ok(bulk) = BulkReceiver::begin(send, receive).await {
                    answering_async(handler.bulk(&conn, bulk)).await;
                }
            }
            Err(reason) => conn.close(close::PROTOCOL, reason),
        }
        return;
    };
    let mut receive = InOrder::new(QuicChunks { stream: receive, held }, patience);
    let preamble = match timeout(patience, read_preamble(&mut receive)).await {
        Ok(Ok(preamble)) => preamble,
        Ok(Err(error)) if error.kind() != ErrorKind::TimedOut => return,
        Ok(Err(_)) | Err(_) => return conn.close(close::DENIED, SLOW),
    };
    match begin(&lanes_open, preamble) {
        Ok(Begun::Lane(lane)) => serve_lane(conn, handler, lane, send, receive).await,
        // A bulk transfer would have no limit on its time.
        Ok(Begun::Bulk) => conn.close(close::PROTOCOL, NO_BULK),
        Err(reason) => conn.close(close::PROTOCOL, reason),
    }
}

/// What a stream is.
enum Begun {
    Lane(Lane),
    Bulk,
}

/// What the stream is that begins with `preamble`, or why it closes the connection.
fn begin(lanes_open: &AtomicU8, preamble: [u8; PREAMBLE_BYTES]) -> Result<Begun, &'static str> {
    match (preamble[0], Lane::numbered(preamble[1])) {
        (LANE, Some(lane)) => {
            let mark = 1 << lane as u8;
            let is_open = lanes_open.fetch_or(mark, Ordering::Relaxed) & mark != 0;
            if is_open { Err("a second stream for one lane") } else { Ok(Begun::Lane(lane)) }
        }
        (BULK, _) => Ok(Begun::Bulk),
        _ => Err("an unknown kind of stream"),
    }
}

async fn read_preamble(receive: &mut (impl AsyncRead + Unpin)) -> io::Result<[u8; PREAMBLE_BYTES]> {
    let mut preamble = [0; PREAMBLE_BYTES];
    receive.read_exact(&mut preamble).await?;
    Ok(preamble)
}

async fn serve_lane(
    conn: Conn,
    handler: Arc<dyn Handler>,
    lane: Lane,
    send: quinn::SendStream,
    receive: impl AsyncRead + Unpin,
) {
    // Fails only if the stream is closed already.
    let _ = send.set_priority(lane.priority());
    let mut limits = handler.limits();
    if lane != Lane::Ordinary {
        limits.frame_bytes = limits.other_lanes_bytes;
    }
    let outbox = Arc::new(Outbox::beginning_with(&[], limits.unsent_bytes));
    let work = Arc::new(Work { conn: conn.clone(), patience: limits.patience, outbox, running: Mutex::default() });
    spawn(limits.patience, work.outbox.clone().run(send));
    // If this function ends in any way, the callers at the peer must learn it.
    let end = LaneEnd { conn: conn.clone(), work: work.clone() };
    let mut reader = frame::FrameReader::limited(receive, limits);
    let mut staged = false;
    loop {
        // A peer that keeps the lane full must not occupy the thread alone.
        tokio::task::coop::consume_budget().await;
        // All requests that have arrived are answered first, so that the answers share a write and packets.
        if staged && !reader.has_frame() {
            work.outbox.flush();
            staged = false;
        }
        let frame = match reader.next().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return,
            Err(FrameError::Slow) => return end.conn.close(close::DENIED, SLOW),
            Err(error) => return end.conn.close(close::PROTOCOL, &error.to_string()),
        };
        let (id, sent) = match frame.kind {
            FrameKind::Cancel => {
                if let Some(running) = work.running.lock().remove(&frame.id) {
                    running.abort();
                }
                continue;
            }
            FrameKind::Request if work.running.lock().len() >= limits.in_flight => {
                (frame.id, work.push(FrameKind::Busy, frame.id, &[]).await)
            }
            FrameKind::Request => {
                match catch_unwind(AssertUnwindSafe(|| answering(|| handler.handle(&conn, frame.body)))) {
                    // The panic hook has reported it.
                    Err(_) => (frame.id, work.push(FrameKind::Failed, frame.id, &[]).await),
                    Ok(Reply::Inline(answer)) => {
                        staged = true;
                        (frame.id, work.stage(frame.id, &answer).await)
                    }
                    Ok(Reply::Later(answer)) => (frame.id, work.start(frame.id, answer)),
                }
            }
            _ => return end.conn.close(close::PROTOCOL, "an answer among requests"),
        };
        if sent.is_err() {
            return end.conn.close(close::PROTOCOL, &format!("request {id} cannot be answered"));
        }
    }
}

/// The requests of one lane that are not answered yet.
struct Work {
    conn: Conn,
    patience: Option<Duration>,
    outbox: Arc<Outbox>,
    running: Mutex<HashMap<u64, AbortHandle>>,
}

impl Work {
    /// Queues an answer. It leaves with the next ones or with [`Outbox::flush`].
    async fn stage(&self, id: u64, answer: &[u8]) -> Result<(), ()> {
        if answer.len() > frame::BODY_BYTES_MAX {
            return self.bounded(self.outbox.stage(FrameKind::Failed, id, &[])).await;
        }
        self.bounded(self.outbox.stage(FrameKind::Response, id, answer)).await
    }

    async fn push(&self, kind: FrameKind, id: u64, body: &[u8]) -> Result<(), ()> {
        self.bounded(self.outbox.push(kind, id, body)).await
    }

    /// Waits while too much is unsent. If the peer does not read for too long, it closes the connection.
    async fn bounded(&self, queued: impl Future<Output = Result<(), ()>>) -> Result<(), ()> {
        within(self.patience, queued).await.unwrap_or_else(|| {
            self.conn.close(close::DENIED, UNREAD);
            Err(())
        })
    }

    /// Starts a task for an answer. An error if the peer reuses the id of a request that still runs.
    fn start(self: &Arc<Self>, id: u64, answer: BoxFuture<Vec<u8>>) -> Result<(), ()> {
        let mut running = self.running.lock();
        if running.contains_key(&id) {
            return Err(());
        }
        // The task removes its entry at its end. The lock makes it wait until the entry is there.
        let task = tokio::spawn(OwedAnswer { work: self.clone(), id, sent: false }.send(answer));
        running.insert(id, task.abort_handle());
        Ok(())
    }
}

/// An answer that this side owes to the peer. If it is dropped unsent, for example by a panic, the peer is told.
struct OwedAnswer {
    work: Arc<Work>,
    id: u64,
    sent: bool,
}

impl OwedAnswer {
    async fn send(mut self, answer: BoxFuture<Vec<u8>>) {
        let answer = answering_async(answer).await;
        self.sent = self.work.stage(self.id, &answer).await.is_ok();
        self.work.outbox.flush();
    }
}

impl Drop for OwedAnswer {
    fn drop(&mut self) {
        let waited_for = self.work.running.lock().remove(&self.id).is_some();
        if waited_for && !self.sent {
            self.work.outbox.push_now(FrameKind::Failed, self.id, &[]);
        }
    }
}

/// Closes the connection and stops the work of a lane when the lane ends.
struct LaneEnd {
    conn: Conn,
    work: Arc<Work>,
}

impl Drop for LaneEnd {
    fn drop(&mut self) {
        self.conn.close(close::PROTOCOL, "a lane ended");
        self.work.outbox.stop();
        let running = std::mem::take(&mut *self.work.running.lock());
        running.into_values().for_each(|task| task.abort());
    }
}

/// The result of `work`; `None` if `patience` is over before. Work that is ready at once costs no look at the clock.
async fn within<T>(patience: Option<Duration>, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    let first = poll_fn(|context| Poll::Ready(work.as_mut().poll(context))).await;
    match (first, patience) {
        (Poll::Ready(done), _) => Some(done),
        (Poll::Pending, None) => Some(work.await),
        (Poll::Pending, Some(patience)) => timeout(patience, work).await.ok(),
    }
}
