//! What a locked node asks of a peer, and what the peer answers.
//!
//! ```text
//! request: "QLO1" | cluster_id 16 | from u64 | to u64 | gen u64 | u u8 | n u8 | x u8 | key_number u64 | boot_nonce 32
//!          | enc 1120 | ct 48                                                                          1 255 B
//! reply:   "QLR1" | code u8 | roster: term u64, leader u64, index u64 | sealed 48 if the code is 0     29 or 77 B
//! ```
//!
//! The piece in a reply is sealed under a key that both ends export from their TLS connection (label
//! [`crate::labels::EXPORTER_LOCK`], context = hash of the request). So a reply that is replayed on another connection
//! does not open.

use crate::error::{FormatError, LockError};
use crate::ids::{ClusterId, NodeId};
use crate::kem::Encapsulation;
use crate::layout::Reader;
use crate::lock::check_threshold;
use crate::primitive::{self, Sealed32, hash};
use crate::seal;
use crate::secret::Secret;

const REQUEST_MAGIC: &[u8; 4] = b"QLO1";
const REPLY_MAGIC: &[u8; 4] = b"QLR1";
/// Length of a request in bytes.
pub const LOCK_REQUEST_BYTES: usize = 1255;
/// Length of a reply that carries a piece, in bytes.
pub const LOCK_REPLY_BYTES: usize = 77;
const REPLY_BOUND_BYTES: usize = 29;

/// A locked node asks a peer to open its piece of the lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockOpenRequest {
    /// The cluster of both nodes.
    pub cluster: ClusterId,
    /// The locked node that asks.
    pub from: NodeId,
    /// The peer that is asked.
    pub to: NodeId,
    /// The generation of the asker's lock.
    pub generation: u64,
    /// How many pieces the lock needs (u).
    pub needed: u8,
    /// How many peers the lock names (n).
    pub peers: u8,
    /// The number of this piece, from 1.
    pub x: u8,
    /// The number of the lock key that the piece is sealed to.
    pub key_number: u64,
    /// Drawn when the asker starts. It distinguishes a node that restarted from a second copy of the node.
    pub boot_nonce: [u8; 32],
    /// The encapsulation from which the peer derives the key of the piece.
    pub encapsulation: Encapsulation,
    /// The sealed piece of 32 bytes.
    pub sealed: Sealed32,
}

impl LockOpenRequest {
    /// The bytes, as drawn above.
    pub fn encode(&self) -> Vec<u8> {
        let fields: [&[u8]; 12] = [
            REQUEST_MAGIC,
            &self.cluster.0,
            &self.from.0.to_be_bytes(),
            &self.to.0.to_be_bytes(),
            &self.generation.to_be_bytes(),
            &[self.needed],
            &[self.peers],
            &[self.x],
            &self.key_number.to_be_bytes(),
            &self.boot_nonce,
            self.encapsulation.0.as_slice(),
            &self.sealed,
        ];
        fields.concat()
    }

    /// Reads a request that fills `bytes` exactly.
    ///
    /// # Errors
    /// [`FormatError`] for numbers out of range, a node that asks itself, or a wrong length.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes, "lock request");
        reader.magic(REQUEST_MAGIC)?;
        let cluster = ClusterId(reader.array()?);
        let (from, to, generation) = (NodeId(reader.u64()?), NodeId(reader.u64()?), reader.u64()?);
        let (needed, peers, x, key_number) = (reader.u8()?, reader.u8()?, reader.u8()?, reader.u64()?);
        if from == NodeId(0) || to == NodeId(0) || from == to {
            return Err(FormatError::Invalid("node"));
        }
        check_threshold(needed, peers.into()).map_err(|_| FormatError::Invalid("threshold"))?;
        if x == 0 || x > peers {
            return Err(FormatError::Invalid("piece number"));
        }
        let boot_nonce = reader.array()?;
        let encapsulation = seal::encapsulation(&mut reader)?;
        let sealed = reader.array()?;
        reader.finish()?;
        Ok(Self { cluster, from, to, generation, needed, peers, x, key_number, boot_nonce, encapsulation, sealed })
    }

    /// SHA-256 of the request: the exporter context of the key that seals the reply.
    pub fn hash(&self) -> [u8; 32] {
        hash(&[&self.encode()])
    }
}

