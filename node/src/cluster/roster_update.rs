//! Roster updates: the roster follows the replicated state. It says who is a member, who votes, and who is refused.
//!
//! Two things change it. An entry that denies voters changes the roster when the entry is appended, through the
//! [`VaultGate`], before the log acknowledges it. All other changes follow from the applied entries: from the members of the
//! state, the newest applied membership, and the roster so far ([`next`], which is pure). Each change is durable before it
//! takes effect.
//!
//! If a committed, final configuration leaves a member out, the member is *gone*: it moves to the roster's second list, and
//! is told that it was revoked. Before that it is told that it is denied, and tries again.
//!
//! Entries at or below the roster's own log position change nothing: a joiner gets its roster from its inviter, and then
//! replays older entries.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quorate_raft::state::State;
use quorate_raft::{Denial, Gate, LogPlace, Membership, Replica};
use quorate_shares::ids::NodeId;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::node::Node;
use crate::node::peers::roster::Gone;
use crate::peers::session;
use crate::vault::layout::Address;
use crate::vault::{DENIALS_MAX, REVOKED_MAX, Revoked, Roster, RosterLogId, RosterMember, Standing, Vault};

/// How often the denials are compared with the applied state, while there are any.
const LOOK: Duration = Duration::from_millis(500);
/// Pause after a failed write of the vault; the node is about to stop then.
const PAUSE: Duration = Duration::from_secs(1);

/// The part of the applied state that matters to the roster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The position of the last applied entry.
    pub place: LogPlace,
    /// The newest membership up to that entry.
    pub membership: Membership,
    /// The members, without their standing.
    pub members: BTreeMap<NodeId, RosterMember>,
    /// The former members that the state remembers.
    pub former: Vec<Gone>,
}

/// The next roster, with the denials and the former members that belong to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Next {
    pub roster: Roster,
    /// The denials that still stand.
    pub denials: Vec<Denial>,
    /// The nodes that are no members any more, with their keys.
    pub gone: Vec<Gone>,
}

impl Seen {
    pub fn of(state: &State, place: LogPlace, membership: &Membership) -> Self {
        let members = state.members.values().map(|member| {
            let addresses = member.addresses.iter().filter_map(|address| address.parse::<Address>().ok()).collect();
            let (node, boot_pk, op_pk, name) = (member.node, member.boot_pk, member.op_pk, member.name.clone());
            (node, RosterMember { node, boot_pk, op_pk, standing: Standing::default(), name, addresses })
        });
        let former = state.former.values();
        let former = former.map(|former| Gone { node: former.node, boot_pk: former.boot_pk, op_pk: former.op_pk });
        Self { place, membership: membership.clone(), members: members.collect(), former: former.collect() }
    }
}

/// Computes the roster after `seen` from the roster before it and the denials.
pub fn next(before: &Roster, denials: &[Denial], seen: &Seen) -> Next {
    if RosterLogId::from(seen.place) <= before.log_id {
        return Next { roster: before.clone(), denials: denials.to_vec(), gone: seen.former.clone() };
    }
    let standing: Vec<Denial> =
        denials.iter().filter(|denial| denial.stands(seen.place, &seen.membership)).copied().collect();
    let (voters, mut members, mut gone) = (seen.membership.voters(), Vec::new(), seen.former.clone());
    for (&node, member) in &seen.members {
        let (voter, learner) = (voters.contains(&node), seen.membership.learners.contains(&node));
        let was = before.member(node).map(|member| member.standing).unwrap_or_default();
        let denied = standing.iter().any(|denial| denial.node == node);
        // A committed configuration left this member out, perhaps in an entry that this node skipped. This also holds while
        // the voters change again: a member that is in neither half of the joint configuration was left out before.
        let left = !voter && !learner && (denied || was.voter || was.learner || before.is_revoked(&member.boot_pk));
        if left {
            gone.push(Gone { node, boot_pk: member.boot_pk, op_pk: member.op_pk });
        } else {
            let standing = Standing { member: true, voter, learner, denied };
            members.push(RosterMember { standing, ..member.clone() });
        }
    }
    let dropped = before.members.iter().filter(|member| !seen.members.contains_key(&member.node));
    gone.extend(dropped.map(|member| Gone { node: member.node, boot_pk: member.boot_pk, op_pk: member.op_pk }));

    let mut revoked: BTreeMap<NodeId, [u8; 32]> =
        before.revoked.iter().map(|revoked| (revoked.node, revoked.boot_pk)).collect();
    revoked.extend(gone.iter().map(|gone| (gone.node, gone.boot_pk)));
    revoked.retain(|node, _| !members.iter().any(|member| member.node == *node));
    let oldest = revoked.len().saturating_sub(REVOKED_MAX);
    let revoked = revoked.into_iter().skip(oldest).map(|(node, boot_pk)| Revoked { node, boot_pk }).collect();

    let denials = standing.into_iter().filter(|denial| !gone.iter().any(|gone| gone.node == denial.node)).collect();
    let mut roster = Roster { log_id: before.log_id, members, revoked };
    if roster != *before {
        roster.log_id = seen.place.into();
    }
    Next { roster, denials, gone }
}

