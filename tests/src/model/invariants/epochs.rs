//! Epochs: what must be there before one counts, and what must be gone when one is over.

use std::collections::BTreeSet;

use quorate_node::vault::Vault;
use quorate_raft::command::RegisterShareKey;
use quorate_raft::state::{EpochPhase, State, majority};
use quorate_shares::ids::{Epoch, KeyVersionId, NodeId, ShareKeyGeneration};
use quorate_shares::kem::PublicKey;
use quorate_shares::lock::Bundle;

use super::{TICK_AFTER_MS, Watch};
use crate::model::node::{LEASE, share_keys};

/// Versions whose quorums are all tried when an epoch becomes active.
const TRIED: usize = 4;

impl Watch {
    /// What a lock of a node protects, from the moment it is made. D2: a share key is left out only when every epoch that was
    /// dealt to it is over, and this node has applied that.
    pub(super) fn bundle_sealed(&mut self, node: NodeId, generation: u64, bundle: &Bundle, own: &State) {
        let kept: BTreeSet<_> = bundle.share_keys.iter().map(|key| key.generation).collect();
        for dropped in self.share_keys_on_disk(node).into_iter().filter(|held| !kept.contains(held)) {
            let needs = |state: &State| {
                let open = state.epochs.values().filter(|epoch| !epoch.is_over());
                open.filter_map(|epoch| epoch.seat_of(node)).any(|seat| seat.skgen == dropped)
            };
            self.holds(!needs(own) && !needs(&self.state), || {
                format!("D2: node {node} gives up share key {dropped} before the epochs that it opens are over")
            });
        }
        for (generation, seed) in share_keys(bundle) {
            let drawn = self.drawn.entry(node).or_default();
            if !drawn.iter().any(|(known, other)| *known == generation && other.same_as(&seed)) {
                self.secrets.push(seed.duplicate());
                drawn.push((generation, seed));
            }
        }
        self.sealed.insert((node, generation), kept);
    }

    /// The share keys that the durable lock of a node protects.
    pub(super) fn share_keys_on_disk(&self, node: NodeId) -> BTreeSet<ShareKeyGeneration> {
        self.vaults.get(&node).map(|(_, vault)| self.protected(node, vault)).unwrap_or_default()
    }

    /// The share keys that the lock in a vault protects.
    pub(in crate::model) fn protected(&self, node: NodeId, vault: &Vault) -> BTreeSet<ShareKeyGeneration> {
        let generation = vault.lock.as_ref().map(|lock| lock.generation());
        generation.and_then(|generation| self.sealed.get(&(node, generation))).cloned().unwrap_or_default()
    }

    /// D3: a share key is registered when the lock that protects it is durable.
    pub(super) fn registered(&mut self, register: &RegisterShareKey) {
        let RegisterShareKey { node, skgen, share_pk } = register;
        let durable = self.share_keys_on_disk(*node).contains(skgen);
        self.holds(durable, || format!("D3: share key {skgen} of node {node} is registered and not durable"));
        let drawn = self.drawn.get(node).into_iter().flatten();
        let is_it = |seed| PublicKey::of_seed(seed).as_bytes().as_slice() == share_pk.as_slice();
        let seed = drawn.filter(|(known, _)| known == skgen).find(|(_, seed)| is_it(seed));
        let Some((_, seed)) = seed else {
            return self.broken(&format!("the share key that node {node} registers was never drawn"));
        };
        let seed = seed.duplicate();
        let keys = self.keys.entry(*node).or_default();
        keys.retain(|(known, _)| known != skgen);
        keys.push((*skgen, seed));
        let keys = keys.iter().map(|(known, seed)| (*known, seed.duplicate())).collect();
        if let Some(holder) = self.holders.get(node) {
            holder.set_keys(keys);
        }
    }

    /// After every change of a vault, and of the epochs. D6: every holder of an epoch that is not over has the share key of its
    /// seat on its disk. S2: and none has one of an epoch that is over, but for those that the state says owe an erasure.
    pub(super) fn share_keys_are_as_due(&self, node: NodeId) {
        let on_disk = self.share_keys_on_disk(node);
        if !self.state.members.contains_key(&node) {
            return;
        }
        for epoch in self.state.epochs.values() {
            let Some(seat) = epoch.seat_of(node) else { continue };
            let there = on_disk.contains(&seat.skgen);
            self.holds(there || epoch.is_over(), || {
                format!("D6: node {node} has no share key {} any more, and a seat in epoch {}", seat.skgen, epoch.epoch)
            });
            let report = self.state.locks.get(&node);
            let reported = report.is_none_or(|lock| lock.share_keys.contains(&seat.skgen));
            // What it says of a lock that it replaced since is late, and says nothing of this one.
            let late = || report.is_some_and(|lock| lock.generation < self.lock_generation_on_disk(node));
            self.holds(!there || !epoch.is_over() || reported || late(), || {
                format!(
                    "S2: node {node} keeps the key of its seat in epoch {}, which is over, and says it does not",
                    epoch.epoch
                )
            });
        }
    }

