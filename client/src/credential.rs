//! Credentials: the key with which an operator or an application proves who it is.
//!
//! A credential is an Ed25519 seed (RFC 8032). Its text is the *token*, which lies in a token file. Its public half stands in the
//! state of the cluster. The seed is never sent: a client proves it in the TLS handshake, so a node that a thief holds learns
//! nothing that it could use elsewhere.
//!
//! ```text
//! qrt-operator-<43 characters of base64url>     may do everything
//! qrt-client-<43 characters of base64url>       uses keys, and orders nothing; no cluster can be told of one yet
//! ```

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use quorate_shares::secret::Secret;
use zeroize::Zeroizing;

use crate::identity::{Identity, PublicKey};

/// Whose a credential is. The beginning of its text says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CredentialKind {
    /// Of a person who may do everything.
    Operator,
    /// Of an application, which uses keys and orders nothing. No cluster can be told of one yet.
    Client,
}

impl CredentialKind {
    const ALL: [Self; 2] = [Self::Operator, Self::Client];

    /// The beginning of the text of every credential of this kind.
    pub fn text_prefix(self) -> &'static str {
        match self {
            Self::Operator => "qrt-operator-",
            Self::Client => "qrt-client-",
        }
    }
}

/// Whether a file that begins so is a token file.
pub fn begins_like_one(bytes: &[u8]) -> bool {
    CredentialKind::ALL.into_iter().any(|kind| bytes.starts_with(kind.text_prefix().as_bytes()))
}

/// The beginning of the tokens of earlier versions.
const OLD_PREFIX: &str = "qrt-root-";

/// The key of an operator or an application, wiped on drop.
pub struct Credential {
    kind: CredentialKind,
    seed: Secret<32>,
}

/// The text is not a credential. The error does not repeat the text, which may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// Another text, or a damaged one.
    #[error("not a token: it begins with qrt-operator- or qrt-client-, and has 43 characters behind it")]
    Form,
    /// A token of an earlier version, which the cluster knew by its hash.
    #[error(
        "a token of an older version: this version knows operators by their keys, so found a new cluster with `quorate cluster init`"
    )]
    Old,
}

impl Credential {
    /// Draws a new credential, which no cluster knows.
    pub fn random(kind: CredentialKind) -> Self {
        let mut seed = Secret::zero();
        getrandom::fill(seed.expose_mut()).expect("the operating system gives randomness");
        Self { kind, seed }
    }

    /// Reads the text form. White space around it, and the byte order mark that some editors write, are ignored.
    ///
    /// # Errors
    /// [`CredentialError`] if the text is not a credential.
    pub fn parse(text: &str) -> Result<Self, CredentialError> {
        let text = text.trim_start_matches('\u{feff}').trim();
        if text.starts_with(OLD_PREFIX) {
            return Err(CredentialError::Old);
        }
        let of_kind = |kind: CredentialKind| Some((kind, text.strip_prefix(kind.text_prefix())?));
        let (kind, text) = CredentialKind::ALL.into_iter().find_map(of_kind).ok_or(CredentialError::Form)?;
        let seed = Zeroizing::new(URL_SAFE_NO_PAD.decode(text).map_err(|_| CredentialError::Form)?);
        Secret::copy_of(&seed).map(|seed| Self { kind, seed }).ok_or(CredentialError::Form)
    }

    /// The text form, which the token file holds.
    pub fn text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(64));
        text.push_str(self.kind.text_prefix());
        URL_SAFE_NO_PAD.encode_string(self.seed.expose(), &mut text);
        text
    }

    /// Whose it is.
    pub fn kind(&self) -> CredentialKind {
        self.kind
    }

    /// The public half. The cluster knows only this of a credential.
    pub fn public(&self) -> PublicKey {
        PublicKey::of_seed(&self.seed)
    }

    /// The key pair that proves itself in a handshake.
    pub fn identity(&self) -> Identity {
        Identity::from_seed(&self.seed)
    }

    /// A second owner of the same credential. There is no `Clone`, so that each copy is visible in the code.
    pub fn duplicate(&self) -> Self {
        Self { kind: self.kind, seed: self.seed.duplicate() }
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credential({:?} {})", self.kind, self.public())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_survive_their_text() {
        for kind in CredentialKind::ALL {
            let credential = Credential::random(kind);
            let text = credential.text();
            assert_eq!(text.len(), kind.text_prefix().len() + 43);
            for (before, behind) in [("", "\n"), ("", ""), ("\u{feff}", "\r\n"), (" \t", " \n\n")] {
                let read = Credential::parse(&format!("{before}{}{behind}", text.as_str())).expect("our own text");
                assert_eq!((read.public(), read.kind()), (credential.public(), kind), "{before:?} {behind:?}");
            }
            assert!(begins_like_one(text.as_bytes()));
            let prefix = kind.text_prefix();
            for bad in ["", prefix, &text[1..], &text[..text.len() - 1], &format!("{}A", text.as_str())] {
                assert_eq!(Credential::parse(bad).expect_err("not a key"), CredentialError::Form, "{kind:?}");
            }
        }
    }

    #[test]
    fn a_token_of_an_older_version_is_told_from_other_texts() {
        let old = format!("qrt-root-{}\n", "A".repeat(43));
        assert_eq!(Credential::parse(&old).expect_err("it is no key"), CredentialError::Old);
        assert!(!begins_like_one(old.as_bytes()));
    }

    #[test]
    fn the_public_half_is_the_one_that_the_handshake_proves() {
        let credential = Credential::random(CredentialKind::Client);
        assert_eq!(credential.identity().public(), credential.public());
        assert_eq!(credential.duplicate().public(), credential.public());
    }

    #[test]
    fn nothing_prints_the_seed() {
        let credential = Credential::random(CredentialKind::Operator);
        let text = credential.text();
        let printed = format!("{credential:?}");
        assert!(printed.contains(&credential.public().to_string()), "{printed}");
        assert!(!printed.contains(&text[CredentialKind::Operator.text_prefix().len()..]), "{printed}");
    }
}
