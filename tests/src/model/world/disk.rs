//! What a machine keeps when its process dies: the two slots of the vault, and the database.
//!
//! Both tell apart what was written from what is durable. A process that is killed leaves all that it wrote; a loss of power
//! leaves what was synced, and of the rest any sectors of the vault and any first part of the database's write-ahead log.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use quorate_node::vault::disk::{Disk, SLOT_BYTES, VaultSlot};
use quorate_node::vault::{Vault, VaultFile};
use quorate_raft::command::Command;
use quorate_raft::rows::{RowKey, RowWrite};
use quorate_raft::{Ballot, Flushed, Intent, LogPlace, Membership};
use quorate_shares::ids::NodeId;

use crate::model::world::dice::Dice;

const SECTOR: usize = 512;

/// Both slots of a vault, as a copy of the disk has them.
#[derive(Clone)]
pub(in crate::model) struct VaultImage(pub(in crate::model) [Arc<Vec<u8>>; 2]);

impl VaultImage {
    pub(in crate::model) fn of(file: &[u8]) -> Self {
        Self([Arc::new(file[..SLOT_BYTES].to_vec()), Arc::new(file[SLOT_BYTES..].to_vec())])
    }

    /// What the real code makes of this image.
    pub(in crate::model) fn open(&self) -> Vault {
        let file = VaultFile::open_on(VaultDisk::holding(self.clone())).expect("no crash costs the vault");
        Vault::parse(&file.current().encode().expect("it was just read")).expect("it was just encoded")
    }

    /// Each slot alone, if it holds together: a thief reads both.
    pub(in crate::model) fn slots(&self) -> impl Iterator<Item = Vault> + '_ {
        let alone = |slot: &Arc<Vec<u8>>| Self([slot.clone(), slot.clone()]);
        let open = move |slot| VaultFile::open_on(VaultDisk::holding(alone(slot))).ok();
        self.0
            .iter()
            .filter_map(open)
            .map(|file| Vault::parse(&file.current().encode().expect("it was just read")).expect("it was just encoded"))
    }

    fn same_as(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).all(|(one, other)| Arc::ptr_eq(one, other))
    }
}

/// The medium under a vault. Clones are the same medium.
#[derive(Clone)]
pub(in crate::model) struct VaultDisk(Arc<Mutex<Medium>>);

struct Medium {
    written: VaultImage,
    durable: VaultImage,
    /// After so many more calls the process is dead.
    dies_after: Option<u64>,
}

impl VaultDisk {
    pub(in crate::model) fn holding(image: VaultImage) -> Self {
        Self(Arc::new(Mutex::new(Medium { written: image.clone(), durable: image, dies_after: None })))
    }

    fn medium(&self) -> MutexGuard<'_, Medium> {
        self.0.lock().expect("nothing panics while it holds this")
    }

    /// What a loss of power at this moment would surely leave.
    pub(in crate::model) fn durable(&self) -> VaultImage {
        self.medium().durable.clone()
    }

    /// What a copy of the disk of the running machine holds.
    pub(in crate::model) fn written(&self) -> VaultImage {
        self.medium().written.clone()
    }

    /// Whether `image` is still what is durable.
    pub(in crate::model) fn is_durably(&self, image: &VaultImage) -> bool {
        self.medium().durable.same_as(image)
    }

    /// Lets the process die at the so-manieth call from now.
    pub(in crate::model) fn die_after(&self, calls: u64) {
        self.medium().dies_after = Some(calls);
    }

    /// Nothing kills it any more.
    pub(in crate::model) fn live_on(&self) {
        self.medium().dies_after = None;
    }

    /// The process is dead; the machine lives, or loses power too.
    pub(in crate::model) fn stop(&self, power_lost: bool, dice: &mut Dice) {
        let mut medium = self.medium();
        medium.dies_after = None;
        if power_lost {
            for slot in 0..2 {
                let mut left = medium.durable.0[slot].to_vec();
                for (at, sector) in left.chunks_mut(SECTOR).enumerate() {
                    let written = &medium.written.0[slot][at * SECTOR..(at + 1) * SECTOR];
                    if written != sector && dice.chance(500) {
                        sector.copy_from_slice(written);
                    }
                }
                medium.durable.0[slot] = Arc::new(left);
            }
            medium.written = medium.durable.clone();
        } else {
            medium.durable = medium.written.clone();
        }
    }

    fn call(&self, act: impl FnOnce(&mut Medium)) -> io::Result<()> {
        let mut medium = self.medium();
        match &mut medium.dies_after {
            Some(0) => return Err(io::Error::other("the process was killed")),
            Some(left) => *left -= 1,
            None => {}
        }
        act(&mut medium);
        Ok(())
    }
}

