//! Reads bytes that are laid out by hand: strictly, in order, to the last byte.
//!
//! Everything that is hashed, signed, authenticated or stored for years has exactly one byte form, drawn above its type in
//! docs/FORMATS.md. A [`Reader`] never allocates memory for a length that it has read, and [`Reader::finish`] refuses bytes
//! that are left over.

use crate::error::FormatError;
use crate::ids::{ClusterId, NodeId, NodeName};
use crate::kem::{PUBLIC_KEY_BYTES, PublicKey};
use crate::secret::Secret;

/// Takes fields off the front of a byte string. Integers are big-endian.
pub struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    /// Starts at the first byte of `bytes`; `what` names them in [`FormatError::Short`].
    pub fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { rest: bytes, what }
    }

    /// The next `count` bytes, borrowed.
    ///
    /// # Errors
    /// [`FormatError::Short`] if there are fewer.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], FormatError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(FormatError::Short(self.what))?;
        self.rest = rest;
        Ok(taken)
    }

    /// The next `N` bytes, copied. For secret bytes use [`Reader::secret`].
    ///
    /// # Errors
    /// [`FormatError::Short`] if there are fewer.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(FormatError::Short(self.what))?;
        self.rest = rest;
        Ok(*taken)
    }

    /// The next `N` bytes, copied straight into memory that is wiped when it is dropped.
    ///
    /// # Errors
    /// [`FormatError::Short`] if there are fewer.
    pub fn secret<const N: usize>(&mut self) -> Result<Secret<N>, FormatError> {
        Secret::copy_of(self.bytes(N)?).ok_or(FormatError::Short(self.what))
    }

    /// The next byte.
    ///
    /// # Errors
    /// [`FormatError::Short`] at the end.
    pub fn u8(&mut self) -> Result<u8, FormatError> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    /// The next two bytes.
    ///
    /// # Errors
    /// [`FormatError::Short`] if there are fewer.
    pub fn u16(&mut self) -> Result<u16, FormatError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    /// The next four bytes.
    ///
    /// # Errors
    /// [`FormatError::Short`] if there are fewer.
    pub fn u32(&mut self) -> Result<u32, FormatError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// The next eight bytes.
    ///
    /// # Errors
    /// [`FormatError::Short`] if there are fewer.
    pub fn u64(&mut self) -> Result<u64, FormatError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// One byte that counts entries.
    ///
    /// # Errors
    /// [`FormatError::TooMany`] if it is above `limit`; [`FormatError::Short`] at the end.
    pub fn count(&mut self, limit: usize, what: &'static str) -> Result<usize, FormatError> {
        match usize::from(self.u8()?) {
            count if count > limit => Err(FormatError::TooMany { what, limit }),
            count => Ok(count),
        }
    }

    /// One byte that is 0 for `false` or 1 for `true`.
    ///
    /// # Errors
    /// [`FormatError::Invalid`] with `what` for any other byte; [`FormatError::Short`] at the end.
    pub fn flag(&mut self, what: &'static str) -> Result<bool, FormatError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(FormatError::Invalid(what)),
        }
    }

    /// UTF-8 text behind its length in one byte.
    ///
    /// # Errors
    /// [`FormatError::Invalid`] if it is not UTF-8; [`FormatError::Short`] if there are fewer bytes.
    pub fn text(&mut self) -> Result<&'a str, FormatError> {
        let length = self.u8()?;
        std::str::from_utf8(self.bytes(length.into())?).map_err(|_| FormatError::Invalid("text"))
    }

    /// A cluster id: 16 bytes.
    ///
    /// # Errors
    /// [`FormatError::Short`] if there are fewer.
    pub fn cluster(&mut self) -> Result<ClusterId, FormatError> {
        Ok(ClusterId(self.array()?))
    }

    /// A node id: eight bytes.
    ///
    /// # Errors
    /// [`FormatError::Invalid`] for zero; [`FormatError::Short`] if there are fewer bytes.
    pub fn node(&mut self) -> Result<NodeId, FormatError> {
        match self.u64()? {
            0 => Err(FormatError::Invalid("node id")),
            id => Ok(NodeId(id)),
        }
    }

    /// A node name behind its length in one byte.
    ///
    /// # Errors
    /// [`FormatError::Invalid`] if it is not a name; [`FormatError::Short`] if there are fewer bytes.
    pub fn name(&mut self) -> Result<NodeName, FormatError> {
        self.text()?.parse().map_err(|_| FormatError::Invalid("node name"))
    }

    /// A share key or lock key: [`PUBLIC_KEY_BYTES`] bytes.
    ///
    /// # Errors
    /// [`FormatError::Invalid`] if they are not a key; [`FormatError::Short`] if there are fewer bytes.
    pub fn share_pk(&mut self) -> Result<PublicKey, FormatError> {
        PublicKey::parse(self.bytes(PUBLIC_KEY_BYTES)?).map_err(|_| FormatError::Invalid("share key"))
    }

    /// Takes `expected` and nothing else.
    ///
    /// # Errors
    /// [`FormatError::Magic`] for other bytes; [`FormatError::Short`] if there are fewer.
    pub fn magic(&mut self, expected: &[u8]) -> Result<(), FormatError> {
        match self.bytes(expected.len())? == expected {
            true => Ok(()),
            false => Err(FormatError::Magic),
        }
    }

    /// How many bytes are left.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Whether no byte is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// [`FormatError::Trailing`] if bytes are left.
    pub fn finish(self) -> Result<(), FormatError> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(FormatError::Trailing(left)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_uses_every_byte_or_says_so() {
        let mut reader = Reader::new(&[1, 0, 2, 9], "test");
        assert_eq!(reader.u8(), Ok(1));
        assert_eq!(reader.u16(), Ok(2));
        assert_eq!(reader.u16(), Err(FormatError::Short("test")));
        assert_eq!(reader.finish(), Err(FormatError::Trailing(1)));
    }
}
