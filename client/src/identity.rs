//! Identities: Ed25519 keys as raw public keys (RFC 7250), and the TLS that proves them.
//!
//! There are no certificates and no authority. A node is identified by its public key, and a caller that connects to it
//! names the one key that it expects. A node has two keys. The *boot key* lies in plain on its disk and may ask for
//! very little. The *op key* is unlocked only by a quorum. The protocol that the caller asks for ([`Protocol`], the
//! ALPN of the handshake) decides which key the node uses. So no client ever asks a boot key for its work.
//!
//! A server accepts any raw Ed25519 key with a valid signature. After the handshake, the caller reads the key and the
//! protocol of a connection ([`peer_key`], [`Protocol::of`]) and checks them against its roster. TLS is 1.3 with
//! X25519MLKEM768 and nothing else: no resumption, no early data, and SSLKEYLOGFILE is ignored.

mod tls;

use std::fmt;
use std::sync::Arc;

use quorate_shares::secret::Secret;
pub use quorate_shares::signature::{PublicKey, PublicKeyError};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

pub(crate) use tls::shrink_window;
pub use tls::{DialError, client_config, dial, server_config, widen_windows};

/// The purpose of a connection: the ALPN of its handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// Boot keys on both sides: opens locks, and serves a status that needs no credential.
    Boot,
    /// The boot key of the server, and the boot key that the caller registers.
    Join,
    /// Op keys on both sides: messages between unlocked nodes.
    Peer,
    /// The op key of the server, and the credential of the caller.
    Client,
}

impl Protocol {
    /// All protocols.
    pub const ALL: [Protocol; 4] = [Protocol::Boot, Protocol::Join, Protocol::Peer, Protocol::Client];

    /// The name of the protocol in the handshake (RFC 7301).
    pub fn alpn(self) -> &'static [u8] {
        match self {
            Self::Boot => b"quorate-boot/1",
            Self::Join => b"quorate-join/1",
            Self::Peer => b"quorate-peer/1",
            Self::Client => b"quorate-client/1",
        }
    }

    /// The protocol of an established connection; `None` if it is unknown.
    pub fn of(connection: &quinn::Connection) -> Option<Self> {
        let data = connection.handshake_data()?.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?;
        Self::named(&data.protocol?)
    }

    fn named(alpn: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.alpn() == alpn)
    }

    fn needs_op_key(self) -> bool {
        matches!(self, Self::Peer | Self::Client)
    }
}

/// The bytes of a SubjectPublicKeyInfo of Ed25519 that precede the key (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The bytes of a PKCS#8 of Ed25519 that precede the seed (RFC 8410).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// The key in a SubjectPublicKeyInfo; `None` if it holds anything else.
fn from_spki(spki: &[u8]) -> Option<PublicKey> {
    let key = spki.strip_prefix(&SPKI_PREFIX)?;
    Some(PublicKey(key.try_into().ok()?))
}

/// An Ed25519 key pair that proves itself in a handshake. The private half stays inside the TLS library.
#[derive(Clone)]
pub struct Identity {
    certified: Arc<CertifiedKey>,
    public: PublicKey,
}

impl Identity {
    /// The identity of a seed of 32 bytes (RFC 8032).
    pub fn from_seed(seed: &Secret<32>) -> Self {
        let mut der = Zeroizing::new([0; PKCS8_PREFIX.len() + 32]);
        der[..PKCS8_PREFIX.len()].copy_from_slice(&PKCS8_PREFIX);
        der[PKCS8_PREFIX.len()..].copy_from_slice(seed.expose());
        let key = aws_lc_rs::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(&der[..]))
            .expect("every 32 bytes are an Ed25519 seed");
        let spki = key.public_key().expect("an Ed25519 key knows its public half");
        let public = from_spki(&spki).expect("the library writes RFC 8410");
        let certified = CertifiedKey::new(vec![CertificateDer::from(spki.to_vec())], key);
        Self { certified: Arc::new(certified), public }
    }

    /// Draws a new identity, which no node knows. A caller without a credential presents one.
    pub fn random() -> Self {
        let mut seed = Secret::zero();
        getrandom::fill(seed.expose_mut()).expect("the operating system gives randomness");
        Self::from_seed(&seed)
    }

    /// The public half of the key pair.
    pub fn public(&self) -> PublicKey {
        self.public
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.public)
    }
}

/// The public key that the other side proved in the handshake; `None` if it proved none.
pub fn peer_key(connection: &quinn::Connection) -> Option<PublicKey> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    from_spki(chain.first()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_public_key_of_rfc_8032() {
        let hex = |text: &str| text.parse::<PublicKey>().expect("64 digits");
        let seed = hex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60").0;
        let public = hex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
        let seed = Secret::copy_of(&seed).expect("32 bytes");
        assert_eq!(Identity::from_seed(&seed).public(), public);
    }
}
