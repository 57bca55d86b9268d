//! The encryption context: public names and values that a ciphertext is bound to. To open it, a caller must give the
//! same.
//!
//! ```text
//! u16 count | sorted by name { u16 length | name | u16 length | value }
//! ```
//!
//! Names and values are compared byte by byte, without normalisation or case folding. The order in which the caller
//! gives them does not matter. A name that is given twice is refused, because it would not be clear which value counts.

use crate::error::{ContextError, FormatError};
use crate::layout::Reader;

/// Longest context in the byte form above, in bytes. A longer one is refused.
pub const CONTEXT_BYTES_MAX: usize = 8192;

/// Names and values, in the one byte form that they have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context(Vec<u8>);

impl Context {
    /// The context without any name.
    pub fn empty() -> Self {
        Self(vec![0, 0])
    }

    /// Makes a context of `pairs` of name and value, in any order.
    ///
    /// # Errors
    /// [`ContextError`] if a name is empty or occurs twice, or if the context is longer than [`CONTEXT_BYTES_MAX`].
    pub fn new<N: AsRef<str>, V: AsRef<str>>(pairs: impl IntoIterator<Item = (N, V)>) -> Result<Self, ContextError> {
        let mut pairs: Vec<(N, V)> = pairs.into_iter().collect();
        pairs.sort_by(|(one, _), (other, _)| one.as_ref().cmp(other.as_ref()));
        let names = || pairs.iter().map(|(name, _)| name.as_ref());
        if names().zip(names().skip(1)).any(|(one, next)| one == next) {
            return Err(ContextError::Duplicate);
        }
        if names().any(str::is_empty) {
            return Err(ContextError::EmptyName);
        }
        let length = |text: &str| u16::try_from(text.len()).map_err(|_| ContextError::TooLarge);
        let count = u16::try_from(pairs.len()).map_err(|_| ContextError::TooLarge)?;
        let mut bytes = count.to_be_bytes().to_vec();
        for (name, value) in &pairs {
            for text in [name.as_ref(), value.as_ref()] {
                bytes.extend(length(text)?.to_be_bytes());
                bytes.extend(text.as_bytes());
            }
        }
        match bytes.len() <= CONTEXT_BYTES_MAX {
            true => Ok(Self(bytes)),
            false => Err(ContextError::TooLarge),
        }
    }

    /// Reads a context that fills `bytes` exactly, in the byte form above.
    ///
    /// # Errors
    /// [`FormatError`] if a name is empty, out of order or repeated, if a name or value is not UTF-8, or if the context
    /// is longer than [`CONTEXT_BYTES_MAX`].
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        if bytes.len() > CONTEXT_BYTES_MAX {
            return Err(FormatError::Invalid("length of the context"));
        }
        let mut reader = Reader::new(bytes, "context");
        let mut previous = "";
        for _ in 0..reader.u16()? {
            let (name, _) = pair(&mut reader)?;
            if name <= previous {
                return Err(FormatError::Invalid("order of names"));
            }
            previous = name;
        }
        reader.finish()?;
        Ok(Self(bytes.to_vec()))
    }

    /// The byte form, which is hashed when a message is sealed or opened.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The pairs of name and value, by rising name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut reader = Reader::new(&self.0[2..], "context");
        std::iter::from_fn(move || pair(&mut reader).ok())
    }
}

impl Default for Context {
    fn default() -> Self {
        Self::empty()
    }
}

fn pair<'a>(reader: &mut Reader<'a>) -> Result<(&'a str, &'a str), FormatError> {
    let mut text = || {
        let length = reader.u16()?;
        std::str::from_utf8(reader.bytes(length.into())?).map_err(|_| FormatError::Invalid("text"))
    };
    Ok((text()?, text()?))
}
