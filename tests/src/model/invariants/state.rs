//! The replicated state, as every node applies it.

use std::collections::BTreeSet;

use quorate_raft::command::{Change, Outcome};
use quorate_raft::rows::{RowKey, RowWrite};
use quorate_raft::state::{Applied, EpochPhase, State, apply, majority};
use quorate_shares::ids::{Epoch, NodeId};

use super::Watch;
use crate::model::disk::{Entry, Image};

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
        let Some(command) = &entry.command else {
            self.committed.push((entry.clone(), None));
            return;
        };
        let before = matches!(&command.change, Change::ActivateEpoch { .. }).then(|| self.state.clone());
        let own = apply(&mut self.state, command);
        let rows = applied.map(|applied| &applied.rows);
        self.holds(rows == Some(&own.rows), || format!("entry {index} makes different rows on different nodes"));
        self.no_record_changes(&own.rows);
        keep(&mut self.image, &own.rows);
        self.holds(self.state.time_ms >= time_ms, || "the state's time went back".to_owned());
        let now = self.state.active().map(|epoch| epoch.epoch);
        self.holds(now >= active, || "the active epoch went back".to_owned());
        match (&command.change, &own.outcome) {
            (Change::ActivateEpoch { epoch }, Ok(_)) => self.activated(*epoch, before.as_ref()),
            (Change::CreateKey(_) | Change::RotateKey(_), Ok(Outcome::VersionMade { uid, version, .. })) => {
                self.made_at.entry((*uid, *version)).or_insert(index);
                self.covered();
                self.made_once();
            }
            (Change::Ready(ready), Ok(_)) => {
                for item in &ready.verified {
                    self.ready((item.uid, item.version), ready.epoch);
                }
            }
            (_, Err(_)) => self.seen.refused += 1,
            _ => {}
        }
        self.committed.push((entry.clone(), Some(own.outcome)));
    }

    /// S5: what is dealt to the holders of a version in an epoch never changes.
    fn no_record_changes(&self, rows: &[RowWrite]) {
        for RowWrite { key, value } in rows.iter().filter(|row| matches!(row.key, RowKey::Record(..))) {
            let other = self.image.row(*key).is_some_and(|before| value.as_ref() != Some(&before));
            self.holds(!other, || format!("S5: a second dealing takes the place of {key:?}"));
        }
    }

    /// D1: an epoch becomes active only when max(t, majority) of its holders have opened and verified all of it.
    fn activated(&self, epoch: Epoch, before: Option<&State>) {
        let Some(info) = self.state.epoch(epoch) else {
            return self.broken("an epoch is active that was never opened");
        };
        let was_active =
            before.and_then(|state| state.epoch(epoch)).is_some_and(|info| info.phase == EpochPhase::Active);
        let acked = self.acked.get(&epoch).map_or(0, |holders| holders.len());
        let need = usize::from(info.threshold).max(majority(info.committee.len()));
        self.holds(was_active || acked >= need, || {
            format!("D1: epoch {epoch} is active after {acked} of {need} holders opened and verified it")
        });
    }

    /// I1, I3: every version has a record in the active epoch, and no index of a batch is used twice.
    fn covered(&self) {
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

    /// I8: a version may encrypt only after t distinct holders have opened and verified their shares of it.
    fn ready(&self, slot: quorate_node::keyring::Slot, epoch: Epoch) {
        let need = self.state.epoch(epoch).map_or(usize::MAX, |epoch| epoch.threshold.into());
        let have = self.verified.get(&(slot, epoch)).map_or(0, |holders| holders.len());
        let ready = self.state.version(slot.0, slot.1).is_some_and(|version| version.ready);
        self.holds(!ready || have >= need, || {
            format!("I8: a version is ready after {have} of {need} holders checked it")
        });
    }

    /// A holder says that it has opened and verified every record of an epoch.
    pub(in crate::model) fn epoch_acked(&mut self, node: NodeId, epoch: Epoch, redealt: u64) {
        if self.state.epoch(epoch).is_some_and(|epoch| redealt >= epoch.redealt) {
            self.acked.entry(epoch).or_default().insert(node);
        }
    }
}

fn keep(image: &mut Image, rows: &[RowWrite]) {
    for RowWrite { key, value } in rows {
        match value {
            Some(value) => drop(image.rows.insert(key.to_bytes(), value.clone())),
            None => drop(image.rows.remove(&key.to_bytes())),
        }
    }
}
