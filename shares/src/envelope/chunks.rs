//! The chunks of a body. Each is sealed under its own nonce, and the last is shorter than the others. So a chunk that
//! is cut off, moved or added is detected.
//!
//! The AEAD here is that of aws-lc-rs. On short messages it is nine times as fast as the pure-Rust crate that seals
//! shares, and it is linked for TLS anyway. A test seals with one crate and opens with the other.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroize;

use crate::error::Refused;
use crate::primitive::TAG;

/// Plaintext bytes of every chunk except the last.
pub(super) const CHUNK: usize = 16_384;

/// Length of the sealed chunks of `length` plaintext bytes.
pub(super) fn sealed_len(length: usize) -> usize {
    length + TAG * (length / CHUNK + 1)
}

/// Length of the plaintext in `sealed` bytes of chunks; `None` if no plaintext gives this length.
pub(super) fn plain_len(sealed: usize) -> Option<usize> {
    let (full, last) = (sealed / (CHUNK + TAG), sealed % (CHUNK + TAG));
    Some(full * CHUNK + last.checked_sub(TAG)?)
}

/// Appends the sealed chunks of `plaintext` to `output`.
pub(super) fn seal(key: &[u8; 32], base_nonce: &[u8; 12], plaintext: &[u8], output: &mut Vec<u8>) {
    let key = cipher(key);
    for index in 0..=plaintext.len() / CHUNK {
        let from = index * CHUNK;
        let chunk = &plaintext[from..plaintext.len().min(from + CHUNK)];
        let start = output.len();
        output.extend_from_slice(chunk);
        let tag = key
            .seal_in_place_separate_tag(nonce(base_nonce, index), Aad::empty(), &mut output[start..])
            .expect("a chunk is far shorter than the limit of the cipher");
        output.extend_from_slice(tag.as_ref());
    }
}

/// Appends the plaintext to `output`. If any chunk does not open, it refuses all of them and leaves `output` unchanged.
pub(super) fn open(key: &[u8; 32], base_nonce: &[u8; 12], sealed: &[u8], output: &mut Vec<u8>) -> Result<(), Refused> {
    let start = output.len();
    output.resize(start + plain_len(sealed.len()).ok_or(Refused)?, 0);
    let opened = open_chunks(&cipher(key), base_nonce, sealed, &mut output[start..]);
    if opened.is_err() {
        // The chunks before the refused one are authentic, but they are not a whole message.
        output[start..].zeroize();
        output.truncate(start);
    }
    opened
}

fn open_chunks(key: &LessSafeKey, base_nonce: &[u8; 12], sealed: &[u8], output: &mut [u8]) -> Result<(), Refused> {
    for (index, chunk) in sealed.chunks(CHUNK + TAG).enumerate() {
        let (body, tag) = chunk.split_last_chunk::<TAG>().ok_or(Refused)?;
        let output = &mut output[index * CHUNK..][..body.len()];
        key.open_separate_gather(nonce(base_nonce, index), Aad::empty(), body, tag, output).map_err(|_| Refused)?;
    }
    Ok(())
}

fn cipher(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).expect("32 bytes are a key"))
}

/// The base nonce XOR the number of the chunk, in its last eight bytes.
fn nonce(base: &[u8; 12], index: usize) -> Nonce {
    let mut nonce = *base;
    for (byte, count) in nonce[4..].iter_mut().zip((index as u64).to_be_bytes()) {
        *byte ^= count;
    }
    Nonce::assume_unique_for_key(nonce)
}
