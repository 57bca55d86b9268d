//! TLS and QUIC as Quorate configures them, and the two verifiers: any raw key for servers, one pinned key for diallers.

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

use super::{Identity, Protocol, PublicKey};

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
        Ok(Ok(connection)) => {
            if protocol == Protocol::Peer {
                widen(&connection);
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
/// Bytes of one connection that may be under way unread, in each direction; the sender waits beyond it. There may be
/// thousands of connections, and anybody can open one.
const CONNECTION_WINDOW_BYTES: u32 = 2 << 20;
/// The same for connections between nodes, of which there are few, and which carry the log and snapshots.
const PEER_WINDOW_BYTES: u32 = 16 << 20;
/// A connection on which nothing arrives for so long is dead.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// Small enough that two lost packets do not make a quiet connection look dead.
const KEEP_ALIVE: Duration = Duration::from_secs(3);

/// What the round trip is taken for until one was measured. A third of a second, as QUIC would have it, makes the first
/// packet to a node that is just starting be sent again after a whole second; on a slow link this one costs a spare packet.
const INITIAL_RTT: Duration = Duration::from_millis(50);

/// Lets more be under way on a connection between nodes. Each side does this once it knows who the other one is.
pub fn widen(connection: &quinn::Connection) {
    connection.set_receive_window(PEER_WINDOW_BYTES.into());
    connection.set_send_window(PEER_WINDOW_BYTES.into());
}

fn transport() -> quinn::TransportConfig {
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(STREAMS_MAX.into())
        .max_concurrent_uni_streams(0u32.into())
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        .receive_window(CONNECTION_WINDOW_BYTES.into())
        .send_window(CONNECTION_WINDOW_BYTES.into())
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
