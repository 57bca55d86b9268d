//! Keys in memory. Only purpose-derived roots are kept. Their number, age and idle time are bounded, and all are wiped after
//! the lease is lost.
//!
//! A warm key costs one look-up in a map that knows the order of use (the `lru` crate). A cold key is loaded once, however many
//! requests wait for it: they share one load, called a flight. The flight goes on when a waiting request gives up. A wipe also
//! applies to flights under way. So a load that began before the lease was lost cannot put a key back after the wipe.
//!
//! [`Roots`] holds these rules and gets the time as an argument. [`Keyring`] adds the flights and the clock.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt, Shared};
use lru::LruCache;
use parking_lot::Mutex;
use quorate_client::conn::answering_async;
use quorate_shares::error::QuorumError;
use quorate_shares::ids::{KeyVersionId, NodeId};
use quorate_shares::master::EncryptionRoot as Root;

use crate::base::clock::boot_ms;
use crate::memory::holder::HoldError;

/// Roots kept at most. A further root replaces the least recently used one.
pub const ROOTS_MAX: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");

/// Why a key cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LoadError {
    /// Too few holders answered with a valid share.
    #[error("have {have} of {need} shares, waiting for nodes {}", list(.missing))]
    TooFew {
        have: usize,
        need: usize,
        /// Holders that gave no valid share.
        missing: Vec<NodeId>,
    },
    #[error("no epoch is active yet")]
    NoEpoch,
    /// This node cannot read from its own replica what is needed to check shares.
    #[error(transparent)]
    Hold(#[from] HoldError),
    /// The shares match their commitments, but the key is wrong: it was dealt wrongly.
    #[error(transparent)]
    Quorum(#[from] QuorumError),
    #[error("the load was interrupted")]
    Interrupted,
}

fn list(nodes: &[NodeId]) -> String {
    nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

type Flight = Shared<BoxFuture<'static, Result<Arc<Root>, LoadError>>>;

struct Entry {
    root: Arc<Root>,
    made_ms: u64,
    used_ms: u64,
}

/// Roots in memory, and how long each may stay there. Times are those of one clock ([`boot_ms`]).
///
/// A root that is replaced or wiped is dropped at once. An idle or old root is dropped at the next [`Roots::sweep`]. [`Root`]
/// overwrites itself when its last user drops it.
pub struct Roots {
    idle_ms: u64,
    age_ms: u64,
    kept: Mutex<Kept>,
}

struct Kept {
    roots: LruCache<KeyVersionId, Entry>,
    wipes: Wipes,
}

/// The number of wipes so far. A loaded root is kept only if no wipe happened since its load began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wipes(u64);

impl Roots {
    /// No roots yet. A root is dropped if it was not used for `idle_ms`, and after `age_ms` in any case.
    pub fn new(idle_ms: u64, age_ms: u64) -> Self {
        let kept = Kept { roots: LruCache::sparse(ROOTS_MAX), wipes: Wipes(0) };
        Self { idle_ms, age_ms, kept: Mutex::new(kept) }
    }

    /// The root, if it is in memory and not idle or old.
    pub fn warm(&self, key_version: KeyVersionId, now_ms: u64) -> Option<Arc<Root>> {
        let mut kept = self.kept.lock();
        let entry = kept.roots.peek_mut(&key_version).filter(|entry| self.is_fresh(entry, now_ms))?;
        entry.used_ms = now_ms;
        let root = Arc::clone(&entry.root);
        // Only a fresh root counts as used. Otherwise an old root could push out a fresh one.
        kept.roots.promote(&key_version);
        Some(root)
    }

    /// The number of wipes so far, for [`Roots::keep`]. To be read when a load begins.
    pub fn wipes(&self) -> Wipes {
        self.kept.lock().wipes
    }

    /// Keeps a loaded root, unless there was a wipe since its load began.
    pub fn keep(&self, key_version: KeyVersionId, root: &Arc<Root>, began: Wipes, now_ms: u64) {
        let mut kept = self.kept.lock();
        if kept.wipes == began {
            kept.roots.put(key_version, Entry { root: Arc::clone(root), made_ms: now_ms, used_ms: now_ms });
        }
    }

    /// Drops every root. Roots of loads that are under way will not be kept.
    pub fn wipe(&self) {
        let mut kept = self.kept.lock();
        kept.wipes.0 += 1;
        kept.roots.clear();
    }

    /// Drops idle and old roots.
    pub fn sweep(&self, now_ms: u64) {
        self.kept.lock().roots.retain(|_, entry| self.is_fresh(entry, now_ms));
    }

    /// Roots in memory now.
    pub fn len(&self) -> usize {
        self.kept.lock().roots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn is_fresh(&self, entry: &Entry, now_ms: u64) -> bool {
        now_ms.saturating_sub(entry.made_ms) < self.age_ms && now_ms.saturating_sub(entry.used_ms) < self.idle_ms
    }
}

/// The cache of roots.
pub struct Keyring {
    roots: Roots,
    flights: Mutex<HashMap<KeyVersionId, Flight>>,
}

impl Keyring {
    /// An empty keyring that drops roots unused for `idle_ms` and any root after `age_ms`.
    pub fn new(idle_ms: u64, age_ms: u64) -> Arc<Self> {
        Arc::new(Self { roots: Roots::new(idle_ms, age_ms), flights: Mutex::default() })
    }

    /// [`Roots::warm`] at the present time.
    pub fn warm(&self, key_version: KeyVersionId) -> Option<Arc<Root>> {
        self.roots.warm(key_version, boot_ms())
    }

    /// The root, from memory or by `load`. All requests that wait for one root share one `load`.
    ///
    /// # Errors
    /// The error of the load. It is not kept: the next request tries again.
    pub async fn root(
        self: &Arc<Self>,
        key_version: KeyVersionId,
        load: impl FnOnce() -> BoxFuture<'static, Result<Root, LoadError>>,
    ) -> Result<Arc<Root>, LoadError> {
        if let Some(root) = self.warm(key_version) {
            return Ok(root);
        }
        let flight =
            self.flights.lock().entry(key_version).or_insert_with(|| self.start_flight(key_version, load())).clone();
        flight.await
    }

    /// [`Roots::wipe`].
    pub fn wipe(&self) {
        self.roots.wipe();
    }

    /// Drops idle and old roots. Called every few seconds.
    pub fn sweep(&self) {
        self.roots.sweep(boot_ms());
    }

    /// Roots in memory now.
    pub fn len(&self) -> usize {
        self.roots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// Starts a load on its own task. So it goes on if the request that started it gives up.
    fn start_flight(
        self: &Arc<Self>,
        key_version: KeyVersionId,
        load: BoxFuture<'static, Result<Root, LoadError>>,
    ) -> Flight {
        let keyring = Arc::clone(self);
        let wipes = self.roots.wipes();
        let task = tokio::spawn(answering_async(async move {
            let loaded = load.await.map(Arc::new);
            keyring.end_flight(key_version, &loaded, wipes);
            loaded
        }));
        let keyring = Arc::clone(self);
        let joined = task.map(move |joined| {
            joined.unwrap_or_else(|_| {
                keyring.flights.lock().remove(&key_version);
                Err(LoadError::Interrupted)
            })
        });
        joined.boxed().shared()
    }

    fn end_flight(&self, key_version: KeyVersionId, loaded: &Result<Arc<Root>, LoadError>, began: Wipes) {
        if let Ok(root) = loaded {
            self.roots.keep(key_version, root, began, boot_ms());
        }
        self.flights.lock().remove(&key_version);
    }
}

#[cfg(test)]
mod tests {
    use quorate_shares::ids::{ClusterId, KeyUid, KeyVersion};
    use quorate_shares::master::{KeyIdentity, MasterKey};

    use super::*;
    use crate::base::random;

    const VERSION: KeyVersion = KeyVersion(1);

    fn key_version(number: usize) -> KeyVersionId {
        let mut uid = KeyUid([0; 16]);
        uid.0[..8].copy_from_slice(&number.to_be_bytes());
        (uid, VERSION)
    }

    fn root() -> Arc<Root> {
        let identity = KeyIdentity { cluster: ClusterId([1; 16]), uid: KeyUid([2; 16]), version: VERSION };
        Arc::new(MasterKey::random(&mut random::system()).encryption_root(&identity))
    }

    /// Mutated: with an unbounded map this fails.
    #[test]
    fn the_least_recently_used_root_is_replaced_and_dropped_at_once() {
        let roots = Roots::new(u64::MAX, u64::MAX);
        let (used, unused, other) = (root(), root(), root());
        roots.keep(key_version(0), &used, roots.wipes(), 0);
        roots.keep(key_version(1), &unused, roots.wipes(), 0);
        let watched = Arc::downgrade(&unused);
        drop(unused);
        for number in 2..ROOTS_MAX.get() {
            roots.keep(key_version(number), &other, roots.wipes(), 0);
        }
        assert!(watched.upgrade().is_some() && roots.len() == ROOTS_MAX.get(), "the control: there is room for all");

        assert!(roots.warm(key_version(0), 1).is_some());
        roots.keep(key_version(ROOTS_MAX.get()), &other, roots.wipes(), 2);
        assert_eq!(roots.len(), ROOTS_MAX.get());
        assert!(roots.warm(key_version(0), 3).is_some(), "it was used, although it is the oldest");
        assert!(roots.warm(key_version(1), 3).is_none(), "it was replaced");
        assert!(watched.upgrade().is_none(), "its last user is gone, so it is dropped");
    }

    /// Mutated: if `is_fresh` looks at only one of the two times, this fails.
    #[test]
    fn what_is_idle_or_old_is_neither_used_nor_kept() {
        let roots = Roots::new(10, 25);
        roots.keep(key_version(0), &root(), roots.wipes(), 0);
        assert!(roots.warm(key_version(0), 9).is_some());
        assert!(roots.warm(key_version(0), 18).is_some(), "used 9 ms ago");
        assert!(roots.warm(key_version(0), 24).is_some());
        assert!(roots.warm(key_version(0), 25).is_none(), "too old, although it is in use");
        roots.sweep(25);
        assert!(roots.is_empty());

        roots.keep(key_version(1), &root(), roots.wipes(), 100);
        assert!(roots.warm(key_version(1), 110).is_none(), "not used for 10 ms");
        roots.sweep(109);
        assert_eq!(roots.len(), 1);
        roots.sweep(110);
        assert!(roots.is_empty());
    }

    /// Mutated: if `keep` does not look at `began`, this fails.
    #[test]
    fn a_load_that_began_before_a_wipe_is_not_kept() {
        let roots = Roots::new(u64::MAX, u64::MAX);
        let (kept, began) = (root(), roots.wipes());
        roots.keep(key_version(0), &kept, began, 0);
        let watched = Arc::downgrade(&kept);
        drop(kept);
        roots.wipe();
        assert!(roots.is_empty() && watched.upgrade().is_none(), "its last user is gone, so it is dropped");
        roots.keep(key_version(0), &root(), began, 0);
        assert!(roots.is_empty());
        roots.keep(key_version(0), &root(), roots.wipes(), 0);
        assert_eq!(roots.len(), 1);
    }
}
