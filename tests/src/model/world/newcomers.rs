//! Machines that join: an operator invites them, as new members or in place of a member.
//!
//! How an invitation is proved, and what is answered, is not in the model: a machine that has one joins by the entry that
//! `inviter::take_proof` would propose, and then shown the roster of a member that knows it. From there on it does what
//! `founding::run` does (`node::joining`). Until its lock is durable its keys are in memory only: a process that dies before
//! draws new ones, and asks again.

use quorate_node::vault::invitation::{InvitationKey, Inviter};
use quorate_node::vault::{Founding, Invited, Role, Roster, Vault};
use quorate_raft::command::{Change, Invite, Join};
use quorate_shares::ids::{NodeId, NodeName};
use quorate_shares::kem::PublicKey;
use quorate_shares::lock::Bundle;
use quorate_shares::secret::Secret;
use sha2::{Digest, Sha256};

use crate::model::world::disk::Database;
use crate::model::world::founding::{self, bundle, disk_of};
use crate::model::world::{Event, Machine, World};

/// No cluster is larger: every quorum of its holders is tried.
const MEMBERS_MAX: usize = 6;
/// How many are on their way at most.
const NEWCOMERS_MAX: usize = 2;
/// A machine that has not joined after so many tries gives up.
const TRIES_MAX: u32 = 60;

/// A machine with an invitation.
pub(in crate::model) struct Newcomer {
    name: NodeName,
    proof_key: [u8; 32],
    boot_pk: [u8; 32],
    op_pk: [u8; 32],
    /// What the present process has drawn.
    bundle: Bundle,
    /// The id that it joined with; its machine is there.
    node: Option<NodeId>,
    /// It is silent for ever once it has joined.
    silent: bool,
    tries: u32,
}

impl World {
    /// An invitation for a new node, or for one that replaces `gone`.
    pub(in crate::model) fn invite(&mut self, gone: Option<NodeId>) {
        let full = self.watch.state.members.len() + usize::from(gone.is_none()) > MEMBERS_MAX;
        if full || self.newcomers.len() >= NEWCOMERS_MAX {
            return;
        }
        self.invited += 1;
        let number = self.invited;
        let proof_key = self.dice.bytes();
        let ttl_ms = if self.dice.chance(150) { 500 } else { 60_000 };
        self.propose_at_leader(Change::Invite(Invite { proof_key, name: None, ttl_ms }));
        if let Some(gone) = gone {
            self.propose_at_leader(Change::Replace { invitation: invitation(&proof_key), gone });
        }
        let newcomer = Newcomer {
            name: format!("m{number}").parse().expect("a node name"),
            proof_key,
            boot_pk: self.dice.bytes(),
            op_pk: self.dice.bytes(),
            bundle: bundle(&mut self.dice),
            node: None,
            silent: self.dice.chance(100),
            tries: 0,
        };
        self.newcomers.insert(number, newcomer);
        let pause = self.dice.between(100, 3_000);
        self.after(pause, Event::Newcomer(number));
    }

    /// The next thing that becomes of a newcomer.
    pub(in crate::model) fn come(&mut self, number: u64) {
        let Some(newcomer) = self.newcomers.get_mut(&number) else { return };
        newcomer.tries += 1;
        let (boot_pk, op_pk) = (newcomer.boot_pk, newcomer.op_pk);
        let state = &self.watch.state;
        let known = state.members.values().find(|member| member.boot_pk == boot_pk && member.op_pk == op_pk);
        let given_up = state.former.values().any(|former| former.boot_pk == boot_pk);
        let goes_on = match known.map(|member| member.node) {
            _ if given_up => self.discard(number),
            Some(node) => self.be_shown(number, node),
            None => self.ask_to_join(number),
        };
        match goes_on {
            true => {
                let pause = self.dice.between(200, 1_500);
                self.after(pause, Event::Newcomer(number));
            }
            false => drop(self.newcomers.remove(&number)),
        }
    }

