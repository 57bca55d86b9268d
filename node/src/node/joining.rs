//! The progress of founding or joining: what the status shows, and what only this process knows.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicUsize;

use parking_lot::Mutex;
use quorate_shares::ids::NodeId;
use tracing::info;

/// The progress of founding or joining, as the status shows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FoundingProgress {
    /// The step under way; empty if there is none.
    pub step: String,
    /// What it waits for: names of nodes, or a description.
    pub waiting_for: Vec<String>,
    /// Why it ended without a cluster.
    pub refused: Option<String>,
}

/// What this process knows about its founding or joining.
#[derive(Default)]
pub struct Joining {
    founding: Mutex<FoundingProgress>,
    /// How many times members said that they do not reach this node.
    pub unreachable_replies: AtomicUsize,
    /// The founding attempt that this process made its lock for.
    pub locked_attempt: Mutex<Option<u32>>,
    /// At the first founder: an attempt, and the founders whose locks of that attempt are durable.
    locked: Mutex<(u32, BTreeSet<NodeId>)>,
}

impl Joining {
    /// A join that was refused, and is over.
    pub fn refused(reason: &str) -> Self {
        let founding = FoundingProgress { refused: Some(reason.to_owned()), ..FoundingProgress::default() };
        Self { founding: Mutex::new(founding), ..Self::default() }
    }

    pub fn founding(&self) -> FoundingProgress {
        self.founding.lock().clone()
    }

    /// Publishes the progress.
    pub fn progress(&self, step: &str, waiting_for: Vec<String>) {
        let now = FoundingProgress { step: step.to_owned(), waiting_for, refused: None };
        let mut shown = self.founding.lock();
        if *shown != now {
            info!(step = %now.step, waiting_for = ?now.waiting_for, "founding");
            *shown = now;
        }
    }

    /// Notes that a founder's lock of an attempt is durable.
    pub fn note_locked(&self, founder: NodeId, attempt: u32) {
        let mut locked = self.locked.lock();
        if locked.0 != attempt {
            *locked = (attempt, BTreeSet::new());
        }
        locked.1.insert(founder);
    }

    /// Founders whose locks of the newest attempt are durable.
    pub fn locked(&self) -> BTreeSet<NodeId> {
        self.locked.lock().1.clone()
    }
}
