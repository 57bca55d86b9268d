//! Values at rest: everything that RocksDB and snapshot files hold is sealed under the storage key D.
//!
//! ```text
//! ver u8 = 1 | dkey u8 | nonce 24 | XChaCha20-Poly1305(D, nonce, aad = family u8 || key, value)      (+ 42 bytes)
//! ```
//!
//! The associated data names the place: a value that was moved to another key or column family does not open. Each D has a
//! number. New values are sealed under the current D, and older values still open under the D that they name.

use std::collections::BTreeMap;
use std::fmt;

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use chacha20::{R20, hchacha};
use quorate_shares::secret::Secret;
use zeroize::Zeroizing;

const VERSION: u8 = 1;
const NONCE_AT: usize = 2;
const CIPHERTEXT_AT: usize = NONCE_AT + 24;
const TAG_BYTES: usize = 16;

/// Bytes that sealing adds to a value.
pub const SEAL_BYTES: usize = CIPHERTEXT_AT + TAG_BYTES;

/// The kind of place where a value is stored, as the associated data names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Raft's log, by index.
    Log = 1,
    /// The replicated state, by row.
    State = 2,
    /// This replica's own notes: vote, counters, markers.
    Meta = 3,
    /// A chunk of a snapshot file, by file and number.
    Snapshot = 4,
    /// The open alarms of a node, in a file of their own.
    Alarms = 5,
}

impl Family {
    /// The name; of the first three it is also the column family's.
    pub fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::State => "state",
            Self::Meta => "meta",
            Self::Snapshot => "snapshot",
            Self::Alarms => "alarms",
        }
    }
}

/// The storage keys of a node: the current D, and older ones that may still have sealed something.
pub struct StorageKeys {
    current: u8,
    keys: BTreeMap<u8, Secret<32>>,
}

impl StorageKeys {
    /// Keys that seal under `key`, whose number is `dkey`.
    pub fn new(dkey: u8, key: &Secret<32>) -> Self {
        Self { current: dkey, keys: BTreeMap::new() }.with_older(dkey, key)
    }

    /// Adds an older key, for values that it sealed.
    #[must_use]
    pub fn with_older(mut self, dkey: u8, key: &Secret<32>) -> Self {
        self.keys.insert(dkey, key.duplicate());
        self
    }

    /// Seals `value` for one place.
    pub fn seal(&self, family: Family, key: &[u8], value: &[u8]) -> Vec<u8> {
        let mut nonce = [0; 24];
        getrandom::fill(&mut nonce).expect("the operating system gives randomness, or nothing here is safe");
        let mut sealed = Vec::with_capacity(value.len() + SEAL_BYTES);
        sealed.extend_from_slice(&[VERSION, self.current]);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(value);
        let (cipher, nonce) = xchacha(&self.keys[&self.current], nonce);
        let aad = Aad::from(associated(family, key));
        let tag = cipher.seal_in_place_separate_tag(nonce, aad, &mut sealed[CIPHERTEXT_AT..]);
        sealed.extend_from_slice(tag.expect("a value is far below the cipher's 256 GiB").as_ref());
        sealed
    }

    /// Opens a value that was sealed for the same place.
    ///
    /// # Errors
    /// [`SealProblem`].
    pub fn open(&self, family: Family, key: &[u8], sealed: &[u8]) -> Result<Vec<u8>, SealProblem> {
        if sealed.len() < SEAL_BYTES {
            return Err(SealProblem::Short);
        }
        if sealed[0] != VERSION {
            return Err(SealProblem::UnknownVersion(sealed[0]));
        }
        let storage_key = self.keys.get(&sealed[1]).ok_or(SealProblem::UnknownKey(sealed[1]))?;
        let nonce = sealed[NONCE_AT..CIPHERTEXT_AT].try_into().expect("the length was checked");
        let (cipher, nonce) = xchacha(storage_key, nonce);
        let aad = Aad::from(associated(family, key));
        let mut value = sealed[CIPHERTEXT_AT..].to_vec();
        let length = cipher.open_in_place(nonce, aad, &mut value).map_err(|_| SealProblem::NotAuthentic)?.len();
        value.truncate(length);
        Ok(value)
    }
}

impl fmt::Debug for StorageKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StorageKeys(current {}, {} in all)", self.current, self.keys.len())
    }
}

