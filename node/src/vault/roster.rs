//! Section 2: who is in the cluster, as this node last knew it.
//!
//! A locked node knows its peers only from here. It asks them for the pieces of its lock, and refuses those that are denied.
//! The same bytes travel in join replies: a new member starts with the roster of its inviter.
//!
//! ```text
//! log id (term u64, leader u64, index u64)
//! n u8 | n x { node_id u64 | boot_pk 32 | op_pk 32 | flags u8 | name u8+bytes | a u8 | a x address u8+bytes }
//! r u16 | r x { node_id u64 | boot_pk 32 }
//! ```
//! Members and revoked nodes stand in order of their ids, so a roster has one encoding.

use quorate_raft::LogPlace;
use quorate_shares::ids::{NodeId, NodeName};

use crate::vault::layout::{Address, FormatError, Reader, Writer};

/// Most members of a roster. Nine voters are tested; the rest is room for joiners and leavers.
pub const MEMBERS_MAX: usize = 32;
/// Most revoked nodes that are remembered. Older ones are forgotten, and refused because they are unknown.
pub const REVOKED_MAX: usize = 1024;

/// Most bytes of a roster. A vault has room for more.
const ROSTER_BYTES_MAX: usize = 120 << 10;

/// The members of the cluster as of one place in the Raft log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Roster {
    /// The log entry that made this roster; all zeros before there is a log.
    pub log_id: RosterLogId,
    /// In order of their ids, at most [`MEMBERS_MAX`].
    pub members: Vec<RosterMember>,
    /// In order of their ids, at most [`REVOKED_MAX`].
    pub revoked: Vec<Revoked>,
}

/// A place in the Raft log. Ordered as Raft orders logs: first by term, last by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct RosterLogId {
    /// Term of the leader that wrote the entry.
    pub term: u64,
    pub leader: u64,
    pub index: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RosterMember {
    pub node: NodeId,
    /// Public key of its boot identity, whose seed lies in its vault in plain.
    pub boot_pk: [u8; 32],
    /// Public key of its op identity, whose seed lies in its bundle.
    pub op_pk: [u8; 32],
    pub standing: Standing,
    /// The operator's label.
    pub name: NodeName,
    pub addresses: Vec<Address>,
}

/// The standing of a member. Several flags can be set at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// Let in, but perhaps not in the Raft group yet.
    pub member: bool,
    /// Votes in Raft.
    pub voter: bool,
    /// Follows Raft without a vote.
    pub learner: bool,
    /// Every peer refuses it.
    pub denied: bool,
}

/// A node that must never be let in again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revoked {
    pub node: NodeId,
    pub boot_pk: [u8; 32],
}

impl Roster {
    /// The member with this id.
    pub fn member(&self, node: NodeId) -> Option<&RosterMember> {
        self.members.iter().find(|member| member.node == node)
    }

    /// The member that dials with this boot identity.
    pub fn by_boot_pk(&self, boot_pk: &[u8; 32]) -> Option<&RosterMember> {
        self.members.iter().find(|member| member.boot_pk == *boot_pk)
    }

    /// Whether this boot identity was revoked.
    pub fn is_revoked(&self, boot_pk: &[u8; 32]) -> bool {
        self.revoked_with(boot_pk).is_some()
    }

    /// The node that had this boot identity until it was revoked.
    pub fn revoked_with(&self, boot_pk: &[u8; 32]) -> Option<NodeId> {
        self.revoked.iter().find(|revoked| revoked.boot_pk == *boot_pk).map(|revoked| revoked.node)
    }

    /// The voters, this node among them.
    pub fn voters(&self) -> impl Iterator<Item = NodeId> {
        self.members.iter().filter(|member| member.standing.voter).map(|member| member.node)
    }

    /// The bytes of the roster, as they are sent.
    ///
    /// # Errors
    /// [`FormatError`] if there is more than a roster may have.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        let mut writer = Writer::with_room(ROSTER_BYTES_MAX);
        self.write(&mut writer);
        Ok(writer.finish()?.to_vec())
    }

    /// Parses the bytes of a roster.
    ///
    /// # Errors
    /// [`FormatError`] for anything but the one encoding of a roster.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes, "roster");
        let roster = Self::read(&mut reader)?;
        reader.finish().map(|()| roster)
    }

    /// Appends the roster to `writer`.
    pub fn write(&self, writer: &mut Writer) {
        self.log_id.write(writer);
        writer.count(self.members.len());
        for member in &self.members {
            writer.u64(member.node.0).bytes(&member.boot_pk).bytes(&member.op_pk).u8(member.standing.bits());
            writer.text(member.name.as_str()).addresses(&member.addresses);
        }
        let revoked = u16::try_from(self.revoked.len()).unwrap_or(u16::MAX);
        writer.u16(revoked);
        for revoked in &self.revoked {
            writer.u64(revoked.node.0).bytes(&revoked.boot_pk);
        }
    }

    /// Reads a roster from `reader`.
    ///
    /// # Errors
    /// [`FormatError`] for anything but the one encoding of a roster.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let log_id = RosterLogId::read(reader)?;
        let members = (0..reader.count(MEMBERS_MAX, "members")?).map(|_| RosterMember::read(reader));
        let members = members.collect::<Result<Vec<_>, _>>()?;
        let count = usize::from(reader.u16()?);
        if count > REVOKED_MAX {
            return Err(FormatError::TooMany { what: "revoked nodes", limit: REVOKED_MAX });
        }
        let revoked = (0..count).map(|_| Ok(Revoked { node: reader.node()?, boot_pk: reader.array()? }));
        let roster = Self { log_id, members, revoked: revoked.collect::<Result<_, _>>()? };
        let ordered = roster.members.is_sorted_by(|a, b| a.node < b.node);
        match ordered && roster.revoked.is_sorted_by(|a, b| a.node < b.node) {
            true => Ok(roster),
            false => Err(FormatError::Invalid("order of the roster")),
        }
    }
}

