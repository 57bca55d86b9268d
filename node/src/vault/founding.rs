//! Section 5: the progress of a node that founds or joins a cluster.
//!
//! The section is in the vault from the first command until this node applies the first Raft entry that names it. If the node
//! crashes in between, it goes on from here: a node with this section and without a Raft log resumes founding or joining.
//!
//! ```text
//! attempt u32 | role u8 | own name u8+bytes | a u8 | a x address u8+bytes
//! role 1, first founder:  N u8 | t u8
//!     | i u8 | i x { V 32 | expires_ms u64 | bound u8 (0, 1) | bound x boot_pk 32 }
//!     | operator 32 | label u8+bytes
//!     | f u8 | f x { node_id u64 | boot_pk 32 | op_pk 32 | share_pk 1216 | name u8+bytes | a u8 | a x address u8+bytes }
//!     | step u8
//! role 2 founder, 3 joiner:  V 32 | i u8 (1..3) | i x { boot_pk 32 | address u8+bytes }
//! ```

use quorate_shares::ids::{NodeId, NodeName};
use quorate_shares::kem::PublicKey;
use quorate_shares::order::LabelledKey;
use quorate_shares::signature;

use super::roster::MEMBERS_MAX;
use crate::vault::invitation::{INVITERS_MAX, InvitationKey, Inviter};
use crate::vault::layout::{Address, FormatError, Reader, Writer};

/// The id of the first founder.
pub const FIRST_FOUNDER: NodeId = NodeId(1);
/// Most invitations that a first founder keeps: one for each founder. A repeated `init` drops those that it replaces.
pub const INVITATIONS_MAX: usize = MEMBERS_MAX;

/// Founding or joining, unfinished.
pub struct Founding {
    /// The first founder raises it whenever a founder comes back with new keys. All founders then make their locks again.
    pub attempt: u32,
    /// The name that this node was given.
    pub name: NodeName,
    pub addresses: Vec<Address>,
    /// The part that this node plays.
    pub role: Role,
}

/// The part that a node plays in founding or joining.
pub enum Role {
    /// The operator ran `cluster init` here.
    FirstFounder(FirstFounder),
    /// The first founder invited this node before there was a cluster.
    Founder(Invited),
    /// A member invited this node into a running cluster.
    Joiner(Invited),
}

/// What the first founder keeps over a crash.
pub struct FirstFounder {
    /// How many founders there will be, itself included.
    pub founders: u8,
    pub threshold: u8,
    /// The invitations, whether proved already or not.
    pub invitations: Vec<OpenInvitation>,
    /// The first operator.
    pub operator: LabelledKey,
    /// The founders that have registered, in order of their ids, the first founder included.
    pub so_far: Vec<FounderKeys>,
    pub step: FoundingStep,
}

/// An invitation, as the node that gave it keeps it.
pub struct OpenInvitation {
    /// V, with which the invitation is proved.
    pub key: InvitationKey,
    /// Unix time after which no new node may prove it.
    pub expires_ms: u64,
    /// The boot identity that proved it first. No other node may prove it after that.
    pub bound: Option<[u8; 32]>,
}

/// The keys and the name that a founder registered.
#[derive(Clone, PartialEq, Eq)]
pub struct FounderKeys {
    /// The id that it got when it proved its invitation.
    pub node: NodeId,
    pub boot_pk: [u8; 32],
    /// Its op identity of this attempt.
    pub op_pk: [u8; 32],
    /// Its share key of this attempt.
    pub share_pk: PublicKey,
    /// The operator's label.
    pub name: NodeName,
    pub addresses: Vec<Address>,
}

/// The steps of the first founder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FoundingStep {
    /// Founders prove their invitations.
    Gathering = 1,
    /// All founders are known. They exchange lock keys in pairs, and each writes its first locked vault.
    Locking = 2,
    /// All locks are durable. Raft is initialised with all founders as voters.
    Starting = 3,
}

/// What an invited node keeps over a crash.
pub struct Invited {
    /// V, which proves the invitation.
    pub key: InvitationKey,
    /// The members to ask, at most [`INVITERS_MAX`].
    pub inviters: Vec<Inviter>,
}

impl Founding {
    pub(super) fn write(&self, writer: &mut Writer) {
        writer.u32(self.attempt).u8(self.role.tag()).text(self.name.as_str()).addresses(&self.addresses);
        match &self.role {
            Role::FirstFounder(first) => first.write(writer),
            Role::Founder(invited) | Role::Joiner(invited) => invited.write(writer),
        }
    }

