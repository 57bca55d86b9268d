//! The replicated state, as every node applies it.

use std::collections::BTreeSet;

use quorate_raft::command::{Change, Outcome};
use quorate_raft::rows::{RowKey, RowValue, RowWrite};
use quorate_raft::state::{Applied, State, apply};
use quorate_shares::ids::NodeId;

use super::Watch;
use crate::model::world::disk::{Entry, Image, Payload};

impl Watch {
    /// All nodes apply the same entries in the same order, and answer each alike; what is committed stays.
    pub(in crate::model) fn applied(&mut self, node: NodeId, index: u64, entry: &Entry, applied: Option<&Applied>) {
        if index == self.committed() + 1 {
            self.commit(index, entry, applied);
        }
        let Some((known, answer)) = self.committed.get(index as usize - 1) else {
            return self.broken(&format!("node {node} applied entry {index} before the ones in front of it"));
        };
        self.holds(known == entry, || format!("node {node} applied another entry {index} than was committed"));
        let same = answer.as_ref() == applied.map(|applied| &applied.outcome);
        self.holds(same, || format!("node {node} answered entry {index} otherwise than the others"));
        self.never_falls(node, index, entry.term);
    }

    /// A state that is read back from its rows is the state that was written.
    pub(in crate::model) fn restored(&mut self, node: NodeId, applied: u64, state: &State) {
        // A loss of power takes back what was applied and not synced; the log still has it.
        let term =
            applied.checked_sub(1).and_then(|at| self.committed.get(at as usize)).map_or(0, |(entry, _)| entry.term);
        self.highest.insert(node, (term, applied));
        if applied == self.committed() {
            self.holds(*state == self.state, || format!("the rows of node {node} are another state after a restart"));
        }
    }

    /// D4, as far as membership is fixed: a node applies every entry once in the life of a process, and terms only rise.
    fn never_falls(&mut self, node: NodeId, index: u64, term: u64) {
        let (before, last) = self.highest.get(&node).copied().unwrap_or_default();
        self.holds(term >= before, || format!("D4: node {node} applied term {term} after {before}"));
        self.holds(index == last + 1, || format!("D4: node {node} applied entry {index} after {last}"));
        self.highest.insert(node, (term, index));
    }

    fn commit(&mut self, index: u64, entry: &Entry, applied: Option<&Applied>) {
        let (time_ms, active) = (self.state.time_ms, self.state.active().map(|epoch| epoch.epoch));
        if let Payload::Members(_, membership) = &entry.payload {
            self.membership_commits(membership);
            self.members_are_in_order();
        }
        let Some(command) = entry.command() else {
            self.committed.push((entry.clone(), None));
            return;
        };
        let before = matches!(&command.change, Change::ActivateEpoch { .. }).then(|| self.state.clone());
        let newest = self.state.epochs.keys().next_back().copied();
        let ran = self.state.operations.running.as_ref().map(|running| running.epoch);
        let own = apply(&mut self.state, command);
        let rows = applied.map(|applied| &applied.rows);
        self.holds(rows == Some(&own.rows), || format!("entry {index} makes different rows on different nodes"));
        self.no_record_changes(&own.rows);
        self.become_ready(&own.rows);
        keep(&mut self.image, &own.rows);
        self.holds(self.state.time_ms >= time_ms, || "the state's time went back".to_owned());
        let now = self.state.active().map(|epoch| epoch.epoch);
        self.holds(now >= active, || "D4: the active epoch went back".to_owned());
        let opened = self.state.epochs.keys().next_back().copied();
        self.holds(opened >= newest, || "D4: an epoch was opened under an older number".to_owned());
        self.members_are_in_order();
        if own.outcome.is_ok() {
            self.members_change(&command.change, ran);
        }
        match (&command.change, &own.outcome) {
            (Change::ActivateEpoch { epoch }, Ok(_)) => self.activated(*epoch, before.as_ref()),
            (Change::CreateKey(_) | Change::RotateKey(_), Ok(Outcome::VersionMade { uid, version, .. })) => {
                let key_version = (*uid, *version);
                self.made_at.entry(key_version).or_insert(index);
                for epoch in self.state.record_epochs() {
                    self.dealt_at.entry((key_version, epoch)).or_insert(index);
                }
                self.covered();
                self.made_once();
            }
            (Change::Reshare(reshare), Ok(_)) => {
                for dealt in &reshare.dealt {
                    let key_version = (dealt.uid, dealt.version);
                    self.dealt_at.insert((key_version, reshare.epoch), index);
                    self.reshared.entry(reshare.epoch).or_default().push(key_version);
                }
                self.covered();
            }
            (Change::RegisterShareKey(register), Ok(_)) => self.registered(register),
            (Change::OpenEpoch(open), Ok(_)) => {
                let committee = self.state.committee(open.epoch);
                self.committees.extend(committee.map(|committee| (open.epoch, committee)));
            }
            (Change::OpenBatch { header }, Ok(Outcome::BatchOpened { batch })) => {
                self.headers.insert(*batch, header.clone());
            }
            (Change::Sweep { .. }, Ok(_)) => {
                self.covered();
                self.seen.swept += 1;
            }
            (_, Err(_)) => self.seen.refused += 1,
            _ => {}
        }
        self.committed.push((entry.clone(), Some(own.outcome)));
    }

