//! The vault: a small file with which a node boots. Its content is never in the database, in Raft or in a backup.
//!
//! It holds the boot identity in plain, the roster, the node's own lock (the bundle, and the pieces that its peers can
//! open), and the keys with which this node opens pieces of its peers. What is removed from the vault is erased from the disk,
//! which an LSM tree cannot promise: the file is two slots of equal content, and every write covers both slots as a whole.
//! [`VaultFile`] keeps that promise. [`Vault`] is the content. Each section draws its bytes in its module header.
//!
//! ```text
//! body = sections in order of their tags, each: tag u8 | len u32 | bytes
//!   1 identity  cluster_id 16 | node_id u64 | boot_seed 32          always
//!   2 roster    see roster                                          always
//!   3 own lock  see quorate_shares::lock                            once the first lock is made
//!   4 held      see held                                            always, perhaps empty
//!   5 founding  see founding                                        until the node is in the cluster
//!   6 flags     bits u8: 1 sealed, 2 revoked                        always
//!   7 denials   see denials                                         while a node is denied
//! ```
//! A vault with an unknown tag is refused: this version would lose the section when it writes the file.

pub mod disk;
pub mod expected;
pub mod invitation;
pub mod layout;
pub mod lock_keys;

mod denials;
mod file;
mod founding;
mod held;
mod roster;
mod slot;

use quorate_raft::Denial;
use quorate_shares::ids::{ClusterId, NodeId};
use quorate_shares::lock::Lock;
use quorate_shares::secret::Secret;

pub use self::denials::DENIALS_MAX;
pub use self::file::{VaultError, VaultFile, inspect};
pub use self::founding::{
    FIRST_FOUNDER, FirstFounder, FounderKeys, Founding, FoundingStep, INVITATIONS_MAX, Invited, OpenInvitation, Role,
};
pub use self::held::{HeldForPeer, HeldKey, KEYS_PER_PEER_MAX};
pub use self::roster::{MEMBERS_MAX, REVOKED_MAX, Revoked, Roster, RosterLogId, RosterMember, Standing};
pub use self::slot::{BODY_BYTES_MAX, Damage};
use crate::vault::layout::{FormatError, Reader, Wiped, Writer};

const IDENTITY: u8 = 1;
const ROSTER: u8 = 2;
const LOCK: u8 = 3;
const HELD: u8 = 4;
const FOUNDING: u8 = 5;
const FLAGS: u8 = 6;
const DENIALS: u8 = 7;

/// Everything that a node knows while its lock is closed.
pub struct Vault {
    pub identity: VaultIdentity,
    /// Who its peers are.
    pub roster: Roster,
    /// Its own keys, locked; `None` until the first lock is made.
    pub lock: Option<Lock>,
    /// What it holds for its peers, in order of their ids.
    pub held: Vec<HeldForPeer>,
    /// Its founding or joining, until that is finished.
    pub founding: Option<Founding>,
    /// Set by the operator (sealed) and by the cluster (revoked).
    pub flags: Flags,
    /// Which nodes are denied, and by which log entry, in order of their ids.
    pub denials: Vec<Denial>,
}

/// Section 1: who this node is.
pub struct VaultIdentity {
    /// The cluster that this node belongs to.
    pub cluster: ClusterId,
    /// Its id; `None` until it was given one.
    pub node: Option<NodeId>,
    /// Seed of the boot identity. Its owner may send LockOpen and ask for the public status, nothing else.
    pub boot_seed: Secret<32>,
}

/// Section 6: states that last over restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags {
    /// The operator sealed this node.
    pub sealed: bool,
    /// This node was revoked, and stays down.
    pub revoked: bool,
}

impl Vault {
    /// The first vault of a node: only its cluster and its boot seed are known.
    pub fn new(cluster: ClusterId, boot_seed: Secret<32>) -> Self {
        Self {
            identity: VaultIdentity { cluster, node: None, boot_seed },
            roster: Roster::default(),
            lock: None,
            held: Vec::new(),
            founding: None,
            flags: Flags::default(),
            denials: Vec::new(),
        }
    }

    /// What is held for a peer.
    pub fn held_for(&self, peer: NodeId) -> Option<&HeldForPeer> {
        self.held.iter().find(|held| held.peer == peer)
    }

