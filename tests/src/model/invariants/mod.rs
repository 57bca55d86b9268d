//! What must hold after every step. Each function's first sentence is what it checks; the codes are those of the design.
//!
//! [`Watch`] sees everything that a real observer could not: every share that is opened, every entry that is applied, every
//! lock that is made. It holds duplicates of all bundles, so that it can open what only the holders can. A violation ends the
//! run; the run says which seed and which step it was.
//!
//! S8 (no secret in a log, an error or a core) is about bytes that this model does not write; `secrets` shows it on the real
//! daemons. D4 is checked as far as epochs, terms and locks go: an old image of a whole directory is not started. Two rules are
//! rules about what operators ask: a revocation may leave a member without a way to open its lock, so none is ordered that does
//! when it is ordered; and of a former member it is expected that it learns of it only if enough of those that it knows are left.
//!
//! Each rule about members that stay was broken once by hand, and seen to be caught, with seed 1 and 100 000 steps at most:
//!
//! | broken | caught by |
//! |---|---|
//! | a lease is twice as long, or never over; it runs from the receipt; it is taken before its index is applied | `lease_still_holds`, `given`, `confirmed` |
//! | a question for a lease is answered by a round that was under way | `confirmed` |
//! | a client believes an answer longer than the lease, or counts from the receipt | `lease_still_holds` |
//! | keys are not wiped; a load puts one back after the wipe | `check_memory`, `take_shares` |
//! | a node serves without a seat; a stranger is given shares; a locked node opens no pieces | `check_memory`, `given`, L1 |
//! | the vault, the log or a vote is told of before it is synced | `lock_key_leaves`, `can_be_rebuilt`, `raft_leaves` |
//! | COMMIT erases at once, or all others; PREP erases the others, or counts as COMMIT | `old_keys_outlive_their_grace`, `every_piece_can_be_opened` |
//! | a generation is used twice; a lock opens with one disk fewer; an old image is unlocked | `lock_made`, `piece_leaves` |
//! | `apply`: ready after t - 1, activation without acknowledgements, or with false ones | `become_ready`, `activated`, L1 |
//! | `apply`: time goes back, a name is used twice, a request makes two versions | `commit`, `made_once` |
//! | a restart forgets requests | `applied` |
//! | `apply` takes a second dealing of a version | `no_record_changes` |
//! | a repeated request is dealt again | `conflicts` |
//! | a commitment is not checked; neither is the key-check value; a quorum closes below t | `accepted`, `rebuilt`, `every_quorum_agrees` |
//!
//! And each rule about members that change, with seeds from 1 on and 300 000 steps at most:
//!
//! | broken | caught by |
//! |---|---|
//! | a lock keeps the share keys of epochs that are over, and says so, or says that it does not | L1, `share_keys_are_as_due` (S2) |
//! | no node is ever said to owe an erasure; lock keys for former members are kept | `old_share_keys_are_gone`, `lock_keys_of_former_members_are_gone` |
//! | the share keys of a RETIRING epoch are given up, or of all but the ACTIVE one, or the one that was just drawn | `bundle_sealed` (D2), `share_keys_are_as_due` (D6) |
//! | an epoch is retired before the locks are made for the next one | `lock_made` (S1) |
//! | an epoch is ACTIVE without acknowledgements, with one fewer, or with one for records that are not there yet | `activated` (D1) |
//! | a node with a session and without a seat is given shares | `given` (S3) |
//! | a denial is not kept, not looked at, comes with the commit instead of the entry or the other way round, or ends too early | `accepted_from` (S4) |
//! | a member that was left out, or revoked, is taken into the roster again; its lock is opened | `accepted_from` (S4) |
//! | a vote stays when its node goes; an operation ends before its node is out, or is taken for done and never goes on | `members_are_in_order` (M1), L1 |
//! | an operation begins while another one runs; a PENDING epoch stays when its operation gives way; two epochs are ACTIVE; an operation ends before its epoch | `members_are_in_order` (M2) |
//!
//! These were found broken in the program itself:
//!
//! | found | by |
//! |---|---|
//! | a key that was checked in the PENDING epoch alone is never ready | L1 |
//! | a revocation that takes over a removal among four voters leaves too few voters to decide it | L1 |
//! | a revoked node is trusted again when the voters change before the state has forgotten it | `accepted_from` (S4) |
//!
//! Not seen, because a second guard stands behind the first: a key-check value that is not looked at (commitments), a rotation
//! from another version and a record of another key (its identity is in the record, in its AAD, and behind its check value), a batch
//! that is dealt from after its term, an index that `apply` lets be used twice (the dealer counts them), an open phase that answers work
//! (the lease), a state that is content with a lock which keeps too much (the node is not), `apply` that lets a removal strand a member
//! (the plan waits), an acknowledgement that is taken for one of later records too (there are none), an epoch that is retired
//! before all know the next one (they ask again), shares of an epoch that is not ACTIVE for one of its holders (no node needs them).

