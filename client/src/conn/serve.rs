//! The answering side: streams that the peer opens, and the requests on them.
//!
//! ```text
//! lane:  01 | lane u8 | frames                                   answers come back as frames
//! bulk:  02 | 00 | len u32 header | (len u32 chunk)* | 00000000  one answer comes back: len u32 | body
//! ```

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;
use tokio::task::AbortHandle;

use super::bulk::BulkReceiver;
use super::outbox::Outbox;
use super::{BoxFuture, Conn, Handler, IN_FLIGHT_MAX, Lane, Reply, close};
use crate::frame::{self, Kind};

/// First byte of a lane.
pub(super) const LANE: u8 = 1;
/// First byte of a bulk transfer.
pub(super) const BULK: u8 = 2;

/// Takes every stream that the peer opens, until the connection ends.
pub(super) async fn accept(conn: Conn, handler: Arc<dyn Handler>) {
    let lanes_open = Arc::new(AtomicU8::new(0));
    while let Ok((send, receive)) = conn.quic().accept_bi().await {
        tokio::spawn(serve(conn.clone(), handler.clone(), lanes_open.clone(), send, receive));
    }
}

async fn serve(
    conn: Conn,
    handler: Arc<dyn Handler>,
    lanes_open: Arc<AtomicU8>,
    send: quinn::SendStream,
    mut receive: quinn::RecvStream,
) {
    let mut preamble = [0; 2];
    if receive.read_exact(&mut preamble).await.is_err() {
        return;
    }
    match (preamble[0], Lane::numbered(preamble[1])) {
        (LANE, Some(lane)) if lanes_open.fetch_or(1 << preamble[1], Ordering::Relaxed) & (1 << preamble[1]) == 0 => {
            serve_lane(conn, handler, lane, send, receive).await;
        }
        (LANE, Some(_)) => conn.close(close::PROTOCOL, "a second stream for one lane"),
        (BULK, _) => {
            if let Ok(bulk) = BulkReceiver::begin(send, receive).await {
                handler.bulk(&conn, bulk).await;
            }
        }
        _ => conn.close(close::PROTOCOL, "an unknown kind of stream"),
    }
}

async fn serve_lane(
    conn: Conn,
    handler: Arc<dyn Handler>,
    lane: Lane,
    send: quinn::SendStream,
    receive: quinn::RecvStream,
) {
    // Fails only for a stream that is closed already.
    let _ = send.set_priority(lane.priority());
    let work = Arc::new(Work { outbox: Arc::new(Outbox::beginning_with(&[])), running: Mutex::default() });
    tokio::spawn(work.outbox.clone().run(send));
    // However this function ends, by a panic of the handler too, the peer's callers must not wait in vain.
    let end = End { conn: conn.clone(), work: work.clone() };
    let mut reader = frame::Reader::new(receive);
    let mut staged = false;
    loop {
        // A peer that keeps the lane full must not keep the thread to itself.
        tokio::task::coop::consume_budget().await;
        // Whatever has arrived is answered first: the answers share a write, and packets.
        if staged && !reader.has_frame() {
            work.outbox.flush();
            staged = false;
        }
        let frame = match reader.next().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return,
            Err(error) => return end.conn.close(close::PROTOCOL, &error.to_string()),
        };
        let (id, sent) = match frame.kind {
            Kind::Cancel => {
                if let Some(running) = work.running.lock().remove(&frame.id) {
                    running.abort();
                }
                continue;
            }
            Kind::Request if work.running.lock().len() >= IN_FLIGHT_MAX => {
                (frame.id, work.outbox.push(Kind::Busy, frame.id, &[]).await)
            }
            Kind::Request => match handler.handle(&conn, frame.body) {
                Reply::Inline(answer) => {
                    staged = true;
                    (frame.id, work.stage(frame.id, &answer).await)
                }
                Reply::Later(answer) => (frame.id, work.start(frame.id, answer)),
            },
            _ => return end.conn.close(close::PROTOCOL, "an answer among requests"),
        };
        if sent.is_err() {
            return end.conn.close(close::PROTOCOL, &format!("request {id} cannot be answered"));
        }
    }
}

/// The requests of one lane that take a while.
struct Work {
    outbox: Arc<Outbox>,
    running: Mutex<HashMap<u64, AbortHandle>>,
}

impl Work {
    /// Queues an answer, to leave with the next ones or with [`Outbox::flush`].
    async fn stage(&self, id: u64, answer: &[u8]) -> Result<(), ()> {
        if answer.len() > frame::BODY_BYTES_MAX {
            return self.outbox.stage(Kind::Failed, id, &[]).await;
        }
        self.outbox.stage(Kind::Response, id, answer).await
    }

    /// An error if the peer uses the number of a request that is still running.
    fn start(self: &Arc<Self>, id: u64, answer: BoxFuture<Vec<u8>>) -> Result<(), ()> {
        let mut running = self.running.lock();
        if running.contains_key(&id) {
            return Err(());
        }
        // The task can end only after this lock is released, so its entry is there when it removes it.
        let task = tokio::spawn(Promise { work: self.clone(), id, kept: false }.keep(answer));
        running.insert(id, task.abort_handle());
        Ok(())
    }
}

/// An answer that is owed. Given up, by a panic or because nobody waits, the peer is told so.
struct Promise {
    work: Arc<Work>,
    id: u64,
    kept: bool,
}

impl Promise {
    async fn keep(mut self, answer: BoxFuture<Vec<u8>>) {
        let answer = answer.await;
        self.kept = self.work.stage(self.id, &answer).await.is_ok();
        self.work.outbox.flush();
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let waited_for = self.work.running.lock().remove(&self.id).is_some();
        if waited_for && !self.kept {
            self.work.outbox.push_now(Kind::Failed, self.id, &[]);
        }
    }
}

/// The end of a lane is the end of its connection and of what runs for it.
struct End {
    conn: Conn,
    work: Arc<Work>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.conn.close(close::PROTOCOL, "a lane ended");
        self.work.outbox.stop();
        let running = std::mem::take(&mut *self.work.running.lock());
        running.into_values().for_each(|task| task.abort());
    }
}
