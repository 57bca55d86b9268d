//! The only user of bincode: how frames and stored structs become bytes.
//!
//! Without a limit, bincode aborts the process on an eleven-byte message that claims a string of 2^60 bytes. So every
//! decoding here names its limit. A value must fill its bytes exactly: trailing bytes and unknown variants are refused.
//! Bytes that are hashed, signed or authenticated are not encoded here; they are laid out by hand (see
//! [`crate::layout`]).

use bincode::config;
use bincode::enc::write::SizeWriter;
use serde::{Serialize, de::DeserializeOwned};

/// Why bytes are not the value that was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The bytes end early, claim more than the limit, or hold a value that is not allowed.
    #[error("malformed message")]
    Malformed,
    /// A variant that this version of the program does not know: the message may come from a newer one.
    #[error("a message of a newer form")]
    UnknownVariant,
    /// The value ended before the bytes did.
    #[error("{0} bytes after the end of the message")]
    Trailing(usize),
    /// The value cannot be written within the limit.
    #[error("message larger than its limit")]
    TooLarge,
}

/// Initial size of a buffer in bytes: most messages fit. A larger message grows its buffer.
const USUAL_BYTES: usize = 512;

/// Encodes `value` in the standard configuration of bincode.
///
/// # Errors
/// [`CodecError::TooLarge`] if it cannot be written.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = Vec::with_capacity(USUAL_BYTES);
    bincode::serde::encode_into_std_write(value, &mut bytes, config::standard()).map_err(|_| CodecError::TooLarge)?;
    Ok(bytes)
}

/// Counts the bytes that [`encode`] would write, without writing them.
///
/// # Errors
/// As [`encode`].
pub fn encoded_len<T: Serialize>(value: &T) -> Result<usize, CodecError> {
    let mut counter = SizeWriter::default();
    bincode::serde::encode_into_writer(value, &mut counter, config::standard()).map_err(|_| CodecError::TooLarge)?;
    Ok(counter.bytes_written)
}

/// Decodes a value that fills `bytes` exactly. It never allocates more than `LIMIT` bytes for what length fields claim.
///
/// # Errors
/// [`CodecError`] for anything but one whole value.
pub fn decode<T: DeserializeOwned, const LIMIT: usize>(bytes: &[u8]) -> Result<T, CodecError> {
    let config = config::standard().with_limit::<LIMIT>();
    let (value, used) = bincode::serde::decode_from_slice(bytes, config).map_err(describe)?;
    match bytes.len() - used {
        0 => Ok(value),
        trailing => Err(CodecError::Trailing(trailing)),
    }
}

/// serde gives an unknown variant no error of its own, only a text.
fn describe(error: bincode::error::DecodeError) -> CodecError {
    match error {
        bincode::error::DecodeError::OtherString(text) if text.contains("variant index") => CodecError::UnknownVariant,
        _ => CodecError::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    /// The text that [`describe`] looks for is serde's. Mutated: with another text this fails.
    #[test]
    fn an_unknown_variant_is_told_from_other_damage() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        enum Older {
            A,
            B { name: String },
        }
        #[derive(Serialize)]
        enum Newer {
            #[expect(dead_code, reason = "takes a number")]
            A,
            B {
                name: String,
            },
            C {
                name: String,
            },
        }
        let name = || "one".to_owned();
        let known = encode(&Newer::B { name: name() }).expect("fits");
        assert_eq!(decode::<Older, 64>(&known), Ok(Older::B { name: name() }), "the control");
        assert_eq!(decode::<Older, 64>(&known[..2]), Err(CodecError::Malformed));
        let unknown = encode(&Newer::C { name: name() }).expect("fits");
        assert_eq!(decode::<Older, 64>(&unknown), Err(CodecError::UnknownVariant));
        let within = encode(&(7u8, [Newer::C { name: name() }])).expect("fits");
        assert_eq!(decode::<(u8, [Older; 1]), 64>(&within), Err(CodecError::UnknownVariant));
    }

    #[test]
    fn a_hostile_length_is_an_error_and_not_an_abort() {
        let mut claim = vec![253];
        claim.extend((1u64 << 60).to_le_bytes());
        claim.extend(b"xy");
        assert_eq!(decode::<String, 1024>(&claim), Err(CodecError::Malformed));
        assert_eq!(decode::<Vec<u8>, 1024>(&claim), Err(CodecError::Malformed));
    }

    #[test]
    fn a_value_fills_its_bytes_exactly() {
        let mut bytes = encode(&(7u64, "seven")).expect("a small value fits");
        assert_eq!(encoded_len(&(7u64, "seven")), Ok(bytes.len()));
        assert_eq!(decode::<(u64, String), 64>(&bytes), Ok((7, "seven".to_owned())));
        bytes.push(0);
        assert_eq!(decode::<(u64, String), 64>(&bytes), Err(CodecError::Trailing(1)));
    }
}
