//! The leader's side of an operator's order: `orders::begin`.

use quorate_client::error::Code;
use quorate_client::wire::WireError;
use quorate_node::cluster::orders::{Resolved, ordered};
use quorate_node::messages::peer::{ForwardedReply, Order, PeerRefusal, PeerReply};
use quorate_raft::command::{Change, Outcome};
use quorate_raft::refusal::Refusal as StateRefusal;
use quorate_shares::ids::Epoch;

use crate::model::node::apply::Purpose;
use crate::model::node::keys::deal::ReplyTo;
use crate::model::node::{Context, Daemon};

/// An operator waits no longer.
const ORDER_MS: u64 = 20_000;

/// An operator's order on its way into the log.
pub(in crate::model::node) struct RunningOrder {
    reply: ReplyTo,
    order: Order,
    since_ms: u64,
    caught_up: bool,
    proposed: bool,
}

impl RunningOrder {
    pub(in crate::model::node) fn caught_up(&mut self, sent_ms: u64) {
        self.caught_up |= sent_ms >= self.since_ms;
    }
}

impl Daemon {
    pub(in crate::model::node) fn take_order(
        &mut self,
        context: &mut Context<'_>,
        reply: ReplyTo,
        order: Order,
    ) -> Option<PeerReply> {
        if !self.unlocked_mut().raft.leadership(context.db).am_leader {
            return Some(PeerReply::Refused(PeerRefusal::NotLeader(None)));
        }
        self.next += 1;
        let (id, since_ms) = (self.next, context.now_ms);
        self.unlocked_mut()
            .orders
            .insert(id, RunningOrder { reply, order, since_ms, caught_up: false, proposed: false });
        self.ask_for_lease(context);
        None
    }

    pub(in crate::model::node) fn advance_orders(&mut self, context: &mut Context<'_>) {
        let Some(unlocked) = &self.unlocked else { return };
        let ids: Vec<u64> = unlocked.orders.keys().copied().collect();
        for id in ids {
            let present = self.present(context.now_ms);
            let unlocked = self.unlocked_mut();
            let Some(order) = unlocked.orders.get_mut(&id) else { continue };
            if context.now_ms >= order.since_ms + ORDER_MS {
                self.answer_order(context, id, Err(not_now()));
            } else if order.caught_up && !order.proposed {
                order.proposed = true;
                match ordered(&unlocked.state, &order.order, &present) {
                    Ok(Resolved::Known(operation)) => self.answer_order(context, id, Ok(operation)),
                    Ok(Resolved::New(begin)) => {
                        if !self.propose(context, Change::Begin(begin), Purpose::Order(id)) {
                            self.answer_order(context, id, Err(not_now()));
                        }
                    }
                    Err(error) => self.answer_order(context, id, Err(error)),
                }
            }
        }
    }

    /// What became of the proposal; `None` if another entry stands in its place.
    pub(in crate::model::node) fn begun(
        &mut self,
        context: &mut Context<'_>,
        id: u64,
        outcome: Option<Result<Outcome, StateRefusal>>,
    ) {
        let begun = match outcome {
            Some(Ok(Outcome::Begun { operation })) => Ok(operation),
            Some(Err(refusal)) => Err(WireError::new(Code::Conflict, refusal.to_string())),
            _ => Err(not_now()),
        };
        self.answer_order(context, id, begun);
    }

    fn answer_order(&mut self, context: &mut Context<'_>, id: u64, begun: Result<Epoch, WireError>) {
        let Some(order) = self.unlocked_mut().orders.remove(&id) else { return };
        match order.reply {
            ReplyTo::Peer(from, ask) => self.tell(
                context,
                from,
                ask,
                &PeerReply::Forwarded(begun.map(|operation| ForwardedReply::Begun { operation })),
            ),
            ReplyTo::Job(job) => self.operated(context, job, begun),
        }
    }
}

fn not_now() -> WireError {
    WireError::new(Code::NoQuorum, "not now")
}
