//! Frames: how requests and answers are laid out on a stream of QUIC or of the local socket.
//!
//! ```text
//! len u32 | kind u8 | id u64 | body          big-endian; len counts what follows it: 9 + body
//! ```
//!
//! A length is checked before memory is allocated, and memory then grows only with the bytes that arrive. So a hostile
//! length costs its sender more than its reader. It is an error if a stream ends inside a frame. A stream may end
//! between frames.

use std::io;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

/// Largest frame in bytes, without its length field. A larger frame is an error, after which the stream is not usable.
pub const FRAME_BYTES_MAX: usize = 8 << 20;
/// Largest body of a frame in bytes.
pub const BODY_BYTES_MAX: usize = FRAME_BYTES_MAX - HEAD_BYTES;

/// Most requests in flight on one lane of a connection. Both sides count. A further request is refused as busy.
pub const IN_FLIGHT_MAX: usize = 1024;
/// Unsent bytes of one lane above which a task with more frames waits. A frame that begins below it may end above it.
pub const UNSENT_BYTES_MAX: usize = 1 << 20;

/// Bytes of kind and id, which precede the body.
const HEAD_BYTES: usize = 9;
/// Bytes that a reader asks its source for at a time.
const READ_BYTES: usize = 64 << 10;

/// The kind of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// A request. Its answer carries the same id.
    Request = 1,
    /// The answer to a request. There is one for each.
    Response = 2,
    /// The request was not begun, because too many are in flight.
    Busy = 3,
    /// The asker no longer waits for the answer.
    Cancel = 4,
    /// Progress that precedes the answer. Only on the local socket.
    Progress = 5,
    /// The request was begun and ended without an answer.
    Failed = 6,
}

impl TryFrom<u8> for FrameKind {
    type Error = FrameError;
    fn try_from(byte: u8) -> Result<Self, FrameError> {
        Ok(match byte {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Busy,
            4 => Self::Cancel,
            5 => Self::Progress,
            6 => Self::Failed,
            other => return Err(FrameError::Kind(other)),
        })
    }
}

/// One frame of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What the frame is.
    pub kind: FrameKind,
    /// The request that it belongs to. The asker chooses the id.
    pub id: u64,
    /// The message itself.
    pub body: Bytes,
}

/// Why bytes are not a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame")]
    Truncated,
    /// A length is above [`FRAME_BYTES_MAX`], or above the [`Limits`] of the reader.
    #[error("a frame of {0} bytes is too large")]
    TooLarge(usize),
    /// A frame took longer than [`Limits::patience`].
    #[error("the rest of a frame did not arrive in time")]
    Slow,
    /// A length is too small for kind and id.
    #[error("a frame of {0} bytes is too short")]
    Short(usize),
    /// There is no such kind of frame.
    #[error("a frame of the unknown kind {0}")]
    Kind(u8),
    /// The stream failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Limits on what the other side of a stream or connection may make this side hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest frame in bytes, without its length field. A larger one is an error.
    pub frame_bytes: usize,
    /// As [`Limits::frame_bytes`], on the lanes of a connection that are not ordinary.
    pub other_lanes_bytes: usize,
    /// How long a frame may take from its first byte to its last, and how long bytes may wait behind a gap in the stream.
    /// `None` waits for ever. Between frames a stream may be silent for any time.
    pub patience: Option<Duration>,
    /// Most requests of one lane that are not answered yet. A further one is refused as busy.
    pub in_flight: usize,
    /// Unsent bytes of answers on one lane above which no further request is read.
    pub unsent_bytes: usize,
}

impl Default for Limits {
    /// What the protocol allows, without a limit on time.
    fn default() -> Self {
        Self {
            frame_bytes: FRAME_BYTES_MAX,
            other_lanes_bytes: FRAME_BYTES_MAX,
            patience: None,
            in_flight: IN_FLIGHT_MAX,
            unsent_bytes: UNSENT_BYTES_MAX,
        }
    }
}

/// Appends a frame to `buffer`.
///
/// # Errors
/// [`FrameError::TooLarge`] if `body` is longer than [`BODY_BYTES_MAX`]; then nothing is appended.
pub fn encode(buffer: &mut BytesMut, kind: FrameKind, id: u64, body: &[u8]) -> Result<(), FrameError> {
    if body.len() > BODY_BYTES_MAX {
        return Err(FrameError::TooLarge(body.len().saturating_add(HEAD_BYTES)));
    }
    let length = u32::try_from(HEAD_BYTES + body.len()).expect("8 MiB fit 32 bits");
    buffer.reserve(4 + HEAD_BYTES + body.len());
    buffer.put_u32(length);
    buffer.put_u8(kind as u8);
    buffer.put_u64(id);
    buffer.put_slice(body);
    Ok(())
}

