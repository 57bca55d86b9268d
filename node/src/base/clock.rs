//! The clocks of a node: one that counts while the machine sleeps, for every decision, and one for people.

use std::time::{SystemTime, UNIX_EPOCH};

pub use quorate_client::clock::boot_ms;

/// Milliseconds since 1970, for stamps that people read. No decision rests on it but when an invitation expires.
pub fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// The time that a leader gives to what it proposes.
///
/// Time in the state never goes back. So if a wall clock was ahead once, it would stand still until all the others have come so
/// far, and no invitation would expire. It goes on instead by the clock that nobody sets, at half the pace so that the wall
/// clocks do come up.
#[derive(Debug, Default)]
pub struct Stamps {
    time_ms: u64,
    at_ms: u64,
}

impl Stamps {
    /// Notes how far time in the state is at `now_ms` ([`boot_ms`]); whoever leads next goes on from there.
    pub fn follow_at(&mut self, time_ms: u64, now_ms: u64) {
        if time_ms > self.goes_on_at(now_ms) {
            *self = Self { time_ms, at_ms: now_ms };
        }
    }

    /// The stamp at `now_ms` while the wall clock says `wall_ms`.
    pub fn stamp_at(&self, wall_ms: u64, now_ms: u64) -> u64 {
        wall_ms.max(self.goes_on_at(now_ms))
    }

    fn goes_on_at(&self, now_ms: u64) -> u64 {
        self.time_ms.saturating_add(now_ms.saturating_sub(self.at_ms) / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutated: without what goes on, the stamps stand still; at the full pace they stay ahead for ever.
    #[test]
    fn time_goes_on_by_the_clock_that_nobody_sets_until_the_wall_clock_has_come_so_far() {
        let mut stamps = Stamps::default();
        stamps.follow_at(1_000_000, 100);
        assert_eq!(stamps.stamp_at(1_000_500, 600), 1_000_500, "a wall clock that is right");
        // It was a day ahead for a moment.
        let ahead = 1_000_600 + 86_400_000;
        stamps.follow_at(ahead, 700);
        let stamp = stamps.stamp_at(1_008_600, 8_700);
        assert_eq!(stamp, ahead + 4_000);
        // What comes back from the state is no later.
        stamps.follow_at(stamp, 8_710);
        stamps.follow_at(ahead, 8_720);
        assert_eq!(stamps.stamp_at(1_016_600, 16_700), ahead + 8_000);
        let two_days = 2 * 86_400_000;
        assert_eq!(stamps.stamp_at(1_000_600 + two_days, 700 + two_days), 1_000_600 + two_days, "caught up");
    }
}