/// XChaCha20-Poly1305 is ChaCha20-Poly1305 with a key of its own for each nonce, which HChaCha20 derives
/// (draft-irtf-cfrg-xchacha-03, section 2.3). aws-lc's cipher is several times faster on values of this size.
fn xchacha(key: &Secret<32>, nonce: [u8; 24]) -> (LessSafeKey, Nonce) {
    let (first, last) = nonce.split_first_chunk::<16>().expect("24 bytes are more than 16");
    let derived: Zeroizing<[u8; 32]> = Zeroizing::new(hchacha::<R20>(key.expose().into(), first.into()).into());
    let cipher = UnboundKey::new(&CHACHA20_POLY1305, derived.as_slice()).expect("32 bytes are a key");
    let mut rest = [0; 12];
    rest[4..].copy_from_slice(last);
    (LessSafeKey::new(cipher), Nonce::assume_unique_for_key(rest))
}

fn associated(family: Family, key: &[u8]) -> Vec<u8> {
    [&[family as u8], key].concat()
}

/// Why a stored value does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealProblem {
    /// Fewer bytes than sealing adds.
    #[error("the value is too short to be sealed")]
    Short,
    /// Written by a newer program, or damaged.
    #[error("the value has format {0}, which this program does not know")]
    UnknownVersion(u8),
    /// The storage key of this number is not in the bundle.
    #[error("the value is sealed under storage key number {0}, which this node does not have")]
    UnknownKey(u8),
    /// Damaged, moved from elsewhere, or sealed under another key.
    #[error("the value does not authenticate: it is damaged, or from another place")]
    NotAuthentic,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(dkey: u8, byte: u8) -> StorageKeys {
        StorageKeys::new(dkey, &Secret::take(&mut [byte; 32]))
    }

    #[test]
    fn a_value_opens_only_at_its_own_place() {
        let keys = keys(1, 7);
        let sealed = keys.seal(Family::State, b"row", b"value");
        assert_eq!(sealed.len(), 5 + SEAL_BYTES);
        assert_eq!(keys.open(Family::State, b"row", &sealed), Ok(b"value".to_vec()));
        assert_eq!(keys.open(Family::State, b"raw", &sealed), Err(SealProblem::NotAuthentic));
        assert_eq!(keys.open(Family::Meta, b"row", &sealed), Err(SealProblem::NotAuthentic));
        for at in CIPHERTEXT_AT - 1..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            assert_eq!(keys.open(Family::State, b"row", &damaged), Err(SealProblem::NotAuthentic), "byte {at}");
        }
    }

    #[test]
    fn old_keys_open_and_unknown_ones_are_named() {
        let old = keys(1, 7).seal(Family::Log, b"k", b"v");
        let new = keys(2, 8).with_older(1, &Secret::take(&mut [7; 32]));
        assert_eq!(new.open(Family::Log, b"k", &old), Ok(b"v".to_vec()));
        assert_eq!(new.seal(Family::Log, b"k", b"v")[1], 2);
        assert_eq!(keys(2, 8).open(Family::Log, b"k", &old), Err(SealProblem::UnknownKey(1)));
        assert_eq!(keys(1, 8).open(Family::Log, b"k", &old), Err(SealProblem::NotAuthentic));
        let mut newer = old.clone();
        newer[0] = 2;
        assert_eq!(new.open(Family::Log, b"k", &newer), Err(SealProblem::UnknownVersion(2)));
        assert_eq!(new.open(Family::Log, b"k", &old[..SEAL_BYTES - 1]), Err(SealProblem::Short));
    }

    /// A value of format 1 opens for ever. Its bytes come from another implementation of XChaCha20-Poly1305.
    #[test]
    fn the_golden_value_opens() {
        let golden = concat!(
            "0101000102030405060708090a0b0c0d0e0f1011121314151617",
            "219c9ac66f518333e2140d67032a02abb3189d9d712a"
        );
        let bytes: Vec<u8> = (0..golden.len() / 2)
            .map(|at| u8::from_str_radix(&golden[2 * at..2 * at + 2], 16).expect("hexadecimal"))
            .collect();
        assert_eq!(keys(1, 0x2a).open(Family::Meta, b"vote", &bytes), Ok(b"golden".to_vec()));
    }
}
