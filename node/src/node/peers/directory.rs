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

    /// This roster, with what a newer one that a peer showed adds: where members are now, and members that joined meanwhile.
    ///
    /// The peer may lie, and nothing proves what it shows. So it takes nothing away: whom this roster trusts, with which keys, and whom
    /// it refuses stay as they are. Nor is this roster newer than before: only the own log makes it so. It is kept in memory alone, and
    /// may have more members and addresses than a vault.
    pub fn merged_with(&self, newer: &Self, me: NodeId) -> Self {
        if newer.log_id <= self.log_id {
            return self.clone();
        }
        let mut members = self.members.clone();
        for member in members.iter_mut().filter(|member| member.node != me) {
            // The recorded addresses stay in front: the new ones may be wrong.
            let shown = newer.member(member.node).map_or_else(Vec::new, |shown| shown.addresses.clone());
            let new = shown.into_iter().filter(|address| !member.addresses.contains(address)).collect::<Vec<_>>();
            member.addresses.extend(new);
        }
        let is_known = |joined: &RosterMember| {
            let gone =
                self.revoked.iter().any(|revoked| revoked.node == joined.node || revoked.boot_pk == joined.boot_pk);
            let is_same = |member: &RosterMember| {
                member.node == joined.node || member.boot_pk == joined.boot_pk || member.op_pk == joined.op_pk
            };
            gone || self.members.iter().any(is_same)
        };
        members.extend(newer.members.iter().filter(|joined| joined.node != me && !is_known(joined)).cloned());
        members.sort_by_key(|member| member.node);
        Self { log_id: self.log_id, members, revoked: self.revoked.clone() }
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

    /// Mutated: with the log id of the peer's roster, or with its denials, keys or former members, a member that lies takes part in what
    /// this node says of others.
    #[test]
    fn a_newer_roster_adds_members_and_addresses_and_takes_nothing_away() {
        let mut own = roster(10, &[1, 2, 3], &[5]);
        own.members[1].standing.denied = true;
        let mut newer = roster(20, &[1, 2, 4, 5], &[3]);
        newer.members[0].addresses = vec!["127.0.0.1:1".parse().expect("an address")];
        newer.members[1].op_pk = [9; 32];
        newer.members[1].addresses = vec!["127.0.0.1:2".parse().expect("an address")];
        newer.members[2].standing.denied = true;
        let shown = own.merged_with(&newer, NodeId(1));
        assert_eq!(members(&shown), [1, 2, 3, 4], "a node that joined; the former member stays one");
        assert_eq!((&shown.members[0], &shown.members[2]), (&own.members[0], &own.members[2]));
        let moved = &shown.members[1];
        assert_eq!((moved.op_pk, moved.standing.denied, shown.revoked.len()), ([102; 32], true, 1));
        assert_eq!(addresses(moved), ["127.0.0.1:7250", "127.0.0.1:2"], "where it was, and where it may be now");
        assert!(!shown.is_revoked(&[3; 32]) && shown.is_revoked(&[5; 32]));
        assert_eq!(shown.log_id, own.log_id);
        let empty = own.merged_with(&roster(u64::MAX, &[], &[1, 2]), NodeId(1));
        assert_eq!(empty, own, "a roster that leaves out all nodes");
        assert_eq!(own.merged_with(&roster(10, &[9], &[]), NodeId(1)), own, "no newer than the own one");
        let mut same_keys = roster(20, &[7], &[]);
        same_keys.members[0].op_pk = own.members[2].op_pk;
        assert_eq!(own.merged_with(&same_keys, NodeId(1)), own, "a key has one owner");
    }
}
