//! What every node does with committed entries, and how its own proposals end: `machine` and `Replica::propose`.

use quorate_client::error::Code;
use quorate_client::wire::WireError;
use quorate_node::keys::deal;
use quorate_raft::command::{Change, Command, Outcome};
use quorate_raft::refusal::Refusal as StateRefusal;
use quorate_raft::rows::{RowKey, RowWrite};
use quorate_raft::state::apply;
use quorate_raft::voters::denied_at_commit;

use super::{Context, Daemon, Killed};
use crate::model::raft::Gate;
use crate::model::world::disk::{Payload, Write};

/// What a proposal of this node was for.
pub(super) enum Purpose {
    Nothing,
    Batch(u64),
    Change(u64),
    Order(u64),
}

impl Daemon {
    /// `machine`: entries go to the state and to the disk in one write each, at this node's own pace. A denial
    /// of a membership is durable before the membership is applied.
    pub(super) fn apply_committed(&mut self, context: &mut Context<'_>) -> Result<(), Killed> {
        if self.unlocked.is_none() || context.dice.chance(200) {
            return Ok(());
        }
        let me = self.me.node;
        loop {
            let Some(unlocked) = &mut self.unlocked else { return Ok(()) };
            let index = context.db.now().applied + 1;
            if index > unlocked.raft.commit {
                return Ok(());
            }
            let entry = context.db.now().log[index as usize - 1].clone();
            if let Payload::Members(_, membership) = &entry.payload {
                let before = context.db.now().membership(index - 1);
                let denials = denied_at_commit(&before, membership, context.db.now().place(index));
                self.gate().deny(&denials)?;
            }
            let unlocked = self.unlocked_mut();
            let applied = entry.command().map(|command| apply(&mut unlocked.state, command));
            context.watch.applied(me, index, &entry, applied.as_ref());
            let (outcome, rows) = applied.map_or((None, Vec::new()), |applied| (Some(applied.outcome), applied.rows));
            let members = |row: &RowWrite| matches!(row.key, RowKey::Member(_) | RowKey::Former(_));
            unlocked.members_changed |= matches!(entry.payload, Payload::Members(..)) || rows.iter().any(members);
            context.db.write(Write::Rows(rows, index));
            if let Some((term, purpose)) = unlocked.proposals.remove(&index) {
                self.resolve(context, purpose, outcome.filter(|_| term == entry.term));
            }
        }
    }

    pub(super) fn propose(&mut self, context: &mut Context<'_>, change: Change, purpose: Purpose) -> bool {
        let command = Command::new(context.watch.wall_ms, change);
        let now_ms = context.now_ms;
        let unlocked = self.unlocked_mut();
        let Some((index, term)) = unlocked.raft.propose(context.db, command, now_ms) else { return false };
        let lost = unlocked.proposals.insert(index, (term, purpose));
        // An entry of an earlier term at this index was truncated: its proposer never hears of it.
        if let Some((_, purpose)) = lost {
            self.resolve(context, purpose, None);
        }
        true
    }

    /// An answer to a proposal; `None` if another entry stands in its place.
    fn resolve(&mut self, context: &mut Context<'_>, purpose: Purpose, outcome: Option<Result<Outcome, StateRefusal>>) {
        match (purpose, outcome) {
            (Purpose::Batch(opening), outcome) => {
                self.batch_is_open(context, opening, matches!(outcome, Some(Ok(_))));
            }
            (Purpose::Change(id), Some(Ok(Outcome::VersionMade { uid, version, .. }))) => {
                self.reply(context, id, Ok((uid, version)));
            }
            (Purpose::Change(id), Some(Err(refusal))) if deal::is_stale(&refusal) => self.deal_again_for(context, id),
            (Purpose::Change(id), Some(Err(refusal))) => {
                self.reply(context, id, Err(WireError::new(Code::Conflict, refusal.to_string())));
            }
            (Purpose::Change(id), _) => self.give_up(context, id),
            (Purpose::Order(id), outcome) => self.begun(context, id, outcome),
            (Purpose::Nothing, _) => {}
        }
    }
}
