//! The outbox of one stream: a buffer that many tasks fill and one task writes, as a whole each time.

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::frame::{self, FrameKind};

/// Staged bytes that are written at once, although more may follow.
const FLUSH_BYTES: usize = 16 << 10;

pub(super) struct Outbox {
    waiting: Mutex<Waiting>,
    /// Unsent bytes above which a task with more frames waits.
    unsent_bytes_max: usize,
    filled: Notify,
    drained: Notify,
}

struct Waiting {
    buffer: BytesMut,
    stopped: bool,
}

impl Outbox {
    /// An outbox whose stream begins with `preamble`. Tasks wait while more than `unsent_bytes_max` are unsent.
    pub(super) fn beginning_with(preamble: &[u8], unsent_bytes_max: usize) -> Self {
        let waiting = Mutex::new(Waiting { buffer: preamble.into(), stopped: false });
        Self { waiting, unsent_bytes_max, filled: Notify::new(), drained: Notify::new() }
    }

    /// Queues a frame and sends it. It waits while too much is unsent. An error if the stream has ended or the frame is
    /// too large.
    pub(super) async fn push(&self, kind: FrameKind, id: u64, body: &[u8]) -> Result<(), ()> {
        let pushed = self.stage(kind, id, body).await;
        self.flush();
        pushed
    }

    /// As [`Outbox::push`], but the frame may wait until [`Outbox::flush`]: frames that leave together cost less.
    pub(super) async fn stage(&self, kind: FrameKind, id: u64, body: &[u8]) -> Result<(), ()> {
        if let Some(result) = self.offer(kind, id, body, self.unsent_bytes_max) {
            return result;
        }
        self.flush();
        loop {
            let drained = self.drained.notified();
            tokio::pin!(drained);
            // Registered before the second look, so that a drain between the two is not missed.
            drained.as_mut().enable();
            if let Some(result) = self.offer(kind, id, body, self.unsent_bytes_max) {
                return result;
            }
            drained.await;
        }
    }

    /// Queues a frame without waiting. Only for small frames whose number is bounded by the requests in flight.
    pub(super) fn push_now(&self, kind: FrameKind, id: u64, body: &[u8]) {
        // If the stream has ended, the frame has no receiver.
        let _ = self.offer(kind, id, body, usize::MAX);
        self.flush();
    }

    /// Sends all queued frames.
    pub(super) fn flush(&self) {
        self.filled.notify_one();
    }

    /// Ends the task that writes, and all that wait for room.
    pub(super) fn stop(&self) {
        let mut waiting = self.waiting.lock();
        waiting.stopped = true;
        waiting.buffer = BytesMut::new();
        drop(waiting);
        self.filled.notify_one();
        self.drained.notify_waiters();
    }

    /// Writes queued frames until the stream ends.
    pub(super) async fn run(self: std::sync::Arc<Self>, mut stream: quinn::SendStream) {
        loop {
            let Some(batch) = self.take() else { return };
            if batch.is_empty() {
                self.filled.notified().await;
                continue;
            }
            self.drained.notify_waiters();
            if stream.write_chunk(batch).await.is_err() {
                self.stop();
                return;
            }
        }
    }

    /// Queues a frame; `None` if `limit` bytes or more are unsent.
    fn offer(&self, kind: FrameKind, id: u64, body: &[u8], limit: usize) -> Option<Result<(), ()>> {
        let mut waiting = self.waiting.lock();
        if waiting.stopped {
            return Some(Err(()));
        }
        if waiting.buffer.len() >= limit {
            return None;
        }
        let queued = frame::encode(&mut waiting.buffer, kind, id, body).map_err(|_| ());
        let plenty = waiting.buffer.len() >= FLUSH_BYTES;
        drop(waiting);
        if plenty {
            self.flush();
        }
        Some(queued)
    }

    /// Takes everything that is queued; `None` if the outbox is stopped.
    fn take(&self) -> Option<Bytes> {
        let mut waiting = self.waiting.lock();
        (!waiting.stopped).then(|| waiting.buffer.split().freeze())
    }
}
