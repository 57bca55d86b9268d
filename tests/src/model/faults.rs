//! What befalls the cluster, and what must come back when it stops.

use quorate_node::peer::{self, PeerRequest, SharesRequest};
use quorate_node::phase::Phase;
use quorate_shares::ids::{Epoch, NodeId};
use quorate_shares::lock::LockParams;

use super::client::Kept;
use super::message::{Body, Message, Process, To};
use super::network::Network;
use super::thief;
use super::world::{Event, World};

/// How long the cluster may take to heal, and to answer everything then.
const HEAL_MS: u64 = 120_000;
/// A node that is in no committee.
pub(super) const STRANGER: NodeId = NodeId(99);

impl World {
    /// One fault, and some time until the next.
    pub(super) fn fault(&mut self) {
        if self.calm {
            return;
        }
        let node = self.dice.pick(&self.nodes).expect("there are nodes");
        match self.dice.below(100) {
            0..14 => self.kill(node, false),
            14..28 => self.kill(node, true),
            28..32 => self.nodes.clone().into_iter().for_each(|node| self.kill(node, true)),
            32..34 => self.go_away(node),
            34..44 => {
                let for_ms = self.dice.between(100, 9_000);
                self.freeze(node, for_ms, true);
            }
            44..52 => {
                let for_ms = self.dice.between(1_000, 20_000);
                self.freeze(node, for_ms, false);
            }
            52..70 => {
                self.network.part(&self.nodes, &mut self.dice);
                let for_ms = self.dice.between(500, 12_000);
                self.after(for_ms, Event::Join);
            }
            70..80 => self.network.change(&mut self.dice),
            80..86 => {
                let calls = self.dice.below(5);
                self.machines[&node].vault.die_after(calls);
            }
            86..90 => self.lie(node),
            90..97 => self.stranger_asks(node),
            _ => self.old_disk_asks(),
        }
        self.steal();
        let pause = self.dice.between(100, self.respite_ms);
        self.after(pause, Event::Fault);
    }

    /// A node that is down for so long that operations come and go without it.
    fn go_away(&mut self, node: NodeId) {
        let for_ms = self.dice.between(15_000, 70_000);
        self.kill_for(node, true, for_ms);
    }

    /// Some holders, fewer than leave a quorum of honest ones, send wrong shares for a while.
    fn lie(&mut self, node: NodeId) {
        let lying = self.machines.values().filter(|machine| machine.lies).count();
        let machine = self.machines.get_mut(&node).expect("a machine");
        machine.lies = !machine.lies && lying == 0;
    }

    /// A node that has no seat in an epoch asks for shares of it, as if it had come past the door.
    fn stranger_asks(&mut self, node: NodeId) {
        let Some(slot) = self.watch.state.keys.values().next().map(|key| (key.uid, key.newest().version)) else {
            return;
        };
        let epochs: Vec<Epoch> = self.watch.state.epochs.keys().copied().collect();
        let Some(epoch) = self.dice.pick(&epochs) else { return };
        let request = SharesRequest { epoch, versions: vec![slot], request: [0; 16] };
        let body = peer::encode(&PeerRequest::Shares(request.clone()));
        let Some(process) = self.machines[&node].daemon.as_ref().map(|daemon| daemon.me) else { return };
        let from = Process { node: STRANGER, boot: 1 };
        self.run(process, |daemon, context| {
            daemon.is_asked_for_shares(context, from, &request, &body);
            Ok(())
        });
    }

    /// An old copy of a disk is started somewhere: all its peers hear from it is this.
    fn old_disk_asks(&mut self) {
        let Some((node, image)) = self.thief.oldest() else { return };
        let vault = image.slots().next();
        let Some(lock) = vault.as_ref().and_then(|vault| vault.lock.as_ref()) else { return };
        let params = LockParams { cluster: self.watch.cluster, node, generation: lock.generation() };
        for piece in lock.pieces() {
            let request = lock.request(&params, piece.peer, [9; 32]).expect("the lock names this peer");
            let body = Body::LockOpen(0, request.encode().into());
            self.send(Message { from: Some(Process { node, boot: 0 }), to: To::Node(piece.peer), body });
        }
    }

    fn steal(&mut self) {
        let victims: Vec<NodeId> = self.nodes.iter().copied().filter(|&node| self.thief.reaches(node)).collect();
        if let Some(node) = self.dice.pick(&victims).filter(|_| self.dice.chance(250)) {
            let image = self.machines[&node].vault.written();
            self.thief.copy(node, image, &mut self.dice);
            if self.dice.chance(200) {
                self.thief.gets_nothing(&self.watch);
            }
        }
    }

    // -- the end

    /// L1, D6, D7: when the faults stop, every node serves again without an operator, and every ciphertext that was ever
    /// acknowledged opens at every node.
    pub(super) fn heal(&mut self) {
        self.calm = true;
        self.network = Network::fair();
        for node in self.nodes.clone() {
            let machine = self.machines.get_mut(&node).expect("a machine");
            machine.lies = false;
            machine.down_until_ms = 0;
            machine.vault.live_on();
            if machine.daemon.is_none() {
                self.start(node);
            }
        }
        self.wait("serve", |world| {
            world.machines.values().all(|machine| {
                machine.frozen.is_none() && machine.daemon.as_ref().is_some_and(|daemon| daemon.phase == Phase::Serving)
            })
        });
        self.wait("have nothing left to do", |world| {
            let applied = world.machines.values().map(|machine| machine.db.now().applied);
            world.watch.nothing_is_owed() && applied.min() == Some(world.watch.committed())
        });
        for machine in self.machines.values() {
            let unlocked = machine.daemon.as_ref().and_then(|daemon| daemon.unlocked.as_ref());
            if unlocked.is_none_or(|unlocked| unlocked.state != self.watch.state) {
                self.watch.broken("two nodes applied the same entries and hold different states");
            }
        }
        let kept: Vec<Kept> = self.clients.kept.clone();
        for node in self.nodes.clone() {
            for kept in &kept {
                self.must_decrypt(node, kept);
            }
        }
        self.rob(&kept);
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
        let mut nodes = self.nodes.clone();
        let threshold = self.watch.state.active().map_or(0, |active| usize::from(active.threshold));
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
