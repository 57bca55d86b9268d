//! A stream of a peer that is not trusted, read in order, with a limit on what waits behind a gap.
//!
//! QUIC keeps bytes that arrive before earlier ones, and does not say so: a reader sees a silent stream. So this reader takes
//! bytes as they arrive, and keeps the early ones itself. It knows how long they wait, and ends the stream when that is too
//! long. Bytes that wait count against the receive window of the connection, as they would inside QUIC: a peer whose packet
//! is lost sends on as far as the window reaches, and no further.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::identity;

/// Most chunks behind gaps of one stream. The window has room for about a hundred packets, and a peer that sends smaller ones
/// is cut off beyond this.
const CHUNKS_MAX: usize = 512;
/// Most bytes that are taken from QUIC at once. A fixed number: if it were what the reader has room for, a small buffer would cut
/// what is early into as small chunks.
const CHUNK_BYTES_MAX: usize = 4 << 10;

/// What all streams of a connection hold behind gaps.
pub(super) struct HeldBack {
    connection: quinn::Connection,
    bytes: Mutex<usize>,
}

impl HeldBack {
    pub(super) fn new(connection: quinn::Connection) -> Arc<Self> {
        Arc::new(Self { connection, bytes: Mutex::new(0) })
    }

    fn change(&self, change: impl FnOnce(usize) -> usize) {
        let mut bytes = self.bytes.lock();
        *bytes = change(*bytes);
        identity::shrink_window(&self.connection, *bytes);
    }
}

/// Where chunks of a stream come from, in the order in which they arrive.
pub(super) trait Chunks {
    /// The next chunk, of at most `bytes_max` bytes, and its offset in the stream; `None` at the end of the stream. No byte
    /// comes twice.
    fn poll_chunk(&mut self, context: &mut Context<'_>, bytes_max: usize) -> Poll<io::Result<Option<(u64, Bytes)>>>;

    /// So many bytes more are held behind a gap.
    fn hold(&self, bytes: usize);

    /// So many bytes less.
    fn release(&self, bytes: usize);
}

/// The chunks of a stream of QUIC.
pub(super) struct QuicChunks {
    pub(super) stream: quinn::RecvStream,
    pub(super) held: Arc<HeldBack>,
}

impl Chunks for QuicChunks {
    fn poll_chunk(&mut self, context: &mut Context<'_>, bytes_max: usize) -> Poll<io::Result<Option<(u64, Bytes)>>> {
        // The future has no state of its own.
        let chunk = ready!(pin!(self.stream.read_chunk(bytes_max, false)).poll(context))?;
        Poll::Ready(Ok(chunk.map(|chunk| (chunk.offset, chunk.bytes))))
    }

    fn hold(&self, bytes: usize) {
        self.held.change(|held| held + bytes);
    }

    fn release(&self, bytes: usize) {
        self.held.change(|held| held - bytes);
    }
}

/// The bytes of a stream in order. If any byte waits behind a gap for longer than `patience`, reading fails with
/// [`io::ErrorKind::TimedOut`].
pub(super) struct InOrder<C: Chunks> {
    chunks: C,
    patience: Duration,
    /// The offset of the next byte that the reader needs.
    next: u64,
    /// A chunk whose turn has come.
    ready: Bytes,
    early: BTreeMap<u64, Early>,
    /// Runs while there are early chunks.
    timer: Option<Pin<Box<Sleep>>>,
}

/// A chunk behind a gap.
struct Early {
    since: Instant,
    /// A copy: the bytes of QUIC may keep a whole batch of packets alive.
    bytes: Box<[u8]>,
}

impl<C: Chunks> InOrder<C> {
    /// Reads a stream of which nothing was read. QUIC must not have read in order before: then bytes can come twice.
    pub(super) fn new(chunks: C, patience: Duration) -> Self {
        Self { chunks, patience, next: 0, ready: Bytes::new(), early: BTreeMap::new(), timer: None }
    }

    fn keep(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.early.len() >= CHUNKS_MAX {
            return Err(io::Error::other("too many gaps in a stream"));
        }
        self.chunks.hold(bytes.len());
        self.early.insert(offset, Early { since: Instant::now(), bytes: bytes.into() });
        Ok(())
    }

    /// The early chunk that follows what was read.
    fn due(&mut self) -> Option<Bytes> {
        let chunk = self.early.remove(&self.next)?.bytes;
        self.chunks.release(chunk.len());
        Some(chunk.into())
    }

    /// Whether an early chunk has waited for too long.
    fn poll_late(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let Some(oldest) = self.early.values().map(|early| early.since).min() else {
                self.timer = None;
                return Poll::Pending;
            };
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(oldest + self.patience)));
            ready!(timer.as_mut().poll(context));
            // The timer may have been set for a chunk that has been read since.
            if oldest + self.patience <= Instant::now() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(oldest + self.patience);
        }
    }
}

impl<C: Chunks> Drop for InOrder<C> {
    fn drop(&mut self) {
        if !self.early.is_empty() {
            self.chunks.release(self.early.values().map(|early| early.bytes.len()).sum());
        }
    }
}

