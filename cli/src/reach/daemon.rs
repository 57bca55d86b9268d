//! How a command talks to the daemon of this machine: through the local socket, which only the daemon's user may open.

use std::io::ErrorKind;
use std::time::Duration;

use quorate_client::frame::{self, FrameKind};
use quorate_client::wire::{self, AdminProgress, AdminRequest, AdminResponse, LocalStatus, WireError};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use crate::failure::Failure;
use crate::{Session, exit};

/// How long the daemon may take to answer what it can answer at once. A change at all nodes takes a few seconds at most.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// One request to the daemon, and the messages that it sends back.
pub(crate) struct Conversation {
    /// The process id of the daemon, as the kernel gives it.
    pid: Option<i32>,
    reader: frame::FrameReader<OwnedReadHalf>,
    /// Kept open: if it were closed, the daemon would conclude that the command has ended.
    _writer: OwnedWriteHalf,
}

/// A message of the daemon.
pub(crate) enum Message {
    Progress(AdminProgress),
    Answer(AdminResponse),
}

impl Conversation {
    pub(crate) async fn begin(session: &Session<'_>, request: &AdminRequest) -> Result<Self, Failure> {
        let path = &session.common.socket;
        let stream = UnixStream::connect(path).await.map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                Failure::new(exit::FAILED, format!("no daemon listens at {}", path.display()))
                    .hint("start quorated on this machine, or name its socket: --socket FILE, QUORATE_SOCKET")
            }
            ErrorKind::PermissionDenied => {
                Failure::new(exit::DENIED, format!("{} may be opened by the daemon's user only", path.display()))
                    .hint("run this command as that user")
            }
            _ => Failure::new(exit::FAILED, format!("{}: {error}", path.display())),
        })?;
        let pid = stream.peer_cred().ok().and_then(|daemon| daemon.pid());
        let (reader, mut writer) = stream.into_split();
        frame::write(&mut writer, FrameKind::Request, 0, &wire::encode(request)).await.map_err(broken)?;
        Ok(Self { pid, reader: frame::FrameReader::new(reader), _writer: writer })
    }

    pub(crate) async fn next(&mut self) -> Result<Message, Failure> {
        let frame = self.reader.next().await.map_err(broken)?;
        let frame = frame.ok_or_else(|| {
            Failure::new(exit::FAILED, "the daemon ended before it answered")
                .hint("its log says why; then run the command again")
        })?;
        match frame.kind {
            FrameKind::Progress => Ok(Message::Progress(wire::decode(&frame.body)?)),
            FrameKind::Response => {
                let answer: Result<AdminResponse, WireError> = wire::decode(&frame.body)?;
                Ok(Message::Answer(answer?))
            }
            _ => Err(broken(frame::FrameError::Kind(frame.kind as u8))),
        }
    }

    async fn answer(mut self) -> Result<AdminResponse, Failure> {
        loop {
            if let Message::Answer(answer) = self.next().await? {
                return Ok(answer);
            }
        }
    }

    /// Sends a request that the daemon answers soon, and waits at most [`ANSWER_MAX`].
    async fn ask(session: &Session<'_>, request: &AdminRequest) -> Result<(AdminResponse, Option<i32>), Failure> {
        let asked = async {
            let conversation = Self::begin(session, request).await?;
            let pid = conversation.pid;
            Ok((conversation.answer().await?, pid))
        };
        timeout(ANSWER_MAX, asked).await.unwrap_or_else(|_| {
            let seconds = ANSWER_MAX.as_secs();
            Err(Failure::new(exit::FAILED, format!("the daemon did not answer within {seconds} s")).hint(
                "it may be stopped or overloaded: look at the process and its log. What was ordered may still be done",
            ))
        })
    }
}

/// The state of the node on this machine.
pub(crate) async fn status(session: &Session<'_>) -> Result<LocalStatus, Failure> {
    status_and_process(session).await.map(|(status, _)| status)
}

/// The state of the node on this machine, and the process id of its daemon.
pub(crate) async fn status_and_process(session: &Session<'_>) -> Result<(LocalStatus, Option<i32>), Failure> {
    match Conversation::ask(session, &AdminRequest::Status).await? {
        (AdminResponse::Status(status), pid) => Ok((*status, pid)),
        _ => Err(unexpected()),
    }
}

/// Sends a request and waits for its answer, without showing progress.
pub(crate) async fn answer(session: &Session<'_>, request: &AdminRequest) -> Result<AdminResponse, Failure> {
    Conversation::ask(session, request).await.map(|(answer, _)| answer)
}

pub(crate) fn unexpected() -> Failure {
    Failure::new(exit::FAILED, "the answer of the daemon belongs to another request")
        .hint("quorate and quorated differ in version")
}

fn broken(error: frame::FrameError) -> Failure {
    Failure::new(exit::FAILED, format!("the daemon does not answer as it should: {error}"))
        .hint("quorate and quorated differ in version, or the daemon is ending")
}
