//! A leader that proposes nonsense: `apply` must keep it out of the state.

use std::collections::BTreeSet;

use quorate_raft::command::{Change, EpochAck, Ready, Verified};
use quorate_shares::ids::{Epoch, KeyUid, KeyVersion, NodeId};
use quorate_shares::master::KeyIdentity;

use crate::model::actors::faults::STRANGER;
use crate::model::world::World;

/// Shortest pause between two nonsense proposals.
const PAUSE_MS: u64 = 100;

impl World {
    /// Proposes nonsense when it can do harm: while an epoch is pending, or a version is not checked yet.
    pub(in crate::model) fn tempt(&mut self) {
        let state = &self.watch.state;
        let weak = state.active().is_none() || state.pending().is_some() || state.unready().next().is_some();
        let weak = state.cluster.is_some() && weak;
        // Never so much of it that nothing else happens.
        if !self.calm
            && self.now_ms >= self.tempted_ms + PAUSE_MS
            && self.dice.chance(if weak { 20 } else { 1 })
            && let Some(node) = self.leader()
        {
            self.tempted_ms = self.now_ms;
            let change = self.nonsense(node);
            self.propose_at_leader(change);
        }
    }

    fn nonsense(&mut self, leader: NodeId) -> Change {
        let state = &self.watch.state;
        let open = state.pending().or(state.active()).map(|open| (open.epoch, open.threshold));
        let (epoch, threshold) = open.unwrap_or((Epoch(1), self.watch.found.threshold));
        let epochs: Vec<Epoch> = state.epochs.keys().copied().collect();
        let running = state.operations.running.as_ref().map_or(epoch, |running| running.epoch);
        let holder = self.dice.pick(&self.nodes).expect("there are nodes");
        match self.dice.below(9) {
            0 | 1 => Change::ActivateEpoch { epoch },
            2 => Change::EpochAck(EpochAck { epoch, node: holder, reshared: u64::MAX }),
            3 => self.too_few_checked(epoch, threshold),
            4 => self.dealt_again(leader).unwrap_or(Change::ActivateEpoch { epoch }),
            5 => Change::Finish { operation: running },
            6 => Change::Sweep { epoch: self.dice.pick(&epochs).unwrap_or(epoch) },
            // The epoch in front of the open one may be retired, and by a leader alone.
            7 => Change::RetireEpoch { epoch },
            _ => Change::Found(self.watch.found.clone()),
        }
    }

    /// One holder short, and another that is none: neither makes a quorum.
    fn too_few_checked(&mut self, epoch: Epoch, threshold: u8) -> Change {
        let unready = self.watch.state.unready().next();
        let (uid, version) = unready.unwrap_or((KeyUid([7; 16]), KeyVersion(1)));
        let short = usize::from(threshold) - 1;
        let mut holders: BTreeSet<NodeId> = self.nodes.iter().copied().take(short).collect();
        if self.dice.chance(500) {
            holders.insert(STRANGER);
        }
        Change::Ready(Ready { epoch, verified: vec![Verified { uid, version, holders }] })
    }

    fn dealt_again(&mut self, leader: NodeId) -> Option<Change> {
        let uid = self.watch.state.keys.keys().next().copied()?;
        let identity = KeyIdentity { cluster: self.watch.cluster, uid, version: KeyVersion(1) };
        let machine = self.machines.get_mut(&leader)?;
        let unlocked = machine.daemon.as_mut().and_then(|daemon| daemon.unlocked.as_mut())?;
        unlocked.deal_again(&identity, &mut self.dice)
    }
}
