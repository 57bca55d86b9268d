//! The machines, their network and their clock: events in virtual time, one at a time.

pub(super) mod dice;
pub(super) mod disk;
pub(super) mod founding;
pub(super) mod message;
pub(super) mod network;
mod newcomers;

use std::collections::BTreeMap;
use std::sync::Arc;

use quorate_node::messages::peer::Order;
use quorate_shares::ids::NodeId;
use quorate_shares::lock::Bundle;
use sha2::{Digest, Sha256};

use crate::model::actors::client::Clients;
use crate::model::actors::thief::Thief;
use crate::model::invariants::Watch;
use crate::model::node::{Context, Daemon, Killed, Out};
use crate::model::world::dice::Dice;
use crate::model::world::disk::{Database, Image, VaultDisk};
use crate::model::world::message::{Body, Message, Process, Request, To};
use crate::model::world::network::Network;
use crate::model::world::newcomers::Newcomer;

/// Pause between two ticks of a process: its own pace, never quite even.
const TICK_MS: (u64, u64) = (120, 280);

/// A stopped process, or a machine that sleeps.
pub(in crate::model) struct Frozen {
    since_ms: u64,
    until_ms: u64,
    /// A stopped process finds in its sockets what came meanwhile; a machine that sleeps hears nothing.
    hears: bool,
}

/// A machine: its disk, its clock, and the process that runs on it.
pub(in crate::model) struct Machine {
    /// Its boot clock is so much ahead of virtual time.
    ahead_ms: u64,
    pub(in crate::model) vault: VaultDisk,
    pub(in crate::model) db: Database,
    pub(in crate::model) daemon: Option<Daemon>,
    pub(in crate::model) frozen: Option<Frozen>,
    pub(in crate::model) lies: bool,
    inbox: Vec<Message>,
    boots: u64,
    /// When it was last seen to stand still.
    stood_ms: u64,
    slept_ms: u64,
    /// It is not started before this time.
    pub(in crate::model) down_until_ms: u64,
    /// What a process without a lock has drawn, until it begins.
    pub(in crate::model) joining: Option<Bundle>,
    /// It is never started again.
    pub(in crate::model) discarded: bool,
}

pub(in crate::model) enum Event {
    Deliver(Message),
    Tick(Process),
    /// An answer is ready; the second look at the lease.
    Finish(Process, u64),
    /// It leaves the process, which may have been stopped since.
    Leave(Process, Message),
    Start(NodeId),
    Thaw(NodeId),
    Clients,
    Operator,
    Fault,
    /// Something becomes of a machine that joins.
    Newcomer(u64),
    /// A partition ends.
    Join,
}

/// All machines, the network between them, and the time.
pub(in crate::model) struct World {
    pub(in crate::model) dice: Dice,
    pub(in crate::model) now_ms: u64,
    queue: BTreeMap<(u64, u64), Event>,
    queued: u64,
    /// The machines of the members.
    pub(in crate::model) nodes: Vec<NodeId>,
    /// Those of former members.
    pub(in crate::model) former: Vec<NodeId>,
    pub(in crate::model) machines: BTreeMap<NodeId, Machine>,
    pub(in crate::model) network: Network,
    pub(in crate::model) clients: Clients,
    /// Machines on their way into the cluster, by the number of their invitation.
    pub(in crate::model) newcomers: BTreeMap<u64, Newcomer>,
    pub(in crate::model) invited: u64,
    /// What an operator ordered lately.
    pub(in crate::model) orders: Vec<Order>,
    /// How long an operator is content, on average.
    pub(in crate::model) wish_ms: u64,
    pub(in crate::model) thief: Thief,
    pub(in crate::model) watch: Watch,
    trace: Sha256,
    pub(in crate::model) steps: u64,
    pub(in crate::model) calm: bool,
    pub(in crate::model) tempted_ms: u64,
    /// The longest pause between two faults: some clusters live in a storm, some on a quiet day.
    pub(in crate::model) respite_ms: u64,
}

