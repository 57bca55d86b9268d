//! What can go wrong, sorted by whose turn it is.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::wire::WireError;

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The request is wrong; repeating it will not help.
    Yours,
    /// Another machine is not what it should be.
    Theirs,
    /// Quorate failed.
    Ours,
    /// Nothing is wrong for good: try again.
    TryAgain,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $blame:ident;)*) => {
        /// What went wrong, for programs. The order is part of the wire protocol: new codes are appended.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Code {
            $($(#[$doc])* $name,)*
        }

        impl Code {
            /// Every code.
            pub const ALL: &[Code] = &[$(Code::$name,)*];

            /// The stable name, as in JSON.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Whose turn it is.
            pub fn blame(self) -> Blame {
                match self { $(Self::$name => Blame::$blame,)* }
            }
        }
    };
}

codes! {
    /// The request makes no sense.
    BadRequest = "bad_request", Yours;
    /// A message, context or name beyond its limit.
    TooLarge = "too_large", Yours;
    /// The token is unknown, or does not allow this.
    Denied = "denied", Yours;
    /// No key, version or node of that name.
    NotFound = "not_found", Yours;
    /// The state is not what the request expects.
    Conflict = "conflict", Yours;
    /// The ciphertext does not open: damaged, of another cluster, or given another context.
    BadCiphertext = "bad_ciphertext", Yours;
    /// The server proved another identity than the expected one.
    Identity = "identity", Theirs;
    /// The other side does not speak this protocol.
    Protocol = "protocol", Theirs;
    /// Nothing answers at the address.
    Unreachable = "unreachable", Theirs;
    /// A bug, or a machine that fails.
    Internal = "internal", Ours;
    /// The disk failed or holds damaged data.
    Storage = "storage", Ours;
    /// The node waits for its peers to unlock it.
    Locked = "locked", TryAgain;
    /// The node is cut off from the quorum.
    NoQuorum = "no_quorum", TryAgain;
    /// The node is starting, founding, sealed, or without a lease.
    NotServing = "not_serving", TryAgain;
    /// Too much at once.
    Busy = "busy", TryAgain;
    /// The time was up; the work may have been done or not.
    Deadline = "deadline", TryAgain;
    /// Too few nodes are up to put this key together.
    KeyUnavailable = "key_unavailable", TryAgain;
}

impl Code {
    /// Whether another node, or the same one later, may do what this one could not.
    pub fn retryable(self) -> bool {
        match self.blame() {
            Blame::TryAgain | Blame::Theirs => true,
            // A node with a broken disk says so; the others have their own.
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

/// One node that could not answer, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFailure {
    /// Its name in the client file.
    pub node: String,
    /// Why not.
    pub error: WireError,
}

impl fmt::Display for NodeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.node, self.error)
    }
}

/// Why a request has no answer: the error itself, and every node that failed on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What to report.
    pub error: WireError,
    /// The nodes that were tried in vain.
    pub failures: Vec<NodeFailure>,
}

impl Error {
    /// What went wrong, for programs.
    pub fn code(&self) -> Code {
        self.error.code
    }

    /// What to do about it.
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
}
