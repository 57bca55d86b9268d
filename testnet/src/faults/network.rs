//! What happens to a datagram on the way: it is cut off, lost, doubled, delayed or overtaken.
//!
//! The dice are seeded. Real processes never send in the same order twice, so a seed repeats the sequence of fates but not
//! a whole run. It is printed all the same: often the sequence is what made a run fail.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::base::dice::Dice;
use crate::base::error::NoSuchNode;

/// Who sends or receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Party {
    /// A node, by its place among the routes.
    Node(usize),
    /// A client: every sender that is not a node.
    Client,
}

/// How good every link of the network is.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkQuality {
    /// Share of datagrams that are lost, 0 to 1.
    pub loss: f64,
    /// Share that arrive twice, 0 to 1.
    pub duplicate: f64,
    /// How long each takes. A wide range lets datagrams overtake each other.
    pub delay: RangeInclusive<Duration>,
}

impl Default for LinkQuality {
    /// A perfect network: nothing is lost and nothing takes time.
    fn default() -> Self {
        Self { loss: 0.0, duplicate: 0.0, delay: Duration::ZERO..=Duration::ZERO }
    }
}

/// What has happened to datagrams so far: a test in a bad network shows by it that the network was bad.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Datagrams that came to the relay.
    pub sent: u64,
    /// Of these, lost on a bad link.
    pub lost: u64,
    /// Of these, lost because sender or receiver was cut off.
    pub cut: u64,
    /// Of these, sent twice.
    pub doubled: u64,
    /// Of these, delayed so little that they overtook an earlier one on the same way.
    pub overtaking: u64,
}

/// The faults of one relay; clones are handles to the same ones.
#[derive(Clone)]
pub struct Faults {
    names: Arc<Vec<String>>,
    state: Arc<Mutex<State>>,
}

struct State {
    cut: HashSet<(Party, Party)>,
    quality: LinkQuality,
    dice: Dice,
    tally: Tally,
    /// When the latest datagram of each way will arrive.
    latest: HashMap<(Party, Party), Instant>,
}

impl Faults {
    pub(crate) fn new(names: Vec<String>) -> Self {
        let (cut, latest) = (HashSet::new(), HashMap::new());
        let state = State { cut, quality: LinkQuality::default(), dice: Dice::new(0), tally: Tally::default(), latest };
        Self { names: Arc::new(names), state: Arc::new(Mutex::new(state)) }
    }

    /// Cuts a node off from all other nodes, in both directions. Clients still reach it, so that a test can see what a
    /// node without a quorum answers.
    ///
    /// # Errors
    /// [`NoSuchNode`].
    pub fn cut(&self, node: &str) -> Result<(), NoSuchNode> {
        let node = self.party(node)?;
        let others = (0..self.names.len()).map(Party::Node).filter(|other| *other != node);
        let both_ways: Vec<_> = others.flat_map(|other| [(node, other), (other, node)]).collect();
        self.state().cut.extend(both_ways);
        Ok(())
    }

    /// Cuts two nodes off from each other.
    ///
    /// # Errors
    /// [`NoSuchNode`].
    pub fn cut_pair(&self, one: &str, other: &str) -> Result<(), NoSuchNode> {
        let (one, other) = (self.party(one)?, self.party(other)?);
        self.state().cut.extend([(one, other), (other, one)]);
        Ok(())
    }

    /// Loses what one node sends to another, but not what comes back.
    ///
    /// # Errors
    /// [`NoSuchNode`].
    pub fn cut_one_way(&self, from: &str, to: &str) -> Result<(), NoSuchNode> {
        let way = (self.party(from)?, self.party(to)?);
        self.state().cut.insert(way);
        Ok(())
    }

    /// Cuts a node off from all clients.
    ///
    /// # Errors
    /// [`NoSuchNode`].
    pub fn cut_from_clients(&self, node: &str) -> Result<(), NoSuchNode> {
        let node = self.party(node)?;
        self.state().cut.extend([(node, Party::Client), (Party::Client, node)]);
        Ok(())
    }

    /// Ends every cut. The quality stays.
    pub fn heal(&self) {
        self.state().cut.clear();
    }