    pub(super) fn read(mut reader: Reader<'_>) -> Result<Self, FormatError> {
        let (attempt, tag) = (reader.u32()?, reader.u8()?);
        let (name, addresses) = (reader.name()?, Address::read_list(&mut reader)?);
        let role = match tag {
            1 => Role::FirstFounder(FirstFounder::read(&mut reader)?),
            2 => Role::Founder(Invited::read(&mut reader)?),
            3 => Role::Joiner(Invited::read(&mut reader)?),
            _ => return Err(FormatError::Invalid("role")),
        };
        reader.finish()?;
        Ok(Self { attempt, name, addresses, role })
    }
}

impl Role {
    /// Makes a founder a joiner: the cluster that it was invited into runs already.
    pub fn join(&mut self) {
        if let Self::Founder(Invited { key, inviters }) = self {
            *self = Self::Joiner(Invited { key: key.duplicate(), inviters: std::mem::take(inviters) });
        }
    }

    fn tag(&self) -> u8 {
        match self {
            Role::FirstFounder(_) => 1,
            Role::Founder(_) => 2,
            Role::Joiner(_) => 3,
        }
    }
}

impl FirstFounder {
    fn write(&self, writer: &mut Writer) {
        writer.u8(self.founders).u8(self.threshold).count(self.invitations.len());
        for invitation in &self.invitations {
            writer.bytes(invitation.key.expose()).u64(invitation.expires_ms).u8(invitation.bound.is_some().into());
            writer.bytes(invitation.bound.as_ref().map_or(&[], |boot_pk| boot_pk));
        }
        writer.bytes(&self.operator.key.0).text(&self.operator.label).count(self.so_far.len());
        self.so_far.iter().for_each(|founder| founder.write(writer));
        writer.u8(self.step as u8);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let (founders, threshold) = (reader.u8()?, reader.u8()?);
        let invitations = (0..reader.count(INVITATIONS_MAX, "invitations")?).map(|_| OpenInvitation::read(reader));
        let invitations = invitations.collect::<Result<_, _>>()?;
        let operator = LabelledKey { key: signature::PublicKey(reader.array()?), label: reader.text()?.to_owned() };
        let so_far = (0..reader.count(MEMBERS_MAX, "founders")?).map(|_| FounderKeys::read(reader));
        let so_far = so_far.collect::<Result<Vec<_>, _>>()?;
        let step = FoundingStep::read(reader)?;
        match so_far.is_sorted_by(|a, b| a.node < b.node) {
            true => Ok(Self { founders, threshold, invitations, operator, so_far, step }),
            false => Err(FormatError::Invalid("order of founders")),
        }
    }
}

impl OpenInvitation {
    fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let (key, expires_ms) = (InvitationKey::from(reader.secret()?), reader.u64()?);
        let bound = if reader.flag("binding of an invitation")? { Some(reader.array()?) } else { None };
        Ok(Self { key, expires_ms, bound })
    }
}

impl FounderKeys {
    fn write(&self, writer: &mut Writer) {
        writer.u64(self.node.0).bytes(&self.boot_pk).bytes(&self.op_pk).bytes(self.share_pk.as_bytes());
        writer.text(self.name.as_str()).addresses(&self.addresses);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        Ok(Self {
            node: reader.node()?,
            boot_pk: reader.array()?,
            op_pk: reader.array()?,
            share_pk: reader.share_pk()?,
            name: reader.name()?,
            addresses: Address::read_list(reader)?,
        })
    }
}

impl FoundingStep {
    fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        match reader.u8()? {
            1 => Ok(Self::Gathering),
            2 => Ok(Self::Locking),
            3 => Ok(Self::Starting),
            _ => Err(FormatError::Invalid("step of founding")),
        }
    }
}

impl Invited {
    fn write(&self, writer: &mut Writer) {
        writer.bytes(self.key.expose()).count(self.inviters.len());
        for inviter in &self.inviters {
            writer.bytes(&inviter.boot_pk).text(inviter.address.as_str());
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let key = InvitationKey::from(reader.secret()?);
        let inviters = (0..reader.count(INVITERS_MAX, "inviters")?)
            .map(|_| Ok(Inviter { boot_pk: reader.array()?, address: Address::read(reader)? }))
            .collect::<Result<Vec<_>, FormatError>>()?;
        match inviters.is_empty() {
            false => Ok(Self { key, inviters }),
            true => Err(FormatError::Invalid("number of inviters")),
        }
    }
}
