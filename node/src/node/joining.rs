//! How far this node is on its way into a cluster: what it shows, and what only this process knows.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use quorate_shares::ids::NodeId;
use tracing::info;

/// How far founding is, in words and names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FoundingProgress {
    /// The step under way; empty when there is none.
    pub step: String,
    /// The nodes, or others, that it waits for.
    pub waiting_for: Vec<String>,
    /// Why it ended without a cluster.
    pub refused: Option<String>,
}

/// The founding of a cluster, or the joining of one.
#[derive(Default)]
pub struct Joining {
    founding: Mutex<FoundingProgress>,
    /// The founding attempt that this process made its lock for.
    pub locked_attempt: Mutex<Option<u32>>,
    /// Founders whose locks of the named attempt are durable, as the first founder hears of them.
    locked: Mutex<(u32, BTreeSet<NodeId>)>,
}

impl Joining {
    /// One that was refused, and is over.
    pub fn refused(reason: &str) -> Self {
        let founding = FoundingProgress { refused: Some(reason.to_owned()), ..FoundingProgress::default() };
        Self { founding: Mutex::new(founding), ..Self::default() }
    }

    /// How far it is.
    pub fn founding(&self) -> FoundingProgress {
        self.founding.lock().clone()
    }

    /// Publishes how far it is.
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
