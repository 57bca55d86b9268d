//! The newest entries of the log, also in memory.
//!
//! An entry is read right after it was written: once for each follower, and once to be applied. From here, that costs a copy
//! instead of a search, a decryption and a decoding. The entries here are in order and without a hole, and are in the log, too.
//! All others are read from the disk.

use std::collections::VecDeque;

use openraft::alias::EntryOf;

use crate::types::Types;

/// Most encoded bytes of entries that are kept. Beyond it the oldest are dropped.
const BYTES_MAX: usize = 1 << 20;

#[derive(Default)]
pub(crate) struct Recent {
    /// Each with its encoded length.
    entries: VecDeque<(EntryOf<Types>, usize)>,
    bytes: usize,
}

impl Recent {
    /// Keeps an entry that was just written to the disk.
    pub(crate) fn push(&mut self, entry: EntryOf<Types>, bytes: usize) {
        let follows = self.entries.back().is_none_or(|(last, _)| last.log_id.index + 1 == entry.log_id.index);
        if !follows {
            *self = Self::default();
        }
        self.entries.push_back((entry, bytes));
        self.bytes += bytes;
        while self.bytes > BYTES_MAX {
            self.drop_oldest();
        }
    }

    /// Drops the entries after `last`.
    pub(crate) fn truncate_after(&mut self, last: Option<u64>) {
        while self.entries.back().is_some_and(|(entry, _)| last.is_none_or(|last| entry.log_id.index > last)) {
            let dropped = self.entries.pop_back();
            self.bytes -= dropped.map_or(0, |(_, bytes)| bytes);
        }
    }

    /// Drops the entries up to `upto`.
    pub(crate) fn purge(&mut self, upto: u64) {
        while self.entries.front().is_some_and(|(entry, _)| entry.log_id.index <= upto) {
            self.drop_oldest();
        }
    }

    /// Entries from `start` up to `end` that are here, at most `bytes_max` but at least one. `None` if the entry at `start` is
    /// not here.
    pub(crate) fn read(&self, start: u64, end: u64, bytes_max: usize) -> Option<Vec<EntryOf<Types>>> {
        let first = self.entries.front()?.0.log_id.index;
        let skip = usize::try_from(start.checked_sub(first)?).ok().filter(|&skip| skip < self.entries.len())?;
        let (mut entries, mut total) = (Vec::new(), 0);
        for (entry, bytes) in self.entries.iter().skip(skip) {
            total += bytes;
            if entry.log_id.index >= end || (total > bytes_max && !entries.is_empty()) {
                break;
            }
            entries.push(entry.clone());
        }
        Some(entries)
    }

    fn drop_oldest(&mut self) {
        let dropped = self.entries.pop_front();
        self.bytes -= dropped.map_or(0, |(_, bytes)| bytes);
    }
}

#[cfg(test)]
mod tests {
    use quorate_shares::ids::NodeId;

    use super::*;
    use crate::live::place::LogPlace;
    use crate::types::Payload;

    fn entry(term: u64, index: u64) -> EntryOf<Types> {
        let place = LogPlace { term, node: NodeId(1), index };
        EntryOf::<Types> { log_id: place.log_id(), payload: Payload::Blank }
    }

    fn indices(recent: &Recent, start: u64, end: u64, bytes_max: usize) -> Option<Vec<(u64, u64)>> {
        let places = |entry: EntryOf<Types>| (entry.log_id.leader_id.term, entry.log_id.index);
        recent.read(start, end, bytes_max).map(|entries| entries.into_iter().map(places).collect())
    }

    #[test]
    fn it_reads_what_it_has_and_says_what_it_has_not() {
        let mut recent = Recent::default();
        assert_eq!(indices(&recent, 0, 9, 100), None);
        (3..=6).for_each(|index| recent.push(entry(1, index), 10));
        assert_eq!(indices(&recent, 2, 9, 100), None, "the first is on the disk only");
        assert_eq!(indices(&recent, 3, 5, 100), Some(vec![(1, 3), (1, 4)]));
        assert_eq!(indices(&recent, 5, u64::MAX, 100), Some(vec![(1, 5), (1, 6)]));
        assert_eq!(indices(&recent, 4, 9, 20), Some(vec![(1, 4), (1, 5)]));
        assert_eq!(indices(&recent, 4, 9, 1), Some(vec![(1, 4)]), "one at least");
        assert_eq!(indices(&recent, 7, 9, 100), None);
    }

    #[test]
    fn it_forgets_with_the_log() {
        let mut recent = Recent::default();
        (1..=6).for_each(|index| recent.push(entry(1, index), 10));
        recent.truncate_after(Some(4));
        assert_eq!(indices(&recent, 4, 9, 100), Some(vec![(1, 4)]));
        recent.push(entry(2, 5), 10);
        assert_eq!(indices(&recent, 4, 9, 100), Some(vec![(1, 4), (2, 5)]));
        recent.purge(4);
        assert_eq!(indices(&recent, 4, 9, 100), None);
        assert_eq!(indices(&recent, 5, 9, 100), Some(vec![(2, 5)]));
        recent.push(entry(2, 9), 10);
        assert_eq!(indices(&recent, 5, 10, 100), None, "no hole");
        assert_eq!(indices(&recent, 9, 10, 100), Some(vec![(2, 9)]));
        recent.truncate_after(None);
        assert_eq!((indices(&recent, 9, 10, 100), recent.bytes), (None, 0));
    }

    #[test]
    fn it_is_bounded() {
        let mut recent = Recent::default();
        (1..=100).for_each(|index| recent.push(entry(1, index), BYTES_MAX / 10));
        assert_eq!(recent.entries.len(), 10);
        recent.push(entry(1, 101), BYTES_MAX + 1);
        assert_eq!((recent.entries.len(), recent.bytes), (0, 0));
    }
}
