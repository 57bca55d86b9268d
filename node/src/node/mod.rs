//! What the parts of a node share: its identities, its vault, its sessions, its replica, and the phase it is in.
//!
//! Nothing here decides anything; the modules that do take an `Arc<Node>`. Locks are held for a field access, never across
//! an await; only the vault's is held while its file is written, by a thread that may wait for the disk.

pub mod revocation;
pub mod roster;
pub mod serving;
pub mod sessions;
#[cfg(test)]
pub(crate) mod testing;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};
use quorate_client::conn::Handler;
use quorate_client::conn::close;
use quorate_client::identity::{self, Identity, PublicKey};
use quorate_client::wire::{Alarm, Operation};
use quorate_raft::command::{Change, Command};
use quorate_raft::{Flushed, Rebuild, Replica, StorageKeys};
use quorate_shares::ids::{ClusterId, NodeId, NodeName, ShareKeyGeneration};
use quorate_shares::lock::{Bundle, PinPlace};
use quorate_shares::secret::Secret;
use tokio::sync::watch;
use tracing::{error, info, warn};
use zeroize::Zeroizing;

use crate::base::background::Background;
use crate::base::clock::{Stamps, boot_ms, wall_ms};
use crate::base::config::Config;
use crate::base::phase::{self, Phase};
use crate::base::random;
use crate::base::rate::Rates;
use crate::memory::absences::Absences;
use crate::memory::alarms::Alarms;
use crate::memory::checked::Checked;
use crate::memory::dealer::OpenDealer;
use crate::memory::holder::Holder;
use crate::memory::keyring::Keyring;
use crate::memory::lease::{Lease, Withdrawal};
use crate::messages::peer::{Hello, LockState, Refusal, Report};
use crate::node::revocation::Revocation;
use crate::node::roster::Gone;
use crate::node::serving::{NoLease, offered};
use crate::node::sessions::Sessions;
use crate::vault::disk::DataDir;
use crate::vault::lock_keys::OldCopies;
use crate::vault::{Roster, Vault, VaultError, VaultFile};

/// What the bundle opened to.
pub struct Own {
    /// The op identity.
    pub op: Identity,
    /// The bundle itself, to be locked again when the lock is renewed.
    pub bundle: Bundle,
}

fn share_keys(bundle: &Bundle) -> Vec<(ShareKeyGeneration, Secret<32>)> {
    bundle.share_keys.iter().map(|key| (key.generation, key.seed.duplicate())).collect()
}

/// How far unlocking is, for the status.
#[derive(Debug, Clone, Default)]
pub struct Unlocking {
    /// Pieces that peers gave.
    pub have: u8,
    /// Pieces needed.
    pub need: u8,
    /// Peers that gave none yet, and what they said, if anything.
    pub waiting_for: BTreeMap<NodeId, String>,
}

