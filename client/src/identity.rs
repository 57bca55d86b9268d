//! Who speaks: Ed25519 identities as raw public keys (RFC 7250), and the TLS that proves them.
//!
//! There is no certificate and no authority. A node is its public key, and whoever dials it names the one key that he
//! expects. A node has two: the *boot key*, which lies in plain on its disk and may ask for very little, and the *op key*,
//! which only a quorum can unlock. Which of them answers a connection is decided by the protocol that the caller asks for
//! ([`Protocol`], the ALPN of the handshake), so that no client ever hands its token to a boot key.
//!
//! A server accepts any raw Ed25519 key whose signature holds; who that is, and what he may do, is read from the
//! connection after the handshake ([`peer_key`], [`Protocol::of`]) and judged by the caller against its roster. TLS 1.3,
//! X25519MLKEM768 and nothing else; no resumption, no early data, and SSLKEYLOGFILE is not obeyed.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use quorate_shares::secret::Secret;
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, SignatureScheme};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroizing;

/// What a connection is for: the ALPN of its handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// Boot keys on both sides: LockOpen, and a status that takes no token.
    Boot,
    /// The server's boot key; the caller's key is the boot key that it registers.
    Join,
    /// Op keys on both sides: what unlocked nodes say to each other.
    Peer,
    /// The server's op key; the caller shows a token with each request.
    Client,
}

impl Protocol {
    /// Every protocol there is.
    pub const ALL: [Protocol; 4] = [Protocol::Boot, Protocol::Join, Protocol::Peer, Protocol::Client];

    /// The name in the handshake.
    pub fn alpn(self) -> &'static [u8] {
        match self {
            Self::Boot => b"quorate-boot/1",
            Self::Join => b"quorate-join/1",
            Self::Peer => b"quorate-peer/1",
            Self::Client => b"quorate-client/1",
        }
    }

    /// What was agreed on an established connection.
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

/// An Ed25519 public key: the identity of a node, or of one client process.
///
/// As text, base64url without padding; hexadecimal is read too. In frames, 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

/// Text that is not a public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a public key is 32 bytes as base64url (43 characters) or hexadecimal (64 digits)")]
pub struct PublicKeyError;

/// SubjectPublicKeyInfo of an Ed25519 key up to the key itself (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// PKCS#8 of an Ed25519 key up to the seed (RFC 8410).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

impl PublicKey {
    fn from_spki(spki: &[u8]) -> Option<Self> {
        let key = spki.strip_prefix(&SPKI_PREFIX)?;
        Some(Self(key.try_into().ok()?))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = PublicKeyError;
    fn from_str(text: &str) -> Result<Self, PublicKeyError> {
        if text.len() == 64 && text.is_ascii() {
            let mut key = [0; 32];
            for (byte, pair) in key.iter_mut().zip(text.as_bytes().chunks(2)) {
                let pair = std::str::from_utf8(pair).map_err(|_| PublicKeyError)?;
                *byte = u8::from_str_radix(pair, 16).map_err(|_| PublicKeyError)?;
            }
            return Ok(Self(key));
        }
        let key = URL_SAFE_NO_PAD.decode(text).map_err(|_| PublicKeyError)?;
        Ok(Self(key.try_into().map_err(|_| PublicKeyError)?))
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Self)
        }
    }
}

/// An Ed25519 key pair that can prove itself in a handshake. The private half stays inside the TLS library.
#[derive(Clone)]
pub struct Identity {
    certified: Arc<CertifiedKey>,
    public: PublicKey,
}

impl Identity {
    /// The identity that `seed` stands for (RFC 8032, 32 bytes).
    pub fn from_seed(seed: &Secret<32>) -> Self {
        let mut der = Zeroizing::new([0; PKCS8_PREFIX.len() + 32]);
        der[..PKCS8_PREFIX.len()].copy_from_slice(&PKCS8_PREFIX);
        der[PKCS8_PREFIX.len()..].copy_from_slice(seed.expose());
        let key = aws_lc_rs::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(&der[..]))
            .expect("every 32 bytes are an Ed25519 seed");
        let spki = key.public_key().expect("an Ed25519 key knows its public half");
        let public = PublicKey::from_spki(&spki).expect("the library writes RFC 8410");
        let certified = CertifiedKey::new(vec![CertificateDer::from(spki.to_vec())], key);
        Self { certified: Arc::new(certified), public }
    }

    /// A fresh identity, known to nobody: what an ordinary client presents.
    pub fn random() -> Self {
        let mut seed = Secret::zero();
        getrandom::fill(seed.expose_mut()).expect("the operating system gives randomness");
        Self::from_seed(&seed)
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.public)
    }
}

