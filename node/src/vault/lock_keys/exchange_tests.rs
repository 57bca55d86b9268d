//! T21: a peer renews its lock. PREP and COMMIT may be lost, doubled, late or in another order, and the peer may crash. At
//! every moment the holder has the key that the peer's durable lock names. Without this key the peer could not unlock itself.
//!
//! The control is a simpler rule: keep the committed key and erase all others at once. It fails in the same exchanges: a late
//! COMMIT erases the key that was offered for the next lock.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::*;
use crate::base::random;

const PEER: NodeId = NodeId(2);
const CASES: u32 = 400;

#[derive(Debug, Clone, Copy)]
enum Event {
    /// The peer starts to renew its lock, or starts again: it asks for a key.
    Ask,
    /// The lock with the key that was offered becomes durable.
    Write,
    /// The peer says which lock is durable.
    Commit,
    /// One of all messages that were ever sent arrives: for the first time or again, early or late.
    Deliver(prop::sample::Index),
    /// The peer crashes. It forgets what it asked and what it was offered.
    Crash,
    /// The holder runs for some seconds.
    Run(u16),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        2 => Just(Event::Ask),
        3 => Just(Event::Write),
        2 => Just(Event::Commit),
        6 => any::<prop::sample::Index>().prop_map(Event::Deliver),
        1 => Just(Event::Crash),
        2 => (1..2 * GRACE_S).prop_map(Event::Run),
    ];
    prop::collection::vec(event, 1..80)
}

#[derive(Clone, Copy)]
enum Message {
    /// With the number of the question.
    Prepare(u64, LockState),
    Commit(LockState),
}

/// The peer, and the vault of the node that holds keys for it.
struct Exchange {
    holder: Vault,
    durable: LockState,
    asked: u64,
    offer: Option<u64>,
    sent: Vec<Message>,
    erases_all_others: bool,
}

impl Exchange {
    fn begin(erases_all_others: bool) -> Self {
        let holder = Vault::new(ClusterId([1; 16]), Secret::random(&mut random::system()));
        let durable = LockState { generation: 0, key_number: 0 };
        let mut exchange = Self { holder, durable, asked: 0, offer: None, sent: Vec::new(), erases_all_others };
        // The lock of founding.
        exchange.apply(Event::Ask);
        exchange.deliver(Message::Prepare(exchange.asked, durable));
        exchange.apply(Event::Write);
        exchange
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Ask => {
                (self.asked, self.offer) = (self.asked + 1, None);
                self.sent.push(Message::Prepare(self.asked, self.durable));
            }
            Event::Write => {
                if let Some(key_number) = self.offer.take() {
                    self.durable = LockState { generation: self.durable.generation + 1, key_number };
                }
            }
            Event::Commit => self.sent.push(Message::Commit(self.durable)),
            Event::Deliver(which) if !self.sent.is_empty() => self.deliver(*which.get(&self.sent)),
            Event::Deliver(_) => {}
            Event::Crash => (self.asked, self.offer) = (self.asked + 1, None),
            Event::Run(seconds) => tick(&mut self.holder, seconds),
        }
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Prepare(number, durable) => {
                let offered = prepare(&mut self.holder, PEER, durable, &mut random::system());
                // The peer ignores an answer to an earlier question.
                if let Ok((key_number, _)) = offered
                    && number == self.asked
                {
                    self.offer = Some(key_number);
                }
            }
            Message::Commit(durable) => {
                commit(&mut self.holder, PEER, durable);
                if self.erases_all_others {
                    self.holder.held_for_mut(PEER).keys.retain(|key| key.key_number == durable.key_number);
                }
            }
        }
    }

    fn can_unlock(&self) -> bool {
        self.holder.held_for(PEER).is_some_and(|held| held.key(self.durable.key_number).is_some())
    }
}

/// Checks that the peer could unlock itself at every moment of every exchange.
fn check_exchanges(erases_all_others: bool) -> Result<(), String> {
    // Each run has the same exchanges.
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new_with_rng(config, rng).run(&events(), |events| {
        let mut exchange = Exchange::begin(erases_all_others);
        for event in events {
            exchange.apply(event);
            prop_assert!(exchange.can_unlock(), "after {event:?}: {:?}", exchange.durable);
        }
        Ok(())
    });
    outcome.map_err(|error| error.to_string())
}

#[test]
fn t21_no_order_of_messages_bricks_a_peer() {
    check_exchanges(false).expect("the key of the durable lock is held");
}

#[test]
fn t21_erasing_all_others_bricks_a_peer() {
    let error = check_exchanges(true).expect_err("the control");
    assert!(error.contains("after"), "{error}");
}
