//! One slot: a body with its sequence number and checksum, and zeros up to the end.
//!
//! ```text
//! "QVLT" | ver u16 = 2 | seq u64 | len u32 | body | SHA-256 of all before | 0…
//! ```
//! A slot is *damaged* if these bytes do not match each other. A crash or a failing medium leaves such a slot; then the other
//! slot is used. An intact slot of another version is not damaged: it is refused, and never overwritten.

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::vault::disk::SLOT_BYTES;

const MAGIC: &[u8; 4] = b"QVLT";
const VERSION: u16 = 2;
const HEADER_BYTES: usize = 18;
const CHECKSUM_BYTES: usize = 32;

/// Largest body that fits in a slot.
pub const BODY_BYTES_MAX: usize = SLOT_BYTES - HEADER_BYTES - CHECKSUM_BYTES;

/// The bytes of a slot. They are wiped when dropped, because they hold secrets.
pub(super) struct SlotBytes(Box<[u8; SLOT_BYTES]>);

impl SlotBytes {
    pub(super) fn zero() -> Self {
        Self(Box::new([0; SLOT_BYTES]))
    }

    pub(super) fn expose(&self) -> &[u8; SLOT_BYTES] {
        &self.0
    }

    pub(super) fn expose_mut(&mut self) -> &mut [u8; SLOT_BYTES] {
        &mut self.0
    }
}

impl Drop for SlotBytes {
    fn drop(&mut self) {
        self.0.fill(0);
        zeroize::optimization_barrier(self.0.as_slice());
    }
}

/// Why a slot is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The slot never held a vault, or its first sector is lost.
    #[error("no vault header")]
    Header,
    /// The body would not fit in a slot.
    #[error("impossible length {0}")]
    Length(u32),
    /// A byte is not the one that was written.
    #[error("wrong checksum")]
    Checksum,
    /// There are bytes other than zero behind the checksum.
    #[error("leftovers behind the content")]
    Leftovers,
    /// The medium cannot read the slot.
    #[error("unreadable ({0})")]
    Unreadable(std::io::ErrorKind),
}

/// The content of an intact slot.
pub(super) struct Content<'a> {
    pub(super) version: u16,
    pub(super) seq: u64,
    pub(super) body: &'a [u8],
}

impl Content<'_> {
    pub(super) fn is_our_version(&self) -> bool {
        self.version == VERSION
    }
}

/// Writes `body` into a slot. It has at most [`BODY_BYTES_MAX`] bytes.
pub(super) fn seal(seq: u64, body: &[u8]) -> SlotBytes {
    let length = u32::try_from(body.len()).expect("a body fits its slot");
    let mut slot = SlotBytes::zero();
    let bytes = slot.expose_mut();
    bytes[..4].copy_from_slice(MAGIC);
    bytes[4..6].copy_from_slice(&VERSION.to_be_bytes());
    bytes[6..14].copy_from_slice(&seq.to_be_bytes());
    bytes[14..18].copy_from_slice(&length.to_be_bytes());
    let end = HEADER_BYTES + body.len();
    bytes[HEADER_BYTES..end].copy_from_slice(body);
    let checksum = Sha256::digest(&bytes[..end]);
    bytes[end..end + CHECKSUM_BYTES].copy_from_slice(&checksum);
    slot
}

/// Checks a slot, including the zeros at its end.
pub(super) fn open(slot: &[u8; SLOT_BYTES]) -> Result<Content<'_>, Damage> {
    let (header, rest) = slot.split_first_chunk::<HEADER_BYTES>().ok_or(Damage::Header)?;
    let [m0, m1, m2, m3, v0, v1, s0, s1, s2, s3, s4, s5, s6, s7, l0, l1, l2, l3] = *header;
    if [m0, m1, m2, m3] != *MAGIC {
        return Err(Damage::Header);
    }
    let claimed = u32::from_be_bytes([l0, l1, l2, l3]);
    let length = usize::try_from(claimed).ok().filter(|&length| length <= BODY_BYTES_MAX);
    let length = length.ok_or(Damage::Length(claimed))?;
    let (body, rest) = rest.split_at(length);
    let (checksum, padding) = rest.split_at(CHECKSUM_BYTES);
    if !bool::from(Sha256::digest(&slot[..HEADER_BYTES + length]).as_slice().ct_eq(checksum)) {
        return Err(Damage::Checksum);
    }
    if padding != &[0; SLOT_BYTES][..padding.len()] {
        return Err(Damage::Leftovers);
    }
    let seq = u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    Ok(Content { version: u16::from_be_bytes([v0, v1]), seq, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn damage(change: impl FnOnce(&mut [u8; SLOT_BYTES])) -> Option<Damage> {
        let mut slot = seal(3, b"body");
        change(slot.expose_mut());
        open(slot.expose()).err()
    }

    #[test]
    fn a_slot_opens_to_what_was_sealed() {
        for body in [&b""[..], b"body", &vec![5; BODY_BYTES_MAX]] {
            let slot = seal(u64::MAX, body);
            let content = open(slot.expose()).expect("it was just sealed");
            assert_eq!((content.seq, content.body, content.is_our_version()), (u64::MAX, body, true));
        }
    }

    #[test]
    fn every_kind_of_damage_has_its_name() {
        assert_eq!(damage(|slot| slot.fill(0)), Some(Damage::Header));
        assert_eq!(damage(|slot| slot[0] = b'q'), Some(Damage::Header));
        assert_eq!(damage(|slot| slot[14] = 1), Some(Damage::Length((1 << 24) + 4)));
        assert_eq!(damage(|slot| slot[17] += 1), Some(Damage::Checksum));
        for at in [5, 13, HEADER_BYTES, HEADER_BYTES + 4] {
            assert_eq!(damage(|slot| slot[at] ^= 1), Some(Damage::Checksum), "byte {at}");
        }
        assert_eq!(damage(|slot| slot[SLOT_BYTES - 1] = 1), Some(Damage::Leftovers));
    }
}
