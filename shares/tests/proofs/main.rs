//! What the cryptography promises, by promise.
//!
//! `vectors` and `ciphertexts` hold the formats to the byte, for ever; the others break a rule at a time and expect its
//! refusal. All randomness comes from seeds in the tests.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod ciphertexts;
mod kit;
mod locks;
mod sealing;
mod vectors;