impl World {
    /// A cluster that was founded and then lost power everywhere.
    pub(in crate::model) fn new(seed: u64) -> Self {
        let mut dice = Dice::seeded(seed);
        let count = dice.between(2, 5);
        let threshold = dice.between(count / 2 + 1, count) as u8;
        let founded = founding::found(count, threshold, &mut dice);
        let nodes: Vec<NodeId> = founded.disks.keys().copied().collect();
        let watch = Watch::new(&founded, &founded.bundles, founded.disks.clone());
        let machine = |(node, vault)| {
            let db = Database::holding(vec![founding::first_entry(&nodes)]);
            (node, Machine::new(vault, db, &mut dice))
        };
        let machines = founded.disks.into_iter().map(machine).collect();
        let respite_ms = dice.pick(&[2_000, 5_000, 12_000, 30_000]).expect("a choice");
        let wish_ms = dice.pick(&[4_000, 10_000, 20_000]).expect("a choice");
        let mut world = Self {
            dice,
            now_ms: 1_000,
            queue: BTreeMap::new(),
            queued: 0,
            former: Vec::new(),
            nodes,
            machines,
            network: Network::fair(),
            clients: Clients::default(),
            newcomers: BTreeMap::new(),
            invited: 0,
            orders: Vec::new(),
            wish_ms,
            thief: Thief::default(),
            watch,
            trace: Sha256::new(),
            steps: 0,
            calm: false,
            tempted_ms: 0,
            respite_ms,
        };
        for node in world.nodes.clone() {
            let delay = world.dice.below(3_000);
            world.after(delay, Event::Start(node));
        }
        world.after(1_000, Event::Clients);
        world.after(1_500, Event::Fault);
        world.after(5_000, Event::Operator);
        world
    }

    /// How many nodes, and how many of them open a key.
    pub(in crate::model) fn shape(&self) -> (usize, u8) {
        (self.nodes.len(), self.watch.found.threshold)
    }

    pub(in crate::model) fn after(&mut self, delay_ms: u64, event: Event) {
        self.queued += 1;
        self.queue.insert((self.now_ms + delay_ms, self.queued), event);
    }

    /// One event, and every invariant behind it.
    pub(in crate::model) fn step(&mut self) {
        let ((at_ms, number), event) = self.queue.pop_first().expect("ticks never end");
        self.now_ms = at_ms;
        self.watch.wall_ms = at_ms;
        self.steps += 1;
        self.trace.update(at_ms.to_be_bytes());
        self.trace.update(number.to_be_bytes());
        match event {
            Event::Deliver(message) => self.deliver(message),
            Event::Tick(process) => self.tick(process),
            Event::Finish(process, job) => self.finish(process, job),
            Event::Leave(process, message) => self.leave(process, message),
            Event::Start(node) => self.start(node),
            Event::Thaw(node) => self.thaw(node),
            Event::Clients => self.ask_something(),
            Event::Operator => self.operate(),
            Event::Fault => self.fault(),
            Event::Newcomer(number) => self.come(number),
            Event::Join => self.network.join(),
        }
        self.tempt();
        self.follow_members();
        self.watch.check_vaults();
        self.watch.check_memory(&self.machines, self.now_ms);
    }

    /// Clients and faults go by who is a member.
    fn follow_members(&mut self) {
        let members = &self.watch.state.members;
        // Of a joiner there may be nothing yet but its name.
        let there = || members.keys().filter(|node| self.machines.contains_key(node));
        if !members.is_empty() && !there().eq(self.nodes.iter()) {
            self.nodes = there().copied().collect();
            self.former = self.machines.keys().copied().filter(|node| !members.contains_key(node)).collect();
        }
    }

    /// The hash of everything that happened so far.
    pub(in crate::model) fn trace(&self) -> [u8; 32] {
        self.trace.clone().finalize().into()
    }

    // -- machines

