//! Both slots of a vault file: a file that opens also opens again. The target computes the checksum, which no fuzzer
//! guesses.
#![no_main]

use std::io;

use quorate_node::vault::VaultFile;
use quorate_node::vault::disk::{Disk, SLOT_BYTES, VaultSlot};
use sha2::{Digest, Sha256};

struct Memory([Box<[u8; SLOT_BYTES]>; 2]);

impl Disk for &mut Memory {
    fn read(&mut self, slot: VaultSlot, into: &mut [u8; SLOT_BYTES]) -> io::Result<()> {
        into.copy_from_slice(&*self.0[slot as usize]);
        Ok(())
    }
    fn write(&mut self, slot: VaultSlot, bytes: &[u8; SLOT_BYTES]) -> io::Result<()> {
        self.0[slot as usize].copy_from_slice(bytes);
        Ok(())
    }
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((cut, rest)) = bytes.split_first_chunk::<2>() else { return };
    let (first, second) = rest.split_at(usize::from(u16::from_be_bytes(*cut)).min(rest.len()));
    let mut memory = Memory([filled(first), filled(second)]);
    if VaultFile::open_on(&mut memory).is_ok() {
        assert_eq!(memory.0[0], memory.0[1], "opening mends");
        VaultFile::open_on(&mut memory).map(|_| ()).expect("it did before");
    }
});

/// A slot that begins with `bytes`, with the checksum at the place that its length field gives.
fn filled(bytes: &[u8]) -> Box<[u8; SLOT_BYTES]> {
    let mut slot = Box::new([0; SLOT_BYTES]);
    let length = bytes.len().min(SLOT_BYTES);
    slot[..length].copy_from_slice(&bytes[..length]);
    let claimed = u32::from_be_bytes([slot[14], slot[15], slot[16], slot[17]]);
    let end = 18usize.saturating_add(claimed as usize);
    if end <= SLOT_BYTES - 32 {
        let checksum = Sha256::digest(&slot[..end]);
        slot[end..end + 32].copy_from_slice(&checksum);
    }
    slot
}
