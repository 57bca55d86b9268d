//! The way in from the network: a QUIC endpoint, four protocols, and the door that each connection gets.
//!
//! TLS accepts any raw Ed25519 key whose signature holds; right after the handshake the key is held against the protocol
//! and the roster. A locked node offers only `quorate-boot/1`, so that no client hands its token to a boot key, which lies
//! in plain on the disk.

use std::sync::Arc;

use quorate_client::conn::{Conn, Handler, answering_later, close};
use quorate_client::identity::{self, Protocol};
use tokio::sync::Semaphore;
use tracing::{debug, warn};

use crate::base::phase::Phase;
use crate::node::Node;
use crate::serve::client::ClientDoor;
use crate::serve::peer::PeerDoor;
use crate::serve::stranger::{BootDoor, ClosedDoor, JoinDoor};

/// Handshakes under way at most; beyond, new connections are refused until some finish.
const HANDSHAKES_MAX: usize = 256;
/// Open connections of peers that are not members, mostly clients. The next one is closed with a reason, and a client asks
/// another node. A member always finds a place. An idle connection costs about 40 KiB.
const GUESTS_MAX: usize = 10_240;

/// Accepts connections until the endpoint is closed.
pub async fn run(node: Arc<Node>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let guests = Arc::new(Semaphore::new(GUESTS_MAX));
    while let Some(incoming) = node.endpoint.accept().await {
        // Under load only those may take a place that can be reached at the address that they claim.
        if !incoming.remote_address_validated() && handshakes.available_permits() < HANDSHAKES_MAX / 2 {
            let _ = incoming.retry();
            continue;
        }
        let Ok(place) = Arc::clone(&handshakes).try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let (node, guests) = (Arc::clone(&node), Arc::clone(&guests));
        tokio::spawn(answering_later(async move {
            match incoming.await {
                Ok(connection) => {
                    drop(place);
                    welcome(&node, &guests, connection);
                }
                Err(error) => debug!(%error, "handshake failed"),
            }
        }));
    }
}

/// Gives a connection the handler of its protocol, or closes it.
fn welcome(node: &Arc<Node>, guests: &Arc<Semaphore>, connection: quinn::Connection) {
    let (protocol, key) = (Protocol::of(&connection), identity::peer_key(&connection));
    let (Some(protocol), Some(key)) = (protocol, key) else {
        connection.close(close::PROTOCOL.into(), b"unknown protocol or no identity");
        return;
    };
    let place = match Arc::clone(guests).try_acquire_owned() {
        Ok(place) => Some(place),
        Err(_) if node.roster().is_key_of_member(protocol, &key) => None,
        Err(_) => {
            debug!(remote = %connection.remote_address(), "refused a connection: too many are open");
            connection.close(close::DENIED.into(), b"too many connections are open at this node");
            return;
        }
    };
    let node = Arc::clone(node);
    let handler: Arc<dyn Handler> = match protocol {
        Protocol::Boot => Arc::new(BootDoor::new(node, place)),
        Protocol::Join => Arc::new(JoinDoor::new(node, place)),
        Protocol::Client => Arc::new(ClientDoor::new(node, place)),
        Protocol::Peer => {
            let enrolment = node.enrolment();
            match enrolment.roster.current().node_with_op_key(&key) {
                Some(peer) => {
                    identity::widen_windows(&connection);
                    PeerDoor::accepted(&node, &enrolment, peer)
                }
                None => match enrolment.roster.turned_away(&key) {
                    Some(refusal) => Arc::new(ClosedDoor::new(refusal, place)),
                    None => {
                        let remote = connection.remote_address();
                        match node.phase() {
                            // A founder may know another one before that one is known here.
                            Phase::Joining => debug!(%remote, "refused a peer that is not known yet"),
                            _ => warn!(%remote, "refused a peer whose op key is not in the roster"),
                        }
                        connection.close(close::DENIED.into(), b"not a member");
                        return;
                    }
                },
            }
        }
    };
    Conn::start(connection, Some(handler));
}
