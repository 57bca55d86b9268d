//! What connections need to know from the roster: which node has this key, and how is that node reached.

use quorate_client::identity::{Protocol, PublicKey};
use quorate_shares::ids::NodeId;

use crate::vault::{Roster, RosterMember};

impl Roster {
    /// The op key of a member that is not denied.
    pub fn op_key_of(&self, node: NodeId) -> Option<PublicKey> {
        self.trusted(node).map(|member| PublicKey(member.op_pk))
    }

    /// The member with this op key, unless it is denied.
    pub fn node_with_op_key(&self, key: &PublicKey) -> Option<NodeId> {
        self.members.iter().find(|member| !member.standing.denied && member.op_pk == key.0).map(|member| member.node)
    }

    /// Whether a member that is not denied uses this key in this protocol.
    pub fn is_key_of_member(&self, protocol: Protocol, key: &PublicKey) -> bool {
        self.members.iter().filter(|member| !member.standing.denied).any(|member| match protocol {
            Protocol::Boot | Protocol::Join => member.boot_pk == key.0,
            Protocol::Peer => member.op_pk == key.0,
            Protocol::Client => false,
        })
    }

    /// Addresses and op key of a member.
    pub fn reach(&self, node: NodeId) -> Option<(Vec<String>, PublicKey)> {
        self.trusted(node).map(|member| (addresses(member), PublicKey(member.op_pk)))
    }

    /// Addresses and boot key of a member.
    pub fn reach_boot(&self, node: NodeId) -> Option<(Vec<String>, PublicKey)> {
        self.trusted(node).map(|member| (addresses(member), PublicKey(member.boot_pk)))
    }

    /// This roster, merged with a newer one that a peer showed. Members of either roster can be reached. Nodes that either roster
    /// refuses are refused. The entry of this node itself stays as it is. The log id also stays, since only the own log makes the
    /// own roster newer.
    pub fn merged_with(&self, newer: &Self, me: NodeId) -> Self {
        if newer.log_id <= self.log_id {
            return self.clone();
        }
        let is_denied = |node| self.member(node).is_some_and(|member| member.standing.denied);
        let others = newer.members.iter().filter(|member| member.node != me).cloned().map(|mut member| {
            member.standing.denied |= is_denied(member.node);
            member
        });
        let mut members: Vec<RosterMember> = others.collect();
        let is_revoked = |node| self.revoked.iter().chain(&newer.revoked).any(|revoked| revoked.node == node);
        members.retain(|member| !is_revoked(member.node));
        for member in &self.members {
            if newer.member(member.node).is_none_or(|_| member.node == me)
                && (member.node == me || !is_revoked(member.node))
            {
                members.push(member.clone());
            }
        }
        members.sort_by_key(|member| member.node);
        let mut revoked: Vec<_> = self.revoked.iter().chain(&newer.revoked).copied().collect();
        revoked.retain(|revoked| revoked.node != me);
        revoked.sort_by_key(|revoked| revoked.node);
        revoked.dedup_by_key(|revoked| revoked.node);
        Self { log_id: self.log_id, members, revoked }
    }

    fn trusted(&self, node: NodeId) -> Option<&RosterMember> {
        self.member(node).filter(|member| !member.standing.denied)
    }
}

fn addresses(member: &RosterMember) -> Vec<String> {
    member.addresses.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::{Revoked, RosterLogId, Standing};

    fn roster(index: u64, members: &[u64], revoked: &[u64]) -> Roster {
        let member = |&id: &u64| RosterMember {
            node: NodeId(id),
            boot_pk: [id as u8; 32],
            op_pk: [id as u8 + 100; 32],
            standing: Standing { member: true, voter: true, ..Standing::default() },
            name: format!("n{id}").parse().expect("a name"),
            addresses: vec!["127.0.0.1:7250".parse().expect("an address")],
        };
        let revoked = revoked.iter().map(|&id| Revoked { node: NodeId(id), boot_pk: [id as u8; 32] });
        let log_id = RosterLogId { term: 1, leader: 1, index };
        Roster { log_id, members: members.iter().map(member).collect(), revoked: revoked.collect() }
    }

    fn members(roster: &Roster) -> Vec<u64> {
        roster.members.iter().map(|member| member.node.0).collect()
    }

    /// Mutated: with the log id of the peer's roster, or without the own denials, this fails.
    #[test]
    fn a_newer_roster_adds_members_and_takes_no_denial_back() {
        let mut own = roster(10, &[1, 2, 3], &[]);
        own.members[1].standing.denied = true;
        let newer = roster(20, &[1, 2, 4], &[3]);
        let shown = own.merged_with(&newer, NodeId(1));
        assert_eq!(members(&shown), [1, 2, 4]);
        assert!(shown.reach(NodeId(4)).is_some() && shown.reach(NodeId(2)).is_none() && shown.is_revoked(&[3; 32]));
        assert_eq!(shown.log_id, own.log_id);
        shown.encode().expect("it is a roster");
        // A roster that leaves out this node, or all nodes, removes no member.
        let empty = own.merged_with(&roster(u64::MAX, &[], &[1]), NodeId(1));
        assert_eq!((members(&empty), empty.revoked.len()), (vec![1, 2, 3], 0));
        assert_eq!(own.merged_with(&roster(10, &[9], &[]), NodeId(1)), own, "no newer than the own one");
    }
}
