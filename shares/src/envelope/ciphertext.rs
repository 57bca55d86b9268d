//! The two forms of a ciphertext, and its header.
//!
//! ```text
//! text:   "qrt1:" name ":" version ":" kind suite ":" base64url without padding (body)
//! binary: "QRT1" | kind u8 | suite u8 | length u8 | name | version u32 | body
//! ```
//!
//! Each form converts to the other without loss. There is exactly one way to write a ciphertext. Anything else is
//! refused, even if only a spare bit of the base64 differs.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::envelope::{PLAINTEXT_BYTES_MAX, PREFIX, chunks};
use crate::error::CiphertextError;
use crate::ids::{KeyName, KeyVersion, NAME_BYTES_MAX};
use crate::layout::Reader;

const TEXT_MAGIC: &str = "qrt1";
const BINARY_MAGIC: &[u8; 4] = b"QRT1";
/// Longest binary header, in bytes.
pub const HEADER_BYTES_MAX: usize = 11 + NAME_BYTES_MAX;

/// What a ciphertext holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CiphertextKind {
    /// A message of the application.
    Message,
    /// A data key. The header is authenticated, so the kind of a ciphertext cannot be changed.
    DataKey,
}

/// The algorithms that seal a ciphertext.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// ChaCha20-Poly1305 and HKDF-SHA-256 (C2SP chunked-encryption).
    ChaCha20Poly1305,
}

/// The part of a ciphertext that can be read without a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CiphertextHeader {
    /// What the ciphertext holds.
    pub kind: CiphertextKind,
    /// The algorithms that seal it.
    pub suite: Suite,
    /// The name of the key.
    pub name: KeyName,
    /// The version of the key, from 1.
    pub version: KeyVersion,
}

/// A ciphertext that is well formed. It may still not open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ciphertext {
    pub(super) header: CiphertextHeader,
    pub(super) body: Vec<u8>,
}

impl CiphertextKind {
    fn letter(self) -> u8 {
        match self {
            Self::Message => b'm',
            Self::DataKey => b'd',
        }
    }

    fn parse(letter: u8) -> Result<Self, CiphertextError> {
        match letter {
            b'm' => Ok(Self::Message),
            b'd' => Ok(Self::DataKey),
            _ => Err(CiphertextError::Unknown),
        }
    }
}

impl Suite {
    fn digit(self) -> u8 {
        match self {
            Self::ChaCha20Poly1305 => b'1',
        }
    }

    fn parse(digit: u8) -> Result<Self, CiphertextError> {
        match digit {
            b'1' => Ok(Self::ChaCha20Poly1305),
            _ => Err(CiphertextError::Unknown),
        }
    }
}

impl CiphertextHeader {
    /// Writes the binary header into `buffer` and returns the part that is filled.
    pub(super) fn write<'a>(&self, buffer: &'a mut [u8; HEADER_BYTES_MAX]) -> &'a [u8] {
        let name = self.name.as_str().as_bytes();
        let end = 11 + name.len();
        buffer[..4].copy_from_slice(BINARY_MAGIC);
        buffer[4] = self.kind.letter();
        buffer[5] = self.suite.digit();
        buffer[6] = name.len() as u8; // at most NAME_BYTES_MAX
        buffer[7..end - 4].copy_from_slice(name);
        buffer[end - 4..end].copy_from_slice(&self.version.0.to_be_bytes());
        &buffer[..end]
    }
}

