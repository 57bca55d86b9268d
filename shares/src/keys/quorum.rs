//! A quorum: shares from distinct members of one epoch, and the key that they rebuild.
//!
//! Members are counted, not messages. A share counts once, for the member that holds its number, and only if it matches
//! the commitment in this node's *own* replica. [`Quorum::close`] is the only way to the key: it returns the key only
//! if the threshold is reached and the key matches its public key-check value.

use std::collections::BTreeMap;

use subtle::ConstantTimeEq;

use crate::error::QuorumError;
use crate::ids::NodeId;
use crate::master::{KeyIdentity, MasterKey};
use crate::seal::{Committee, ShareRecord, share_commitment};
use crate::secret::Secret;
use crate::split;

/// How many shares a quorum has, and how many it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShareCount {
    /// How many members are counted.
    pub have: usize,
    /// How many members are needed: the threshold.
    pub need: usize,
}

impl ShareCount {
    /// Whether enough members are counted to rebuild the key.
    pub fn reached(self) -> bool {
        self.have >= self.need
    }
}

/// Shares of one key version that the holders of one epoch have sent.
pub struct Quorum {
    record: ShareRecord,
    members: Vec<NodeId>,
    identity: KeyIdentity,
    kcv: [u8; 32],
    shares: BTreeMap<u8, Secret<32>>,
}

impl Quorum {
    /// An empty quorum for the key `identity` with key-check value `kcv`. `record` comes from this node's own replica,
    /// and `committee` is the committee of its epoch.
    ///
    /// # Errors
    /// [`QuorumError::Committee`] if record, key and committee do not belong together.
    pub fn new(
        record: ShareRecord,
        identity: KeyIdentity,
        committee: &Committee,
        kcv: [u8; 32],
    ) -> Result<Self, QuorumError> {
        let same_key = record.identity(identity.cluster) == identity;
        if record.epoch != committee.epoch() || record.threshold != committee.threshold() || !same_key {
            return Err(QuorumError::Committee);
        }
        let members = committee.holders().iter().map(|holder| holder.member.node).collect();
        Ok(Self { record, members, identity, kcv, shares: BTreeMap::new() })
    }

    /// Counts the share `y` with number `x` from `member`.
    ///
    /// # Errors
    /// [`QuorumError`] names the member whose share does not count. Shares that were counted before stay counted.
    pub fn add(&mut self, member: NodeId, x: u8, y: Secret<32>) -> Result<ShareCount, QuorumError> {
        let stranger = QuorumError::NotAHolder { member, x, epoch: self.record.epoch };
        let position = usize::from(x).checked_sub(1).ok_or(stranger)?;
        if self.members.get(position) != Some(&member) {
            return Err(stranger);
        }
        if self.shares.contains_key(&x) {
            return Err(QuorumError::Counted(member));
        }
        let ShareRecord { batch, epoch, threshold, .. } = self.record;
        let expected = &self.record.share(x).ok_or(stranger)?.commitment;
        let commitment = share_commitment(&self.identity, batch, epoch, threshold, x, &y);
        if !bool::from(commitment.ct_eq(expected)) {
            return Err(QuorumError::WrongShare(member));
        }
        self.shares.insert(x, y);
        Ok(self.progress())
    }

    /// How many members are counted, and how many are needed.
    pub fn progress(&self) -> ShareCount {
        ShareCount { have: self.shares.len(), need: self.record.threshold.needed().into() }
    }

    /// The members that are not counted yet.
    pub fn missing(&self) -> impl Iterator<Item = NodeId> {
        let counted = |x: &u8| self.shares.contains_key(x);
        (1..).zip(&self.members).filter(move |(x, _)| !counted(x)).map(|(_, member)| *member)
    }

    /// Rebuilds the key from the shares that are counted.
    ///
    /// # Errors
    /// [`QuorumError::TooFew`] before the threshold is reached; [`QuorumError::WrongKey`] if the rebuilt key does not
    /// match the key-check value.
    pub fn close(self) -> Result<MasterKey, QuorumError> {
        let ShareCount { have, need } = self.progress();
        if have < need {
            return Err(QuorumError::TooFew { have, need });
        }
        let shares: Vec<(u8, &Secret<32>)> = self.shares.iter().take(need).map(|(x, y)| (*x, y)).collect();
        let threshold = self.record.threshold;
        let key = split::combine(&shares, threshold.needed(), threshold.holders());
        let key = MasterKey::from_secret(key.expect("as many distinct numbers of holders as are needed"));
        match key.matches(&self.identity, &self.kcv) {
            true => Ok(key),
            false => Err(QuorumError::WrongKey),
        }
    }
}