mod answers;
mod epochs;
mod locks;
mod members;
mod shares;
mod state;

use std::collections::{BTreeMap, BTreeSet};

use quorate_node::base::phase::Phase;
use quorate_node::memory::holder::Holder;
use quorate_node::vault::Vault;
use quorate_raft::Membership;
use quorate_raft::command::{Found, Outcome};
use quorate_raft::refusal::Refusal;
use quorate_raft::state::State;
use quorate_shares::ids::{BatchId, ClusterId, Epoch, KeyName, KeyVersionId, NodeId, ShareKeyGeneration};
use quorate_shares::lock::Bundle;
use quorate_shares::seal::Committee;
use quorate_shares::secret::Secret;

use crate::model::node::{LEASE, WIPE_AFTER_MS, share_keys};
use crate::model::raft::RaftMessage;
use crate::model::world::Machine;
use crate::model::world::disk::{Entry, Image, VaultDisk, VaultImage};
use crate::model::world::founding::{Founded, boot_pk};
use crate::model::world::message::Process;

/// A process has looked at its lease within this time, unless it was stopped.
const TICK_AFTER_MS: u64 = 500;

/// Shares of one run that a thief looks for; a few of every holder are enough.
const PLAIN_MAX: usize = 200;

/// The observer that sees everything, and checks every rule.
pub(super) struct Watch {
    pub(super) cluster: ClusterId,
    pub(super) found: Found,
    /// Virtual time, which is also what leaders stamp.
    pub(super) wall_ms: u64,
    /// What was committed, in order, and what it was answered.
    committed: Vec<(Entry, Option<Result<Outcome, Refusal>>)>,
    /// The state and the rows that follow from it.
    pub(super) state: State,
    pub(super) image: Image,
    /// The newest membership that is committed.
    pub(super) membership: Membership,
    /// Members that a revocation has left without a way to open their locks.
    pub(super) stranded: BTreeSet<NodeId>,
    /// What each order began.
    begun: BTreeMap<[u8; 16], Epoch>,
    /// Until when a node may serve that has lost its seat.
    unseated: BTreeMap<NodeId, u64>,
    /// Where each version was made, and where its record in each epoch was dealt.
    made_at: BTreeMap<KeyVersionId, u64>,
    dealt_at: BTreeMap<(KeyVersionId, Epoch), u64>,
    ready: BTreeSet<KeyVersionId>,
    /// Every record that there ever was, and what it was dealt with.
    dealt: BTreeMap<(KeyVersionId, Epoch), Vec<u8>>,
    headers: BTreeMap<BatchId, Vec<u8>>,
    committees: BTreeMap<Epoch, Committee>,
    /// The versions that were reshared to each epoch.
    reshared: BTreeMap<Epoch, Vec<KeyVersionId>>,
    holders: BTreeMap<NodeId, Holder>,
    /// The share keys that each node registered, and all that it ever drew.
    keys: BTreeMap<NodeId, Vec<(ShareKeyGeneration, Secret<32>)>>,
    drawn: BTreeMap<NodeId, Vec<(ShareKeyGeneration, Secret<32>)>>,
    /// Which share keys each lock protects, by its node and generation.
    sealed: BTreeMap<(NodeId, u64), BTreeSet<ShareKeyGeneration>>,
    /// Every secret of every bundle: what must lie nowhere in the clear.
    pub(super) secrets: Vec<Secret<32>>,
    shares: BTreeMap<(KeyVersionId, Epoch, u8), [u8; 32]>,
    /// Some shares as they are: what a thief must not find in the clear.
    pub(super) plain: Vec<Secret<32>>,
    verified: BTreeMap<(KeyVersionId, Epoch), BTreeSet<NodeId>>,
    acked: BTreeMap<Epoch, BTreeSet<NodeId>>,
    disks: BTreeMap<NodeId, VaultDisk>,
    /// The boot identities of those that joined.
    boot_pks: BTreeMap<NodeId, [u8; 32]>,
    vaults: BTreeMap<NodeId, (VaultImage, Vault)>,
    locks: BTreeMap<NodeId, u64>,
    /// Lock keys on disks: holder, peer, number; and for how long of its holder's running time a newer one has been
    /// confirmed, in seconds.
    held_keys: BTreeMap<(NodeId, NodeId, u64), Option<u64>>,
    highest: BTreeMap<NodeId, (u64, u64)>,
    told: BTreeMap<(NodeId, NodeId), u64>,
    /// Until when each process has a lease, by the observer's own reckoning.
    leases: BTreeMap<Process, u64>,
    /// Questions for a lease.
    questions: BTreeMap<(Process, u64), Question>,
    /// What clients were told: entries of the log, and when.
    acknowledged: Vec<(u64, u64)>,
    newest: BTreeMap<KeyName, Vec<(u64, quorate_shares::ids::KeyVersion)>>,
    /// Counted, so that a run in which nothing happened fails.
    pub(super) seen: Seen,
}

