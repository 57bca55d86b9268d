//! Bytes laid out by hand: the vault, the invitation and the join messages.
//!
//! Bytes that stay on disk for years or are covered by a MAC are written field by field, big-endian, in the order that
//! docs/FORMATS.md draws. [`Reader`] is strict: it never allocates for a length that the bytes do not cover, and a value must
//! use every byte that it was given. [`Writer`] also collects secrets, so its buffer is wiped and never moves: a vector that
//! grows would leave its old content on the heap.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use quorate_shares::ids::{ADDRESSES_MAX, is_address};

pub use quorate_shares::error::FormatError;
pub use quorate_shares::layout::Reader;

/// Where a node is reached: `host:port`, as the operator wrote it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(String);

impl Address {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads an address after its length in one byte.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        reader.text()?.parse()
    }

    /// Reads a list of addresses after their count in one byte.
    pub fn read_list(reader: &mut Reader<'_>) -> Result<Vec<Self>, FormatError> {
        (0..reader.count(ADDRESSES_MAX, "addresses of a node")?).map(|_| Self::read(reader)).collect()
    }
}

impl FromStr for Address {
    type Err = FormatError;
    fn from_str(text: &str) -> Result<Self, FormatError> {
        if is_address(text) { Ok(Self(text.to_owned())) } else { Err(FormatError::Invalid("address")) }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Bytes that are wiped when dropped. The vector is allocated once and never grows, so it leaves no copies behind. Its unused
/// room never held anything.
pub struct Wiped(Vec<u8>);

impl Deref for Wiped {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Wiped {
    fn drop(&mut self) {
        self.0.fill(0);
        zeroize::optimization_barrier(&self.0);
    }
}

/// Appends fields to one buffer that is allocated once and wiped when dropped.
pub struct Writer {
    buffer: Wiped,
    limit: usize,
    overflow: bool,
}

impl Writer {
    /// A writer for at most `limit` bytes. Bytes that do not fit are not written, and [`Writer::finish`] is then an error.
    pub fn with_room(limit: usize) -> Self {
        Self { buffer: Wiped(Vec::with_capacity(limit)), limit, overflow: false }
    }

    /// Appends `bytes` as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.overflow |= self.buffer.len() + bytes.len() > self.limit;
        if !self.overflow {
            self.buffer.0.extend_from_slice(bytes);
        }
        self
    }

    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    /// Appends a count in one byte. A count above 255 overflows the writer.
    pub fn count(&mut self, count: usize) -> &mut Self {
        match u8::try_from(count) {
            Ok(count) => self.u8(count),
            Err(_) => {
                self.overflow = true;
                self
            }
        }
    }

    /// Appends a text with its length byte.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.count(text.len()).bytes(text.as_bytes())
    }

    /// Appends a list of addresses with its count.
    pub fn addresses(&mut self, addresses: &[Address]) -> &mut Self {
        self.count(addresses.len());
        addresses.iter().fold(self, |writer, address| writer.text(address.as_str()))
    }

    /// Appends a section: its tag, its length in four bytes, and what `body` writes.
    pub fn section(&mut self, tag: u8, body: impl FnOnce(&mut Self)) {
        self.u8(tag).u32(0);
        let start = self.buffer.len();
        body(self);
        if !self.overflow {
            let length = u32::try_from(self.buffer.len() - start).expect("a writer holds far less than 4 GiB");
            self.buffer.0[start - 4..start].copy_from_slice(&length.to_be_bytes());
        }
    }

    /// The bytes written so far.
    pub fn written(&self) -> &[u8] {
        &self.buffer
    }

    /// The bytes, if all of them fitted.
    ///
    /// # Errors
    /// [`FormatError::TooMany`] if they did not fit.
    pub fn finish(self) -> Result<Wiped, FormatError> {
        match self.overflow {
            true => Err(FormatError::TooMany { what: "bytes", limit: self.limit }),
            false => Ok(self.buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_host_and_a_port() {
        for good in ["127.0.0.1:7250", "n1.example:1", "[::1]:65535"] {
            assert!(good.parse::<Address>().is_ok(), "{good}");
        }
        for bad in ["", "n1", ":7250", "n1:0", "n1:70000", "n 1:7250", "n1:", &format!("{}:1", "n".repeat(255))] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_writer_never_moves_its_buffer() {
        let mut writer = Writer::with_room(4);
        let before = writer.written().as_ptr();
        writer.u32(7);
        assert_eq!(writer.written().as_ptr(), before);
        writer.u8(1);
        assert_eq!(writer.finish().err(), Some(FormatError::TooMany { what: "bytes", limit: 4 }));
    }
}