impl Ciphertext {
    /// Reads the text form, `qrt1:…`.
    ///
    /// # Errors
    /// [`CiphertextError`] for anything but the one way to write a ciphertext of a known kind and suite.
    pub fn parse_text(text: &str) -> Result<Self, CiphertextError> {
        let mut fields = text.splitn(5, ':');
        let mut field = || fields.next().ok_or(CiphertextError::Malformed("fields are missing"));
        if field()? != TEXT_MAGIC {
            return Err(CiphertextError::Malformed("it does not begin with qrt1:"));
        }
        let (name, version, kind_suite, body) = (field()?, field()?, field()?, field()?);
        let &[kind, suite] = kind_suite.as_bytes() else {
            return Err(CiphertextError::Malformed("kind and suite are two characters"));
        };
        let (kind, suite) = (CiphertextKind::parse(kind)?, Suite::parse(suite)?);
        let name = parse_name(name)?;
        let digits = !version.is_empty() && !version.starts_with('0') && version.bytes().all(|b| b.is_ascii_digit());
        let version = version.parse().ok().filter(|_| digits).and_then(parse_version);
        let version = version.ok_or(CiphertextError::Malformed("version"))?;
        if body.len() > (PREFIX + chunks::sealed_len(PLAINTEXT_BYTES_MAX)).div_ceil(3) * 4 {
            return Err(CiphertextError::TooLarge);
        }
        let body = URL_SAFE_NO_PAD.decode(body).map_err(|_| CiphertextError::Malformed("base64url"))?;
        Self::new(CiphertextHeader { kind, suite, name, version }, body)
    }

    /// Reads the binary form, `QRT1…`.
    ///
    /// # Errors
    /// [`CiphertextError`] for anything but the one way to write a ciphertext of a known kind and suite.
    pub fn parse_binary(bytes: &[u8]) -> Result<Self, CiphertextError> {
        let short = |_| CiphertextError::Malformed("it ends too early");
        let mut reader = Reader::new(bytes, "ciphertext");
        reader.magic(BINARY_MAGIC).map_err(|_| CiphertextError::Malformed("it does not begin with QRT1"))?;
        let kind = CiphertextKind::parse(reader.u8().map_err(short)?)?;
        let suite = Suite::parse(reader.u8().map_err(short)?)?;
        let length = reader.u8().map_err(short)?;
        let name = reader.bytes(length.into()).map_err(short)?;
        let name = parse_name(std::str::from_utf8(name).map_err(|_| CiphertextError::Malformed("name"))?)?;
        let version = parse_version(reader.u32().map_err(short)?).ok_or(CiphertextError::Malformed("version"))?;
        let body = reader.bytes(reader.remaining()).map_err(short)?;
        Self::new(CiphertextHeader { kind, suite, name, version }, body.to_vec())
    }

    /// The header, which can be read without a key.
    pub fn header(&self) -> &CiphertextHeader {
        &self.header
    }

    /// The text form, as drawn above.
    pub fn to_text(&self) -> String {
        let CiphertextHeader { kind, suite, name, version } = &self.header;
        let mut text = String::with_capacity(TEXT_MAGIC.len() + name.as_str().len() + 16 + self.body.len() * 4 / 3);
        let (kind, suite) = (kind.letter() as char, suite.digit() as char);
        write!(text, "{TEXT_MAGIC}:{name}:{version}:{kind}{suite}:").expect("a String takes everything");
        URL_SAFE_NO_PAD.encode_string(&self.body, &mut text);
        text
    }

    /// The binary form, as drawn above.
    pub fn to_binary(&self) -> Vec<u8> {
        let mut buffer = [0; HEADER_BYTES_MAX];
        let header = self.header.write(&mut buffer);
        let mut bytes = Vec::with_capacity(header.len() + self.body.len());
        bytes.extend_from_slice(header);
        bytes.extend_from_slice(&self.body);
        bytes
    }

    fn new(header: CiphertextHeader, body: Vec<u8>) -> Result<Self, CiphertextError> {
        let sealed = body.len().checked_sub(PREFIX).and_then(chunks::plain_len);
        match sealed.ok_or(CiphertextError::Malformed("the body is cut off"))? {
            0..=PLAINTEXT_BYTES_MAX => Ok(Self { header, body }),
            _ => Err(CiphertextError::TooLarge),
        }
    }
}

fn parse_name(name: &str) -> Result<KeyName, CiphertextError> {
    name.parse().map_err(|_| CiphertextError::Malformed("name"))
}

/// Versions begin at 1.
fn parse_version(version: u32) -> Option<KeyVersion> {
    (version > 0).then_some(KeyVersion(version))
}
