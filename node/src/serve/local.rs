//! The door on this machine: a Unix socket, mode 0600, for the owner of the machine.
//!
//! One request per connection. While it waits, its progress is sent, so that the person in front sees the step and the nodes
//! that it waits for.

use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quorate_client::conn::answering_async;
use quorate_client::error::Code;
use quorate_client::frame::{self, Frame, FrameKind, FrameReader};
use quorate_client::place;
use quorate_client::wire::{self, AdminProgress, AdminRequest, WireError};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tracing::debug;

use crate::base::config::PinAt;
use crate::base::paths;
use crate::messages::caller::Caller;
use crate::node::Node;
use crate::service::machine::{self, AdminAnswer};

/// How long to wait when no connection can be accepted.
const PAUSE: Duration = Duration::from_millis(100);
/// Connections at a time; the next ones wait until one of them is done.
const CALLERS_MAX: usize = 32;
/// How long a caller may take to send a request; then the place is for others.
const REQUEST: Duration = Duration::from_secs(10);

/// The local socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A file of the daemon lies there, or will.
    #[error("cannot make the local socket {0}: the path is that of a file of the daemon itself")]
    OwnFile(PathBuf),
    /// The system refused.
    #[error("cannot make the local socket {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

impl SocketError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::OwnFile(_) => "give another --socket path",
            Self::Io { source, .. } => match source.kind() {
                ErrorKind::AddrInUse => "stop the other process, or give each daemon a --socket path of its own",
                ErrorKind::AlreadyExists => {
                    "only a socket at which no process listens is replaced: give another --socket path"
                }
                _ => "check that the directory exists and can be written, or give another --socket path",
            },
        }
    }
}

/// The socket's file, removed when the daemon stops.
pub struct Socket {
    path: PathBuf,
    /// Device and inode of the file that this process has made.
    file: (u64, u64),
    task: tokio::task::JoinHandle<()>,
}

impl Socket {
    /// Stops listening, and removes the file if it is still the own one: another daemon may have the path by now.
    pub fn close(self) {
        self.task.abort();
        if file_at(&self.path).is_ok_and(|file| file == self.file) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Device and inode of what lies at `path`.
fn file_at(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Makes the socket and serves it.
///
/// # Errors
/// [`SocketError`].
pub fn listen(node: &Arc<Node>) -> Result<Socket, SocketError> {
    let path = node.config.socket.clone();
    if node.dir.is_own(&path) || matches!(&node.config.pin, PinAt::File(pin) if paths::lies_in(&path, Path::new(pin))) {
        return Err(SocketError::OwnFile(path));
    }
    let failed = |source| SocketError::Io { path: path.clone(), source };
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(failed)?;
    }
    let listener = place::bind(&path).map_err(failed)?;
    let file = file_at(&path).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let listener = UnixListener::from_std(listener).map_err(failed)?;
    let node = Arc::clone(node);
    let task = tokio::spawn(async move {
        let callers = Arc::new(Semaphore::new(CALLERS_MAX));
        // Never closed. A caller that waits holds no descriptor.
        while let Ok(place) = Arc::clone(&callers).acquire_owned().await {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, perhaps: the next one may do.
                    debug!(%error, "local connection not accepted");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let node = Arc::clone(&node);
            tokio::spawn(answering_async(async move {
                if let Err(error) = serve(&node, stream).await {
                    debug!(%error, "local connection");
                }
                drop(place);
            }));
        }
    });
    Ok(Socket { path, file, task })
}

async fn serve(node: &Arc<Node>, stream: UnixStream) -> Result<(), frame::FrameError> {
    let uid = stream.peer_cred()?.uid();
    let (read, mut write) = stream.into_split();
    let mut reader = FrameReader::new(read);
    let (id, answer): (u64, AdminAnswer) = match timeout(REQUEST, reader.next()).await {
        Ok(request) => match request? {
            None => return Ok(()),
            Some(Frame { id, body, .. }) => match wire::decode::<AdminRequest>(&body) {
                Ok(request) => (id, answer(node, &Caller::machine_owner(uid), request, &mut reader, &mut write).await?),
                Err(error) => (id, Err(error)),
            },
        },
        Err(_) => (0, Err(WireError::new(Code::Deadline, "no request came in time"))),
    };
    frame::write(&mut write, FrameKind::Response, id, &wire::encode(&answer)).await
}

/// Answers one request, and sends its progress meanwhile. A caller who goes away is told to the request, which ends by itself.
async fn answer(
    node: &Arc<Node>,
    caller: &Caller,
    request: AdminRequest,
    reader: &mut FrameReader<OwnedReadHalf>,
    write: &mut OwnedWriteHalf,
) -> Result<AdminAnswer, frame::FrameError> {
    let (tell, mut told) = mpsc::channel(1);
    let mut answer = std::pin::pin!(machine::answer(node, caller, request, tell));
    let answer = loop {
        tokio::select! {
            answer = &mut answer => break answer,
            Some(step) = told.recv() => {
                if send(write, &step).await.is_err() {
                    told.close();
                }
            }
            // The caller has nothing more to say: this is the end of the command.
            _ = reader.next(), if !told.is_closed() => told.close(),
        }
    };
    // The last step may have been told just before the answer.
    while let Ok(step) = told.try_recv() {
        send(write, &step).await?;
    }
    Ok(answer)
}

async fn send(write: &mut OwnedWriteHalf, step: &AdminProgress) -> Result<(), frame::FrameError> {
    frame::write(write, FrameKind::Progress, 0, &wire::encode(step)).await
}