    /// S5: what is dealt to the holders of a version in an epoch never changes, and goes when the epoch is over.
    fn no_record_changes(&mut self, rows: &[RowWrite]) {
        for RowWrite { key, value } in rows {
            let RowKey::Record(uid, version, epoch) = *key else { continue };
            let value = value.clone().map(RowValue::into_bytes);
            let over = self.state.epoch(epoch).is_some_and(|epoch| epoch.is_over());
            let known = self.dealt.get(&((uid, version), epoch));
            let right = match &value {
                Some(value) => !over && known.is_none_or(|known| known == value),
                None => over,
            };
            self.holds(right, || format!("S5: a second dealing takes the place of {key:?}"));
            if let Some(value) = value {
                self.dealt.insert(((uid, version), epoch), value);
            }
        }
    }

    /// I1, I3: every version has a record in the active epoch, and no index of a batch is used twice.
    pub(super) fn covered(&self) {
        let Some(active) = self.state.active() else { return self.broken("a key was made before an epoch was active") };
        let versions = self.state.keys.values().map(|key| key.versions.len() as u64).sum::<u64>();
        let places: BTreeSet<_> = self
            .state
            .keys
            .values()
            .flat_map(|key| key.versions.values())
            .filter_map(|version| version.record(active.epoch).map(|place| (place.batch, place.index)))
            .collect();
        self.holds(places.len() as u64 == versions && active.records == versions, || {
            format!("I1: {versions} versions and {} places of records in the active epoch", places.len())
        });
    }

    /// I7, L2: no name is given to two keys, and no request makes two versions.
    fn made_once(&self) {
        let names: BTreeSet<_> = self.state.keys.values().map(|key| &key.name).collect();
        self.holds(names.len() == self.state.keys.len(), || "I7: two keys have one name".to_owned());
        let versions = || self.state.keys.values().flat_map(|key| key.versions.values());
        let requests: BTreeSet<_> = versions().map(|version| version.request).collect();
        self.holds(requests.len() == versions().count(), || "L2: one request made two versions".to_owned());
    }

    /// I8: a version may encrypt only after t distinct holders have opened and verified their shares of it in each open epoch.
    fn become_ready(&mut self, rows: &[RowWrite]) {
        for row in rows {
            let RowKey::Version(uid, number) = row.key else { continue };
            let ready = self.state.version(uid, number).is_some_and(|version| version.ready);
            if !ready || !self.ready.insert((uid, number)) {
                continue;
            }
            for epoch in self.state.record_epochs() {
                let need = self.state.epoch(epoch).map_or(usize::MAX, |epoch| epoch.threshold.into());
                let have = self.verified.get(&((uid, number), epoch)).map_or(0, |holders| holders.len());
                self.holds(have >= need, || {
                    format!("I8: a version is ready after {have} of {need} holders checked it")
                });
            }
        }
    }
}

fn keep(image: &mut Image, rows: &[RowWrite]) {
    for RowWrite { key, value } in rows {
        match value {
            Some(value) => drop(image.rows.insert(key.to_bytes(), value.clone().into_bytes())),
            None => drop(image.rows.remove(&key.to_bytes())),
        }
    }
}