    /// Sets the quality of all links, and the dice to `seed`.
    pub fn set_quality(&self, quality: LinkQuality, seed: u64) {
        let mut state = self.state();
        (state.quality, state.dice) = (quality, Dice::new(seed));
    }

    /// What has happened so far.
    pub fn tally(&self) -> Tally {
        self.state().tally
    }

    /// Decides about one datagram: after which delays it arrives, none if it is lost.
    pub(crate) fn fate(&self, from: Party, to: Party) -> Vec<Duration> {
        let mut state = self.state();
        let State { cut, quality, dice, tally, latest } = &mut *state;
        tally.sent += 1;
        if cut.contains(&(from, to)) {
            tally.cut += 1;
            return Vec::new();
        }
        if dice.fraction() < quality.loss {
            tally.lost += 1;
            return Vec::new();
        }
        let copies = if dice.fraction() < quality.duplicate { 2 } else { 1 };
        tally.doubled += copies - 1;
        let (least, most) = (*quality.delay.start(), *quality.delay.end());
        let delays: Vec<_> = (0..copies).map(|_| least + most.saturating_sub(least).mul_f64(dice.fraction())).collect();
        let now = Instant::now();
        for arrives in delays.iter().map(|delay| now + *delay) {
            let latest = latest.entry((from, to)).or_insert(arrives);
            tally.overtaking += u64::from(arrives < *latest);
            *latest = arrives.max(*latest);
        }
        delays
    }

    fn party(&self, name: &str) -> Result<Party, NoSuchNode> {
        let place = self.names.iter().position(|known| known == name);
        place.map(Party::Node).ok_or_else(|| NoSuchNode(name.to_owned()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half-way, so a poisoned lock holds a whole state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_fates() {
        let quality =
            LinkQuality { loss: 0.3, duplicate: 0.3, delay: Duration::from_millis(1)..=Duration::from_millis(9) };
        let fates = |seed| {
            let faults = Faults::new(vec!["n1".to_owned(), "n2".to_owned()]);
            faults.set_quality(quality.clone(), seed);
            (0..200).map(|_| faults.fate(Party::Node(0), Party::Node(1))).collect::<Vec<_>>()
        };
        assert_eq!(fates(7), fates(7));
        assert_ne!(fates(7), fates(8));
        let lost = fates(7).iter().filter(|fate| fate.is_empty()).count();
        assert!((20..120).contains(&lost), "{lost} of 200 lost");
        assert!(fates(7).iter().flatten().all(|delay| quality.delay.contains(delay)));
    }

    #[test]
    fn the_tally_counts_what_happened() {
        let faults = Faults::new(vec!["n1".to_owned(), "n2".to_owned()]);
        let send =
            |count: u64| (0..count).map(|_| faults.fate(Party::Node(0), Party::Node(1)).len() as u64).sum::<u64>();
        assert_eq!(send(10), 10);
        assert_eq!(faults.tally(), Tally { sent: 10, ..Tally::default() }, "perfect links");
        let delay = Duration::from_millis(1)..=Duration::from_millis(900);
        faults.set_quality(LinkQuality { loss: 0.3, duplicate: 0.3, delay }, 7);
        let arrived = send(200);
        let Tally { sent, lost, cut, doubled, overtaking } = faults.tally();
        assert_eq!((sent, cut, 200 - lost + doubled), (210, 0, arrived));
        assert!(lost > 20 && doubled > 20 && overtaking > 20, "{lost} {doubled} {overtaking}");
        faults.cut("n1").expect("it exists");
        assert_eq!((send(5), faults.tally().cut), (0, 5));
    }

    #[test]
    fn one_way_is_one_way() {
        let faults = Faults::new(vec!["n1".to_owned(), "n2".to_owned()]);
        faults.cut_one_way("n1", "n2").expect("they exist");
        assert!(faults.fate(Party::Node(0), Party::Node(1)).is_empty());
        assert_eq!(faults.fate(Party::Node(1), Party::Node(0)), [Duration::ZERO]);
        faults.cut_from_clients("n1").expect("it exists");
        assert!(faults.fate(Party::Client, Party::Node(0)).is_empty());
        assert_eq!(faults.fate(Party::Client, Party::Node(1)), [Duration::ZERO]);
    }
}