/// The public key that the other side proved in the handshake.
pub fn peer_key(connection: &quinn::Connection) -> Option<PublicKey> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    PublicKey::from_spki(chain.first()?)
}

/// What a node answers with: `boot` for [`Protocol::Boot`] and [`Protocol::Join`], `op` for the others.
///
/// Only the `offered` protocols are agreed to, and those that need an op key only with one. A node that changes phase
/// gives its endpoint a new configuration by `quinn::Endpoint::set_server_config`; established connections stay.
pub fn server_config(boot: &Identity, op: Option<&Identity>, offered: &[Protocol]) -> quinn::ServerConfig {
    let offered: Vec<Protocol> =
        offered.iter().copied().filter(|protocol| op.is_some() || !protocol.needs_op_key()).collect();
    let provider = Arc::new(provider());
    let resolver = ByProtocol { boot: boot.certified.clone(), op: op.map(|op| op.certified.clone()) };
    let mut tls = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has suites of TLS 1.3")
        .with_client_cert_verifier(Arc::new(AnyRawKey(provider)))
        .with_cert_resolver(Arc::new(resolver));
    tls.alpn_protocols = offered.iter().map(|protocol| protocol.alpn().to_vec()).collect();
    tls.send_tls13_tickets = 0;
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.max_early_data_size = 0;
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls).expect("the provider has AES-128-GCM");
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(transport()));
    config
}

/// Why a connection did not come about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// The server proved another key than the expected one.
    #[error("the server has the identity {presented}")]
    WrongIdentity {
        /// The key that it presented.
        presented: PublicKey,
    },
    /// The server is there and does not speak this protocol now: a locked node asked for anything but boot/1.
    #[error("the server does not serve this protocol now")]
    NotOffered,
    /// The time was up.
    #[error("no answer in time")]
    Deadline,
    /// The server ended the handshake.
    #[error("the server refused the connection: {0}")]
    Refused(String),
    /// Nothing of this kind answers there.
    #[error("unreachable: {0}")]
    Unreachable(String),
}

/// Connects to `address`, presents `me`, and accepts the server only if it proves to be `expected`.
///
/// # Errors
/// [`DialError`]; a wrong identity is reported with the key that was presented, so that the caller can say whose it is.
pub async fn dial(
    endpoint: &quinn::Endpoint,
    address: SocketAddr,
    me: &Identity,
    expected: PublicKey,
    protocol: Protocol,
    deadline: Duration,
) -> Result<quinn::Connection, DialError> {
    let provider = Arc::new(provider());
    let pin = Arc::new(Pin { expected, presented: Mutex::new(None), provider: provider.clone() });
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has suites of TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(pin.clone())
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(me.certified.clone())));
    tls.alpn_protocols = vec![protocol.alpn().to_vec()];
    tls.resumption = rustls::client::Resumption::disabled();
    tls.enable_sni = false;
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).expect("the provider has AES-128-GCM");
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport()));

    // The name is never sent: the server is known by its key alone.
    let connecting =
        endpoint.connect_with(config, address, "quorate").map_err(|error| DialError::Unreachable(error.to_string()))?;
    let error = match tokio::time::timeout(deadline, connecting).await {
        Err(_) => return Err(DialError::Deadline),
        Ok(Ok(connection)) => return Ok(connection),
        Ok(Err(error)) => error,
    };
    if let Some(presented) = *pin.presented.lock() {
        return Err(DialError::WrongIdentity { presented });
    }
    Err(match error {
        quinn::ConnectionError::ConnectionClosed(frame) if frame.error_code == no_application_protocol() => {
            DialError::NotOffered
        }
        quinn::ConnectionError::ConnectionClosed(_)
        | quinn::ConnectionError::ApplicationClosed(_)
        | quinn::ConnectionError::TransportError(_) => DialError::Refused(error.to_string()),
        quinn::ConnectionError::TimedOut => DialError::Deadline,
        other => DialError::Unreachable(other.to_string()),
    })
}

