//! Both ends of a connection, and ways to misbehave at one end.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use quorate_client::conn::{Conn, Handler};
use quorate_client::frame::{self, FrameKind};
use quorate_client::identity::{DialError, Identity, Protocol, PublicKey, dial, server_config};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use tokio::sync::{Mutex, mpsc};

/// A deadline for what must succeed, even on a loaded machine.
pub(crate) const LONG: Duration = Duration::from_secs(20);
/// How long to wait to see that something does not happen.
pub(crate) const SHORT: Duration = Duration::from_millis(300);

pub(crate) fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

pub(crate) fn endpoint() -> quinn::Endpoint {
    quinn::Endpoint::client(any_port()).expect("a free port")
}

pub(crate) async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < LONG, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A listening end, with both keys of a node.
pub(crate) struct Node {
    pub(crate) boot: Identity,
    pub(crate) op: Identity,
    pub(crate) endpoint: quinn::Endpoint,
    pub(crate) address: SocketAddr,
    accepted: Mutex<mpsc::UnboundedReceiver<Conn>>,
}

impl Node {
    /// Listens, and answers no request.
    pub(crate) fn start(offered: &[Protocol]) -> Self {
        Self::run(offered, None)
    }

    /// Listens, and answers with `handler`.
    pub(crate) fn serving(handler: Arc<dyn Handler>) -> Self {
        Self::run(&Protocol::ALL, Some(handler))
    }

    fn run(offered: &[Protocol], handler: Option<Arc<dyn Handler>>) -> Self {
        let (boot, op) = (Identity::random(), Identity::random());
        let config = server_config(&boot, Some(&op), offered);
        let endpoint = quinn::Endpoint::server(config, any_port()).expect("a free port");
        let address = endpoint.local_addr().expect("bound");
        let (sender, accepted) = mpsc::unbounded_channel();
        let listening = endpoint.clone();
        tokio::spawn(async move {
            while let Some(incoming) = listening.accept().await {
                let (handler, sender) = (handler.clone(), sender.clone());
                tokio::spawn(async move {
                    if let Ok(connection) = incoming.await {
                        let _ = sender.send(Conn::start(connection, handler));
                    }
                });
            }
        });
        Self { boot, op, endpoint, address, accepted: Mutex::new(accepted) }
    }

    pub(crate) async fn accepted(&self) -> Conn {
        self.accepted.lock().await.recv().await.expect("the listener runs as long as the node")
    }

    pub(crate) async fn dial(
        &self,
        me: &Identity,
        expected: PublicKey,
        protocol: Protocol,
    ) -> Result<quinn::Connection, DialError> {
        dial(&endpoint(), self.address, me, expected, protocol, LONG).await
    }
}

/// Both ends of one connection.
pub(crate) async fn pair(here: Arc<dyn Handler>, there: Arc<dyn Handler>) -> (Conn, Conn) {
    let node = Node::serving(there);
    let connection = node.dial(&Identity::random(), node.op.public(), Protocol::Peer).await.expect("connected");
    let here = Conn::start(connection, Some(here));
    (here, node.accepted().await)
}

/// The bytes of one request.
pub(crate) fn request(id: u64, body: &[u8]) -> BytesMut {
    let mut bytes = BytesMut::new();
    frame::encode(&mut bytes, FrameKind::Request, id, body).expect("small");
    bytes
}

/// A lane whose bytes the test writes itself.
pub(crate) async fn raw_lane(
    connection: &quinn::Connection,
    bytes: &[u8],
) -> (quinn::SendStream, frame::FrameReader<quinn::RecvStream>) {
    let (mut send, receive) = connection.open_bi().await.expect("a stream");
    send.write_all(&[1, 1]).await.expect("sent");
    send.write_all(bytes).await.expect("sent");
    (send, frame::FrameReader::new(receive))
}

/// The key exchanges that the dialler offers: the post-quantum one, or X25519 alone.
pub(crate) fn provider(post_quantum: bool) -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    let group = if post_quantum { aws_lc_rs::kx_group::X25519MLKEM768 } else { aws_lc_rs::kx_group::X25519 };
    provider.kx_groups = vec![group];
    provider
}

/// Dials without `identity`, as a foreign program would.
pub(crate) async fn dial_by_hand(
    node: &Node,
    provider: CryptoProvider,
    protocols: &[Protocol],
) -> Result<quinn::Connection, quinn::ConnectionError> {
    let mut der = vec![0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    der.extend([7; 32]);
    let key = aws_lc_rs::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(der)).expect("a seed");
    let public = key.public_key().expect("it has one").to_vec();
    let certified = rustls::sign::CertifiedKey::new(vec![CertificateDer::from(public)], key);
    let resolver = rustls::client::AlwaysResolvesClientRawPublicKeys::new(Arc::new(certified));
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer))
        .with_client_cert_resolver(Arc::new(resolver));
    tls.alpn_protocols = protocols.iter().map(|protocol| protocol.alpn().to_vec()).collect();
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).expect("a suite for QUIC");
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let endpoint = endpoint();
    endpoint.connect_with(config, node.address, "quorate").expect("an address").await
}

#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        vec![rustls::SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
