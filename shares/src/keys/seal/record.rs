//! One record: the sealed shares of one key version, for every holder of one epoch.
//!
//! ```text
//! "QSH1" | batch_id 16 | index u32 | epoch u64 | key_uid 16 | version u32 | t u8 | n u8
//! | n x { commit 16 | sealed 48 } | r u8 (0 or 1) | r x { sealed 48 }
//! ```
//!
//! `sealed` is ChaCha20-Poly1305 under the key that the holder has in this batch. The nonce is the index; the
//! associated data is everything that names the share. `commit` is a public hash of the share. It does not reveal the
//! share, which has full entropy, and it lets every node detect a wrong share.

use crate::error::FormatError;
use crate::ids::{BatchId, ClusterId, Epoch, KeyUid, KeyVersion};
use crate::labels;
use crate::layout::Reader;
use crate::master::KeyIdentity;
use crate::primitive::{Sealed32, hash_secret};
use crate::secret::Secret;
use crate::split::Threshold;

const MAGIC: &[u8; 4] = b"QSH1";

/// One holder's share in the form that every node stores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedShare {
    /// The commitment to the share: [`share_commitment`].
    pub commitment: [u8; 16],
    /// The share of 32 bytes, sealed to its holder.
    pub sealed: Sealed32,
}

/// The sealed shares of one key version. The record is public: only a quorum of holders can rebuild the key from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareRecord {
    /// The batch whose keys seal the shares.
    pub batch: BatchId,
    /// The number of this record in its batch. It is never used twice.
    pub index: u32,
    /// The epoch whose committee holds the shares.
    pub epoch: Epoch,
    /// The id of the key.
    pub uid: KeyUid,
    /// The version of the key.
    pub version: KeyVersion,
    /// How many of the shares rebuild the key.
    pub threshold: Threshold,
    /// One share per holder. The first has number 1.
    pub shares: Vec<RecordedShare>,
    /// The key itself, sealed to the recovery recipient. No version writes it yet; this one can read it.
    pub recovery: Option<Sealed32>,
}

impl ShareRecord {
    /// The bytes, as drawn above: 55 + 64 n.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(55 + 64 * self.shares.len());
        bytes.extend(MAGIC);
        bytes.extend(self.batch.0);
        bytes.extend(self.index.to_be_bytes());
        bytes.extend(self.epoch.0.to_be_bytes());
        bytes.extend(self.uid.0);
        bytes.extend(self.version.0.to_be_bytes());
        bytes.extend([self.threshold.needed(), self.threshold.holders()]);
        for share in &self.shares {
            bytes.extend(share.commitment);
            bytes.extend(share.sealed);
        }
        bytes.push(self.recovery.is_some().into());
        bytes.extend(self.recovery.iter().flatten());
        bytes
    }

    /// Reads a record that fills `bytes` exactly.
    ///
    /// # Errors
    /// [`FormatError`] for a threshold that is not allowed, or any other byte that [`ShareRecord::encode`] would not
    /// write.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes, "share record");
        reader.magic(MAGIC)?;
        let (batch, index, epoch) = (BatchId(reader.array()?), reader.u32()?, Epoch(reader.u64()?));
        let (uid, version) = (KeyUid(reader.array()?), KeyVersion(reader.u32()?));
        let threshold = Threshold::new(reader.u8()?, reader.u8()?).map_err(|_| FormatError::Invalid("threshold"))?;
        let mut shares = Vec::with_capacity(threshold.holders().into());
        for _ in 0..threshold.holders() {
            shares.push(RecordedShare { commitment: reader.array()?, sealed: reader.array()? });
        }
        let recovery = match reader.u8()? {
            0 => None,
            1 => Some(reader.array()?),
            _ => return Err(FormatError::Invalid("recovery flag")),
        };
        reader.finish()?;
        Ok(Self { batch, index, epoch, uid, version, threshold, shares, recovery })
    }

    /// The key of this record in `cluster`.
    pub fn identity(&self, cluster: ClusterId) -> KeyIdentity {
        KeyIdentity { cluster, uid: self.uid, version: self.version }
    }

    /// The share with number `x`; `None` if there is none.
    pub fn share(&self, x: u8) -> Option<&RecordedShare> {
        self.shares.get(usize::from(x).checked_sub(1)?)
    }
}

/// The commitment to share `x` of a key: the first 16 bytes of a SHA-256 over the share and all that names it.
pub fn share_commitment(
    identity: &KeyIdentity,
    batch: BatchId,
    epoch: Epoch,
    threshold: Threshold,
    x: u8,
    share: &Secret<32>,
) -> [u8; 16] {
    let digest = hash_secret(&[
        labels::SHARE_COMMIT,
        &identity.cluster.0,
        &batch.0,
        &epoch.0.to_be_bytes(),
        &identity.uid.0,
        &identity.version.0.to_be_bytes(),
        &[threshold.needed(), threshold.holders(), x],
        share.expose(),
    ]);
    *digest.first_chunk().expect("16 of 32 bytes")
}

/// The associated data of one sealed share.
pub(super) fn share_aad(
    identity: &KeyIdentity,
    epoch: Epoch,
    threshold: Threshold,
    x: u8,
    commitment: &[u8; 16],
    kcv: &[u8; 32],
) -> Vec<u8> {
    [
        labels::SHARE_AAD,
        &identity.cluster.0,
        &epoch.0.to_be_bytes(),
        &identity.uid.0,
        &identity.version.0.to_be_bytes(),
        &[threshold.needed(), threshold.holders(), x],
        commitment,
        kcv,
    ]
    .concat()
}

/// The nonce of record `index`. Each key of a batch seals one share per index, so no nonce is used twice.
pub(super) fn share_nonce(index: u32) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[8..].copy_from_slice(&index.to_be_bytes());
    nonce
}
