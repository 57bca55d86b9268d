//! Layer 1: shares of master keys, sealed to the nodes that hold them, and replicated to all.
//!
//! The leader opens a batch for a committee ([`Dealer::open`]): one encapsulation per holder, from which both sides derive
//! one key. Under it the share of each key that is dealt is sealed with its index as the nonce, so that dealing costs no
//! public-key operation. A record carries the sealed shares of *all* holders and goes into one log entry: it is complete
//! or absent. A holder opens the batch once ([`BatchOpener::open`]) and then its share of each record.
//!
//! Nothing here decides *when* a committee may be dealt to, nor keeps anything: that is the replicated state's part.

mod batch;
mod dealer;
mod opener;
mod record;

pub(crate) use batch::encapsulation;
pub use batch::{BatchHeader, Recipient};
pub use dealer::{BATCH_RECORDS_MAX, Dealer};
pub use opener::BatchOpener;
pub use record::{SealedShare, ShareRecord, share_commitment};

use crate::error::CommitteeError;
use crate::ids::{ClusterId, Epoch, NodeId, ShareKeyGeneration};
use crate::kem::PublicKey;
use crate::labels;
use crate::primitive::hash;
use crate::split::Threshold;

/// A member as it stands in the roster: what a committee is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The node.
    pub node: NodeId,
    /// The generation of the share key below.
    pub generation: ShareKeyGeneration,
    /// The key that its shares are sealed to.
    pub public_key: PublicKey,
}

/// One place in a committee.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The number of its share: 1 for the lowest node id, and so on. Never the node id itself.
    pub x: u8,
    /// Who sits there.
    pub member: Member,
}

/// The holders of one epoch, in order of node id, and how many of them rebuild a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committee {
    epoch: Epoch,
    threshold: Threshold,
    holders: Vec<Holder>,
}

impl Committee {
    /// Seats `members` in order of node id and numbers them.
    ///
    /// # Errors
    /// [`CommitteeError`] if the threshold does not fit, or a node is zero or named twice.
    pub fn new(epoch: Epoch, needed: u8, mut members: Vec<Member>) -> Result<Self, CommitteeError> {
        let threshold = Threshold::new(needed, u8::try_from(members.len()).unwrap_or(u8::MAX))?;
        members.sort_by_key(|member| member.node);
        let mut previous = NodeId(0);
        for member in &members {
            if member.node <= previous {
                return Err(CommitteeError::Member(member.node));
            }
            previous = member.node;
        }
        let holders = (1..).zip(members).map(|(x, member)| Holder { x, member }).collect();
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

    /// The holders in order: the first has share number 1.
    pub fn holders(&self) -> &[Holder] {
        &self.holders
    }

    /// The holder that `node` is.
    pub fn holder(&self, node: NodeId) -> Option<&Holder> {
        self.holders.iter().find(|holder| holder.member.node == node)
    }

    /// The hash that every batch names: epoch, threshold, and each holder's number, node, generation and key.
    pub fn hash(&self, cluster: ClusterId) -> [u8; 32] {
        let mut places = Vec::with_capacity(self.holders.len() * 49);
        for Holder { x, member } in &self.holders {
            places.push(*x);
            places.extend(member.node.0.to_be_bytes());
            places.extend(member.generation.0.to_be_bytes());
            places.extend(hash(&[member.public_key.as_bytes()]));
        }
        let numbers = [self.threshold.needed(), self.threshold.holders()];
        // No recovery recipient exists yet; zeros stand where the hash of its key will.
        let recovery = [0; 32];
        hash(&[labels::COMMITTEE, &cluster.0, &self.epoch.0.to_be_bytes(), &numbers, &places, &recovery])
    }
}
