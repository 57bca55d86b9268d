//! T21: a peer renews its lock while PREP and COMMIT are lost, doubled, late and overtaken, and both sides crash. The key that
//! its durable lock names is held at every moment, or it could not unlock itself any more.
//!
//! The rule that suggests itself, to keep the committed key and erase all others, is held against the same exchanges, and
//! fails: a late COMMIT erases the key that was offered for the next lock.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::*;
use crate::base::random;

const PEER: NodeId = NodeId(2);
const CASES: u32 = 400;

/// What happens next.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// The peer begins to renew its lock, or begins anew: it asks for a key.
    Ask,
    /// The lock with the key that was offered becomes durable.
    Write,
    /// The peer says which lock is durable.
    Commit,
    /// A message arrives, of all that were ever sent: for the first time or once more, early or late.
    Deliver(prop::sample::Index),
    /// The peer crashes: what it was offered, and asked, is forgotten.
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

/// The peer, and the vault of the one that holds keys for it.
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
        let durable = LockState { generation: 0, keyno: 0 };
        let mut exchange = Self { holder, durable, asked: 0, offer: None, sent: Vec::new(), erases_all_others };
        // The lock of founding.
        exchange.happens(Event::Ask);
        exchange.deliver(Message::Prepare(exchange.asked, durable));
        exchange.happens(Event::Write);
        exchange
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Ask => {
                (self.asked, self.offer) = (self.asked + 1, None);
                self.sent.push(Message::Prepare(self.asked, self.durable));
            }
            Event::Write => {
                if let Some(keyno) = self.offer.take() {
                    self.durable = LockState { generation: self.durable.generation + 1, keyno };
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
                // An answer to an earlier question is not looked at.
                if let Ok((keyno, _)) = offered
                    && number == self.asked
                {
                    self.offer = Some(keyno);
                }
            }
            Message::Commit(durable) => {
                commit(&mut self.holder, PEER, durable);
                if self.erases_all_others {
                    self.holder.held_for_mut(PEER).keys.retain(|key| key.keyno == durable.keyno);
                }
            }
        }
    }

    fn can_unlock(&self) -> bool {
        self.holder.held_for(PEER).is_some_and(|held| held.key(self.durable.keyno).is_some())
    }
}

/// Whether the peer could unlock itself at every moment of every exchange.
fn nobody_bricks(erases_all_others: bool) -> Result<(), String> {
    // The same exchanges at each run.
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new_with_rng(config, rng).run(&events(), |events| {
        let mut exchange = Exchange::begin(erases_all_others);
        for event in events {
            exchange.happens(event);
            prop_assert!(exchange.can_unlock(), "after {event:?}: {:?}", exchange.durable);
        }
        Ok(())
    });
    outcome.map_err(|error| error.to_string())
}

#[test]
fn t21_no_order_of_messages_bricks_a_peer() {
    nobody_bricks(false).expect("the key of the durable lock is held");
}

#[test]
fn t21_erasing_all_others_bricks_a_peer() {
    let error = nobody_bricks(true).expect_err("the control");
    assert!(error.contains("after"), "{error}");
}
