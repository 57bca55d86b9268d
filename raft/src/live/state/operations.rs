//! Operations: what an operator asks of the cluster, from the intent to the end.
//!
//! The intent is in the state before anything is done about it, so any leader can continue; [`plan`](crate::live::plan) finds
//! the next step. One operation runs at a time. A revocation preempts the operation that runs. So that nothing stays
//! half-way, it also revokes the nodes that were about to join or to leave.

use std::collections::BTreeSet;

use quorate_shares::ids::{Epoch, KeyVersionId, NodeId, ShareKeyGeneration};
use quorate_shares::kem::PublicKey;

use super::{
    Ended, EpochInfo, EpochPhase, Former, LockReport, Member, MemberState, Operations, Running, State, epochs, majority,
};
use crate::live::command::{Begin, Operation, Outcome, RegisterShareKey, RequestId};
use crate::live::refusal::Refusal;
use crate::live::rows::{Row, RowKey, Rows};

pub(super) fn begin(state: &mut State, begin: &Begin, rows: &mut Rows) -> Result<Outcome, Refusal> {
    if let Some(known) = state.operation_of(&begin.request) {
        return Ok(Outcome::Begun { operation: known.epoch });
    }
    let mut operation = begin.operation.clone();
    if operation.joining().is_some() {
        // Only a proved invitation begins these.
        return Err(Refusal::UnknownInvitation);
    }
    let leaving = operation.leaving();
    if let Some(&node) = leaving.iter().find(|node| !state.members.contains_key(node)) {
        return Err(Refusal::UnknownMember { node });
    }
    let running = state.operations.running.clone();
    if let Some(running) = &running {
        if running.operation == operation {
            let operation = running.epoch;
            give_up(state, &begin.abandon, rows);
            return Ok(Outcome::Begun { operation });
        }
        let Operation::Revoke { nodes } = &mut operation else {
            return Err(Refusal::OperationRunning { operation: running.epoch });
        };
        *nodes = taken_along(state, running, nodes);
    }
    check_remaining(state, begin, &operation)?;
    if let Some(was) = running {
        epochs::abandon_pending(state, rows);
        state.operations.ended = Some(Ended { was, ended_ms: state.time_ms, preempted: true });
    }
    let (epoch, request, began_ms) = (state.next_epoch(), begin.request, state.time_ms);
    let abandoned = begin.abandon.clone();
    state.operations.running = Some(Running { epoch, operation, request, began_ms, abandoned });
    store(state, rows);
    Ok(Outcome::Begun { operation: epoch })
}

/// The running operation no longer waits for these nodes.
fn give_up(state: &mut State, abandon: &BTreeSet<NodeId>, rows: &mut Rows) {
    let Some(running) = &mut state.operations.running else { return };
    if !abandon.is_subset(&running.abandoned) {
        running.abandoned.extend(abandon);
        store(state, rows);
    }
}

/// The nodes that a revocation of `nodes` revokes when it preempts the running operation. The joiner is among them until it
/// holds shares of the ACTIVE epoch. From then on it has joined: it votes, and only old shares are left to be erased, which
/// the revocation does as well. The nodes that were about to leave are among them, too, except if the operation can be taken
/// back and
/// - too few holders would remain without them for the revocation itself, or
/// - only the joiner is revoked: a joiner that does not come costs no member its place.
fn taken_along(state: &State, running: &Running, nodes: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    let has_joined = |node: &NodeId| state.active().is_some_and(|active| active.x_of(*node).is_some());
    let joining = running.operation.joining().filter(|node| !has_joined(node));
    let is_member = |node: &NodeId| state.members.contains_key(node);
    let least: BTreeSet<_> = nodes.iter().copied().chain(joining).filter(is_member).collect();
    let all: BTreeSet<_> = least.iter().copied().chain(running.operation.leaving()).filter(is_member).collect();
    let gives_up = nodes.iter().all(|node| Some(*node) == joining);
    let too_few = state.active().is_some_and(|active| holders_without(state, active, &all) < active.threshold.into());
    if can_be_taken_back(state, running) && (gives_up || too_few) { least } else { all }
}

