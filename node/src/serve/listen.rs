//! The one door from the network: a QUIC endpoint, four protocols, and who may speak which.
//!
//! TLS accepts any raw Ed25519 key whose signature holds; right after the handshake the key is held against the protocol
//! and the roster. A locked node offers only `quorate-boot/1`, so that no client hands its token to a boot key, which lies
//! in plain on the disk.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use quorate_client::conn::{BulkReceiver, Conn, Handler, Limits, Reply, close};
use quorate_client::identity::{self, DialError, Identity, Protocol, PublicKey};
use quorate_client::wire;
use quorate_shares::ids::NodeId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{debug, warn};

use crate::base::phase::{Door, Phase, admits};
use crate::cluster::status;
use crate::join::found;
use crate::lock::unlock;
use crate::node::Node;
use crate::peers::peer::{self, PeerReply, PeerRequest, Refusal};
use crate::peers::session;
use crate::serve::answer;
use crate::service::api;

/// Handshakes under way at most; beyond, new connections are refused until some finish.
const HANDSHAKES_MAX: usize = 256;
/// Open connections of others than members, clients above all; the next one is told so and closed, and a client asks another
/// node. Members always find a place. An idle connection costs about 40 KiB.
const GUESTS_MAX: usize = 10_240;
/// What is put up with on such a connection before it is closed with a reason. The largest request, a message of 64 KiB
/// as text, takes a third of such a frame.
const GUEST: Limits = Limits { frame_bytes: 256 << 10, patience: Some(Duration::from_secs(30)) };

/// Protocols that a node offers in a phase.
fn offered(phase: Phase) -> &'static [Protocol] {
    match phase {
        Phase::Uninitialised | Phase::Revoked => &[],
        Phase::Locked => &[Protocol::Boot],
        Phase::Joining => &[Protocol::Boot, Protocol::Join, Protocol::Peer],
        Phase::Open | Phase::Sealed => &[Protocol::Boot, Protocol::Peer, Protocol::Client],
        Phase::Serving => &Protocol::ALL,
    }
}

/// Offers what the present phase allows. Called whenever the phase or the identities change.
pub fn offer(node: &Node) {
    let config = node.boot_identity().map(|boot| {
        let op = node.op_identity();
        identity::server_config(&boot, op.as_ref(), offered(node.phase()))
    });
    node.endpoint.set_server_config(config);
}

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
            None => match node.turned_away(&key) {
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
        if body.as_ref() == wire::PUBLIC_STATUS && admits(node.phase(), Door::PublicStatus) {
            return Reply::Inline(wire::encode(&status::public(&node)));
        }
        if !admits(node.phase(), Door::LockOpen) {
            return Reply::Inline(Vec::new());
        }
        let conn = conn.clone();
        Reply::later(async move { unlock::answer(&node, &conn, &body).await })
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
        if !admits(self.node.phase(), Door::Join) {
            return Reply::Inline(Vec::new());
        }
        let (node, conn) = (Arc::clone(&self.node), conn.clone());
        Reply::later(async move { found::answer_join(&node, &conn, &body).await })
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
    fn handle(&self, _conn: &Conn, body: Bytes) -> Reply {
        api::handle(&self.node, &body)
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
        let refuse = |refusal| Reply::Inline(peer::encode(&PeerReply::Refused(refusal)));
        let request = match peer::decode::<PeerRequest>(&body) {
            Ok(request) => request,
            Err(refusal) => return refuse(refusal),
        };
        // Denied since the session began. Requests that are being answered lose their answers with the session.
        if let Some(refusal) = self.node.turned_away(&conn.peer().key) {
            return refuse(refusal);
        }
        // Whether this session is alive does not depend on the phase: a node that rebuilds its state has sessions, too, and
        // no copy of it may take their place.
        // And any unlocked node says what its roster is, whether its Raft runs or not.
        let always = matches!(request, PeerRequest::Ping | PeerRequest::Roster);
        if !admits(self.node.phase(), Door::Peer) && !always {
            return refuse(Refusal::Phase(self.node.phase().to_string()));
        }
        let (node, conn, from) = (Arc::clone(&self.node), conn.clone(), self.peer);
        match request {
            PeerRequest::Ping => Reply::Inline(peer::encode(&PeerReply::Pong)),
            PeerRequest::Hello(hello) if hello.node == from => {
                let admitted = Arc::clone(&self.admitted);
                Reply::later(async move {
                    let reply = match session::admit(&node, &conn, &hello).await {
                        Ok(_) => {
                            admitted.store(true, Ordering::Release);
                            PeerReply::Hello(node.hello())
                        }
                        Err(refusal) => PeerReply::Refused(refusal),
                    };
                    peer::encode(&reply)
                })
            }
            PeerRequest::Hello(_) => refuse(Refusal::NotAMember),
            _ if !self.admitted.load(Ordering::Acquire) => refuse(Refusal::NoHello),
            request if request.may_wait() => {
                let here = Arc::clone(&node);
                let answer = async move { peer::encode(&answer::peer(&node, from, &conn, request, &body).await) };
                Reply::later(async move { here.background.run(answer).await })
            }
            request => {
                Reply::later(async move { peer::encode(&answer::peer(&node, from, &conn, request, &body).await) })
            }
        }
    }

    fn bulk(&self, _conn: &Conn, bulk: BulkReceiver) -> BoxFuture<'static, ()> {
        let (node, from, admitted) = (Arc::clone(&self.node), self.peer, self.admitted.load(Ordering::Acquire));
        let denied = node.roster().op_key_of(from).is_none();
        Box::pin(async move {
            if admitted && !denied {
                crate::peers::link::receive_snapshot(&node, from, bulk).await;
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

/// A connection that is closed when whoever opened it is done with it, however that ends.
pub struct Closing(pub Conn);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close(close::DONE, "done");
    }
}

/// Dials the first of `addresses` that answers, pinned to `key`.
///
/// # Errors
/// Why each address failed, in words.
pub async fn dial(
    node: &Node,
    addresses: &[String],
    me: &Identity,
    key: PublicKey,
    protocol: Protocol,
    deadline: Duration,
) -> Result<quinn::Connection, String> {
    let mut failures = Vec::new();
    for address in addresses {
        let resolved: Vec<SocketAddr> = match tokio::net::lookup_host(address).await {
            Ok(resolved) => resolved.collect(),
            Err(error) => {
                failures.push(format!("{address}: {error}"));
                continue;
            }
        };
        for target in resolved {
            match identity::dial(&node.endpoint, target, me, key, protocol, deadline).await {
                Ok(connection) => return Ok(connection),
                Err(DialError::WrongIdentity { presented }) => {
                    failures.push(format!("{address}: presents the identity {presented}, expected {key}"));
                }
                Err(error) => failures.push(format!("{address}: {error}")),
            }
        }
    }
    Err(if failures.is_empty() { "no address".to_owned() } else { failures.join("; ") })
}
