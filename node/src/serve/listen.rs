//! The one door from the network: a QUIC endpoint, four protocols, and who may speak which.
//!
//! TLS accepts any raw Ed25519 key whose signature holds; right after the handshake the key is held against the protocol
//! and the roster. A locked node offers only `quorate-boot/1`, so that no client hands its token to a boot key, which lies
//! in plain on the disk.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use quorate_client::conn::{BulkReceiver, Conn, Handler, Limits, Reply, close};
use quorate_client::identity::{self, Protocol};
use quorate_client::wire::{self, Answered, Envelope};
use quorate_shares::ids::NodeId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{debug, warn};

use crate::base::clock::boot_ms;
use crate::base::phase::{RequestClass, admits};
use crate::cluster::status;
use crate::join::founding;
use crate::lock::unlock;
use crate::messages::peer::{self, PeerReply, PeerRequest};
use crate::node::Node;
use crate::service;
use crate::service::member::{self, Asked, Pace};

/// Handshakes under way at most; beyond, new connections are refused until some finish.
const HANDSHAKES_MAX: usize = 256;
/// Open connections of others than members, clients above all; the next one is told so and closed, and a client asks another
/// node. Members always find a place. An idle connection costs about 40 KiB.
const GUESTS_MAX: usize = 10_240;
/// What is put up with on such a connection before it is closed with a reason. The largest request, a message of 64 KiB
/// as text, takes a third of such a frame.
const GUEST: Limits = Limits { frame_bytes: 256 << 10, patience: Some(Duration::from_secs(30)) };

/// Accepts connections for ever; ends when the endpoint is closed.
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
        tokio::spawn(async move {
            match incoming.await {
                Ok(connection) => {
                    drop(place);
                    welcome(&node, &guests, connection);
                }
                Err(error) => debug!(%error, "handshake failed"),
            }
        });
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
        Protocol::Boot => Arc::new(BootDoor { node, _place: place }),
        Protocol::Join => Arc::new(JoinDoor { node, _place: place }),
        Protocol::Client => Arc::new(ClientDoor { node, _place: place }),
        Protocol::Peer => match node.roster().node_with_op_key(&key) {
            Some(peer) => {
                identity::widen_windows(&connection);
                PeerDoor::accepted(&node, peer)
            }
            None => match node.enrolment().roster.turned_away(&key) {
                Some(refusal) => {
                    Arc::new(ClosedDoor { refusal: peer::encode(&PeerReply::Refused(refusal)), _place: place })
                }
                None => {
                    warn!(remote = %connection.remote_address(), "refused a peer whose op key is not in the roster");
                    connection.close(close::DENIED.into(), b"not a member");
                    return;
                }
            },
        },
    };
    Conn::start(connection, Some(handler));
}

/// `quorate-boot/1`: LockOpen, and the status that takes no token. Nothing else is heard here.
struct BootDoor {
    node: Arc<Node>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Handler for BootDoor {
    fn handle(&self, conn: &Conn, body: Bytes) -> Reply {
        let node = Arc::clone(&self.node);
        if body.as_ref() == wire::PUBLIC_STATUS && admits(node.phase(), RequestClass::PublicStatus) {
            return Reply::Inline(wire::encode(&status::public(&node)));
        }
        if !admits(node.phase(), RequestClass::LockOpen) {
            return Reply::Inline(Vec::new());
        }
        let conn = conn.clone();
        Reply::later(async move { unlock::give_piece(&node, &conn, &body).await })
    }

    fn limits(&self) -> Limits {
        GUEST
    }
}

/// `quorate-join/1`: one founder proves one invitation.
struct JoinDoor {
    node: Arc<Node>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Handler for JoinDoor {
    fn handle(&self, conn: &Conn, body: Bytes) -> Reply {
        if !admits(self.node.phase(), RequestClass::Join) {
            return Reply::Inline(Vec::new());
        }
        let (node, conn) = (Arc::clone(&self.node), conn.clone());
        Reply::later(async move { founding::take_proof(&node, &conn, &body).await })
    }

    fn limits(&self) -> Limits {
        GUEST
    }
}

/// `quorate-client/1`: the token is in every request.
struct ClientDoor {
    node: Arc<Node>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Handler for ClientDoor {
    fn handle(&self, conn: &Conn, body: Bytes) -> Reply {
        let received_ms = boot_ms();
        let envelope: Envelope = match wire::decode(&body) {
            Ok(envelope) => envelope,
            Err(error) => return Reply::Inline(wire::encode(&Answered::always(Err(error)))),
        };
        let (node, remote) = (Arc::clone(&self.node), conn.peer().remote);
        let mut answer =
            Box::pin(async move { wire::encode(&service::client::answer(&node, remote, envelope, received_ms).await) });
        // What needs no waiting is answered by the task that read the frame. A later poll brings the real waker.
        match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(bytes) => Reply::Inline(bytes),
            Poll::Pending => Reply::Later(answer),
        }
    }

