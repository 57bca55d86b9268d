//! The network between machines: it delays, drops, repeats, reorders and parts.

use std::collections::BTreeSet;

use quorate_shares::ids::NodeId;

use crate::model::world::dice::Dice;

/// Which machines reach each other, and how well.
pub(in crate::model) struct Network {
    /// Directions that carry nothing.
    cut: BTreeSet<(NodeId, NodeId)>,
    lost_per_mille: u64,
    twice_per_mille: u64,
    slow_per_mille: u64,
}

/// How long a message takes at most; a slow one takes up to so much more.
const DELAY_MS: u64 = 25;
const SLOW_MS: u64 = 4_000;
/// Longer than any message is on its way.
pub(in crate::model) const ARRIVAL_MS: u64 = DELAY_MS + SLOW_MS;

impl Network {
    pub(in crate::model) fn fair() -> Self {
        Self { cut: BTreeSet::new(), lost_per_mille: 0, twice_per_mille: 0, slow_per_mille: 0 }
    }

    /// Draws how lossy and slow the network is from now on.
    pub(in crate::model) fn change(&mut self, dice: &mut Dice) {
        self.lost_per_mille = dice.pick(&[0, 5, 30, 150]).unwrap_or(0);
        self.twice_per_mille = dice.pick(&[0, 10, 100]).unwrap_or(0);
        self.slow_per_mille = dice.pick(&[0, 10, 60]).unwrap_or(0);
    }

    /// Parts `group` from the rest; one way only, now and then.
    pub(in crate::model) fn part(&mut self, nodes: &[NodeId], dice: &mut Dice) {
        let group: BTreeSet<NodeId> = nodes.iter().copied().filter(|_| dice.chance(400)).collect();
        let one_way = dice.chance(250);
        for &from in nodes {
            for &to in nodes {
                let leaves = group.contains(&from) && !group.contains(&to);
                let enters = !group.contains(&from) && group.contains(&to);
                if leaves || (enters && !one_way) {
                    self.cut.insert((from, to));
                }
            }
        }
    }

    /// All cables are plugged in again.
    pub(in crate::model) fn join(&mut self) {
        self.cut.clear();
    }

    /// When copies of a message arrive, from now; `None` stands for a client, which no partition keeps off.
    pub(in crate::model) fn carry(&self, from: Option<NodeId>, to: Option<NodeId>, dice: &mut Dice) -> Vec<u64> {
        let parted = from.zip(to).is_some_and(|pair| self.cut.contains(&pair));
        let mut copies = Vec::new();
        for copy in 0..2 {
            let sent = if copy == 0 { !dice.chance(self.lost_per_mille) } else { dice.chance(self.twice_per_mille) };
            let slow = if dice.chance(self.slow_per_mille) { dice.below(SLOW_MS) } else { 0 };
            let delay = dice.between(1, DELAY_MS) + slow;
            if sent && !parted {
                copies.push(delay);
            }
        }
        copies
    }
}
