//! Op sessions: one authenticated connection per pair of nodes. Both sides ask and answer on it.
//!
//! Either side may dial. If there are two sessions of the same two processes, the one dialled by the lower node id stays. A
//! session with another boot nonce comes from another process of that node. It replaces the old session only if that one does
//! not answer two pings. Otherwise it is refused, and an alarm is raised.
//!
//! Each side reports in its hello, and then every second, what is flushed to its disk. If the hello of another process reports
//! less than was reported before, the disk went back in time: it may be an older copy. The hello is refused before Raft sees any
//! message. A truncated log does not count as going back: truncations are counted, in the same write, and the count is compared
//! first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quorate_client::VERSION;
use quorate_client::conn::{Conn, Lane, close};
use quorate_raft::state::State;
use quorate_shares::ids::NodeId;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use crate::base::phase::Phase;
use crate::messages::peer::{self, Hello, PeerRefusal, PeerReply, PeerRequest};
use crate::node::Node;
use crate::node::enrolment::Enrolment;
use crate::node::peers::sessions::Session;
use crate::peers::dial::{MemberProtocol, dial_member};
use crate::peers::revocation;

/// How long one attempt to dial may take.
const DIAL: Duration = Duration::from_secs(2);
/// Pauses between attempts to dial grow from the first value to the second.
const REDIAL: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// How often a member reports what is flushed to its disk.
const FLUSHED: Duration = Duration::from_secs(1);

/// Checks the hello of a peer on a connection that the peer opened, and registers the session. If that is not possible although
/// the peer did nothing wrong, it closes the connection with the reason, and returns `false`. A second living process of the peer,
/// or a disk that went back in time, raises an alarm.
///
/// # Errors
/// [`PeerRefusal`].
pub async fn accept_hello(node: &Node, enrolment: &Enrolment, conn: &Conn, hello: &Hello) -> Result<bool, PeerRefusal> {
    if let Some(refusal) = enrolment.roster.turned_away(&conn.peer().key) {
        return Err(refusal);
    }
    let (me, sessions) = (enrolment.identity.id(), &enrolment.peers.sessions);
    let known = enrolment.roster.current().op_key_of(hello.node);
    if known != Some(conn.peer().key) || hello.node == me {
        return Err(PeerRefusal::NotAMember);
    }
    if let Some(old) = sessions.with(hello.node)
        && old.boot_nonce != hello.boot_nonce
        && old.is_alive().await
    {
        let message = format!("{} asks for a second session while it lives", node.name_of(hello.node));
        node.alarm("duplicate_session", hello.node, format!("{message}: is a copy of its disk running?"));
        return Err(PeerRefusal::DuplicateSession);
    }
    if level_needed(node) > hello.level {
        return Err(PeerRefusal::Unsupported(VERSION.to_owned()));
    }
    note_hello(node, enrolment, hello)?;
    let session = Session::new(enrolment.identity.cluster(), hello, conn.clone());
    let registered = sessions.register(me, &session);
    if let Err(reason) = registered {
        conn.close(close::REPLACED, reason);
    }
    // The peer may have been denied since its key was compared with the roster.
    enrolment.close_sessions_with_strangers();
    Ok(registered.is_ok())
}

/// Reports to every peer each second what is flushed to this node's disk. Never returns.
pub async fn tell_flushed(node: Arc<Node>) {
    loop {
        let pause = sleep(FLUSHED);
        let Some(flushed) = node.hello().flushed else {
            pause.await;
            continue;
        };
        let (peers, request) = (node.peers(), PeerRequest::Flushed(flushed));
        let told = peers.sessions.reached().into_iter().map(|peer| {
            let (sessions, request) = (&peers.sessions, &request);
            async move { sessions.ask(peer, Lane::Ordinary, request, FLUSHED).await }
        });
        // A peer that misses this report gets the next one. The answers are awaited within the pause, so a peer that does not answer
        // delays no report to the others.
        drop(futures::future::join(pause, futures::future::join_all(told)).await);
    }
}

/// Starts a task for every trusted peer of the roster that keeps a session open, unless the peer has one already.
pub fn keep_all(node: &Arc<Node>) {
    let enrolment = node.enrolment();
    for member in enrolment.roster.current().members.iter().filter(|member| !member.standing.denied) {
        if member.node != enrolment.identity.id() && enrolment.peers.keepers.lock().insert(member.node) {
            tokio::spawn(keep(Arc::clone(node), Arc::clone(&enrolment), member.node));
        }
    }
}

