//! Waiting for something to become true, never for some time to pass.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// A condition that did not become true in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("waited {waited_s} s for {what}, and it did not come")]
pub struct NotInTime {
    /// What was waited for.
    pub what: String,
    /// How long, in seconds.
    pub waited_s: u64,
}

/// Looks until `probe` finds something.
///
/// # Errors
/// [`NotInTime`] after `patience`.
pub fn wait_until<T>(
    what: impl Into<String>,
    patience: Duration,
    mut probe: impl FnMut() -> Option<T>,
) -> Result<T, NotInTime> {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return Ok(found);
        }
        if start.elapsed() >= patience {
            return Err(NotInTime { what: what.into(), waited_s: patience.as_secs() });
        }
        std::thread::sleep(POLL);
    }
}