/// Whether the operation changed nothing yet that members depend on: it removed no member from the voters, and none from the
/// holders of the ACTIVE epoch. A replacement cannot be taken back once the joiner has its first lock.
fn can_be_taken_back(state: &State, running: &Running) -> bool {
    match &running.operation {
        Operation::Remove { .. } => state.active().is_some_and(|active| active.epoch != running.epoch),
        Operation::Replace { node, .. } => {
            state.members.get(node).is_none_or(|member| member.state == MemberState::Joining)
        }
        Operation::Revoke { .. } => false,
        Operation::Join { .. } | Operation::Rekey => true,
    }
}

/// Checks that enough holders remain without these nodes: the next epoch is dealt from their shares.
pub(super) fn check_holders(state: &State, leaving: &BTreeSet<NodeId>) -> Result<(), Refusal> {
    let Some(active) = state.active() else { return Ok(()) };
    let holders = holders_without(state, active, leaving);
    if holders < usize::from(active.threshold) {
        return Err(Refusal::TooFewRemain { remaining: holders, needed: active.threshold });
    }
    Ok(())
}

/// The number of holders of an epoch that are members, without these nodes.
fn holders_without(state: &State, epoch: &EpochInfo, leaving: &BTreeSet<NodeId>) -> usize {
    state.members.keys().filter(|node| !leaving.contains(node) && epoch.x_of(**node).is_some()).count()
}

/// Checks that the nodes that remain can do without the nodes that leave.
fn check_remaining(state: &State, begin: &Begin, operation: &Operation) -> Result<(), Refusal> {
    let cluster = state.cluster.as_ref().ok_or(Refusal::NotFounded)?;
    if state.active().is_none() {
        return Err(Refusal::WrongEpoch { given: Epoch(0), active: None });
    }
    let leaving = operation.leaving();
    if leaving.is_empty() {
        return if *operation == Operation::Rekey { Ok(()) } else { Err(Refusal::MemberCount { members: 0 }) };
    }
    check_holders(state, &leaving)?;
    if operation.revokes() {
        return Ok(());
    }
    match state.members.keys().filter(|node| !leaving.contains(node)).count() {
        1 if !cluster.allow_solo => Err(Refusal::SoloNotAllowed),
        2 if !cluster.accept_no_redundancy && !begin.accept_no_redundancy => Err(Refusal::NoRedundancyNotAccepted),
        _ => Ok(()),
    }
}

pub(super) fn register_share_key(
    state: &mut State,
    register: &RegisterShareKey,
    rows: &mut Rows,
) -> Result<Outcome, Refusal> {
    let node = register.node;
    let next = state.next_epoch();
    let share_pk = PublicKey::parse(&register.share_pk).map_err(|_| Refusal::BadShareKey { node })?;
    let member = state.members.get_mut(&node).ok_or(Refusal::UnknownMember { node })?;
    if member.skgen == register.skgen && member.share_pk == share_pk {
        return Ok(Outcome::ShareKeyRegistered { node });
    }
    // One key for each epoch, drawn before the epoch is opened: a dealing always finds the holder's own key.
    if register.skgen != ShareKeyGeneration(next.0) || member.skgen >= register.skgen {
        return Err(Refusal::StaleShareKey { node });
    }
    (member.skgen, member.share_pk) = (register.skgen, share_pk);
    rows.put(RowKey::Member(node), Row::Member(member.clone()));
    Ok(Outcome::ShareKeyRegistered { node })
}

