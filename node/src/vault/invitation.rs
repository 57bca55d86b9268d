//! Invitations, and the request that proves one.
//!
//! An invitation is a bearer secret for one use within an hour. The member that gave it keeps only V, its hash. The new node
//! proves that it knows V. The proof covers the TLS session and the public keys that the node registers. So an attacker in
//! between can neither replace the keys nor replay the proof on another connection.
//!
//! ```text
//! invitation  base64url("QJT1" | cluster_id 16 | secret 32 | n u8 (1..3) | n x { boot_pk 32 | address u8+bytes })
//! V           SHA-256("quorate/v1/invite\0" | secret)
//! request     "QJN1" | SHA-256(V) 32 | boot_pk 32 | op_pk 32 | share_pk 1216 | name u8+bytes
//!             | a u8 | a x address u8+bytes | proof 32
//! proof       HMAC(V, "quorate/v1/join\0" | exporter 32 | boot_pk | op_pk | SHA-256(share_pk))
//! reply       "QJA1" | code u8 | node_id u64 | attempt u32 | roster | mac 32
//! mac         HMAC(V, "quorate/v1/join-ok\0" | exporter 32 | SHA-256(reply so far))
//! ```
//! The exporter is TLS-Exporter(`labels::EXPORTER_JOIN`, "", 32) of the connection; the caller passes its bytes. This
//! module is pure: it does not decide which invitation is known, bound, used or expired.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use quorate_shares::ids::{ClusterId, NodeId, NodeName};
use quorate_shares::kem::PublicKey;
use quorate_shares::labels::{INVITE, JOIN, JOIN_OK};
use quorate_shares::secret::Secret;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::base::random;
use crate::vault::Roster;
use crate::vault::layout::{Address, FormatError, Reader, Writer};

/// Most members that an invitation names. A joiner needs one that answers.
pub const INVITERS_MAX: usize = 3;
/// Longest text of an invitation. Longer input is refused before it is decoded.
pub const INVITATION_TEXT_MAX: usize = 1300;
/// Largest request, with eight of the longest addresses.
pub const JOIN_REQUEST_BYTES_MAX: usize = 4 * 1024;
/// Largest reply: the roster and a few fields.
pub const JOIN_REPLY_BYTES_MAX: usize = 128 * 1024;

/// An invitation. An operator carries its text from a member to a new node. The text is a secret.
pub struct Invitation {
    /// The cluster to join.
    pub cluster: ClusterId,
    /// The secret whose hash, V, is proved.
    pub secret: Secret<32>,
    /// The members to ask, 1 to [`INVITERS_MAX`].
    pub inviters: Vec<Inviter>,
}

/// A member that answers the joiner's request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inviter {
    /// The boot identity that it must show.
    pub boot_pk: [u8; 32],
    pub address: Address,
}

/// Why a text is not an invitation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvitationError {
    /// The text is not base64url without padding, or it is too long.
    #[error("this is not an invitation")]
    Text,
    /// The text decodes, but its content is not valid.
    #[error("damaged invitation: {0}")]
    Content(#[from] FormatError),
}

impl InvitationError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        "copy the whole line that `quorate cluster init` or `quorate node invite` printed"
    }
}

impl Invitation {
    /// V, which the inviter keeps and the joiner proves.
    pub fn key(&self) -> InvitationKey {
        InvitationKey::of(&self.secret)
    }

    /// The one line of text that the operator copies.
    ///
    /// # Errors
    /// [`FormatError`] if it names no inviter or too many.
    pub fn text(&self) -> Result<Zeroizing<String>, FormatError> {
        if self.inviters.is_empty() || self.inviters.len() > INVITERS_MAX {
            return Err(FormatError::Invalid("number of inviters"));
        }
        let mut writer = Writer::with_room(INVITATION_TEXT_MAX / 4 * 3);
        writer.bytes(b"QJT1").bytes(&self.cluster.0).bytes(self.secret.expose()).count(self.inviters.len());
        for inviter in &self.inviters {
            writer.bytes(&inviter.boot_pk).text(inviter.address.as_str());
        }
        let bytes = writer.finish()?;
        let mut text = Zeroizing::new(String::with_capacity(bytes.len() * 4 / 3 + 4));
        URL_SAFE_NO_PAD.encode_string(&*bytes, &mut text);
        Ok(text)
    }
}

impl FromStr for Invitation {
    type Err = InvitationError;

    fn from_str(text: &str) -> Result<Self, InvitationError> {
        if text.len() > INVITATION_TEXT_MAX {
            return Err(InvitationError::Text);
        }
        let mut bytes = Zeroizing::new(vec![0; text.len()]);
        let length = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).map_err(|_| InvitationError::Text)?;
        let mut reader = Reader::new(&bytes[..length], "invitation");
        if reader.bytes(4)? != b"QJT1" {
            return Err(InvitationError::Text);
        }
        let (cluster, secret) = (reader.cluster()?, reader.secret()?);
        let inviters = (0..reader.count(INVITERS_MAX, "inviters")?)
            .map(|_| Ok(Inviter { boot_pk: reader.array()?, address: Address::read(&mut reader)? }))
            .collect::<Result<Vec<_>, FormatError>>()?;
        reader.finish()?;
        match inviters.is_empty() {
            false => Ok(Self { cluster, secret, inviters }),
            true => Err(FormatError::Invalid("number of inviters").into()),
        }
    }
}

