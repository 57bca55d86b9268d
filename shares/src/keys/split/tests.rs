//! The arithmetic of sharing, and the statistics of its coefficients.
//!
//! The tests guard against two kinds of failure that other implementations had: coefficients that were always odd or
//! never zero (vsss-rs before 5.4, RUSTSEC-2024-0398), and share numbers that were zero or repeated. Each statistical
//! test also runs a dealer that is broken on purpose, and must detect it.

use super::*;
use crate::ids::{ClusterId, KeyUid, KeyVersion};
use crate::master::{KeyIdentity, MasterKey};
use proptest::prelude::*;

/// The seed of all randomness in these tests.
const SEED: [u8; 32] = *b"statistics of dealing, seed one!";

fn coefficients() -> Coefficients {
    Coefficients(Box::new(ChaCha20Rng::from_seed(SEED)))
}

fn secret(byte: u8) -> Secret<32> {
    Secret::take(&mut [byte; 32])
}

fn numbered(shares: &[Secret<32>]) -> Vec<(u8, &Secret<32>)> {
    (1..).zip(shares).collect()
}

#[test]
fn thresholds_below_a_majority_are_refused() {
    let allowed: Vec<(u8, u8)> = (0..=u8::MAX)
        .flat_map(|n| (0..=u8::MAX).map(move |t| (t, n)))
        .filter(|(t, n)| Threshold::new(*t, *n).is_ok())
        .collect();
    assert_eq!(allowed.len(), (1..=9).map(|n| n - n / 2).sum::<usize>());
    assert!(allowed.iter().all(|(t, n)| t <= n && 2 * t > *n && (*t > 1 || *n == 1)));
}

