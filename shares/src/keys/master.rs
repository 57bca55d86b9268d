//! Master keys, 32 random bytes each, and what is derived from them.
//!
//! A node rebuilds a [`MasterKey`] from shares, derives the roots that it needs, and drops the key. So a whole master
//! key exists only for moments; only roots stay in memory. The key-check value is public: it shows whether a rebuilt
//! key is the one that was dealt, and reveals nothing else about the key.

use rand_core::CryptoRng;
use subtle::ConstantTimeEq;

use crate::ids::{ClusterId, KeyUid, KeyVersion};
use crate::labels;
use crate::primitive;
use crate::secret::Secret;

/// Names one version of one master key for ever. Every derivation is bound to all three fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyIdentity {
    /// The cluster that made the key.
    pub cluster: ClusterId,
    /// The id of the key.
    pub uid: KeyUid,
    /// The version of the key.
    pub version: KeyVersion,
}

/// What a root is used for. A root for one purpose reveals nothing about the roots for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootPurpose {
    /// To encrypt messages and data keys.
    Encrypt,
    /// To derive the salt of deterministic encryption.
    Deterministic,
    /// To compute message authentication codes.
    Mac,
    /// To sign with Ed25519.
    Sign,
}

/// One version of a master key: 32 bytes, wiped on drop.
pub struct MasterKey(Secret<32>);

/// The root that messages and data keys are encrypted under. A serving node keeps only this of a key.
pub struct EncryptionRoot(pub(crate) Secret<32>);

impl EncryptionRoot {
    /// Takes a root that was derived elsewhere, for example on another node.
    pub fn from_secret(root: Secret<32>) -> Self {
        Self(root)
    }
}

impl MasterKey {
    /// Draws a new key.
    pub fn random(rng: &mut impl CryptoRng) -> Self {
        Self(Secret::random(rng))
    }

    /// Takes 32 bytes as a key. The caller knows that they are uniformly random.
    pub fn from_secret(key: Secret<32>) -> Self {
        Self(key)
    }

    /// The bytes of the key, to be split.
    pub(crate) fn secret(&self) -> &Secret<32> {
        &self.0
    }

    /// The public key-check value: 32 bytes, by HKDF-Expand-SHA-256 (RFC 5869) from the key and `identity`.
    pub fn kcv(&self, identity: &KeyIdentity) -> [u8; 32] {
        *self.expand(labels::KCV, identity).expose()
    }

    /// Whether this is the key that `kcv` was derived from, compared in constant time.
    pub fn matches(&self, identity: &KeyIdentity, kcv: &[u8; 32]) -> bool {
        self.kcv(identity).ct_eq(kcv).into()
    }

    /// The root for one purpose: 32 bytes, by HKDF-Expand-SHA-256 (RFC 5869) from the key and `identity`.
    pub fn root(&self, identity: &KeyIdentity, purpose: RootPurpose) -> Secret<32> {
        let label = match purpose {
            RootPurpose::Encrypt => labels::ROOT_ENC,
            RootPurpose::Deterministic => labels::ROOT_DET,
            RootPurpose::Mac => labels::ROOT_MAC,
            RootPurpose::Sign => labels::ROOT_SIGN,
        };
        self.expand(label, identity)
    }

    /// The root for encryption, as a type of its own.
    pub fn encryption_root(&self, identity: &KeyIdentity) -> EncryptionRoot {
        EncryptionRoot(self.root(identity, RootPurpose::Encrypt))
    }

    fn expand(&self, label: &[u8], identity: &KeyIdentity) -> Secret<32> {
        primitive::derive(&self.0, &[label, &identity.cluster.0, &identity.uid.0, &identity.version.0.to_be_bytes()])
    }
}
