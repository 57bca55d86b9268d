//! What the leader still owes: the next step from the state to what was asked for.
//!
//! Pure. The leader's loop asks for the next step after every change and does it; each step may be repeated, so a new
//! leader goes on where the last one stopped. Nothing here remembers anything.

use quorate_shares::ids::{Epoch, KeyUid, KeyVersion, NodeId};

use crate::command::{Change, OpenEpoch, Seat};
use crate::state::{MemberState, State};

/// Most versions in one [`Step::Verify`] and one `Ready`; the rest come in the next step.
pub const VERIFY_MAX: usize = 256;

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing was applied yet: the first founder owes [`Change::Found`].
    AwaitFounding,
    /// Propose this change as it is.
    Propose(Change),
    /// Ask these holders to open and verify the epoch's records, and propose one `EpochAck` per answer.
    CollectAcks {
        /// The PENDING epoch.
        epoch: Epoch,
        /// Its records.
        records: u64,
        /// How many more holders must acknowledge before the epoch may become ACTIVE.
        needed: usize,
        /// The holders that did not yet.
        missing: Vec<NodeId>,
    },
    /// Ask holders to open and verify these records, then propose `Ready` for those that a threshold verified.
    Verify {
        /// At most [`VERIFY_MAX`].
        records: Vec<Unverified>,
    },
    /// All is done.
    Nothing,
}

/// A record that no threshold of holders verified yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unverified {
    /// The key.
    pub uid: KeyUid,
    /// The version.
    pub version: KeyVersion,
    /// The record's epoch.
    pub epoch: Epoch,
    /// How many holders must verify it.
    pub threshold: u8,
    /// Who holds a share of it.
    pub holders: Vec<NodeId>,
}

/// The leader's next step.
pub fn next(state: &State) -> Step {
    let Some(cluster) = &state.cluster else { return Step::AwaitFounding };
    if let Some(pending) = state.pending() {
        let (have, need) = (pending.acknowledged(), pending.acks_needed());
        if have >= need && pending.records == state.live_versions {
            return Step::Propose(Change::ActivateEpoch { epoch: pending.epoch });
        }
        if have < need {
            let behind = |node: &NodeId| pending.acks.get(node).is_none_or(|&records| records < pending.records);
            let missing = pending.committee.iter().map(|seat| seat.node).filter(behind).collect();
            return Step::CollectAcks { epoch: pending.epoch, records: pending.records, needed: need - have, missing };
        }
    }
    if state.active().is_none() && state.pending().is_none() {
        return open_epoch(state, cluster.threshold);
    }
    let records: Vec<_> = unverified(state).take(VERIFY_MAX).collect();
    if records.is_empty() { Step::Nothing } else { Step::Verify { records } }
}

/// The next epoch's committee: every member, each with its registered share key.
fn open_epoch(state: &State, threshold: u8) -> Step {
    let members = state.members.values().filter(|member| member.state == MemberState::Active);
    let committee: Vec<_> = members.map(|member| Seat { node: member.node, skgen: member.skgen }).collect();
    let epoch = state.next_epoch();
    let cluster = state.cluster.as_ref().map(|cluster| cluster.cluster);
    let hash = state.committee_of(epoch, threshold, &committee).zip(cluster).map(|(all, cluster)| all.hash(cluster));
    let committee_hash = hash.expect("the seats were just taken from the members");
    Step::Propose(Change::OpenEpoch(OpenEpoch { epoch, threshold, committee, committee_hash }))
}

fn unverified(state: &State) -> impl Iterator<Item = Unverified> + '_ {
    let versions = state.unready().filter_map(|(uid, number)| Some((uid, state.version(uid, number)?)));
    versions.flat_map(move |(uid, version)| {
        let open = version.records.iter().filter(|record| !record.verified);
        open.filter_map(move |record| {
            let epoch = state.epoch(record.epoch).filter(|epoch| epoch.is_open())?;
            Some(Unverified {
                uid,
                version: version.version,
                epoch: record.epoch,
                threshold: epoch.threshold,
                holders: epoch.committee.iter().map(|seat| seat.node).collect(),
            })
        })
    })
}
