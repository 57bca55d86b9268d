//! What an operator can order: one variant for each kind, with the intent and nothing that a node fills in.
//!
//! ```text
//! act             kind u8 | fields
//! 1 create keys   n u16 (1..1000) | n x { key name u8+bytes | m u8 (<= 32) | m x { name u8+bytes | value u8+bytes } }
//! 2 rotate key    key name u8+bytes | expect u32
//! 3 invite node   V 32 | name u8+bytes, empty for any | ttl_ms u64
//! 4 replace node  node | invitation 32
//! 5 remove node   node | two may remain u8 (0, 1) | n u8 (<= 9) | n x node
//! 6 revoke nodes  n u8 (1..9) | n x node | n u8 (<= 9) | n x node
//! 7 set addresses node | a u8 (1..8) | a x address u8+bytes
//! 8 seal          sealed u8 (0, 1)
//! 9 admit         node
//! 10 disarm       all u8 (0, 1) | n u8 (<= 64) | n x code u8+bytes
//! 11 add operator     key 32 | label u8+bytes
//! 12 remove operator  key 32
//!
//! node = id u64 | name u8+bytes
//! ```
//!
//! Lists rise: names of keys as given, tags by their name, nodes by their id, codes by their text. Numbers are big-endian.

use std::collections::{BTreeMap, BTreeSet};

use super::NODES_MAX;
use crate::error::FormatError;
use crate::ids::{
    ADDRESS_BYTES_MAX, ADDRESSES_MAX, KeyName, KeyVersion, NodeId, NodeName, TAG_BYTES_MAX, TAGS_MAX, is_address,
};
use crate::layout::Reader;
use crate::signature::PublicKey;

/// Most keys that one order makes.
pub const KEYS_MAX: usize = 1_000;
/// Most codes of alarms in one order.
pub const CODES_MAX: usize = 64;
/// Longest label of a key, in bytes.
pub const LABEL_BYTES_MAX: usize = 64;

/// What is ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Makes keys, each with its version 1: all of them, or none.
    CreateKeys {
        /// 1 to [`KEYS_MAX`], no name twice.
        keys: Vec<NewKey>,
    },
    /// Makes the next version of a key.
    RotateKey {
        /// The name of the key.
        name: KeyName,
        /// The version that must be the newest.
        expect: KeyVersion,
    },
    /// Lets one node join with an invitation.
    InviteNode {
        /// V, which proves the invitation.
        proof_key: ProofKey,
        /// The name that the node must have; `None` for any.
        name: Option<NodeName>,
        /// How long the invitation is valid, in milliseconds.
        ttl_ms: u64,
    },
    /// The node that joins with an invitation replaces a member, which is then revoked.
    ReplaceNode {
        /// The member that is replaced.
        gone: NamedNode,
        /// SHA-256 of the V of the invitation.
        invitation: [u8; 32],
    },
    /// Removes a member in good order.
    RemoveNode {
        /// The member.
        node: NamedNode,
        /// Two members may remain, so that the loss of one disk loses every key.
        accept_no_redundancy: bool,
        /// Members that are away and count as lost, by rising id.
        abandon: Vec<NamedNode>,
    },
    /// Revokes members: the others refuse them from now on.
    RevokeNodes {
        /// The members, by rising id: at least one.
        nodes: Vec<NamedNode>,
        /// Members that are away and come back with their disks, by rising id.
        expect_back: Vec<NamedNode>,
    },
    /// Records where a member listens.
    SetAddresses {
        /// The member.
        node: NamedNode,
        /// As `host:port`, best first: 1 to [`ADDRESSES_MAX`].
        addresses: Vec<String>,
    },
    /// Seals or unseals the node that the order names as its target.
    Seal {
        /// `true` to seal.
        sealed: bool,
    },
    /// Lets a member unlock again at the target, however long it was away.
    Admit {
        /// The member.
        node: NamedNode,
    },
    /// Closes alarms at the target.
    Disarm {
        /// Their codes, at most [`CODES_MAX`]; `None` for all.
        codes: Option<BTreeSet<String>>,
    },
    /// Makes a key an operator's.
    AddOperator(LabelledKey),
    /// Takes an operator's key away.
    RemoveOperator {
        /// The key.
        key: PublicKey,
    },
}

