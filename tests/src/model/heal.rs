//! The end of a run: the faults stop, and everything must come back.

use std::collections::BTreeSet;

use quorate_node::base::phase::Phase;
use quorate_node::peers::revocation;
use quorate_shares::ids::NodeId;

use crate::model::actors::client::Kept;
use crate::model::actors::thief;
use crate::model::world::World;
use crate::model::world::network::{ARRIVAL_MS, Network};

/// How long the cluster may take to heal, and to answer everything then.
const HEAL_MS: u64 = 120_000;

impl World {
    /// L1, D6, D7: when the faults stop, every operation ends, every member serves again without an operator, and every ciphertext
    /// that was ever acknowledged opens at every member. S4: and who is no member any more rests, if enough are there to say so.
    pub(super) fn heal(&mut self) {
        self.calm = true;
        self.network = Network::fair();
        let machines: Vec<NodeId> = self.machines.keys().copied().collect();
        for node in machines {
            let machine = self.machines.get_mut(&node).expect("a machine");
            machine.lies = false;
            machine.down_until_ms = 0;
            machine.vault.live_on();
            if machine.daemon.is_none() {
                self.start(node);
            }
        }
        // An order may be on its way, and another one after it would begin when all seems well.
        let arrived_ms = self.now_ms + ARRIVAL_MS;
        self.wait("hear what was sent before", |world| world.now_ms > arrived_ms);
        self.wait("let in the nodes that joined", |world| world.newcomers.is_empty());
        self.wait("have nothing left to do", |world| world.watch.nothing_is_owed());
        self.wait("erase what they owe", |world| {
            world.watch.old_share_keys_are_gone() && world.watch.lock_keys_of_former_members_are_gone()
        });
        self.wait("serve", |world| {
            world.members().all(|machine| {
                machine.frozen.is_none() && machine.daemon.as_ref().is_some_and(|daemon| daemon.phase == Phase::Serving)
            })
        });
        self.wait("have applied everything", |world| {
            let applied = world.members().map(|machine| machine.db.now().applied);
            world.watch.nothing_is_owed() && applied.min() == Some(world.watch.committed())
        });
        for machine in self.members() {
            let unlocked = machine.daemon.as_ref().and_then(|daemon| daemon.unlocked.as_ref());
            if unlocked.is_none_or(|unlocked| unlocked.state != self.watch.state) {
                self.watch.broken("two nodes applied the same entries and hold different states");
            }
        }
        self.wait("put former members to rest", |world| {
            let rests = |node: &NodeId| world.rests(*node);
            let tells = |node: &NodeId| !world.machines[node].discarded && world.can_know(*node);
            world.former.iter().all(|node| !tells(node) || rests(node))
        });
        self.watch.seen.rested += self.former.iter().filter(|node| self.rests(**node)).count() as u64;
        let kept: Vec<Kept> = self.clients.kept.clone();
        for node in self.nodes.clone() {
            for kept in &kept {
                self.must_decrypt(node, kept);
            }
        }
        self.rob(&kept);
    }

    fn members(&self) -> impl Iterator<Item = &crate::model::world::Machine> {
        self.nodes.iter().map(|node| &self.machines[node])
    }

    fn rests(&self, node: NodeId) -> bool {
        let daemon = self.machines[&node].daemon.as_ref();
        daemon.is_some_and(|daemon| daemon.phase == Phase::Revoked && daemon.unlocked.is_none())
    }

    /// Whether a majority of the voters that a former member knows are members, who can tell it. One that is unlocked says
    /// hello to all of them; one that is locked asks those that its lock names, and the first lock of a joiner names those that were
    /// there when it was made.
    fn can_know(&self, node: NodeId) -> bool {
        let vault = self.machines[&node].vault.durable().open();
        let own_log = vault.denials.iter().any(|denial| denial.node == node);
        let named: BTreeSet<NodeId> =
            vault.lock.iter().flat_map(|lock| lock.pieces().iter().map(|piece| piece.peer)).collect();
        let daemon = self.machines[&node].daemon.as_ref();
        let unlocked = daemon.is_some_and(|daemon| daemon.unlocked.is_some());
        let asks = |peer: &NodeId| unlocked || named.contains(peer);
        let told = self.nodes.iter().copied().filter(asks).collect();
        revocation::is_believed(&vault.roster, node, &told, own_log)
    }

    fn must_decrypt(&mut self, node: NodeId, kept: &Kept) {
        let before = self.watch.seen.decrypted;
        let until_ms = self.now_ms + HEAL_MS;
        while self.watch.seen.decrypted == before {
            let (id, request) = self.clients.decrypt(self.now_ms, kept);
            self.request(node, id, request);
            while self.clients.waits_for(id, self.now_ms) {
                self.step();
                if self.now_ms >= until_ms {
                    self.watch.broken(&format!("D7: an acknowledged ciphertext does not open at node {node}"));
                }
            }
        }
    }

    /// S1 with its control.
    fn rob(&mut self, kept: &[Kept]) {
        self.thief.gets_nothing(&self.watch);
        self.thief.finds_no_secret(&self.watch);
        let Some(active) = self.watch.state.active() else { return };
        let (mut nodes, threshold) = (self.nodes.clone(), usize::from(active.threshold));
        while nodes.len() > threshold {
            let at = self.dice.below(nodes.len() as u64) as usize;
            nodes.remove(at);
        }
        let disks: Vec<_> = nodes.iter().map(|&node| (node, self.machines[&node].vault.written())).collect();
        thief::control(&disks, kept, &self.watch);
    }

    fn wait(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let until_ms = self.now_ms + HEAL_MS;
        while !done(self) {
            self.step();
            if self.now_ms >= until_ms {
                let told = self.watch.owed();
                self.watch.broken(&format!("L1: the nodes do not {what} after {HEAL_MS} ms without faults: {told}"));
            }
        }
    }
}
