//! How one node is, asked through its local socket.

use std::io;
use std::path::Path;
use std::time::Duration;

use quorate_client::frame::{self, FrameKind};
use quorate_client::wire::{self, AdminRequest, AdminResponse, LocalStatus, WireError};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks the node whose socket is at `path`.
///
/// # Errors
/// If no node answers there, or not with a status.
pub fn local_status(path: &Path) -> io::Result<LocalStatus> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(async { timeout(PATIENCE, ask(path)).await });
    answer.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

async fn ask(path: &Path) -> io::Result<LocalStatus> {
    let mut stream = UnixStream::connect(path).await?;
    let (read, mut write) = stream.split();
    let request = wire::encode(&AdminRequest::Status);
    frame::write(&mut write, FrameKind::Request, 0, &request).await.map_err(io::Error::other)?;
    let mut reader = frame::FrameReader::new(read);
    while let Some(frame) = reader.next().await.map_err(io::Error::other)? {
        if frame.kind == FrameKind::Response {
            let answer: Result<AdminResponse, WireError> = wire::decode(&frame.body).map_err(io::Error::other)?;
            return match answer.map_err(io::Error::other)? {
                AdminResponse::Status(status) => Ok(*status),
                _ => Err(io::Error::other("the node answers another question")),
            };
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}
