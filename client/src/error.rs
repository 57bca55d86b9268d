//! What can go wrong, and who can do something about it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::wire::WireError;

/// Who can do something about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The caller: the request is wrong, and it fails again if it is repeated.
    Yours,
    /// Another machine: it is not what it should be, or does not answer.
    Theirs,
    /// Quorate, or its machine: it failed.
    Ours,
    /// Time: the same request may succeed later.
    TryAgain,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $blame:ident;)*) => {
        /// What went wrong, for programs. The order of the codes is part of the wire protocol: new codes are appended.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(from = "u32")]
        pub enum Code {
            $($(#[$doc])* $name,)*
        }

        impl Code {
            /// All codes, in the order of the wire protocol.
            pub const ALL: &[Code] = &[$(Code::$name,)*];

            /// The stable name of the code, as in JSON.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Who can do something about it.
            pub fn blame(self) -> Blame {
                match self { $(Self::$name => Blame::$blame,)* }
            }
        }
    };
}

codes! {
    /// The request makes no sense.
    BadRequest = "bad_request", Yours;
    /// A message, context or name is longer than its limit.
    TooLarge = "too_large", Yours;
    /// The credential is unknown, or does not permit the request.
    Denied = "denied", Yours;
    /// There is no key, version or node with that name.
    NotFound = "not_found", Yours;
    /// The state is not what the request expects.
    Conflict = "conflict", Yours;
    /// The ciphertext does not open: it is damaged, belongs to another cluster, or was sealed with another context.
    BadCiphertext = "bad_ciphertext", Yours;
    /// The server proved another identity than the expected one.
    Identity = "identity", Theirs;
    /// The other side does not speak this protocol, or one side is older and does not know what it was sent. A code that
    /// this version does not know is read as this one.
    Protocol = "protocol", Theirs;
    /// No node answers at the address.
    Unreachable = "unreachable", Theirs;
    /// A bug, or a machine that fails.
    Internal = "internal", Ours;
    /// The disk failed or holds damaged data.
    Storage = "storage", Ours;
    /// The node is locked and waits for its peers to unlock it.
    Locked = "locked", TryAgain;
    /// The node is cut off from the quorum.
    NoQuorum = "no_quorum", TryAgain;
    /// The node starts, founds a cluster, is sealed, or has no lease.
    NotServing = "not_serving", TryAgain;
    /// Too many requests are in flight.
    Busy = "busy", TryAgain;
    /// The deadline passed. The work may or may not be done.
    Deadline = "deadline", TryAgain;
    /// Too few nodes are up to rebuild this key.
    KeyUnavailable = "key_unavailable", TryAgain;
}

impl From<u32> for Code {
    /// The code of this number. A newer node may have more codes; its message says what they mean.
    fn from(number: u32) -> Self {
        usize::try_from(number).ok().and_then(|number| Self::ALL.get(number).copied()).unwrap_or(Self::Protocol)
    }
}

impl Code {
    /// Whether another node, or the same node later, may answer the request.
    pub fn retryable(self) -> bool {
        match self.blame() {
            Blame::TryAgain | Blame::Theirs => true,
            // A node with a broken disk says so. Other nodes have other disks.
            Blame::Ours => true,
            Blame::Yours => false,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A node that could not answer a request, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFailure {
    /// The name of the node in the client file, or its address.
    pub node: String,
    /// Why it could not answer.
    pub error: WireError,
}

impl fmt::Display for NodeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.node, self.error)
    }
}

/// Why a request failed: the error to report, and every node that failed before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// The error to report.
    pub error: WireError,
    /// The nodes that were asked and could not answer.
    pub failures: Vec<NodeFailure>,
}

impl Error {
    /// What went wrong, for programs.
    pub fn code(&self) -> Code {
        self.error.code
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<&str> {
        self.error.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Error {}

/// Text of another program, for people. That program chose these bytes: they must not control a terminal or begin a line.
pub fn printable(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).collect()
}

impl From<WireError> for Error {
    fn from(error: WireError) -> Self {
        Self { error, failures: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_the_numbers_they_always_had() {
        let names: Vec<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        let first = ["bad_request", "too_large", "denied", "not_found", "conflict", "bad_ciphertext", "identity"];
        assert_eq!(names[..first.len()], first, "codes are appended, never moved");
        for (number, code) in Code::ALL.iter().enumerate() {
            assert_eq!(crate::wire::encode(code), [u8::try_from(number).expect("few codes")]);
        }
    }

    /// A newer node may have more codes. Its message must reach the user.
    #[test]
    fn an_error_with_an_unknown_code_is_read() {
        let newer = |code: u32| crate::wire::encode(&(code, "the moon is wrong", Some("wait")));
        let read = |bytes: &[u8]| crate::wire::decode::<WireError>(bytes).expect("an error");
        let known = WireError::new(Code::Busy, "the moon is wrong").hint("wait");
        assert_eq!(read(&newer(14)), known, "the control");
        assert_eq!(read(&newer(200)), WireError { code: Code::Protocol, ..known.clone() });
        assert_eq!(read(&newer(70_000)), WireError { code: Code::Protocol, ..known });
    }
}
