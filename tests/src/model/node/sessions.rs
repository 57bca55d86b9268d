//! Op sessions: `session::accept_hello`, `keep` and `tell_flushed`, without connections. A node that said hello and was heard lately
//! has a session; what a node without one says is ignored.

use std::collections::BTreeSet;
use std::sync::Arc;

use quorate_node::cluster::roster_update::is_denied;
use quorate_node::messages::peer::{self, Hello, PeerRefusal, PeerReply, PeerRequest};
use quorate_raft::level::LEVEL;
use quorate_shares::ids::NodeId;

use super::{Context, Daemon};
use crate::model::world::message::{Body, Process, To};

/// How often a member says hello, and with it what is flushed to its disk.
const HELLO_MS: u64 = 1_000;
/// A peer that was not heard for so long is not there.
const SILENT_MS: u64 = 2_500;

/// A peer's process, as this side knows it.
pub(super) struct Session {
    process: Process,
    heard_ms: u64,
}

impl Daemon {
    /// Says hello to every peer, again and again.
    pub(super) fn greet(&mut self, context: &mut Context<'_>) {
        if context.now_ms < self.greeted_ms + HELLO_MS {
            return;
        }
        self.greeted_ms = context.now_ms;
        let hello = Arc::new(peer::encode(&PeerRequest::Hello(self.hello(context))));
        for peer in self.peers() {
            self.send(context, To::Node(peer), Body::Ask(0, Arc::clone(&hello)));
        }
    }

    fn hello(&self, context: &Context<'_>) -> Hello {
        let flushed = Some(context.db.durable().flushed());
        Hello { node: self.me.node, boot_nonce: self.boot_nonce, flushed, level: LEVEL }
    }

    /// `session::accept_hello`, and the answer to it. Of two processes of one node the later one counts: there is never a second one
    /// that lives.
    pub(super) fn accept_hello(&mut self, context: &Context<'_>, from: Process, hello: &Hello) -> Option<PeerReply> {
        if let Some(refusal) = self.turned_away(from.node) {
            return Some(PeerReply::Refused(refusal));
        }
        if hello.node != from.node || self.vault().roster.member(from.node).is_none() {
            return Some(PeerReply::Refused(PeerRefusal::NotAMember));
        }
        self.begin_session(context, from).then(|| PeerReply::Hello(self.hello(context)))
    }

    /// Whether it is another session than before.
    pub(super) fn begin_session(&mut self, context: &Context<'_>, from: Process) -> bool {
        if !self.trusts(from.node) {
            return false;
        }
        context.watch.accepted_from(self.me.node, from.node, context.db.now());
        let known = self.sessions.get(&from.node).map(|session| session.process);
        if known.is_none_or(|known| known <= from) {
            self.sessions.insert(from.node, Session { process: from, heard_ms: context.now_ms });
        }
        known.is_none_or(|known| known < from)
    }

    /// A session with a node that is not trusted any more is closed (`Enrolment::close_sessions_with_strangers`).
    fn trusts(&self, node: NodeId) -> bool {
        self.vault().roster.member(node).is_some_and(|member| !member.standing.denied)
    }

    /// `KnownRoster::turned_away`: what a former member is told, or one that is about to be.
    pub(super) fn turned_away(&self, node: NodeId) -> Option<PeerRefusal> {
        let roster = &self.vault().roster;
        if roster.member(node).is_some_and(|member| member.standing.denied) {
            return Some(PeerRefusal::Denied);
        }
        let told = self.gone.contains(&node) && is_denied(roster, node);
        told.then(|| PeerRefusal::Revoked(roster.log_id.place()))
    }

    /// Whether there is a session with this very process; it is alive then.
    pub(super) fn hears(&mut self, from: Process, now_ms: u64) -> bool {
        if !self.trusts(from.node) {
            return false;
        }
        let session = self.sessions.get_mut(&from.node).filter(|session| session.process == from);
        session.map(|session| session.heard_ms = now_ms).is_some()
    }

    /// The process that a session is open with.
    pub(super) fn session_with(&self, peer: NodeId, now_ms: u64) -> Option<Process> {
        let session = self.sessions.get(&peer).filter(|_| self.trusts(peer))?;
        (now_ms < session.heard_ms + SILENT_MS).then_some(session.process)
    }

    /// `leader::present`: the members that can be asked now, this one among them.
    pub(super) fn present(&self, now_ms: u64) -> BTreeSet<NodeId> {
        let Some(unlocked) = &self.unlocked else { return BTreeSet::new() };
        let there = |node: &NodeId| *node == self.me.node || self.session_with(*node, now_ms).is_some();
        unlocked.state.members.keys().copied().filter(there).collect()
    }
}
