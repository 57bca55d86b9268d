//! Answers: what a client may be told, and what must be true when it believes it.

use std::collections::BTreeMap;

use quorate_shares::ids::{KeyName, KeyVersion, KeyVersionId, NodeId};

use super::Watch;
use crate::model::node::LEASE;
use crate::model::raft::has_majority;
use crate::model::world::disk::Image;
use crate::model::world::message::Fact;

impl Watch {
    /// No answer is believed that was given under a lease which has ended by then.
    pub(in crate::model) fn lease_still_holds(&self, fact: Fact) {
        self.holds(self.wall_ms < fact.lease_until_ms, || {
            let late = self.wall_ms - fact.lease_until_ms;
            format!("an answer of node {} is believed {late} ms after its lease ended", fact.node)
        });
    }

    /// Every answer that is believed reflects all changes that were acknowledged more than a lease ago.
    pub(in crate::model) fn answer_is_fresh(&self, fact: Fact) {
        let old = |at_ms: u64| at_ms + LEASE.as_millis() as u64 <= self.wall_ms;
        let stale = self.acknowledged.iter().rev().find(|(index, at_ms)| old(*at_ms) && *index > fact.applied);
        self.holds(stale.is_none(), || format!("node {} answered from a state without {stale:?}", fact.node));
    }

    /// The newest version that an encryption may not be older than: acknowledged more than a lease ago.
    pub(in crate::model) fn encrypted_under_the_newest(&self, name: &KeyName, version: KeyVersion) {
        let old = |at_ms: u64| at_ms + LEASE.as_millis() as u64 <= self.wall_ms;
        let known = self.newest.get(name).into_iter().flatten();
        let newest = known.filter(|(at_ms, _)| old(*at_ms)).map(|(_, version)| *version).max();
        self.holds(newest.is_none_or(|newest| version >= newest), || {
            format!("{name} encrypts under version {version}, although {newest:?} was acknowledged long ago")
        });
    }

    /// A name that was acknowledged before the question is found.
    pub(in crate::model) fn may_be_missing(&self, name: &KeyName, asked_ms: u64) {
        let known = self.newest.get(name).into_iter().flatten().any(|(at_ms, _)| *at_ms <= asked_ms);
        self.holds(!known, || format!("{name} is not found, although it was acknowledged before"));
    }

    /// L2: a request that is repeated gets its first answer, never a conflict with itself.
    pub(in crate::model) fn conflicts(&self, name: &KeyName, request: &[u8; 16]) {
        let itself = self.state.answer(request).is_some();
        self.holds(!itself, || format!("L2: the request that made {name} is told that the name is taken"));
    }

    /// D3, I8: an acknowledged version is durable at a majority, and t distinct holders of those can open their shares.
    pub(in crate::model) fn acknowledged(
        &mut self,
        key_version: KeyVersionId,
        name: &KeyName,
        images: &BTreeMap<NodeId, &Image>,
    ) {
        let Some(&index) = self.made_at.get(&key_version) else {
            return self.broken("a version is acknowledged that was never made");
        };
        self.can_be_rebuilt(key_version, images);
        let ready = self.state.version(key_version.0, key_version.1).is_some_and(|version| version.ready);
        self.holds(ready, || "I8: a version is acknowledged that may not encrypt".to_owned());
        let epoch = self.state.active().map(|epoch| epoch.epoch).expect("a version needs an active epoch");
        self.every_quorum_agrees(key_version, epoch);
        let others: Vec<KeyVersionId> = self.made_at.keys().rev().take(2).copied().collect();
        others.into_iter().for_each(|other| self.record_is_itself(other, key_version, epoch));
        self.acknowledged.push((index, self.wall_ms));
        self.newest.entry(name.clone()).or_default().push((self.wall_ms, key_version.1));
        self.seen.changes += 1;
    }

    /// D6: what was encrypted can be decrypted from the disks: a majority holds the record durably, and max(t, majority) of
    /// the holders open their shares of it.
    pub(in crate::model) fn can_be_rebuilt(&self, key_version: KeyVersionId, images: &BTreeMap<NodeId, &Image>) {
        let active = self.state.active().expect("a version needs an active epoch");
        let Some(&index) = self.dealt_at.get(&(key_version, active.epoch)) else {
            return self.broken("D6: a version is used that was not dealt to the active epoch");
        };
        let term = self.committed[index as usize - 1].0.term;
        let durable = images.iter().filter(|(_, image)| image.term_at(index) == Some(term));
        let durable = durable.map(|(node, _)| *node).collect();
        self.holds(has_majority(&self.membership, &durable), || {
            format!("D6: a version is used that is durable at {durable:?} of {:?}", self.membership.configs)
        });
        let opened = self.verified.get(&(key_version, active.epoch)).map_or(0, |holders| holders.len());
        let t = usize::from(active.threshold);
        self.holds(opened >= t, || format!("D6: a version is used that {opened} of {t} holders can open"));
    }

    /// The version of a ciphertext's key, by name.
    pub(in crate::model) fn slot_of(&self, name: &KeyName, version: KeyVersion) -> Option<KeyVersionId> {
        let key = self.state.key_by_name(name)?;
        key.versions.contains_key(&version).then_some((key.uid, version))
    }
}
