//! What every node does with committed entries, and what its own proposals come to: `machine` and `Replica::propose`.

use quorate_client::error::Code;
use quorate_client::wire::WireError;
use quorate_node::deal;
use quorate_raft::command::{Change, Command, Outcome};
use quorate_raft::refusal::Refusal as StateRefusal;
use quorate_raft::state::apply;

use super::{Context, Daemon};
use crate::model::disk::Write;

/// What a proposal of this node was for.
pub(super) enum Purpose {
    Nothing,
    Batch(u64),
    Change(u64),
}

impl Daemon {
    /// `machine`: entries go to the state and to the disk in one write each, at this node's own pace.
    pub(super) fn apply_committed(&mut self, context: &mut Context<'_>) {
        if self.unlocked.is_none() || context.dice.chance(200) {
            return;
        }
        let me = self.me.node;
        loop {
            let unlocked = self.unlocked_mut();
            let index = context.db.now().applied + 1;
            if index > unlocked.raft.commit {
                break;
            }
            let entry = context.db.now().log[index as usize - 1].clone();
            let applied = entry.command.as_ref().map(|command| apply(&mut unlocked.state, command));
            context.watch.applied(me, index, &entry, applied.as_ref());
            let (outcome, rows) = applied.map_or((None, Vec::new()), |applied| (Some(applied.outcome), applied.rows));
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
            (Purpose::Change(id), Some(Err(refusal))) if deal::is_stale(&refusal) => self.deal_anew(context, id),
            (Purpose::Change(id), Some(Err(refusal))) => {
                self.reply(context, id, Err(WireError::new(Code::Conflict, refusal.to_string())));
            }
            (Purpose::Change(id), _) => self.give_up(context, id),
            (Purpose::Nothing, _) => {}
        }
    }
}