/// Adds denials to a vault, except the denials of entries that its roster already reflects.
pub fn deny(vault: &mut Vault, denials: &[Denial]) {
    for &denial in denials.iter().filter(|denial| RosterLogId::from(denial.by) > vault.roster.log_id) {
        match vault.denials.binary_search_by_key(&denial.node, |known| known.node) {
            Ok(at) => vault.denials[at] = vault.denials[at].max(denial),
            Err(at) => vault.denials.insert(at, denial),
        }
        if let Some(member) = vault.roster.members.iter_mut().find(|member| member.node == denial.node) {
            member.standing.denied = true;
        }
    }
    vault.denials.truncate(DENIALS_MAX);
}

/// Whether a node with `roster` refuses `node`.
pub fn is_denied(roster: &Roster, node: NodeId) -> bool {
    roster.revoked.iter().any(|revoked| revoked.node == node)
        || roster.member(node).is_some_and(|member| member.standing.denied)
}

/// Writes denials into the vault, where a locked node reads them.
pub struct VaultGate {
    node: Arc<Node>,
}

impl VaultGate {
    pub fn new(node: &Arc<Node>) -> Arc<Self> {
        Arc::new(Self { node: Arc::clone(node) })
    }
}

impl Gate for VaultGate {
    fn deny(&self, denials: &[Denial]) -> Result<(), String> {
        let denied = self.node.update_roster(|vault| deny(vault, denials));
        denied.map_err(|error| format!("a denial could not be written: {error}"))?;
        for denial in denials.iter().filter(|denial| self.is_denied(denial.node)) {
            warn!(node = %denial.node, by = denial.by.index, "denied from now on");
        }
        self.node.enrolment().close_sessions_with_strangers();
        Ok(())
    }

    fn is_denied(&self, node: NodeId) -> bool {
        is_denied(&self.node.roster(), node)
    }
}

/// Updates the roster after every change of the members. Never returns.
pub async fn run(node: Arc<Node>, replica: Replica) {
    let mut changed = replica.members_changed();
    loop {
        changed.borrow_and_update();
        let seen = replica.read_members(|state, place, membership| Some(Seen::of(state, place?, membership)));
        if let Some(seen) = seen
            && let Err(reason) = step(&node, seen).await
        {
            warn!(%reason, "the roster is not updated yet");
            sleep(PAUSE).await;
            continue;
        }
        // A denial may end without a change of the members.
        let open = node.with_vault(|vault| !vault.denials.is_empty()).unwrap_or_default();
        let _ = timeout(if open { LOOK } else { Duration::MAX }, changed.changed()).await;
    }
}

