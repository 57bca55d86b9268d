//! The bundle: the keys that a node has only while it is unlocked.
//!
//! ```text
//! plaintext: op_seed 32 | m u8 | m x { dkey u8 | D 32 } | k u8 | k x { skgen u64 | seed 32 }
//! sealed:    ChaCha20-Poly1305(key, nonce 0^12, aad = hash of the lock before the bundle); the key is used once
//! ```

use zeroize::Zeroizing;

use crate::error::{FormatError, LockError};
use crate::ids::ShareKeyGeneration;
use crate::layout::Reader;
use crate::primitive::{self, TAG};
use crate::secret::Secret;

/// Most storage keys, and most share keys, in one bundle. An operation adds one and drops one.
pub const BUNDLE_KEYS_MAX: usize = 64;
/// Longest sealed bundle, in bytes.
pub(super) const BUNDLE_BYTES_MAX: usize = 34 + (33 + 40) * BUNDLE_KEYS_MAX + TAG;

/// A key that seals what the node stores.
pub struct StorageKey {
    /// The number of the key. Every value that it seals names this number.
    pub number: u8,
    /// The key itself (D).
    pub key: Secret<32>,
}

/// The private half of a key that shares are sealed to.
pub struct ShareKey {
    /// The generation under which its public half is registered.
    pub generation: ShareKeyGeneration,
    /// The seed that it is derived from.
    pub seed: Secret<32>,
}

/// The keys that a lock protects.
pub struct Bundle {
    /// The seed of the Ed25519 op key (RFC 8032).
    pub op_seed: Secret<32>,
    /// The storage keys, by rising number. New values are sealed under the last.
    pub storage_keys: Vec<StorageKey>,
    /// The share keys, by rising generation.
    pub share_keys: Vec<ShareKey>,
}

impl Bundle {
    /// A second owner of the same keys. There is no `Clone`, so that each copy is visible in the code.
    pub fn duplicate(&self) -> Self {
        let storage = |key: &StorageKey| StorageKey { number: key.number, key: key.key.duplicate() };
        let share = |key: &ShareKey| ShareKey { generation: key.generation, seed: key.seed.duplicate() };
        Self {
            op_seed: self.op_seed.duplicate(),
            storage_keys: self.storage_keys.iter().map(storage).collect(),
            share_keys: self.share_keys.iter().map(share).collect(),
        }
    }

    pub(super) fn seal(&self, key: &Secret<32>, aad: &[u8; 32]) -> Result<Vec<u8>, LockError> {
        self.check()?;
        // The full capacity at once: a buffer that grows leaves copies of secrets in memory.
        let mut plain = Zeroizing::new(Vec::with_capacity(BUNDLE_BYTES_MAX));
        plain.extend(self.op_seed.expose());
        plain.push(self.storage_keys.len() as u8); // at most BUNDLE_KEYS_MAX
        for storage in &self.storage_keys {
            plain.push(storage.number);
            plain.extend(storage.key.expose());
        }
        plain.push(self.share_keys.len() as u8);
        for share in &self.share_keys {
            plain.extend(share.generation.0.to_be_bytes());
            plain.extend(share.seed.expose());
        }
        let tag = primitive::seal(key, [0; 12], aad, &mut plain);
        let mut sealed = plain.to_vec();
        sealed.extend(tag);
        Ok(sealed)
    }

    pub(super) fn open(key: &Secret<32>, aad: &[u8; 32], sealed: &[u8]) -> Result<Self, LockError> {
        let (body, tag) = sealed.split_last_chunk::<TAG>().ok_or(LockError::Sealed)?;
        let mut plain = Zeroizing::new(body.to_vec());
        primitive::open(key, [0; 12], aad, &mut plain, tag).ok_or(LockError::Sealed)?;
        let bundle = Self::parse(&plain).map_err(|_| LockError::Bundle)?;
        bundle.check()?;
        Ok(bundle)
    }

    fn parse(plain: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(plain, "key bundle");
        let op_seed = reader.secret()?;
        let mut storage_keys = Vec::new();
        for _ in 0..reader.u8()? {
            storage_keys.push(StorageKey { number: reader.u8()?, key: reader.secret()? });
        }
        let mut share_keys = Vec::new();
        for _ in 0..reader.u8()? {
            let generation = ShareKeyGeneration(reader.u64()?);
            share_keys.push(ShareKey { generation, seed: reader.secret()? });
        }
        reader.finish()?;
        Ok(Self { op_seed, storage_keys, share_keys })
    }

    /// Checks that both lists are within the limit, rise, and repeat no number: so one bundle has one byte form.
    fn check(&self) -> Result<(), LockError> {
        let short = self.storage_keys.len().max(self.share_keys.len()) <= BUNDLE_KEYS_MAX;
        let storage = self.storage_keys.is_sorted_by(|one, next| one.number < next.number);
        let shares = self.share_keys.is_sorted_by(|one, next| one.generation < next.generation);
        match short && storage && shares {
            true => Ok(()),
            false => Err(LockError::Bundle),
        }
    }
}
