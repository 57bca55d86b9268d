//! What members ask each other inside an op session: the table of requests, and what is done for each.
//!
//! Who asks follows from the op key of the session alone, never from the message.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use quorate_client::conn::Conn;
use quorate_raft::Replica;
use quorate_shares::ids::NodeId;
use serde_bytes::ByteBuf;
use tracing::debug;

use crate::base::phase::{RequestClass, answers};
use crate::cluster::{status, verify};
use crate::join::registry;
use crate::keys::reconstruct;
use crate::lease::renewal;
use crate::lock::held;
use crate::messages::caller::Caller;
use crate::messages::peer::{Forwarded, PeerRefusal, PeerReply, PeerRequest};
use crate::node::Node;
use crate::node::enrolment::Enrolment;
use crate::peers::{propose, session};
use crate::service::forwarded;

/// One row of the table: what a request needs, and how soon it is answered.
pub struct PeerRow {
    pub name: &'static str,
    /// Whether it is answered before the hello of its session is in order.
    pub before_hello: bool,
    /// Whether a node answers it in every phase in which it has a session at all.
    pub in_any_phase: bool,
    pub pace: Pace,
}

/// How soon a request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// By the task that reads it: nothing has to wait.
    AtOnce,
    /// By a task of its own.
    Soon,
    /// By the thread of low priority: only a leader that reshares waits for it.
    Background,
}

/// The row of a request.
pub fn row(request: &PeerRequest) -> PeerRow {
    let usual = |name| PeerRow { name, before_hello: false, in_any_phase: false, pace: Pace::Soon };
    match request {
        PeerRequest::Hello(_) => PeerRow { before_hello: true, ..usual("hello") },
        // Whether this session is alive does not depend on the phase: a node that rebuilds its state has sessions, too, and
        // no copy of it may take their place.
        PeerRequest::Ping => PeerRow { name: "ping", before_hello: true, in_any_phase: true, pace: Pace::AtOnce },
        PeerRequest::Raft(_) => usual("raft"),
        PeerRequest::Lease => usual("lease"),
        PeerRequest::Shares(request) if request.versions.len() > 1 => {
            PeerRow { pace: Pace::Background, ..usual("shares.many") }
        }
        PeerRequest::Shares(_) => usual("shares"),
        PeerRequest::Verify(_) => usual("shares.verify"),
        PeerRequest::AckEpoch { .. } => PeerRow { pace: Pace::Background, ..usual("epoch.acknowledge") },
        PeerRequest::LockPrepare(_) => usual("lock.prepare"),
        PeerRequest::LockCommit(_) => usual("lock.commit"),
        PeerRequest::LockErased(_) => usual("lock.erased"),
        PeerRequest::FoundingTerms => usual("founding.terms"),
        PeerRequest::FoundingLocked { .. } => usual("founding.locked"),
        PeerRequest::Propose(_) => usual("propose"),
        PeerRequest::Forwarded(_) => usual("forwarded"),
        PeerRequest::Report => usual("report"),
        PeerRequest::Flushed(_) => usual("flushed"),
        // Any unlocked node says what its roster is, whether its Raft runs or not.
        PeerRequest::Roster => PeerRow { in_any_phase: true, ..usual("roster") },
    }
}

/// Whether a request is answered, and how soon. `from` is the member whose op key `conn` proved; `is_greeted` says whether the
/// hello of the session is in order.
///
/// # Errors
/// Why it is not answered.
pub fn check(
    node: &Node,
    enrolment: &Enrolment,
    from: NodeId,
    conn: &Conn,
    is_greeted: bool,
    request: &PeerRequest,
) -> Result<Pace, PeerRefusal> {
    // `from` was a member of another cluster: the peer kept its connection, and has not said hello until now.
    if enrolment.peers.sessions.is_ended() {
        return Err(PeerRefusal::NotAMember);
    }
    // The member may have been denied since the session began. Requests that are being answered lose their answers with the
    // session.
    if let Some(refusal) = enrolment.roster.turned_away(&conn.peer().key) {
        return Err(refusal);
    }
    let row = row(request);
    if !row.in_any_phase && !answers(node.phase(), RequestClass::Peer) {
        return Err(PeerRefusal::Phase(node.phase()));
    }
    if !row.before_hello && !is_greeted {
        return Err(PeerRefusal::NoHello);
    }
    if matches!(request, PeerRequest::Hello(hello) if hello.node != from) {
        return Err(PeerRefusal::NotAMember);
    }
    Ok(row.pace)
}

