//! What befalls the cluster, and what must come back when it stops.

use quorate_node::peer::{self, PeerRequest, SharesRequest};
use quorate_node::phase::Phase;
use quorate_raft::command::{Change, Command, EpochAck, Ready, Verified};
use quorate_shares::ids::{Epoch, KeyVersion, NodeId};
use quorate_shares::lock::LockParams;
use quorate_shares::master::KeyIdentity;

use super::client::Kept;
use super::message::{Body, Message, Process, To};
use super::network::Network;
use super::thief;
use super::world::{Event, Machine, World};

/// How long the cluster may take to heal, and to answer everything then.
const HEAL_MS: u64 = 60_000;
/// A node that is in no committee.
const STRANGER: NodeId = NodeId(99);

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
            32..44 => {
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

    /// Some holders, fewer than leave a quorum of honest ones, send wrong shares for a while.
    fn lie(&mut self, node: NodeId) {
        let lying = self.machines.values().filter(|machine| machine.lies).count();
        let machine = self.machines.get_mut(&node).expect("a machine");
        machine.lies = !machine.lies && lying == 0;
    }

    /// Nonsense comes when it can do harm: while an epoch is pending, or a version is not checked yet.
    pub(super) fn tempt(&mut self) {
        let state = &self.watch.state;
        let weak = state.cluster.is_some() && (state.active().is_none() || state.unready().next().is_some());
        if !self.calm && self.dice.chance(if weak { 20 } else { 1 }) {
            let leads = |machine: &Machine| {
                let unlocked = machine.daemon.as_ref().and_then(|daemon| daemon.unlocked.as_ref());
                unlocked.is_some_and(|unlocked| unlocked.raft.leadership(&machine.db).am_leader)
            };
            let leader = self.machines.iter().find(|(_, machine)| leads(machine)).map(|(&node, _)| node);
            leader.into_iter().for_each(|node| self.propose_nonsense(node));
        }
    }

    /// A leader that has lost its mind: `apply` is what stands between it and the state.
    fn propose_nonsense(&mut self, node: NodeId) {
        let epoch = Epoch(1);
        let holder = self.dice.pick(&self.nodes).expect("there are nodes");
        let unready = self.watch.state.unready().next();
        let known = self.watch.state.keys.keys().next().copied();
        let change = match self.dice.below(5) {
            0 => Change::ActivateEpoch { epoch },
            1 => Change::EpochAck(EpochAck { epoch, node: holder, redealt: u64::MAX }),
            2 => {
                let (uid, version) = unready.unwrap_or((quorate_shares::ids::KeyUid([7; 16]), KeyVersion(1)));
                // One holder short, and another that is none: neither makes a quorum.
                let short = usize::from(self.watch.found.threshold) - 1;
                let mut holders: std::collections::BTreeSet<NodeId> = self.nodes.iter().copied().take(short).collect();
                if self.dice.chance(500) {
                    holders.insert(STRANGER);
                }
                Change::Ready(Ready { epoch, verified: vec![Verified { uid, version, holders }] })
            }
            3 => {
                let machine = self.machines.get_mut(&node).expect("a machine");
                let unlocked = machine.daemon.as_mut().and_then(|daemon| daemon.unlocked.as_mut());
                let identity =
                    known.map(|uid| KeyIdentity { cluster: self.watch.cluster, uid, version: KeyVersion(1) });
                let again =
                    unlocked.zip(identity).and_then(|(unlocked, key)| unlocked.deal_again(&key, &mut self.dice));
                again.unwrap_or(Change::ActivateEpoch { epoch })
            }
            _ => Change::Found(self.watch.found.clone()),
        };
        let command = Command::new(self.now_ms / 2, change);
        let machine = self.machines.get_mut(&node).expect("a machine");
        let now_ms = machine.clock_ms(self.now_ms);
        let unlocked = machine.daemon.as_mut().and_then(|daemon| daemon.unlocked.as_mut());
        if machine.frozen.is_none()
            && let Some(unlocked) = unlocked
        {
            unlocked.raft.propose(&mut machine.db, command, now_ms);
        }
    }

    /// A node that is no member, as if it had come past the door, asks for shares.
    fn stranger_asks(&mut self, node: NodeId) {
        let Some((uid, version)) = self.watch.state.keys.values().next().map(|key| (key.uid, key.newest().version))
        else {
            return;
        };
        let request =
            PeerRequest::Shares(SharesRequest { epoch: Epoch(1), versions: vec![(uid, version)], request: [0; 16] });
        let from = Some(Process { node: STRANGER, boot: 1 });
        self.send(Message { from, to: To::Node(node), body: Body::Ask(0, peer::encode(&request).into()) });
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
            world.watch.state.unready().next().is_none() && applied.min() == Some(world.watch.committed())
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
        self.thief.finds_no_secret(&self.secrets, &self.watch);
        let mut nodes = self.nodes.clone();
        let threshold = usize::from(self.watch.found.threshold);
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
                self.watch.broken(&format!("L1: the nodes do not {what} after {HEAL_MS} ms without faults"));
            }
        }
    }
}
