//! The bytes of a lock: section 3 of the vault file.
//!
//! ```text
//! gen u64 | u u8 | n u8 | pin_kind u8 (0 inline, 1 file, 2 systemd credential) | pin u16 + bytes
//! | n x { peer u64 | x u8 | key_number u64 | pk 1216 | enc 1120 | ct 48 }                              bound: hashed into the bundle
//! | bundle u32 + bytes
//! ```

use std::fmt;

use crate::error::{FormatError, LockError};
use crate::ids::NodeId;
use crate::kem::{Encapsulation, PUBLIC_KEY_BYTES, PublicKey};
use crate::layout::Reader;
use crate::lock::bundle::BUNDLE_BYTES_MAX;
use crate::lock::{Lock, PIN_BYTES_MAX, check_threshold};
use crate::primitive::{Sealed32, hash};
use crate::seal;

/// One peer's piece of a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockPiece {
    /// The id of the peer.
    pub peer: NodeId,
    /// The number of the piece, from 1.
    pub x: u8,
    /// The number of the peer's lock key that the piece is sealed to.
    pub key_number: u64,
    /// That lock key. The node keeps it so that it can seal the next piece to a peer that does not answer.
    pub public_key: PublicKey,
    /// The encapsulation from which the peer derives the key of the sealed piece.
    pub encapsulation: Encapsulation,
    /// The piece of 32 bytes, sealed to the peer.
    pub sealed: Sealed32,
}

/// Where the pin is stored, the local half of the bundle's key.
#[derive(Clone, PartialEq, Eq)]
pub enum PinPlace {
    /// In the lock itself. It keeps the peers from the bundle's key, but not a thief of the disk.
    Inline(Vec<u8>),
    /// In a file at this path, for example on another device.
    File(String),
    /// In a systemd credential with this name.
    Credential(String),
}

impl fmt::Debug for PinPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inline(_) => f.write_str("Inline(…)"),
            Self::File(path) => write!(f, "File({path:?})"),
            Self::Credential(name) => write!(f, "Credential({name:?})"),
        }
    }
}

impl PinPlace {
    fn kind(&self) -> u8 {
        match self {
            Self::Inline(_) => 0,
            Self::File(_) => 1,
            Self::Credential(_) => 2,
        }
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Inline(pin) => pin,
            Self::File(name) | Self::Credential(name) => name.as_bytes(),
        }
    }

    /// Checks that `pin` has a valid length and, if the pin is stored in the lock, that it is the stored one.
    pub(super) fn check(&self, pin: &[u8]) -> Result<(), LockError> {
        let kept_here = matches!(self, Self::Inline(_));
        let lengths = [pin.len(), self.as_bytes().len()];
        let fits = lengths.iter().all(|len| (1..=PIN_BYTES_MAX).contains(len));
        match fits && (!kept_here || self.as_bytes() == pin) {
            true => Ok(()),
            false => Err(LockError::Pin),
        }
    }
}

impl Lock {
    /// The bytes, as drawn above.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.bound();
        bytes.extend((self.bundle.len() as u32).to_be_bytes()); // at most BUNDLE_BYTES_MAX
        bytes.extend(&self.bundle);
        bytes
    }

    /// Reads a lock that fills `bytes` exactly.
    ///
    /// # Errors
    /// [`FormatError`] for a threshold that is not allowed, piece numbers that are not 1 to n, node ids that do not
    /// rise, or any other byte that [`Lock::encode`] would not write.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes, "lock");
        let (generation, needed, count) = (reader.u64()?, reader.u8()?, reader.u8()?);
        check_threshold(needed, count.into()).map_err(|_| FormatError::Invalid("threshold"))?;
        let (kind, length) = (reader.u8()?, usize::from(reader.u16()?));
        if !(1..=PIN_BYTES_MAX).contains(&length) {
            return Err(FormatError::Invalid("pin"));
        }
        let pin = reader.bytes(length)?.to_vec();
        let name = |pin| String::from_utf8(pin).map_err(|_| FormatError::Invalid("pin"));
        let pin = match kind {
            0 => PinPlace::Inline(pin),
            1 => PinPlace::File(name(pin)?),
            2 => PinPlace::Credential(name(pin)?),
            _ => return Err(FormatError::Invalid("pin kind")),
        };
        let mut pieces: Vec<LockPiece> = Vec::with_capacity(count.into());
        for expected in 1..=count {
            let (peer, x, key_number) = (NodeId(reader.u64()?), reader.u8()?, reader.u64()?);
            let previous = pieces.last().map_or(NodeId(0), |piece| piece.peer);
            if x != expected {
                return Err(FormatError::Invalid("piece number"));
            }
            if peer <= previous {
                return Err(FormatError::Invalid("order of peers"));
            }
            let public_key = PublicKey::parse(reader.bytes(PUBLIC_KEY_BYTES)?)?;
            let encapsulation = seal::encapsulation(&mut reader)?;
            pieces.push(LockPiece { peer, x, key_number, public_key, encapsulation, sealed: reader.array()? });
        }
        let length = reader.u32()? as usize;
        if length > BUNDLE_BYTES_MAX {
            return Err(FormatError::Invalid("bundle length"));
        }
        let bundle = reader.bytes(length)?.to_vec();
        reader.finish()?;
        Ok(Self { generation, needed, pin, pieces, bundle })
    }

    /// The hash of everything before the bundle. It makes the bundle open only in the lock that it was sealed in.
    pub(super) fn bound_hash(&self) -> [u8; 32] {
        hash(&[&self.bound()])
    }

    fn bound(&self) -> Vec<u8> {
        let pin = self.pin.as_bytes();
        let mut bytes = Vec::with_capacity(16 + pin.len() + 2401 * self.pieces.len() + self.bundle.len());
        bytes.extend(self.generation.to_be_bytes());
        bytes.extend([self.needed, self.pieces.len() as u8, self.pin.kind()]); // at most LOCK_PEERS_MAX
        bytes.extend((pin.len() as u16).to_be_bytes()); // at most PIN_BYTES_MAX
        bytes.extend(pin);
        for piece in &self.pieces {
            bytes.extend(piece.peer.0.to_be_bytes());
            bytes.push(piece.x);
            bytes.extend(piece.key_number.to_be_bytes());
            bytes.extend(piece.public_key.as_bytes());
            bytes.extend(piece.encapsulation.0.as_slice());
            bytes.extend(piece.sealed);
        }
        bytes
    }
}