/// One request that [`check`] let in.
pub struct Asked<'a> {
    pub from: NodeId,
    /// The enrolment in which `from` is a member.
    pub enrolment: &'a Arc<Enrolment>,
    pub conn: &'a Conn,
    /// Set when the hello of the session is in order.
    pub greeted: &'a AtomicBool,
    /// The request as it was received.
    pub body: &'a [u8],
}

impl Asked<'_> {
    /// The member, as a caller.
    fn caller(&self) -> Caller {
        let peer = self.conn.peer();
        Caller::member(self.from, peer.key, peer.remote)
    }
}

/// Answers a request that [`check`] let in.
pub async fn answer(node: &Arc<Node>, asked: Asked<'_>, request: PeerRequest) -> PeerReply {
    let name = row(&request).name;
    run(node, &asked, request).await.unwrap_or_else(|refusal| {
        debug!(caller = %asked.caller(), request = name, %refusal, "refused");
        PeerReply::Refused(refusal)
    })
}

async fn run(node: &Arc<Node>, asked: &Asked<'_>, request: PeerRequest) -> Result<PeerReply, PeerRefusal> {
    let Asked { from, enrolment, conn, greeted, body } = *asked;
    match request {
        PeerRequest::Hello(hello) => {
            if session::accept_hello(node, enrolment, conn, &hello).await? {
                greeted.store(true, Ordering::Release);
            }
            Ok(PeerReply::Hello(node.hello()))
        }
        PeerRequest::Ping => Ok(PeerReply::Pong),
        PeerRequest::Raft(message) => {
            let reply = replica(node)?.serve(from, &message).await;
            reply.map(|reply| PeerReply::Raft(ByteBuf::from(reply))).map_err(|error| {
                debug!(%from, %error, "Raft message refused");
                PeerRefusal::Storage
            })
        }
        PeerRequest::Lease => Ok(renewal::grant(&replica(node)?).await),
        PeerRequest::Shares(request) => {
            Ok(reconstruct::give_shares(node, &replica(node)?, (from, conn), &request, body))
        }
        PeerRequest::Verify(request) => {
            verify::check_shares(node, &replica(node)?, &request).await.map(PeerReply::Verified)
        }
        PeerRequest::AckEpoch { epoch, index } => {
            let reshared = verify::check_epoch(node, &replica(node)?, epoch, index).await?;
            Ok(PeerReply::EpochAck { reshared })
        }
        PeerRequest::LockPrepare(durable) => held::prepare(node, enrolment, from, durable).await,
        PeerRequest::LockCommit(durable) => {
            held::commit(node, enrolment, from, durable).await.map(|()| PeerReply::Done)
        }
        PeerRequest::LockErased(state) => {
            enrolment.locks.old_copies.lock().erased(from, state.key_number);
            Ok(PeerReply::Done)
        }
        PeerRequest::FoundingTerms => {
            let founding =
                enrolment.with_vault(|vault| registry::view(vault).map(|(_, first)| first.threshold)).flatten();
            let active = || node.replica()?.read(|state| state.active().map(|epoch| epoch.threshold));
            let threshold = founding.or_else(active);
            threshold.map(|threshold| PeerReply::FoundingTerms { threshold }).ok_or(PeerRefusal::NotFounding)
        }
        PeerRequest::FoundingLocked { attempt } => {
            let current = enrolment.with_vault(|vault| registry::view(vault).map(|(attempt, _)| attempt)).flatten();
            if current != Some(attempt) {
                return Err(PeerRefusal::NotFounding);
            }
            enrolment.joining.note_locked(from, attempt);
            Ok(PeerReply::Done)
        }
        PeerRequest::Propose(command) => propose::propose_for(node, &replica(node)?, from, *command).await,
        PeerRequest::Forwarded(forwarded) => {
            let Forwarded { caller, request } = *forwarded;
            Ok(PeerReply::Forwarded(forwarded::answer(node, from, &caller.forwarded_by(from), request).await?))
        }
        PeerRequest::Report => Ok(PeerReply::Report(status::report(node))),
        PeerRequest::Flushed(flushed) => {
            enrolment.peers.sessions.note_report(from, flushed);
            Ok(PeerReply::Done)
        }
        PeerRequest::Roster => {
            let roster = enrolment.with_vault(|vault| vault.roster.encode());
            let roster = roster.and_then(Result::ok).ok_or(PeerRefusal::Storage)?;
            Ok(PeerReply::Roster(ByteBuf::from(roster)))
        }
    }
}

