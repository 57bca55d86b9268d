//! The network between the nodes, as something that can be broken without root.
//!
//! Every node advertises a port of the relay instead of its own. A node has one QUIC endpoint, which dials from the port
//! that it listens on; so the source of a datagram tells who sent it, and the relay sends it on from the *sender's*
//! advertised port. Both ends then see the addresses that the roster names, and nothing has to be remembered:
//!
//! ```text
//! n1 (listens on L1) ─► R2 ║ relay ║ R1 ─► n2 (listens on L2)
//! ```
//! Every other sender is a client. It gets a socket of its own towards each node, which is closed when it is silent.
//!
//! [`crate::faults::network`] decides what happens to a datagram; this file only carries it.

pub mod control;

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket as StdSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::{Mutex, oneshot};
use tokio::time::{sleep, timeout};

use crate::faults::network::{Faults, Party};

/// Largest UDP datagram.
const DATAGRAM_BYTES_MAX: usize = 65_536;
/// Most datagrams that wait out a delay; more are lost, as in a router whose queue is full.
const DELAYED_MAX: usize = 10_000;
/// Most clients at once; the datagrams of more are lost until others were silent for [`CLIENT_IDLE`].
const CLIENTS_MAX: usize = 4_096;
/// How long a silent client is remembered.
const CLIENT_IDLE: Duration = Duration::from_secs(60);

/// One node behind the relay.
pub struct Route {
    pub name: String,
    /// Bound to the address that the node advertises.
    pub front: StdSocket,
    /// Where the node listens, and where it dials from.
    pub node: SocketAddr,
}

/// A relay that runs on a thread of its own until it is dropped.
pub struct Relay {
    faults: Faults,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Starts the thread, which carries datagrams from now on.
    ///
    /// # Errors
    /// What the operating system says about sockets and threads.
    pub fn start(routes: Vec<Route>) -> io::Result<Self> {
        let faults = Faults::new(routes.iter().map(|route| route.name.clone()).collect());
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let entered = runtime.enter();
        let carrier = Arc::new(Carrier::new(routes, faults.clone())?);
        drop(entered);
        let thread = std::thread::Builder::new().name("relay".to_owned()).spawn(move || {
            runtime.block_on(async {
                for node in 0..carrier.fronts.len() {
                    tokio::spawn(Arc::clone(&carrier).serve_front(node));
                }
                // An error means that the relay was dropped, which is the other way to stop it.
                let _ = stopped.await;
            });
        })?;
        Ok(Self { faults, stop: Some(stop), thread: Some(thread) })
    }

    /// What the relay does to datagrams, to be changed while it runs.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A relay that panicked has failed its test already.
            let _ = thread.join();
        }
    }
}

struct Carrier {
    fronts: Vec<Arc<UdpSocket>>,
    nodes: Vec<SocketAddr>,
    clients: Mutex<HashMap<(SocketAddr, usize), Arc<UdpSocket>>>,
    faults: Faults,
    delayed: Arc<AtomicUsize>,
}

impl Carrier {
    fn new(routes: Vec<Route>, faults: Faults) -> io::Result<Self> {
        let nodes = routes.iter().map(|route| route.node).collect();
        let fronts = routes.into_iter().map(|route| {
            route.front.set_nonblocking(true)?;
            UdpSocket::from_std(route.front).map(Arc::new)
        });
        let fronts = fronts.collect::<io::Result<_>>()?;
        Ok(Self { fronts, nodes, clients: Mutex::default(), faults, delayed: Arc::default() })
    }