/// Ends the membership of the nodes that leave. A planned removal waits until every lock can be opened without them. Their own
/// lock reports stay until the operation is over: they say how many disks open those locks.
pub(super) fn expel(state: &mut State, operation: Epoch, rows: &mut Rows) -> Result<Outcome, Refusal> {
    let running = state.running(operation)?.clone();
    let revoked = running.operation.revokes();
    if !revoked && state.active().is_none_or(|active| active.epoch != operation) {
        return Err(Refusal::NotYet { operation });
    }
    if !revoked && let Some(node) = state.stranded(&running.operation.leaving()).next() {
        return Err(Refusal::Stranded { node });
    }
    for node in running.operation.leaving() {
        let Some(member) = state.members.remove(&node) else { continue };
        rows.delete(RowKey::Member(node));
        let (name, boot_pk, op_pk, ended_ms) = (member.name, member.boot_pk, member.op_pk, state.time_ms);
        let former = Former { node, name, boot_pk, op_pk, revoked, ended_ms };
        rows.put(RowKey::Former(node), Row::Former(former.clone()));
        state.former.insert(node, former);
    }
    Ok(Outcome::Expelled)
}

pub(super) fn finish(state: &mut State, operation: Epoch, rows: &mut Rows) -> Result<Outcome, Refusal> {
    if state.operations.ended.as_ref().is_some_and(|ended| ended.was.epoch == operation && !ended.preempted) {
        return Ok(Outcome::Finished { operation });
    }
    let running = state.running(operation)?;
    let gone = running.operation.leaving().iter().all(|node| !state.members.contains_key(node));
    let settled = state.active().is_some_and(|active| active.epoch == operation)
        && state.epochs.values().all(|epoch| epoch.phase != EpochPhase::Retiring);
    if !gone || !settled {
        return Err(Refusal::NotYet { operation });
    }
    let gone: Vec<_> = state.locks.keys().copied().filter(|node| !state.members.contains_key(node)).collect();
    for node in gone {
        state.locks.remove(&node);
        rows.delete(RowKey::Lock(node));
    }
    let was = state.operations.running.take().expect("it runs");
    state.operations.ended = Some(Ended { was, ended_ms: state.time_ms, preempted: false });
    store(state, rows);
    Ok(Outcome::Finished { operation })
}

pub(super) fn store(state: &State, rows: &mut Rows) {
    rows.put(RowKey::Operations, Row::Operations(state.operations.clone()));
}

/// What a member's lock must be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockTerms {
    /// The nodes that hold a piece.
    pub peers: BTreeSet<NodeId>,
    /// How many pieces open it.
    pub needed: u8,
    /// The share keys that it protects.
    pub share_keys: BTreeSet<ShareKeyGeneration>,
    /// One more share key, which is not drawn or not registered yet.
    pub next_share_key: Option<ShareKeyGeneration>,
}

impl LockTerms {
    /// Whether a lock with pieces for `named` is as good as possible while only the nodes `present` answer: no other node holds
    /// a piece, and each peer without a piece is away.
    pub fn names(&self, named: &BTreeSet<NodeId>, present: &BTreeSet<NodeId>) -> bool {
        named.is_subset(&self.peers) && self.peers.iter().all(|peer| named.contains(peer) || !present.contains(peer))
    }
}