/// T31 at the level of arithmetic. Without the checks of `combine`, these shares give a wrong secret and no error.
#[test]
fn share_numbers_that_are_zero_repeated_or_too_large_are_refused() {
    let shares = split(&secret(7), 2, 3, &mut coefficients());
    let (a, b) = (&shares[0], &shares[1]);
    let refused = |pair: [(u8, &Secret<32>); 2]| combine(&pair, 2, 3).map(|_| ()).expect_err("refused");
    assert_eq!(refused([(0, a), (2, b)]), CombineError::Number(0));
    assert_eq!(refused([(1, a), (1, b)]), CombineError::Number(1));
    assert_eq!(refused([(1, a), (4, b)]), CombineError::Number(4));
    assert_eq!(combine(&[(1, a)], 2, 3).map(|_| ()), Err(CombineError::Count { have: 1, need: 2 }));
    assert_eq!(combine(&numbered(&shares), 2, 3).map(|_| ()), Err(CombineError::Count { have: 3, need: 2 }));
    assert_eq!(combine(&[], 0, 0).map(|_| ()), Err(CombineError::Count { have: 0, need: 0 }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// S7: any t shares give the same secret. If one of the t shares is forged, they give another.
    #[test]
    fn any_quorum_rebuilds_and_no_smaller_one_does(
        bytes in any::<[u8; 32]>(),
        (needed, holders) in (2u8..=9).prop_flat_map(|n| (n / 2 + 1..=n, Just(n))),
        seed in any::<[u8; 32]>(),
    ) {
        let secret = Secret::take(&mut { bytes });
        let shares = split(&secret, needed, holders, &mut Coefficients(Box::new(ChaCha20Rng::from_seed(seed))));
        let shares = numbered(&shares);
        for mask in 0u16..1 << holders {
            let some: Vec<_> = shares.iter().filter(|(x, _)| mask >> (x - 1) & 1 == 1).copied().collect();
            if some.len() != usize::from(needed) {
                continue;
            }
            prop_assert!(combine(&some, needed, holders).expect("distinct").same_as(&secret));
            let mut forged = some[0].1.duplicate();
            forged.expose_mut()[31] ^= 1;
            let mut some = some;
            some[0].1 = &forged;
            prop_assert!(!combine(&some, needed, holders).expect("distinct").same_as(&secret));
        }
    }
}

/// T08: a thief who ignores commitments combines shares from two dealings of one key. The result is not the key, and
/// its key-check value refuses it. Every quorum is mixed in every way: t - 1 shares of one dealing with others of the
/// next, and the reverse.
#[test]
fn shares_of_two_dealings_give_nothing_together() {
    let identity = KeyIdentity { cluster: ClusterId([0xc1; 16]), uid: KeyUid([0x1d; 16]), version: KeyVersion(3) };
    let key = MasterKey::from_secret(secret(0x4b));
    let kcv = key.kcv(&identity);
    let mut rng = coefficients();
    for (needed, holders, ways) in [(2, 3, 6), (3, 5, 60)] {
        let [old, new] = [(); 2].map(|()| split(key.secret(), needed, holders, &mut rng));
        let mut mixed = 0;
        for quorum in (0u8..1 << holders).filter(|quorum| quorum.count_ones() == u32::from(needed)) {
            // Every subset of the quorum gives its shares of the new dealing.
            for newer in (0..=quorum).filter(|newer| newer & !quorum == 0) {
                let numbers = (1..=holders).filter(|x| quorum >> (x - 1) & 1 == 1);
                let of = |x: u8| if newer >> (x - 1) & 1 == 1 { &new } else { &old };
                let shares: Vec<_> = numbers.map(|x| (x, &of(x)[usize::from(x) - 1])).collect();
                let forced = combine(&shares, needed, holders).expect("as many distinct numbers as are needed");
                let is_mixed = newer != 0 && newer != quorum;
                mixed += u32::from(is_mixed);
                assert_eq!(
                    forced.same_as(key.secret()),
                    !is_mixed,
                    "{needed} of {quorum:#b}, of which new: {newer:#b}"
                );
                assert_eq!(MasterKey::from_secret(forced).matches(&identity, &kcv), !is_mixed);
            }
        }
        assert_eq!(mixed, ways, "{needed} of {holders}");
    }
}

/// Chi-square over 256 values. With a random seed, a right dealer would exceed 377 with a probability of one in a
/// million.
fn uniform(histogram: &[u32; 256]) -> bool {
    let expected = f64::from(histogram.iter().sum::<u32>()) / 256.0;
    let chi_square: f64 = histogram.iter().map(|&seen| (f64::from(seen) - expected).powi(2) / expected).sum();
    chi_square < 377.0
}

fn count(histogram: &mut [u32; 256], bytes: impl Iterator<Item = u8>) {
    bytes.for_each(|byte| histogram[usize::from(byte)] += 1);
}

/// T32: a million coefficients. With two shares of two, the coefficient is the first share minus the secret.
#[test]
fn coefficients_are_uniform_even_and_zero_too() {
    let secret = secret(0x5a);
    let mut rng = coefficients();
    let mut histogram = [0; 256];
    let mut odd_only = [0; 256];
    let mut never_zero = [0; 256];
    for _ in 0..31_250 {
        let share = &split(&secret, 2, 2, &mut rng)[0];
        let bytes: Vec<u8> = share.expose().iter().map(|byte| byte ^ 0x5a).collect();
        count(&mut odd_only, bytes.iter().map(|byte| byte | 1));
        count(&mut never_zero, bytes.iter().map(|byte| (*byte).max(1)));
        count(&mut histogram, bytes.into_iter());
    }
    assert!(uniform(&histogram), "{histogram:?}");
    assert!(histogram[0] > 3_000, "zero is a coefficient like any other");
    assert!(!uniform(&odd_only), "the dealer of vsss-rs before 5.4 is caught");
    assert!(!uniform(&never_zero), "the dealer of RUSTSEC-2024-0398 is caught");
}

/// T32, the highest of two coefficients: found by interpolation at 0, 1 and 2.
#[test]
fn the_highest_coefficient_is_uniform() {
    let secret = secret(0x5a);
    let mut rng = coefficients();
    let mut histogram = [0; 256];
    // 1 / product of differences, in GF(256), for the points 0, 1 and 2.
    let weights = [(1u8, 2u8), (1, 3), (2, 3)].map(|(a, b)| {
        let product = Gf256(a) * Gf256(b);
        (1..=255).map(Gf256).find(|inverse| (*inverse * product).0 == 1).expect("a field has inverses")
    });
    for _ in 0..10_000 {
        let shares = split(&secret, 3, 3, &mut rng);
        let points = [&secret, &shares[0], &shares[1]];
        let coefficient = |i: usize| {
            let terms = points.iter().zip(weights).map(|(point, weight)| (Gf256(point.expose()[i]) * weight).0);
            terms.fold(0, |sum, term| sum ^ term)
        };
        count(&mut histogram, (0..32).map(coefficient));
    }
    assert!(uniform(&histogram), "{histogram:?}");
}

/// How many times one secret is dealt.
const DEALINGS: usize = 4_000;

/// A dealer for these tests: as [`split`] among three holders, but `draw` maps uniform bytes to the coefficients.
fn split_skewed(secret: &Secret<32>, needed: u8, rng: &mut Coefficients, draw: fn(u8) -> u8) -> Vec<Secret<32>> {
    let mut coefficients = vec![[0; 32]; usize::from(needed) - 1];
    for bytes in &mut coefficients {
        rng.0.fill_bytes(bytes);
        *bytes = bytes.map(draw);
    }
    let at = |x: u8, i: usize| {
        let times_x = coefficients.iter().rev().fold(Gf256(0), |sum, bytes| (sum + Gf256(bytes[i])) * Gf256(x));
        (times_x + Gf256(secret.expose()[i])).0
    };
    (1..=3).map(|x| Secret::take(&mut std::array::from_fn(|i| at(x, i)))).collect()
}

/// What a thief sees who keeps t - 1 shares of every dealing. For each byte of the secret, it counts the values of that
/// byte in each share. For two shares, it also counts them in their sum, and in the secret that they would give if two
/// were enough.
struct Thief {
    views: Vec<[[u32; 256]; 32]>,
}

impl Thief {
    fn steal(needed: u8, mut deal: impl FnMut() -> Vec<Secret<32>>) -> Self {
        let mut views = vec![[[0; 256]; 32]; if needed == 2 { 1 } else { 4 }];
        for _ in 0..DEALINGS {
            let shares = deal();
            let stolen = &shares[..usize::from(needed) - 1];
            let mut seen: Vec<[u8; 32]> = stolen.iter().map(|share| *share.expose()).collect();
            if let [first, second] = stolen {
                seen.push(std::array::from_fn(|i| first.expose()[i] ^ second.expose()[i]));
                seen.push(*combine(&[(1, first), (2, second)], 2, 3).expect("two numbers").expose());
            }
            assert_eq!(seen.len(), views.len());
            for (view, bytes) in views.iter_mut().zip(seen) {
                view.iter_mut().zip(bytes).for_each(|(histogram, byte)| count(histogram, [byte].into_iter()));
            }
        }
        Self { views }
    }

    /// Whether all values of a byte are equally likely: for each byte alone and, since every byte of this secret is
    /// `byte`, for all of them together. The value of the secret must be as possible as any other.
    ///
    /// With a random seed, a right dealer would fail once in 6 000 times: [`uniform`] is asked 132 times, and in each
    /// of 128 histograms one value may be missing by chance, with a probability of one in six millions.
    fn learns_nothing(&self, byte: u8) -> bool {
        self.views.iter().all(|view| {
            let together: [u32; 256] = std::array::from_fn(|value| view.iter().map(|histogram| histogram[value]).sum());
            let possible = |histogram: &[u32; 256]| {
                histogram[usize::from(byte)] > 0 && histogram.iter().filter(|seen| **seen > 0).count() >= 255
            };
            view.iter().all(|histogram| uniform(histogram) && possible(histogram)) && uniform(&together)
        })
    }
}

/// T33: t - 1 shares from each of 4 000 dealings of one secret reveal nothing about any byte of it, neither one share
/// alone nor both shares of a dealing together. Dealers that are broken on purpose are detected. One of them never
/// draws zero and so reveals the secret: it is the one value that never occurs.
#[test]
fn shares_of_many_dealings_reveal_nothing() {
    let secret = secret(0x5a);
    for needed in [2, 3] {
        let mut rng = coefficients();
        let thief = Thief::steal(needed, || split(&secret, needed, 3, &mut rng));
        assert!(thief.learns_nothing(0x5a), "{needed} of 3");

        let mut skewed = |draw| Thief::steal(needed, || split_skewed(&secret, needed, &mut rng, draw));
        assert!(skewed(|byte| byte).learns_nothing(0x5a), "the control: only what is drawn is wrong, {needed} of 3");
        assert!(!skewed(|byte| byte | 1).learns_nothing(0x5a), "odd coefficients only, {needed} of 3");
        let never_zero = skewed(|byte| byte.max(1));
        assert!(!never_zero.learns_nothing(0x5a), "coefficients from 1 to 255, {needed} of 3");
        let last = never_zero.views.last().expect("there is one");
        let unseen = |histogram: &[u32; 256]| (0..256).filter(|value| histogram[*value] == 0).collect::<Vec<_>>();
        assert!(last.iter().all(|histogram| unseen(histogram) == [0x5a]), "the secret, {needed} of 3");

        let shares = split_skewed(&secret, needed, &mut rng, |byte| byte);
        let enough = numbered(&shares[..usize::from(needed)]);
        assert!(combine(&enough, needed, 3).expect("distinct").same_as(&secret), "the control: it deals {needed} of 3");
    }
}
