//! What a change did: the answer to its proposer.

use quorate_shares::ids::{BatchId, Epoch, KeyUid, KeyVersion, NodeId};
use serde::{Deserialize, Serialize};

/// The answer to a change that was made, now or at the first of several repetitions.
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
        /// The key, which is another than the request's when the request repeats an earlier one.
        uid: KeyUid,
        version: KeyVersion,
        /// When it was made, in the state's time.
        created_ms: u64,
    },
    /// The records are marked as verified.
    MadeReady {
        /// How many versions can encrypt now that could not before.
        versions: u32,
    },
    /// The lock report is stored, unless a newer one was already.
    LockReported {
        node: NodeId,
    },
    /// The operation runs, or ran to its end.
    Begun {
        /// The epoch that it brings, which names it.
        operation: Epoch,
    },
    /// The share key is registered.
    ShareKeyRegistered {
        node: NodeId,
    },
    /// The invitation can be proved.
    Invited,
    /// The joiner has an id.
    Admitted {
        node: NodeId,
    },
    /// The records are stored.
    Redealt {
        /// Versions that still lack a record in the PENDING epoch.
        left: u64,
    },
    /// They are members no more.
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
    /// Some of what was left of the epoch is gone.
    Swept {
        epoch: Epoch,
        /// Whether nothing is left.
        done: bool,
    },
}