impl Disk for VaultDisk {
    fn read(&mut self, slot: VaultSlot, into: &mut [u8; SLOT_BYTES]) -> io::Result<()> {
        into.copy_from_slice(&self.medium().written.0[index(slot)]);
        Ok(())
    }

    fn write(&mut self, slot: VaultSlot, bytes: &[u8; SLOT_BYTES]) -> io::Result<()> {
        self.call(|medium| medium.written.0[index(slot)] = Arc::new(bytes.to_vec()))
    }

    fn sync(&mut self) -> io::Result<()> {
        self.call(|medium| medium.durable = medium.written.clone())
    }
}

fn index(slot: VaultSlot) -> usize {
    match slot {
        VaultSlot::First => 0,
        VaultSlot::Second => 1,
    }
}

/// What an entry of the log carries.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::model) enum Payload {
    /// A new leader begins with it.
    Blank,
    Command(Arc<Command>),
    /// Who votes from here on, and why that changes.
    Members(Option<Intent>, Membership),
}

/// One entry of the log.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::model) struct Entry {
    pub(in crate::model) term: u64,
    pub(in crate::model) payload: Payload,
}

impl Entry {
    pub(in crate::model) fn command(&self) -> Option<&Command> {
        match &self.payload {
            Payload::Command(command) => Some(command),
            Payload::Blank | Payload::Members(..) => None,
        }
    }
}

/// All that the database holds.
#[derive(Clone, Default)]
pub(in crate::model) struct Image {
    pub(in crate::model) term: u64,
    pub(in crate::model) voted: Option<NodeId>,
    /// Entry i has index i + 1.
    pub(in crate::model) log: Vec<Entry>,
    /// The entries of it that are memberships.
    memberships: Vec<u64>,
    /// How often the log was truncated.
    truncations: u64,
    pub(in crate::model) rows: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The last entry that `rows` reflect.
    pub(in crate::model) applied: u64,
}

impl Image {
    pub(in crate::model) fn last_index(&self) -> u64 {
        self.log.len() as u64
    }

    /// The term of an entry; 0 for index 0, `None` beyond the end.
    pub(in crate::model) fn term_at(&self, index: u64) -> Option<u64> {
        if index == 0 { Some(0) } else { self.log.get(index as usize - 1).map(|entry| entry.term) }
    }

    /// Term and index of the last entry: logs are compared by it.
    pub(in crate::model) fn last(&self) -> (u64, u64) {
        (self.term_at(self.last_index()).unwrap_or(0), self.last_index())
    }

    /// The place of an entry. A term has one leader, which needs no name here.
    pub(in crate::model) fn place(&self, index: u64) -> LogPlace {
        LogPlace { term: self.term_at(index).unwrap_or(0), node: NodeId(0), index }
    }