    /// Takes what is sent to the advertised address of `node`.
    async fn serve_front(self: Arc<Self>, node: usize) {
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            // An error on a UDP socket is the echo of an earlier datagram, and says nothing about the next.
            let Ok((length, source)) = self.fronts[node].recv_from(&mut buffer).await else { continue };
            let sender = self.nodes.iter().position(|listen| *listen == source);
            let from = sender.map_or(Party::Client, Party::Node);
            let out = match sender {
                Some(sender) => Some(Arc::clone(&self.fronts[sender])),
                None => Self::client_socket(&self, source, node).await,
            };
            if let Some(out) = out {
                self.carry(&buffer[..length], from, Party::Node(node), &out, self.nodes[node]).await;
            }
        }
    }

    /// Takes what `node` sends back to one client.
    async fn serve_client(self: Arc<Self>, client: SocketAddr, node: usize, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        while let Ok(received) = timeout(CLIENT_IDLE, socket.recv_from(&mut buffer)).await {
            let Ok((length, source)) = received else { continue };
            if source == self.nodes[node] {
                self.carry(&buffer[..length], Party::Node(node), Party::Client, &self.fronts[node], client).await;
            }
        }
        self.clients.lock().await.remove(&(client, node));
    }

    async fn client_socket(this: &Arc<Self>, client: SocketAddr, node: usize) -> Option<Arc<UdpSocket>> {
        let mut clients = this.clients.lock().await;
        if let Some(socket) = clients.get(&(client, node)) {
            return Some(Arc::clone(socket));
        }
        if clients.len() == CLIENTS_MAX {
            return None;
        }
        let socket = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.ok()?);
        clients.insert((client, node), Arc::clone(&socket));
        tokio::spawn(Arc::clone(this).serve_client(client, node, Arc::clone(&socket)));
        Some(socket)
    }

    async fn carry(&self, datagram: &[u8], from: Party, to: Party, out: &Arc<UdpSocket>, target: SocketAddr) {
        for delay in self.faults.fate(from, to) {
            if delay.is_zero() {
                // What cannot be sent is lost, as in any network.
                let _ = out.send_to(datagram, target).await;
            } else if self.delayed.load(Ordering::Relaxed) < DELAYED_MAX {
                let (out, delayed, datagram) = (Arc::clone(out), Arc::clone(&self.delayed), datagram.to_vec());
                delayed.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    sleep(delay).await;
                    delayed.fetch_sub(1, Ordering::Relaxed);
                    let _ = out.send_to(&datagram, target).await;
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::network::LinkQuality;

    struct Net {
        nodes: Vec<StdSocket>,
        fronts: Vec<SocketAddr>,
        relay: Relay,
    }

    fn bound() -> StdSocket {
        let socket = StdSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
        socket
    }

    fn net(count: usize) -> Net {
        let nodes: Vec<_> = (0..count).map(|_| bound()).collect();
        let local = |socket: &StdSocket| socket.local_addr().expect("bound");
        let routes: Vec<_> = (0..count)
            .map(|at| Route { name: format!("n{}", at + 1), front: bound(), node: local(&nodes[at]) })
            .collect();
        let fronts = routes.iter().map(|route| local(&route.front)).collect();
        Net { nodes, fronts, relay: Relay::start(routes).expect("starts") }
    }

    impl Net {
        fn send(&self, from: usize, to: usize, text: &[u8]) {
            self.nodes[from].send_to(text, self.fronts[to]).expect("loopback takes it");
        }

        fn receive(&self, at: usize) -> Option<(Vec<u8>, SocketAddr)> {
            receive(&self.nodes[at])
        }
    }

    fn receive(socket: &StdSocket) -> Option<(Vec<u8>, SocketAddr)> {
        let mut buffer = [0; 2048];
        socket.recv_from(&mut buffer).ok().map(|(length, source)| (buffer[..length].to_vec(), source))
    }

    #[test]
    fn nodes_see_each_other_at_their_advertised_addresses() {
        let net = net(2);
        net.send(0, 1, b"hello");
        let (text, source) = net.receive(1).expect("it arrives");
        assert_eq!((text.as_slice(), source), (&b"hello"[..], net.fronts[0]));
        net.nodes[1].send_to(b"back", source).expect("loopback takes it");
        assert_eq!(net.receive(0), Some((b"back".to_vec(), net.fronts[1])));
    }

    #[test]
    fn a_client_is_answered_from_the_address_that_it_asked() {
        let net = net(1);
        let client = bound();
        client.send_to(b"ask", net.fronts[0]).expect("loopback takes it");
        let (_, source) = net.receive(0).expect("it arrives");
        net.nodes[0].send_to(b"answer", source).expect("loopback takes it");
        assert_eq!(receive(&client), Some((b"answer".to_vec(), net.fronts[0])));
    }

    #[test]
    fn a_cut_separates_exactly_what_it_names_until_healed() {
        let net = net(3);
        let faults = net.relay.faults();
        faults.cut_pair("n1", "n2").expect("they exist");
        net.send(0, 1, b"lost");
        net.send(1, 0, b"lost");
        net.send(0, 2, b"carried");
        assert_eq!((net.receive(1), net.receive(0)), (None, None));
        assert!(net.receive(2).is_some());

        faults.heal();
        faults.cut("n3").expect("it exists");
        net.send(0, 1, b"carried");
        net.send(0, 2, b"lost");
        assert!(net.receive(1).is_some() && net.receive(2).is_none());
        let client = bound();
        client.send_to(b"clients still reach it", net.fronts[2]).expect("loopback takes it");
        assert!(net.receive(2).is_some());

        faults.heal();
        net.send(0, 2, b"carried");
        assert!(net.receive(2).is_some());
        assert!(faults.cut("n4").is_err());
    }

    #[test]
    fn a_bad_link_loses_doubles_and_delays() {
        let net = net(2);
        let faults = net.relay.faults();
        faults.set_quality(LinkQuality { loss: 1.0, ..LinkQuality::default() }, 1);
        net.send(0, 1, b"lost");
        assert_eq!(net.receive(1), None);
        faults.set_quality(LinkQuality { duplicate: 1.0, ..LinkQuality::default() }, 1);
        net.send(0, 1, b"twice");
        assert!(net.receive(1).is_some() && net.receive(1).is_some() && net.receive(1).is_none());
        let late = Duration::from_millis(40);
        faults.set_quality(LinkQuality { delay: late..=late, ..LinkQuality::default() }, 1);
        let sent = std::time::Instant::now();
        net.send(0, 1, b"late");
        assert!(net.receive(1).is_some() && sent.elapsed() >= late);
    }
}