/// A question for a lease: when it was asked, and what was committed then.
struct Question {
    sent_ms: u64,
    committed: u64,
    seated: bool,
}

/// What a run went through.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Seen {
    pub(super) shares: u64,
    pub(super) locks: u64,
    pub(super) changes: u64,
    pub(super) encrypted: u64,
    pub(super) decrypted: u64,
    pub(super) discarded: u64,
    pub(super) erased: u64,
    pub(super) refused: u64,
    pub(super) epochs: u64,
    pub(super) swept: u64,
    pub(super) rekeyed: u64,
    pub(super) removed: u64,
    pub(super) revoked: u64,
    pub(super) joined: u64,
    pub(super) replaced: u64,
    /// Former members that learned of it, and rest.
    pub(super) rested: u64,
}

impl Seen {
    /// What happened in two runs together.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            shares: self.shares + other.shares,
            locks: self.locks + other.locks,
            changes: self.changes + other.changes,
            encrypted: self.encrypted + other.encrypted,
            decrypted: self.decrypted + other.decrypted,
            discarded: self.discarded + other.discarded,
            erased: self.erased + other.erased,
            refused: self.refused + other.refused,
            epochs: self.epochs + other.epochs,
            swept: self.swept + other.swept,
            rekeyed: self.rekeyed + other.rekeyed,
            removed: self.removed + other.removed,
            revoked: self.revoked + other.revoked,
            joined: self.joined + other.joined,
            replaced: self.replaced + other.replaced,
            rested: self.rested + other.rested,
        }
    }

    /// A run in which one of these did not happen shows nothing about it.
    pub(super) fn is_eventful(self) -> bool {
        let served = [self.shares, self.locks, self.changes, self.encrypted, self.decrypted, self.discarded];
        let refused = [self.erased, self.refused, self.rested];
        let moved = [self.epochs, self.swept, self.rekeyed, self.removed, self.revoked, self.joined, self.replaced];
        served.iter().chain(&refused).chain(&moved).all(|count| *count > 0)
    }
}

impl Watch {
    pub(super) fn new(
        founded: &Founded,
        bundles: &BTreeMap<NodeId, Bundle>,
        disks: BTreeMap<NodeId, VaultDisk>,
    ) -> Self {
        let cluster = founded.found.cluster;
        let holder = |(&node, bundle): (&NodeId, &Bundle)| (node, Holder::new(cluster, node, share_keys(bundle)));
        let keys = || bundles.iter().map(|(&node, bundle)| (node, share_keys(bundle))).collect();
        let sealed = |(&node, bundle): (&NodeId, &Bundle)| {
            ((node, 1), bundle.share_keys.iter().map(|key| key.generation).collect())
        };
        Self {
            cluster,
            found: founded.found.clone(),
            wall_ms: 0,
            committed: Vec::new(),
            state: State::default(),
            image: Image::default(),
            membership: Membership::default(),
            stranded: BTreeSet::new(),
            begun: BTreeMap::new(),
            unseated: BTreeMap::new(),
            made_at: BTreeMap::new(),
            dealt_at: BTreeMap::new(),
            ready: BTreeSet::new(),
            dealt: BTreeMap::new(),
            headers: BTreeMap::new(),
            committees: BTreeMap::new(),
            reshared: BTreeMap::new(),
            keys: keys(),
            drawn: keys(),
            sealed: bundles.iter().map(sealed).collect(),
            secrets: bundles.values().flat_map(secrets).collect(),
            holders: bundles.iter().map(holder).collect(),
            shares: BTreeMap::new(),
            plain: Vec::new(),
            verified: BTreeMap::new(),
            acked: BTreeMap::new(),
            disks,
            boot_pks: BTreeMap::new(),
            vaults: BTreeMap::new(),
            locks: BTreeMap::new(),
            held_keys: BTreeMap::new(),
            highest: BTreeMap::new(),
            told: BTreeMap::new(),
            leases: BTreeMap::new(),
            questions: BTreeMap::new(),
            acknowledged: Vec::new(),
            newest: BTreeMap::new(),
            seen: Seen::default(),
        }
    }

    /// A machine that joins, with an empty disk.
    pub(super) fn comes(&mut self, node: NodeId, boot_pk: [u8; 32], disk: VaultDisk) {
        self.boot_pks.insert(node, boot_pk);
        self.disks.insert(node, disk);
    }

