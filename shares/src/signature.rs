//! Ed25519 (RFC 8032): public keys, and signatures that are checked strictly.
//!
//! Every message that is signed begins with a label of [`crate::labels`], so a signature of one kind is never one of another.
//! Only one encoding of a key and of a signature is valid: small-order keys, other encodings of a point, and numbers that are
//! not reduced are refused. So all replicas agree about every signature.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::ids::from_hex;
use crate::secret::Secret;

/// Bytes of a signature.
pub const SIGNATURE_BYTES: usize = 64;

/// An Ed25519 public key: the identity of a node, of an operator, or of a client.
///
/// As text, it is base64url without padding; hexadecimal is also read. In frames, it is 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

/// Text that is not a public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a public key is 32 bytes as base64url (43 characters) or hexadecimal (64 digits)")]
pub struct PublicKeyError;

impl PublicKey {
    /// The public half of a seed.
    pub fn of_seed(seed: &Secret<32>) -> Self {
        Self(SigningKey::from_bytes(seed.expose()).verifying_key().to_bytes())
    }

    /// Whether the bytes are the one encoding of a key that signatures can be checked with.
    pub fn is_strict(&self) -> bool {
        VerifyingKey::from_bytes(&self.0)
            .is_ok_and(|key| !key.is_weak() && key.to_edwards().compress().to_bytes() == self.0)
    }

    /// Whether `signature` is the signature of this key under `label || message`.
    pub(crate) fn has_signed(&self, label: &[u8], message: &[u8], signature: &[u8; SIGNATURE_BYTES]) -> bool {
        let Ok(key) = VerifyingKey::from_bytes(&self.0) else { return false };
        let labelled = [label, message].concat();
        self.is_strict() && key.verify_strict(&labelled, &Signature::from_bytes(signature)).is_ok()
    }
}

/// Signs `label || message`.
pub(crate) fn sign(seed: &Secret<32>, label: &[u8], message: &[u8]) -> [u8; SIGNATURE_BYTES] {
    SigningKey::from_bytes(seed.expose()).sign(&[label, message].concat()).to_bytes()
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = PublicKeyError;
    fn from_str(text: &str) -> Result<Self, PublicKeyError> {
        if let Some(key) = from_hex(text) {
            return Ok(Self(key));
        }
        let key = URL_SAFE_NO_PAD.decode(text).map_err(|_| PublicKeyError)?;
        Ok(Self(key.try_into().map_err(|_| PublicKeyError)?))
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Self)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: &[u8] = crate::labels::ORDER;

    fn key(text: &str) -> PublicKey {
        text.parse().expect("64 digits")
    }

    fn seed() -> Secret<32> {
        Secret::take(&mut key("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60").0)
    }

    #[test]
    fn a_seed_gives_the_public_key_of_rfc_8032() {
        let public = key("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
        assert_eq!(PublicKey::of_seed(&seed()), public);
        assert!(public.is_strict());
    }

    #[test]
    fn public_keys_survive_their_text() {
        let key = PublicKey::of_seed(&seed());
        assert_eq!(key.to_string().parse(), Ok(key));
        assert_eq!(key.to_string().len(), 43);
        for bad in ["", "AAAA", &format!("{key}="), &format!("{key}A"), &"z".repeat(64), &"é".repeat(32)] {
            assert_eq!(bad.parse::<PublicKey>(), Err(PublicKeyError), "{bad}");
        }
    }

    #[test]
    fn a_signature_holds_for_its_key_its_label_and_its_message_alone() {
        let (seed, message) = (seed(), b"message");
        let public = PublicKey::of_seed(&seed);
        let signature = sign(&seed, LABEL, message);
        assert!(public.has_signed(LABEL, message, &signature), "the control");
        assert!(!public.has_signed(crate::labels::CONTEXT, message, &signature));
        assert!(!public.has_signed(LABEL, b"messagf", &signature));
        assert!(!PublicKey([7; 32]).has_signed(LABEL, message, &signature));
        for byte in 0..SIGNATURE_BYTES {
            let mut other = signature;
            other[byte] ^= 1;
            assert!(!public.has_signed(LABEL, message, &other), "byte {byte}");
        }
    }

    /// s + L is the same number modulo L (RFC 8032 section 5.1.7 forbids it).
    #[test]
    fn a_signature_has_one_form() {
        const L: [u8; 32] = [
            0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
        ];
        let mut signature = sign(&seed(), LABEL, b"m");
        let mut carry = 0;
        for (byte, add) in signature[32..].iter_mut().zip(L) {
            let sum = u16::from(*byte) + u16::from(add) + carry;
            (*byte, carry) = (sum as u8, sum >> 8);
        }
        assert_eq!(carry, 0, "it fits 256 bits");
        assert!(!PublicKey::of_seed(&seed()).has_signed(LABEL, b"m", &signature));
    }

    /// Mutated: without `is_strict`, a key for which any person can make signatures could be named as an operator's.
    #[test]
    fn small_order_keys_and_second_encodings_are_refused() {
        let mut identity = [0; 32];
        identity[0] = 1;
        // y = p + 3, the second encoding of a point of large order, if 3 is the y of one; and the same with other small y.
        let second = |y: u8| {
            let mut bytes = [0xff; 32];
            (bytes[0], bytes[31]) = (0xed + y, 0x7f);
            bytes
        };
        for bad in [[0; 32], identity, [0xff; 32]].into_iter().chain((0..18).map(second)) {
            assert!(!PublicKey(bad).is_strict(), "{bad:02x?}");
        }
        let decodes = |y: u8| VerifyingKey::from_bytes(&second(y)).is_ok_and(|key| !key.is_weak());
        assert!((0..18).any(decodes), "the control: the library alone takes one of them");
    }
}
