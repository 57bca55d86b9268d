//! Bulk transfers: a body that is too large for a frame, on a stream of its own, with one answer at the end.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use super::serve::BULK;
use super::{Closed, close};
use crate::frame::BODY_BYTES_MAX;

/// Largest header of a bulk transfer in bytes. The receiver refuses a larger one.
pub const BULK_HEADER_BYTES_MAX: usize = 64 << 10;
/// Largest chunk of a bulk transfer in bytes. The receiver refuses a larger one.
pub const BULK_CHUNK_BYTES_MAX: usize = 1 << 20;

/// Why a bulk transfer failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BulkError {
    /// A header, chunk or answer is empty or larger than its limit. It says how large.
    #[error("{0} bytes are more than a part of a bulk transfer may have")]
    TooLarge(usize),
    /// The stream ended before the transfer was complete.
    #[error("the bulk transfer broke off")]
    Truncated,
    /// The receiver ended the transfer without an answer.
    #[error("the peer refused the bulk transfer")]
    Refused,
    /// The deadline passed.
    #[error("no answer in time")]
    Deadline,
    /// The connection ended.
    #[error("connection lost: {0}")]
    Closed(Closed),
}

/// The sending side. If it is dropped before [`BulkSender::finish`], the receiver sees that the transfer broke off.
#[derive(Debug)]
pub struct BulkSender {
    send: quinn::SendStream,
    receive: quinn::RecvStream,
}

impl BulkSender {
    pub(super) async fn open(connection: &quinn::Connection, header: &[u8]) -> Result<Self, BulkError> {
        if header.len() > BULK_HEADER_BYTES_MAX {
            return Err(BulkError::TooLarge(header.len()));
        }
        let opened = connection.open_bi().await;
        let (send, receive) = opened.map_err(|error| BulkError::Closed(error.into()))?;
        let mut sender = Self { send, receive };
        let mut begin = BytesMut::with_capacity(6 + header.len());
        begin.put_slice(&[BULK, 0]);
        put_part(&mut begin, header);
        sender.write(begin.freeze()).await?;
        Ok(sender)
    }

    /// Sends one chunk. It waits until there is room for it.
    ///
    /// # Errors
    /// [`BulkError`], also for a chunk that is empty or larger than [`BULK_CHUNK_BYTES_MAX`].
    pub async fn send(&mut self, chunk: &[u8]) -> Result<(), BulkError> {
        if chunk.is_empty() || chunk.len() > BULK_CHUNK_BYTES_MAX {
            return Err(BulkError::TooLarge(chunk.len()));
        }
        let mut part = BytesMut::with_capacity(4 + chunk.len());
        put_part(&mut part, chunk);
        self.write(part.freeze()).await
    }

    /// Says that all chunks were sent, and waits for the answer, at most for `deadline`.
    ///
    /// # Errors
    /// [`BulkError`].
    pub async fn finish(mut self, deadline: Duration) -> Result<Bytes, BulkError> {
        let finish = async {
            // An explicit end: a stream that only stops must not look complete.
            self.write(Bytes::from_static(&[0; 4])).await?;
            match read_part(&mut self.receive, BODY_BYTES_MAX).await {
                Err(BulkError::Truncated) => Err(BulkError::Refused),
                answer => answer,
            }
        };
        tokio::time::timeout(deadline, finish).await.unwrap_or(Err(BulkError::Deadline))
    }

    async fn write(&mut self, bytes: Bytes) -> Result<(), BulkError> {
        match self.send.write_chunk(bytes).await {
            Ok(()) => Ok(()),
            Err(quinn::WriteError::ConnectionLost(error)) => Err(BulkError::Closed(error.into())),
            Err(_) => Err(BulkError::Refused),
        }
    }
}

impl Drop for BulkSender {
    fn drop(&mut self) {
        // No effect after all bytes were sent and acknowledged.
        let _ = self.send.reset(close::DONE.into());
    }
}

/// The receiving side. If it is dropped without [`BulkReceiver::reply`], the sender sees that the transfer was refused.
#[derive(Debug)]
pub struct BulkReceiver {
    header: Bytes,
    send: quinn::SendStream,
    receive: quinn::RecvStream,
    complete: bool,
}

impl BulkReceiver {
    pub(super) async fn begin(send: quinn::SendStream, mut receive: quinn::RecvStream) -> Result<Self, BulkError> {
        let header = read_part(&mut receive, BULK_HEADER_BYTES_MAX).await?;
        Ok(Self { header, send, receive, complete: false })
    }

    /// The header, which says what the transfer is.
    pub fn header(&self) -> &Bytes {
        &self.header
    }

    /// The next chunk; `None` after the sender has said that all were sent.
    ///
    /// # Errors
    /// [`BulkError`]; [`BulkError::Truncated`] if the sender broke off.
    pub async fn next(&mut self) -> Result<Option<Bytes>, BulkError> {
        if self.complete {
            return Ok(None);
        }
        let chunk = read_part(&mut self.receive, BULK_CHUNK_BYTES_MAX).await?;
        self.complete = chunk.is_empty();
        Ok((!self.complete).then_some(chunk))
    }

    /// Answers the sender, at most [`BODY_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// [`BulkError`].
    pub async fn reply(mut self, answer: &[u8]) -> Result<(), BulkError> {
        if answer.len() > BODY_BYTES_MAX {
            return Err(BulkError::TooLarge(answer.len()));
        }
        let mut part = BytesMut::with_capacity(4 + answer.len());
        put_part(&mut part, answer);
        match self.send.write_chunk(part.freeze()).await {
            Ok(()) => Ok(()),
            Err(quinn::WriteError::ConnectionLost(error)) => Err(BulkError::Closed(error.into())),
            Err(_) => Err(BulkError::Truncated),
        }
    }
}

fn put_part(buffer: &mut BytesMut, part: &[u8]) {
    buffer.put_u32(u32::try_from(part.len()).expect("every part is at most 8 MiB"));
    buffer.put_slice(part);
}

/// Reads `len u32 | bytes`. The length is checked first, and memory grows only with the bytes that arrive.
async fn read_part(stream: &mut quinn::RecvStream, limit: usize) -> Result<Bytes, BulkError> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await.map_err(read_failed)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > limit {
        return Err(BulkError::TooLarge(length));
    }
    let mut part = BytesMut::new();
    while part.len() < length {
        match stream.read_chunk(length - part.len(), true).await {
            Ok(Some(chunk)) => part.extend_from_slice(&chunk.bytes),
            Ok(None) => return Err(BulkError::Truncated),
            Err(error) => return Err(read_failed(quinn::ReadExactError::ReadError(error))),
        }
    }
    Ok(part.freeze())
}

fn read_failed(error: quinn::ReadExactError) -> BulkError {
    match error {
        quinn::ReadExactError::ReadError(quinn::ReadError::ConnectionLost(error)) => BulkError::Closed(error.into()),
        _ => BulkError::Truncated,
    }
}