/// The alert of RFC 7301, as QUIC carries it.
fn no_application_protocol() -> quinn::TransportErrorCode {
    quinn::TransportErrorCode::crypto(120)
}

/// aws-lc-rs with the hybrid post-quantum exchange as the only one: whoever cannot do it is refused.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768];
    provider
}

/// Streams that one side may have open at a time: its lanes and a few bulk transfers. The next ones wait.
const STREAMS_MAX: u32 = 16;
/// Bytes of one stream that may be under way unread; the sender waits beyond it.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// Bytes of one connection that may be under way unread; the sender waits beyond it.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// A connection on which nothing arrives for so long is dead.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// Small enough that two lost packets do not make a quiet connection look dead.
const KEEP_ALIVE: Duration = Duration::from_secs(3);

/// What the round trip is taken for until one was measured. A third of a second, as QUIC would have it, makes the first
/// packet to a node that is just starting be sent again after a whole second; on a slow link this one costs a spare packet.
const INITIAL_RTT: Duration = Duration::from_millis(50);

fn transport() -> quinn::TransportConfig {
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(STREAMS_MAX.into())
        .max_concurrent_uni_streams(0u32.into())
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        .receive_window(CONNECTION_WINDOW_BYTES.into())
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(IDLE_MAX.try_into().expect("ten seconds fit QUIC's milliseconds")))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(INITIAL_RTT);
    transport
}

/// Picks the server's key by the protocol that the client asks for.
#[derive(Debug)]
struct ByProtocol {
    boot: Arc<CertifiedKey>,
    op: Option<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for ByProtocol {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // Exactly one protocol: with a choice, the key picked here and the protocol agreed later could differ.
        let mut asked = hello.alpn()?;
        let (first, second) = (asked.next()?, asked.next());
        if second.is_some() {
            return None;
        }
        match Protocol::named(first) {
            Some(protocol) if protocol.needs_op_key() => self.op.clone().or_else(|| Some(self.boot.clone())),
            // What is not offered fails when the protocol is agreed, before a key is shown or signs anything.
            _ => Some(self.boot.clone()),
        }
    }

    fn only_raw_public_keys(&self) -> bool {
        true
    }
}

/// The server's side: any raw Ed25519 key whose signature holds.
#[derive(Debug)]
struct AnyRawKey(Arc<CryptoProvider>);

impl ClientCertVerifier for AnyRawKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        PublicKey::from_spki(key).ok_or(rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_signature(&self.0, message, key, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// The dialler's side: one expected key, and a note of any other that was presented.
#[derive(Debug)]
struct Pin {
    expected: PublicKey,
    presented: Mutex<Option<PublicKey>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let key = PublicKey::from_spki(key).ok_or(rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
        if key == self.expected {
            return Ok(ServerCertVerified::assertion());
        }
        *self.presented.lock() = Some(key);
        Err(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_signature(&self.provider, message, key, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

fn verify_signature(
    provider: &CryptoProvider,
    message: &[u8],
    key: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    let key = SubjectPublicKeyInfoDer::from(key.as_ref());
    verify_tls13_signature_with_raw_key(message, &key, signed, &provider.signature_verification_algorithms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_stands_for_the_public_key_of_rfc_8032() {
        let hex = |text: &str| text.parse::<PublicKey>().expect("64 digits");
        let seed = hex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60").0;
        let public = hex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
        let seed = Secret::copy_of(&seed).expect("32 bytes");
        assert_eq!(Identity::from_seed(&seed).public(), public);
    }

    #[test]
    fn public_keys_survive_their_text() {
        let key = Identity::random().public();
        assert_eq!(key.to_string().parse(), Ok(key));
        assert_eq!(key.to_string().len(), 43);
        for bad in ["", "AAAA", &format!("{key}="), &format!("{key}A"), &"z".repeat(64), &"é".repeat(32)] {
            assert_eq!(bad.parse::<PublicKey>(), Err(PublicKeyError), "{bad}");
        }
    }
}