    /// What is held for a peer, to be changed. An empty entry is made if there is none.
    pub fn held_for_mut(&mut self, peer: NodeId) -> &mut HeldForPeer {
        let at = self.held.binary_search_by_key(&peer, |held| held.peer).unwrap_or_else(|at| {
            self.held.insert(at, HeldForPeer::new(peer));
            at
        });
        &mut self.held[at]
    }

    /// The body of a slot.
    ///
    /// # Errors
    /// [`FormatError`] if it would not fit, or if parsing it again would refuse it.
    pub fn encode(&self) -> Result<Wiped, FormatError> {
        let mut writer = Writer::with_room(BODY_BYTES_MAX);
        writer.section(IDENTITY, |writer| {
            writer.bytes(&self.identity.cluster.0).u64(self.identity.node.map_or(0, |node| node.0));
            writer.bytes(self.identity.boot_seed.expose());
        });
        writer.section(ROSTER, |writer| self.roster.write(writer));
        if let Some(lock) = &self.lock {
            writer.section(LOCK, |writer| {
                writer.bytes(&lock.encode());
            });
        }
        writer.section(HELD, |writer| self.held.iter().for_each(|held| held.write(writer)));
        if let Some(founding) = &self.founding {
            writer.section(FOUNDING, |writer| founding.write(writer));
        }
        writer.section(FLAGS, |writer| {
            writer.u8(self.flags.bits());
        });
        if !self.denials.is_empty() {
            writer.section(DENIALS, |writer| denials::write(&self.denials, writer));
        }
        let body = writer.finish()?;
        Self::parse(&body).map(|_| body)
    }

    /// Parses the body of a slot.
    ///
    /// # Errors
    /// [`FormatError`] for anything but the one encoding of a vault.
    pub fn parse(body: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(body, "vault");
        let (mut identity, mut roster, mut lock, mut held, mut founding, mut flags, mut denials) =
            (None, None, None, None, None, None, Vec::new());
        let mut last_tag = 0;
        while !reader.is_empty() {
            let tag = reader.u8()?;
            if tag <= last_tag {
                return Err(FormatError::Invalid("order of sections"));
            }
            last_tag = tag;
            let length = usize::try_from(reader.u32()?).map_err(|_| FormatError::Short("vault"))?;
            let bytes = reader.bytes(length)?;
            match tag {
                IDENTITY => identity = Some(VaultIdentity::read(Reader::new(bytes, "identity"))?),
                ROSTER => roster = Some(read_whole(bytes, "roster", Roster::read)?),
                LOCK => lock = Some(Lock::parse(bytes).map_err(|_| FormatError::Invalid("own lock"))?),
                HELD => held = Some(held::read_all(Reader::new(bytes, "keys held for peers"))?),
                FOUNDING => founding = Some(Founding::read(Reader::new(bytes, "founding"))?),
                FLAGS => flags = Some(read_whole(bytes, "flags", |reader| Flags::from_bits(reader.u8()?))?),
                DENIALS => denials = read_whole(bytes, "denials", denials::read)?,
                _ => return Err(FormatError::Invalid("section: this version does not know it")),
            }
        }
        let missing = FormatError::Short("sections");
        Ok(Self {
            identity: identity.ok_or(missing)?,
            roster: roster.ok_or(missing)?,
            lock,
            held: held.ok_or(missing)?,
            founding,
            flags: flags.ok_or(missing)?,
            denials,
        })
    }
}

impl Flags {
    fn bits(self) -> u8 {
        u8::from(self.sealed) | u8::from(self.revoked) << 1
    }

    fn from_bits(bits: u8) -> Result<Self, FormatError> {
        let flags = Self { sealed: bits & 1 == 1, revoked: bits >> 1 & 1 == 1 };
        if flags.bits() == bits { Ok(flags) } else { Err(FormatError::Invalid("flags")) }
    }
}

impl VaultIdentity {
    fn read(mut reader: Reader<'_>) -> Result<Self, FormatError> {
        let (cluster, node) = (reader.cluster()?, reader.u64()?);
        let identity =
            Self { cluster, node: Some(node).filter(|&id| id != 0).map(NodeId), boot_seed: reader.secret()? };
        reader.finish().map(|()| identity)
    }
}

fn read_whole<T>(
    bytes: &[u8],
    what: &'static str,
    read: impl FnOnce(&mut Reader<'_>) -> Result<T, FormatError>,
) -> Result<T, FormatError> {
    let mut reader = Reader::new(bytes, what);
    let value = read(&mut reader)?;
    reader.finish().map(|()| value)
}

#[cfg(test)]
mod tests;
