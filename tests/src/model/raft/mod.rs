//! Consensus: the smallest Raft that can still lose entries, keep entries unnoticed, and have leaders that no node follows.
//!
//! The program's own consensus is openraft, which cannot be run in virtual time. This is Raft as its paper has it (figure 2),
//! with the read-index rule that leases rest on: a question is answered by a round of heartbeats that *began after* it
//! arrived. There is no pre-vote and no snapshot. What it promises is checked like everything else.
//!
//! The newest membership in the log says who votes ([`members`]), committed or not. The gate is told of a denial before the
//! log has the entry.

mod members;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quorate_raft::command::Command;
use quorate_raft::{Denial, Leadership, Membership};
use quorate_shares::ids::NodeId;
use sha2::{Digest, Sha256};

pub(super) use self::members::{Wanted, has_majority};
use self::members::{denied, reached_by_majority};
use crate::model::node::Killed;
use crate::model::world::dice::Dice;
use crate::model::world::disk::{Database, Entry, Payload, Write};

/// Pause between heartbeats.
const BEAT_MS: u64 = 300;
/// A follower waits between the first and the second for a heartbeat.
const PATIENCE_MS: (u64, u64) = (900, 2_200);
/// Most entries of one append.
const APPEND_MAX: usize = 8;

#[derive(Clone)]
pub(super) enum RaftMessage {
    Vote {
        term: u64,
        last: (u64, u64),
    },
    Voted {
        term: u64,
        granted: bool,
    },
    Append {
        term: u64,
        prev: (u64, u64),
        entries: Vec<Entry>,
        commit: u64,
        round: u64,
    },
    Appended {
        term: u64,
        fits: bool,
        matched: u64,
        round: u64,
    },
    /// The leader of this term asks every receiver to follow it.
    TakeOver {
        term: u64,
    },
}

/// Who is denied is kept where a locked node can read it.
pub(super) trait Gate {
    /// Durable when it returns.
    fn deny(&mut self, denials: &[Denial]) -> Result<(), Killed>;
}

impl RaftMessage {
    pub(super) fn digest(&self, hash: &mut Sha256) {
        let numbers = match self {
            Self::Vote { term, last } => [0, *term, last.0, last.1, 0],
            Self::Voted { term, granted } => [1, *term, u64::from(*granted), 0, 0],
            Self::Append { term, prev, entries, commit, .. } => [2, *term, prev.1, entries.len() as u64, *commit],
            Self::Appended { term, matched, round, .. } => [3, *term, *matched, *round, 0],
            Self::TakeOver { term } => [4, *term, 0, 0, 0],
        };
        numbers.iter().for_each(|number| hash.update(number.to_be_bytes()));
    }
}

/// Who waits for a read-index round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asker {
    /// A question of this node's own, by number.
    Own(u64),
    /// A question of a peer's process.
    Peer(crate::model::world::message::Process, u64),
}

enum Role {
    Follower,
    Candidate(BTreeSet<NodeId>),
    Leader(Lead),
}

struct Lead {
    next: BTreeMap<NodeId, u64>,
    matched: BTreeMap<NodeId, u64>,
    /// The newest round of heartbeats, and the newest that each follower answered.
    round: u64,
    answered: BTreeMap<NodeId, u64>,
    beat_ms: u64,
    /// The blank entry that this leader began with: before it is committed nothing is confirmed.
    first: u64,
    reads: Vec<(u64, Asker)>,
}

/// What is known of consensus in memory.
pub(super) struct Raft {
    me: NodeId,
    role: Role,
    leader: Option<NodeId>,
    pub(super) commit: u64,
    heard_ms: u64,
    patience_ms: u64,
    pub(super) out: Vec<(NodeId, RaftMessage)>,
    /// Questions whose round was answered by a quorum, with the index to be applied first.
    pub(super) confirmed: Vec<(Asker, u64)>,
}

