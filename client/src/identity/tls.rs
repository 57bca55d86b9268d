//! The configuration of TLS and QUIC, and the two verifiers: a server accepts any raw key, a dialler one pinned key.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, SignatureScheme};

use super::{Identity, Protocol, PublicKey, from_spki};
use crate::conn::reason;

/// The configuration of a node's server: `boot` answers [`Protocol::Boot`] and [`Protocol::Join`], `op` the others.
///
/// The server accepts only the `offered` protocols, and protocols that need an op key only if there is `op`. When a
/// node changes its phase, it gives its endpoint a new configuration by `quinn::Endpoint::set_server_config`.
/// Established connections stay.
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
    // The address of each connection is proved by the connection itself, where that is wanted.
    let mut no_tokens = quinn::ValidationTokenConfig::default();
    no_tokens.sent(0);
    config
        .transport_config(Arc::new(transport(ACCEPTED)))
        .validation_token_config(no_tokens)
        // The address that the handshake proved is judged, so no later packet may change it. A client whose address changes
        // connects again.
        .migration(false)
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BYTES_MAX)
        .incoming_buffer_size_total(INCOMING_MAX as u64 * INCOMING_BYTES_MAX / 4);
    config
}

/// Why a connection was not established.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// The server proved another key than the expected one.
    #[error("the server has the identity {presented}")]
    WrongIdentity {
        /// The key that the server presented.
        presented: PublicKey,
    },
    /// The server answers, but does not offer this protocol now. For example, a locked node offers boot/1 only.
    #[error("the server does not serve this protocol now")]
    NotOffered,
    /// The server has too much to do, and begins no handshake now.
    #[error("the server is busy")]
    Busy,
    /// The deadline passed.
    #[error("no answer in time")]
    Deadline,
    /// The server ended the handshake. It says why.
    #[error("the server refused the connection: {0}")]
    Refused(String),
    /// No node answers at the address. It says why.
    #[error("unreachable: {0}")]
    Unreachable(String),
}

/// Connects to `address`, presents `me`, and accepts the server only if it proves the key `expected`.
///
/// # Errors
/// [`DialError`]. A wrong identity is reported with the presented key, so that the caller can name its owner.
pub async fn dial(
    endpoint: &quinn::Endpoint,
    address: SocketAddr,
    me: &Identity,
    expected: PublicKey,
    protocol: Protocol,
    deadline: Duration,
) -> Result<quinn::Connection, DialError> {
    let (config, pin) = pinned(me, expected, protocol);
    // The name is never sent. The server is identified by its key alone.
    let connecting =
        endpoint.connect_with(config, address, "quorate").map_err(|error| DialError::Unreachable(error.to_string()))?;
    let error = match tokio::time::timeout(deadline, connecting).await {
        Err(_) => return Err(DialError::Deadline),
        Ok(Ok(connection)) => {
            if protocol == Protocol::Peer {
                widen_windows(&connection);
            }
            return Ok(connection);
        }
        Ok(Err(error)) => error,
    };
    if let Some(presented) = *pin.presented.lock() {
        return Err(DialError::WrongIdentity { presented });
    }
    Err(match error {
        quinn::ConnectionError::ConnectionClosed(frame) if frame.error_code == no_application_protocol() => {
            DialError::NotOffered
        }
        quinn::ConnectionError::ConnectionClosed(frame)
            if frame.error_code == quinn::TransportErrorCode::CONNECTION_REFUSED =>
        {
            DialError::Busy
        }
        quinn::ConnectionError::ConnectionClosed(_)
        | quinn::ConnectionError::ApplicationClosed(_)
        | quinn::ConnectionError::TransportError(_) => DialError::Refused(reason(&error.to_string())),
        quinn::ConnectionError::TimedOut => DialError::Deadline,
        other => DialError::Unreachable(other.to_string()),
    })
}

/// The configuration with which [`dial`] connects, for a caller with an own way to connect. If the server proves another key than
/// `expected`, the handshake fails.
pub fn client_config(me: &Identity, expected: PublicKey, protocol: Protocol) -> quinn::ClientConfig {
    pinned(me, expected, protocol).0
}

fn pinned(me: &Identity, expected: PublicKey, protocol: Protocol) -> (quinn::ClientConfig, Arc<PinnedKey>) {
    let provider = Arc::new(provider());
    let pin = Arc::new(PinnedKey { expected, presented: Mutex::new(None), provider: provider.clone() });
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
    config.transport_config(Arc::new(transport(DIALLED)));
    (config, pin)
}

