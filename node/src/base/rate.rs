//! Rate limits: how much one peer may ask for per second. Beyond the limit the answer is `busy`, and the peer asks again later.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use quorate_shares::ids::NodeId;

use crate::base::clock::boot_ms;

/// LockOpen requests of one peer per second. A node that boots asks a few times. Even a crash loop stays below this.
const LOCK_OPEN: usize = 50;
/// Shares given to one peer per second. A restarted node that loads every hot key again stays below this.
const SHARES: usize = 20_000;

/// How often in a second this member looks for an unknown invitation, for all strangers together. Another member may have made it a
/// moment ago.
const LOOKS_FOR_INVITATIONS: usize = 2;
/// All strangers share one bucket.
pub const STRANGERS: NodeId = NodeId(0);

pub struct Rates {
    pub lock_open: Rate,
    pub looks_for_invitations: Rate,
    /// Alarms about a peer that asks from a foreign address.
    pub foreign_address: Rate,
    /// Shares of key versions.
    pub shares: Rate,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            lock_open: Rate::per_second(LOCK_OPEN),
            looks_for_invitations: Rate::per_second(LOOKS_FOR_INVITATIONS),
            foreign_address: Rate::per_second(1),
            shares: Rate::per_second(SHARES),
        }
    }
}

/// A token bucket for each peer. It is full at first, is refilled evenly, and holds the amount of one second at most.
pub struct Rate {
    per_second: usize,
    buckets: Mutex<BTreeMap<NodeId, Bucket>>,
}

struct Bucket {
    left: usize,
    filled_ms: u64,
}

impl Rate {
    pub fn per_second(per_second: usize) -> Self {
        Self { per_second, buckets: Mutex::default() }
    }

    /// Takes `amount` out of the bucket of `peer`. Returns `false`, and takes nothing, if there is less in it.
    pub fn allows(&self, peer: NodeId, amount: usize) -> bool {
        self.allows_at(peer, amount, boot_ms())
    }

    fn allows_at(&self, peer: NodeId, amount: usize, now_ms: u64) -> bool {
        let mut buckets = self.buckets.lock();
        let bucket = buckets.entry(peer).or_insert(Bucket { left: self.per_second, filled_ms: now_ms });
        let elapsed_ms = now_ms.saturating_sub(bucket.filled_ms).min(1_000) as usize;
        let refill = elapsed_ms * self.per_second / 1_000;
        if refill > 0 {
            bucket.left = (bucket.left + refill).min(self.per_second);
            bucket.filled_ms = now_ms;
        }
        let enough = bucket.left >= amount;
        if enough {
            bucket.left -= amount;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_asks_too_much_waits_and_the_others_do_not() {
        let rate = Rate::per_second(10);
        let (greedy, modest) = (NodeId(1), NodeId(2));
        assert!((0..10).all(|_| rate.allows_at(greedy, 1, 1_000)));
        assert!(!rate.allows_at(greedy, 1, 1_000) && rate.allows_at(modest, 1, 1_000));
        assert!(rate.allows_at(greedy, 1, 1_100) && !rate.allows_at(greedy, 1, 1_100));
        assert!(
            rate.allows_at(greedy, 10, 60_000) && !rate.allows_at(greedy, 1, 60_000),
            "never more than the amount of one second"
        );
    }
}