/// A node of the cluster.
pub struct Node {
    /// The configuration.
    pub config: Config,
    /// The data directory, owned by this process.
    pub dir: DataDir,
    /// The one QUIC endpoint, for dialling and for serving.
    pub endpoint: quinn::Endpoint,
    /// See [`Node::boot_seed`].
    boot_seed: Mutex<Secret<32>>,
    /// Drawn at each start: two of them at once are two processes.
    pub boot_nonce: [u8; 32],
    /// Sessions with peers.
    pub sessions: Sessions,
    /// How much each peer may ask for.
    pub rates: Rates,
    /// The right to serve.
    pub lease: Lease,
    /// Why there is no lease.
    pub lease_trouble: Mutex<Option<NoLease>>,
    /// When the last shared catch-up was sent ([`crate::base::clock::boot_ms`]), and how it ended.
    pub catch_up: tokio::sync::Mutex<(u64, Result<(), NoLease>)>,
    /// Where work is done that may wait.
    pub background: Background,
    /// Keys in memory.
    pub keyring: Arc<Keyring>,
    /// The batches that keys are dealt in, while this node leads.
    pub dealing: Mutex<Option<OpenDealer>>,
    /// Held by whoever opens the next batch.
    pub opening: tokio::sync::Mutex<()>,
    /// How far unlocking is.
    pub unlocking: Mutex<Unlocking>,
    /// How far founding is, in words and names.
    pub founding: watch::Sender<Founding>,
    /// The operation that this node leads, where it stands, and whom it waits for.
    pub operation: Mutex<Option<Operation>>,
    /// The time of what this node proposes while it leads.
    pub stamps: Mutex<Stamps>,
    /// Since when those that are revoked get no lease, as this node sees it while it leads.
    pub withdrawal: Mutex<Withdrawal>,
    /// The records of the PENDING epoch that this node has checked.
    pub checked: tokio::sync::Mutex<Checked>,
    /// How long each peer has been away.
    pub absences: Mutex<Absences>,
    /// Rung when the vault was written in a way that the replicated state should know.
    pub to_report: tokio::sync::Notify,
    /// The lock that each peer has last acknowledged to know of.
    pub commits: Mutex<BTreeMap<NodeId, LockState>>,
    /// What has become of the locks before this one.
    pub old_copies: Mutex<OldCopies>,
    /// Held while a vault is made.
    pub adopting: Mutex<()>,
    /// Held while this node is sealed or unsealed.
    pub sealing: tokio::sync::Mutex<()>,
    /// The founding attempt that this process made its lock for.
    pub locked_attempt: Mutex<Option<u32>>,
    /// Founders whose locks of the named attempt are durable, as the first founder hears of them.
    pub founding_locked: Mutex<(u32, BTreeSet<NodeId>)>,
    phase: watch::Sender<Phase>,
    vault: Mutex<Option<VaultFile>>,
    roster: RwLock<Arc<Roster>>,
    boot: RwLock<Option<Identity>>,
    cluster: RwLock<Option<ClusterId>>,
    id: AtomicU64,
    own: RwLock<Option<Arc<Own>>>,
    holder: OnceLock<Arc<Holder>>,
    replica: OnceLock<Replica>,
    rebuild: RwLock<Option<Arc<Rebuild>>>,
    /// What an operator should look at.
    pub alarms: Alarms,
    /// What each peer last reported, and when ([`crate::base::clock::boot_ms`]).
    pub last_reports: Mutex<BTreeMap<NodeId, (Report, u64)>>,
    /// Peers that a task keeps a session with.
    pub keepers: Mutex<BTreeSet<NodeId>>,
    /// A roster that a peer showed, and that is newer than this node's own log; never in the vault.
    newer: Mutex<Option<Roster>>,
    /// Op keys of those that were members.
    gone: Mutex<BTreeMap<[u8; 32], NodeId>>,
    /// What the log held when it was opened; from then on the replica tells.
    pub stored: Mutex<Option<Flushed>>,
    /// Who told this node that it was revoked, and whether that is enough.
    pub revocation: Revocation,
    fatal: watch::Sender<Option<Arc<str>>>,
    /// What answers a peer that this node dials.
    pub peer_handler: PeerHandler,
}

/// Makes the handler of a session that this node dialled: it hears requests of the peer once the flag is set. The handlers
/// stand above the node, so the node is told of this one when it is made.
pub type PeerHandler = fn(&Arc<Node>, NodeId, &Arc<AtomicBool>) -> Arc<dyn Handler>;

/// How far founding is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Founding {
    /// The step under way; empty when there is none.
    pub step: String,
    /// Whom it waits for.
    pub waiting_for: Vec<String>,
    /// Why it ended without a cluster.
    pub refused: Option<String>,
}

impl Node {
    /// A node that has a data directory and an endpoint, and nothing else yet.
    pub fn new(
        config: Config,
        dir: DataDir,
        endpoint: quinn::Endpoint,
        boot_seed: Secret<32>,
        background: Background,
        peer_handler: PeerHandler,
    ) -> Arc<Self> {
        let keyring = Keyring::new(config.timing.key_idle_ms, config.timing.key_age_ms);
        Arc::new(Self {
            config,
            dir,
            endpoint,
            boot_seed: Mutex::new(boot_seed),
            boot_nonce: random::bytes(),
            sessions: Sessions::default(),
            rates: Rates::default(),
            lease: Lease::default(),
            lease_trouble: Mutex::default(),
            catch_up: tokio::sync::Mutex::new((0, Ok(()))),
            background,
            peer_handler,
            keyring,
            dealing: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            unlocking: Mutex::default(),
            founding: watch::Sender::default(),
            phase: watch::Sender::new(Phase::Uninitialised),
            vault: Mutex::default(),
            roster: RwLock::default(),
            boot: RwLock::default(),
            cluster: RwLock::default(),
            operation: Mutex::default(),
            stamps: Mutex::default(),
            withdrawal: Mutex::default(),
            checked: tokio::sync::Mutex::default(),
            absences: Mutex::default(),
            to_report: tokio::sync::Notify::new(),
            commits: Mutex::default(),
            old_copies: Mutex::default(),
            adopting: Mutex::default(),
            sealing: tokio::sync::Mutex::default(),
            locked_attempt: Mutex::default(),
            founding_locked: Mutex::default(),
            id: AtomicU64::new(0),
            own: RwLock::default(),
            holder: OnceLock::new(),
            replica: OnceLock::new(),
            rebuild: RwLock::default(),
            alarms: Alarms::default(),
            last_reports: Mutex::default(),
            keepers: Mutex::default(),
            newer: Mutex::default(),
            gone: Mutex::default(),
            stored: Mutex::default(),
            revocation: Revocation::default(),
            fatal: watch::Sender::default(),
        })
    }

