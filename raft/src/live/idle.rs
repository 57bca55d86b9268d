//! Members that answer, and never do what an operation needs of them: a disk that hangs, a pin that is missing.
//!
//! An operation does not wait for a member that is away. A member that is there could hold it up for ever. So the leader counts
//! how long each member owes something ([`plan::owing`](crate::live::plan::owing)). After a while the member is *idle*, and
//! counts as away until it acts. The next operation waits for it once more.

use std::collections::{BTreeMap, BTreeSet};

use quorate_shares::ids::{Epoch, NodeId, ShareKeyGeneration};

use crate::live::plan;
use crate::live::state::{MemberState, State};

/// What one leader has seen, by a clock of its own. A new leader begins to count at zero.
#[derive(Debug, Default)]
pub struct Idlers {
    /// The operation of the counts. When it is over, they stay until the next one begins.
    operation: Option<Epoch>,
    seen: BTreeMap<NodeId, Seen>,
}

#[derive(Debug)]
struct Seen {
    /// It owes something since this time.
    since_ms: u64,
    done: Option<Done>,
    idle: bool,
}

/// What the state shows of the acts of a member. It changes when the member does something.
type Done = (MemberState, ShareKeyGeneration, Option<u64>);

impl Idlers {
    /// The members that are idle at `now_ms`, if only `present` answer and can act. The members `unaware` owe something that the state does
    /// not show.
    pub fn look(
        &mut self,
        state: &State,
        present: &BTreeSet<NodeId>,
        unaware: &BTreeSet<NodeId>,
        now_ms: u64,
        patience_ms: u64,
    ) -> BTreeSet<NodeId> {
        let running = state.operations.running.as_ref().map(|running| running.epoch);
        if running.is_some() && running != self.operation {
            *self = Self { operation: running, ..Self::default() };
        }
        let known = self.idle();
        let acting = present.difference(&known).copied().collect();
        let mut owing = plan::owing(state, &acting, present);
        owing.extend(unaware.intersection(present));
        self.seen.retain(|node, seen| match seen.idle {
            true => present.contains(node) && seen.done == done(state, *node),
            false => owing.contains(node),
        });
        for node in owing {
            let seen = self.seen.entry(node).or_insert(Seen { since_ms: now_ms, done: None, idle: false });
            if !seen.idle && now_ms.saturating_sub(seen.since_ms) >= patience_ms {
                (seen.idle, seen.done) = (true, done(state, node));
            }
        }
        self.idle()
    }

    fn idle(&self) -> BTreeSet<NodeId> {
        self.seen.iter().filter(|(_, seen)| seen.idle).map(|(node, _)| *node).collect()
    }
}

fn done(state: &State, node: NodeId) -> Option<Done> {
    let member = state.members.get(&node)?;
    Some((member.state, member.skgen, state.locks.get(&node).map(|lock| lock.generation)))
}
