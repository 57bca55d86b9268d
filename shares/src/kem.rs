//! HPKE (RFC 9180) with the hybrid X-Wing KEM. Shares and locks are sealed with it. The only user of the crate `hpke`.
//!
//! X-Wing (MLKEM768-X25519, KEM 0x647a, draft-ietf-hpke-pq) is safe as long as ML-KEM-768 or X25519 is safe. Only base
//! mode is used, because the KEM has no authenticated mode. The log or the connection shows who sealed something.

use hpke::aead::{ChaCha20Poly1305, ExportOnlyAead};
use hpke::kdf::HkdfSha256;
use hpke::kem::XWing;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use rand_core::CryptoRng;
use serde::{Deserialize, Serialize};

use crate::error::FormatError;
use crate::primitive::Sealed32;
use crate::secret::Secret;

/// Length of a public key in bytes.
pub const PUBLIC_KEY_BYTES: usize = 1216;
/// Length of an encapsulation in bytes.
pub const ENCAPSULATION_BYTES: usize = 1120;

/// The public half of a share key or lock key: 1 216 bytes that were checked to be a valid key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct PublicKey(Box<[u8; PUBLIC_KEY_BYTES]>);

/// One encapsulation: 1 120 bytes from which the holder of the private half derives a key.
#[derive(Clone, PartialEq, Eq)]
pub struct Encapsulation(pub(crate) Box<[u8; ENCAPSULATION_BYTES]>);

impl PublicKey {
    /// Takes the 1 216 bytes of a key, after a check.
    ///
    /// # Errors
    /// [`FormatError::Invalid`] if they are not a key.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let key: [u8; PUBLIC_KEY_BYTES] = bytes.try_into().map_err(|_| FormatError::Invalid("public key"))?;
        <XWing as Kem>::PublicKey::from_bytes(&key).map_err(|_| FormatError::Invalid("public key"))?;
        Ok(Self(Box::new(key)))
    }

    /// Derives the public half from the 32-byte seed of a key.
    pub fn of_seed(seed: &Secret<32>) -> Self {
        Self::from_hpke(&XWing::sk_to_pk(&private_key(seed)))
    }

    /// The 1 216 bytes of the key.
    pub fn as_bytes(&self) -> &[u8; PUBLIC_KEY_BYTES] {
        &self.0
    }

    fn from_hpke(key: &<XWing as Kem>::PublicKey) -> Self {
        let mut bytes = Box::new([0; PUBLIC_KEY_BYTES]);
        key.write_exact(bytes.as_mut_slice());
        Self(bytes)
    }

    fn to_hpke(&self) -> <XWing as Kem>::PublicKey {
        <XWing as Kem>::PublicKey::from_bytes(self.0.as_slice()).expect("checked when it was made")
    }
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PublicKey({:02x}{:02x}{:02x}{:02x}…)", self.0[0], self.0[1], self.0[2], self.0[3])
    }
}

impl TryFrom<Vec<u8>> for PublicKey {
    type Error = FormatError;
    fn try_from(bytes: Vec<u8>) -> Result<Self, FormatError> {
        Self::parse(&bytes)
    }
}

impl From<PublicKey> for Vec<u8> {
    fn from(key: PublicKey) -> Self {
        key.0.to_vec()
    }
}

impl Encapsulation {
    fn from_hpke(encapsulation: &<XWing as Kem>::EncappedKey) -> Self {
        let mut bytes = Box::new([0; ENCAPSULATION_BYTES]);
        encapsulation.write_exact(bytes.as_mut_slice());
        Self(bytes)
    }

    fn to_hpke(&self) -> <XWing as Kem>::EncappedKey {
        <XWing as Kem>::EncappedKey::from_bytes(self.0.as_slice()).expect("any 1120 bytes are an encapsulation")
    }
}

impl std::fmt::Debug for Encapsulation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Encapsulation({:02x}{:02x}{:02x}{:02x}…)", self.0[0], self.0[1], self.0[2], self.0[3])
    }
}

