//! What a change did: the answer to its proposer.

use quorate_shares::ids::{BatchId, Epoch, KeyUid, KeyVersion, NodeId};
use serde::{Deserialize, Serialize};

/// The answer to a change that was applied: now, or when it was proposed first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Founded,
    /// The epoch is open.
    EpochOpened {
        epoch: Epoch,
    },
    /// The acknowledgement is counted.
    EpochAcked {
        epoch: Epoch,
        node: NodeId,
    },
    /// The epoch is ACTIVE.
    EpochActivated {
        epoch: Epoch,
    },
    /// Records of the batch may follow.
    BatchOpened {
        batch: BatchId,
    },
    /// The version exists. It encrypts once it is ready.
    VersionMade {
        /// The key. If the request repeats an earlier one, it is the key that the earlier one made.
        uid: KeyUid,
        version: KeyVersion,
        /// In the state's time.
        created_ms: u64,
    },
    /// The keys exist, each with its version 1. They encrypt once they are ready.
    KeysMade {
        /// In the order in which they were ordered.
        uids: Vec<KeyUid>,
    },
    /// The records are marked as verified.
    MadeReady {
        /// How many versions became able to encrypt.
        versions: u32,
    },
    /// The lock report is stored, unless a newer one was already.
    LockReported {
        node: NodeId,
    },
    /// The operation runs, or is finished.
    Begun {
        /// The epoch that the operation opens; its number names the operation.
        operation: Epoch,
    },
    /// The share key is registered.
    ShareKeyRegistered {
        node: NodeId,
    },
    /// The invitation can be proved.
    Invited,
    /// The node that joins has an id, and is a member from now on.
    Registered {
        node: NodeId,
    },
    /// The records are stored.
    Reshared {
        /// Versions that still lack a record in the PENDING epoch.
        left: u64,
    },
    /// The nodes that leave are no longer members.
    Expelled,
    /// The epoch is RETIRED.
    EpochRetired {
        epoch: Epoch,
    },
    /// The operation is over.
    Finished {
        /// The operation, by its epoch.
        operation: Epoch,
    },
    /// Some remains of the epoch are dropped.
    Swept {
        epoch: Epoch,
        /// Whether nothing is left.
        done: bool,
    },
    /// The feature level is at least this one.
    LevelRaised {
        level: u16,
    },
    /// The operators are those that were ordered.
    OperatorsChanged,
    /// The addresses are those of the member from now on.
    AddressesSet {
        node: NodeId,
    },
}
