//! Questions that the network asks of the roster: whose key is this, and how is that node reached?

use quorate_client::identity::{Protocol, PublicKey};
use quorate_shares::ids::NodeId;

use crate::vault::{Roster, RosterMember};

impl Roster {
    /// The op key of a member that is not denied.
    pub fn op_key_of(&self, node: NodeId) -> Option<PublicKey> {
        self.trusted(node).map(|member| PublicKey(member.op_pk))
    }

    /// The member, not denied, whose op key this is.
    pub fn node_with_op_key(&self, key: &PublicKey) -> Option<NodeId> {
        self.members.iter().find(|member| !member.standing.denied && member.op_pk == key.0).map(|member| member.node)
    }

    /// Whether a member, not denied, proves itself with this key where this protocol is spoken.
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

    fn trusted(&self, node: NodeId) -> Option<&RosterMember> {
        self.member(node).filter(|member| !member.standing.denied)
    }
}

fn addresses(member: &RosterMember) -> Vec<String> {
    member.addresses.iter().map(ToString::to_string).collect()
}