    fn ask_to_join(&mut self, number: u64) -> bool {
        let newcomer = &self.newcomers[&number];
        let join = Join {
            invitation: invitation(&newcomer.proof_key),
            name: newcomer.name.clone(),
            addresses: vec![format!("{}:7250", newcomer.name)],
            boot_pk: newcomer.boot_pk,
            op_pk: newcomer.op_pk,
            share_pk: PublicKey::of_seed(&newcomer.bundle.share_keys[0].seed).as_bytes().to_vec(),
        };
        let wanted = newcomer.node.is_some() || (newcomer.tries < TRIES_MAX && !self.calm);
        if wanted {
            self.propose_at_leader(Change::Join(join));
        }
        wanted
    }

    /// Its machine is there, with an empty disk, or its process begins once more; until its lock is durable.
    fn be_shown(&mut self, number: u64, node: NodeId) -> bool {
        let newcomer = self.newcomers.get_mut(&number).expect("it comes");
        if newcomer.silent {
            return false;
        }
        if let Some(machine) = self.machines.get_mut(&node) {
            if machine.vault.durable().open().lock.is_some() {
                return false;
            }
            if machine.daemon.is_none() && machine.joining.is_none() {
                machine.joining = Some(newcomer.bundle.duplicate());
                self.watch.draws(node, &newcomer.bundle);
                self.start(node);
            }
            return true;
        }
        let rosters: Vec<Roster> =
            self.machines.values().map(|machine| machine.vault.durable().open().roster).collect();
        let rosters: Vec<_> = rosters.into_iter().filter(|roster| roster.member(node).is_some()).collect();
        if rosters.is_empty() {
            return true;
        }
        let roster = rosters[self.dice.below(rosters.len() as u64) as usize].clone();
        newcomer.node = Some(node);
        let mut vault = Vault::new(self.watch.cluster, Secret::random(self.dice.rng()));
        vault.identity.node = Some(node);
        vault.roster = roster;
        let key = InvitationKey::from(Secret::take(&mut newcomer.proof_key.clone()));
        let inviters = vec![Inviter { boot_pk: self.dice.bytes(), address: founding::address(NodeId(1)) }];
        let role = Role::Joiner(Invited { key, inviters });
        let addresses = vec![founding::address(node)];
        vault.founding = Some(Founding { attempt: 0, name: newcomer.name.clone(), addresses, role });
        let disk = disk_of(vault);
        self.watch.comes(node, newcomer.boot_pk, disk.clone());
        self.watch.draws(node, &newcomer.bundle);
        let mut machine = Machine::new(disk, Database::default(), &mut self.dice);
        machine.joining = Some(newcomer.bundle.duplicate());
        self.machines.insert(node, machine);
        self.start(node);
        true
    }

    /// Whether a machine must join again before its process can begin: the keys in its memory are lost.
    pub(in crate::model) fn draws_keys_again(&mut self, node: NodeId) -> bool {
        let Some(newcomer) = self.newcomers.values_mut().find(|newcomer| newcomer.node == Some(node)) else {
            return false;
        };
        let machine = &self.machines[&node];
        if machine.joining.is_some() || machine.vault.durable().open().lock.is_some() {
            return false;
        }
        newcomer.bundle = bundle(&mut self.dice);
        newcomer.op_pk = self.dice.bytes();
        true
    }

    /// It was given up. A lock it has none; its disk is worth nothing, not even to itself.
    fn discard(&mut self, number: u64) -> bool {
        let machine = self.newcomers[&number].node.and_then(|node| self.machines.get_mut(&node));
        if let Some(machine) = machine.filter(|machine| machine.vault.durable().open().lock.is_none()) {
            machine.daemon = None;
            machine.discarded = true;
        }
        false
    }
}

fn invitation(proof_key: &[u8; 32]) -> [u8; 32] {
    Sha256::digest(proof_key).into()
}