impl Raft {
    pub(super) fn new(me: NodeId, applied: u64, now_ms: u64, dice: &mut Dice) -> Self {
        Self {
            me,
            role: Role::Follower,
            leader: None,
            commit: applied,
            heard_ms: now_ms,
            patience_ms: dice.between(PATIENCE_MS.0, PATIENCE_MS.1),
            out: Vec::new(),
            confirmed: Vec::new(),
        }
    }

    pub(super) fn leadership(&self, db: &Database) -> Leadership {
        let am_leader = matches!(self.role, Role::Leader(_));
        Leadership { leader: self.leader, term: db.now().term, am_leader }
    }

    /// The newest membership in the log, and whether this node knows that it is committed.
    pub(super) fn membership(&self, db: &Database) -> Membership {
        let membership = db.now().membership(u64::MAX);
        let committed = membership.place.is_some_and(|place| place.index <= self.commit);
        Membership { committed, ..membership }
    }

    /// All other nodes that the log goes to.
    fn peers(&self, db: &Database) -> Vec<NodeId> {
        let membership = db.now().membership(u64::MAX);
        let all = membership.voters().into_iter().chain(membership.learners);
        all.filter(|&peer| peer != self.me).collect()
    }

    pub(super) fn tick(
        &mut self,
        (db, gate): (&mut Database, &mut impl Gate),
        now_ms: u64,
        dice: &mut Dice,
    ) -> Result<(), Killed> {
        self.finish_joint((db, gate), now_ms)?;
        let membership = self.membership(db);
        if membership.committed && !membership.is_joint() && !membership.newest().contains(&self.me) {
            // A leader that finished its own removal leads no more.
            (self.role, self.leader) = (Role::Follower, self.leader.filter(|&leader| leader != self.me));
        }
        match &mut self.role {
            Role::Leader(lead) if now_ms >= lead.beat_ms + BEAT_MS => self.begin_round(db, now_ms),
            Role::Leader(_) => {}
            _ if now_ms >= self.heard_ms + self.patience_ms => {
                self.patience_ms = dice.between(PATIENCE_MS.0, PATIENCE_MS.1);
                self.campaign(db, now_ms);
            }
            _ => {}
        }
        Ok(())
    }

    /// A node without a vote asks for none.
    fn campaign(&mut self, db: &mut Database, now_ms: u64) {
        let membership = db.now().membership(u64::MAX);
        self.heard_ms = now_ms;
        if !membership.voters().contains(&self.me) {
            return;
        }
        let term = db.now().term + 1;
        db.write_synced(Write::Vote(term, Some(self.me)));
        self.role = Role::Candidate([self.me].into());
        self.leader = None;
        let last = db.now().last();
        self.out.extend(self.peers(db).into_iter().map(|peer| (peer, RaftMessage::Vote { term, last })));
    }

    /// Lets one of `to` lead, if it can.
    pub(super) fn transfer_leadership(&mut self, db: &Database, to: NodeId) {
        self.out.push((to, RaftMessage::TakeOver { term: db.now().term }));
    }

    fn step_down(&mut self, db: &mut Database, term: u64) {
        if term > db.now().term {
            db.write_synced(Write::Vote(term, None));
            self.role = Role::Follower;
            self.leader = None;
        }
    }

    /// Puts a command into the log of a leader: its index, and the term in which it stands there.
    pub(super) fn propose(&mut self, db: &mut Database, command: Command, now_ms: u64) -> Option<(u64, u64)> {
        let Role::Leader(_) = self.role else { return None };
        let (term, after) = (db.now().term, db.now().last_index());
        db.write_synced(Write::Append(after, vec![Entry { term, payload: Payload::Command(Arc::new(command)) }]));
        self.broadcast(db, now_ms);
        self.advance(db);
        Some((after + 1, term))
    }