/// A key to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewKey {
    /// Its name, which never changes.
    pub name: KeyName,
    /// Notes for people, by name: at most [`TAGS_MAX`], names and values of at most [`TAG_BYTES_MAX`] bytes.
    pub tags: BTreeMap<String, String>,
}

/// A member as the operator means it: by its number and its name. If both do not belong together any more, the order is refused.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedNode {
    /// Its number.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
}

/// A public key, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelledKey {
    /// The key.
    pub key: PublicKey,
    /// Whose it is, for people: 1 to [`LABEL_BYTES_MAX`] bytes without control characters.
    pub label: String,
}

/// V, which proves an invitation. A node that knows it can join, so it is not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ProofKey(pub [u8; 32]);

impl std::fmt::Debug for ProofKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ProofKey(…)")
    }
}

impl Act {
    /// The kind, as rules and log lines name it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::CreateKeys { .. } => "key.create",
            Self::RotateKey { .. } => "key.rotate",
            Self::InviteNode { .. } => "node.invite",
            Self::ReplaceNode { .. } => "node.replace",
            Self::RemoveNode { .. } => "node.remove",
            Self::RevokeNodes { .. } => "node.revoke",
            Self::SetAddresses { .. } => "node.set-address",
            Self::Seal { sealed: true } => "node.seal",
            Self::Seal { sealed: false } => "node.unseal",
            Self::Admit { .. } => "node.admit",
            Self::Disarm { .. } => "alarm.disarm",
            Self::AddOperator(_) => "operator.add",
            Self::RemoveOperator { .. } => "operator.remove",
        }
    }

    /// Whether one node does it by itself, and not the cluster. Such an order names the node as its target.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Seal { .. } | Self::Admit { .. } | Self::Disarm { .. } => true,
            Self::CreateKeys { .. }
            | Self::RotateKey { .. }
            | Self::InviteNode { .. }
            | Self::ReplaceNode { .. }
            | Self::RemoveNode { .. }
            | Self::RevokeNodes { .. }
            | Self::SetAddresses { .. }
            | Self::AddOperator(_)
            | Self::RemoveOperator { .. } => false,
        }
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::CreateKeys { keys } => {
                out.push(1);
                out.extend((keys.len() as u16).to_be_bytes()); // at most KEYS_MAX, checked before
                for key in keys {
                    text(out, key.name.as_str());
                    out.push(key.tags.len() as u8); // at most TAGS_MAX
                    key.tags.iter().for_each(|(name, value)| {
                        text(out, name);
                        text(out, value);
                    });
                }
            }
            Self::RotateKey { name, expect } => {
                out.push(2);
                text(out, name.as_str());
                out.extend(expect.0.to_be_bytes());
            }
            Self::InviteNode { proof_key, name, ttl_ms } => {
                out.push(3);
                out.extend(proof_key.0);
                text(out, name.as_ref().map_or("", NodeName::as_str));
                out.extend(ttl_ms.to_be_bytes());
            }
            Self::ReplaceNode { gone, invitation } => {
                out.push(4);
                gone.write(out);
                out.extend(invitation);
            }
            Self::RemoveNode { node, accept_no_redundancy, abandon } => {
                out.push(5);
                node.write(out);
                out.push((*accept_no_redundancy).into());
                nodes(out, abandon);
            }
            Self::RevokeNodes { nodes: revoked, expect_back } => {
                out.push(6);
                nodes(out, revoked);
                nodes(out, expect_back);
            }
            Self::SetAddresses { node, addresses } => {
                out.push(7);
                node.write(out);
                out.push(addresses.len() as u8); // at most ADDRESSES_MAX
                addresses.iter().for_each(|address| text(out, address));
            }
            Self::Seal { sealed } => out.extend([8, (*sealed).into()]),
            Self::Admit { node } => {
                out.push(9);
                node.write(out);
            }
            Self::Disarm { codes } => {
                out.extend([10, codes.is_none().into()]);
                let codes = codes.as_ref();
                out.push(codes.map_or(0, |codes| codes.len() as u8)); // at most CODES_MAX
                codes.into_iter().flatten().for_each(|code| text(out, code));
            }
            Self::AddOperator(operator) => {
                out.push(11);
                operator.write(out);
            }
            Self::RemoveOperator { key } => {
                out.push(12);
                out.extend(key.0);
            }
        }
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let act = match reader.u8()? {
            1 => {
                let count = usize::from(reader.u16()?);
                if count > KEYS_MAX {
                    return Err(FormatError::TooMany { what: "keys", limit: KEYS_MAX });
                }
                Self::CreateKeys { keys: (0..count).map(|_| NewKey::read(reader)).collect::<Result<_, _>>()? }
            }
            2 => Self::RotateKey { name: key_name(reader)?, expect: KeyVersion(reader.u32()?) },
            3 => {
                let proof_key = ProofKey(reader.array()?);
                let name = match reader.text()? {
                    "" => None,
                    name => Some(name.parse().map_err(|_| FormatError::Invalid("node name"))?),
                };
                Self::InviteNode { proof_key, name, ttl_ms: reader.u64()? }
            }
            4 => Self::ReplaceNode { gone: NamedNode::read(reader)?, invitation: reader.array()? },
            5 => Self::RemoveNode {
                node: NamedNode::read(reader)?,
                accept_no_redundancy: reader.flag("consent to two nodes")?,
                abandon: read_nodes(reader)?,
            },
            6 => Self::RevokeNodes { nodes: read_nodes(reader)?, expect_back: read_nodes(reader)? },
            7 => {
                let node = NamedNode::read(reader)?;
                let addresses = (0..reader.count(ADDRESSES_MAX, "addresses")?).map(|_| Ok(reader.text()?.to_owned()));
                Self::SetAddresses { node, addresses: addresses.collect::<Result<_, FormatError>>()? }
            }
            8 => Self::Seal { sealed: reader.flag("seal")? },
            9 => Self::Admit { node: NamedNode::read(reader)? },
            10 => {
                let all = reader.flag("all alarms")?;
                let codes = (0..reader.count(CODES_MAX, "codes")?).map(|_| Ok(reader.text()?.to_owned()));
                let codes = codes.collect::<Result<Vec<_>, FormatError>>()?;
                if all && !codes.is_empty() || !codes.is_sorted_by(|one, next| one < next) {
                    return Err(FormatError::Invalid("codes"));
                }
                Self::Disarm { codes: (!all).then(|| codes.into_iter().collect()) }
            }
            11 => Self::AddOperator(LabelledKey::read(reader)?),
            12 => Self::RemoveOperator { key: PublicKey(reader.array()?) },
            _ => return Err(FormatError::Invalid("kind of order")),
        };
        act.check()?;
        Ok(act)
    }

    /// Checks everything that the types do not: what passes has exactly one byte form, and can be read back.
    pub(super) fn check(&self) -> Result<(), FormatError> {
        let rise = |nodes: &[NamedNode]| {
            let fit = nodes.len() <= NODES_MAX && nodes.is_sorted_by(|one, next| one.id < next.id);
            nodes.iter().try_for_each(NamedNode::check)?;
            if fit { Ok(()) } else { Err(FormatError::Invalid("list of nodes")) }
        };
        let some = |count: usize, what: &'static str| if count == 0 { Err(FormatError::Invalid(what)) } else { Ok(()) };
        match self {
            Self::CreateKeys { keys } => {
                if keys.len() > KEYS_MAX {
                    return Err(FormatError::TooMany { what: "keys", limit: KEYS_MAX });
                }
                keys.iter().try_for_each(NewKey::check)?;
                let names: BTreeSet<_> = keys.iter().map(|key| &key.name).collect();
                if names.len() < keys.len() {
                    return Err(FormatError::Invalid("list of keys: a name is given twice"));
                }
                some(keys.len(), "list of keys")
            }
            Self::RotateKey { expect, .. } => some(expect.0 as usize, "version"),
            Self::RemoveNode { node, abandon, .. } => {
                node.check()?;
                rise(abandon)
            }
            Self::ReplaceNode { gone: node, .. } | Self::Admit { node } => node.check(),
            Self::RevokeNodes { nodes, expect_back } => {
                rise(nodes)?;
                rise(expect_back)?;
                some(nodes.len(), "list of nodes")
            }
            Self::SetAddresses { node, addresses } => {
                node.check()?;
                let fit = |address: &String| address.len() <= ADDRESS_BYTES_MAX && is_address(address);
                if addresses.len() > ADDRESSES_MAX || !addresses.iter().all(fit) {
                    return Err(FormatError::Invalid("addresses"));
                }
                some(addresses.len(), "addresses")
            }
            Self::Disarm { codes: Some(codes) } => {
                let fit = |code: &String| code.len() <= TAG_BYTES_MAX;
                if codes.len() > CODES_MAX || !codes.iter().all(fit) {
                    return Err(FormatError::Invalid("codes"));
                }
                Ok(())
            }
            Self::AddOperator(operator) => operator.check(),
            Self::InviteNode { .. }
            | Self::Seal { .. }
            | Self::Disarm { codes: None }
            | Self::RemoveOperator { .. } => Ok(()),
        }
    }
}