    fn limits(&self) -> Limits {
        GUEST
    }
}

/// `quorate-peer/1`, both for sessions that were dialled and for those accepted.
///
/// Who is on the other side follows from its TLS key alone, never from what it says.
pub struct PeerDoor {
    node: Arc<Node>,
    peer: NodeId,
    admitted: Arc<AtomicBool>,
}

impl PeerDoor {
    /// The handler of a session that this node dialled: the identity was pinned when dialling. It hears requests once
    /// `admitted` is set, which the dialler does when the other side's hello is in order.
    pub fn dialled(node: &Arc<Node>, peer: NodeId, admitted: &Arc<AtomicBool>) -> Arc<dyn Handler> {
        Arc::new(Self { node: Arc::clone(node), peer, admitted: Arc::clone(admitted) })
    }

    /// The handler of a session that `peer` dialled: nothing is heard before its hello is admitted.
    fn accepted(node: &Arc<Node>, peer: NodeId) -> Arc<dyn Handler> {
        Arc::new(Self { node: Arc::clone(node), peer, admitted: Arc::default() })
    }
}

impl Handler for PeerDoor {
    fn handle(&self, conn: &Conn, body: Bytes) -> Reply {
        let admitted = peer::decode::<PeerRequest>(&body).and_then(|request| {
            let is_greeted = self.admitted.load(Ordering::Acquire);
            let pace = member::admit(&self.node, self.peer, conn, is_greeted, &request)?;
            Ok((request, pace))
        });
        let (request, pace) = match admitted {
            Ok(admitted) => admitted,
            Err(refusal) => return Reply::Inline(peer::encode(&PeerReply::Refused(refusal))),
        };
        let (node, conn, from, greeted) = (Arc::clone(&self.node), conn.clone(), self.peer, Arc::clone(&self.admitted));
        let here = Arc::clone(&node);
        let answer = async move {
            let asked = Asked { from, conn: &conn, greeted: &greeted, body: &body };
            peer::encode(&member::answer(&node, asked, request).await)
        };
        match pace {
            Pace::AtOnce => {
                let mut answer = Box::pin(answer);
                match answer.as_mut().now_or_never() {
                    Some(reply) => Reply::Inline(reply),
                    None => Reply::Later(answer),
                }
            }
            Pace::Soon => Reply::later(answer),
            Pace::Background => Reply::later(async move { here.background.run(answer).await }),
        }
    }

    fn bulk(&self, _conn: &Conn, bulk: BulkReceiver) -> BoxFuture<'static, ()> {
        let (node, from, admitted) = (Arc::clone(&self.node), self.peer, self.admitted.load(Ordering::Acquire));
        let denied = node.roster().op_key_of(from).is_none();
        Box::pin(async move {
            if admitted && !denied {
                crate::peers::raft_link::receive_snapshot(&node, from, bulk).await;
            }
        })
    }
}

/// `quorate-peer/1` for those that are denied or were revoked: whatever they ask, they are told so.
struct ClosedDoor {
    refusal: Vec<u8>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Handler for ClosedDoor {
    fn handle(&self, _conn: &Conn, _body: Bytes) -> Reply {
        Reply::Inline(self.refusal.clone())
    }

    fn limits(&self) -> Limits {
        GUEST
    }
}