    /// Asks for a read index, which is confirmed by a round that begins now or later. `false` unless this node leads.
    pub(super) fn read_index(&mut self, db: &Database, asker: Asker, now_ms: u64) -> bool {
        let (me, membership) = (self.me, db.now().membership(u64::MAX));
        let Role::Leader(lead) = &mut self.role else { return false };
        lead.reads.push((lead.round + 1, asker));
        // One round at a time: who comes while one is under way waits for the next.
        if lead.reached(me, &membership) >= lead.round {
            self.begin_round(db, now_ms);
        }
        true
    }

    fn begin_round(&mut self, db: &Database, now_ms: u64) {
        if let Role::Leader(lead) = &mut self.role {
            lead.round += 1;
        }
        self.broadcast(db, now_ms);
    }

    fn broadcast(&mut self, db: &Database, now_ms: u64) {
        if let Role::Leader(lead) = &mut self.role {
            lead.beat_ms = now_ms;
        }
        for peer in self.peers(db) {
            self.append_to(peer, db);
        }
    }

    fn append_to(&mut self, peer: NodeId, db: &Database) {
        let Role::Leader(lead) = &self.role else { return };
        let image = db.now();
        let next = lead.next.get(&peer).copied().unwrap_or(1);
        let prev = (image.term_at(next - 1).unwrap_or(0), next - 1);
        let entries = image.log.iter().skip(next as usize - 1).take(APPEND_MAX).cloned().collect();
        let message = RaftMessage::Append { term: image.term, prev, entries, commit: self.commit, round: lead.round };
        self.out.push((peer, message));
    }

    pub(super) fn receive(
        &mut self,
        from: NodeId,
        message: RaftMessage,
        (db, gate): (&mut Database, &mut impl Gate),
        now_ms: u64,
    ) -> Result<(), Killed> {
        match message {
            RaftMessage::Vote { term, last } => {
                self.step_down(db, term);
                let free = db.now().voted.is_none_or(|voted| voted == from);
                let granted = term == db.now().term && free && last >= db.now().last();
                if granted {
                    db.write_synced(Write::Vote(term, Some(from)));
                    self.heard_ms = now_ms;
                }
                self.out.push((from, RaftMessage::Voted { term: db.now().term, granted }));
            }
            RaftMessage::Voted { term, granted } => {
                self.step_down(db, term);
                let membership = db.now().membership(u64::MAX);
                if let Role::Candidate(votes) = &mut self.role
                    && granted
                    && term == db.now().term
                {
                    votes.insert(from);
                    if has_majority(&membership, votes) {
                        self.lead(db, now_ms);
                    }
                }
            }
            RaftMessage::Append { term, prev, entries, commit, round } => {
                self.step_down(db, term);
                let (fits, matched) = self.append(from, (term, prev, entries, commit), (db, gate), now_ms)?;
                // Its sender may lead again by now: a round of an earlier term must not count in this one.
                let round = if term == db.now().term { round } else { 0 };
                self.out.push((from, RaftMessage::Appended { term: db.now().term, fits, matched, round }));
            }
            RaftMessage::Appended { term, fits, matched, round } => {
                self.step_down(db, term);
                self.appended(from, (term, fits, matched, round), db, now_ms);
            }
            RaftMessage::TakeOver { term } => {
                let follows = matches!(self.role, Role::Follower) && self.leader == Some(from);
                if follows && term == db.now().term {
                    self.campaign(db, now_ms);
                }
            }
        }
        Ok(())
    }

    fn lead(&mut self, db: &mut Database, now_ms: u64) {
        let (term, last) = (db.now().term, db.now().last_index());
        db.write_synced(Write::Append(last, vec![Entry { term, payload: Payload::Blank }]));
        self.leader = Some(self.me);
        let next = self.peers(db).into_iter().map(|peer| (peer, last + 1)).collect();
        let (matched, answered) = (BTreeMap::new(), BTreeMap::new());
        let reads = Vec::new();
        self.role = Role::Leader(Lead { next, matched, round: 0, answered, beat_ms: 0, first: last + 1, reads });
        self.begin_round(db, now_ms);
    }

