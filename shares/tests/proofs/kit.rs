//! A small cluster without a network: nodes, their share keys, and a committee of them.

use std::convert::Infallible;

use quorate_shares::ids::{ClusterId, Epoch, KeyUid, KeyVersion, NodeId, ShareKeyGeneration};
use quorate_shares::kem::PublicKey;
use quorate_shares::master::KeyIdentity;
use quorate_shares::seal::{BatchHeader, BatchOpener, Committee, CommitteeMember};
use quorate_shares::secret::Secret;
use rand_chacha::ChaCha20Rng;
use rand_core::{SeedableRng, TryCryptoRng, TryRng};

pub(crate) const CLUSTER: ClusterId = ClusterId([0xc1; 16]);
pub(crate) const IDENTITY: KeyIdentity =
    KeyIdentity { cluster: CLUSTER, uid: KeyUid([0x1d; 16]), version: KeyVersion(3) };

pub(crate) fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

/// A node with a share key. Its id differs from its share number.
pub(crate) struct Holder {
    pub(crate) member: CommitteeMember,
    pub(crate) seed: Secret<32>,
}

pub(crate) fn holders(count: u64, generation: u64) -> Vec<Holder> {
    let holder = |i| {
        let seed = Secret::random(&mut rng(1000 * generation + i));
        let (node, generation) = (NodeId(10 + 3 * i), ShareKeyGeneration(generation));
        Holder { member: CommitteeMember { node, generation, public_key: PublicKey::of_seed(&seed) }, seed }
    };
    (0..count).map(holder).collect()
}

pub(crate) fn committee(epoch: u64, needed: u8, holders: &[Holder]) -> Committee {
    let members = holders.iter().map(|holder| holder.member.clone()).collect();
    Committee::new(Epoch(epoch), needed, members).unwrap()
}

pub(crate) fn opener(header: &BatchHeader, committee: &Committee, holder: &Holder) -> BatchOpener {
    BatchOpener::open(header, committee, holder.member.node, holder.member.generation, &holder.seed).unwrap()
}

/// The "randomness" of a known answer: yields given bytes in order, and panics at their end.
pub(crate) struct Fixed(pub(crate) std::collections::VecDeque<u8>);

impl TryRng for Fixed {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        bytes.iter_mut().for_each(|byte| *byte = self.0.pop_front().unwrap());
        Ok(())
    }
}

impl TryCryptoRng for Fixed {}
