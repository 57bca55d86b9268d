//! Master keys: 32 random bytes that exist whole only for moments, and what is derived from them.
//!
//! A node rebuilds a [`MasterKey`] from shares, derives the roots that it needs, and drops it. Only roots are kept in
//! memory. The key-check value is public: it says whether a rebuilt key is the one that was dealt, and nothing about it.

use rand_core::CryptoRng;
use subtle::ConstantTimeEq;

use crate::ids::{ClusterId, KeyUid, KeyVersion};
use crate::labels;
use crate::primitive;
use crate::secret::Secret;

/// Which key, for ever: every derivation is bound to all three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyIdentity {
    /// The cluster that made the key.
    pub cluster: ClusterId,
    /// The key.
    pub uid: KeyUid,
    /// Its version.
    pub version: KeyVersion,
}

/// What a root is for. A root of one purpose says nothing about the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootPurpose {
    /// Encryption of messages and data keys.
    Encrypt,
    /// The salt of deterministic encryption.
    Deterministic,
    /// Message authentication codes.
    Mac,
    /// Ed25519 signatures.
    Sign,
}

/// One version of a master key.
pub struct MasterKey(Secret<32>);

/// The root that messages and data keys are encrypted under; all that a serving node keeps of a key.
pub struct EncryptionRoot(pub(crate) Secret<32>);

impl EncryptionRoot {
    /// A root that was derived elsewhere, or travelled.
    pub fn from_secret(root: Secret<32>) -> Self {
        Self(root)
    }
}

impl MasterKey {
    /// A new key.
    pub fn random(rng: &mut impl CryptoRng) -> Self {
        Self(Secret::random(rng))
    }

    /// A key from bytes that the caller knows to be uniformly random.
    pub fn from_secret(key: Secret<32>) -> Self {
        Self(key)
    }

    /// The bytes of the key, to be split.
    pub(crate) fn secret(&self) -> &Secret<32> {
        &self.0
    }

    /// The public key-check value: 32 bytes.
    pub fn kcv(&self, identity: &KeyIdentity) -> [u8; 32] {
        *self.expand(labels::KCV, identity).expose()
    }

    /// Whether this is the key that `kcv` was made for, compared in constant time.
    pub fn matches(&self, identity: &KeyIdentity, kcv: &[u8; 32]) -> bool {
        self.kcv(identity).ct_eq(kcv).into()
    }

    /// The root for one purpose.
    pub fn root(&self, identity: &KeyIdentity, purpose: RootPurpose) -> Secret<32> {
        let label = match purpose {
            RootPurpose::Encrypt => labels::ROOT_ENC,
            RootPurpose::Deterministic => labels::ROOT_DET,
            RootPurpose::Mac => labels::ROOT_MAC,
            RootPurpose::Sign => labels::ROOT_SIGN,
        };
        self.expand(label, identity)
    }

    /// The root for encryption, in its own type.
    pub fn encryption_root(&self, identity: &KeyIdentity) -> EncryptionRoot {
        EncryptionRoot(self.root(identity, RootPurpose::Encrypt))
    }

    fn expand(&self, label: &[u8], identity: &KeyIdentity) -> Secret<32> {
        primitive::derive(&self.0, &[label, &identity.cluster.0, &identity.uid.0, &identity.version.0.to_be_bytes()])
    }
}
