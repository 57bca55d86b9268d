//! An operator, who wants something of the cluster now and then, at whatever moment.

use std::collections::BTreeSet;

use quorate_raft::command::{Begin, Change, Command, Operation};
use quorate_shares::ids::NodeId;

use super::world::{Event, Machine, World};

impl World {
    /// Wants something, and some time until the next wish.
    pub(super) fn operate(&mut self) {
        if self.calm {
            return;
        }
        self.begin_rekey();
        let pause = self.dice.between(5_000, 20_000);
        self.after(pause, Event::Operator);
    }

    /// New share keys for everybody: what a leader begins by itself when somebody owes an erasure, and here without.
    fn begin_rekey(&mut self) {
        let (operation, abandon) = (Operation::Rekey, BTreeSet::new());
        let begin = Begin { request: self.dice.bytes(), operation, accept_no_redundancy: false, abandon };
        self.propose_at_leader(Change::Begin(begin));
    }

    /// The node that leads, as far as it knows.
    pub(super) fn leader(&self) -> Option<NodeId> {
        let leads = |machine: &Machine| {
            let unlocked = machine.daemon.as_ref().and_then(|daemon| daemon.unlocked.as_ref());
            unlocked.is_some_and(|unlocked| unlocked.raft.leadership(&machine.db).am_leader)
        };
        let leaders = self.machines.iter().filter(|(_, machine)| machine.frozen.is_none() && leads(machine));
        // A leader of an earlier term may not know yet that there is another.
        leaders.max_by_key(|(_, machine)| machine.db.now().term).map(|(&node, _)| node)
    }

    /// Puts a change into the log of whoever leads; the time that it brings is behind, as that of a slow clock.
    pub(super) fn propose_at_leader(&mut self, change: Change) {
        let Some(node) = self.leader() else { return };
        let command = Command::new(self.now_ms / 2, change);
        let machine = self.machines.get_mut(&node).expect("a machine");
        let now_ms = machine.clock_ms(self.now_ms);
        let unlocked = machine.daemon.as_mut().and_then(|daemon| daemon.unlocked.as_mut());
        if let Some(unlocked) = unlocked {
            unlocked.raft.propose(&mut machine.db, command, now_ms);
        }
    }
}
