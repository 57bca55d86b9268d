//! A share on its way from its holder to a node that loads the key.
//!
//! It travels inside a TLS session. It is also sealed under a key that only the two ends of this one connection can
//! export. So a frame that is logged, dumped or replayed on another connection is useless.

use crate::primitive::{self, Sealed32};
use crate::secret::Secret;

/// The place of a message on its connection. No two messages of a connection have the same place, so it serves as the
/// nonce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// 0 if the side that opened the TLS connection sends the message, 1 if the other side does.
    pub direction: u32,
    /// The number of the message. The sender counts from 0 and never resets it.
    pub counter: u64,
}

impl Place {
    fn nonce(self) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&self.direction.to_be_bytes());
        nonce[4..].copy_from_slice(&self.counter.to_be_bytes());
        nonce
    }
}

/// Seals `share` as the answer to `request`, under the key that the connection exports.
pub fn seal(exported: &Secret<32>, place: Place, request: &[u8], share: &Secret<32>) -> [u8; 48] {
    primitive::seal_secret(exported, place.nonce(), &primitive::hash(&[request]), share)
}

/// Opens a share that [`seal`] sealed. `None` if it belongs to another connection, place or request.
pub fn open(exported: &Secret<32>, place: Place, request: &[u8], sealed: &[u8]) -> Option<Secret<32>> {
    let sealed: &Sealed32 = sealed.try_into().ok()?;
    primitive::open_secret(exported, place.nonce(), &primitive::hash(&[request]), sealed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_opens_only_on_its_connection_in_its_place_for_its_request() {
        let (here, elsewhere) = (Secret::take(&mut [1; 32]), Secret::take(&mut [2; 32]));
        let share = Secret::take(&mut [7; 32]);
        let place = Place { direction: 0, counter: 3 };
        let sealed = seal(&here, place, b"request", &share);
        assert!(open(&here, place, b"request", &sealed).is_some_and(|opened| opened.same_as(&share)));
        assert!(open(&elsewhere, place, b"request", &sealed).is_none(), "replayed on another connection");
        assert!(open(&here, Place { direction: 1, counter: 3 }, b"request", &sealed).is_none());
        assert!(open(&here, Place { direction: 0, counter: 4 }, b"request", &sealed).is_none());
        assert!(open(&here, place, b"another", &sealed).is_none());
        assert!(open(&here, place, b"request", &sealed[..47]).is_none());
    }
}