    // -- identity

    /// Takes an open vault into use: from here on the node has a boot identity.
    pub fn adopt_vault(&self, vault: VaultFile) {
        let current = vault.current();
        *self.boot.write() = Some(Identity::from_seed(&current.identity.boot_seed));
        *self.cluster.write() = Some(current.identity.cluster);
        self.id.store(current.identity.node.map_or(0, |node| node.0), Ordering::Release);
        *self.roster.write() = Arc::new(current.roster.clone());
        self.lease.bar(current.flags.sealed);
        *self.absences.lock() = Absences::remembered(current);
        *self.vault.lock() = Some(vault);
    }

    /// That of the vault or, as long as there is none, of the one that will be made: drawn before the first connection, which
    /// the next process must be able to end.
    pub fn boot_seed(&self) -> Secret<32> {
        self.boot_seed.lock().duplicate()
    }

    /// Takes the vault of a join that was refused away again: nothing was locked in it. The next one gets another identity, since
    /// the cluster may have given this one up, and lets it in no more.
    ///
    /// # Errors
    /// If the file cannot be removed.
    pub fn discard_vault(&self) -> std::io::Result<()> {
        *self.vault.lock() = None;
        *self.boot_seed.lock() = Secret::random(&mut random::system());
        *self.boot.write() = None;
        *self.cluster.write() = None;
        self.set_id(NodeId(0));
        self.set_roster(Roster::default());
        VaultFile::remove(&self.dir)
    }

    /// Whether there is a vault.
    pub fn has_vault(&self) -> bool {
        self.vault.lock().is_some()
    }

    /// The cluster; all zeros before there is a vault, when nobody asks.
    pub fn cluster(&self) -> ClusterId {
        self.cluster.read().unwrap_or(ClusterId([0; 16]))
    }

    /// This node's id; 0 until it was given one.
    pub fn id(&self) -> NodeId {
        NodeId(self.id.load(Ordering::Acquire))
    }

    /// Goes by the cluster that the vault names now: a join with another invitation may change it before anything is locked.
    pub fn set_cluster(&self) {
        *self.cluster.write() = self.with_vault(|vault| vault.identity.cluster);
    }

    /// Notes the id that the first founder gave.
    pub fn set_id(&self, node: NodeId) {
        self.id.store(node.0, Ordering::Release);
    }

    /// The boot identity, once there is a vault.
    pub fn boot_identity(&self) -> Option<Identity> {
        self.boot.read().clone()
    }

    /// The op identity, once the bundle is open.
    pub fn op_identity(&self) -> Option<Identity> {
        self.own().map(|own| own.op.clone())
    }

    /// What the bundle opened to.
    pub fn own(&self) -> Option<Arc<Own>> {
        self.own.read().clone()
    }

    /// The storage keys of the bundle.
    ///
    /// # Errors
    /// In words, if it is not open.
    pub fn storage_keys(&self) -> Result<StorageKeys, String> {
        let own = self.own().ok_or("the bundle is not open")?;
        let mut keys = own.bundle.storage_keys.iter().rev();
        let newest = keys.next().ok_or("the bundle holds no storage key")?;
        let newest = StorageKeys::new(newest.number, &newest.key);
        Ok(keys.fold(newest, |all, older| all.with_older(older.number, &older.key)))
    }

