//! The UDP socket for all connections.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use quorate_client::conn::answering_async;
use quorate_shares::labels::QUIC_RESET;
use quorate_shares::secret::Secret;
use rustix::io::Errno;

use crate::base::random;

/// Enough that no two connections of a node ever share an id.
const CONNECTION_ID_BYTES: usize = 8;

/// Opens the UDP socket for all connections. Connections of an earlier process of this node end at the first packet that
/// arrives for them, instead of after ten seconds of silence.
pub fn bind(address: SocketAddr, boot_seed: &Secret<32>) -> io::Result<quinn::Endpoint> {
    let socket = UdpSocket::bind(address)?;
    quinn::Endpoint::new(endpoint_config(boot_seed), None, socket, Arc::new(Tasks::default()))
}

/// The tasks of QUIC, on Tokio. The first one is that of the socket, and each later one is that of a connection: a packet that meets
/// a fault in QUIC costs its connection, and not the node. If the first one ends, accepting ends, and with it the process.
#[derive(Debug, Default)]
struct Tasks {
    socket_runs: AtomicBool,
}

impl quinn::Runtime for Tasks {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn quinn::AsyncTimer>> {
        quinn::TokioRuntime.new_timer(at)
    }

    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        if self.socket_runs.swap(true, Ordering::Relaxed) {
            tokio::spawn(answering_async(task));
        } else {
            tokio::spawn(task);
        }
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        quinn::TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        quinn::TokioRuntime.now()
    }
}

/// What to do if [`bind`] fails. Each reason has a remedy of its own: a port that is free does not help an address that is not
/// there.
pub fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "another process uses the port: stop it, or give this node another port (--listen)",
        io::ErrorKind::AddrNotAvailable => {
            "this machine does not have the address, or not yet: `ip address` shows those that it has. Start quorated once the \
             network is up, or give this node another --listen address"
        }
        io::ErrorKind::PermissionDenied => {
            "this user may not use the port: take one above 1023, or grant CAP_NET_BIND_SERVICE"
        }
        _ if error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error()) => {
            "this machine has no IPv6, or no IPv4: give this node an address of the other kind (--listen)"
        }
        _ => "check the --listen address and the limits on file descriptors",
    }
}

/// Why a socket that listens on `local` cannot send to `target`, if they are of different families; `None` if it can.
pub fn family_mismatch(local: SocketAddr, target: SocketAddr) -> Option<String> {
    let takes_both = matches!(local.ip(), IpAddr::V6(ip) if ip.is_unspecified());
    let is_v4 = |address: SocketAddr| address.ip().to_canonical().is_ipv4();
    if takes_both || is_v4(local) == is_v4(target) {
        return None;
    }
    let (theirs, ours) = if is_v4(target) { ("IPv4", "IPv6") } else { ("IPv6", "IPv4") };
    Some(format!(
        "{target} is an {theirs} address, and this node listens on {ours} only ({local}): give all nodes addresses of one family \
         (IPv4 or IPv6), or let this node listen on [::]:{port}",
        port = local.port()
    ))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel says which it is. Mutated: with one hint for all, an address that is not there yet is blamed on the port.
    #[tokio::test]
    async fn each_reason_not_to_listen_has_its_own_remedy() {
        let seed = || Secret::random(&mut random::system());
        let refused = |address: &str| {
            let address = address.parse().expect("an address");
            bind(address, &seed()).map(drop).map_err(|error| hint(&error)).expect_err("refused")
        };
        let first = bind("127.0.0.1:0".parse().expect("an address"), &seed()).expect("the control: a free port");
        assert!(refused(&first.local_addr().expect("bound").to_string()).contains("another process uses the port"));
        // 192.0.2.0/24 is for documentation (RFC 5737).
        assert!(refused("192.0.2.1:0").contains("does not have the address"));
        let hint = |errno: Errno| hint(&errno.into());
        assert!(hint(Errno::ACCESS).contains("may not use the port"));
        assert!(hint(Errno::AFNOSUPPORT).contains("no IPv6"));
        let hints = [Errno::ADDRINUSE, Errno::ADDRNOTAVAIL, Errno::ACCESS, Errno::AFNOSUPPORT, Errno::MFILE].map(hint);
        let different: std::collections::BTreeSet<_> = hints.into_iter().collect();
        assert_eq!(different.len(), hints.len(), "no two are one");
    }

    #[test]
    fn a_socket_sends_to_addresses_of_its_own_family() {
        let mismatch = |local: &str, target: &str| {
            super::family_mismatch(local.parse().expect("an address"), target.parse().expect("an address"))
        };
        let fits = [
            ("10.0.0.1:7250", "10.0.0.2:7250"),
            ("0.0.0.0:7250", "10.0.0.2:7250"),
            ("[fd00::1]:7250", "[fd00::2]:7250"),
            ("[::]:7250", "10.0.0.2:7250"),
            ("[::]:7250", "[fd00::2]:7250"),
            ("10.0.0.1:7250", "[::ffff:10.0.0.2]:7250"),
        ];
        for (local, target) in fits {
            assert_eq!(mismatch(local, target), None, "{local} to {target}");
        }
        let said = mismatch("10.0.0.1:7250", "[fd00::2]:7250").expect("they do not fit");
        assert!(said.starts_with("[fd00::2]:7250 is an IPv6 address, and this node listens on IPv4 only"), "{said}");
        assert!(mismatch("[fd00::1]:7250", "10.0.0.2:7250").is_some_and(|said| said.contains("listens on IPv6 only")));
        assert!(mismatch("0.0.0.0:7250", "[fd00::2]:7250").is_some());
    }
}