fn replica(node: &Node) -> Result<Replica, PeerRefusal> {
    node.replica().ok_or_else(|| PeerRefusal::Phase(node.phase()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random;
    use crate::messages::caller::Door;
    use crate::messages::peer::{ForwardedRequest, Hello};
    use crate::node::testing::{dialled_by, member, node_of};
    use crate::vault::Vault;
    use quorate_client::identity::{Identity, Protocol};
    use quorate_raft::level::LEVEL;
    use quorate_shares::ids::ClusterId;
    use quorate_shares::secret::Secret;
    use quorate_shares::signature::PublicKey;

    /// A node joins one cluster and then, by another invitation, the next. A member of the first one kept its connection, and says
    /// hello only now. Mutated: without the look at the end of the enrolment it seals the node of the other cluster.
    #[tokio::test]
    async fn a_peer_of_the_last_cluster_orders_nothing_in_the_next() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let op = Identity::random();
        let mut vault = Vault::new(ClusterId([1; 16]), Secret::random(&mut random::system()));
        vault.identity.node = Some(NodeId(1));
        vault.roster.members = vec![member(1), member(2), member(3)];
        vault.roster.members[1].op_pk = op.public().0;
        let node = node_of(dir.path(), vault);
        node.enter(crate::base::phase::Phase::Open);
        let last = node.enrolment();
        let (conn, _theirs) = dialled_by(&op, Protocol::Peer, None).await;
        let (greeted, from) = (AtomicBool::new(false), NodeId(2));
        let hello = || PeerRequest::Hello(Hello { node: from, boot_nonce: [8; 32], flushed: None, level: LEVEL });
        assert!(check(&node, &last, from, &conn, false, &hello()).is_ok(), "the control: it is a member of the first");

        let next = |seed, _: Option<&Vault>| Ok::<_, ()>(Some(Vault::new(ClusterId([9; 16]), seed)));
        assert_eq!(node.replace_vault(next).expect("durable"), Ok(true));
        assert!(matches!(check(&node, &last, from, &conn, false, &hello()), Err(PeerRefusal::NotAMember)));
        // The hello was checked a moment before the first enrolment ended.
        let asked = Asked { from, enrolment: &last, conn: &conn, greeted: &greeted, body: b"" };
        let _ = answer(&node, asked, hello()).await;
        assert!(!greeted.load(Ordering::Acquire) && !conn.is_open(), "it is not greeted, and its connection ends");
        let caller = Caller::operator(PublicKey([7; 32]), Door::Client, "127.0.0.1:4711".parse().expect("an address"));
        let seal = ForwardedRequest::Seal { sealed: true };
        let seal = PeerRequest::Forwarded(Box::new(Forwarded { caller, request: seal }));
        assert!(matches!(check(&node, &last, from, &conn, true, &seal), Err(PeerRefusal::NotAMember)));
    }
}
