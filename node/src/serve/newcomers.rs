//! Newcomers that wait to be let in, and when the node is too busy to let in more.
//!
//! A handshake costs a node as much as twenty requests. So the task that accepts begins one handshake at a time, and then lets
//! all other tasks run. New connections wait in its queue. If the queue was never empty for [`STANDING`], the node is asked for
//! more than it can do: then the connections that wait are refused at once, until the queue is empty. A client that is refused
//! asks another node, or the same one a little later.
//!
//! A short rush is no overload: it may fill the queue for a moment, and every one of it is let in. This is the idea of CoDel
//! (RFC 8289): not the length of a queue counts, but for how long it has been standing.

use std::time::{Duration, Instant};

/// How long newcomers may wait without a pause. A client asks another node after 250 ms without an answer, so it is told before.
const STANDING: Duration = Duration::from_millis(100);

/// The queue of newcomers.
#[derive(Default)]
pub(super) struct Newcomers {
    /// Since when at least one newcomer has waited.
    since: Option<Instant>,
}

impl Newcomers {
    /// No newcomer waits.
    pub(super) fn note_none(&mut self) {
        self.since = None;
    }

    /// A newcomer waits. Returns whether it has been so for too long.
    pub(super) fn is_too_many(&mut self, now: Instant) -> bool {
        now.duration_since(*self.since.get_or_insert(now)) > STANDING
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutated: without the pause that ends a rush, a node that once had one refuses everybody.
    #[test]
    fn a_rush_is_let_in_and_a_standing_queue_is_not() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut newcomers = Newcomers::default();
        assert!((0..=100).all(|ms| !newcomers.is_too_many(at(ms))), "a rush");
        assert!(newcomers.is_too_many(at(101)) && newcomers.is_too_many(at(500)), "it stands");
        newcomers.note_none();
        assert!((501..=600).all(|ms| !newcomers.is_too_many(at(ms))), "the next rush");
    }
}
