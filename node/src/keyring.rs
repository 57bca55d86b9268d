//! Keys in memory: only purpose-derived roots, bounded in number, age and idleness, and gone when the lease is lost.
//!
//! A warm key is one read of a map. A cold key is loaded once however many requests wait for it: they share one flight,
//! which goes on when a waiting request gives up. A wipe also condemns the flights under way, so that a load that began
//! before the lease was lost cannot put a key back after it.
//!
//! [`Roots`] holds these rules and is told the time; [`Keyring`] adds the flights and the clock.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::future::{BoxFuture, FutureExt, Shared};
use parking_lot::{Mutex, RwLock};
use quorate_shares::ids::{KeyUid, KeyVersion};
use quorate_shares::master::EncryptionRoot as Root;

use crate::clock::boot_ms;
use crate::gather::LoadError;

/// Roots kept at most; beyond, the longest unused one makes room.
pub const ROOTS_MAX: usize = 10_000;

/// One version of one key.
pub type Slot = (KeyUid, KeyVersion);

type Flight = Shared<BoxFuture<'static, Result<Arc<Root>, LoadError>>>;

struct Entry {
    root: Arc<Root>,
    made_ms: u64,
    used_ms: AtomicU64,
}

/// Roots in memory, and how long each may stay there. Times are those of one clock ([`boot_ms`]).
pub struct Roots {
    idle_ms: u64,
    age_ms: u64,
    roots: RwLock<HashMap<Slot, Entry>>,
    wipes: AtomicU64,
}

/// How often everything had been wiped when a load began: what was loaded is kept only if that is still so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wipes(u64);

impl Roots {
    /// None yet. A root is dropped when it was not used for `idle_ms`, and after `age_ms` in any case.
    pub fn new(idle_ms: u64, age_ms: u64) -> Self {
        Self { idle_ms, age_ms, roots: RwLock::default(), wipes: AtomicU64::new(0) }
    }

    /// The root, if it is there and not too old.
    pub fn warm(&self, slot: Slot, now_ms: u64) -> Option<Arc<Root>> {
        let roots = self.roots.read();
        let entry = roots.get(&slot).filter(|entry| self.is_fresh(entry, now_ms))?;
        entry.used_ms.store(now_ms, Ordering::Relaxed);
        Some(Arc::clone(&entry.root))
    }

    /// To be asked when a load begins.
    pub fn wipes(&self) -> Wipes {
        Wipes(self.wipes.load(Ordering::Acquire))
    }

    /// Keeps what a load brought, unless everything was wiped since it began.
    pub fn keep(&self, slot: Slot, root: &Arc<Root>, began: Wipes, now_ms: u64) {
        let mut roots = self.roots.write();
        // Under the write lock, so a wipe is either seen here or clears what is inserted here.
        if self.wipes() != began {
            return;
        }
        if roots.len() >= ROOTS_MAX {
            let idlest =
                roots.iter().min_by_key(|(_, entry)| entry.used_ms.load(Ordering::Relaxed)).map(|(&slot, _)| slot);
            idlest.and_then(|slot| roots.remove(&slot));
        }
        roots.insert(slot, Entry { root: Arc::clone(root), made_ms: now_ms, used_ms: AtomicU64::new(now_ms) });
    }

    /// Forgets every root, and condemns the loads under way.
    pub fn wipe(&self) {
        self.wipes.fetch_add(1, Ordering::AcqRel);
        self.roots.write().clear();
    }

    /// Forgets what is idle or old.
    pub fn sweep(&self, now_ms: u64) {
        self.roots.write().retain(|_, entry| self.is_fresh(entry, now_ms));
    }

    /// Roots in memory now.
    pub fn len(&self) -> usize {
        self.roots.read().len()
    }

    /// Whether nothing is in memory.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn is_fresh(&self, entry: &Entry, now_ms: u64) -> bool {
        now_ms.saturating_sub(entry.made_ms) < self.age_ms
            && now_ms.saturating_sub(entry.used_ms.load(Ordering::Relaxed)) < self.idle_ms
    }
}

/// The cache of roots.
pub struct Keyring {
    roots: Roots,
    flights: Mutex<HashMap<Slot, Flight>>,
}

impl Keyring {
    /// An empty keyring that drops roots unused for `idle_ms` and any root after `age_ms`.
    pub fn new(idle_ms: u64, age_ms: u64) -> Arc<Self> {
        Arc::new(Self { roots: Roots::new(idle_ms, age_ms), flights: Mutex::default() })
    }

    /// The root, if it is in memory and not too old.
    pub fn warm(&self, slot: Slot) -> Option<Arc<Root>> {
        self.roots.warm(slot, boot_ms())
    }

    /// The root, from memory or by `load`, which runs once for all that wait.
    ///
    /// # Errors
    /// What the load answered. An error is not kept: the next request tries again.
    pub async fn root(
        self: &Arc<Self>,
        slot: Slot,
        load: impl FnOnce() -> BoxFuture<'static, Result<Root, LoadError>>,
    ) -> Result<Arc<Root>, LoadError> {
        if let Some(root) = self.warm(slot) {
            return Ok(root);
        }
        let flight = self.flights.lock().entry(slot).or_insert_with(|| self.fly(slot, load())).clone();
        flight.await
    }

    /// Forgets every root, and condemns the loads under way.
    pub fn wipe(&self) {
        self.roots.wipe();
    }

    /// Forgets what is idle or old. Called every few seconds.
    pub fn sweep(&self) {
        self.roots.sweep(boot_ms());
    }

    /// Roots in memory now.
    pub fn len(&self) -> usize {
        self.roots.len()
    }

    /// Whether nothing is in memory.
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// Starts a load on its own task, so that it outlives the request that asked for it.
    fn fly(self: &Arc<Self>, slot: Slot, load: BoxFuture<'static, Result<Root, LoadError>>) -> Flight {
        let keyring = Arc::clone(self);
        let wipes = self.roots.wipes();
        let task = tokio::spawn(async move {
            let loaded = load.await.map(Arc::new);
            keyring.land(slot, &loaded, wipes);
            loaded
        });
        let keyring = Arc::clone(self);
        let joined = task.map(move |joined| {
            joined.unwrap_or_else(|_| {
                keyring.flights.lock().remove(&slot);
                Err(LoadError::Interrupted)
            })
        });
        joined.boxed().shared()
    }

    fn land(&self, slot: Slot, loaded: &Result<Arc<Root>, LoadError>, began: Wipes) {
        if let Ok(root) = loaded {
            self.roots.keep(slot, root, began, boot_ms());
        }
        self.flights.lock().remove(&slot);
    }
}
