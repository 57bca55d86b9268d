//! UDP sockets of an attacker, who loses, withholds and forges datagrams.

use std::fmt::Debug;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, EndpointConfig, Runtime, TokioRuntime, UdpPoller};

/// What an attacker does with datagrams.
pub(crate) trait Tricks: Debug + Send + Sync + 'static {
    /// Sends a datagram with `socket`, or does something else.
    fn send(&self, datagram: &Transmit<'_>, socket: &dyn AsyncUdpSocket) -> io::Result<()> {
        socket.try_send(datagram)
    }

    /// Whether a datagram that arrived is looked at.
    fn takes(&self, datagram: &[u8]) -> bool {
        let _ = datagram;
        true
    }
}

/// An endpoint at this address. It must be made within a runtime.
pub(crate) fn endpoint(address: IpAddr, tricks: Arc<dyn Tricks>) -> quinn::Endpoint {
    let socket = UdpSocket::bind(SocketAddr::new(address, 0)).expect("a port");
    let socket = TokioRuntime.wrap_udp_socket(socket).expect("a socket");
    let socket = Arc::new(TrickSocket { socket, tricks });
    let endpoint =
        quinn::Endpoint::new_with_abstract_socket(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime));
    endpoint.expect("an endpoint")
}

#[derive(Debug)]
struct TrickSocket {
    socket: Arc<dyn AsyncUdpSocket>,
    tricks: Arc<dyn Tricks>,
}

impl AsyncUdpSocket for TrickSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    // One datagram at a time: the default says that the socket sends no batches.
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.tricks.send(transmit, &*self.socket)
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let arrived = ready!(self.socket.poll_recv(context, buffers, meta))?;
            let mut taken = 0;
            for number in 0..arrived {
                let length = meta[number].len;
                if self.tricks.takes(&buffers[number][..length]) {
                    buffers.swap(taken, number);
                    meta.swap(taken, number);
                    taken += 1;
                }
            }
            if taken > 0 {
                return Poll::Ready(Ok(taken));
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}
