//! The holder's side: opens a batch once, and then its own share in each record of the batch.

use subtle::ConstantTimeEq;

use crate::error::ShareError;
use crate::ids::{NodeId, ShareKeyGeneration};
use crate::kem;
use crate::labels;
use crate::master::KeyIdentity;
use crate::primitive;
use crate::seal::Committee;
use crate::seal::batch::{BatchHeader, recipient_info};
use crate::seal::record::{ShareRecord, share_aad, share_commitment, share_nonce};
use crate::secret::Secret;
use crate::split::Threshold;

/// A batch that one of its holders has opened. It is worth keeping, because opening costs a decapsulation.
pub struct BatchOpener {
    identity: BatchIdentity,
    x: u8,
    key: Secret<32>,
}

#[derive(Clone, Copy)]
struct BatchIdentity {
    cluster: crate::ids::ClusterId,
    batch: crate::ids::BatchId,
    epoch: crate::ids::Epoch,
    threshold: Threshold,
}

impl BatchOpener {
    /// Opens `header` for `node`, whose share key of `generation` is derived from `seed`. `committee` comes from this
    /// node's own replica.
    ///
    /// A wrong seed is not detected here, but when a record is opened.
    ///
    /// # Errors
    /// [`ShareError::Committee`], [`ShareError::NotAHolder`] or [`ShareError::Generation`] if the batch is not for this
    /// node and key.
    pub fn open(
        header: &BatchHeader,
        committee: &Committee,
        node: NodeId,
        generation: ShareKeyGeneration,
        seed: &Secret<32>,
    ) -> Result<Self, ShareError> {
        if header.epoch != committee.epoch() || header.committee_hash != committee.hash(header.cluster) {
            return Err(ShareError::Committee);
        }
        let holder = committee.holder(node).ok_or(ShareError::NotAHolder(node))?;
        let recipient = header.recipients.get(usize::from(holder.x) - 1).ok_or(ShareError::Committee)?;
        if (recipient.node, recipient.generation) != (node, holder.member.generation) {
            return Err(ShareError::Committee);
        }
        if recipient.generation != generation {
            return Err(ShareError::Generation);
        }
        let info = recipient_info(&header.bound(), holder.x, node, generation);
        let key = kem::export_from(seed, &recipient.encapsulation, &info, labels::SHARE_KEK);
        let (cluster, batch, epoch) = (header.cluster, header.batch, header.epoch);
        let identity = BatchIdentity { cluster, batch, epoch, threshold: committee.threshold() };
        Ok(Self { identity, x: holder.x, key: key.ok_or(ShareError::Sealed)? })
    }

    /// The number of the shares that this holder opens.
    pub fn x(&self) -> u8 {
        self.x
    }

    /// Opens this holder's share in `record`, which must be of the key `identity` with key-check value `kcv`.
    ///
    /// # Errors
    /// [`ShareError`] if the record belongs to another key, batch, epoch or threshold, does not open, or opens to a
    /// share that does not match its commitment.
    pub fn open_share(
        &self,
        record: &ShareRecord,
        identity: &KeyIdentity,
        kcv: &[u8; 32],
    ) -> Result<Secret<32>, ShareError> {
        let BatchIdentity { cluster, batch, epoch, threshold } = self.identity;
        let facts = [
            (record.batch == batch, "batch"),
            (record.epoch == epoch, "epoch"),
            (record.threshold == threshold, "threshold"),
            (cluster == identity.cluster, "cluster"),
            (record.identity(cluster) == *identity, "key"),
        ];
        if let Some((_, other)) = facts.into_iter().find(|(same, _)| !same) {
            return Err(ShareError::Record(other));
        }
        let sealed = record.share(self.x).ok_or(ShareError::Record("committee"))?;
        let aad = share_aad(identity, epoch, threshold, self.x, &sealed.commitment, kcv);
        let nonce = share_nonce(record.index);
        let share = primitive::open_secret(&self.key, nonce, &aad, &sealed.sealed).ok_or(ShareError::Sealed)?;
        let commitment = share_commitment(identity, batch, epoch, threshold, self.x, &share);
        match commitment.ct_eq(&sealed.commitment).into() {
            true => Ok(share),
            false => Err(ShareError::Commitment),
        }
    }
}
