//! A share on its way from its holder to a node that loads the key.
//!
//! It travels inside a TLS session, and is sealed once more under a key that only the two ends of that very connection can
//! export, so a frame that is logged, dumped or replayed on another connection is worth nothing.

use crate::primitive::{self, Sealed32};
use crate::secret::Secret;

/// Which message of which side: no two are the same in the life of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// 0 for what is sent by the side that opened the TLS connection, 1 for the side that accepted it.
    pub direction: u32,
    /// Counted by the sender from 0, never reset.
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

/// Opens what [`seal`] made; `None` on another connection, in another place, or for another request.
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
