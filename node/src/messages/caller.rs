//! The caller of a request: what a node knows about it, from the door where the request enters to the handler that answers.
//!
//! Each request gets one [`Caller`] where it enters: from the key that its connection proved, or from the local socket. It reaches
//! every handler, and it travels with what is forwarded to another member. A handler, a rule or an audit line never asks the connection again.
//!
//! A forwarded caller is as trustworthy as the member that forwards it: that member checked the key. [`Caller::via`] names
//! the member. The receiver sets it from the session, never from the message.

use std::fmt;
use std::net::SocketAddr;

use quorate_shares::ids::NodeId;
use quorate_shares::signature::PublicKey;
use serde::{Deserialize, Serialize};

/// Who asks, and how the request came here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    pub who: Principal,
    /// The key that the caller proved; `None` if the operating system vouches for the caller.
    pub key: Option<PublicKey>,
    pub from: Origin,
    pub door: Door,
    pub restrictions: Restrictions,
    /// The member that forwarded the request; `None` if the caller asked this node itself.
    #[serde(skip)]
    pub via: Option<NodeId>,
}

/// Who a caller is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Principal {
    /// A person who may order.
    Operator,
    /// A member, known by its op key.
    Member(NodeId),
    /// The user of this machine that owns the daemon's socket, or root.
    MachineOwner,
}

/// Where a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// The address at which the connection was made.
    Network(SocketAddr),
    /// A process of this machine, by its user id.
    Process { uid: u32 },
}

/// The door through which a request enters the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Door {
    /// `quorate-client/1`, where the caller proves its credential.
    Client,
    /// `quorate-peer/1`, between members.
    Peer,
    /// The local socket of a daemon.
    Local,
}

/// What a caller may not do although its [`Principal`] may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Restrictions {
    /// No restrictions. So far all callers are unrestricted: operators, members, and owners of a machine.
    Unrestricted,
}

impl Caller {
    /// The operator with this key.
    pub fn operator(key: PublicKey, door: Door, remote: SocketAddr) -> Self {
        let (who, key) = (Principal::Operator, Some(key));
        let restrictions = Restrictions::Unrestricted;
        Self { who, key, from: Origin::Network(remote), door, restrictions, via: None }
    }

    /// The member `node`, whose op key is `key`.
    pub fn member(node: NodeId, key: PublicKey, remote: SocketAddr) -> Self {
        let (who, key) = (Principal::Member(node), Some(key));
        let restrictions = Restrictions::Unrestricted;
        Self { who, key, from: Origin::Network(remote), door: Door::Peer, restrictions, via: None }
    }

    /// A user of this machine that the mode of the local socket lets in.
    pub fn machine_owner(uid: u32) -> Self {
        let (from, door) = (Origin::Process { uid }, Door::Local);
        Self {
            who: Principal::MachineOwner,
            key: None,
            from,
            door,
            restrictions: Restrictions::Unrestricted,
            via: None,
        }
    }

    /// The same caller, as the member `via` forwards it.
    #[must_use]
    pub fn forwarded_by(self, via: NodeId) -> Self {
        Self { via: Some(via), ..self }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.who)?;
        if let Some(key) = &self.key {
            write!(f, " {key}")?;
        }
        write!(f, " from {} at the {} door", self.from, self.door)?;
        match self.via {
            Some(via) => write!(f, " of node {via}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator => f.write_str("operator"),
            Self::Member(node) => write!(f, "node {node}"),
            Self::MachineOwner => f.write_str("owner of the machine"),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(address) => address.fmt(f),
            Self::Process { uid } => write!(f, "user {uid}"),
        }
    }
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Peer => "peer",
            Self::Local => "local",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::peer::{decode, encode};

    #[test]
    fn a_line_names_the_caller_and_the_member_that_forwarded_it() {
        let caller =
            Caller::operator(PublicKey([0xab; 32]), Door::Client, "10.0.0.5:4711".parse().expect("an address"));
        let line = "operator q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s from 10.0.0.5:4711 at the client door";
        assert_eq!(caller.to_string(), line);
        let forwarded = caller.forwarded_by(NodeId(2));
        assert!(forwarded.to_string().ends_with("at the client door of node 2"), "{forwarded}");
        assert_eq!(Caller::machine_owner(0).to_string(), "owner of the machine from user 0 at the local door");
    }

    /// Mutated: if `via` were part of the message, a member could pass its own request off as that of another.
    #[test]
    fn the_member_that_forwards_is_not_part_of_the_message() {
        let caller = Caller::operator(PublicKey([7; 32]), Door::Client, "[::1]:4711".parse().expect("an address"));
        let sent = encode(&caller.clone().forwarded_by(NodeId(3)));
        assert_eq!(sent, encode(&caller));
        assert_eq!(decode::<Caller>(&sent).expect("our own bytes"), caller);
    }
}