/// V: the hash of an invitation's secret, and the key of both proofs.
pub struct InvitationKey(Secret<32>);

impl From<Secret<32>> for InvitationKey {
    fn from(bytes: Secret<32>) -> Self {
        Self(bytes)
    }
}

impl InvitationKey {
    /// V for the secret of an invitation.
    pub fn of(secret: &Secret<32>) -> Self {
        let mut hash: [u8; 32] = Sha256::new().chain_update(INVITE).chain_update(secret.expose()).finalize().into();
        Self(Secret::take(&mut hash))
    }

    /// The bytes that the vault keeps.
    pub fn expose(&self) -> &[u8; 32] {
        self.0.expose()
    }

    /// A second owner of the same key.
    pub fn duplicate(&self) -> Self {
        Self(self.0.duplicate())
    }

    /// SHA-256(V): names the invitation in a request without showing V.
    pub fn id(&self) -> [u8; 32] {
        Sha256::digest(self.0.expose()).into()
    }

    fn mac(&self, label: &[u8], exporter: &[u8; 32]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.expose()).expect("HMAC takes keys of any length");
        mac.update(label);
        mac.update(exporter);
        mac
    }
}

/// What a new node registers.
#[derive(Clone, PartialEq, Eq)]
pub struct Registration {
    /// Its boot identity. It must be the one that the node shows in TLS.
    pub boot_pk: [u8; 32],
    pub op_pk: [u8; 32],
    pub share_pk: PublicKey,
    /// The operator's label.
    pub name: NodeName,
    /// Where it is reached, at least one address.
    pub addresses: Vec<Address>,
}

/// A request that is parsed but not yet verified.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinRequest {
    /// SHA-256(V) of the invitation that it claims.
    pub invitation: [u8; 32],
    pub registration: Registration,
    proof: [u8; 32],
}

impl Registration {
    /// Encodes the request for a connection with this exporter.
    ///
    /// # Errors
    /// [`FormatError`] if there is no address or there are too many.
    pub fn request(&self, key: &InvitationKey, exporter: &[u8; 32]) -> Result<Vec<u8>, FormatError> {
        let mut writer = Writer::with_room(JOIN_REQUEST_BYTES_MAX);
        writer.bytes(b"QJN1").bytes(&key.id()).bytes(&self.boot_pk).bytes(&self.op_pk);
        writer.bytes(self.share_pk.as_bytes()).text(self.name.as_str()).addresses(&self.addresses);
        writer.bytes(&self.mac(key, exporter).finalize().into_bytes());
        let bytes = writer.finish()?.to_vec();
        JoinRequest::parse(&bytes).map(|_| bytes)
    }

    fn mac(&self, key: &InvitationKey, exporter: &[u8; 32]) -> Hmac<Sha256> {
        let mut mac = key.mac(JOIN, exporter);
        mac.update(&self.boot_pk);
        mac.update(&self.op_pk);
        mac.update(&Sha256::digest(self.share_pk.as_bytes()));
        mac
    }
}

impl JoinRequest {
    /// Parses a request.
    ///
    /// # Errors
    /// [`FormatError`] for anything but a whole request.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes, "join request");
        if reader.bytes(4)? != b"QJN1" {
            return Err(FormatError::Invalid("join request"));
        }
        let invitation = reader.array()?;
        let registration = Registration {
            boot_pk: reader.array()?,
            op_pk: reader.array()?,
            share_pk: reader.share_pk()?,
            name: reader.name()?,
            addresses: Address::read_list(&mut reader)?,
        };
        let proof = reader.array()?;
        reader.finish()?;
        match registration.addresses.is_empty() {
            false => Ok(Self { invitation, registration, proof }),
            true => Err(FormatError::Invalid("number of addresses")),
        }
    }

    /// Whether the sender knows V and is on the connection with this exporter. The caller must also check that the registered
    /// boot identity is the one of the TLS session.
    pub fn is_proved(&self, key: &InvitationKey, exporter: &[u8; 32]) -> bool {
        self.invitation == key.id() && self.registration.mac(key, exporter).verify_slice(&self.proof).is_ok()
    }
}

/// The answer of a member to a join request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinReply {
    /// The outcome.
    pub code: JoinCode,
    /// The id of the new node; `None` if it is refused.
    pub node: Option<NodeId>,
    /// The founding attempt that the roster belongs to; 0 when a node joins a running cluster.
    pub attempt: u32,
    /// The members, as the answering member knows them; empty in a refusal.
    pub roster: Roster,
}

