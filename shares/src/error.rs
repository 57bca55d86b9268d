//! What can go wrong, one enum per operation, the facts in fields.
//!
//! Errors about secrets never carry any of their bytes. The opening of a ciphertext has a single error, [`Refused`], so
//! that nobody learns from it which check failed.

use crate::ids::{Epoch, NodeId};

/// Bytes that are not the structure that was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The bytes end inside a field. It names the structure.
    #[error("the bytes end inside {0}")]
    Short(&'static str),
    /// Bytes remain after the last field.
    #[error("{0} bytes after the end of the value")]
    Trailing(usize),
    /// The first bytes name another structure.
    #[error("not the expected kind of bytes")]
    Magic,
    /// A field holds a value that no writer produces. It names the field.
    #[error("invalid {0}")]
    Invalid(&'static str),
    /// A list is longer than its limit.
    #[error("more than {limit} {what}")]
    TooMany {
        /// What the list holds.
        what: &'static str,
        /// Most entries that are accepted.
        limit: usize,
    },
}

/// A threshold that must never be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{threshold} of {holders} is not a threshold: at least a majority of 1 to {max} holders", max = crate::split::HOLDERS_MAX)]
pub struct ThresholdError {
    /// Shares needed.
    pub threshold: u8,
    /// Shares dealt.
    pub holders: u8,
}

/// Shares that cannot be combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CombineError {
    /// Not exactly as many shares as the threshold.
    #[error("{have} shares where {need} are needed")]
    Count {
        /// Shares given.
        have: usize,
        /// Shares needed.
        need: usize,
    },
    /// A share number is zero, occurs twice or lies beyond the last holder.
    #[error("share number {0} is zero, repeated or too large")]
    Number(u8),
}

/// A committee that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommitteeError {
    /// See [`ThresholdError`].
    #[error(transparent)]
    Threshold(#[from] ThresholdError),
    /// A node is named twice, or is node 0.
    #[error("node {0} cannot be a holder, or not twice")]
    Member(NodeId),
}

/// Why a key cannot be dealt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DealError {
    /// The batch has dealt all that it may: open a new one.
    #[error("the batch has dealt {max} records: open a new one", max = crate::seal::BATCH_RECORDS_MAX)]
    BatchFull,
    /// The key does not match the key-check value in its metadata.
    #[error("the key does not match its key-check value")]
    WrongKey,
    /// The key belongs to another cluster than the batch.
    #[error("the key belongs to another cluster")]
    WrongCluster,
}

/// Why a holder cannot open its share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// The batch was dealt to a committee other than the one that the epoch has.
    #[error("the batch was dealt to another committee")]
    Committee,
    /// The node holds no share in this batch.
    #[error("node {0} holds no share in this batch")]
    NotAHolder(NodeId),
    /// The batch is sealed to another generation of the node's share key.
    #[error("the batch is sealed to another generation of the share key")]
    Generation,
    /// The record is of another batch, epoch, key or threshold than expected.
    #[error("the record belongs to another {0}")]
    Record(&'static str),
    /// The encapsulation or the sealed share does not open.
    #[error("the share does not open")]
    Sealed,
    /// The share does not match its commitment.
    #[error("the share does not match its commitment")]
    Commitment,
}

/// Why a quorum does not accept a share, or does not close.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuorumError {
    /// The record and the committee disagree about the number of holders.
    #[error("the record is not of this committee")]
    Committee,
    /// The member is not a holder of this epoch, or not of this share number.
    #[error("node {member} does not hold share {x} of epoch {epoch}")]
    NotAHolder {
        /// Who sent the share.
        member: NodeId,
        /// The share number it claimed.
        x: u8,
        /// The epoch of the record.
        epoch: Epoch,
    },
    /// The member has been counted already.
    #[error("node {0} has been counted already")]
    Counted(NodeId),
    /// The member's share does not match the commitment in this node's own replica.
    #[error("node {0} sent a wrong share")]
    WrongShare(NodeId),
    /// Not enough members.
    #[error("have {have} of {need} shares")]
    TooFew {
        /// Members counted.
        have: usize,
        /// Members needed.
        need: usize,
    },
    /// Every share matched its commitment, and yet the key is not the one that was dealt.
    #[error("the rebuilt key does not match its key-check value")]
    WrongKey,
}

/// Why a lock cannot be made or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    /// Pieces needed and peers named do not go together.
    #[error("a lock of {needed} pieces among {peers} peers cannot be")]
    Threshold {
        /// Pieces needed.
        needed: u8,
        /// Peers named.
        peers: usize,
    },
    /// A peer is named twice, or is the node itself, or nobody.
    #[error("node {0} cannot hold a piece, or not twice")]
    Peer(NodeId),
    /// The pin is empty or too long, or not the one that is kept in the lock.
    #[error("the pin is not usable")]
    Pin,
    /// Too many keys for one bundle, or a number twice.
    #[error("the bundle is not valid")]
    Bundle,
    /// Not exactly as many distinct pieces as the lock needs.
    #[error(transparent)]
    Pieces(#[from] CombineError),
    /// A piece does not open with this lock key.
    #[error("the piece does not open with this key")]
    Piece,
    /// The reply carries no piece, or not for this connection.
    #[error("the reply does not open on this connection")]
    Reply,
    /// The bundle does not open: a wrong pin, a wrong piece, or a damaged lock.
    #[error("the bundle does not open: wrong pin, wrong piece or damaged lock")]
    Sealed,
}

/// A context that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ContextError {
    /// One name, two values.
    #[error("a name occurs twice in the context")]
    Duplicate,
    /// An empty name.
    #[error("a name in the context is empty")]
    EmptyName,
    /// More than [`crate::context::CONTEXT_BYTES_MAX`].
    #[error("the context is larger than {max} bytes", max = crate::context::CONTEXT_BYTES_MAX)]
    TooLarge,
}

/// Text or bytes that are not a ciphertext.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CiphertextError {
    /// Not of the form that any version of Quorate writes.
    #[error("not a ciphertext: {0}")]
    Malformed(&'static str),
    /// A kind or suite that this version does not know.
    #[error("a ciphertext of an unknown kind or suite")]
    Unknown,
    /// Larger than any message.
    #[error("the ciphertext is larger than any message")]
    TooLarge,
}

/// A plaintext beyond [`crate::envelope::PLAINTEXT_BYTES_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message has at most {max} bytes", max = crate::envelope::PLAINTEXT_BYTES_MAX)]
pub struct MessageTooLarge;

/// A ciphertext does not open, and that is all that is said: wrong key, wrong context and damage look alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the ciphertext does not open with this key and context")]
pub struct Refused;