    /// The memberships up to an entry, newest first, each with its intent.
    pub(in crate::model) fn memberships(&self, upto: u64) -> impl Iterator<Item = (Option<Intent>, Membership)> + '_ {
        let indices = self.memberships.iter().rev().copied().filter(move |&index| index <= upto);
        indices.filter_map(|index| match &self.log[index as usize - 1].payload {
            Payload::Members(intent, membership) => {
                Some((*intent, Membership { place: Some(self.place(index)), ..membership.clone() }))
            }
            Payload::Blank | Payload::Command(_) => None,
        })
    }

    /// The newest membership up to an entry; none at all before there is one.
    pub(in crate::model) fn membership(&self, upto: u64) -> Membership {
        self.memberships(upto).next().map(|(_, membership)| membership).unwrap_or_default()
    }

    /// What a hello says of it.
    pub(in crate::model) fn flushed(&self) -> Flushed {
        let node = |voted: Option<NodeId>| voted.unwrap_or(NodeId(0));
        let vote = (self.term > 0).then(|| Ballot { term: self.term, node: node(self.voted), committed: false });
        let (term, index) = self.last();
        let last_log = (index > 0).then_some(LogPlace { term, node: NodeId(0), index });
        Flushed { vote, truncations: self.truncations, last_log }
    }

    pub(in crate::model) fn row(&self, key: RowKey) -> Option<Vec<u8>> {
        self.rows.get(&key.to_bytes()).cloned()
    }

    fn make(&mut self, write: &Write) {
        match write {
            Write::Vote(term, voted) => (self.term, self.voted) = (*term, *voted),
            Write::Append(after, entries) => {
                self.truncations += u64::from(self.last_index() > *after);
                self.log.truncate(*after as usize);
                self.memberships.retain(|index| index <= after);
                let members = |entry: &Entry| matches!(entry.payload, Payload::Members(..));
                let new = (after + 1..).zip(entries).filter(|(_, entry)| members(entry)).map(|(index, _)| index);
                self.memberships.extend(new);
                self.log.extend(entries.iter().cloned());
            }
            Write::Rows(rows, applied) => {
                for RowWrite { key, value } in rows {
                    match value {
                        Some(value) => drop(self.rows.insert(key.to_bytes(), value.clone().into_bytes())),
                        None => drop(self.rows.remove(&key.to_bytes())),
                    }
                }
                self.applied = *applied;
            }
        }
    }
}

/// One atomic write.
pub(in crate::model) enum Write {
    Vote(u64, Option<NodeId>),
    /// Entries behind an index; whatever was there is truncated.
    Append(u64, Vec<Entry>),
    /// What applying up to an index asked for.
    Rows(Vec<RowWrite>, u64),
}

/// The database: one write-ahead log for everything, synced when it is told to.
#[derive(Default)]
pub(in crate::model) struct Database {
    now: Image,
    durable: Image,
    unsynced: Vec<Write>,
}

impl Database {
    /// One that holds this log, and has applied nothing of it.
    pub(in crate::model) fn holding(entries: Vec<Entry>) -> Self {
        let mut database = Self::default();
        database.write_synced(Write::Append(0, entries));
        database
    }

    /// What a reader sees.
    pub(in crate::model) fn now(&self) -> &Image {
        &self.now
    }

    pub(in crate::model) fn durable(&self) -> &Image {
        &self.durable
    }

    pub(in crate::model) fn write(&mut self, write: Write) {
        self.now.make(&write);
        self.unsynced.push(write);
    }

    pub(in crate::model) fn write_synced(&mut self, write: Write) {
        self.write(write);
        self.sync(usize::MAX);
    }

    /// The process is dead; the machine lives, or loses power and with it some of the unsynced writes.
    pub(in crate::model) fn stop(&mut self, power_lost: bool, dice: &mut Dice) {
        let kept = if power_lost { dice.below(self.unsynced.len() as u64 + 1) as usize } else { usize::MAX };
        self.sync(kept);
        if !self.unsynced.is_empty() {
            self.unsynced.clear();
            self.now = self.durable.clone();
        }
    }

    fn sync(&mut self, first: usize) {
        let first = first.min(self.unsynced.len());
        for write in self.unsynced.drain(..first) {
            self.durable.make(&write);
        }
    }
}