/// Updates the roster in the vault to `seen`, then everything that depends on the roster.
async fn step(node: &Arc<Node>, seen: Seen) -> Result<(), String> {
    let me = node.id();
    let task = tokio::task::spawn_blocking({
        let node = Arc::clone(node);
        move || {
            let next = node.update_roster(|vault| {
                let next = next(&vault.roster, &vault.denials, &seen);
                (vault.roster, vault.denials) = (next.roster.clone(), next.denials.clone());
                next
            });
            next.map_err(|error| error.to_string())
        }
    });
    let next = task.await.map_err(|panicked| panicked.to_string())??;
    node.enrolment().roster.note_gone(&next.gone);
    node.enrolment().close_sessions_with_strangers();
    session::keep_all(node);
    if next.gone.iter().any(|gone| gone.node == me) {
        // A quorum committed it, and this node applied it itself, so it needs no attestations of peers.
        info!("this node is not a member any more, as its own log says");
        node.enrolment().revocation.accept();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::testing::bundle;

    fn place(term: u64, index: u64) -> LogPlace {
        LogPlace { term, node: NodeId(1), index }
    }

    fn member(id: u64) -> RosterMember {
        RosterMember {
            node: NodeId(id),
            boot_pk: [id as u8; 32],
            op_pk: [id as u8 + 100; 32],
            standing: Standing::default(),
            name: format!("n{id}").parse().expect("a name"),
            addresses: vec!["127.0.0.1:7250".parse().expect("an address")],
        }
    }

    fn seen(at: LogPlace, members: &[u64], configs: &[&[u64]], learners: &[u64]) -> Seen {
        let set = |nodes: &[u64]| nodes.iter().copied().map(NodeId).collect();
        let configs = configs.iter().map(|voters| set(voters)).collect();
        let membership = Membership { configs, learners: set(learners), place: Some(at), committed: true };
        let members = members.iter().map(|&id| (NodeId(id), member(id))).collect();
        Seen { place: at, membership, members, former: Vec::new() }
    }

    fn standing(roster: &Roster, id: u64) -> Option<(bool, bool, bool, bool)> {
        let standing = roster.member(NodeId(id))?.standing;
        Some((standing.member, standing.voter, standing.learner, standing.denied))
    }

    fn revoked(roster: &Roster) -> Vec<u64> {
        roster.revoked.iter().map(|revoked| revoked.node.0).collect()
    }

    fn founded() -> Roster {
        next(&Roster::default(), &[], &seen(place(1, 3), &[1, 2, 3], &[&[1, 2, 3]], &[])).roster
    }

    #[test]
    fn a_member_joins_learns_votes_and_goes() {
        let roster = founded();
        assert_eq!(roster.log_id, place(1, 3).into());
        let joined = next(&roster, &[], &seen(place(1, 9), &[1, 2, 3, 4], &[&[1, 2, 3]], &[])).roster;
        assert_eq!(standing(&joined, 4), Some((true, false, false, false)));
        let learns = next(&joined, &[], &seen(place(1, 10), &[1, 2, 3, 4], &[&[1, 2, 3]], &[4])).roster;
        assert_eq!(standing(&learns, 4), Some((true, false, true, false)));
        let votes = next(&learns, &[], &seen(place(1, 12), &[1, 2, 3, 4], &[&[1, 2, 3, 4]], &[])).roster;
        assert_eq!(standing(&votes, 4), Some((true, true, false, false)));
        // It has no vote any more, but is still a member in the state: the roster counts it as gone.
        let goes = next(&votes, &[], &seen(place(1, 14), &[1, 2, 3, 4], &[&[1, 2, 3]], &[]));
        assert_eq!((standing(&goes.roster, 4), revoked(&goes.roster)), (None, vec![4]));
        assert_eq!(goes.gone, [Gone { node: NodeId(4), boot_pk: [4; 32], op_pk: [104; 32] }]);
        let again = next(&goes.roster, &[], &seen(place(1, 15), &[1, 2, 3, 4], &[&[1, 2, 3]], &[])).roster;
        assert_eq!(again, goes.roster, "it stays gone although the last roster does not list its vote");
        let dropped = next(&again, &[], &seen(place(1, 16), &[1, 2, 3], &[&[1, 2, 3]], &[])).roster;
        assert_eq!(dropped, again);
        // The leader gave up the joiner while it was a learner, or before.
        for roster in [&learns, &joined] {
            let given_up = next(roster, &[], &seen(place(1, 16), &[1, 2, 3], &[&[1, 2, 3]], &[])).roster;
            assert_eq!(revoked(&given_up), [4]);
        }
    }

    /// Scenario: a second revocation changes the voters while the state still lists the node that the first one left out. If
    /// that node came back into the roster while the membership is joint, it would be trusted once the membership is final.
    #[test]
    fn a_former_member_stays_gone_while_the_voters_change_again() {
        let roster = next(&Roster::default(), &[], &seen(place(1, 3), &[1, 2, 3, 4], &[&[1, 2, 3, 4]], &[])).roster;
        let first = next(&roster, &[], &seen(place(2, 55), &[1, 2, 3, 4], &[&[1, 3, 4]], &[])).roster;
        assert_eq!((standing(&first, 2), revoked(&first)), (None, vec![2]));
        let joint = next(&first, &[], &seen(place(2, 57), &[1, 2, 3, 4], &[&[1, 3, 4], &[1, 3]], &[])).roster;
        assert_eq!((standing(&joint, 2), revoked(&joint)), (None, vec![2]));
        let last = next(&joint, &[], &seen(place(2, 58), &[1, 2, 3, 4], &[&[1, 3]], &[])).roster;
        assert_eq!((standing(&last, 2), standing(&last, 4), revoked(&last)), (None, None, vec![2, 4]));
    }

    /// T52. Mutated: without the comparison, an old entry denies a node that is a member today.
    #[test]
    fn what_the_roster_reflects_changes_nothing() {
        let today = Roster { log_id: place(3, 50).into(), ..founded() };
        let history = seen(place(2, 20), &[1, 2, 3], &[&[1, 2]], &[]);
        assert_eq!(next(&today, &[], &history).roster, today);
        assert_ne!(next(&founded(), &[], &history).roster, founded(), "the control");
        let mut vault = Vault::new(quorate_shares::ids::ClusterId([1; 16]), bundle().op_seed);
        vault.roster = today.clone();
        deny(&mut vault, &[Denial { node: NodeId(3), by: place(2, 19) }, Denial { node: NodeId(3), by: place(3, 50) }]);
        assert!(vault.denials.is_empty() && vault.roster == today);
        deny(&mut vault, &[Denial { node: NodeId(3), by: place(3, 51) }]);
        assert!(vault.denials.len() == 1 && vault.roster.members[2].standing.denied, "the control");
    }

    /// A member is denied while the configuration without it is not final, and gone afterwards. If that configuration can
    /// never become final, the node is a member as before.
    #[test]
    fn a_denied_member_is_gone_once_that_is_final_or_back_once_it_cannot_be() {
        let mut vault = Vault::new(quorate_shares::ids::ClusterId([1; 16]), bundle().op_seed);
        vault.roster = founded();
        deny(&mut vault, &[Denial { node: NodeId(3), by: place(2, 20) }]);
        assert_eq!(standing(&vault.roster, 3), Some((true, true, false, true)));
        vault.encode().expect("it can be written");
        let (roster, denials) = (&vault.roster, &vault.denials);

        let mut later = seen(place(2, 19), &[1, 2, 3], &[&[1, 2, 3]], &[]);
        later.membership.place = Some(place(1, 0));
        let waits = next(roster, denials, &later);
        assert_eq!((standing(&waits.roster, 3), &waits.denials), (standing(roster, 3), denials));
        let joint = next(roster, denials, &seen(place(2, 20), &[1, 2, 3], &[&[1, 2, 3], &[1, 2]], &[]));
        assert_eq!((standing(&joint.roster, 3), revoked(&joint.roster)), (Some((true, true, false, true)), vec![]));
        let last = next(&joint.roster, &joint.denials, &seen(place(2, 21), &[1, 2, 3], &[&[1, 2]], &[]));
        assert_eq!((standing(&last.roster, 3), revoked(&last.roster), last.denials), (None, vec![3], vec![]));

        later.place = place(3, 20);
        let back = next(roster, denials, &later);
        assert_eq!((standing(&back.roster, 3), back.denials), (Some((true, true, false, false)), vec![]));
    }

    #[test]
    fn the_oldest_revoked_nodes_make_room() {
        let mut before = founded();
        before.revoked =
            (10..10 + REVOKED_MAX as u64).map(|id| Revoked { node: NodeId(id), boot_pk: [9; 32] }).collect();
        let after = next(&before, &[], &seen(place(1, 9), &[1, 2], &[&[1, 2]], &[])).roster;
        assert_eq!(after.revoked.len(), REVOKED_MAX);
        assert!(!revoked(&after).contains(&3) && revoked(&after).contains(&10), "the lowest ids are the oldest");
        after.encode().expect("it fits");
    }
}
