//! The first failure after which this node must stop.
//!
//! A deterministic refusal is an answer. Any other failure below `apply` means that this replica might diverge from the
//! others. So it logs the reason, once, and the node stops.

use std::sync::Arc;

use tokio::sync::watch;

use crate::stored::error::StorageError;

/// Remembers the first failure. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Fatal(Arc<watch::Sender<Option<Arc<str>>>>);

impl Fatal {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }

    /// Passes a result on, and remembers its error.
    pub(crate) fn guard<T>(&self, result: Result<T, StorageError>) -> Result<T, StorageError> {
        if let Err(error) = &result {
            self.raise(&error.to_string());
        }
        result
    }

    /// Remembers a failure, unless there was one before.
    pub(crate) fn raise(&self, reason: &str) {
        self.0.send_if_modified(|first| {
            let is_first = first.is_none();
            if is_first {
                tracing::error!(reason, "storage failed, the node must stop");
                *first = Some(reason.into());
            }
            is_first
        });
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.0.subscribe()
    }
}
