//! Hedges: when a request goes to one more node although the first may still answer.
//!
//! A hedge hides one slow node. If all nodes are slow because too much is asked of them, hedges ask still more of them, and
//! then no client is answered. So a client hedges soon only for a share of its requests:
//!
//! - **Budget.** Each request adds [`SHARE`] of a hedge, and a hedge takes a whole one. A client that was never slow may
//!   hedge [`SAVED_MAX`] requests in a row, for a node that dies with many requests in flight.
//! - **Processes that share no memory.** A command makes one request and ends. Each client begins with a random part of a
//!   hedge, so that of two hundred commands at once [`SHARE`] hedge, as of two hundred requests of one client.
//! - **Beyond the budget** the client waits [`PATIENT`] times as long before it asks one more node, and twice as long
//!   before each further one. While nothing at all comes from the nodes that it asked, it does not wait longer and longer:
//!   a node that sends packets works, and more load would make it slower, but a silent node may be dead, and a cluster
//!   may have several dead nodes.
//! - **A machine without processor time.** If the client's own timer is late, the answer may be here already, unread. So
//!   slowness is not the node's, and the client waits once more instead, at most [`EXCUSES_MAX`] times.

use std::time::Duration;

use parking_lot::Mutex;

/// The part of all requests that may be hedged soon, in hundredths.
const SHARE: u32 = 10;
/// One hedge, in hundredths.
const WHOLE: u32 = 100;
/// Most hedges that are saved up. More do not help: a node that fails loses its place as the first after one of them.
const SAVED_MAX: u32 = 10;
/// How many times longer the client waits without a budget.
const PATIENT: u32 = 4;
/// How often in a row a late timer excuses the node.
const EXCUSES_MAX: u32 = 3;

/// The budget of one client.
pub(super) struct Budget(Mutex<u32>);

impl Budget {
    /// A budget that begins with a part of a hedge, drawn from `random`.
    pub(super) fn drawn(random: u32) -> Self {
        Self(Mutex::new(random % WHOLE))
    }

    /// Counts a request.
    pub(super) fn note_request(&self) {
        let mut saved = self.0.lock();
        *saved = (*saved + SHARE).min(SAVED_MAX * WHOLE);
    }

    /// Takes a hedge. Returns `false`, and takes nothing, if none is left.
    fn take(&self) -> bool {
        let mut saved = self.0.lock();
        let left = saved.checked_sub(WHOLE);
        *saved = left.unwrap_or(*saved);
        left.is_some()
    }
}

/// What the client does at the end of a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Asks one more node.
    Hedge,
    /// Waits once more.
    Wait,
}

/// Decides for one request.
pub(super) struct Hedging<'a> {
    budget: &'a Budget,
    /// How long one wait is.
    wait: Duration,
    /// Waits since a node was last asked.
    waits: u32,
    /// Hedges beyond the budget.
    beyond: u32,
    excuses: u32,
}

impl<'a> Hedging<'a> {
    pub(super) fn new(budget: &'a Budget, wait: Duration) -> Self {
        Self { budget, wait, waits: 0, beyond: 0, excuses: 0 }
    }

    /// How long to wait before the next verdict.
    pub(super) fn wait(&self) -> Duration {
        self.wait
    }

    /// The verdict at the end of a wait that ended `late` after its time. `is_heard`: whether a node that was asked has sent a
    /// packet since.
    pub(super) fn decide(&mut self, late: Duration, is_heard: bool) -> Verdict {
        if late > self.wait / 4 && self.excuses < EXCUSES_MAX {
            self.excuses += 1;
            return Verdict::Wait;
        }
        self.excuses = 0;
        self.waits += 1;
        if self.budget.take() {
            self.waits = 0;
            return Verdict::Hedge;
        }
        let patient = if is_heard { PATIENT.saturating_mul(1 << self.beyond.min(16)) } else { PATIENT };
        if self.waits < patient {
            return Verdict::Wait;
        }
        (self.waits, self.beyond) = (0, self.beyond + 1);
        Verdict::Hedge
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(250);
    const PUNCTUAL: Duration = Duration::ZERO;

    /// Asks for verdicts until `nodes` more were asked, or for a minute. Returns after which time each was asked.
    fn asked(hedging: &mut Hedging<'_>, nodes: usize, is_heard: bool) -> Vec<u128> {
        let (mut now, mut asked) = (Duration::ZERO, Vec::new());
        while asked.len() < nodes && now < Duration::from_secs(60) {
            now += hedging.wait();
            if hedging.decide(PUNCTUAL, is_heard) == Verdict::Hedge {
                asked.push(now.as_millis());
            }
        }
        asked
    }

    /// Of many processes with one request each, a tenth hedges soon; and so do the requests of one process. Mutated: if each
    /// process begins with a whole hedge, all of them do.
    #[test]
    fn a_tenth_of_the_requests_is_hedged_soon() {
        let mut first: Vec<_> = (0..200u32)
            .map(|process| {
                let budget = Budget::drawn(process.wrapping_mul(2_654_435_769) >> 8);
                budget.note_request();
                asked(&mut Hedging::new(&budget, SOON), 1, true)[0]
            })
            .collect();
        first.sort_unstable();
        let soon = first.iter().filter(|&&after| after == 250).count();
        assert!((10..=35).contains(&soon), "{soon} of 200");
        assert!(first[soon..].iter().all(|&after| after == 1000), "all others later: {first:?}");

        let budget = Budget::drawn(0);
        let hedged = (0..1000).filter(|_| {
            budget.note_request();
            asked(&mut Hedging::new(&budget, SOON), 1, true)[0] == 250
        });
        assert_eq!(hedged.count(), 100);
    }

    /// A client with a clean past passes a node that dies with requests in flight. Mutated: without the limit it could hedge
    /// every request of a rush after a quiet day.
    #[test]
    fn a_quiet_time_saves_up_to_ten_hedges() {
        let budget = Budget::drawn(0);
        (0..10_000).for_each(|_| budget.note_request());
        assert_eq!((0..100).filter(|_| budget.take()).count(), 10);
    }

    /// Silent nodes are passed over one after the other; nodes that work are given more and more time. Mutated: if every wait ends
    /// with a hedge, slow nodes are all asked at once.
    #[test]
    fn nodes_that_work_are_given_time() {
        let budget = Budget::drawn(0);
        assert_eq!(asked(&mut Hedging::new(&budget, SOON), 4, false), [1000, 2000, 3000, 4000]);
        assert_eq!(asked(&mut Hedging::new(&budget, SOON), 4, true), [1000, 3000, 7000, 15_000]);
        let rich = Budget::drawn(0);
        (0..20).for_each(|_| rich.note_request());
        assert_eq!(asked(&mut Hedging::new(&rich, SOON), 4, true), [250, 500, 1500, 3500]);
    }

    /// A client that gets no processor time does not blame the node, and does not wait for ever either. Mutated: without the look
    /// at the timer it hedges at once.
    #[test]
    fn a_late_timer_excuses_the_node_for_a_while() {
        let budget = Budget::drawn(0);
        (0..100).for_each(|_| budget.note_request());
        let mut hedging = Hedging::new(&budget, SOON);
        let late = Duration::from_millis(100);
        let verdicts: Vec<_> = (0..8).map(|_| hedging.decide(late, false)).collect();
        let (wait, hedge) = (Verdict::Wait, Verdict::Hedge);
        assert_eq!(verdicts, [wait, wait, wait, hedge, wait, wait, wait, hedge]);
        assert_eq!(
            hedging.decide(Duration::from_millis(20), false),
            hedge,
            "the control: a timer may be a little late"
        );
    }
}
