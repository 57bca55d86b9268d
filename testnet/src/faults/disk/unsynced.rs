//! A file with what was written to it and not yet synced.
//!
//! Pages of 4 KiB that were written stay in memory. A sync puts them into the file below; a loss of power drops them, or
//! lets a few of them reach it, in any order, as a drive does that was writing back when the power went. The length
//! belongs to the content: what a lost page would have appended is not there. To cut a file short takes effect at once.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Written back as a whole, or not at all.
const PAGE_BYTES: usize = 4096;

/// A file below, and what is not in it yet.
#[derive(Debug)]
pub(super) struct Unsynced {
    below: File,
    pages: BTreeMap<u64, Box<[u8; PAGE_BYTES]>>,
    length: u64,
}

impl Unsynced {
    pub(super) fn new(below: File) -> io::Result<Self> {
        let length = below.metadata()?.len();
        Ok(Self { below, pages: BTreeMap::new(), length })
    }

    pub(super) fn below(&self) -> &File {
        &self.below
    }

    /// The length that a process sees while the power is on.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Whether everything is in the file below.
    pub(super) fn is_synced(&self) -> bool {
        self.pages.is_empty()
    }

    pub(super) fn read(&self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let end = self.length.min(offset.saturating_add(bytes as u64));
        let mut read = vec![0; end.saturating_sub(offset) as usize];
        fill(&self.below, offset, &mut read)?;
        for (number, page) in self.pages.range(offset / PAGE_BYTES as u64..) {
            let begins = number * PAGE_BYTES as u64;
            if begins >= end {
                break;
            }
            let (from, to) = (begins.max(offset), end.min(begins + PAGE_BYTES as u64));
            let page = &page[(from - begins) as usize..(to - begins) as usize];
            read[(from - offset) as usize..(to - offset) as usize].copy_from_slice(page);
        }
        Ok(read)
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset + bytes.len() as u64;
        let mut at = offset;
        while at < end {
            let (number, within) = (at / PAGE_BYTES as u64, (at % PAGE_BYTES as u64) as usize);
            let count = (PAGE_BYTES - within).min((end - at) as usize);
            let page = match self.pages.entry(number) {
                std::collections::btree_map::Entry::Occupied(page) => page.into_mut(),
                std::collections::btree_map::Entry::Vacant(place) => {
                    let mut page = Box::new([0; PAGE_BYTES]);
                    fill(&self.below, number * PAGE_BYTES as u64, &mut page[..])?;
                    place.insert(page)
                }
            };
            let from = (at - offset) as usize;
            page[within..within + count].copy_from_slice(&bytes[from..from + count]);
            at += count as u64;
        }
        self.length = self.length.max(end);
        Ok(())
    }

    pub(super) fn set_length(&mut self, length: u64) -> io::Result<()> {
        if length < self.below.metadata()?.len() {
            self.below.set_len(length)?;
        }
        let within = (length % PAGE_BYTES as u64) as usize;
        self.pages.retain(|number, _| number * (PAGE_BYTES as u64) < length);
        if let Some(page) = self.pages.get_mut(&(length / PAGE_BYTES as u64)) {
            page[within..].fill(0);
        }
        self.length = length;
        Ok(())
    }

    /// Puts everything into the file below.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.write_back(|| true)?;
        self.below.set_len(self.length)
    }

    /// Drops what is not in the file below, but for the pages that `survives` lets through. Returns how many were lost.
    pub(super) fn lose_power(&mut self, survives: impl FnMut() -> bool) -> io::Result<usize> {
        let lost = self.write_back(survives)?;
        self.length = self.below.metadata()?.len();
        Ok(lost)
    }

    fn write_back(&mut self, mut survives: impl FnMut() -> bool) -> io::Result<usize> {
        let mut lost = 0;
        for (number, page) in std::mem::take(&mut self.pages) {
            let begins = number * PAGE_BYTES as u64;
            let bytes = PAGE_BYTES.min(self.length.saturating_sub(begins) as usize);
            if survives() {
                self.below.write_all_at(&page[..bytes], begins)?;
            } else {
                lost += 1;
            }
        }
        Ok(lost)
    }
}

/// Reads what the file has; the rest stays zero.
fn fill(file: &File, offset: u64, mut into: &mut [u8]) -> io::Result<()> {
    let mut at = offset;
    while !into.is_empty() {
        match file.read_at(into, at)? {
            0 => break,
            count => {
                into = &mut into[count..];
                at += count as u64;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(content: &[u8]) -> Unsynced {
        let file = tempfile::tempfile().expect("a temporary file");
        file.write_all_at(content, 0).expect("written");
        Unsynced::new(file).expect("a file")
    }

    fn below(file: &Unsynced) -> Vec<u8> {
        let mut bytes = vec![0; file.below.metadata().expect("open").len() as usize];
        fill(&file.below, 0, &mut bytes).expect("readable");
        bytes
    }

    #[test]
    fn what_was_not_synced_is_lost_and_what_was_is_not() {
        let mut file = with(b"old");
        file.write(2, &[7; 10_000]).expect("written");
        assert_eq!(file.length(), 10_002);
        assert_eq!(file.read(0, 5).expect("readable"), [b'o', b'l', 7, 7, 7], "the living see it");
        assert_eq!(below(&file), b"old", "the disk does not have it");
        file.sync().expect("synced");
        file.write(0, b"new").expect("written");
        file.write(20_000, b"far").expect("written");
        assert_eq!(file.lose_power(|| false).expect("lost"), 2);
        assert_eq!(file.length(), 10_002);
        assert_eq!(file.read(0, 5).expect("readable"), [b'o', b'l', 7, 7, 7]);
        assert!(file.is_synced());
    }

    #[test]
    fn pages_survive_in_any_order_and_leave_holes() {
        let mut file = with(b"");
        file.write(0, &[1; 3 * PAGE_BYTES]).expect("written");
        let mut pages = [false, true, false].into_iter();
        assert_eq!(file.lose_power(|| pages.next().expect("three pages")).expect("lost"), 2);
        assert_eq!(file.length() as usize, 2 * PAGE_BYTES, "the last page takes its length with it");
        assert_eq!(file.read(PAGE_BYTES as u64 - 1, 2).expect("readable"), [0, 1]);
    }

    #[test]
    fn a_file_is_cut_short_at_once() {
        let mut file = with(&[5; 100]);
        file.write(50, &[6; 100]).expect("written");
        file.set_length(60).expect("cut");
        assert_eq!((file.length(), below(&file).len()), (60, 60));
        file.write(70, b"x").expect("written");
        assert_eq!(file.read(58, 100).expect("readable"), [&[6, 6][..], &[0; 10], b"x"].concat());
    }
}
