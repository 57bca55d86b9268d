//! Which terms a replica believes.
//!
//! A replica remembers the vote that it took over last, for ever. After a vote with the largest term no leader could be elected any
//! more. So a term may be ahead by a bounded step, and a member that lies needs 2^44 messages to reach the end.

use std::sync::atomic::{AtomicU64, Ordering};

/// By how many terms a message may be ahead. Every election raises the term by one, so an honest member is never so far ahead of
/// another one, unless a member that lies has raised the term while the other one was away.
pub(crate) const STEP: u64 = 1 << 20;

/// The highest term that this replica was shown, by steps.
///
/// A term that is too far ahead is refused, and raises what is believed by one step. So a replica that was away, or is new, follows
/// after some refusals, however far the others are.
#[derive(Debug, Default)]
pub(crate) struct Terms(AtomicU64);

impl Terms {
    /// Whether a vote of `term` may be taken over by a replica with a vote of `own`.
    ///
    /// # Errors
    /// The highest term that is believed. `term` is more than [`STEP`] above it.
    pub(crate) fn check(&self, term: u64, own: u64) -> Result<(), u64> {
        let believed = self.0.load(Ordering::Relaxed).max(own);
        let limit = believed.saturating_add(STEP);
        if term <= limit {
            return Ok(());
        }
        self.0.fetch_max(limit, Ordering::Relaxed);
        Err(believed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_rises_by_one_step_at_most_and_every_term_is_reached() {
        let terms = Terms::default();
        assert_eq!(terms.check(7 + STEP, 7), Ok(()));
        assert_eq!(terms.check(u64::MAX, 7), Err(7));
        assert_eq!(terms.check(u64::MAX, 7), Err(7 + STEP));
        assert_eq!(terms.check(7 + 3 * STEP, 7), Ok(()), "what was shown is remembered");
        assert_eq!(terms.check(u64::MAX, u64::MAX - 5), Ok(()), "the own term counts");
    }
}
