//! The secret in messages: the plaintext. It has no Clone, its Debug does not show it, and it is wiped when it is dropped.

use std::fmt;

use quorate_shares::envelope::PLAINTEXT_BYTES_MAX;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroizing;

use super::WireError;
use crate::error::Code;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_beyond_the_limit_is_refused_with_advice() {
        Plaintext::new(vec![0; PLAINTEXT_BYTES_MAX]).expect("the control");
        let refusal = Plaintext::new(vec![0; PLAINTEXT_BYTES_MAX + 1]).expect_err("one byte more");
        assert_eq!(refusal.code, Code::TooLarge);
        assert!(refusal.hint.is_some_and(|hint| hint.contains("quorate datakey")));
    }
}