    fn append(
        &mut self,
        from: NodeId,
        (term, prev, entries, commit): (u64, (u64, u64), Vec<Entry>, u64),
        (db, gate): (&mut Database, &mut impl Gate),
        now_ms: u64,
    ) -> Result<(bool, u64), Killed> {
        if term < db.now().term {
            return Ok((false, 0));
        }
        assert!(!matches!(self.role, Role::Leader(_)), "two leaders in term {term}");
        (self.role, self.leader, self.heard_ms) = (Role::Follower, Some(from), now_ms);
        if db.now().term_at(prev.1) != Some(prev.0) {
            return Ok((false, db.now().last_index().min(prev.1.saturating_sub(1))));
        }
        let mut at = prev.1;
        let known = |at: u64, entry: &Entry| db.now().term_at(at + 1) == Some(entry.term);
        let new = entries
            .iter()
            .take_while(|entry| {
                let same = known(at, entry);
                at += u64::from(same);
                same
            })
            .count();
        if new < entries.len() {
            assert!(at >= self.commit, "a committed entry would be truncated");
            gate.deny(&denied(at, &entries[new..]))?;
            db.write_synced(Write::Append(at, entries[new..].to_vec()));
        }
        let matched = prev.1 + entries.len() as u64;
        self.commit = self.commit.max(commit.min(matched));
        Ok((true, matched))
    }

    fn appended(
        &mut self,
        from: NodeId,
        (term, fits, matched, round): (u64, bool, u64, u64),
        db: &Database,
        now_ms: u64,
    ) {
        let (me, membership) = (self.me, db.now().membership(u64::MAX));
        let Role::Leader(lead) = &mut self.role else { return };
        if term != db.now().term {
            return;
        }
        let answered = lead.answered.entry(from).or_default();
        *answered = (*answered).max(round);
        let mut behind = false;
        if fits {
            let known = lead.matched.entry(from).or_default();
            *known = (*known).max(matched);
            lead.next.insert(from, *known + 1);
            behind = *known < db.now().last_index();
        } else {
            let known = lead.matched.get(&from).copied().unwrap_or(0);
            lead.next.insert(from, matched.max(known) + 1);
        }
        if behind || !fits {
            self.append_to(from, db);
        }
        self.advance(db);
        let Role::Leader(lead) = &mut self.role else { return };
        let reached = lead.reached(me, &membership);
        if self.commit >= lead.first {
            let index = self.commit;
            let (done, wait): (Vec<_>, Vec<_>) = lead.reads.drain(..).partition(|(round, _)| *round <= reached);
            lead.reads = wait;
            self.confirmed.extend(done.into_iter().map(|(_, asker)| (asker, index)));
        }
        if reached >= lead.round && !lead.reads.is_empty() {
            self.begin_round(db, now_ms);
        }
    }

    /// Commits what a majority has, if it is of this term.
    fn advance(&mut self, db: &Database) {
        let membership = db.now().membership(u64::MAX);
        let Role::Leader(lead) = &self.role else { return };
        let matched = |node: NodeId| match node == self.me {
            true => db.now().last_index(),
            false => lead.matched.get(&node).copied().unwrap_or(0),
        };
        let reached = reached_by_majority(&membership, matched);
        if reached > self.commit && db.now().term_at(reached) == Some(db.now().term) {
            self.commit = reached;
        }
    }
}

impl Lead {
    /// The newest round that a majority, with the leader itself, has answered.
    fn reached(&self, me: NodeId, membership: &Membership) -> u64 {
        let answered = |node: NodeId| match node == me {
            true => self.round,
            false => self.answered.get(&node).copied().unwrap_or(0),
        };
        reached_by_majority(membership, answered)
    }
}
