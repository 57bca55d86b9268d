//! What members ask each other inside an op session: the table of requests, and what is done for each.
//!
//! Who asks follows from the op key of the session alone, never from the message.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use quorate_client::conn::Conn;
use quorate_client::error::Code;
use quorate_client::wire::WireError;
use quorate_raft::Replica;
use quorate_raft::command::Change;
use quorate_shares::ids::NodeId;
use serde_bytes::ByteBuf;
use sha2::{Digest, Sha256};
use tracing::debug;

use crate::base::phase::{RequestClass, answers};
use crate::base::random;
use crate::cluster::{alarms, leader, orders, status};
use crate::join::registry;
use crate::keys::reconstruct;
use crate::lease::{renewal, seal};
use crate::lock::absence;
use crate::messages::caller::{Caller, Principal};
use crate::messages::peer::{
    Forwarded, ForwardedReply, ForwardedRequest, KeyChange, LockState, Order, PeerRefusal, PeerReply, PeerRequest,
};
use crate::node::Node;
use crate::node::enrolment::Enrolment;
use crate::peers::{propose, session};
use crate::service::client::Resource;
use crate::service::{audit, keys};
use crate::vault::lock_keys;

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
    // The member may have been denied since the session began. Requests that are being answered lose their answers with the
    // session.
    if let Some(refusal) = enrolment.roster.turned_away(&conn.peer().key) {
        return Err(refusal);
    }
    let row = row(request);
    if !row.in_any_phase && !answers(node.phase(), RequestClass::Peer) {
        return Err(PeerRefusal::Phase(node.phase().to_string()));
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
        Caller::member(self.from, &Sha256::digest(peer.key.0).into(), peer.remote)
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
            session::accept_hello(node, enrolment, conn, &hello).await?;
            greeted.store(true, Ordering::Release);
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
            leader::check_shares(node, &replica(node)?, &request).await.map(PeerReply::Verified)
        }
        PeerRequest::AckEpoch { epoch, index } => {
            let reshared = leader::check_epoch(node, &replica(node)?, epoch, index).await?;
            Ok(PeerReply::EpochAck { reshared })
        }
        PeerRequest::LockPrepare(durable) => prepare_lock(node, enrolment, from, durable).await,
        PeerRequest::LockCommit(durable) => {
            let commit =
                node.update_vault_of(Arc::clone(enrolment), move |vault| lock_keys::commit(vault, from, durable));
            commit.await.map(|()| PeerReply::Done).map_err(|_| PeerRefusal::Storage)
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
            Ok(PeerReply::Forwarded(carry_out(node, from, &caller.forwarded_by(from), request).await?))
        }
        PeerRequest::Report => Ok(PeerReply::Report(status::report(node))),
        PeerRequest::Flushed(flushed) => {
            enrolment.peers.sessions.note_reported(from, flushed);
            Ok(PeerReply::Done)
        }
        PeerRequest::Roster => {
            let roster = enrolment.with_vault(|vault| vault.roster.encode());
            let roster = roster.and_then(Result::ok).ok_or(PeerRefusal::Storage)?;
            Ok(PeerReply::Roster(ByteBuf::from(roster)))
        }
    }
}

/// The name of a request that another member forwards, as it stands in the table of clients, and what it is about.
fn forwarded_row(request: &ForwardedRequest) -> (&'static str, Resource<'_>) {
    match request {
        ForwardedRequest::Change(KeyChange::Create { name, .. }) => ("key.create", Resource::Key(name)),
        ForwardedRequest::Change(KeyChange::Rotate { name, .. }) => ("key.rotate", Resource::Key(name)),
        ForwardedRequest::Order(Order::Remove { name, .. }) => ("node.remove", Resource::Node(name)),
        ForwardedRequest::Order(Order::Revoke { names, .. }) => ("node.revoke", Resource::NodesNamed(names)),
        ForwardedRequest::Progress { operation } => ("node.progress", Resource::Operation(*operation)),
        ForwardedRequest::Invite(invite) => {
            ("node.invite", invite.name.as_ref().map_or(Resource::Nodes, Resource::Node))
        }
        ForwardedRequest::Replace { gone, .. } => ("node.replace", Resource::Member(*gone)),
        ForwardedRequest::Seal { sealed: true } => ("node.seal", Resource::ThisNode),
        ForwardedRequest::Seal { sealed: false } => ("node.unseal", Resource::ThisNode),
        ForwardedRequest::Admit { node } => ("node.admit", Resource::Member(*node)),
        ForwardedRequest::Disarm { .. } => ("alarm.disarm", Resource::Alarms),
    }
}

/// Does for a client what another member forwards, and writes the audit line of this node.
///
/// # Errors
/// If this node cannot: it does not lead, or has no replica; or if the caller is not a client.
async fn carry_out(
    node: &Arc<Node>,
    from: NodeId,
    caller: &Caller,
    request: ForwardedRequest,
) -> Result<Result<ForwardedReply, WireError>, PeerRefusal> {
    match caller.who {
        Principal::RootToken => {}
        // Members and owners of machines ask for themselves.
        Principal::Member(_) | Principal::MachineOwner => return Err(PeerRefusal::Malformed),
    }
    let (name, on) = forwarded_row(&request);
    let line = audit::Line::of(caller, name, &on, node.replica().as_ref());
    let done = |done: Result<(), WireError>| done.map(|()| ForwardedReply::Done);
    let ended = match request {
        ForwardedRequest::Change(change) => {
            let made = keys::made_here(node, &led(node)?, change).await;
            made.map(|(uid, version)| ForwardedReply::Made { uid, version })
        }
        ForwardedRequest::Order(order) => {
            let begun = orders::begin(node, &led(node)?, order, caller).await;
            begun.map(|operation| ForwardedReply::Begun { operation })
        }
        ForwardedRequest::Progress { operation } => {
            let progress = orders::progress(node, &led(node)?, operation).await;
            progress.map(|progress| ForwardedReply::Progress(Box::new(progress)))
        }
        ForwardedRequest::Invite(invite) => done(note(node, &led(node)?, from, Change::Invite(invite)).await),
        ForwardedRequest::Replace { invitation, gone } => {
            done(note(node, &led(node)?, from, Change::Replace { invitation, gone }).await)
        }
        ForwardedRequest::Seal { sealed } => done(seal::set(node, sealed, caller).await),
        ForwardedRequest::Admit { node: peer } => done(absence::admit(node, peer, caller).await),
        ForwardedRequest::Disarm { codes } => done(alarms::disarm(node, &codes).await),
    };
    line.write(&ended);
    Ok(ended)
}

