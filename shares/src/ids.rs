//! Identifiers: public values that name clusters, nodes, keys and epochs.
//!
//! Each is a type of its own, so that the compiler refuses an epoch where a version is meant. None of them is secret:
//! all may be printed, logged and compared freely. Names are parsed once, at the edge, into types that cannot hold a
//! wrong name.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name of a key or a node, in bytes.
pub const NAME_BYTES_MAX: usize = 127;
/// Most addresses of one node.
pub const ADDRESSES_MAX: usize = 8;
/// Longest address of a node, in bytes: formats keep its length in one byte.
pub const ADDRESS_BYTES_MAX: usize = 255;
/// Most tags of one key.
pub const TAGS_MAX: usize = 32;
/// Longest name or value of a tag, in bytes.
pub const TAG_BYTES_MAX: usize = 255;

/// Whether `text` is an address of a node: `host:port` in visible ASCII, with an IPv6 address in brackets. The host need not exist.
/// This is the only rule: what an operator may set is what every format can keep.
pub fn is_address(text: &str) -> bool {
    let is_host = |host: &str| match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').is_some_and(|address| address.parse::<Ipv6Addr>().is_ok()),
        None => !host.is_empty() && !host.contains([':', '[', ']']),
    };
    let is_port =
        |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
    text.len() <= ADDRESS_BYTES_MAX
        && text.bytes().all(|byte| byte.is_ascii_graphic())
        && text.rsplit_once(':').is_some_and(|(host, port)| is_host(host) && is_port(port))
}

/// Reads exactly `2 * N` hexadecimal digits; `None` for any other text.
pub fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N {
        return None;
    }
    let digit = |letter: u8| char::from(letter).to_digit(16);
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8; // at most 255
    }
    Some(bytes)
}

macro_rules! id16 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                from_hex(text).map(Self).ok_or(IdError::Hex)
            }
        }
    };
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id16!(
    /// Names one cluster for ever: 16 random bytes, drawn at `cluster init`.
    ClusterId
);
id16!(
    /// Names one master key for ever: 16 random bytes. Logs and disks show this id, because the name of a key must not
    /// appear there.
    KeyUid
);
id16!(
    /// Names one batch: the shares that one leader sealed under one encapsulation per holder. 16 random bytes.
    BatchId
);
number!(
    /// The number of a node. It is given at admission and never reused. Zero stands for no node.
    NodeId(u64)
);
number!(
    /// The number of one committee of share holders. Epochs only rise.
    Epoch(u64)
);
number!(
    /// The generation of a node's share key. It rises with every new key of the node.
    ShareKeyGeneration(u64)
);
number!(
    /// The number of one version of a master key, from 1.
    KeyVersion(u32)
);

impl ShareKeyGeneration {
    /// The generation of a node's first share key.
    pub const FIRST: Self = Self(1);
}

/// One version of one key.
pub type KeyVersionId = (KeyUid, KeyVersion);

/// Why text is not an identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text is not 32 hexadecimal digits.
    #[error("an identifier is 32 hexadecimal digits")]
    Hex,
    /// The name is empty, or longer than [`NAME_BYTES_MAX`].
    #[error("a name has 1 to {NAME_BYTES_MAX} characters")]
    NameLength,
    /// The name has a character outside the alphabet, or a forbidden sequence.
    #[error(
        "a name has only a-z, 0-9 and . _ - /, starts with a letter or digit, and has no '//', no '..' and no '/' at its end"
    )]
    NameForm,
}

/// The name of a master key: `[a-z0-9][a-z0-9._/-]{0,126}`, without `//`, `..` or a `/` at the end.
///
/// A name never changes and is never reused, because every ciphertext carries it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyName(String);

/// The name that the operator gave a node: like the name of a key, without `/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

fn check_name(name: &str, slash: bool) -> Result<(), IdError> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(IdError::NameLength);
    }
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let rest = |byte: u8| letter(byte) || b"._-".contains(&byte) || (slash && byte == b'/');
    let bytes = name.as_bytes();
    let form = letter(bytes[0]) && bytes.iter().all(|&byte| rest(byte));
    if !form || name.contains("//") || name.contains("..") || name.ends_with('/') {
        return Err(IdError::NameForm);
    }
    Ok(())
}

macro_rules! name {
    ($name:ident, $slash:expr) => {
        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                check_name(text, $slash)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                check_name(&text, $slash)?;
                Ok(Self(text))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(KeyName, true);
name!(NodeName, false);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_names_follow_the_grammar() {
        for good in ["a", "billing/cards", "0-9._x", &"k".repeat(NAME_BYTES_MAX)] {
            assert!(good.parse::<KeyName>().is_ok(), "{good}");
        }
        for bad in ["", "A", "é", "/a", "a/", "a//b", "a..b", "-a", "a b", "a:b", &"k".repeat(NAME_BYTES_MAX + 1)] {
            assert!(bad.parse::<KeyName>().is_err(), "{bad}");
        }
        assert!("n1/x".parse::<NodeName>().is_err());
    }

    #[test]
    fn an_address_is_a_host_and_a_port() {
        let long = |bytes: usize| format!("{}:7250", "h".repeat(bytes - 5));
        for good in ["10.0.0.1:7250", "[fd00::1]:1", "n1.example:65535", &long(ADDRESS_BYTES_MAX)] {
            assert!(is_address(good), "{good}");
        }
        for bad in [
            "",
            "n1",
            ":7250",
            "n1:",
            "n1:0",
            "n1:65536",
            "n1:+80",
            "n 1:7250",
            "né:7250",
            "fd00::2:7250",
            "[fd00::2:7250",
            "[n2]:7250",
            "n2]:7250",
            &long(ADDRESS_BYTES_MAX + 1),
        ] {
            assert!(!is_address(bad), "{bad}");
        }
    }

    #[test]
    fn identifiers_survive_their_text() {
        let id = ClusterId([0xa5; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["zz", &"+f".repeat(16), &"é".repeat(16), &"0".repeat(31), &"0".repeat(34)] {
            assert_eq!(bad.parse::<ClusterId>(), Err(IdError::Hex), "{bad}");
        }
    }
}
