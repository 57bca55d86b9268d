//! The clocks of a node. Decisions use [`boot_ms`], which counts while the machine sleeps. People read [`wall_ms`].

use std::time::{SystemTime, UNIX_EPOCH};

pub use quorate_client::clock::boot_ms;

/// Milliseconds since 1970, for stamps that people read. It decides one thing only: when an invitation expires.
pub fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// The time stamps of what a leader proposes.
///
/// Time in the replicated state never goes back. Scenario: the wall clock of one leader is a day ahead for a moment. If all
/// later stamps came from wall clocks alone, the time in the state would stand still for a day, and no invitation would expire.
/// So the time goes on by [`boot_ms`], a clock that cannot be set. It goes on at half the pace, so that the wall clocks catch up.
#[derive(Debug, Default)]
pub struct Stamps {
    time_ms: u64,
    at_ms: u64,
}

impl Stamps {
    /// Notes that the time in the state is `time_ms` at `now_ms` ([`boot_ms`]). The next leader goes on from there.
    pub fn follow_at(&mut self, time_ms: u64, now_ms: u64) {
        if time_ms > self.continued_at(now_ms) {
            *self = Self { time_ms, at_ms: now_ms };
        }
    }

    /// The stamp at `now_ms` while the wall clock says `wall_ms`.
    pub fn stamp_at(&self, wall_ms: u64, now_ms: u64) -> u64 {
        wall_ms.max(self.continued_at(now_ms))
    }

    fn continued_at(&self, now_ms: u64) -> u64 {
        self.time_ms.saturating_add(now_ms.saturating_sub(self.at_ms) / 2)
    }
}

/// A clock that counts at most two seconds between two readings.
///
/// Scenario: a leader stands still for ten minutes, as a virtual machine that is paused, while it counts for how long others owe it
/// something. The others did all that they could. Work between two readings may take longer, too. Then the others get more time, which
/// is the safe side.
#[derive(Debug, Default)]
pub struct Watched {
    counted_ms: u64,
    read_at_ms: Option<u64>,
}

/// The longest pause between two readings that counts in full.
const PAUSE_MAX_MS: u64 = 2_000;

impl Watched {
    /// The time that counts, in milliseconds, at `now_ms` ([`boot_ms`]).
    pub fn read_at(&mut self, now_ms: u64) -> u64 {
        let pause = now_ms.saturating_sub(self.read_at_ms.unwrap_or(now_ms));
        self.counted_ms += pause.min(PAUSE_MAX_MS);
        self.read_at_ms = Some(now_ms);
        self.counted_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutated: with every pause in full, a member that did its part is idle after a pause of the leader.
    #[test]
    fn a_pause_of_the_one_who_counts_does_not_count() {
        let mut clock = Watched::default();
        assert_eq!(clock.read_at(70_000), 0, "it begins when it is read first");
        for second in 1..=60 {
            assert_eq!(clock.read_at(70_000 + second * 1_000), second * 1_000);
        }
        assert_eq!(clock.read_at(730_000), 60_000 + PAUSE_MAX_MS, "ten minutes");
        assert_eq!(clock.read_at(730_250), 60_250 + PAUSE_MAX_MS);
    }

    /// Mutated: without `continued_at` the stamps stand still; at the full pace they stay ahead for ever.
    #[test]
    fn time_goes_on_at_half_the_pace_until_the_wall_clock_has_caught_up() {
        let mut stamps = Stamps::default();
        stamps.follow_at(1_000_000, 100);
        assert_eq!(stamps.stamp_at(1_000_500, 600), 1_000_500, "a wall clock that is right");
        // It was a day ahead for a moment.
        let ahead = 1_000_600 + 86_400_000;
        stamps.follow_at(ahead, 700);
        let stamp = stamps.stamp_at(1_008_600, 8_700);
        assert_eq!(stamp, ahead + 4_000);
        // The state then has this stamp and earlier ones. They change nothing.
        stamps.follow_at(stamp, 8_710);
        stamps.follow_at(ahead, 8_720);
        assert_eq!(stamps.stamp_at(1_016_600, 16_700), ahead + 8_000);
        let two_days = 2 * 86_400_000;
        assert_eq!(stamps.stamp_at(1_000_600 + two_days, 700 + two_days), 1_000_600 + two_days, "caught up");
    }
}