impl NewKey {
    fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let name = key_name(reader)?;
        let mut tags: BTreeMap<String, String> = BTreeMap::new();
        for _ in 0..reader.count(TAGS_MAX, "tags")? {
            let (tag, value) = (reader.text()?.to_owned(), reader.text()?.to_owned());
            if tags.last_key_value().is_some_and(|(last, _)| *last >= tag) {
                return Err(FormatError::Invalid("order of tags"));
            }
            tags.insert(tag, value);
        }
        Ok(Self { name, tags })
    }

    fn check(&self) -> Result<(), FormatError> {
        let fit = |(name, value): (&String, &String)| {
            (1..=TAG_BYTES_MAX).contains(&name.len()) && value.len() <= TAG_BYTES_MAX
        };
        if self.tags.len() > TAGS_MAX || !self.tags.iter().all(fit) {
            return Err(FormatError::Invalid("tags"));
        }
        Ok(())
    }
}

impl NamedNode {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.id.0.to_be_bytes());
        text(out, self.name.as_str());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        Ok(Self { id: reader.node()?, name: reader.name()? })
    }

    fn check(&self) -> Result<(), FormatError> {
        if self.id == NodeId(0) { Err(FormatError::Invalid("node id")) } else { Ok(()) }
    }
}

impl LabelledKey {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.key.0);
        text(out, &self.label);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        Ok(Self { key: PublicKey(reader.array()?), label: reader.text()?.to_owned() })
    }

    fn check(&self) -> Result<(), FormatError> {
        if !is_label(&self.label) {
            return Err(FormatError::Invalid("label: 1 to 64 bytes without control characters"));
        }
        if self.key.is_strict() { Ok(()) } else { Err(FormatError::Invalid("public key")) }
    }
}

/// Whether a text can be the label of a key: 1 to [`LABEL_BYTES_MAX`] bytes without control characters.
pub fn is_label(text: &str) -> bool {
    (1..=LABEL_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
}

fn key_name(reader: &mut Reader<'_>) -> Result<KeyName, FormatError> {
    reader.text()?.parse().map_err(|_| FormatError::Invalid("key name"))
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(text.len() as u8); // checked: at most 255 bytes
    out.extend(text.as_bytes());
}

fn nodes(out: &mut Vec<u8>, nodes: &[NamedNode]) {
    out.push(nodes.len() as u8); // at most NODES_MAX
    nodes.iter().for_each(|node| node.write(out));
}

fn read_nodes(reader: &mut Reader<'_>) -> Result<Vec<NamedNode>, FormatError> {
    (0..reader.count(NODES_MAX, "nodes")?).map(|_| NamedNode::read(reader)).collect()
}