/// The outcome of a join request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JoinCode {
    /// All needed nodes are there. The joiner goes on with the roster.
    Complete = 0,
    /// The invitation is proved, but other founders are missing or another operation runs. The joiner asks again in a second.
    Wait = 1,
    /// Another node has proved this invitation.
    Used = 2,
    /// The invitation was not proved in time.
    Expired = 3,
    /// There is no such invitation. The reply is then not authenticated.
    Unknown = 4,
    /// Another member has the name, or the invitation is for another name.
    NameTaken = 5,
    /// The cluster has as many members as it may have.
    Full = 6,
    /// The invitation replaces a node, and without that node too few shares would remain.
    TooFew = 7,
    /// The cluster gave this node up, or revoked it, and refuses its keys for ever.
    GivenUp = 8,
    /// The member that answers reaches the joiner at none of the addresses that the joiner registers.
    Unreachable = 9,
}

/// Why a reply is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinReplyError {
    /// The bytes are not a reply.
    #[error("malformed join reply: {0}")]
    Malformed(#[from] FormatError),
    /// The sender of the MAC does not know V, or used another connection.
    #[error("the join reply is not from a member that knows this invitation")]
    Unproved,
}

impl JoinReply {
    /// Encodes the reply for a connection with this exporter.
    ///
    /// A member that does not know the invitation has no V. It passes a random key, and the joiner reads the code without
    /// trusting it.
    ///
    /// # Errors
    /// [`FormatError::TooMany`] if the roster is too large.
    pub fn seal(&self, key: &InvitationKey, exporter: &[u8; 32]) -> Result<Vec<u8>, FormatError> {
        let mut writer = Writer::with_room(JOIN_REPLY_BYTES_MAX);
        writer.bytes(b"QJA1").u8(self.code as u8).u64(self.node.map_or(0, |node| node.0)).u32(self.attempt);
        self.roster.write(&mut writer);
        let mac = reply_mac(key, exporter, writer.written()).finalize().into_bytes();
        writer.bytes(&mac);
        Ok(writer.finish()?.to_vec())
    }

    /// The reply to a node that asks with an unknown invitation.
    pub fn unknown(exporter: &[u8; 32]) -> Result<Vec<u8>, FormatError> {
        let reply = Self { code: JoinCode::Unknown, node: None, attempt: 0, roster: Roster::default() };
        reply.seal(&InvitationKey::from(Secret::random(&mut random::system())), exporter)
    }

    /// Parses a reply and checks its sender. Only [`JoinCode::Unknown`] may come without a valid MAC, and only the code is
    /// taken from such a reply.
    ///
    /// # Errors
    /// [`JoinReplyError`].
    pub fn open(bytes: &[u8], key: &InvitationKey, exporter: &[u8; 32]) -> Result<Self, JoinReplyError> {
        let (signed, mac) = bytes.split_last_chunk::<32>().ok_or(FormatError::Short("join reply"))?;
        let mut reader = Reader::new(signed, "join reply");
        if reader.bytes(4)? != b"QJA1" {
            return Err(FormatError::Invalid("join reply").into());
        }
        let code = JoinCode::read(&mut reader)?;
        let node = Some(reader.u64()?).filter(|&id| id != 0).map(NodeId);
        let reply = Self { code, node, attempt: reader.u32()?, roster: Roster::read(&mut reader)? };
        reader.finish()?;
        match reply_mac(key, exporter, signed).verify_slice(mac) {
            Ok(()) => Ok(reply),
            Err(_) if code == JoinCode::Unknown => Ok(Self { node: None, attempt: 0, roster: Roster::default(), code }),
            Err(_) => Err(JoinReplyError::Unproved),
        }
    }
}

impl JoinCode {
    fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        [
            Self::Complete,
            Self::Wait,
            Self::Used,
            Self::Expired,
            Self::Unknown,
            Self::NameTaken,
            Self::Full,
            Self::TooFew,
            Self::GivenUp,
            Self::Unreachable,
        ]
        .into_iter()
        .nth(usize::from(reader.u8()?))
        .ok_or(FormatError::Invalid("join code"))
    }
}

fn reply_mac(key: &InvitationKey, exporter: &[u8; 32], signed: &[u8]) -> Hmac<Sha256> {
    let mut mac = key.mac(JOIN_OK, exporter);
    mac.update(&Sha256::digest(signed));
    mac
}

impl fmt::Display for JoinCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Complete => "complete",
            Self::Wait => "waiting for others",
            Self::Used => "this invitation was used by another node",
            Self::Expired => "this invitation has expired",
            Self::Unknown => "no such invitation",
            Self::NameTaken => "another member has this name",
            Self::Full => "the cluster has as many members as it may",
            Self::TooFew => "without the node that this invitation replaces too few shares would remain",
            Self::GivenUp => "the cluster gave this node up",
            Self::Unreachable => "it is not reached at the addresses that it registers",
        })
    }
}

#[cfg(test)]
mod tests;
