//! An operator, who orders operations at random moments, and repeats an order that gets no answer.

use std::collections::BTreeSet;

use quorate_node::messages::peer::Order;
use quorate_raft::command::{Begin, Change, Command, Operation};
use quorate_shares::ids::{NodeId, NodeName};

use crate::model::world::founding;
use crate::model::world::{Event, Machine, World};

/// Orders that an operator remembers.
const ORDERS_MAX: usize = 6;

impl World {
    /// Gives an order, and draws the time until the next one.
    pub(in crate::model) fn operate(&mut self) {
        if self.calm {
            return;
        }
        match self.dice.below(100) {
            0..10 => self.begin_rekey(),
            10..35 => self.remove(),
            35..50 => self.revoke(),
            50..70 => self.invite(None),
            70..85 => self.replace(),
            _ => self.say_it_again(),
        }
        // Often the next order comes before the last one is done.
        let long_ms = if self.dice.chance(400) { 3_000 } else { 2 * self.wish_ms };
        let pause = self.dice.between(200, long_ms);
        self.after(pause, Event::Operator);
    }

    /// New share keys for all members. A leader begins this by itself when a member owes an erasure; here it comes without that.
    fn begin_rekey(&mut self) {
        let (operation, abandon) = (Operation::Rekey, BTreeSet::new());
        let begin = Begin { request: self.dice.bytes(), operation, accept_no_redundancy: false, abandon };
        self.propose_at_leader(Change::Begin(begin));
    }

    fn remove(&mut self) {
        let Some(node) = self.dice.pick(&self.nodes) else { return };
        let (request, name) = (self.dice.bytes(), self.name(node));
        let accept_no_redundancy = self.dice.chance(500);
        self.order(Order::Remove { request, name, accept_no_redundancy, abandon: Vec::new() });
    }

    /// One node, or two at once; never a node whose loss would leave another one without a way to open its lock.
    fn revoke(&mut self) {
        let count = if self.dice.chance(150) { 2 } else { 1 };
        let mut nodes = BTreeSet::new();
        for _ in 0..count {
            nodes.extend(self.dice.pick(&self.nodes));
        }
        if self.watch.state.stranded(&nodes).next().is_none() {
            let request: [u8; 16] = self.dice.bytes();
            let names = nodes.into_iter().map(|node| self.name(node)).collect();
            // Three times out of four the operator says that absent nodes come back.
            let all = self.watch.state.members.values().map(|member| member.name.clone());
            let expect_back = if request[0].is_multiple_of(4) { Vec::new() } else { all.collect() };
            self.order(Order::Revoke { request, names, expect_back });
        }
    }

    /// A node takes the place of one that may well be alive.
    fn replace(&mut self) {
        if let Some(gone) = self.dice.pick(&self.nodes) {
            self.invite(Some(gone));
        }
    }

    fn name(&self, node: NodeId) -> NodeName {
        let member = self.watch.state.members.get(&node).map(|member| member.name.clone());
        // Until it is founded there are founders.
        member.unwrap_or_else(|| founding::name(node))
    }

    /// An order that was given before, answered or not, refused or not.
    fn say_it_again(&mut self) {
        if !self.orders.is_empty() {
            let at = self.dice.below(self.orders.len() as u64) as usize;
            let order = self.orders[at].clone();
            self.tell(order);
        }
    }

    fn order(&mut self, order: Order) {
        if self.orders.len() == ORDERS_MAX {
            self.orders.remove(0);
        }
        self.orders.push(order.clone());
        self.tell(order);
    }

    fn tell(&mut self, order: Order) {
        let Some(node) = self.dice.pick(&self.nodes) else { return };
        let (id, request) = self.clients.order(self.now_ms, order);
        self.request(node, id, request);
    }

    /// The node that leads, as far as it knows.
    pub(in crate::model) fn leader(&self) -> Option<NodeId> {
        let leads = |machine: &Machine| {
            let unlocked = machine.daemon.as_ref().and_then(|daemon| daemon.unlocked.as_ref());
            unlocked.is_some_and(|unlocked| unlocked.raft.leadership(&machine.db).am_leader)
        };
        let leaders = self.machines.iter().filter(|(_, machine)| machine.frozen.is_none() && leads(machine));
        // A leader of an earlier term may not know yet that there is another.
        leaders.max_by_key(|(_, machine)| machine.db.now().term).map(|(&node, _)| node)
    }

    /// Puts a change into the log of the leader; its time is behind, as that of a slow clock.
    pub(in crate::model) fn propose_at_leader(&mut self, change: Change) {
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
