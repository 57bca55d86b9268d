//! Layer 1: shares of master keys, sealed to their holders and replicated to all nodes.
//!
//! 1. The leader opens a batch for a committee ([`Dealer::open`]): one encapsulation per holder. From it, leader and
//!    holder derive the same key.
//! 2. The leader deals key after key. Each share is sealed under the key of its holder, with the index of the record as
//!    the nonce. So dealing costs no public-key operation.
//! 3. A record carries the sealed shares of *all* holders and goes into one log entry: it is complete or absent.
//! 4. A holder opens the batch once ([`BatchOpener::open`]), and then its share in each record.
//!
//! This module does not decide *when* a committee may receive shares, and stores nothing. The replicated state does
//! both.

mod batch;
mod dealer;
mod opener;
mod record;

pub(crate) use batch::encapsulation;
pub use batch::{BatchHeader, Recipient};
pub use dealer::{BATCH_RECORDS_MAX, Dealer};
pub use opener::BatchOpener;
pub use record::{RecordedShare, ShareRecord, share_commitment};

use crate::error::CommitteeError;
use crate::ids::{ClusterId, Epoch, NodeId, ShareKeyGeneration};
use crate::kem::PublicKey;
use crate::labels;
use crate::primitive::hash;
use crate::split::Threshold;

/// A member of the roster, from which a committee is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitteeMember {
    /// The id of the node.
    pub node: NodeId,
    /// The generation of `public_key`.
    pub generation: ShareKeyGeneration,
    /// The share key that its shares are sealed to.
    pub public_key: PublicKey,
}

/// One place in a committee.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitteeHolder {
    /// The number of its share: 1 for the lowest node id, 2 for the next, and so on. It is not the node id.
    pub x: u8,
    /// The member in this place.
    pub member: CommitteeMember,
}

/// The holders of one epoch in order of node id, and how many of them rebuild a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committee {
    epoch: Epoch,
    threshold: Threshold,
    holders: Vec<CommitteeHolder>,
}

impl Committee {
    /// Orders `members` by node id and numbers them from 1.
    ///
    /// # Errors
    /// [`CommitteeError`] if the threshold does not fit, a node id is zero, or a node is named twice.
    pub fn new(epoch: Epoch, needed: u8, mut members: Vec<CommitteeMember>) -> Result<Self, CommitteeError> {
        let threshold = Threshold::new(needed, u8::try_from(members.len()).unwrap_or(u8::MAX))?;
        members.sort_by_key(|member| member.node);
        let mut previous = NodeId(0);
        for member in &members {
            if member.node <= previous {
                return Err(CommitteeError::Member(member.node));
            }
            previous = member.node;
        }
        let holders = (1..).zip(members).map(|(x, member)| CommitteeHolder { x, member }).collect();
        Ok(Self { epoch, threshold, holders })
    }

    /// The epoch that this committee holds shares of.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// How many of its holders rebuild a key.
    pub fn threshold(&self) -> Threshold {
        self.threshold
    }

    /// The holders, by rising node id. The first has share number 1.
    pub fn holders(&self) -> &[CommitteeHolder] {
        &self.holders
    }

    /// The place of `node`; `None` if it holds no share.
    pub fn holder(&self, node: NodeId) -> Option<&CommitteeHolder> {
        self.holders.iter().find(|holder| holder.member.node == node)
    }

    /// The hash that every batch names: SHA-256 over the epoch, the threshold, and the number, node, generation and key
    /// of each holder.
    pub fn hash(&self, cluster: ClusterId) -> [u8; 32] {
        let mut places = Vec::with_capacity(self.holders.len() * 49);
        for CommitteeHolder { x, member } in &self.holders {
            places.push(*x);
            places.extend(member.node.0.to_be_bytes());
            places.extend(member.generation.0.to_be_bytes());
            places.extend(hash(&[member.public_key.as_bytes()]));
        }
        let numbers = [self.threshold.needed(), self.threshold.holders()];
        // There is no recovery recipient yet. Zeros take the place of the hash of its key.
        let recovery = [0; 32];
        hash(&[labels::COMMITTEE, &cluster.0, &self.epoch.0.to_be_bytes(), &numbers, &places, &recovery])
    }
}