impl<C: Chunks + Unpin> AsyncRead for InOrder<C> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if this.ready.is_empty()
                && let Some(chunk) = this.due()
            {
                this.ready = chunk;
            }
            if !this.ready.is_empty() {
                let bytes = this.ready.len().min(buffer.remaining());
                buffer.put_slice(&this.ready[..bytes]);
                this.ready.advance(bytes);
                this.next += bytes as u64;
                return Poll::Ready(Ok(()));
            }
            match this.chunks.poll_chunk(context, CHUNK_BYTES_MAX)? {
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Ready(Some((offset, bytes))) if offset == this.next => this.ready = bytes,
                Poll::Ready(Some((offset, bytes))) => this.keep(offset, &bytes)?,
                Poll::Pending => {
                    ready!(this.poll_late(context));
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::AsyncReadExt;
    use tokio::sync::mpsc;
    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(300);

    /// Chunks that a test sends.
    struct Sent {
        chunks: mpsc::UnboundedReceiver<(u64, Bytes)>,
        /// A chunk that was larger than what was asked for.
        rest: Option<(u64, Bytes)>,
        held: Arc<AtomicUsize>,
    }

    impl Chunks for Sent {
        fn poll_chunk(
            &mut self,
            context: &mut Context<'_>,
            bytes_max: usize,
        ) -> Poll<io::Result<Option<(u64, Bytes)>>> {
            let chunk = match self.rest.take() {
                Some(rest) => Some(rest),
                None => ready!(self.chunks.poll_recv(context)),
            };
            let Some((offset, mut bytes)) = chunk else { return Poll::Ready(Ok(None)) };
            let taken = bytes.split_to(bytes_max.min(bytes.len()));
            self.rest = (!bytes.is_empty()).then(|| (offset + taken.len() as u64, bytes));
            Poll::Ready(Ok(Some((offset, taken))))
        }

        fn hold(&self, bytes: usize) {
            self.held.fetch_add(bytes, Ordering::SeqCst);
        }

        fn release(&self, bytes: usize) {
            self.held.fetch_sub(bytes, Ordering::SeqCst);
        }
    }

    fn stream() -> (mpsc::UnboundedSender<(u64, Bytes)>, Arc<AtomicUsize>, InOrder<Sent>) {
        let (send, chunks) = mpsc::unbounded_channel();
        let held = Arc::new(AtomicUsize::new(0));
        let sent = Sent { chunks, rest: None, held: held.clone() };
        (send, held, InOrder::new(sent, PATIENCE))
    }

    fn send(to: &mpsc::UnboundedSender<(u64, Bytes)>, offset: u64, bytes: &'static [u8]) {
        to.send((offset, Bytes::from_static(bytes))).expect("it is read");
    }

    #[tokio::test]
    async fn bytes_come_in_order_whatever_the_order_of_the_chunks() {
        let (to, held, mut reader) = stream();
        for (offset, bytes) in [(4, &b"ef"[..]), (9, b"j"), (0, b"ab"), (6, b"ghi"), (2, b"cd")] {
            send(&to, offset, bytes);
        }
        drop(to);
        let mut all = Vec::new();
        let mut some = [0; 3];
        loop {
            match reader.read(&mut some).await.expect("reads") {
                0 => break,
                read => all.extend_from_slice(&some[..read]),
            }
        }
        assert_eq!((all.as_slice(), held.load(Ordering::SeqCst)), (&b"abcdefghij"[..], 0));
    }

    /// The time runs from the gap, and no byte that comes later gives it more. Mutated: without the timer this test hangs; with
    /// a timer that starts again at each chunk it fails.
    #[tokio::test]
    async fn what_waits_behind_a_gap_ends_the_stream() {
        let (to, held, mut reader) = stream();
        // Silence without a gap is no fault.
        let mut some = [0; 8];
        assert!(timeout(PATIENCE * 2, reader.read(&mut some)).await.is_err());
        // A gap that is filled is none any more.
        send(&to, 1, b"b");
        assert!(timeout(PATIENCE / 10, reader.read(&mut some)).await.is_err());
        assert_eq!(held.load(Ordering::SeqCst), 1);
        send(&to, 0, b"a");
        assert_eq!((reader.read(&mut some).await.expect("a"), reader.read(&mut some).await.expect("b")), (1, 1));
        assert!(timeout(PATIENCE * 2, reader.read(&mut some)).await.is_err());
        // Whole messages before the gap, and more behind it, do not make the first chunk behind it any younger.
        let begin = Instant::now();
        send(&to, 1000, b"early");
        for next in 2.. {
            send(&to, next, b"x");
            send(&to, 2000 + next, b"y");
            assert_eq!(reader.read(&mut some).await.ok().unwrap_or(1), 1);
            match timeout(PATIENCE / 10, reader.read(&mut some)).await {
                Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => break,
                Ok(other) => panic!("{other:?}"),
                Err(_) => assert!(begin.elapsed() < 5 * PATIENCE, "it does not end"),
            }
        }
        assert!(begin.elapsed() >= PATIENCE, "{:?}", begin.elapsed());
        drop(reader);
        assert_eq!(held.load(Ordering::SeqCst), 0);
    }

    /// Mutated: if as many bytes are taken as the reader has room for, a lost packet near the end of a frame ends the stream.
    #[tokio::test]
    async fn a_small_buffer_cuts_nothing_into_small_chunks() {
        let (to, _, mut reader) = stream();
        send(&to, 4, &[b'x'; 4096]);
        let mut some = [0; 4];
        assert!(timeout(PATIENCE / 10, reader.read(&mut some)).await.is_err(), "it waits for the gap");
        send(&to, 0, b"abcd");
        assert_eq!((reader.read(&mut some).await.expect("reads"), &some), (4, b"abcd"));
    }

    #[tokio::test]
    async fn a_stream_of_gaps_is_an_error() {
        let (to, _, mut reader) = stream();
        for chunk in 0..CHUNKS_MAX as u64 {
            send(&to, 1 + 2 * chunk, b"x");
        }
        send(&to, 5000, b"y");
        let error = reader.read(&mut [0; 8]).await.expect_err("too many");
        assert!(error.to_string().contains("too many gaps"), "{error}");
    }
}