    pub(in crate::model) fn start(&mut self, node: NodeId) {
        let machine = &self.machines[&node];
        let rests = machine.discarded || machine.daemon.is_some() || self.now_ms < machine.down_until_ms;
        if rests || self.draws_keys_again(node) {
            return;
        }
        let (now_ms, dice) = (self.now_ms, &mut self.dice);
        let machine = self.machines.get_mut(&node).expect("a machine");
        let drawn = machine.joining.take();
        machine.boots += 1;
        let process = Process { node, boot: machine.boots };
        let started = Daemon::start(process, machine.vault.clone(), drawn, now_ms + machine.ahead_ms, dice);
        let Ok(daemon) = started else {
            let power_lost = dice.chance(500);
            return self.kill(node, power_lost);
        };
        (machine.daemon, machine.frozen) = (Some(daemon), None);
        machine.inbox.clear();
        self.after(1, Event::Tick(process));
    }

    /// The process dies, and perhaps the power fails.
    pub(in crate::model) fn kill(&mut self, node: NodeId, power_lost: bool) {
        let down_ms = self.dice.between(50, 8_000);
        self.kill_for(node, power_lost, down_ms);
    }

    /// The same, and when it starts again.
    pub(in crate::model) fn kill_for(&mut self, node: NodeId, power_lost: bool, down_ms: u64) {
        let machine = self.machines.get_mut(&node).expect("a machine");
        (machine.daemon, machine.frozen, machine.joining) = (None, None, None);
        machine.inbox.clear();
        machine.vault.stop(power_lost, &mut self.dice);
        machine.db.stop(power_lost, &mut self.dice);
        machine.down_until_ms = machine.down_until_ms.max(self.now_ms + down_ms);
        self.after(down_ms, Event::Start(node));
    }

    pub(in crate::model) fn freeze(&mut self, node: NodeId, for_ms: u64, hears: bool) {
        let machine = self.machines.get_mut(&node).expect("a machine");
        if machine.daemon.is_some() && machine.frozen.is_none() {
            machine.frozen = Some(Frozen { since_ms: self.now_ms, until_ms: self.now_ms + for_ms, hears });
            self.after(for_ms, Event::Thaw(node));
        }
    }

    fn thaw(&mut self, node: NodeId) {
        let machine = self.machines.get_mut(&node).expect("a machine");
        if let Some(frozen) = machine.frozen.take_if(|frozen| frozen.until_ms <= self.now_ms) {
            machine.slept_ms += if frozen.hears { 0 } else { self.now_ms - frozen.since_ms };
            machine.stood_ms = machine.clock_ms(self.now_ms);
            for message in std::mem::take(&mut machine.inbox) {
                let delay = self.dice.below(20);
                self.after(delay, Event::Deliver(message));
            }
        }
    }

    /// Whatever a stopped process would do, it does when it goes on.
    fn postpone(&mut self, node: NodeId, event: Event) -> Option<Event> {
        let machine = &self.machines[&node];
        let Some(frozen) = &machine.frozen else { return Some(event) };
        let left_ms = frozen.until_ms.saturating_sub(self.now_ms) + 1;
        self.after(left_ms, event);
        None
    }

    fn tick(&mut self, process: Process) {
        if !self.lives(process) {
            return;
        }
        let Some(event) = self.postpone(process.node, Event::Tick(process)) else { return };
        self.run(process, Daemon::tick);
        let pause = self.dice.between(TICK_MS.0, TICK_MS.1);
        self.after(pause, event);
    }

    fn deliver(&mut self, message: Message) {
        message.body.digest(&mut self.trace);
        let node = match message.to {
            To::Clients => return self.answer(&message),
            To::Node(node) | To::Process(Process { node, .. }) => node,
        };
        // A stranger has no machine.
        let Some(machine) = self.machines.get_mut(&node) else { return };
        let Some(process) = machine.daemon.as_ref().map(|daemon| daemon.me) else { return };
        if matches!(message.to, To::Process(to) if to != process) {
            return;
        }
        if let Some(frozen) = &machine.frozen {
            if frozen.hears {
                machine.inbox.push(message);
            }
            return;
        }
        self.run(process, |daemon, context| daemon.receive(context, message));
    }

