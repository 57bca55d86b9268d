//! Who the members are, as this node knows them.

use quorate_client::error::Code;
use quorate_client::wire::WireError;
use quorate_shares::ids::{NodeId, NodeName};

use crate::node::Node;

/// A node that was a member once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone {
    /// Its id.
    pub node: NodeId,
    /// Its boot identity.
    pub boot_pk: [u8; 32],
    /// Its op identity.
    pub op_pk: [u8; 32],
}

/// The member of that name.
///
/// # Errors
/// [`Code::NotFound`], with the names that there are.
pub fn member(node: &Node, name: &NodeName) -> Result<NodeId, WireError> {
    let roster = node.roster();
    let member = roster.members.iter().find(|member| member.name == *name);
    member.map(|member| member.node).ok_or_else(|| unknown_node(node, name))
}

/// The answer for a name that no member has.
pub fn unknown_node(node: &Node, name: &NodeName) -> WireError {
    let names: Vec<_> = node.roster().members.iter().map(|member| member.name.to_string()).collect();
    WireError::new(Code::NotFound, format!("no node named {name}")).hint(format!("the nodes are {}", names.join(", ")))
}
