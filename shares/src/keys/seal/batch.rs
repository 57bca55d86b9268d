//! The header of a batch: one encapsulation per holder.
//!
//! ```text
//! "QBH1" | suite u8 = 1 | cluster_id 16 | batch_id 16 | epoch u64 | committee_hash 32 | dealer u64      the bound part, 85 B
//! | n u8 | n x { x u8 | node_id u64 | skgen u64 | enc 1120 } | r u8 (0 or 1) | r x { enc 1120 }
//! ```
//!
//! The HPKE info of every encapsulation contains the bound part and the place of its holder. So an encapsulation that
//! is moved to another batch, epoch, committee or place gives a useless key.

use crate::error::FormatError;
use crate::ids::{BatchId, ClusterId, Epoch, NodeId, ShareKeyGeneration};
use crate::kem::{ENCAPSULATION_BYTES, Encapsulation};
use crate::labels;
use crate::layout::Reader;
use crate::split::HOLDERS_MAX;

const MAGIC: &[u8; 4] = b"QBH1";
const SUITE: u8 = 1;
const BOUND_BYTES: usize = 85;

/// One holder's place in a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipient {
    /// The number of the holder's shares.
    pub x: u8,
    /// The node that holds them.
    pub node: NodeId,
    /// The generation of the share key that the encapsulation is made for.
    pub generation: ShareKeyGeneration,
    /// The encapsulation from which the holder derives its key of this batch.
    pub encapsulation: Encapsulation,
}

/// Which nodes may open a batch, and with which keys. It is public.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchHeader {
    /// The cluster of the keys that are dealt.
    pub cluster: ClusterId,
    /// The id of the batch.
    pub batch: BatchId,
    /// The epoch whose committee gets the shares.
    pub epoch: Epoch,
    /// The hash of that committee: [`super::Committee::hash`].
    pub committee_hash: [u8; 32],
    /// The leader that opened the batch.
    pub dealer: NodeId,
    /// The holders, numbered from 1 without a gap.
    pub recipients: Vec<Recipient>,
    /// The encapsulation for the recovery recipient. No version writes it yet; this one can read it.
    pub recovery: Option<Encapsulation>,
}

impl BatchHeader {
    /// The bytes, as drawn above.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(BOUND_BYTES + 2 + (17 + ENCAPSULATION_BYTES) * self.recipients.len());
        bytes.extend(self.bound());
        bytes.push(u8::try_from(self.recipients.len()).expect("a committee has at most nine holders"));
        for recipient in &self.recipients {
            bytes.push(recipient.x);
            bytes.extend(recipient.node.0.to_be_bytes());
            bytes.extend(recipient.generation.0.to_be_bytes());
            bytes.extend(recipient.encapsulation.0.as_slice());
        }
        bytes.push(self.recovery.is_some().into());
        if let Some(recovery) = &self.recovery {
            bytes.extend(recovery.0.as_slice());
        }
        bytes
    }

    /// Reads a header that fills `bytes` exactly.
    ///
    /// # Errors
    /// [`FormatError`] for an unknown suite, numbers that are not 1 to n, node ids that do not rise, or any other byte
    /// that [`BatchHeader::encode`] would not write.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes, "batch header");
        reader.magic(MAGIC)?;
        if reader.u8()? != SUITE {
            return Err(FormatError::Invalid("suite"));
        }
        let (cluster, batch) = (ClusterId(reader.array()?), BatchId(reader.array()?));
        let (epoch, committee_hash, dealer) = (Epoch(reader.u64()?), reader.array()?, NodeId(reader.u64()?));
        let count = reader.u8()?;
        if !(1..=HOLDERS_MAX).contains(&count) {
            return Err(FormatError::Invalid("number of holders"));
        }
        let mut recipients: Vec<Recipient> = Vec::with_capacity(count.into());
        for expected in 1..=count {
            let (x, node, generation) = (reader.u8()?, NodeId(reader.u64()?), ShareKeyGeneration(reader.u64()?));
            let previous = recipients.last().map_or(NodeId(0), |recipient| recipient.node);
            if x != expected {
                return Err(FormatError::Invalid("share number"));
            }
            if node <= previous {
                return Err(FormatError::Invalid("order of holders"));
            }
            recipients.push(Recipient { x, node, generation, encapsulation: encapsulation(&mut reader)? });
        }
        let recovery = match reader.u8()? {
            0 => None,
            1 => Some(encapsulation(&mut reader)?),
            _ => return Err(FormatError::Invalid("recovery flag")),
        };
        reader.finish()?;
        Ok(Self { cluster, batch, epoch, committee_hash, dealer, recipients, recovery })
    }

    /// The bytes from the magic to the dealer.
    pub(super) fn bound(&self) -> [u8; BOUND_BYTES] {
        let mut bound = [0; BOUND_BYTES];
        let fields: [&[u8]; 7] = [
            MAGIC,
            &[SUITE],
            &self.cluster.0,
            &self.batch.0,
            &self.epoch.0.to_be_bytes(),
            &self.committee_hash,
            &self.dealer.0.to_be_bytes(),
        ];
        let mut at = 0;
        for field in fields {
            bound[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        }
        bound
    }
}

/// The HPKE info that binds one encapsulation to its batch and place.
pub(super) fn recipient_info(
    bound: &[u8; BOUND_BYTES],
    x: u8,
    node: NodeId,
    generation: ShareKeyGeneration,
) -> Vec<u8> {
    [labels::SHARE, bound, &[x], &node.0.to_be_bytes(), &generation.0.to_be_bytes()].concat()
}

pub(crate) fn encapsulation(reader: &mut Reader<'_>) -> Result<Encapsulation, FormatError> {
    Ok(Encapsulation(Box::new(reader.array::<ENCAPSULATION_BYTES>()?)))
}
