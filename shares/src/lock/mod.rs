//! Layer 2: the quorum lock. It seals a node's own keys at rest, so that the node needs its running peers to open them.
//!
//! A fresh secret w and a local pin seal the [`Bundle`]: the node's op key, storage keys and share keys. w is split
//! among the peers. Each piece is sealed to a key that the peer keeps for this node alone, and any u pieces rebuild w.
//! So what lies on the node's disk opens only with the help of u other disks.
//!
//! **Nothing is ever sealed twice under one w and generation.** After every change, [`Lock::seal`] makes a new lock
//! with a higher generation. There is no other way to make a lock.
//!
//! To open a lock: [`Lock::request`] makes a request to each peer, [`open_piece`] opens a piece at the peer, and
//! [`Lock::open`] takes u pieces. The peers decide who may ask and which generation is too old; that code is in the
//! node. This module stores nothing.

mod bundle;
mod exchange;
mod section;

pub use bundle::{BUNDLE_KEYS_MAX, Bundle, ShareKey, StorageKey};
pub use exchange::{
    LOCK_REPLY_BYTES, LOCK_REQUEST_BYTES, LockOpenCode, LockOpenReply, LockOpenRequest, RosterPosition,
};
pub use section::{LockPiece, PinPlace};

use rand_core::CryptoRng;

use crate::error::LockError;
use crate::ids::{ClusterId, NodeId};
use crate::kem::{self, PublicKey};
use crate::labels;
use crate::primitive;
use crate::secret::Secret;
use crate::split::{self, Coefficients};

/// Most peers that one lock names.
pub const LOCK_PEERS_MAX: usize = 16;
/// Longest pin, and longest path or name of a pin, in bytes.
pub const PIN_BYTES_MAX: usize = 1024;

/// Which lock of which node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockParams {
    /// The cluster of the node.
    pub cluster: ClusterId,
    /// The node whose bundle this locks.
    pub node: NodeId,
    /// The generation of the lock. It rises with every lock that the node makes.
    pub generation: u64,
}

/// A peer that gets a piece of a lock, and the key that it keeps for the locked node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockPeer {
    /// The id of the peer.
    pub peer: NodeId,
    /// The number of that key.
    pub key_number: u64,
    /// The public half of that key.
    pub public_key: PublicKey,
}

/// One lock: section 3 of the vault file. It holds no secret that is not already on the same disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    generation: u64,
    needed: u8,
    pin: PinPlace,
    pieces: Vec<LockPiece>,
    bundle: Vec<u8>,
}

impl Lock {
    /// Locks `bundle`: `needed` (u) of `peers` and `pin` together open it. Without peers (solo), `needed` is 0 and the
    /// pin alone opens it. The order of `peers` does not matter: pieces are numbered by rising node id.
    ///
    /// # Errors
    /// [`LockError`] if `needed` does not fit the number of peers, or a peer, the pin or the bundle is not valid.
    pub fn seal(
        params: &LockParams,
        needed: u8,
        place: PinPlace,
        pin: &[u8],
        peers: &[LockPeer],
        bundle: &Bundle,
        rng: &mut impl CryptoRng,
    ) -> Result<Self, LockError> {
        check_threshold(needed, peers.len())?;
        place.check(pin)?;
        let mut peers: Vec<&LockPeer> = peers.iter().collect();
        peers.sort_by_key(|peer| peer.peer);
        let mut previous = NodeId(0);
        for LockPeer { peer, .. } in &peers {
            if *peer <= previous || *peer == params.node {
                return Err(LockError::Peer(*peer));
            }
            previous = *peer;
        }

        let secret = if peers.is_empty() { Secret::zero() } else { Secret::random(rng) };
        let total = peers.len() as u8; // at most LOCK_PEERS_MAX
        let shares = match needed {
            0 => Vec::new(),
            _ => split::split(&secret, needed, total, &mut Coefficients::seeded(rng)),
        };
        let seal = |(x, (peer, share)): (u8, (&LockPeer, &Secret<32>))| {
            let info = piece_info(params, peer.peer, needed, total, x, peer.key_number);
            let (encapsulation, sealed) = kem::seal_to(&peer.public_key, &info, share, rng);
            let LockPeer { peer, key_number, public_key } = peer.clone();
            LockPiece { peer, x, key_number, public_key, encapsulation, sealed }
        };
        let pieces = (1..).zip(peers.into_iter().zip(&shares)).map(seal).collect();

        let mut lock = Self { generation: params.generation, needed, pin: place, pieces, bundle: Vec::new() };
        lock.bundle = bundle.seal(&bundle_key(params, pin, &secret), &lock.bound_hash())?;
        Ok(lock)
    }