    /// Takes an opened bundle into use: the one that the lock opened to, or one whose lock is becoming durable.
    pub fn unlock(&self, bundle: Bundle) {
        let op = Identity::from_seed(&bundle.op_seed);
        let keys = share_keys(&bundle);
        *self.own.write() = Some(Arc::new(Own { op, bundle }));
        if let Some(holder) = self.holder.get() {
            holder.set_keys(keys);
        }
    }

    /// Wipes what the bundle opened to, for good: a node that was revoked has no use for its op key, its storage keys and its share
    /// keys. Whoever is at work with them drops them when it is done.
    pub fn forget_own(&self) {
        *self.own.write() = None;
        if let Some(holder) = self.holder.get() {
            holder.set_keys(Vec::new());
        }
        // The endpoint has the op key, too.
        self.offer();
    }

    /// This node's share keys at work, once it has an id and an open bundle.
    pub fn holder(&self) -> Option<Arc<Holder>> {
        if self.holder.get().is_none() && self.id() != NodeId(0) {
            let own = self.own()?;
            let _ = self.holder.set(Arc::new(Holder::new(self.cluster(), self.id(), share_keys(&own.bundle))));
        }
        self.holder.get().cloned()
    }

    /// The hello of this process.
    pub fn hello(&self) -> Hello {
        let flushed = self.replica().map(|replica| replica.flushed());
        let flushed = flushed.or_else(|| self.rebuild().map(|rebuild| rebuild.flushed()));
        let flushed = flushed.or_else(|| *self.stored.lock());
        Hello { node: self.id(), boot_nonce: self.boot_nonce, flushed }
    }

    // -- vault and roster

    /// Reads from the vault, with the number of its writes; `None` before there is one.
    pub fn with_written_vault<R>(&self, read: impl FnOnce(&Vault, u64) -> R) -> Option<R> {
        self.vault.lock().as_ref().map(|vault| read(vault.current(), vault.writes()))
    }

    /// Reads from the vault; `None` before there is one.
    pub fn with_vault<R>(&self, read: impl FnOnce(&Vault) -> R) -> Option<R> {
        self.vault.lock().as_ref().map(|vault| read(vault.current()))
    }