    /// What it has drawn, before its first lock.
    pub(super) fn draws(&mut self, node: NodeId, bundle: &Bundle) {
        self.secrets.extend(secrets(bundle));
        self.keys.insert(node, share_keys(bundle));
        self.drawn.entry(node).or_default().extend(share_keys(bundle));
        self.holders.insert(node, Holder::new(self.cluster, node, share_keys(bundle)));
    }

    /// What the owner of a disk shows of itself.
    pub(super) fn boot_pk(&self, node: NodeId) -> [u8; 32] {
        self.boot_pks.get(&node).copied().unwrap_or_else(|| boot_pk(node))
    }

    /// A sentence that must not become true.
    pub(super) fn broken(&self, sentence: &str) {
        panic!("{sentence}");
    }

    fn holds(&self, holds: bool, sentence: impl FnOnce() -> String) {
        if !holds {
            self.broken(&sentence());
        }
    }

    /// A process asks for a lease, now.
    pub(super) fn asked(&mut self, process: Process, question: u64) {
        let seated = self.state.active().is_none_or(|active| active.x_of(process.node).is_some());
        let question_now = Question { sent_ms: self.wall_ms, committed: self.committed(), seated };
        self.questions.insert((process, question), question_now);
    }

    /// A lease is granted: it began when it was asked for, and everything that was committed then is applied by now. I9: a node
    /// that had lost its seat by then gets none.
    pub(super) fn confirmed(&mut self, process: Process, question: u64, applied: u64) {
        let Some(Question { sent_ms, committed, seated }) = self.questions.remove(&(process, question)) else {
            return self.broken("a lease is granted that was not asked for");
        };
        self.holds(applied >= committed, || {
            format!(
                "node {} takes a lease at entry {applied}, although {committed} was committed before it asked",
                process.node
            )
        });
        let joined = self.state.active().is_some_and(|active| active.x_of(process.node).is_some());
        self.holds(seated || joined, || format!("I9: node {} gets a lease without a seat", process.node));
        let until = self.leases.entry(process).or_default();
        *until = (*until).max(sent_ms + LEASE.as_millis() as u64);
    }

    /// D3: a vote and an entry are durable before another node is told of them.
    pub(super) fn raft_leaves(&self, node: NodeId, to: NodeId, message: &RaftMessage, durable: &Image) {
        let told = match message {
            RaftMessage::Voted { term, granted: true } => durable.term == *term && durable.voted == Some(to),
            RaftMessage::Appended { term, fits: true, matched, .. } => {
                durable.term == *term && durable.last_index() >= *matched
            }
            RaftMessage::Vote { term, .. } => durable.term >= *term && durable.voted.is_some(),
            _ => true,
        };
        self.holds(told, || format!("D3: node {node} tells node {to} of a vote or an entry that is not durable"));
    }

    pub(super) fn leased_until(&self, process: Process) -> u64 {
        self.leases.get(&process).copied().unwrap_or(0)
    }

    /// A node that has lost its lease for long holds no root of a key, unless it could not run since; and (I9) none serves
    /// without a seat in the active epoch.
    pub(super) fn check_memory(&self, machines: &BTreeMap<NodeId, Machine>, now_ms: u64) {
        for (node, machine) in machines {
            let Some(daemon) = &machine.daemon else { continue };
            let Some(unlocked) = &daemon.unlocked else { continue };
            let runs = machine.has_run_since(machine.clock_ms(now_ms), TICK_AFTER_MS);
            // A node that has just lost its seat serves as long as its lease lasts.
            let seated = self.state.active().is_some_and(|epoch| epoch.x_of(*node).is_some());
            let lasts = self.unseated.get(node).is_some_and(|until_ms| now_ms <= *until_ms);
            self.holds(daemon.phase != Phase::Serving || seated || lasts || !runs, || {
                format!("I9: node {node} serves without a seat")
            });
            let lost_ms = now_ms.checked_sub(self.leased_until(daemon.me)).filter(|_| runs);
            let late = lost_ms.is_some_and(|lost| lost >= WIPE_AFTER_MS + TICK_AFTER_MS);
            self.holds(!late || unlocked.roots.is_empty(), || {
                format!("node {node} keeps a key {lost_ms:?} ms after its lease")
            });
        }
    }

    /// How far the committed log is known.
    pub(super) fn committed(&self) -> u64 {
        self.committed.len() as u64
    }
}

/// Every secret of a bundle.
fn secrets(bundle: &Bundle) -> Vec<Secret<32>> {
    let seeds = bundle.share_keys.iter().map(|key| key.seed.duplicate());
    let storage = bundle.storage_keys.iter().map(|key| key.key.duplicate());
    seeds.chain(storage).chain([bundle.op_seed.duplicate()]).collect()
}
