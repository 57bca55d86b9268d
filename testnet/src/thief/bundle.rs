//! Opening the bundle of a lock, written a second time from FORMATS section 4, with HMAC, HKDF and ChaCha20-Poly1305 of another
//! library.
//!
//! The product opens a lock only as it should be opened. A lock that was *sealed* otherwise, for example under a key that
//! leaves the pin out, opens here all the same: the caller says which secrets and which pins to try, and each pair is tried in
//! every way that a careless program could have joined them.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::{hkdf, hmac};
use quorate_shares::ids::ShareKeyGeneration;
use quorate_shares::lock::{Bundle, Lock, LockParams, ShareKey, StorageKey};
use quorate_shares::secret::Secret;

/// What stands before the pin: generation, u, n, where the pin is, and its length.
const BEFORE_PIN: usize = 8 + 1 + 1 + 1 + 2;
/// One piece: peer, number, number of the key, public key, encapsulation, sealed piece.
const PIECE: usize = 8 + 1 + 8 + 1216 + 1120 + 48;
const LABEL: &[u8] = b"quorate/v1/bundle\0";

/// The bundle of `lock`, if one of `secrets` opens it with one of `pins` or without any pin.
pub(super) fn open(params: &LockParams, lock: &Lock, secrets: &[Secret<32>], pins: &[Vec<u8>]) -> Option<Bundle> {
    let bytes = lock.encode();
    let (bound, sealed) = split(&bytes)?;
    let aad = digest(&SHA256, bound);
    let info = [LABEL, &params.cluster.0, &params.node.0.to_be_bytes(), &params.generation.to_be_bytes()].concat();
    secrets.iter().flat_map(|secret| keys(secret, pins, &info)).find_map(|key| {
        let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &key).ok()?);
        let mut buffer = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        parse(key.open_in_place(nonce, Aad::from(aad.as_ref()), &mut buffer).ok()?)
    })
}

/// The part of a lock that the bundle is bound to, and the sealed bundle.
fn split(lock: &[u8]) -> Option<(&[u8], &[u8])> {
    let (pieces, pin) = (usize::from(*lock.get(9)?), lock.get(BEFORE_PIN - 2..BEFORE_PIN)?);
    let pin = usize::from(u16::from_be_bytes(pin.try_into().ok()?));
    let (bound, rest) = lock.split_at_checked(BEFORE_PIN + pin + PIECE * pieces)?;
    Some((bound, rest.get(4..)?))
}

/// Every key that a program could have made of a secret: with each pin, either way round, and with none.
fn keys(secret: &Secret<32>, pins: &[Vec<u8>], info: &[u8]) -> Vec<[u8; 32]> {
    let secret = secret.expose().as_slice();
    let with_pins = pins.iter().flat_map(|pin| [mac(pin, secret), mac(secret, pin)]);
    let without: [[u8; 32]; 1] = [secret.try_into().expect("32 bytes")];
    with_pins.chain(without).flat_map(|key| [expand(&key, info), key]).collect()
}

fn mac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message);
    tag.as_ref().try_into().expect("the length of a SHA-256")
}

fn expand(key: &[u8; 32], info: &[u8]) -> [u8; 32] {
    let mut expanded = [0; 32];
    let info = [info];
    let key = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, key);
    let filled = key.expand(&info, hkdf::HKDF_SHA256).and_then(|okm| okm.fill(&mut expanded));
    filled.expect("32 bytes are far below the limit of HKDF");
    expanded
}

/// `op_seed 32 | m u8 | m x { dkey u8 | D 32 } | k u8 | k x { skgen u64 | seed 32 }`
fn parse(mut plain: &[u8]) -> Option<Bundle> {
    let plain = &mut plain;
    let op_seed = secret(plain)?;
    let count = take::<1>(plain)?[0];
    let storage = (0..count).map(|_| Some(StorageKey { number: take::<1>(plain)?[0], key: secret(plain)? }));
    let storage_keys = storage.collect::<Option<Vec<_>>>()?;
    let count = take::<1>(plain)?[0];
    let share_keys = (0..count)
        .map(|_| {
            let generation = ShareKeyGeneration(u64::from_be_bytes(take::<8>(plain)?));
            Some(ShareKey { generation, seed: secret(plain)? })
        })
        .collect::<Option<Vec<_>>>()?;
    plain.is_empty().then_some(Bundle { op_seed, storage_keys, share_keys })
}

fn take<const N: usize>(plain: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = plain.split_first_chunk::<N>()?;
    *plain = rest;
    Some(*taken)
}

fn secret(plain: &mut &[u8]) -> Option<Secret<32>> {
    Some(Secret::take(&mut take::<32>(plain)?))
}

#[cfg(test)]
mod tests {
    use quorate_node::base::random;
    use quorate_shares::ids::{ClusterId, NodeId};
    use quorate_shares::lock::PinPlace;

    use super::*;

    fn bundle() -> Bundle {
        let secret = |byte| Secret::take(&mut [byte; 32]);
        Bundle {
            op_seed: secret(1),
            storage_keys: vec![StorageKey { number: 1, key: secret(2) }],
            share_keys: vec![ShareKey { generation: ShareKeyGeneration(3), seed: secret(4) }],
        }
    }

    /// A lock of the product opens here with its pin alone. Mutated: a bundle key without the pin, or under one of zeros, opens it
    /// with any.
    #[test]
    fn a_lock_of_the_product_opens_with_its_pin_and_no_other() {
        let params = LockParams { cluster: ClusterId([7; 16]), node: NodeId(1), generation: 9 };
        let (pin, place) = (vec![5; 32], PinPlace::File("/elsewhere/pin".to_owned()));
        // Without peers the secret is 32 zeros.
        let lock = Lock::seal(&params, 0, place, &pin, &[], &bundle(), &mut random::system()).expect("a lock");
        let opens = |pins: &[Vec<u8>]| open(&params, &lock, &[Secret::zero()], pins);
        let wrong = [Vec::new(), vec![0; 32], vec![6; 32], b"/elsewhere/pin".to_vec()];
        assert!(opens(&wrong).is_none() && opens(&[]).is_none());
        let opened = opens(&[wrong.to_vec(), vec![pin]].concat()).expect("the control: the right one is among them");
        assert!(opened.op_seed.same_as(&bundle().op_seed));
        assert_eq!((opened.storage_keys.len(), opened.share_keys[0].generation.0), (1, 3));
    }
}
