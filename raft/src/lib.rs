//! The replicated state of Quorate: what the cluster knows, agreed by Raft and kept on disk.
//!
//! This is the only crate that knows openraft and RocksDB; the rest of the program sees a [`Replica`]. It proposes a
//! [`command::Command`], reads the [`state::State`], follows changes and leadership, and carries messages between replicas
//! through a [`Link`]. What follows from the state for the leader is said by [`plan`].
//!
//! In reading order: what can change ([`command`], [`refusal`]), what it changes ([`state`], [`rows`]), what comes next
//! ([`plan`]), and who votes ([`voters`]), all pure; then bytes at rest ([`seal`], the disk, the log, the state machine, snapshots); then other nodes
//! (messages, network); last the handle.
//!
//! ```text
//! propose ─► openraft ─► log ─► flusher: one sync for many
//!               │  └───► network ─► Link ┄┄► serve ─► openraft of another node
//!               └─► machine: apply ─► rows + how far they go, one batch ─► answer
//! ```
//!
//! It holds no secret but the storage keys: share records are sealed to their holders before they come here.

pub mod command;
pub mod plan;
pub mod refusal;
pub mod rows;
pub mod state;
pub mod voters;

mod disk;
mod fatal;
mod format;
mod log;
mod machine;
mod recent;
pub mod seal;
mod snapshot;

mod change;
pub mod error;
mod messages;
mod network;
mod options;
mod rebuild;
mod replica;
mod serve;
mod types;

pub mod offline;

#[doc(hidden)]
pub mod formats;
#[cfg(fuzzing)]
pub mod fuzzing;

pub use error::{
    ChangeError, InitializeError, OpenError, ProposeError, ReadError, ReadIndexError, RebuildError, StorageError,
    WaitError,
};
pub use format::{Ballot, LogPlace};
pub use log::Flushed;
pub use messages::MESSAGE_BYTES_MAX;
pub use network::{Lane, Link, LinkError};
pub use options::{Options, Timing};
pub use rebuild::Rebuild;
pub use refusal::Refusal;
pub use replica::{Leadership, Replica, Stored};
pub use seal::StorageKeys;
pub use serve::ServeError;
pub use snapshot::CHUNK_BYTES_MAX;
pub use voters::{Denial, Gate, Intent, Membership, Purpose};

#[cfg(test)]
mod tests;