/// Whether a session with `peer` is still wanted. If not, its task ends, and [`keep_all`] may start another one later.
fn is_wanted(node: &Node, enrolment: &Enrolment, peer: NodeId) -> bool {
    let mut keepers = enrolment.peers.keepers.lock();
    let over = node.phase() == Phase::Revoked || enrolment.peers.sessions.is_ended();
    let wanted = !over && enrolment.roster.current().reach(peer).is_some();
    if !wanted {
        keepers.remove(&peer);
    }
    wanted
}

/// Keeps a session with `peer` open: dials whenever there is none, as long as it is wanted.
async fn keep(node: Arc<Node>, enrolment: Arc<Enrolment>, peer: NodeId) {
    let mut pause = REDIAL.0;
    while is_wanted(&node, &enrolment, peer) {
        if let Some(session) = enrolment.peers.sessions.with(peer) {
            pause = REDIAL.0;
            let closed = session.conn.closed().await;
            info!(%peer, reason = %closed.reason, "session closed");
            enrolment.peers.sessions.forget(&session);
        }
        if let Err(reason) = open(&node, &enrolment, peer).await {
            debug!(%peer, %reason, "no session");
            sleep(pause).await;
            pause = (pause * 2).min(REDIAL.1);
        }
    }
}

/// Dials `peer` and says hello.
async fn open(node: &Arc<Node>, enrolment: &Arc<Enrolment>, peer: NodeId) -> Result<(), String> {
    let connection = dial_member(node, enrolment, peer, MemberProtocol::Peer, DIAL).await?;
    let greeted = Arc::new(AtomicBool::new(false));
    let conn = Conn::start(connection, Some((node.peer_handler)(node, enrolment, peer, &greeted)));
    let registered = greet(node, enrolment, peer, &conn, &greeted).await;
    if let Err(reason) = &registered {
        // For the other side an open connection may already be a session.
        conn.close(close::DONE, reason);
    }
    registered
}

/// Says hello on a connection that this node dialled, and registers the session if the answer is valid.
async fn greet(
    node: &Arc<Node>,
    enrolment: &Enrolment,
    peer: NodeId,
    conn: &Conn,
    greeted: &AtomicBool,
) -> Result<(), String> {
    let hello = PeerRequest::Hello(node.hello());
    let reply = conn.call(Lane::Urgent, &peer::encode(&hello), DIAL).await.map_err(|error| error.to_string())?;
    let theirs = match peer::decode_reply(&reply) {
        PeerReply::Hello(theirs) if theirs.node == peer => theirs,
        PeerReply::Refused(refusal) => {
            note_refusal(node, peer, &refusal);
            if let PeerRefusal::Revoked(place) = refusal {
                revocation::note_attestation(enrolment, peer, place.into());
            }
            return Err(refusal.to_string());
        }
        _ => return Err("malformed hello".to_owned()),
    };
    let needed = level_needed(node);
    if needed > theirs.level {
        return Err(format!("it knows the feature level {}, and the cluster needs {needed}: update it", theirs.level));
    }
    note_hello(node, enrolment, &theirs).map_err(|refusal| refusal.to_string())?;
    let session = Session::new(enrolment.identity.cluster(), &theirs, conn.clone());
    enrolment.peers.sessions.register(enrolment.identity.id(), &session)?;
    // The peer may have been denied since its key was looked up.
    enrolment.close_sessions_with_strangers();
    greeted.store(true, Ordering::Release);
    info!(%peer, "session open");
    Ok(())
}

/// Logs that a peer refused this node, and raises an alarm if the reason needs an operator.
fn note_refusal(node: &Node, peer: NodeId, refusal: &PeerRefusal) {
    match node.phase() {
        // Founders refuse each other until all know all.
        Phase::Joining => debug!(%peer, %refusal, "refused by a peer"),
        _ => warn!(%peer, %refusal, "refused by a peer"),
    }
    if matches!(refusal, PeerRefusal::DuplicateSession | PeerRefusal::StorageWentBack) {
        let message = format!("{} refuses this node: {refusal}", node.name_of(peer));
        node.alarm("refused_by_peer", node.id(), message);
    }
}

/// The feature level of the cluster. A node that does not know it would stop at the first entry that it cannot read.
fn level_needed(node: &Node) -> u16 {
    node.replica().map_or(0, |replica| replica.read(State::level))
}

/// Compares what a hello reports as flushed with earlier reports. In the phase Joining this is not checked: a founder that
/// restarts reports nothing until its log is open, and there is nothing yet that could go back.
fn note_hello(node: &Node, enrolment: &Enrolment, hello: &Hello) -> Result<(), PeerRefusal> {
    if node.phase() == Phase::Joining {
        return Ok(());
    }
    enrolment.peers.sessions.note_hello(hello).inspect_err(|_| {
        let message = format!("the storage of {} went back in time", node.name_of(hello.node));
        node.alarm("storage_went_back", hello.node, message);
    })
}