    /// D1: an epoch becomes active only when max(t, majority) of its holders have opened and verified every record that was
    /// reshared. S7: every quorum of them reconstructs the key of the epoch before.
    pub(super) fn activated(&mut self, epoch: Epoch, before: Option<&State>) {
        let Some(info) = self.state.epoch(epoch) else {
            return self.broken("an epoch is active that was never opened");
        };
        let known = before.and_then(|state| state.epoch(epoch));
        if known.is_some_and(|info| info.phase == EpochPhase::Active) {
            return;
        }
        let need = usize::from(info.threshold).max(majority(info.committee.len()));
        let verified = |node: NodeId| {
            let key_versions = self.reshared.get(&epoch).into_iter().flatten();
            let mut has = key_versions.map(|key_version| self.verified.get(&(*key_version, epoch)));
            has.all(|holders| holders.is_some_and(|holders| holders.contains(&node)))
        };
        let asked = self.acked.get(&epoch);
        let acked = info.committee.iter().map(|seat| seat.node);
        let acked = acked.filter(|node| asked.is_some_and(|asked| asked.contains(node)) && verified(*node)).count();
        self.holds(acked >= need, || {
            format!("D1: epoch {epoch} is active after {acked} of {need} holders opened and verified it")
        });
        let lost = before.and_then(State::active).into_iter().flat_map(|before| before.committee.iter());
        let lost: Vec<NodeId> = lost.map(|seat| seat.node).filter(|node| info.x_of(*node).is_none()).collect();
        let until_ms = self.wall_ms + LEASE.as_millis() as u64 + TICK_AFTER_MS;
        self.unseated.extend(lost.into_iter().map(|node| (node, until_ms)));
        let active = self.state.active().map(|active| active.epoch);
        self.holds(active == Some(epoch), || format!("D4: epoch {active:?} is active instead of {epoch}"));
        self.covered();
        let key_versions: Vec<KeyVersionId> = self.reshared.get(&epoch).into_iter().flatten().copied().collect();
        let step = (key_versions.len() / TRIED).max(1);
        key_versions
            .into_iter()
            .step_by(step)
            .take(TRIED)
            .for_each(|key_version| self.every_quorum_agrees(key_version, epoch));
        self.seen.epochs += u64::from(epoch.0 > 1);
    }

    /// L1, S2: by their disks, and not by what they say, no member has a share key that an epoch that is over was dealt to.
    pub(in crate::model) fn old_share_keys_are_gone(&self) -> bool {
        self.state.members.keys().all(|node| {
            let over = self.state.epochs.values().filter(|epoch| epoch.is_over());
            let old: BTreeSet<_> = over.filter_map(|epoch| Some(epoch.seat_of(*node)?.skgen)).collect();
            self.share_keys_on_disk(*node).is_disjoint(&old)
        })
    }

    /// L1: no operation runs, no version waits to be checked, nothing is left of an epoch that is over, and no node
    /// owes an erasure.
    pub(in crate::model) fn nothing_is_owed(&self) -> bool {
        let state = &self.state;
        state.operations.running.is_none()
            && state.unready().next().is_none()
            && !state.epochs.keys().any(|epoch| state.is_unswept(*epoch))
            && !state.members.keys().any(|node| state.owes_erasure(*node))
    }

    /// What is still owed, for the report of a run that did not end.
    pub(in crate::model) fn owed(&self) -> String {
        let state = &self.state;
        let epochs =
            state.epochs.values().map(|epoch| (epoch.epoch.0, epoch.phase, epoch.records, epoch.acknowledged()));
        let locks = state.members.keys().map(|node| {
            let (terms, lock) = (state.lock_terms(*node), state.locks.get(node));
            let lock = lock.map(|lock| (lock.generation, lock.threshold, &lock.peers, &lock.share_keys));
            format!("{node}: {lock:?} for {terms:?}")
        });
        format!(
            "{:?}, epochs {:?}, {} to reshare, {} unready, owing {:?}, locks {:#?}",
            state.operations.running,
            epochs.collect::<Vec<_>>(),
            state.to_reshare().len(),
            state.unready().count(),
            state.members.keys().filter(|node| state.owes_erasure(**node)).collect::<Vec<_>>(),
            locks.collect::<Vec<_>>()
        )
    }

    /// A holder says that it has opened and verified every record of an epoch.
    pub(in crate::model) fn epoch_acked(&mut self, node: NodeId, epoch: Epoch) {
        self.acked.entry(epoch).or_default().insert(node);
    }
}
