//! Lease renewal, on both sides: `renewal::run`, `renew`, `grant` and `watch`.

use quorate_node::base::phase::Phase;
use quorate_node::memory::lease::Renewal;
use quorate_node::messages::peer::{PeerRefusal, PeerReply, PeerRequest};

use super::{Asked, Context, Daemon, LEASE, LEASE_TICK_MS, WIPE_AFTER_MS};
use crate::model::raft::Asker;
use crate::model::world::message::Process;

impl Daemon {
    /// Renews the lease in time, and wipes every key when it has been lost for long.
    pub(super) fn watch_lease(&mut self, context: &mut Context<'_>) {
        let now_ms = context.now_ms;
        self.settle_phase(now_ms);
        let due = {
            let unlocked = self.unlocked_mut();
            unlocked.roots.sweep(now_ms);
            unlocked.confirming.retain(|(_, renewal, _)| renewal.left_ms(now_ms) > 0);
            if unlocked.lease.lost_for_ms_at(now_ms).is_some_and(|lost| lost >= WIPE_AFTER_MS) {
                // `Node::forget_keys`.
                unlocked.dealing = None;
                unlocked.roots.wipe();
                unlocked.holder.forget();
            }
            let pause = if unlocked.lease.is_valid_at(now_ms) { LEASE_TICK_MS } else { 200 };
            now_ms >= unlocked.asked_lease_ms + pause
        };
        if due {
            self.ask_for_lease(context);
        }
        self.close_batch_if_over(context);
    }

    /// One question to the leader, which may be this node itself.
    pub(super) fn ask_for_lease(&mut self, context: &mut Context<'_>) {
        let renewal = Renewal::sent(context.now_ms, LEASE);
        let unlocked = self.unlocked_mut();
        unlocked.asked_lease_ms = context.now_ms;
        let leadership = unlocked.raft.leadership(context.db);
        if leadership.am_leader {
            self.next += 1;
            let number = self.next;
            let unlocked = self.unlocked_mut();
            unlocked.own_reads.insert(number, renewal);
            unlocked.own_reads.retain(|_, renewal| renewal.left_ms(context.now_ms) > 0);
            context.watch.asked(self.me, number);
            let unlocked = self.unlocked_mut();
            unlocked.raft.read_index(context.db, Asker::Own(number), context.now_ms);
        } else if let Some(leader) = leadership.leader {
            let number = self.ask(context, leader, &PeerRequest::Lease, Asked::Lease(renewal));
            context.watch.asked(self.me, number);
        }
    }

    /// The leader's side: the answer comes when a round that begins now has reached a quorum.
    pub(super) fn answer_lease(&mut self, context: &mut Context<'_>, from: Process, id: u64) -> Option<PeerReply> {
        let unlocked = self.unlocked_mut();
        match unlocked.raft.read_index(context.db, Asker::Peer(from, id), context.now_ms) {
            true => None,
            false => {
                let leader = unlocked.raft.leadership(context.db).leader;
                Some(PeerReply::Refused(PeerRefusal::NotLeader(leader)))
            }
        }
    }

    /// Rounds that a quorum answered, and confirmations that are applied by now.
    pub(super) fn take_confirmations(&mut self, context: &mut Context<'_>) {
        let Some(unlocked) = &mut self.unlocked else { return };
        for (asker, index) in std::mem::take(&mut unlocked.raft.confirmed) {
            match asker {
                Asker::Own(number) => {
                    let renewal = unlocked.own_reads.remove(&number);
                    unlocked.confirming.extend(renewal.map(|renewal| (number, renewal, index)));
                }
                Asker::Peer(from, id) => {
                    let (body, to) = (PeerReply::Lease { index }, from);
                    let body = std::sync::Arc::new(quorate_node::messages::peer::encode(&body));
                    let (to, body) = (
                        crate::model::world::message::To::Process(to),
                        crate::model::world::message::Body::Tell(id, body),
                    );
                    let message = crate::model::world::message::Message { from: Some(self.me), to, body };
                    context.out.push(super::Out::Send(message));
                }
            }
        }
        let seated = self.is_seated();
        let Some(unlocked) = &mut self.unlocked else { return };
        let applied = context.db.now().applied;
        let (reached, waiting) = unlocked.confirming.drain(..).partition(|(_, _, index)| applied >= *index);
        unlocked.confirming = waiting;
        let reached: Vec<(u64, Renewal, u64)> = reached;
        for (number, renewal, _) in reached.into_iter().filter(|_| seated) {
            context.watch.confirmed(self.me, number, applied);
            self.unlocked_mut().lease.grant(renewal);
            self.caught_up(renewal);
        }
        if matches!(self.phase, Phase::Open | Phase::Serving) {
            self.settle_phase(context.now_ms);
        }
    }
}
