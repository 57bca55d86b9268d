//! The two secrets in messages: the token, which authorises a request, and the plaintext.
//!
//! Neither implements Clone, their Debug does not show them, and both are wiped when they are dropped.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use quorate_shares::envelope::PLAINTEXT_BYTES_MAX;
use quorate_shares::secret::Secret;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::WireError;
use crate::error::Code;

/// The beginning of the text of a root token.
pub const TOKEN_TEXT_PREFIX: &str = "qrt-root-";

/// A plaintext of at most [`PLAINTEXT_BYTES_MAX`] bytes, wiped on drop.
pub struct Plaintext(Zeroizing<Vec<u8>>);

impl Plaintext {
    /// Takes the bytes of a plaintext.
    ///
    /// # Errors
    /// [`Code::TooLarge`] for more than [`PLAINTEXT_BYTES_MAX`] bytes.
    pub fn new(message: impl Into<Zeroizing<Vec<u8>>>) -> Result<Self, WireError> {
        let message = message.into();
        if message.len() > PLAINTEXT_BYTES_MAX {
            let size = message.len();
            let refusal = format!("a message of {size} bytes is too large: at most {PLAINTEXT_BYTES_MAX}");
            return Err(WireError::new(Code::TooLarge, refusal)
                .hint("encrypt it yourself under a data key (`quorate datakey`), and keep the wrapped key beside it"));
        }
        Ok(Self(message))
    }

    /// Lends the bytes.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The bytes themselves. They are still wiped on drop.
    pub fn into_inner(self) -> Zeroizing<Vec<u8>> {
        self.0
    }
}

impl fmt::Debug for Plaintext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Plaintext({} bytes)", self.0.len())
    }
}

impl Serialize for Plaintext {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Plaintext {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = serde_bytes::ByteBuf::deserialize(deserializer)?.into_vec();
        Self::new(bytes).map_err(de::Error::custom)
    }
}

/// The root token: 32 random bytes. The cluster stores only its SHA-256.
pub struct Token(Secret<32>);

/// The text is not a token. The error does not repeat the text, which may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a token: it begins with {TOKEN_TEXT_PREFIX} and has 43 characters behind it")]
pub struct TokenError;

impl Token {
    /// Draws a new token.
    pub fn random() -> Self {
        let mut bytes = Secret::zero();
        getrandom::fill(bytes.expose_mut()).expect("the operating system gives randomness");
        Self(bytes)
    }

    /// Reads the text form. White space around it, and the byte order mark that some editors write, are ignored.
    ///
    /// # Errors
    /// [`TokenError`] if the text is not a token.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim_start_matches('\u{feff}').trim().strip_prefix(TOKEN_TEXT_PREFIX).ok_or(TokenError)?;
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenError)?);
        Secret::copy_of(&bytes).map(Self).ok_or(TokenError)
    }

    /// The text form, which the token file holds.
    pub fn text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(64));
        text.push_str(TOKEN_TEXT_PREFIX);
        URL_SAFE_NO_PAD.encode_string(self.0.expose(), &mut text);
        text
    }

    /// SHA-256 of the 32 bytes. The cluster knows only this of a token.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.0.expose()).into()
    }

    /// A second owner of the same token. There is no `Clone`, so that each copy is visible in the code.
    pub fn duplicate(&self) -> Self {
        Self(self.0.duplicate())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Serialize for Token {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0.expose())
    }
}

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Zeroizing::new(serde_bytes::ByteBuf::deserialize(deserializer)?.into_vec());
        Secret::copy_of(&bytes).map(Self).ok_or_else(|| de::Error::custom(TokenError))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_their_text() {
        let token = Token::random();
        let text = token.text();
        assert_eq!(text.len(), TOKEN_TEXT_PREFIX.len() + 43);
        for (before, behind) in [("", "\n"), ("", ""), ("\u{feff}", "\r\n"), (" \t", " \n\n")] {
            let read = Token::parse(&format!("{before}{}{behind}", text.as_str())).expect("our own text");
            assert_eq!(read.hash(), token.hash(), "{before:?} {behind:?}");
        }
        for bad in ["", "qrt-root-", &text[1..], &text[..text.len() - 1], &format!("{}A", text.as_str())] {
            assert_eq!(Token::parse(bad).expect_err("not a token"), TokenError);
        }
    }

    #[test]
    fn the_hash_is_sha_256_of_the_bytes() {
        let text = format!("{TOKEN_TEXT_PREFIX}{}", URL_SAFE_NO_PAD.encode([0; 32]));
        let hash = Token::parse(&text).expect("32 zero bytes").hash();
        // SHA-256 of 32 zero bytes, from coreutils.
        assert_eq!(hash[..8], [0x66, 0x68, 0x7a, 0xad, 0xf8, 0x62, 0xbd, 0x77]);
    }

    #[test]
    fn a_message_beyond_the_limit_is_refused_with_advice() {
        Plaintext::new(vec![0; PLAINTEXT_BYTES_MAX]).expect("the control");
        let refusal = Plaintext::new(vec![0; PLAINTEXT_BYTES_MAX + 1]).expect_err("one byte more");
        assert_eq!(refusal.code, Code::TooLarge);
        assert!(refusal.hint.is_some_and(|hint| hint.contains("quorate datakey")));
    }
}
