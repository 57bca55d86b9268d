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
/// Newcomers that come one after the other and are let in at any time. If the machine is slow, or the task that accepts gets no
/// processor for a moment, a few are no overload.
const FEW: u32 = 16;

/// The queue of newcomers.
#[derive(Default)]
pub(super) struct Newcomers {
    standing: Option<Standing>,
}

/// A queue that has not been empty for some time.
struct Standing {
    since: Instant,
    /// How many have come since then.
    came: u32,
}

impl Newcomers {
    /// No newcomer waits.
    pub(super) fn note_none(&mut self) {
        self.standing = None;
    }

    /// A newcomer waits. Returns whether too many have come for too long.
    pub(super) fn is_too_many(&mut self, now: Instant) -> bool {
        let standing = self.standing.get_or_insert(Standing { since: now, came: 0 });
        standing.came = standing.came.saturating_add(1);
        standing.came > FEW && now.duration_since(standing.since) > STANDING
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutated: without the pause that ends a rush, a node that once had one refuses everybody; with the time alone, a slow node
    /// refuses the second of two.
    #[test]
    fn a_rush_is_let_in_and_a_standing_queue_is_not() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut newcomers = Newcomers::default();
        assert!((0..=100).all(|ms| !newcomers.is_too_many(at(ms))), "a rush");
        assert!(newcomers.is_too_many(at(101)) && newcomers.is_too_many(at(500)), "it stands");
        newcomers.note_none();
        assert!((501..=600).all(|ms| !newcomers.is_too_many(at(ms))), "the next rush");
        newcomers.note_none();
        assert!((0..u64::from(FEW)).all(|number| !newcomers.is_too_many(at(1000 * number))), "a few");
        assert!(newcomers.is_too_many(at(1000 * u64::from(FEW))), "no end of them");
    }
}
