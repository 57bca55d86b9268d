//! Orders: what an operator wants, signed with the operator's key (FORMATS 15).
//!
//! ```text
//! "QOR1" | suite u8 = 1 | cluster_id 16 | incarnation u32 | signer 32 | request 16
//! | issued_ms u64 | expires_ms u64 | target u64 (0: the cluster) | act | signature 64
//!
//! signature = Ed25519(seed of the signer, "quorate/v1/order\0" || everything before)
//! ```
//!
//! An order is carried from the operator to every replica in exactly these bytes. A node cannot order anything: it can only carry
//! what an operator signed, and each replica checks the signature itself. This module is pure. Whether the signer is an operator
//! of the cluster, whether the order has expired, and whether it was carried out before, is decided where the state is.

mod act;

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub use act::{Act, CODES_MAX, KEYS_MAX, LABEL_BYTES_MAX, LabelledKey, NamedNode, NewKey, ProofKey, is_label};

use crate::error::FormatError;
use crate::ids::{ClusterId, NodeId};
use crate::labels;
use crate::layout::Reader;
use crate::secret::Secret;
use crate::signature::{self, PublicKey, SIGNATURE_BYTES};

const MAGIC: &[u8; 4] = b"QOR1";
/// Ed25519, and the layout above.
const SUITE: u8 = 1;

/// Most nodes in one list of an order: more than any cluster has.
pub const NODES_MAX: usize = 9;
/// Largest order in bytes.
pub const ORDER_BYTES_MAX: usize = 120 << 10;
/// An order is valid for at most this long, in milliseconds: a day.
pub const LIFETIME_MAX_MS: u64 = 24 * 3_600_000;
/// How long an order is valid unless its signer says more, in milliseconds: five minutes.
pub const LIFETIME_MS: u64 = 5 * 60_000;

/// The id of one order: 16 random bytes. An order that comes again with the same id is not carried out again.
pub type RequestId = [u8; 16];

/// An order, before it is signed or after it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The cluster that it is for.
    pub cluster: ClusterId,
    /// How often the cluster was restored from a backup, from 1. An order is for one incarnation.
    pub incarnation: u32,
    /// The operator's key.
    pub signer: PublicKey,
    /// Names the order.
    pub request: RequestId,
    /// The signer's clock, in milliseconds since 1970.
    pub issued_ms: u64,
    /// From this time of the cluster on it is not carried out any more, in milliseconds since 1970.
    pub expires_ms: u64,
    /// The node that does it by itself; `None` if the cluster does it.
    pub target: Option<NodeId>,
    /// What is ordered.
    pub act: Act,
}

/// An order with its signature, in the bytes in which it came. The signature may be wrong: [`SignedOrder::verify`] checks it.
#[derive(Clone, PartialEq, Eq)]
pub struct SignedOrder {
    bytes: Vec<u8>,
    order: Order,
}

/// An order whose signature was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifiedOrder<'a>(&'a Order);

impl<'a> VerifiedOrder<'a> {
    /// The order.
    pub fn order(self) -> &'a Order {
        self.0
    }
}

/// The signature of an order is not that of its signer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature of the order is not valid")]
pub struct BadSignature;

impl Order {
    /// Signs the order with the seed whose public half is its signer.
    ///
    /// # Errors
    /// [`FormatError`] for a list that is too long or out of order, a target that does not fit the act, times in the wrong order,
    /// another signer than the seed's, or more than [`ORDER_BYTES_MAX`].
    pub fn sign(self, seed: &Secret<32>) -> Result<SignedOrder, FormatError> {
        if PublicKey::of_seed(seed) != self.signer {
            return Err(FormatError::Invalid("signer"));
        }
        self.check()?;
        let mut bytes = Vec::with_capacity(256);
        bytes.extend(MAGIC);
        bytes.push(SUITE);
        bytes.extend(self.cluster.0);
        bytes.extend(self.incarnation.to_be_bytes());
        bytes.extend(self.signer.0);
        bytes.extend(self.request);
        bytes.extend(self.issued_ms.to_be_bytes());
        bytes.extend(self.expires_ms.to_be_bytes());
        bytes.extend(self.target.map_or(0, |target| target.0).to_be_bytes());
        self.act.write(&mut bytes);
        bytes.extend(signature::sign(seed, labels::ORDER, &bytes));
        if bytes.len() > ORDER_BYTES_MAX {
            return Err(FormatError::TooMany { what: "bytes in an order", limit: ORDER_BYTES_MAX });
        }
        Ok(SignedOrder { bytes, order: self })
    }

    fn check(&self) -> Result<(), FormatError> {
        self.act.check()?;
        if self.incarnation == 0 {
            return Err(FormatError::Invalid("incarnation"));
        }
        if self.target.is_some() != self.act.is_local() || self.target == Some(NodeId(0)) {
            return Err(FormatError::Invalid("target"));
        }
        match self.expires_ms.checked_sub(self.issued_ms) {
            Some(1..=LIFETIME_MAX_MS) => Ok(()),
            _ => Err(FormatError::Invalid("lifetime")),
        }
    }
}

impl SignedOrder {
    /// Reads an order that fills `bytes` exactly. The signature is not checked.
    ///
    /// # Errors
    /// [`FormatError`] for any byte that [`Order::sign`] would not write, except in the signature.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        if bytes.len() > ORDER_BYTES_MAX {
            return Err(FormatError::TooMany { what: "bytes in an order", limit: ORDER_BYTES_MAX });
        }
        let mut reader = Reader::new(bytes, "order");
        reader.magic(MAGIC)?;
        if reader.u8()? != SUITE {
            return Err(FormatError::Invalid("suite of an order"));
        }
        let order = Order {
            cluster: reader.cluster()?,
            incarnation: reader.u32()?,
            signer: PublicKey(reader.array()?),
            request: reader.array()?,
            issued_ms: reader.u64()?,
            expires_ms: reader.u64()?,
            target: Some(NodeId(reader.u64()?)).filter(|node| node.0 != 0),
            act: Act::read(&mut reader)?,
        };
        reader.bytes(SIGNATURE_BYTES)?;
        reader.finish()?;
        order.check()?;
        Ok(Self { bytes: bytes.to_vec(), order })
    }

    /// The bytes, as the signer made them.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The order, whose signature may be anything. To act on it, [`SignedOrder::verify`] it.
    pub fn unverified(&self) -> &Order {
        &self.order
    }

    /// Checks the signature: some 50 µs.
    ///
    /// # Errors
    /// [`BadSignature`].
    pub fn verify(&self) -> Result<VerifiedOrder<'_>, BadSignature> {
        let (signed, signature) = self.bytes.split_last_chunk().ok_or(BadSignature)?;
        match self.order.signer.has_signed(labels::ORDER, signed, signature) {
            true => Ok(VerifiedOrder(&self.order)),
            false => Err(BadSignature),
        }
    }
}

impl fmt::Debug for SignedOrder {
    /// Names the kind only: a log line must carry no key name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignedOrder({}, {} bytes)", self.order.act.kind(), self.bytes.len())
    }
}

impl Serialize for SignedOrder {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.bytes)
    }
}

impl<'de> Deserialize<'de> for SignedOrder {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl de::Visitor<'_> for Bytes {
            type Value = SignedOrder;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the bytes of an order")
            }
            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<SignedOrder, E> {
                SignedOrder::parse(bytes).map_err(E::custom)
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

#[cfg(test)]
mod tests;