    /// Changes the vault, durable when this returns. A failure of the medium stops the node.
    ///
    /// # Errors
    /// What the vault says, or that there is none.
    pub async fn update_vault<R: Send + 'static>(
        self: &Arc<Self>,
        change: impl FnOnce(&mut Vault) -> R + Send + 'static,
    ) -> Result<R, VaultError> {
        let node = Arc::clone(self);
        let task = tokio::task::spawn_blocking(move || node.vault.lock().as_mut().map(|vault| vault.update(change)));
        match task.await {
            Ok(Some(updated)) => {
                updated.inspect_err(|error| self.fail(format!("the vault could not be written: {error}")))
            }
            // Nothing is broken: a join that was refused has just taken its vault away.
            Ok(None) => Err(VaultError::Broken),
            Err(panicked) => {
                self.fail(format!("the vault could not be written: {panicked}"));
                Err(VaultError::Broken)
            }
        }
    }

    /// The members, as this node knows them.
    pub fn roster(&self) -> Arc<Roster> {
        Arc::clone(&self.roster.read())
    }

    /// Changes the vault's roster or denials, durable and in force when this returns. Blocks on the disk, and stops the node if
    /// that fails.
    ///
    /// # Errors
    /// What the vault says, or that there is none.
    pub fn update_roster<R>(&self, change: impl FnOnce(&mut Vault) -> R) -> Result<R, VaultError> {
        let mut vault = self.vault.lock();
        let file = vault.as_mut().ok_or(VaultError::Broken)?;
        let answer =
            file.update(change).inspect_err(|error| self.fail(format!("the vault could not be written: {error}")))?;
        // Before the vault is free again, or an older roster could follow a newer one.
        self.show_roster(&file.current().roster);
        Ok(answer)
    }

    /// Goes by a roster that a peer showed, besides the own one; or by the own one alone again.
    pub fn go_by_newer(&self, newer: Option<Roster>) {
        let vault = self.vault.lock();
        let Some(file) = vault.as_ref() else { return };
        *self.newer.lock() = newer;
        self.show_roster(&file.current().roster);
    }

    /// Whether a roster is newer than all that this node goes by.
    pub fn is_newer(&self, shown: &Roster) -> bool {
        let own = self.with_vault(|vault| vault.roster.log_id).unwrap_or_default();
        shown.log_id > own && self.newer.lock().as_ref().is_none_or(|newer| shown.log_id > newer.log_id)
    }

    fn show_roster(&self, own: &Roster) {
        let shown = self.newer.lock().as_ref().map_or_else(|| own.clone(), |newer| own.beside(newer, self.id()));
        if *self.roster() != shown {
            self.set_roster(shown);
        }
    }

    /// Remembers the op keys of those that are not members any more, to tell them so.
    pub fn note_gone(&self, gone: &[Gone]) {
        self.gone.lock().extend(gone.iter().map(|gone| (gone.op_pk, gone.node)));
    }

    /// What to tell the owner of an op key that no trusted member has; `None` for a stranger.
    pub fn turned_away(&self, key: &PublicKey) -> Option<Refusal> {
        let roster = self.roster();
        if roster.members.iter().any(|member| member.op_pk == key.0 && member.standing.denied) {
            return Some(Refusal::Denied);
        }
        let gone = self.gone.lock().get(&key.0).copied()?;
        roster.revoked.iter().any(|revoked| revoked.node == gone).then_some(Refusal::Revoked(roster.log_id.place()))
    }

    /// Closes every session with a node that is not trusted any more.
    pub fn close_sessions_with_strangers(&self) {
        let roster = self.roster();
        self.sessions.close_where(|peer| {
            if roster.op_key_of(peer).is_some() {
                return None;
            }
            let revoked = roster.revoked.iter().any(|revoked| revoked.node == peer);
            Some(if revoked { (close::REVOKED, "revoked") } else { (close::DENIED, "denied") })
        });
    }

    /// Goes by another roster from now on. The caller has made it durable, or will with the next lock.
    pub fn set_roster(&self, roster: Roster) {
        *self.roster.write() = Arc::new(roster);
    }

    /// The pin of the lock, wherever it is kept.
    ///
    /// # Errors
    /// In words: which pin is missing, and where it was expected.
    pub fn pin(&self, place: &PinPlace) -> Result<Zeroizing<Vec<u8>>, String> {
        let read = match place {
            PinPlace::Inline(pin) => Ok(pin.clone()),
            PinPlace::File(path) => {
                std::fs::read(path).map_err(|error| format!("the pin at {path} is missing: {error}"))
            }
            PinPlace::Credential(name) => {
                let dir = std::env::var("CREDENTIALS_DIRECTORY")
                    .map_err(|_| format!("the pin is the systemd credential {name}, and no credentials were passed"))?;
                let path = std::path::Path::new(&dir).join(name);
                std::fs::read(&path).map_err(|error| format!("the pin at {} is missing: {error}", path.display()))
            }
        };
        read.map(Zeroizing::new)
    }

    /// The operator's name of a node, or its number.
    pub fn name_of(&self, node: NodeId) -> String {
        self.roster().member(node).map_or_else(|| format!("node {node}"), |member| member.name.to_string())
    }

    /// This node's own name.
    pub fn name(&self) -> NodeName {
        self.roster().member(self.id()).map_or_else(|| self.config.name.clone(), |member| member.name.clone())
    }

    // -- replica

    /// The replicated state, once it is open.
    pub fn replica(&self) -> Option<Replica> {
        self.replica.get().cloned()
    }

    /// Takes an open replica into use.
    pub fn adopt_replica(&self, replica: Replica) {
        let _ = self.replica.set(replica);
    }

    /// The database that waits for another node's state, if this start was asked to rebuild it.
    pub fn rebuild(&self) -> Option<Arc<Rebuild>> {
        self.rebuild.read().clone()
    }

    /// Notes that the state is being rebuilt, or no longer.
    pub fn rebuild_with(&self, rebuild: Option<Arc<Rebuild>>) {
        *self.rebuild.write() = rebuild;
    }

    // -- phase

    /// The present phase.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Follows the phase.
    pub fn phases(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Enters a phase, or the one of the unlocked phases that seal and lease allow, and offers what it answers.
    pub fn enter(&self, to: Phase) {
        self.change_phase(|_| to);
    }

    /// Moves between Open, Serving and Sealed, as seal and lease say.
    pub fn settle_phase(&self) {
        self.change_phase(|phase| phase);
    }

    /// One change at a time: a seal is not overtaken by a lease that came before it.
    fn change_phase(&self, to: impl FnOnce(Phase) -> Phase) {
        let mut step = None;
        self.phase.send_if_modified(|phase| {
            let from = std::mem::replace(phase, phase::settled(to(*phase), self.is_sealed(), self.lease.is_valid()));
            step = Some((from, *phase)).filter(|(from, to)| from != to);
            step.is_some()
        });
        if let Some((from, to)) = step {
            info!(%from, %to, "phase");
            self.offer();
        }
    }

    /// Offers what the present phase allows. Called whenever the phase or the identities change.
    pub fn offer(&self) {
        let config = self.boot_identity().map(|boot| {
            let op = self.op_identity();
            identity::server_config(&boot, op.as_ref(), offered(self.phase()))
        });
        self.endpoint.set_server_config(config);
    }

    /// Whether the operator told this node to forget its keys ([`crate::lease::sealing`]).
    pub fn is_sealed(&self) -> bool {
        self.lease.is_barred()
    }

    /// Wipes every key and everything that opens one.
    pub fn forget_keys(&self) {
        self.close_batch();
        self.keyring.wipe();
        if let Some(holder) = self.holder.get() {
            holder.forget();
        }
    }

    /// Wipes the open batch.
    pub fn close_batch(&self) {
        *self.dealing.lock() = None;
    }

    /// Wipes the open batch when it is over: leadership, lease or epoch gone, or ten minutes old.
    pub fn close_batch_if_over(&self, replica: &Replica) {
        let mut dealing = self.dealing.lock();
        if dealing.as_ref().is_some_and(|open| !open.is_usable(replica) || !self.lease.is_valid()) {
            *dealing = None;
        }
    }

    /// What this node proposes as the leader, at the time that it is.
    pub fn command(&self, replica: &Replica, change: Change) -> Command {
        self.follow_time(replica);
        Command::new(self.stamps.lock().stamp_at(wall_ms(), boot_ms()), change)
    }

    /// Notes how far time in the state is.
    pub fn follow_time(&self, replica: &Replica) {
        let time_ms = replica.read(|state| state.time_ms);
        self.stamps.lock().follow_at(time_ms, boot_ms());
    }

    // -- trouble

    /// Raises an alarm about a node: shown in the status until an operator disarms it.
    pub fn alarm(&self, code: &'static str, about: NodeId, message: String) {
        let node = self.roster().member(about).map(|member| member.name.clone()).or_else(|| self.former_name(about));
        let alarm = Alarm { code: code.to_owned(), message: message.clone(), node, since_ms: wall_ms() };
        if self.alarms.raise(alarm) {
            warn!(code, %about, %message, "alarm");
        }
    }

    /// What a former member was called, unless a member is called so now.
    pub fn former_name(&self, node: NodeId) -> Option<NodeName> {
        let former = self.replica()?.read(|state| state.former.get(&node).map(|former| former.name.clone()));
        former.filter(|name| !self.roster().members.iter().any(|member| member.name == *name))
    }

    /// Closes an alarm about a node, if it is open.
    pub fn close_alarm(&self, code: &str, about: NodeId) {
        let node = self.roster().member(about).map(|member| member.name.clone());
        self.alarms.close(|alarm| alarm.code == code && alarm.node == node);
    }

    /// Notes that a peer refused this node.
    pub fn note_refusal(&self, peer: NodeId, refusal: &Refusal) {
        warn!(%peer, %refusal, "refused by a peer");
        if matches!(refusal, Refusal::DuplicateSession | Refusal::StorageWentBack) {
            self.alarm("refused_by_peer", self.id(), format!("{} refuses this node: {refusal}", self.name_of(peer)));
        }
    }

    /// Stops the node: going on would be wrong.
    pub fn fail(&self, reason: String) {
        error!(%reason, "the node stops");
        self.fatal.send_replace(Some(reason.into()));
    }

    /// Fires when the node must stop.
    pub fn fatal(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.fatal.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A joiner that was given up is refused by its boot key for ever. Mutated: with the same seed again, a fresh invitation is
    /// refused as one that somebody else used.
    #[tokio::test]
    async fn a_vault_that_is_discarded_takes_its_identity_along() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let vault = Vault::new(ClusterId([1; 16]), Secret::random(&mut random::system()));
        let before = vault.identity.boot_seed.duplicate();
        let node = testing::node_of(dir.path(), vault);
        assert!(node.boot_seed().same_as(&before), "the control: that of the vault");
        node.discard_vault().expect("removes it");
        assert!(!node.has_vault() && !node.boot_seed().same_as(&before));
    }
}