    /// Lets a process do something, if it is still the one that was meant, and does what comes of it.
    pub(in crate::model) fn run(
        &mut self,
        process: Process,
        act: impl FnOnce(&mut Daemon, &mut Context<'_>) -> Result<(), Killed>,
    ) {
        let machine = self.machines.get_mut(&process.node).expect("a machine");
        let now_ms = machine.clock_ms(self.now_ms);
        let awake_ms = now_ms - machine.slept_ms;
        let Some(daemon) = machine.daemon.as_mut().filter(|daemon| daemon.me == process) else { return };
        let mut context = Context {
            now_ms,
            awake_ms,
            dice: &mut self.dice,
            db: &mut machine.db,
            watch: &mut self.watch,
            lies: machine.lies,
            out: Vec::new(),
        };
        let done = act(daemon, &mut context);
        let out = context.out;
        out.into_iter().for_each(|out| self.send_out(process, out));
        if done.is_err() {
            let power_lost = self.dice.chance(500);
            self.kill(process.node, power_lost);
        }
    }

    fn send_out(&mut self, process: Process, out: Out) {
        match out {
            Out::Send(message) => self.send(message),
            Out::Finish(job) => {
                let delay = self.dice.below(30);
                self.after(delay, Event::Finish(process, job));
            }
            Out::Answer(client, answer) => {
                let body = Body::Answer(client, Arc::new(*answer));
                let delay = self.dice.below(10);
                self.after(delay, Event::Leave(process, Message { from: Some(process), to: To::Clients, body }));
            }
        }
    }

    fn finish(&mut self, process: Process, job: u64) {
        if self.lives(process) && self.postpone(process.node, Event::Finish(process, job)).is_some() {
            self.run(process, |daemon, context| {
                daemon.finish(context, job);
                Ok(())
            });
        }
    }

    fn lives(&self, process: Process) -> bool {
        self.machines[&process.node].daemon.as_ref().is_some_and(|daemon| daemon.me == process)
    }

    fn leave(&mut self, process: Process, message: Message) {
        if self.lives(process)
            && let Some(Event::Leave(_, message)) = self.postpone(process.node, Event::Leave(process, message))
        {
            self.send(message);
        }
    }

    pub(in crate::model) fn send(&mut self, message: Message) {
        let to = match message.to {
            To::Node(node) | To::Process(Process { node, .. }) => Some(node),
            To::Clients => None,
        };
        let from = message.from.map(|process| process.node);
        for delay in self.network.carry(from, to, &mut self.dice) {
            self.after(delay, Event::Deliver(message.clone()));
        }
    }

    // -- clients

    fn ask_something(&mut self) {
        if !self.calm {
            if let Some((node, id, request)) = self.clients.ask(self.now_ms, &self.nodes, &mut self.dice) {
                self.request(node, id, request);
            }
            let pause = self.dice.between(10, 300);
            self.after(pause, Event::Clients);
        }
    }

    pub(in crate::model) fn request(&mut self, node: NodeId, id: u64, request: Arc<Request>) {
        self.send(Message { from: None, to: To::Node(node), body: Body::Request(id, request) });
    }

    fn answer(&mut self, message: &Message) {
        if let Body::Answer(id, answer) = &message.body {
            let disks = self.machines.iter().map(|(&node, machine)| (node, machine.db.durable()));
            let disks: BTreeMap<NodeId, &Image> = disks.collect();
            self.clients.hear(*id, answer, &mut self.watch, &disks);
        }
    }
}

impl Machine {
    pub(in crate::model) fn new(vault: VaultDisk, db: Database, dice: &mut Dice) -> Self {
        Self {
            ahead_ms: dice.between(0, 1_000_000),
            vault,
            db,
            daemon: None,
            frozen: None,
            lies: false,
            inbox: Vec::new(),
            boots: 0,
            stood_ms: 0,
            slept_ms: 0,
            down_until_ms: 0,
            joining: None,
            discarded: false,
        }
    }

    /// Whether the process ran all of the last `for_ms`.
    pub(in crate::model) fn has_run_since(&self, clock_ms: u64, for_ms: u64) -> bool {
        self.frozen.is_none() && clock_ms >= self.stood_ms + for_ms
    }

    /// This machine's boot clock.
    pub(in crate::model) fn clock_ms(&self, now_ms: u64) -> u64 {
        now_ms + self.ahead_ms
    }
}
