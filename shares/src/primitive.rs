//! SHA-256, HMAC, HKDF-Expand and ChaCha20-Poly1305, in the few shapes that the formats use.
//!
//! Keys are borrowed from [`Secret`]s, and derived keys are written straight into new ones. The libraries below leave
//! copies of their input in their stack frames, for example a key under the pads of HMAC. So the stack is overwritten
//! after each call.

use std::hint::black_box;

use chacha20poly1305::ChaCha20Poly1305;
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

use crate::secret::Secret;

/// Bytes that an AEAD adds to what it seals.
pub(crate) const TAG: usize = 16;

/// A sealed 32-byte secret.
pub(crate) type Sealed32 = [u8; 32 + TAG];

/// SHA-256 of the parts, one after the other.
pub(crate) fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// As [`hash`], for parts that are partly secret: no copy of them stays on the stack.
pub(crate) fn hash_secret(parts: &[&[u8]]) -> [u8; 32] {
    with_wiped_stack(|| hash(parts))
}

/// HMAC-SHA-256 (RFC 2104).
pub(crate) fn hmac(key: &[u8], message: &[u8]) -> Secret<32> {
    with_wiped_stack(|| {
        let mut mac = <Hmac<Sha256> as hmac::KeyInit>::new_from_slice(key).expect("HMAC takes a key of any length");
        mac.update(message);
        let mut tag: [u8; 32] = mac.finalize().into_bytes().into();
        Secret::take(&mut tag)
    })
}

/// HKDF-Expand-SHA-256 (RFC 5869) of `info` under `key`, filling `output` (at most 8 160 bytes).
pub(crate) fn expand(key: &[u8; 32], info: &[&[u8]], output: &mut [u8]) {
    with_wiped_stack(|| {
        let hkdf = Hkdf::<Sha256>::from_prk(key).expect("32 bytes are a SHA-256 key");
        hkdf.expand_multi_info(info, output).expect("no output of this crate is near 8160 bytes");
    });
}

/// [`expand`] into 32 secret bytes.
pub(crate) fn derive(key: &Secret<32>, info: &[&[u8]]) -> Secret<32> {
    let mut derived = Secret::zero();
    expand(key.expose(), info, derived.expose_mut());
    derived
}

/// Seals `buffer` in place and returns the tag. The caller must never use one nonce twice with one key.
pub(crate) fn seal(key: &Secret<32>, nonce: [u8; 12], aad: &[u8], buffer: &mut [u8]) -> [u8; TAG] {
    with_wiped_stack(|| {
        let tag = ChaCha20Poly1305::new(key.expose().into()).encrypt_inout_detached(&nonce.into(), aad, buffer.into());
        tag.expect("far less than 256 GiB").into()
    })
}

/// Opens `buffer` in place. If the tag does not match: `None`, and no plaintext.
pub(crate) fn open(key: &Secret<32>, nonce: [u8; 12], aad: &[u8], buffer: &mut [u8], tag: &[u8; TAG]) -> Option<()> {
    with_wiped_stack(|| {
        let cipher = ChaCha20Poly1305::new(key.expose().into());
        cipher.decrypt_inout_detached(&nonce.into(), aad, buffer.into(), tag.into()).ok()
    })
}

/// Seals one 32-byte secret.
pub(crate) fn seal_secret(key: &Secret<32>, nonce: [u8; 12], aad: &[u8], secret: &Secret<32>) -> Sealed32 {
    let mut sealed = [0; 32 + TAG];
    let (body, tag) = sealed.split_at_mut(32);
    body.copy_from_slice(secret.expose());
    tag.copy_from_slice(&seal(key, nonce, aad, body));
    sealed
}

/// Opens one 32-byte secret.
pub(crate) fn open_secret(key: &Secret<32>, nonce: [u8; 12], aad: &[u8], sealed: &Sealed32) -> Option<Secret<32>> {
    let (body, tag) = sealed.split_first_chunk::<32>()?;
    let mut secret = Secret::zero();
    secret.expose_mut().copy_from_slice(body);
    open(key, nonce, aad, secret.expose_mut(), tag.try_into().ok()?)?;
    Some(secret)
}

/// Bytes of stack that are overwritten: more than any function here uses. A test that searches the memory of a daemon
/// (`tests/src/promises/secrecy/memory.rs`) shows that it is enough.
const STACK_BYTES: usize = 4096;

/// Runs `work` in stack frames of its own, and then overwrites the stack that they used.
fn with_wiped_stack<T>(work: impl FnOnce() -> T) -> T {
    #[inline(never)]
    fn in_own_frames<T>(work: impl FnOnce() -> T) -> T {
        work()
    }
    #[inline(never)]
    fn write_over() {
        // Mutable: an immutable array would be a constant outside of the stack.
        let mut below = [0u8; STACK_BYTES];
        black_box(&mut below);
    }
    let done = in_own_frames(work);
    write_over();
    done
}
