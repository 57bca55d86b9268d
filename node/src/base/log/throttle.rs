//! Lines that come too often are held back and counted.
//!
//! Much of what a node logs can be caused by others: by strangers, by clients, by a peer that asks again and again. So each place
//! in the code may say [`LINES_MAX`] lines a minute. What is beyond is counted, and the count is one line when the minute is
//! over. What an operator asked for with `debug` or `trace` is never held back.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::callsite::Identifier;
use tracing::{Event, Level, Metadata, Subscriber, info};
use tracing_subscriber::layer::{self, Context};

use super::TARGET;
use crate::base::clock::boot_ms;

/// Lines of one place in the code, in one [`MINUTE_MS`].
const LINES_MAX: u32 = 10;
const MINUTE_MS: u64 = 60_000;

/// How often each place in the code has said something lately.
#[derive(Default)]
pub(super) struct Throttle(Mutex<HashMap<Identifier, Place>>);

struct Place {
    metadata: &'static Metadata<'static>,
    since_ms: u64,
    said: u32,
    held_back: u64,
}

/// The filter of a subscriber. Its places are looked at from outside, too.
pub(super) struct Layer(pub(super) Arc<Throttle>);

impl<S: Subscriber> layer::Layer<S> for Layer {
    fn event_enabled(&self, event: &Event<'_>, _context: Context<'_, S>) -> bool {
        self.0.allows(event.metadata(), boot_ms())
    }
}

impl Throttle {
    fn allows(&self, metadata: &'static Metadata<'static>, now_ms: u64) -> bool {
        if *metadata.level() > Level::INFO || metadata.target() == TARGET {
            return true;
        }
        let mut places = self.0.lock();
        // Bounded by the number of places in the code.
        let place =
            places.entry(metadata.callsite()).or_insert(Place { metadata, since_ms: now_ms, said: 0, held_back: 0 });
        if place.is_over(now_ms) && place.held_back == 0 {
            (place.since_ms, place.said) = (now_ms, 0);
        }
        let allowed = place.said < LINES_MAX;
        match allowed {
            true => place.said += 1,
            false => place.held_back += 1,
        }
        allowed
    }

    /// Logs how many lines were held back in each minute that is over.
    pub(super) fn say_what_was_held_back(&self) {
        for (metadata, held_back) in self.take_over(boot_ms()) {
            let (level, file, line) = (metadata.level(), metadata.file(), metadata.line());
            info!(target: TARGET, held_back, %level, file, line, "lines from this place in the program were held back");
        }
    }

    /// Ends the minutes that are over, and returns what was held back in them.
    fn take_over(&self, now_ms: u64) -> Vec<(&'static Metadata<'static>, u64)> {
        let mut places = self.0.lock();
        let over = places.values_mut().filter(|place| place.is_over(now_ms) && place.held_back > 0);
        let over = over.map(|place| {
            let held_back = std::mem::take(&mut place.held_back);
            (place.since_ms, place.said) = (now_ms, 0);
            (place.metadata, held_back)
        });
        over.collect()
    }
}

impl Place {
    fn is_over(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.since_ms) >= MINUTE_MS
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// Counts the lines that pass the filter, by level.
    #[derive(Clone, Default)]
    struct Passed(Arc<Mutex<HashMap<Level, u64>>>);

    impl<S: Subscriber> layer::Layer<S> for Passed {
        fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
            *self.0.lock().entry(*event.metadata().level()).or_default() += 1;
        }
    }

    /// Mutated: without the bound, or with one for all places together, this fails.
    #[test]
    fn a_place_in_the_code_that_says_too_much_is_held_back_and_counted() {
        let (throttle, passed) = (Arc::new(Throttle::default()), Passed::default());
        let subscriber = tracing_subscriber::registry().with(Layer(Arc::clone(&throttle))).with(passed.clone());
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..1000 {
                tracing::warn!("a stranger can cause this");
                tracing::debug!("an operator asked for this");
            }
            tracing::error!("another place");
        });
        let passed = passed.0.lock().clone();
        let expected = [(Level::WARN, LINES_MAX.into()), (Level::DEBUG, 1000), (Level::ERROR, 1)];
        assert_eq!(passed, expected.into());
        let (over, not_over) = (boot_ms() + MINUTE_MS, boot_ms());
        assert!(throttle.take_over(not_over).is_empty(), "the minute is not over");
        let held_back: Vec<_> = throttle.take_over(over).into_iter().map(|(_, held_back)| held_back).collect();
        assert_eq!(held_back, [1000 - u64::from(LINES_MAX)]);
        assert!(throttle.take_over(over + MINUTE_MS).is_empty(), "it was said");
    }
}
