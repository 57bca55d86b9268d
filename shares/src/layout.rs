//! Reading bytes that were laid out by hand: strictly, in order, to the last byte.
//!
//! Whatever is hashed, signed, authenticated or kept for ever has one byte form only, drawn above its type. A [`Reader`]
//! never allocates from a length that it has read, and [`Reader::finish`] refuses what is left over.

use crate::error::FormatError;

/// Takes fixed fields off the front of a byte string. Integers are big-endian.
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the first byte of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// [`FormatError::Short`] if there are fewer.
    pub fn slice(&mut self, len: usize) -> Result<&'a [u8], FormatError> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(FormatError::Short)?;
        self.rest = rest;
        Ok(head)
    }

    /// The next `N` bytes, where they lie.
    ///
    /// # Errors
    /// [`FormatError::Short`] if there are fewer.
    pub fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], FormatError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(FormatError::Short)?;
        self.rest = rest;
        Ok(head)
    }

    /// The next byte.
    ///
    /// # Errors
    /// [`FormatError::Short`] at the end.
    pub fn u8(&mut self) -> Result<u8, FormatError> {
        Ok(self.array::<1>()?[0])
    }

    /// The next two bytes.
    ///
    /// # Errors
    /// [`FormatError::Short`] if there are fewer.
    pub fn u16(&mut self) -> Result<u16, FormatError> {
        Ok(u16::from_be_bytes(*self.array()?))
    }

    /// The next four bytes.
    ///
    /// # Errors
    /// [`FormatError::Short`] if there are fewer.
    pub fn u32(&mut self) -> Result<u32, FormatError> {
        Ok(u32::from_be_bytes(*self.array()?))
    }

    /// The next eight bytes.
    ///
    /// # Errors
    /// [`FormatError::Short`] if there are fewer.
    pub fn u64(&mut self) -> Result<u64, FormatError> {
        Ok(u64::from_be_bytes(*self.array()?))
    }

    /// Takes `expected` and nothing else.
    ///
    /// # Errors
    /// [`FormatError::Short`] or [`FormatError::Magic`].
    pub fn magic(&mut self, expected: &[u8]) -> Result<(), FormatError> {
        match self.slice(expected.len())? == expected {
            true => Ok(()),
            false => Err(FormatError::Magic),
        }
    }

    /// How many bytes are left.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// [`FormatError::Trailing`] if anything is left.
    pub fn finish(self) -> Result<(), FormatError> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(FormatError::Trailing(left)),
        }
    }
}
