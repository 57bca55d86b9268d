//! Which members answer at the addresses that the cluster records, as this node has found out by dialling them.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use quorate_shares::ids::NodeId;

/// A member counts as unreached if it did not answer so many times in a row. A busy machine may miss once.
const MISSES: u32 = 2;

/// How often each member did not answer, in a row.
#[derive(Default)]
pub struct DialMisses(Mutex<BTreeMap<NodeId, u32>>);

impl DialMisses {
    /// Notes whether a member answered. Returns whether it counts as unreached now.
    pub fn note(&self, member: NodeId, answered: bool) -> bool {
        let mut missed = self.0.lock();
        let misses = missed.entry(member).or_default();
        *misses = if answered { 0 } else { misses.saturating_add(1) };
        *misses >= MISSES
    }

    /// Forgets everyone but `members`.
    pub fn keep(&self, members: &BTreeSet<NodeId>) {
        self.0.lock().retain(|member, _| members.contains(member));
    }

    /// The members that count as unreached.
    pub fn unreached(&self) -> BTreeSet<NodeId> {
        self.0.lock().iter().filter(|(_, misses)| **misses >= MISSES).map(|(member, _)| *member).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_miss_is_no_alarm() {
        let misses = DialMisses::default();
        let (one, other) = (NodeId(1), NodeId(2));
        assert!(!misses.note(one, false) && !misses.note(one, true) && !misses.note(one, false));
        assert!(!misses.note(other, false) && misses.note(other, false));
        assert_eq!(misses.unreached(), BTreeSet::from([other]));
        misses.keep(&BTreeSet::from([one]));
        assert_eq!(misses.unreached(), BTreeSet::new());
    }
}
