//! Shamir's secret sharing over GF(256), written a second time from the textbook.
//!
//! The product's own arithmetic is vsss-rs; that the thief arrives at the same key by other code checks both. Slow, and
//! not in constant time.

use quorate_shares::secret::Secret;

/// The secret at 0 of the polynomials through these shares (Lagrange). Numbers must be distinct and not zero.
pub(super) fn combine(shares: &[(u8, &Secret<32>)]) -> Secret<32> {
    let mut secret = Secret::zero();
    for (x, share) in shares {
        let others = shares.iter().map(|(other, _)| *other).filter(|other| other != x);
        let weight = others.fold(1, |weight, other| multiply(weight, divide(other, other ^ x)));
        for (sum, byte) in secret.expose_mut().iter_mut().zip(share.expose()) {
            *sum ^= multiply(weight, *byte);
        }
    }
    secret
}

/// Product modulo x^8 + x^4 + x^3 + x + 1, the polynomial of AES (FIPS 197, 4.2).
fn multiply(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    while b != 0 {
        if b & 1 == 1 {
            product ^= a;
        }
        let carry = a & 0x80 != 0;
        a <<= 1;
        if carry {
            a ^= 0x1b;
        }
        b >>= 1;
    }
    product
}

/// a / b; b^254 is the inverse of b, since the multiplicative group has 255 elements.
fn divide(a: u8, b: u8) -> u8 {
    (0..254).fold(a, |quotient, _| multiply(quotient, b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_is_that_of_aes() {
        assert_eq!(multiply(0x57, 0x83), 0xc1, "the example of FIPS 197, 4.2");
        assert!((1..=255).all(|b| multiply(divide(1, b), b) == 1));
    }

    #[test]
    fn two_points_of_a_line_give_its_secret() {
        let share = |x: u8| {
            let mut share = Secret::zero();
            (0u8..).zip(share.expose_mut()).for_each(|(at, byte)| *byte = (at + 7) ^ multiply(at + 90, x));
            share
        };
        let (one, three) = (share(1), share(3));
        let secret = combine(&[(1, &one), (3, &three)]);
        assert!((0u8..).zip(secret.expose()).all(|(at, byte)| *byte == at + 7));
        assert!(!combine(&[(1, &one)]).same_as(&secret), "one point gives something else");
    }
}
