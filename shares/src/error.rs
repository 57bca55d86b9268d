//! What can go wrong: one enum per operation, with the facts in fields.
//!
//! Errors about secrets never carry any of their bytes. The opening of a ciphertext has a single error, [`Refused`], so
//! that an attacker does not learn from it which check failed.

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

/// A threshold that is not allowed: below a majority, or above the number of holders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{threshold} of {holders} is not a threshold: at least a majority of 1 to {max} holders", max = crate::split::HOLDERS_MAX)]
pub struct ThresholdError {
    /// How many shares were to rebuild a key.
    pub threshold: u8,
    /// How many shares were to be dealt.
    pub holders: u8,
}

/// Shares that cannot be combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CombineError {
    /// The number of shares is not the threshold.
    #[error("{have} shares where {need} are needed")]
    Count {
        /// How many shares were given.
        have: usize,
        /// How many shares are needed.
        need: usize,
    },
    /// A share number is zero, occurs twice or is above the number of holders.
    #[error("share number {0} is zero, repeated or too large")]
    Number(u8),
}

/// Why members do not form a committee.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommitteeError {
    /// The threshold does not fit the number of members.
    #[error(transparent)]
    Threshold(#[from] ThresholdError),
    /// A node is named twice, or is node 0.
    #[error("node {0} is named twice, or is no node")]
    Member(NodeId),
}

/// Why a key cannot be dealt to the holders of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DealError {
    /// The batch has dealt [`crate::seal::BATCH_RECORDS_MAX`] records. The dealer must open a new batch.
    #[error("the batch has dealt {max} records: open a new one", max = crate::seal::BATCH_RECORDS_MAX)]
    BatchFull,
    /// The key does not match the key-check value in its metadata.
    #[error("the key does not match its key-check value")]
    WrongKey,
    /// The key and the batch belong to different clusters.
    #[error("the key belongs to another cluster")]
    WrongCluster,
}

/// Why a holder cannot open its share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// The batch was dealt to a committee that is not the committee of its epoch.
    #[error("the batch was dealt to another committee")]
    Committee,
    /// The node has no place in the committee of this batch.
    #[error("node {0} holds no share in this batch")]
    NotAHolder(NodeId),
    /// The batch is sealed to a share key of this node that has another generation.
    #[error("the batch is sealed to another generation of the share key")]
    Generation,
    /// The record belongs to another batch, epoch, key or threshold. It names which of these differs.
    #[error("the record belongs to another {0}")]
    Record(&'static str),
    /// The encapsulation or the sealed share does not open: a wrong key, or damage.
    #[error("the share does not open")]
    Sealed,
    /// The opened share does not match the commitment in its record.
    #[error("the share does not match its commitment")]
    Commitment,
}

/// Why a quorum does not count a share, or does not rebuild the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuorumError {
    /// Record, key and committee do not belong together.
    #[error("the record is not of this committee")]
    Committee,
    /// The member is not a holder of this epoch, or holds a share with another number.
    #[error("node {member} does not hold share {x} of epoch {epoch}")]
    NotAHolder {
        /// The member that sent the share.
        member: NodeId,
        /// The share number that it claimed.
        x: u8,
        /// The epoch of the record.
        epoch: Epoch,
    },
    /// A share of this member is already counted.
    #[error("a share of node {0} is already counted")]
    Counted(NodeId),
    /// The member's share does not match the commitment in this node's own replica. The member is faulty or malicious.
    #[error("node {0} sent a wrong share")]
    WrongShare(NodeId),
    /// Fewer members than the threshold sent a share.
    #[error("have {have} of {need} shares")]
    TooFew {
        /// How many members are counted.
        have: usize,
        /// How many members are needed.
        need: usize,
    },
    /// Every share matches its commitment, but the rebuilt key does not match its key-check value.
    #[error("the rebuilt key does not match its key-check value")]
    WrongKey,
}

/// Why a lock cannot be made or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    /// The number of pieces needed does not fit the number of peers.
    #[error("{needed} of {peers} peers is not a threshold of a lock")]
    Threshold {
        /// How many pieces were to open the lock.
        needed: u8,
        /// How many peers were to hold a piece.
        peers: usize,
    },
    /// A peer is named twice, is the node itself, or has the id zero.
    #[error("node {0} is named twice, is the node itself, or is no node")]
    Peer(NodeId),
    /// The pin is empty, longer than [`crate::lock::PIN_BYTES_MAX`], or not the one that is stored in the lock.
    #[error("the pin is not usable")]
    Pin,
    /// The bundle holds more than [`crate::lock::BUNDLE_KEYS_MAX`] keys, or a number twice.
    #[error("the bundle is not valid")]
    Bundle,
    /// The number of distinct pieces is not the number that the lock needs.
    #[error(transparent)]
    Pieces(#[from] CombineError),
    /// A piece does not open with this lock key.
    #[error("the piece does not open with this key")]
    Piece,
    /// The reply carries no piece, or belongs to another connection or request.
    #[error("the reply does not open on this connection")]
    Reply,
    /// The bundle does not open. A wrong pin, a wrong piece and a damaged lock look alike.
    #[error("the bundle does not open: wrong pin, wrong piece or damaged lock")]
    Sealed,
}

/// Why pairs of names and values do not form a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ContextError {
    /// A name occurs twice.
    #[error("a name occurs twice in the context")]
    Duplicate,
    /// A name is empty.
    #[error("a name in the context is empty")]
    EmptyName,
    /// The context has more than [`crate::context::CONTEXT_BYTES_MAX`] bytes.
    #[error("the context is larger than {max} bytes", max = crate::context::CONTEXT_BYTES_MAX)]
    TooLarge,
}

/// Why text or bytes are not a ciphertext.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CiphertextError {
    /// The form is not one that any version of Quorate writes. It says what is wrong.
    #[error("not a ciphertext: {0}")]
    Malformed(&'static str),
    /// This version does not know the kind or the suite.
    #[error("a ciphertext of an unknown kind or suite")]
    Unknown,
    /// The body is longer than that of the longest plaintext.
    #[error("the ciphertext is larger than any message")]
    TooLarge,
}

/// A plaintext is longer than [`crate::envelope::PLAINTEXT_BYTES_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message has at most {max} bytes", max = crate::envelope::PLAINTEXT_BYTES_MAX)]
pub struct MessageTooLarge;

/// A ciphertext does not open. A wrong key, a wrong context and damage give this same error, so that an attacker learns
/// nothing from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the ciphertext does not open with this key and context")]
pub struct Refused;