impl From<LogPlace> for RosterLogId {
    fn from(place: LogPlace) -> Self {
        Self { term: place.term, leader: place.node.0, index: place.index }
    }
}

impl RosterLogId {
    /// As the log names it.
    pub fn place(self) -> LogPlace {
        LogPlace { term: self.term, node: NodeId(self.leader), index: self.index }
    }

    /// Appends its 24 bytes.
    pub fn write(&self, writer: &mut Writer) {
        writer.u64(self.term).u64(self.leader).u64(self.index);
    }

    /// Reads its 24 bytes.
    ///
    /// # Errors
    /// [`FormatError::Short`].
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        Ok(Self { term: reader.u64()?, leader: reader.u64()?, index: reader.u64()? })
    }
}

impl RosterMember {
    fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        Ok(Self {
            node: reader.node()?,
            boot_pk: reader.array()?,
            op_pk: reader.array()?,
            standing: Standing::from_bits(reader.u8()?)?,
            name: reader.name()?,
            addresses: Address::read_list(reader)?,
        })
    }
}

impl Standing {
    fn bits(self) -> u8 {
        u8::from(self.member) | u8::from(self.voter) << 1 | u8::from(self.learner) << 2 | u8::from(self.denied) << 3
    }

    fn from_bits(bits: u8) -> Result<Self, FormatError> {
        let bit = |at: u8| bits >> at & 1 == 1;
        let standing = Self { member: bit(0), voter: bit(1), learner: bit(2), denied: bit(3) };
        match standing.bits() == bits {
            true => Ok(standing),
            false => Err(FormatError::Invalid("standing of a member")),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> Roster {
        let member = |id: u64, standing| RosterMember {
            node: NodeId(id),
            boot_pk: [id as u8; 32],
            op_pk: [id as u8 + 100; 32],
            standing,
            name: format!("n{id}").parse().expect("a valid name"),
            addresses: vec!["127.0.0.1:7250".parse().expect("a valid address")],
        };
        let voter = Standing { voter: true, ..Standing::default() };
        Roster {
            log_id: RosterLogId { term: 2, leader: 1, index: 40 },
            members: vec![member(1, voter), member(3, Standing { denied: true, ..voter })],
            revoked: vec![Revoked { node: NodeId(2), boot_pk: [2; 32] }],
        }
    }

    fn bytes(roster: &Roster) -> Vec<u8> {
        roster.encode().expect("a small roster")
    }

    fn parse(bytes: &[u8]) -> Result<Roster, FormatError> {
        Roster::parse(bytes)
    }

    #[test]
    fn a_roster_survives_its_bytes() {
        for roster in [sample(), Roster::default()] {
            assert_eq!(parse(&bytes(&roster)), Ok(roster));
        }
    }

    #[test]
    fn every_shorter_and_every_longer_roster_is_refused() {
        let whole = bytes(&sample());
        for end in 0..whole.len() {
            assert!(parse(&whole[..end]).is_err(), "{end} bytes");
        }
        assert_eq!(parse(&[&whole[..], &[0]].concat()), Err(FormatError::Trailing(1)));
    }

    #[test]
    fn a_roster_has_one_encoding() {
        let mut swapped = sample();
        swapped.members.reverse();
        let twice = Roster { revoked: vec![sample().revoked[0]; 2], ..sample() };
        for roster in [swapped, twice] {
            assert_eq!(parse(&bytes(&roster)), Err(FormatError::Invalid("order of the roster")));
        }
        let mut unknown_flag = bytes(&sample());
        unknown_flag[24 + 1 + 72] |= 0x10;
        assert_eq!(parse(&unknown_flag), Err(FormatError::Invalid("standing of a member")));
    }

    #[test]
    fn lists_have_limits() {
        let mut many_members = bytes(&Roster::default());
        many_members[24] = MEMBERS_MAX as u8 + 1;
        assert_eq!(parse(&many_members), Err(FormatError::TooMany { what: "members", limit: MEMBERS_MAX }));
        let mut many_revoked = bytes(&Roster::default());
        many_revoked[25..27].copy_from_slice(&(REVOKED_MAX as u16 + 1).to_be_bytes());
        assert_eq!(parse(&many_revoked), Err(FormatError::TooMany { what: "revoked nodes", limit: REVOKED_MAX }));
    }
}
