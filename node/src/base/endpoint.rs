//! The UDP socket for all connections.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use quorate_shares::labels::QUIC_RESET;
use quorate_shares::secret::Secret;

use crate::base::random;

/// Enough that no two connections of a node ever share an id.
const CONNECTION_ID_BYTES: usize = 8;

/// Opens the UDP socket for all connections. Connections of an earlier process of this node end at the first packet that
/// arrives for them, instead of after ten seconds of silence.
pub fn bind(address: SocketAddr, boot_seed: &Secret<32>) -> io::Result<quinn::Endpoint> {
    let socket = UdpSocket::bind(address)?;
    quinn::Endpoint::new(endpoint_config(boot_seed), None, socket, Arc::new(quinn::TokioRuntime))
}

/// QUIC's stateless reset (RFC 9000, section 10.3): its tokens are derived from a key that outlives the process. A thief
/// with the disk can end connections of this node, and no more.
fn endpoint_config(boot_seed: &Secret<32>) -> quinn::EndpointConfig {
    let boot = hmac::Key::new(hmac::HMAC_SHA256, boot_seed.expose());
    let reset = hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&boot, QUIC_RESET).as_ref());
    let mut config = quinn::EndpointConfig::new(Arc::new(reset));
    config.cid_generator(|| Box::new(RandomIds));
    config
}

/// Random connection ids without a structure. So a packet for an earlier process looks like any unknown one, and gets a reset.
struct RandomIds;

impl quinn::ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> quinn::ConnectionId {
        quinn::ConnectionId::new(&random::bytes::<CONNECTION_ID_BYTES>())
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
