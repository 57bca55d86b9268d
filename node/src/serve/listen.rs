//! The way in from the network: a QUIC endpoint, four protocols, and the door that each connection gets.
//!
//! Who finds a place at all is decided first (`places`).
//!
//! TLS accepts any raw Ed25519 key whose signature holds; right after the handshake the key is held against the protocol
//! and the roster. A locked node offers only `quorate-boot/1`, so that no client asks a boot key, which lies
//! in plain on the disk.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use futures::future::FutureExt;
use quorate_client::conn::{Conn, Handler, answering_async, close};
use quorate_client::identity::{self, Protocol};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::base::phase::Phase;
use crate::node::Node;
use crate::serve::client::{ClientDoor, WAITING_MAX};
use crate::serve::member_addresses::MemberAddresses;
use crate::serve::newcomers::Newcomers;
use crate::serve::peer::PeerDoor;
use crate::serve::places::{Entry, HANDSHAKE, Places};
use crate::serve::stranger::{BootDoor, ClosedDoor, JoinDoor};

/// Accepts connections until the endpoint is closed. Those from addresses of members run on the threads `of_members`, which strangers
/// and clients cannot keep busy; all others run on the threads that run this.
pub async fn run(node: Arc<Node>, of_members: Handle) {
    let members = MemberAddresses::default();
    tokio::select! {
        () = accept(&node, &members, &of_members) => {}
        () = members.follow(&node) => {}
    }
}

async fn accept(node: &Arc<Node>, members: &MemberAddresses, of_members: &Handle) {
    let of_others = Handle::current();
    let places = Arc::new(Places::new());
    let waiting = Arc::new(Semaphore::new(WAITING_MAX));
    let mut newcomers = Newcomers::default();
    loop {
        // A flood must not occupy the thread alone.
        tokio::task::coop::consume_budget().await;
        // `None` at once if no connection waits.
        let newcomer = match node.endpoint.accept().now_or_never() {
            Some(newcomer) => newcomer,
            None => {
                newcomers.note_none();
                node.endpoint.accept().await
            }
        };
        let Some(incoming) = newcomer else { return };
        let remote = incoming.remote_address();
        let is_member = members.contain(remote);
        if newcomers.is_too_many(Instant::now()) && !is_member {
            incoming.refuse();
            continue;
        }
        let proved = incoming.remote_address_validated();
        let place = match places.handshake(remote.ip(), proved, members.contain_host(remote.ip())) {
            Entry::Begin(place) => place,
            Entry::Prove => {
                // Fails only if the address is proved.
                drop(incoming.retry());
                continue;
            }
            Entry::Drop => {
                incoming.ignore();
                continue;
            }
        };
        let threads = if is_member { of_members } else { &of_others };
        // This answers the newcomer, which is most of the work of a handshake.
        let accepted = {
            let _entered = threads.enter();
            incoming.accept()
        };
        let handshake = match accepted {
            Ok(handshake) => handshake,
            Err(error) => {
                debug!(%error, "handshake failed");
                continue;
            }
        };
        let (node, places, waiting, of_others) =
            (Arc::clone(node), Arc::clone(&places), Arc::clone(&waiting), of_others.clone());
        threads.spawn(answering_async(async move {
            match timeout(HANDSHAKE, handshake).await {
                Ok(Ok(connection)) => welcome(&node, &places, waiting, remote, connection, &of_others),
                Ok(Err(error)) => debug!(%error, "handshake failed"),
                Err(_) => debug!(%remote, "a handshake took too long"),
            }
            drop(place);
        }));
        // Open connections run first: a handshake takes processor time from them.
        tokio::task::yield_now().await;
    }
}

/// Gives a connection the handler of its protocol, or closes it. `remote` is its address, which never changes: migration is off.
fn welcome(
    node: &Arc<Node>,
    places: &Places,
    waiting: Arc<Semaphore>,
    remote: SocketAddr,
    connection: quinn::Connection,
    of_others: &Handle,
) {
    let (protocol, key) = (Protocol::of(&connection), identity::peer_key(&connection));
    let (Some(protocol), Some(key)) = (protocol, key) else {
        connection.close(close::PROTOCOL.into(), b"unknown protocol or no identity");
        return;
    };
    // An address alone, which others may have as well, lets no one work on the threads of members.
    let _entered = (protocol != Protocol::Peer).then(|| of_others.enter());
    let member = node.roster().is_key_of_member(protocol, &key).then_some(key);
    let place = match places.connection(remote.ip(), member) {
        Ok(place) => place,
        Err(reason) => {
            debug!(%remote, reason, "refused a connection");
            connection.close(close::DENIED.into(), reason.as_bytes());
            return;
        }
    };
    let node = Arc::clone(node);
    let handler: Arc<dyn Handler> = match protocol {
        Protocol::Boot => Arc::new(BootDoor::new(node, place)),
        Protocol::Join => Arc::new(JoinDoor::new(node, place)),
        Protocol::Client => Arc::new(ClientDoor::new(node, waiting, place)),
        Protocol::Peer => {
            let enrolment = node.enrolment();
            match enrolment.roster.current().node_with_op_key(&key) {
                Some(peer) => {
                    identity::widen_windows(&connection);
                    PeerDoor::accepted(&node, &enrolment, peer, place)
                }
                None => match enrolment.roster.turned_away(&key) {
                    Some(refusal) => Arc::new(ClosedDoor::new(node, refusal, place)),
                    None => {
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
