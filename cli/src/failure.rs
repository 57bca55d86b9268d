//! How a command fails: with an exit code, a message, and a hint what to do.

use quorate_client::cluster_file::ClusterFileError;
use quorate_client::wire::WireError;
use quorate_client::{Code, Error};

use crate::exit;

#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: u8,
    pub(crate) message: String,
    pub(crate) hint: Option<Hint>,
}

/// What to do about a failure.
#[derive(Debug)]
pub(crate) enum Hint {
    Text(String),
    /// To look at the token. The command knows where it was found.
    Token,
}

impl Hint {
    /// The hint for people. `token_from` says where the token was found, if there is one.
    pub(crate) fn text(self, token_from: Option<&str>) -> String {
        match (self, token_from) {
            (Self::Text(text), _) => text,
            (Self::Token, Some(from)) => format!("check the token {from}"),
            (Self::Token, None) => "check the token: --token-file, QUORATE_TOKEN_FILE, QUORATE_TOKEN".to_owned(),
        }
    }
}

impl From<&str> for Hint {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Hint {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl Failure {
    pub(crate) fn new(exit: u8, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None }
    }

    pub(crate) fn hint(mut self, hint: impl Into<Hint>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The failure to write the result.
    pub(crate) fn output(error: std::io::Error) -> Self {
        Self::new(exit::FAILED, format!("the result cannot be written: {error}"))
    }
}

/// The exit code for an error of a node or of the client.
pub(crate) fn exit_code(code: Code) -> u8 {
    match code {
        Code::Locked | Code::NoQuorum | Code::NotServing | Code::KeyUnavailable | Code::Unreachable => exit::NO_QUORUM,
        Code::Denied => exit::DENIED,
        Code::NotFound => exit::NOT_FOUND,
        Code::Conflict => exit::CONFLICT,
        Code::BadRequest
        | Code::TooLarge
        | Code::BadCiphertext
        | Code::Identity
        | Code::Protocol
        | Code::Internal
        | Code::Storage
        | Code::Busy
        | Code::Deadline => exit::FAILED,
    }
}

/// The hint for an error without a hint of its own.
fn usual_hint(code: Code) -> Option<Hint> {
    let text = match code {
        Code::Locked | Code::NoQuorum | Code::NotServing | Code::KeyUnavailable | Code::Unreachable => {
            "`quorate status` says which nodes are missing; keys can be used again when enough of them are up"
        }
        Code::Denied => return Some(Hint::Token),
        Code::BadCiphertext => "it is damaged, or it was encrypted with another context (-c) or by another cluster",
        Code::Identity => {
            "do not continue until you know why: another machine answers there, or the client file is old"
        }
        Code::Internal | Code::Storage => "the node's log says more; the other nodes still serve",
        Code::Protocol => {
            "client and cluster differ in version: compare `quorate --version` and `quorated --version`, and update the older one"
        }
        Code::Busy | Code::Deadline => "try again; -v says which nodes failed",
        _ => return None,
    };
    Some(text.into())
}

impl From<WireError> for Failure {
    fn from(error: WireError) -> Self {
        let error = error.printable();
        let hint = error.hint.map(Hint::Text).or_else(|| usual_hint(error.code));
        Self { exit: exit_code(error.code), message: error.message, hint }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let failure = Self::from(error.error);
        // A node cannot name the place where this command found the token.
        if failure.exit == exit::DENIED { failure.hint(Hint::Token) } else { failure }
    }
}

impl From<ClusterFileError> for Failure {
    fn from(error: ClusterFileError) -> Self {
        let failure = Self::new(exit::FAILED, error.to_string());
        match error {
            ClusterFileError::Form { .. } => {
                failure.hint("`quorate cluster export --local` on a node prints a new one")
            }
            ClusterFileError::Io { .. } => failure,
        }
    }
}
