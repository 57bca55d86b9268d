//! The leader's side: an open batch that deals key after key.

use rand_core::CryptoRng;

use crate::error::DealError;
use crate::ids::{BatchId, ClusterId, NodeId};
use crate::kem;
use crate::labels;
use crate::master::{KeyIdentity, MasterKey};
use crate::primitive;
use crate::seal::batch::{BatchHeader, Recipient, recipient_info};
use crate::seal::record::{RecordedShare, ShareRecord, share_aad, share_commitment, share_nonce};
use crate::seal::{Committee, CommitteeHolder};
use crate::secret::Secret;
use crate::split::{self, Coefficients, Threshold};

/// Most records of one batch. After that, the leader opens a new one.
pub const BATCH_RECORDS_MAX: u32 = 10_000;

/// An open batch: the header that all nodes store, and the keys that only this process and each holder have.
///
/// To drop it closes the batch and wipes the keys. The caller drops it when the node loses leadership or lease, when
/// the node is sealed, and after ten minutes. An index is used up when it is dealt, even if the record never reaches
/// the log.
pub struct Dealer {
    header: BatchHeader,
    threshold: Threshold,
    keys: Vec<Secret<32>>,
    coefficients: Coefficients,
    dealt: u32,
}

impl Dealer {
    /// Opens a batch for `committee`, with a fresh batch id.
    pub fn open(cluster: ClusterId, dealer: NodeId, committee: &Committee, rng: &mut impl CryptoRng) -> Self {
        let mut batch = BatchId([0; 16]);
        rng.fill_bytes(&mut batch.0);
        let committee_hash = committee.hash(cluster);
        let recipients = Vec::with_capacity(committee.holders().len());
        let epoch = committee.epoch();
        let mut header = BatchHeader { cluster, batch, epoch, committee_hash, dealer, recipients, recovery: None };
        let bound = header.bound();
        let mut keys = Vec::with_capacity(committee.holders().len());
        for CommitteeHolder { x, member } in committee.holders() {
            let info = recipient_info(&bound, *x, member.node, member.generation);
            let (encapsulation, key) = kem::export_to(&member.public_key, &info, labels::SHARE_KEK, rng);
            let (node, generation) = (member.node, member.generation);
            header.recipients.push(Recipient { x: *x, node, generation, encapsulation });
            keys.push(key);
        }
        let coefficients = Coefficients::seeded(rng);
        Self { header, threshold: committee.threshold(), keys, coefficients, dealt: 0 }
    }

    /// The header, which must be replicated before the first record.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// How many records this batch has dealt.
    pub fn dealt(&self) -> u32 {
        self.dealt
    }

    /// Splits `key` among the committee and seals each share to its holder.
    ///
    /// # Errors
    /// [`DealError`] if the batch is full, or if `key` belongs to another cluster or is not the key of `kcv`. Such a
    /// key is never dealt.
    pub fn deal(&mut self, key: &MasterKey, identity: &KeyIdentity, kcv: &[u8; 32]) -> Result<ShareRecord, DealError> {
        if identity.cluster != self.header.cluster {
            return Err(DealError::WrongCluster);
        }
        if !key.matches(identity, kcv) {
            return Err(DealError::WrongKey);
        }
        if self.dealt == BATCH_RECORDS_MAX {
            return Err(DealError::BatchFull);
        }
        let index = self.dealt;
        self.dealt += 1;

        let BatchHeader { batch, epoch, .. } = self.header;
        let threshold = self.threshold;
        let pieces = split::split(key.secret(), threshold.needed(), threshold.holders(), &mut self.coefficients);
        let seal = |(x, (share, key)): (u8, (&Secret<32>, &Secret<32>))| {
            let commitment = share_commitment(identity, batch, epoch, threshold, x, share);
            let aad = share_aad(identity, epoch, threshold, x, &commitment, kcv);
            RecordedShare { commitment, sealed: primitive::seal_secret(key, share_nonce(index), &aad, share) }
        };
        let shares = (1..).zip(pieces.iter().zip(&self.keys)).map(seal).collect();
        let (uid, version) = (identity.uid, identity.version);
        Ok(ShareRecord { batch, index, epoch, uid, version, threshold, shares, recovery: None })
    }
}