/// Writes one frame and flushes it.
///
/// # Errors
/// [`FrameError::TooLarge`], or [`FrameError::Io`] with the error of the stream.
pub async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    kind: FrameKind,
    id: u64,
    body: &[u8],
) -> Result<(), FrameError> {
    let mut buffer = BytesMut::new();
    encode(&mut buffer, kind, id, body)?;
    stream.write_all(&buffer).await?;
    stream.flush().await?;
    Ok(())
}

/// Reads frames from a stream.
#[derive(Debug)]
pub struct FrameReader<R> {
    stream: R,
    buffer: BytesMut,
    limits: Limits,
    /// When the first byte of the present frame arrived.
    begun: Option<Instant>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads a stream, with the default [`Limits`]. It must be at the beginning of a frame.
    pub fn new(stream: R) -> Self {
        Self::limited(stream, Limits::default())
    }

    /// As [`FrameReader::new`], with other limits.
    pub fn limited(stream: R, limits: Limits) -> Self {
        Self { stream, buffer: BytesMut::new(), limits, begun: None }
    }

    /// Whether [`FrameReader::next`] returns without waiting for the stream.
    pub fn has_frame(&self) -> bool {
        let length = self.buffer.first_chunk::<4>().map(|length| u32::from_be_bytes(*length) as usize);
        length.is_some_and(|length| length > self.limits.frame_bytes || self.buffer.len() >= 4 + length)
    }

    /// The next frame; `None` if the stream ended between two frames. No byte is lost if the future is dropped.
    ///
    /// # Errors
    /// [`FrameError`]. After an error the stream is not usable.
    pub async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(frame) = take(&mut self.buffer, self.limits.frame_bytes)? {
                self.begun = None;
                return Ok(Some(frame));
            }
            self.make_room();
            if self.read().await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(FrameError::Truncated) };
            }
        }
    }

    /// Makes room for the next read. A large frame gets at most twice the room of what has arrived, and no more than it needs.
    fn make_room(&mut self) {
        let read_bytes = READ_BYTES.min(4 + self.limits.frame_bytes);
        let (held, room) = (self.buffer.len(), self.buffer.capacity());
        if room - held >= read_bytes / 4 {
            return;
        }
        let whole = self.buffer.first_chunk::<4>().map_or(0, |length| 4 + u32::from_be_bytes(*length) as usize);
        if whole <= read_bytes {
            self.buffer.reserve(read_bytes);
        } else if whole > room {
            let mut larger = BytesMut::with_capacity(whole.min(read_bytes.max(2 * held)));
            larger.extend_from_slice(&self.buffer);
            self.buffer = larger;
        }
    }

    async fn read(&mut self) -> Result<usize, FrameError> {
        let patience = self.limits.patience.filter(|_| !self.buffer.is_empty());
        let until = patience.map(|patience| *self.begun.get_or_insert_with(Instant::now) + patience);
        let read = self.stream.read_buf(&mut self.buffer);
        let read = match until {
            None => read.await,
            Some(until) => timeout_at(until, read).await.map_err(|_| FrameError::Slow)?,
        };
        // A source that has a patience of its own says so in this way.
        read.map_err(|error| if error.kind() == io::ErrorKind::TimedOut { FrameError::Slow } else { error.into() })
    }
}

