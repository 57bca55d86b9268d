//! Who this node is: its boot identity, its cluster, its id, and the content of its bundle.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;
use quorate_client::identity::Identity;
use quorate_raft::StorageKeys;
use quorate_shares::ids::{ClusterId, NodeId, ShareKeyGeneration};
use quorate_shares::lock::Bundle;
use quorate_shares::secret::Secret;

use crate::memory::holder::Holder;
use crate::vault;

/// The opened bundle.
pub struct OwnKeys {
    pub op: Identity,
    /// The bundle, to be locked again when the lock is renewed.
    pub bundle: Bundle,
}

fn share_keys(bundle: &Bundle) -> Vec<(ShareKeyGeneration, Secret<32>)> {
    bundle.share_keys.iter().map(|key| (key.generation, key.seed.duplicate())).collect()
}

/// The identities of this node. The boot identity and the cluster belong to one vault, and do not change.
pub struct OwnIdentity {
    boot_seed: Secret<32>,
    boot: Option<Identity>,
    cluster: Option<ClusterId>,
    id: AtomicU64,
    own: RwLock<Option<Arc<OwnKeys>>>,
    holder: OnceLock<Arc<Holder>>,
}

impl OwnIdentity {
    /// The identity of a node without a vault. The next vault is made with this seed. It is drawn before the first connection,
    /// because the next process must be able to end that connection.
    pub fn without_vault(boot_seed: Secret<32>) -> Self {
        Self {
            boot_seed,
            boot: None,
            cluster: None,
            id: AtomicU64::new(0),
            own: RwLock::default(),
            holder: OnceLock::new(),
        }
    }

    /// The identity of a vault.
    pub fn of(identity: &vault::VaultIdentity) -> Self {
        Self {
            boot: Some(Identity::from_seed(&identity.boot_seed)),
            cluster: Some(identity.cluster),
            id: AtomicU64::new(identity.node.map_or(0, |node| node.0)),
            ..Self::without_vault(identity.boot_seed.duplicate())
        }
    }

    /// The seed of the boot identity. Without a vault it is the seed for the next one.
    pub fn boot_seed(&self) -> Secret<32> {
        self.boot_seed.duplicate()
    }

    /// The boot identity, once there is a vault.
    pub fn boot(&self) -> Option<Identity> {
        self.boot.clone()
    }

    /// The cluster; all zeros before there is a vault. Before that it is not used.
    pub fn cluster(&self) -> ClusterId {
        self.cluster.unwrap_or(ClusterId([0; 16]))
    }

    /// This node's id; 0 until it was given one.
    pub fn id(&self) -> NodeId {
        NodeId(self.id.load(Ordering::Acquire))
    }

    /// Notes the id that this node was given.
    pub fn set_id(&self, node: NodeId) {
        self.id.store(node.0, Ordering::Release);
    }

    /// The op identity, once the bundle is open.
    pub fn op(&self) -> Option<Identity> {
        self.own_keys().map(|own| own.op.clone())
    }

    /// The opened bundle, once it is open.
    pub fn own_keys(&self) -> Option<Arc<OwnKeys>> {
        self.own.read().clone()
    }

    /// The storage keys of the bundle.
    ///
    /// # Errors
    /// A reason in words, if the bundle is not open or holds no storage key.
    pub fn storage_keys(&self) -> Result<StorageKeys, String> {
        let own = self.own_keys().ok_or("the bundle is not open")?;
        let mut keys = own.bundle.storage_keys.iter().rev();
        let newest = keys.next().ok_or("the bundle holds no storage key")?;
        let newest = StorageKeys::new(newest.number, &newest.key);
        Ok(keys.fold(newest, |all, older| all.with_older(older.number, &older.key)))
    }

    /// Takes an opened bundle into use. It comes from the lock that was opened, or its own lock is being made durable.
    pub fn unlock(&self, bundle: Bundle) {
        let op = Identity::from_seed(&bundle.op_seed);
        let keys = share_keys(&bundle);
        *self.own.write() = Some(Arc::new(OwnKeys { op, bundle }));
        if let Some(holder) = self.holder.get() {
            holder.set_keys(keys);
        }
    }

    /// Takes over the opened bundle of another enrolment.
    pub(super) fn take_over(&self, own: Option<Arc<OwnKeys>>) {
        *self.own.write() = own;
    }

    /// Wipes the opened bundle for good: a revoked node does not need its op key, its storage keys and its share keys any more.
    /// Work that is under way drops them when it ends.
    pub(super) fn forget(&self) {
        *self.own.write() = None;
        if let Some(holder) = self.holder.get() {
            holder.set_keys(Vec::new());
        }
    }

    /// Wipes the opened batches.
    pub(super) fn forget_batches(&self) {
        if let Some(holder) = self.holder.get() {
            holder.forget();
        }
    }

    /// This node as a holder, once it has an id and an open bundle.
    pub fn holder(&self) -> Option<Arc<Holder>> {
        if self.holder.get().is_none() && self.id() != NodeId(0) {
            let own = self.own_keys()?;
            let _ = self.holder.set(Arc::new(Holder::new(self.cluster(), self.id(), share_keys(&own.bundle))));
        }
        self.holder.get().cloned()
    }
}