    /// Opens the bundle with the pin and exactly `needed` pieces, each with its number.
    ///
    /// # Errors
    /// [`LockError::Pieces`] for another number of pieces, or a number twice. [`LockError::Sealed`] for a wrong piece,
    /// a wrong pin or a damaged lock, which look alike.
    pub fn open(&self, params: &LockParams, pieces: &[(u8, Secret<32>)], pin: &[u8]) -> Result<Bundle, LockError> {
        if params.generation != self.generation {
            return Err(LockError::Sealed);
        }
        let pieces: Vec<(u8, &Secret<32>)> = pieces.iter().map(|(x, piece)| (*x, piece)).collect();
        let secret = match (self.needed, pieces.as_slice()) {
            (0, []) => Secret::zero(),
            (needed, pieces) => split::combine(pieces, needed, self.pieces.len() as u8)?,
        };
        Bundle::open(&bundle_key(params, pin, &secret), &self.bound_hash(), &self.bundle)
    }

    /// The request to `peer`; `None` if the lock does not name it. The node draws a new `boot_nonce` at each start.
    pub fn request(&self, params: &LockParams, peer: NodeId, boot_nonce: [u8; 32]) -> Option<LockOpenRequest> {
        let piece = self.pieces.iter().find(|piece| piece.peer == peer)?;
        Some(LockOpenRequest {
            cluster: params.cluster,
            from: params.node,
            to: peer,
            generation: self.generation,
            needed: self.needed,
            peers: self.pieces.len() as u8,
            x: piece.x,
            key_number: piece.key_number,
            boot_nonce,
            encapsulation: piece.encapsulation.clone(),
            sealed: piece.sealed,
        })
    }

    /// The generation of this lock.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// How many pieces open this lock (u).
    pub fn needed(&self) -> u8 {
        self.needed
    }

    /// Where the pin is stored.
    pub fn pin(&self) -> &PinPlace {
        &self.pin
    }

    /// The pieces, by rising node id and numbered from 1.
    pub fn pieces(&self) -> &[LockPiece] {
        &self.pieces
    }
}

/// Opens the piece that `request` carries. The peer calls it, with the seed of the lock key that the request names.
///
/// # Errors
/// [`LockError::Piece`] if the piece was not sealed to this key for exactly this request.
pub fn open_piece(seed: &Secret<32>, request: &LockOpenRequest) -> Result<Secret<32>, LockError> {
    let LockOpenRequest { cluster, from, to, generation, needed, peers, x, key_number, .. } = *request;
    let info = piece_info(&LockParams { cluster, node: from, generation }, to, needed, peers, x, key_number);
    kem::open_from(seed, &request.encapsulation, &info, &request.sealed).ok_or(LockError::Piece)
}

/// Checks u of n peers: 0 of 0, or 1 <= u <= n <= [`LOCK_PEERS_MAX`].
fn check_threshold(needed: u8, peers: usize) -> Result<(), LockError> {
    let solo = needed == 0 && peers == 0;
    let shared = needed >= 1 && usize::from(needed) <= peers && peers <= LOCK_PEERS_MAX;
    match solo || shared {
        true => Ok(()),
        false => Err(LockError::Threshold { needed, peers }),
    }
}

/// The HPKE info that binds a piece to its lock, its place and the key of its peer.
fn piece_info(params: &LockParams, peer: NodeId, needed: u8, peers: u8, x: u8, key_number: u64) -> Vec<u8> {
    [
        labels::LOCK,
        &params.cluster.0,
        &params.node.0.to_be_bytes(),
        &peer.0.to_be_bytes(),
        &params.generation.to_be_bytes(),
        &[needed, peers, x],
        &key_number.to_be_bytes(),
    ]
    .concat()
}

/// The key of the bundle: HMAC of the secret that the peers return, under the pin that stayed on the node.
fn bundle_key(params: &LockParams, pin: &[u8], secret: &Secret<32>) -> Secret<32> {
    let info: [&[u8]; 4] =
        [labels::BUNDLE, &params.cluster.0, &params.node.0.to_be_bytes(), &params.generation.to_be_bytes()];
    primitive::derive(&primitive::hmac(pin, secret.expose()), &info)
}