/// Takes the first frame off `buffer`, without copying its body; `None` if it is not complete.
fn take(buffer: &mut BytesMut, frame_bytes: usize) -> Result<Option<Frame>, FrameError> {
    let Some(length) = buffer.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    if length > frame_bytes {
        return Err(FrameError::TooLarge(length));
    }
    if length < HEAD_BYTES {
        return Err(FrameError::Short(length));
    }
    if buffer.len() < 4 + length {
        return Ok(None);
    }
    buffer.advance(4);
    let mut frame = buffer.split_to(length);
    let kind = FrameKind::try_from(frame.get_u8())?;
    let id = frame.get_u64();
    Ok(Some(Frame { kind, id, body: frame.freeze() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read_all(bytes: &[u8]) -> Result<Vec<Frame>, FrameError> {
        let mut reader = FrameReader::new(bytes);
        let mut frames = Vec::new();
        while let Some(frame) = reader.next().await? {
            frames.push(frame);
        }
        Ok(frames)
    }

    #[tokio::test]
    async fn frames_survive_the_stream() {
        let mut buffer = BytesMut::new();
        let large = vec![7; 300_000];
        encode(&mut buffer, FrameKind::Request, 1, b"").expect("fits");
        encode(&mut buffer, FrameKind::Response, u64::MAX, &large).expect("fits");
        let frames = read_all(&buffer).await.expect("two frames");
        assert_eq!(frames[0], Frame { kind: FrameKind::Request, id: 1, body: Bytes::new() });
        assert_eq!(frames[1], Frame { kind: FrameKind::Response, id: u64::MAX, body: large.into() });
    }

    #[tokio::test]
    async fn a_stream_that_ends_inside_a_frame_is_an_error_at_every_byte() {
        let mut buffer = BytesMut::new();
        encode(&mut buffer, FrameKind::Request, 1, b"body").expect("fits");
        assert!(read_all(&[]).await.expect("an empty stream is whole").is_empty());
        for end in 1..buffer.len() {
            assert!(matches!(read_all(&buffer[..end]).await, Err(FrameError::Truncated)), "cut at {end}");
        }
    }

    /// A sender that trickles bytes gains no time: the time runs from the first byte of a frame.
    #[tokio::test]
    async fn a_frame_that_has_begun_must_end_in_time() {
        let mut whole = BytesMut::new();
        encode(&mut whole, FrameKind::Request, 1, b"body").expect("fits");
        let (mut far, near) = tokio::io::duplex(64);
        let patience = Duration::from_millis(40);
        let mut reader =
            FrameReader::limited(near, Limits { frame_bytes: 64, patience: Some(patience), ..Limits::default() });
        assert!(tokio::time::timeout(patience * 3, reader.next()).await.is_err(), "silence between frames is no fault");
        far.write_all(&whole).await.expect("room");
        assert!(reader.next().await.expect("in time").is_some());
        let trickle = tokio::spawn(async move {
            for byte in whole.iter().cycle() {
                // Ends when the reader closes the stream.
                if far.write_all(&[*byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(patience / 4).await;
            }
        });
        assert!(matches!(reader.next().await, Err(FrameError::Slow)));
        drop(reader);
        trickle.await.expect("ends");
    }

    /// Mutated: with room for the whole frame at once, a claimed length costs eight megabytes.
    #[tokio::test]
    async fn a_frame_gets_room_as_its_bytes_arrive() {
        let mut whole = BytesMut::new();
        encode(&mut whole, FrameKind::Request, 1, &vec![7; 1 << 20]).expect("fits");
        for arrived in [READ_BYTES / 2, READ_BYTES + 1, 10 * READ_BYTES] {
            let mut reader = FrameReader::new(&whole[..arrived]);
            assert!(matches!(reader.next().await, Err(FrameError::Truncated)));
            let room = reader.buffer.capacity();
            assert!(room <= READ_BYTES + 2 * arrived, "{room} bytes of room for {arrived}");
        }
        let mut reader = FrameReader::new(&whole[..]);
        assert!(reader.next().await.expect("the control").is_some());
    }

    #[tokio::test]
    async fn a_reader_may_take_less_than_a_frame_can_be() {
        let mut buffer = BytesMut::new();
        encode(&mut buffer, FrameKind::Request, 1, &[7; 100]).expect("fits");
        let read = async |frame_bytes| {
            FrameReader::limited(&buffer[..], Limits { frame_bytes, ..Limits::default() }).next().await
        };
        assert!(read(109).await.expect("just fits").is_some());
        assert!(matches!(read(108).await, Err(FrameError::TooLarge(109))));
    }

    #[tokio::test]
    async fn hostile_lengths_and_kinds_are_refused_before_anything_is_allocated() {
        let mut reader = FrameReader::new(&[0xff, 0xff, 0xff, 0xff, 1][..]);
        assert!(matches!(reader.next().await, Err(FrameError::TooLarge(0xffff_ffff))));
        assert!(reader.buffer.capacity() <= 2 * READ_BYTES, "{}", reader.buffer.capacity());

        let mut reader = FrameReader::new(&[0, 0x7f, 0xff, 0xff, 1, 0, 0][..]);
        assert!(matches!(reader.next().await, Err(FrameError::Truncated)));
        assert!(reader.buffer.capacity() <= 2 * READ_BYTES, "{}", reader.buffer.capacity());

        assert!(matches!(read_all(&[0, 0, 0, 8, 1, 0, 0, 0, 0, 0, 0, 0]).await, Err(FrameError::Short(8))));
        assert!(matches!(read_all(&[0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0]).await, Err(FrameError::Kind(0))));
        assert!(matches!(read_all(&[0, 0, 0, 9, 7, 0, 0, 0, 0, 0, 0, 0, 0]).await, Err(FrameError::Kind(7))));
        let mut buffer = BytesMut::new();
        let body = vec![0; BODY_BYTES_MAX + 1];
        assert!(matches!(encode(&mut buffer, FrameKind::Request, 1, &body), Err(FrameError::TooLarge(_))));
        assert!(buffer.is_empty());
    }
}
