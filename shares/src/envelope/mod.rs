//! Ciphertexts, which applications store. There is one format. Its header can be read without a key.
//!
//! The body is C2SP chunked-encryption (c2sp.org/chunked-encryption@v1) with ChaCha20-Poly1305 and HKDF-SHA-256:
//!
//! ```text
//! body   = salt 24 | commitment 32 | chunks of 16 KiB, each with its tag; the last is always shorter, and may be empty
//! ctx    = SHA-256(label | u16 length | binary header | context)
//! key 32 | base nonce 12 | commitment 32 = HKDF-Expand(root, label | salt | ctx, 76)
//! chunk i: nonce = base nonce XOR i, no associated data
//! ```
//!
//! Key, name, version, kind, suite and context all enter the derivation. The commitment binds a ciphertext to one key;
//! it is compared before anything is decrypted. The salt is drawn here and never comes from a caller. If a ciphertext
//! parses but does not open, the error is always [`Refused`], whatever the cause.

mod chunks;
mod ciphertext;
pub mod context;

pub use ciphertext::{Ciphertext, CiphertextHeader, CiphertextKind, HEADER_BYTES_MAX, Suite};

use rand_core::CryptoRng;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::context::Context;
use crate::error::{MessageTooLarge, Refused};
use crate::labels;
use crate::master::EncryptionRoot;
use crate::primitive::{expand, hash};

/// Longest plaintext, in bytes. Larger data is encrypted under a data key.
pub const PLAINTEXT_BYTES_MAX: usize = 65_536;

const SALT: usize = 24;
const COMMITMENT: usize = 32;
/// Bytes of a body that precede its chunks.
const PREFIX: usize = SALT + COMMITMENT;

/// Encrypts `plaintext` under `root`, which must belong to the key and version that `header` names.
///
/// # Errors
/// [`MessageTooLarge`] for more than [`PLAINTEXT_BYTES_MAX`] bytes.
pub fn seal(
    root: &EncryptionRoot,
    header: CiphertextHeader,
    context: &Context,
    plaintext: &[u8],
    rng: &mut impl CryptoRng,
) -> Result<Ciphertext, MessageTooLarge> {
    let mut body = Vec::new();
    seal_into(root, &header, context, plaintext, rng, &mut body)?;
    Ok(Ciphertext { header, body })
}

/// As [`seal`], but appends the body to `body`.
///
/// # Errors
/// [`MessageTooLarge`]; then `body` is unchanged.
pub fn seal_into(
    root: &EncryptionRoot,
    header: &CiphertextHeader,
    context: &Context,
    plaintext: &[u8],
    rng: &mut impl CryptoRng,
    body: &mut Vec<u8>,
) -> Result<(), MessageTooLarge> {
    if plaintext.len() > PLAINTEXT_BYTES_MAX {
        return Err(MessageTooLarge);
    }
    let mut salt = [0; SALT];
    rng.fill_bytes(&mut salt);
    let keys = Derived::new(root, header, context, &salt);
    body.reserve(PREFIX + chunks::sealed_len(plaintext.len()));
    body.extend_from_slice(&salt);
    body.extend_from_slice(keys.commitment());
    chunks::seal(keys.key(), keys.base_nonce(), plaintext, body);
    Ok(())
}

/// Decrypts `ciphertext` with `root`, which must belong to the key and version that its header names.
///
/// # Errors
/// [`Refused`], whatever the cause.
pub fn open(root: &EncryptionRoot, ciphertext: &Ciphertext, context: &Context) -> Result<Zeroizing<Vec<u8>>, Refused> {
    let mut plaintext = Zeroizing::new(Vec::new());
    open_into(root, ciphertext, context, &mut plaintext)?;
    Ok(plaintext)
}

/// As [`open`], but appends the plaintext to `plaintext`. The caller wipes that buffer.
///
/// # Errors
/// [`Refused`]; then `plaintext` is unchanged.
pub fn open_into(
    root: &EncryptionRoot,
    ciphertext: &Ciphertext,
    context: &Context,
    plaintext: &mut Vec<u8>,
) -> Result<(), Refused> {
    let (salt, rest) = ciphertext.body.split_first_chunk::<SALT>().ok_or(Refused)?;
    let (commitment, sealed) = rest.split_first_chunk::<COMMITMENT>().ok_or(Refused)?;
    let keys = Derived::new(root, &ciphertext.header, context, salt);
    if !bool::from(keys.commitment().ct_eq(commitment)) {
        return Err(Refused);
    }
    chunks::open(keys.key(), keys.base_nonce(), sealed, plaintext)
}

/// Key, base nonce and commitment, derived from root, header, context and salt. They live for one message, on the
/// stack, and are wiped.
struct Derived(Zeroizing<[u8; 76]>);

impl Derived {
    fn new(root: &EncryptionRoot, header: &CiphertextHeader, context: &Context, salt: &[u8; SALT]) -> Self {
        let mut buffer = [0; HEADER_BYTES_MAX];
        let header = header.write(&mut buffer);
        let length = (header.len() as u16).to_be_bytes(); // at most HEADER_BYTES_MAX
        let bound = hash(&[labels::CONTEXT, &length, header, context.as_bytes()]);
        let mut derived = Zeroizing::new([0; 76]);
        expand(root.0.expose(), &[labels::CHUNKED_SUITE_1, salt, &bound], derived.as_mut_slice());
        Self(derived)
    }

    fn key(&self) -> &[u8; 32] {
        self.0[..32].try_into().expect("32 of 76 bytes")
    }

    fn base_nonce(&self) -> &[u8; 12] {
        self.0[32..44].try_into().expect("12 of 76 bytes")
    }

    fn commitment(&self) -> &[u8; COMMITMENT] {
        self.0[44..].try_into().expect("32 of 76 bytes")
    }
}