/// How a peer answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockOpenCode {
    /// The peer grants the piece.
    Ok,
    /// The peer has appended the asker's removal to its log. It may not be final: ask again.
    Denied,
    /// The asker is removed for ever.
    Revoked,
    /// The lock is older than one that the peer has already confirmed.
    StaleGeneration,
    /// Another copy of the asker has a live session.
    DuplicateSession,
    /// The asker was away for longer than the absence window. An operator must admit it.
    AwayTooLong,
    /// The peer cannot answer now. Ask again later.
    Busy,
}

impl LockOpenCode {
    const ALL: [Self; 7] = [
        Self::Ok,
        Self::Denied,
        Self::Revoked,
        Self::StaleGeneration,
        Self::DuplicateSession,
        Self::AwayTooLong,
        Self::Busy,
    ];
}

/// How new the roster of the answering peer is: the Raft log id of its last change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct RosterPosition {
    /// The term of the leader that wrote the change.
    pub term: u64,
    /// The id of that leader.
    pub leader: NodeId,
    /// The index of the change in the log.
    pub index: u64,
}

/// The answer of a peer to a [`LockOpenRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockOpenReply {
    code: LockOpenCode,
    roster: RosterPosition,
    sealed: Option<Sealed32>,
}

impl LockOpenReply {
    /// Grants `piece` to the other end of the connection that exported `exporter_key`.
    pub fn grant(roster: RosterPosition, piece: &Secret<32>, exporter_key: &Secret<32>) -> Self {
        let mut reply = Self { code: LockOpenCode::Ok, roster, sealed: None };
        reply.sealed = Some(primitive::seal_secret(exporter_key, [0; 12], &reply.bound(), piece));
        reply
    }

    /// Refuses, with the reason `code`; `None` if `code` is [`LockOpenCode::Ok`].
    pub fn refuse(code: LockOpenCode, roster: RosterPosition) -> Option<Self> {
        (code != LockOpenCode::Ok).then_some(Self { code, roster, sealed: None })
    }

    /// Whether the peer grants the piece, or why not.
    pub fn code(&self) -> LockOpenCode {
        self.code
    }

    /// How new the peer's roster is.
    pub fn roster(&self) -> RosterPosition {
        self.roster
    }

    /// The piece, opened with the key that this end exported from the same connection for the same request.
    ///
    /// # Errors
    /// [`LockError::Reply`] if the reply has no piece, or belongs to another connection or request.
    pub fn open(&self, exporter_key: &Secret<32>) -> Result<Secret<32>, LockError> {
        let sealed = self.sealed.as_ref().ok_or(LockError::Reply)?;
        primitive::open_secret(exporter_key, [0; 12], &self.bound(), sealed).ok_or(LockError::Reply)
    }

    /// The bytes, as drawn above.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.bound().to_vec();
        bytes.extend(self.sealed.iter().flatten());
        bytes
    }

    /// Reads a reply that fills `bytes` exactly.
    ///
    /// # Errors
    /// [`FormatError`] for an unknown code or a wrong length.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes, "lock reply");
        reader.magic(REPLY_MAGIC)?;
        let code = LockOpenCode::ALL.get(usize::from(reader.u8()?)).ok_or(FormatError::Invalid("code"))?;
        let roster = RosterPosition { term: reader.u64()?, leader: NodeId(reader.u64()?), index: reader.u64()? };
        let sealed = match code {
            LockOpenCode::Ok => Some(reader.array()?),
            _ => None,
        };
        reader.finish()?;
        Ok(Self { code: *code, roster, sealed })
    }

    fn bound(&self) -> [u8; REPLY_BOUND_BYTES] {
        let mut bound = [0; REPLY_BOUND_BYTES];
        bound[..4].copy_from_slice(REPLY_MAGIC);
        bound[4] = self.code as u8;
        bound[5..13].copy_from_slice(&self.roster.term.to_be_bytes());
        bound[13..21].copy_from_slice(&self.roster.leader.0.to_be_bytes());
        bound[21..].copy_from_slice(&self.roster.index.to_be_bytes());
        bound
    }
}
