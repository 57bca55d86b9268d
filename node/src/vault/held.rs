//! Section 4: the lock keys that this node holds for its peers.
//!
//! ```text
//! to the end of the section: { peer u64 | last_gen u64 | committed_key_number u64 | grace_left_s u16 | away_s u32
//!                              | m u8 (<= 3) | m x { key_number u64 | seed 32 } }
//! ```
//! The peers are in order of their ids, the keys in order of their numbers.

use quorate_shares::ids::NodeId;
use quorate_shares::secret::Secret;

use super::roster::MEMBERS_MAX;
use crate::vault::layout::{FormatError, Reader, Writer};

/// Most keys held for one peer at a time. A peer that asks for a fourth gets `busy` until older ones are erased.
pub const KEYS_PER_PEER_MAX: usize = 3;

pub struct HeldForPeer {
    pub peer: NodeId,
    /// The newest lock generation that the peer confirmed.
    pub last_gen: u64,
    /// The key number that this generation uses. Strictly older keys are erased after the grace time.
    pub committed_key_number: u64,
    /// What is left of the grace time, in seconds of this node's own running time.
    pub grace_left_s: u16,
    /// Seconds in which this node was Serving and did not see the peer.
    pub away_s: u32,
    /// In order of their numbers, at most [`KEYS_PER_PEER_MAX`].
    pub keys: Vec<HeldKey>,
}

/// The seed of one lock key.
pub struct HeldKey {
    /// The number of the key. It only rises.
    pub key_number: u64,
    /// The X-Wing key pair is derived from this seed.
    pub seed: Secret<32>,
}

impl HeldForPeer {
    pub fn new(peer: NodeId) -> Self {
        Self { peer, last_gen: 0, committed_key_number: 0, grace_left_s: 0, away_s: 0, keys: Vec::new() }
    }

    pub fn key(&self, key_number: u64) -> Option<&HeldKey> {
        self.keys.iter().find(|key| key.key_number == key_number)
    }

    pub(super) fn write(&self, writer: &mut Writer) {
        writer.u64(self.peer.0).u64(self.last_gen).u64(self.committed_key_number);
        writer.u16(self.grace_left_s).u32(self.away_s).count(self.keys.len());
        for key in &self.keys {
            writer.u64(key.key_number).bytes(key.seed.expose());
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let mut held = Self::new(reader.node()?);
        (held.last_gen, held.committed_key_number) = (reader.u64()?, reader.u64()?);
        (held.grace_left_s, held.away_s) = (reader.u16()?, reader.u32()?);
        for _ in 0..reader.count(KEYS_PER_PEER_MAX, "lock keys for one peer")? {
            held.keys.push(HeldKey { key_number: reader.u64()?, seed: reader.secret()? });
        }
        match held.keys.is_sorted_by(|a, b| a.key_number < b.key_number) {
            true => Ok(held),
            false => Err(FormatError::Invalid("order of lock keys")),
        }
    }
}

/// Reads the whole section.
pub(super) fn read_all(mut reader: Reader<'_>) -> Result<Vec<HeldForPeer>, FormatError> {
    let mut all: Vec<HeldForPeer> = Vec::new();
    while !reader.is_empty() {
        if all.len() == MEMBERS_MAX {
            return Err(FormatError::TooMany { what: "peers with lock keys", limit: MEMBERS_MAX });
        }
        all.push(HeldForPeer::read(&mut reader)?);
    }
    match all.is_sorted_by(|a, b| a.peer < b.peer) {
        true => Ok(all),
        false => Err(FormatError::Invalid("order of peers")),
    }
}
