//! The faults that happen to the cluster.

use quorate_node::messages::peer::{self, PeerRequest, SharesRequest};
use quorate_shares::ids::{Epoch, NodeId};
use quorate_shares::lock::LockParams;

use crate::model::world::message::{Body, Message, Process, To};
use crate::model::world::{Event, World};

/// A node that is in no committee.
pub(in crate::model) const STRANGER: NodeId = NodeId(99);

impl World {
    /// Starts one fault, and draws the time until the next one.
    pub(in crate::model) fn fault(&mut self) {
        if self.calm {
            return;
        }
        let former = self.dice.pick(&self.former).filter(|_| self.dice.chance(150));
        let node = former.or_else(|| self.dice.pick(&self.nodes)).expect("there are nodes");
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
                let machines: Vec<NodeId> = self.machines.keys().copied().collect();
                self.network.part(&machines, &mut self.dice);
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
        let Some(key_version) = self.watch.state.keys.values().next().map(|key| (key.uid, key.newest().version)) else {
            return;
        };
        let epochs: Vec<Epoch> = self.watch.state.epochs.keys().copied().collect();
        let Some(epoch) = self.dice.pick(&epochs) else { return };
        let request = SharesRequest { epoch, versions: vec![key_version], request: [0; 16] };
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
        let node = self.thief.next(&self.nodes, &mut self.dice).filter(|_| self.dice.chance(300));
        if let Some(node) = node {
            let image = self.machines[&node].vault.written();
            self.thief.copy(node, image, &self.watch, &mut self.dice);
            if self.dice.chance(200) {
                self.thief.gets_nothing(&self.watch);
            }
        }
    }
}
