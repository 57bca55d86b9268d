//! Which terms a replica believes.
//!
//! A replica remembers the vote that it took over last, for ever. After a vote with the largest term no leader could be elected any
//! more. So terms rise at a bounded pace, and a member that lies needs a hundred thousand years to reach the end.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// By how many terms a replica may be ahead. Every election raises the term by one, so an honest member is never so far ahead of
/// another one, unless a member that lies has raised the term while the other one was away.
pub(crate) const STEP: u64 = 1 << 20;
/// How long it takes until the term may rise by a whole step again.
const PAUSE: Duration = Duration::from_millis(100);

/// The highest term that this replica was shown, as far as it believes it.
///
/// A term that is too far ahead is refused, and raises what is believed as far as the pace allows. So a replica that was away, or is
/// new, follows after some refusals. It needs as long as the member that lied has lied, at most.
#[derive(Debug, Default)]
pub(crate) struct Terms(Mutex<Believed>);

#[derive(Debug, Default)]
struct Believed {
    term: u64,
    /// By how much the term may rise at `since`; `None` before the first message.
    room: Option<(u64, Instant)>,
}

impl Terms {
    /// Whether a vote of `term` may be taken over by a replica with a vote of `own`.
    ///
    /// # Errors
    /// The highest term that is believed. `term` is too far above it.
    pub(crate) fn check(&self, term: u64, own: u64) -> Result<(), u64> {
        self.0.lock().check(term, own, Instant::now())
    }
}

impl Believed {
    fn check(&mut self, term: u64, own: u64, now: Instant) -> Result<(), u64> {
        self.term = self.term.max(own);
        let room = self.room.map_or(STEP, |(room, since)| {
            let passed = now.saturating_duration_since(since).min(PAUSE).as_micros() as u64;
            (room + STEP * passed / PAUSE.as_micros() as u64).min(STEP)
        });
        let (known, limit) = (self.term, self.term.saturating_add(room));
        self.term = term.clamp(known, limit);
        self.room = Some((room - (self.term - known), now));
        if term <= limit { Ok(()) } else { Err(known) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_rise_at_a_bounded_pace_and_every_term_is_reached() {
        let (mut terms, begin) = (Believed::default(), Instant::now());
        let mut check = |term, own, pauses: u32| terms.check(term, own, begin + PAUSE * pauses);
        assert_eq!(check(7 + STEP, 7, 0), Ok(()));
        assert_eq!(check(8 + STEP, 7, 0), Err(7 + STEP), "no room is left");
        assert_eq!(check(u64::MAX, 7, 1), Err(7 + STEP));
        assert_eq!(check(u64::MAX, 7, 1), Err(7 + 2 * STEP), "repeating it at once adds nothing");
        assert_eq!(check(7 + 3 * STEP, 7, 2), Ok(()), "what was shown is remembered");
        assert_eq!(check(u64::MAX, u64::MAX - 5, 3), Ok(()), "the own term counts");
    }
}