/// Notes an invitation, or what it replaces, for a member that holds a seat: only such a member serves clients.
async fn note(node: &Node, replica: &Replica, from: NodeId, change: Change) -> Result<(), WireError> {
    if replica.read(|state| renewal::is_seated(state, from)) {
        return orders::note(node, replica, change).await;
    }
    Err(WireError::new(Code::Denied, format!("{} holds no seat in the active epoch", node.name_of(from))))
}

fn replica(node: &Node) -> Result<Replica, PeerRefusal> {
    node.replica().ok_or_else(|| PeerRefusal::Phase(node.phase().to_string()))
}

/// The replica, if this node leads.
fn led(node: &Node) -> Result<Replica, PeerRefusal> {
    let replica = replica(node)?;
    let leadership = *replica.leadership().borrow();
    if leadership.am_leader { Ok(replica) } else { Err(PeerRefusal::NotLeader(leadership.leader)) }
}

/// The key must be durable before its public half leaves.
async fn prepare_lock(
    node: &Node,
    enrolment: &Arc<Enrolment>,
    from: NodeId,
    durable: LockState,
) -> Result<PeerReply, PeerRefusal> {
    let (me, roster) = (enrolment.identity.id(), enrolment.roster.current());
    let prepare = node.update_vault_of(Arc::clone(enrolment), move |vault| {
        // While founding, a node that holds a key for another must also know, after a loss of power, whose key it is.
        if vault.founding.is_some() && me != NodeId(0) {
            vault.identity.node = Some(me);
            vault.roster = (*roster).clone();
        }
        lock_keys::prepare(vault, from, durable, &mut random::system())
    });
    let (key_number, public) =
        prepare.await.map_err(|_| PeerRefusal::Storage)?.map_err(|lock_keys::Busy| PeerRefusal::Busy)?;
    Ok(PeerReply::LockKey { key_number, public: ByteBuf::from(public.as_bytes().to_vec()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::caller::Door;
    use crate::node::testing::{member, node_of};
    use crate::vault::{self, Founding, Invited, Role, Roster, RosterLogId, Vault};
    use quorate_shares::ids::ClusterId;
    use quorate_shares::secret::Secret;

    /// A founder that loses power right after it answered PREP must know, when it comes back, whose lock key it holds;
    /// otherwise two founders wait for each other for ever. What the network sees of this depends on a race.
    #[tokio::test]
    async fn a_founder_makes_the_roster_durable_with_the_lock_key() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut vault = Vault::new(ClusterId([1; 16]), Secret::random(&mut random::system()));
        let key = crate::vault::invitation::InvitationKey::of(&Secret::random(&mut random::system()));
        let inviter =
            crate::vault::invitation::Inviter { boot_pk: [2; 32], address: "127.0.0.1:7250".parse().expect("one") };
        let role = Role::Founder(Invited { key, inviters: vec![inviter] });
        let name = "n2".parse().expect("a name");
        vault.founding = Some(Founding { attempt: 0, name, addresses: member(2).addresses, role });
        let node = node_of(dir.path(), vault);
        // Learned from the first founder, and in memory only so far.
        node.enrolment().identity.set_id(NodeId(2));
        let members = vec![member(1), member(2)];
        node.enrolment().roster.set(Roster { log_id: RosterLogId::default(), members, revoked: Vec::new() });

        let reply = prepare_lock(&node, &node.enrolment(), NodeId(1), LockState { generation: 0, key_number: 0 })
            .await
            .expect("a key");
        assert!(matches!(reply, PeerReply::LockKey { key_number: 1, .. }));
        let durable = vault::inspect(dir.path()).expect("the vault on the disk");
        assert_eq!(durable.identity.node, Some(NodeId(2)));
        assert_eq!(durable.roster, *node.roster());
        assert!(durable.held_for(NodeId(1)).and_then(|held| held.key(1)).is_some());
    }

    /// A member asks for itself in messages of its own. Mutated: if every caller is taken, a member gets the rights of whatever
    /// it says that it forwards.
    #[tokio::test]
    async fn only_requests_of_clients_are_forwarded() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let node = node_of(dir.path(), Vault::new(ClusterId([1; 16]), Secret::random(&mut random::system())));
        let remote = "127.0.0.1:4711".parse().expect("an address");
        let seal = || ForwardedRequest::Seal { sealed: true };
        for caller in [Caller::member(NodeId(2), &[7; 32], remote), Caller::machine_owner(0)] {
            let refused = carry_out(&node, NodeId(2), &caller, seal()).await;
            assert!(matches!(refused, Err(PeerRefusal::Malformed)), "{caller}");
        }
        assert!(!node.serving.is_sealed());
        let client = Caller::root(&[7; 32], Door::Client, remote);
        let done = carry_out(&node, NodeId(2), &client, seal()).await.expect("the control: it is carried out");
        assert!(done.is_ok() && node.serving.is_sealed());
    }
}
