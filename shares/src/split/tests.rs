//! The arithmetic of sharing, and the statistics of its coefficients.
//!
//! Two families of real failures are guarded here: coefficients that were always odd or never zero (vsss-rs before 5.4,
//! RUSTSEC-2024-0398), and share numbers that were zero or repeated. Every statistical test has a dealer beside it that is
//! broken on purpose and must be caught.

use super::*;
use proptest::prelude::*;

/// All randomness here comes from this seed.
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
fn thresholds_that_must_never_be() {
    let allowed: Vec<(u8, u8)> = (0..=u8::MAX)
        .flat_map(|n| (0..=u8::MAX).map(move |t| (t, n)))
        .filter(|(t, n)| Threshold::new(*t, *n).is_ok())
        .collect();
    assert_eq!(allowed.len(), (1..=9).map(|n| n - n / 2).sum::<usize>());
    assert!(allowed.iter().all(|(t, n)| t <= n && 2 * t > *n && (*t > 1 || *n == 1)));
}

/// T31 at the level of arithmetic. Without the checks of `combine` these give a wrong secret without a word.
#[test]
fn share_numbers_that_must_never_be() {
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

    /// S7: any t shares give the same secret, and t - 1 of them with a forged one do not.
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

/// Chi-square over 256 values; beyond 377 with a probability of one in a million, were the seed not fixed.
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

/// T33: one share of each of 4 000 dealings of the same secret excludes no value of any byte of it. A dealer that never
/// draws zero gives the secret away: it is the one value that the share never has.
#[test]
fn re_sharing_for_ever_excludes_nothing() {
    let secret = secret(0x5a);
    let mut rng = coefficients();
    let mut seen = [[false; 256]; 32];
    let mut seen_of_never_zero = [false; 256];
    for _ in 0..4_000 {
        let share = &split(&secret, 2, 3, &mut rng)[0];
        for (seen, byte) in seen.iter_mut().zip(share.expose()) {
            seen[usize::from(*byte)] = true;
        }
        let coefficient = (share.expose()[0] ^ 0x5a).max(1);
        seen_of_never_zero[usize::from(coefficient ^ 0x5a)] = true;
    }
    assert!(seen.iter().all(|seen| seen.iter().filter(|seen| **seen).count() >= 255));
    assert!(seen.iter().all(|seen| seen[0x5a]), "the secret itself is a possible share");
    assert!(!seen_of_never_zero[0x5a]);
    assert_eq!(seen_of_never_zero.iter().filter(|seen| !**seen).count(), 1);
}