impl State {
    /// The members that stay when the running operation is done; all of them when none runs. A joiner is among them once
    /// its first lock is durable.
    pub fn staying(&self) -> impl Iterator<Item = NodeId> + '_ {
        let leaving = self.leaving();
        let locked = |member: &&Member| member.state == MemberState::Active;
        self.members.values().filter(locked).map(|member| member.node).filter(move |node| !leaving.contains(node))
    }

    /// The members that the running operation removes.
    pub fn leaving(&self) -> BTreeSet<NodeId> {
        self.operations.running.as_ref().map(|running| running.operation.leaving()).unwrap_or_default()
    }

    /// The nodes that are no longer members and still have shares of an epoch that is not over.
    pub fn former_holders(&self) -> impl Iterator<Item = NodeId> + '_ {
        let open = self.epochs.values().filter(|epoch| !epoch.is_over());
        let seats = open.flat_map(|epoch| epoch.committee.iter().map(|seat| seat.node));
        seats.filter(|node| !self.members.contains_key(node))
    }

    /// The threshold of an epoch with `holders` holders: a majority. If the operator asked for more than a majority when the
    /// cluster was founded, it is what they asked for, but at most the number of holders.
    pub fn threshold_for(&self, holders: usize) -> u8 {
        let founders = self.epochs.values().next().map_or(holders, |first| first.committee.len());
        let asked = self.cluster.as_ref().map_or(0, |cluster| usize::from(cluster.threshold));
        let least = majority(holders);
        let threshold = if asked > majority(founders) { asked.clamp(least, holders) } else { least };
        u8::try_from(threshold).unwrap_or(u8::MAX)
    }

    /// The operation that this request began.
    pub fn operation_of(&self, request: &RequestId) -> Option<&Running> {
        let ended = self.operations.ended.as_ref().map(|ended| &ended.was);
        self.operations.running.iter().chain(ended).find(|known| known.request == *request)
    }

    fn running(&self, operation: Epoch) -> Result<&Running, Refusal> {
        let running = self.operations.running.as_ref().filter(|running| running.epoch == operation);
        running.ok_or(Refusal::NoOperation { operation })
    }

    /// The members that stay when a revocation of `nodes` begins now. It also revokes nodes of the operation that it preempts.
    pub fn stays_after_revocation(&self, nodes: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        let leaving =
            self.operations.running.as_ref().map_or_else(|| nodes.clone(), |running| taken_along(self, running, nodes));
        self.members.keys().filter(|node| !leaving.contains(node)).copied().collect()
    }

    /// Whether the running operation is a revocation, and all of these nodes are revoked by it.
    pub fn are_being_revoked(&self, nodes: &BTreeSet<NodeId>) -> bool {
        let running = self.operations.running.as_ref().map(|running| &running.operation);
        matches!(running, Some(Operation::Revoke { nodes: revoked }) if nodes.is_subset(revoked))
    }

    /// The members whose reported locks could not be opened without `leaving`. Members that the operator has given up are not
    /// among them.
    pub fn stranded<'a>(&'a self, leaving: &'a BTreeSet<NodeId>) -> impl Iterator<Item = NodeId> + 'a {
        let stays = |node: &NodeId| self.members.contains_key(node) && !leaving.contains(node);
        let running = self.operations.running.as_ref();
        let given_up = move |node: &NodeId| running.is_some_and(|running| running.abandoned.contains(node));
        let locks = self.locks.values().filter(move |lock| stays(&lock.node) && !given_up(&lock.node));
        locks
            .filter(move |lock| lock.peers.iter().filter(|peer| stays(peer)).count() < lock.threshold.into())
            .map(|lock| lock.node)
    }

    /// What the lock of `node` must be like now; `None` for a node that leaves, and before the first epoch is ACTIVE.
    ///
    /// A share key is kept while an epoch that is not over was dealt to it, or may be dealt to it. How long a node that leaves
    /// holds pieces depends on the operation:
    /// - removed: until the operation's epoch is ACTIVE, because the others need its piece until then;
    /// - revoked: no longer at all;
    /// - replaced: until the joiner has its first lock, and so can hold pieces itself.
    pub fn lock_terms(&self, node: NodeId) -> Option<LockTerms> {
        let member = self.members.get(&node)?;
        let active = self.active()?;
        let running = self.operations.running.as_ref();
        let leaving = self.leaving();
        if leaving.contains(&node) {
            return None;
        }
        let joins = |running: &Running| running.operation.joining() == Some(node);
        let without = |running: &&Running| {
            let refused = running.operation.revokes() && (joins(running) || !can_be_taken_back(self, running));
            refused || running.epoch <= active.epoch
        };
        let gone = running.filter(without);
        let gone = gone.map(|_| leaving).unwrap_or_default();
        let locked = |member: &&Member| member.state == MemberState::Active;
        let peers = self.members.values().filter(locked).map(|member| member.node);
        let peers = peers.filter(|peer| *peer != node && !gone.contains(peer));
        let open = self.epochs.values().filter(|epoch| !epoch.is_over());
        let mut share_keys: BTreeSet<_> = open.filter_map(|epoch| Some(epoch.seat_of(node)?.skgen)).collect();
        let next = self.next_epoch();
        if member.skgen.0 >= next.0 {
            share_keys.insert(member.skgen);
        }
        let wanted = running.filter(|running| running.epoch == next && member.skgen.0 < next.0);
        // A node that holds everything alone opens its lock alone until others hold shares, too: it must not depend on a
        // joiner that may never come.
        let alone = active.threshold == 1 && active.x_of(node).is_some();
        let peers: BTreeSet<_> = peers.filter(|_| !alone).collect();
        let least = u8::from(!peers.is_empty());
        Some(LockTerms {
            peers,
            needed: active.threshold.saturating_sub(1).max(least),
            share_keys,
            next_share_key: wanted.map(|running| ShareKeyGeneration(running.epoch.0)),
        })
    }

    /// Whether the reported lock of `node` is what it must be, as far as possible while only the nodes `present` answer.
    pub fn is_locked_as_due(&self, node: NodeId, present: &BTreeSet<NodeId>) -> bool {
        let (Some(terms), Some(lock)) = (self.lock_terms(node), self.locks.get(&node)) else { return false };
        terms.next_share_key.is_none()
            && lock.threshold == terms.needed
            && terms.names(&lock.peers, present)
            && lock.share_keys == terms.share_keys
    }

    /// The members whose newest lock report was made after they knew of every former member. An older one says nothing about
    /// those: the member may have taken keys for them since, or named them in a newer lock.
    fn up_to_date_locks(&self) -> impl Iterator<Item = &LockReport> {
        let (former, members) = (self.former.len() as u64, &self.members);
        self.locks.values().filter(move |lock| lock.former == former && members.contains_key(&lock.node))
    }

    /// How many members have erased every key that they held for the locks of `gone`, once these are no members any more.
    pub fn erased_keys_of(&self, gone: &BTreeSet<NodeId>) -> usize {
        let over = gone.iter().all(|node| self.former.contains_key(node));
        self.up_to_date_locks().filter(|lock| over && lock.holds_for.is_disjoint(gone)).count()
    }

    /// How many members have a lock in which none of `gone` holds a piece, once these are no members any more.
    pub fn renewed_without(&self, gone: &BTreeSet<NodeId>) -> usize {
        let over = gone.iter().all(|node| self.former.contains_key(node));
        self.up_to_date_locks().filter(|lock| over && lock.peers.is_disjoint(gone)).count()
    }

    /// Whether `node` still has a share key to which an epoch that is over was dealt: the node was away when it should have
    /// erased the key, or its seat in the ACTIVE epoch uses it.
    pub fn owes_erasure(&self, node: NodeId) -> bool {
        let over = self.epochs.values().filter(|epoch| epoch.is_over());
        let mut dealt_to = over.filter_map(|epoch| Some(epoch.seat_of(node)?.skgen));
        self.locks.get(&node).is_some_and(|lock| dealt_to.any(|skgen| lock.share_keys.contains(&skgen)))
    }

    /// Every version of every key.
    pub(super) fn key_version_ids(&self) -> impl Iterator<Item = KeyVersionId> + '_ {
        self.keys.values().flat_map(|key| key.versions.keys().map(|&version| (key.uid, version)))
    }
}

impl Operations {
    /// Whether an operation of this name runs.
    pub fn runs(&self, operation: Epoch) -> bool {
        self.running.as_ref().is_some_and(|running| running.epoch == operation)
    }
}