/// The alert `no_application_protocol` of RFC 7301, as QUIC carries it.
fn no_application_protocol() -> quinn::TransportErrorCode {
    quinn::TransportErrorCode::crypto(120)
}

/// aws-lc-rs, with the hybrid post-quantum key exchange as the only one. A peer without it is refused.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768];
    provider
}

/// What the other side of a connection may make this side hold inside QUIC. Beyond it, the sender waits.
#[derive(Clone, Copy)]
struct Room {
    /// Streams that it may have open at a time.
    streams: u32,
    /// Bytes that it sent and this side has not read, over all streams; also bytes that wait behind a gap.
    receive_bytes: u32,
    /// Bytes of this side that it has not acknowledged, over all streams.
    send_bytes: u32,
}

/// For a connection that was accepted. Any host can open one, and there may be thousands: a lane of each kind and one stream to
/// spare, and room for the largest request.
const ACCEPTED: Room = Room { streams: 4, receive_bytes: 128 << 10, send_bytes: 128 << 10 };
/// For a connection that was dialled: the other side has proved the expected key.
const DIALLED: Room = Room { streams: 16, receive_bytes: 2 << 20, send_bytes: 2 << 20 };
/// For a connection between nodes. There are few, and they carry the log and snapshots, by lanes and a few bulk transfers.
const PEER: Room = Room { streams: 16, receive_bytes: 16 << 20, send_bytes: 16 << 20 };
/// Most unread bytes of one stream. On connections with less room, that of the connection counts.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// Bytes of a handshake that wait behind a gap. QUIC asks for 4 KiB at least.
const CRYPTO_BYTES_MAX: usize = 16 << 10;
/// First packets of connections that wait for a decision of the node. It decides at once. Beyond it, first packets are lost and
/// sent again.
const INCOMING_MAX: usize = 1024;
/// Bytes that follow such a first packet. The first message of a handshake takes two packets.
const INCOMING_BYTES_MAX: u64 = 8 << 10;
/// A connection is dead if nothing arrives on it for this long.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// How often a quiet connection sends a packet. Two lost packets do not make it look dead.
const KEEP_ALIVE: Duration = Duration::from_secs(3);

/// The assumed round trip until one is measured. QUIC's default is a third of a second. With it, a first packet that is
/// lost because the node is just starting is sent again only after a whole second. On a slow link, this value costs one
/// spare packet.
const INITIAL_RTT: Duration = Duration::from_millis(50);

/// Raises the windows of a connection between nodes. Each side calls it once it knows that the other is a node.
pub fn widen_windows(connection: &quinn::Connection) {
    connection.set_max_concurrent_bi_streams(PEER.streams.into());
    connection.set_receive_window(PEER.receive_bytes.into());
    connection.set_send_window(PEER.send_bytes.into());
}

/// Takes `bytes`, which this side holds for a stranger, off the receive window of an accepted connection.
pub(crate) fn shrink_window(connection: &quinn::Connection, bytes: usize) {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    connection.set_receive_window(ACCEPTED.receive_bytes.saturating_sub(bytes).into());
}

fn transport(room: Room) -> quinn::TransportConfig {
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(room.streams.into())
        .max_concurrent_uni_streams(0u32.into())
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        .receive_window(room.receive_bytes.into())
        .send_window(room.send_bytes.into())
        .crypto_buffer_size(CRYPTO_BYTES_MAX)
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(IDLE_MAX.try_into().expect("ten seconds fit QUIC's milliseconds")))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(INITIAL_RTT);
    transport
}

/// Selects the key of the server by the protocol that the client asks for.
#[derive(Debug)]
struct ByProtocol {
    boot: Arc<CertifiedKey>,
    op: Option<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for ByProtocol {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // Exactly one protocol: if the client offered two, the key chosen here might not fit the protocol chosen later.
        let mut asked = hello.alpn()?;
        let (first, second) = (asked.next()?, asked.next());
        if second.is_some() {
            return None;
        }
        match Protocol::named(first) {
            Some(protocol) if protocol.needs_op_key() => self.op.clone().or_else(|| Some(self.boot.clone())),
            // A protocol that is not offered fails in the negotiation, before a key is shown or signs anything.
            _ => Some(self.boot.clone()),
        }
    }

    fn only_raw_public_keys(&self) -> bool {
        true
    }
}

/// The server's verifier: accepts any raw Ed25519 key with a valid signature.
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
        from_spki(key).ok_or(rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
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

/// The dialler's verifier: accepts one expected key, and notes any other that was presented.
#[derive(Debug)]
struct PinnedKey {
    expected: PublicKey,
    presented: Mutex<Option<PublicKey>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedKey {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let key = from_spki(key).ok_or(rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
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
