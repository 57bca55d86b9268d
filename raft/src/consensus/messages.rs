//! The messages between replicas: our own structs, because openraft's layout is not stable.
//!
//! Every request names its cluster, its sender and its receiver, and every reply its sender. A message that reaches the wrong
//! node changes nothing there. Entries travel as the bytes in which they are stored, and each is decoded within its own limit.

use openraft::alias::EntryOf;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use quorate_shares::codec;
use quorate_shares::ids::{ClusterId, NodeId};
use serde::{Deserialize, Serialize};

use crate::live::command::COMMAND_BYTES_MAX;
use crate::live::place::{Ballot, LogPlace};
use crate::stored::format;
use crate::types::Types;

/// Most bytes of entries in one request, unless a single one is larger.
pub(crate) const APPEND_BYTES_MAX: usize = 4 << 20;
/// Most bytes of one message: a full request, and one entry of the largest size in addition.
pub const MESSAGE_BYTES_MAX: usize = APPEND_BYTES_MAX + COMMAND_BYTES_MAX + (64 << 10);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    V1(RequestV1),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RequestV1 {
    pub(crate) cluster: ClusterId,
    pub(crate) from: NodeId,
    pub(crate) to: NodeId,
    pub(crate) ask: Ask,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    Append {
        vote: Ballot,
        previous: Option<LogPlace>,
        entries: Vec<EntryBytes>,
        committed: Option<LogPlace>,
    },
    Vote(Candidacy),
    PreVote(Candidacy),
    Transfer {
        from_leader: Ballot,
        to: NodeId,
        last: Option<LogPlace>,
    },
    /// The first chunk of a snapshot's stream; the file's chunks follow.
    Snapshot {
        vote: Ballot,
    },
    /// A replica whose state is damaged asks for the state of another. Its position must be at least `reaching`, where the
    /// asker's log begins.
    WantState {
        reaching: Option<LogPlace>,
    },
    /// The first chunk of the stream that was asked for.
    State,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct EntryBytes(#[serde(with = "serde_bytes")] pub(crate) Vec<u8>);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Candidacy {
    pub(crate) vote: Ballot,
    pub(crate) last: Option<LogPlace>,
    pub(crate) leadership_transfer: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    V1 { from: NodeId, tell: Tell },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Tell {
    Appended,
    AppendedUpTo(Option<LogPlace>),
    Conflict,
    HigherVote(Ballot),
    Vote { vote: Ballot, granted: bool, last: Option<LogPlace> },
    Transferring,
    VoteChanged { expected: Ballot, actual: Ballot },
    LogNotFlushed { expected: Option<LogPlace>, actual: Option<LogPlace> },
    Snapshot { vote: Ballot },
    State { given: bool },
}

impl Request {
    pub(crate) fn decode(bytes: &[u8]) -> Result<RequestV1, codec::CodecError> {
        let Self::V1(request) = codec::decode::<_, { 2 * MESSAGE_BYTES_MAX }>(bytes)?;
        Ok(request)
    }
}

impl Ask {
    /// The vote that the receiver may take over.
    pub(crate) fn vote(&self) -> Option<Ballot> {
        match self {
            Self::Append { vote, .. } | Self::Snapshot { vote } => Some(*vote),
            Self::Vote(candidacy) | Self::PreVote(candidacy) => Some(candidacy.vote),
            Self::Transfer { from_leader, .. } => Some(*from_leader),
            Self::WantState { .. } | Self::State => None,
        }
    }
}

impl Reply {
    pub(crate) fn decode(bytes: &[u8]) -> Result<(NodeId, Tell), codec::CodecError> {
        let Self::V1 { from, tell } = codec::decode::<_, 4096>(bytes)?;
        Ok((from, tell))
    }
}

/// A request with the first entries that fit into `bytes_max`, at least one. If not all fit, also the place of the last one.
pub(crate) fn append(rpc: AppendEntriesRequest<Types>, bytes_max: usize) -> (Ask, Option<LogPlace>) {
    let (mut entries, mut bytes, mut cut) = (Vec::new(), 0, None);
    let mut sent: Option<LogPlace> = None;
    for entry in &rpc.entries {
        let encoded = format::encode_entry(entry);
        if !entries.is_empty() && bytes + encoded.len() > bytes_max {
            cut = sent;
            break;
        }
        bytes += encoded.len();
        sent = Some(LogPlace::of(entry.log_id));
        entries.push(EntryBytes(encoded));
    }
    let ask = Ask::Append {
        vote: Ballot::of(rpc.vote),
        previous: rpc.prev_log_id.map(LogPlace::of),
        entries,
        committed: rpc.leader_commit.map(LogPlace::of),
    };
    (ask, cut)
}

pub(crate) fn append_request(
    vote: Ballot,
    previous: Option<LogPlace>,
    entries: &[EntryBytes],
    committed: Option<LogPlace>,
) -> Result<AppendEntriesRequest<Types>, codec::CodecError> {
    let entries = entries.iter().map(|entry| format::decode_entry(&entry.0));
    let entries = entries.collect::<Result<Vec<EntryOf<Types>>, _>>()?;
    Ok(AppendEntriesRequest {
        vote: vote.vote(),
        prev_log_id: previous.map(LogPlace::log_id),
        entries,
        leader_commit: committed.map(LogPlace::log_id),
    })
}

impl Candidacy {
    pub(crate) fn of(rpc: &VoteRequest<Types>) -> Self {
        let last = rpc.last_log_id.map(LogPlace::of);
        Self { vote: Ballot::of(rpc.vote), last, leadership_transfer: rpc.leadership_transfer }
    }

    pub(crate) fn request(&self) -> VoteRequest<Types> {
        let mut request = VoteRequest::new(self.vote.vote(), self.last.map(LogPlace::log_id));
        request.leadership_transfer = self.leadership_transfer;
        request
    }
}

pub(crate) fn transfer(rpc: &TransferLeaderRequest<Types>) -> Ask {
    Ask::Transfer {
        from_leader: Ballot::of(*rpc.from_leader()),
        to: NodeId(*rpc.to_node_id()),
        last: rpc.last_log_id().copied().map(LogPlace::of),
    }
}

impl From<AppendEntriesResponse<Types>> for Tell {
    fn from(response: AppendEntriesResponse<Types>) -> Self {
        match response {
            AppendEntriesResponse::Success => Self::Appended,
            AppendEntriesResponse::PartialSuccess(upto) => Self::AppendedUpTo(upto.map(LogPlace::of)),
            AppendEntriesResponse::Conflict => Self::Conflict,
            AppendEntriesResponse::HigherVote(vote) => Self::HigherVote(Ballot::of(vote)),
        }
    }
}

impl From<VoteResponse<Types>> for Tell {
    fn from(response: VoteResponse<Types>) -> Self {
        let (vote, last) = (Ballot::of(response.vote), response.last_log_id.map(LogPlace::of));
        Self::Vote { vote, granted: response.vote_granted, last }
    }
}

impl From<TransferLeaderResponse<Types>> for Tell {
    fn from(response: TransferLeaderResponse<Types>) -> Self {
        match response {
            Ok(()) => Self::Transferring,
            Err(TransferLeaderError::VoteChanged { expected, actual }) => {
                Self::VoteChanged { expected: Ballot::of(expected), actual: Ballot::of(actual) }
            }
            Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
                Self::LogNotFlushed { expected: expected.map(LogPlace::of), actual: actual.map(LogPlace::of) }
            }
        }
    }
}

impl Tell {
    /// The vote that the receiver may take over. In a refusal it is that of a third node.
    pub(crate) fn vote_mut(&mut self) -> Option<&mut Ballot> {
        match self {
            Self::HigherVote(vote) | Self::Vote { vote, .. } | Self::Snapshot { vote } => Some(vote),
            Self::VoteChanged { actual, .. } => Some(actual),
            Self::Appended
            | Self::AppendedUpTo(_)
            | Self::Conflict
            | Self::Transferring
            | Self::LogNotFlushed { .. }
            | Self::State { .. } => None,
        }
    }

    /// As the answer to an append; `cut` is where the request was cut short.
    pub(crate) fn appended(self, cut: Option<LogPlace>) -> Option<AppendEntriesResponse<Types>> {
        Some(match self {
            Self::Appended if cut.is_some() => AppendEntriesResponse::PartialSuccess(cut.map(LogPlace::log_id)),
            Self::Appended => AppendEntriesResponse::Success,
            Self::AppendedUpTo(upto) => AppendEntriesResponse::PartialSuccess(upto.map(LogPlace::log_id)),
            Self::Conflict => AppendEntriesResponse::Conflict,
            Self::HigherVote(vote) => AppendEntriesResponse::HigherVote(vote.vote()),
            _ => return None,
        })
    }

    /// As the answer to a vote or pre-vote.
    pub(crate) fn voted(self) -> Option<VoteResponse<Types>> {
        let Self::Vote { vote, granted, last } = self else { return None };
        Some(VoteResponse::new(vote.vote(), last.map(LogPlace::log_id), granted))
    }

    /// As the answer to a transfer of leadership.
    pub(crate) fn transferred(self) -> Option<TransferLeaderResponse<Types>> {
        Some(match self {
            Self::Transferring => Ok(()),
            Self::VoteChanged { expected, actual } => {
                Err(TransferLeaderError::VoteChanged { expected: expected.vote(), actual: actual.vote() })
            }
            Self::LogNotFlushed { expected, actual } => Err(TransferLeaderError::LogNotFlushed {
                expected: expected.map(LogPlace::log_id),
                actual: actual.map(LogPlace::log_id),
            }),
            _ => return None,
        })
    }
}
