//! The replicated state of Quorate: what the cluster knows, agreed by Raft and kept on disk.
//!
//! This is the only crate that knows openraft and RocksDB. The rest of the program uses a [`Replica`]: it proposes a
//! [`command::Command`], reads the [`state::State`], follows changes and leadership, and provides the [`Link`] that carries
//! messages between replicas. [`plan`] finds the leader's next step.
//!
//! In reading order, where each folder uses only those before it:
//!
//! | folder | what it answers |
//! |---|---|
//! | `live/` | what does the cluster know, and what may change it? Pure: [`command`], [`refusal`], [`state`], [`rows`], [`plan`], [`voters`] |
//! | `types` | which types is openraft told to work with? |
//! | `stored/` | what lies on the disk, and as which bytes? [`seal`], the database, the formats, [`offline`] |
//! | `log/` | what did this replica promise to the others, and what of it is durable? |
//! | `snapshot/` | how is the whole state written to a file, and read from one? |
//! | `consensus/` | how do the replicas agree? openraft, messages, and the handle [`Replica`] |
//!
//! ```text
//! propose ─► openraft ─► log ─► flusher: one sync for many
//!               │  └───► network ─► Link ┄┄► serve ─► openraft of another node
//!               └─► machine: apply ─► rows + applied position, one batch ─► answer
//! ```
//!
//! The storage keys are the only secrets here: share records are sealed to their holders before they come here.
#![warn(clippy::print_stderr)] // what a daemon says goes through its log

mod live;
mod types;

mod stored;

mod log;
mod snapshot;

mod consensus;

#[doc(hidden)]
pub mod formats;
#[cfg(fuzzing)]
pub mod fuzzing;

pub use consensus::error::{InitializeError, ProposeError, ReadError, ReadIndexError, RebuildError, WaitError};
pub use consensus::messages::MESSAGE_BYTES_MAX;
pub use consensus::network::{Link, LinkError, MessageClass};
pub use consensus::open::Stored;
pub use consensus::options::{Options, Timing};
pub use consensus::rebuild::Rebuild;
pub use consensus::replica::{Leadership, Replica};
pub use consensus::serve::ServeError;
pub use live::place::{Ballot, LogPlace};
pub use live::refusal::Refusal;
pub use live::voters::{ChangeError, ChangePurpose, Denial, Gate, Intent, Membership};
pub use live::{command, idle, level, plan, refusal, rows, state, voters};
pub use log::Flushed;
pub use snapshot::CHUNK_BYTES_MAX;
pub use stored::error::{OpenError, StorageError, StorageProblem};
pub use stored::seal::StorageKeys;
pub use stored::{offline, seal};

#[cfg(test)]
mod tests;