/// Encapsulates to `recipient` and exports a 32-byte key (AEAD export-only).
pub(crate) fn export_to(
    recipient: &PublicKey,
    info: &[u8],
    exporter_context: &[u8],
    rng: &mut impl CryptoRng,
) -> (Encapsulation, Secret<32>) {
    let (encapsulation, context) = hpke::setup_sender_with_rng::<ExportOnlyAead, HkdfSha256, XWing>(
        &OpModeS::Base,
        &recipient.to_hpke(),
        info,
        rng,
    )
    .expect("encapsulation to a checked key in base mode does not fail");
    let mut key = Secret::zero();
    context.export(exporter_context, key.expose_mut()).expect("32 bytes are within the limit of an export");
    (Encapsulation::from_hpke(&encapsulation), key)
}

/// Derives at the recipient the key that [`export_to`] gave the sender. A wrong seed or encapsulation gives another key
/// and no error, so everything that this key opens must be authenticated.
pub(crate) fn export_from(
    seed: &Secret<32>,
    encapsulation: &Encapsulation,
    info: &[u8],
    exporter_context: &[u8],
) -> Option<Secret<32>> {
    let context = hpke::setup_receiver::<ExportOnlyAead, HkdfSha256, XWing>(
        &OpModeR::Base,
        &private_key(seed),
        &encapsulation.to_hpke(),
        info,
    )
    .ok()?;
    let mut key = Secret::zero();
    context.export(exporter_context, key.expose_mut()).ok()?;
    Some(key)
}

/// Seals one secret to `recipient` (single-shot, ChaCha20-Poly1305, no associated data).
pub(crate) fn seal_to(
    recipient: &PublicKey,
    info: &[u8],
    secret: &Secret<32>,
    rng: &mut impl CryptoRng,
) -> (Encapsulation, Sealed32) {
    let (encapsulation, sealed) = hpke::single_shot_seal_with_rng::<ChaCha20Poly1305, HkdfSha256, XWing>(
        &OpModeS::Base,
        &recipient.to_hpke(),
        info,
        secret.expose(),
        b"",
        rng,
    )
    .expect("sealing to a checked key in base mode does not fail");
    let sealed = sealed.try_into().expect("32 bytes and a tag");
    (Encapsulation::from_hpke(&encapsulation), sealed)
}

/// Opens a secret that [`seal_to`] sealed; `None` if it was sealed to another key or with another `info`.
pub(crate) fn open_from(
    seed: &Secret<32>,
    encapsulation: &Encapsulation,
    info: &[u8],
    sealed: &Sealed32,
) -> Option<Secret<32>> {
    let opened = hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, XWing>(
        &OpModeR::Base,
        &private_key(seed),
        &encapsulation.to_hpke(),
        info,
        sealed,
        b"",
    );
    let opened = zeroize::Zeroizing::new(opened.ok()?);
    Secret::copy_of(&opened)
}

fn private_key(seed: &Secret<32>) -> <XWing as Kem>::PrivateKey {
    <XWing as Kem>::PrivateKey::from_bytes(seed.expose()).expect("any 32 bytes are a seed")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A test vector of draft-ietf-hpke-pq (see its `source`) shows that this is the suite of the draft.
    #[test]
    fn hpke_with_x_wing_as_in_the_draft() {
        let vector: serde_json::Value =
            serde_json::from_str(include_str!("../vectors/hpke-pq.json")).expect("the vector is JSON");
        let bytes = |value: &serde_json::Value| -> Vec<u8> {
            let text = value.as_str().expect("hexadecimal text");
            (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("digits")).collect()
        };
        let seed = Secret::copy_of(&bytes(&vector["skRm"])).expect("32 bytes");
        assert_eq!(PublicKey::of_seed(&seed).as_bytes().as_slice(), bytes(&vector["pkRm"]));
        let encapsulation = <XWing as Kem>::EncappedKey::from_bytes(&bytes(&vector["enc"])).expect("1120 bytes");
        let mut context = hpke::setup_receiver::<ChaCha20Poly1305, HkdfSha256, XWing>(
            &OpModeR::Base,
            &private_key(&seed),
            &encapsulation,
            &bytes(&vector["info"]),
        )
        .expect("a valid encapsulation");
        for message in vector["encryptions"].as_array().expect("a list") {
            let opened = context.open(&bytes(&message["ct"]), &bytes(&message["aad"])).expect("a valid message");
            assert_eq!(opened, bytes(&message["pt"]));
        }
        for export in vector["exports"].as_array().expect("a list") {
            let mut exported = [0; 32];
            context.export(&bytes(&export["exporter_context"]), &mut exported).expect("32 bytes");
            assert_eq!(exported.as_slice(), bytes(&export["exported_value"]));
        }
    }
}
