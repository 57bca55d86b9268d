//! The [`Node`], and the parts that it consists of.
//!
//! The parts have different lifetimes. Everything that belongs to one vault is one value, the [`Enrolment`]; a new vault gets a
//! new one. The database, the keys in memory, the right to serve and the memory of a leader live as long as the process.
//!
//! This module makes no decisions. The modules that do take an `Arc<Node>`, or the part that they need. Locks are held for a field
//! access, never across an await. Only the mutex of the vault is held while its file is written, by a thread that may wait for
//! the disk.

pub mod database;
pub mod enrolment;
pub mod identity;
pub mod joining;
pub mod keys;
pub mod leader;
pub mod locks;
pub mod peers;
pub mod serving;
#[cfg(test)]
pub(crate) mod testing;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;
use quorate_client::conn::Handler;
use quorate_client::identity::server_config;
use quorate_client::wire::Alarm;
use quorate_raft::Replica;
use quorate_raft::level::LEVEL;
use quorate_shares::ids::{ClusterId, NodeId, NodeName};
use quorate_shares::secret::Secret;
use tokio::sync::watch;
use tokio::task::JoinError;
use tracing::{error, warn};

use crate::base::background::Background;
use crate::base::clock::wall_ms;
use crate::base::config::Config;
use crate::base::phase::Phase;
use crate::base::random;
use crate::memory::alarms::Alarms;
use crate::memory::keyring::Keyring;
use crate::messages::peer::Hello;
use crate::node::database::Database;
use crate::node::enrolment::Enrolment;
use crate::node::keys::Keys;
use crate::node::leader::Leader;
use crate::node::peers::Peers;
use crate::node::serving::{ServingState, offered};
use crate::vault::disk::DataDir;
use crate::vault::{Roster, Vault, VaultError, VaultFile};

/// Makes the handler of a session that this node dialled. The handler answers requests of the peer once the flag is set. The
/// modules with the handlers import this one, so the node gets the function as an argument.
pub type PeerHandler = fn(&Arc<Node>, &Arc<Enrolment>, NodeId, &Arc<AtomicBool>) -> Arc<dyn Handler>;

/// A node of the cluster.
pub struct Node {
    pub config: Config,
    /// The data directory, owned by this process.
    pub dir: DataDir,
    /// The one QUIC endpoint, for dialling and for serving.
    pub endpoint: quinn::Endpoint,
    /// The thread for work that may wait.
    pub background: Background,
    /// Drawn at each start. Two nonces of one node at the same time mean two processes.
    pub boot_nonce: [u8; 32],
    /// Makes the handler for the requests of a peer that this node dialled.
    pub peer_handler: PeerHandler,
    enrolment: watch::Sender<Arc<Enrolment>>,
    /// Held while a vault is made, replaced or discarded.
    enrolling: Mutex<()>,
    pub database: Database,
    pub keys: Keys,
    /// The phase, and the right to serve.
    pub serving: ServingState,
    /// What this node keeps in memory while it leads.
    pub leader: Leader,
    /// What an operator should look at.
    pub alarms: Alarms,
    fatal: watch::Sender<Option<Arc<str>>>,
}

impl Node {
    /// A node with a data directory and an endpoint, and without a vault.
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
            background,
            boot_nonce: random::bytes(),
            peer_handler,
            enrolment: watch::Sender::new(Arc::new(Enrolment::without_vault(boot_seed))),
            enrolling: Mutex::default(),
            database: Database::default(),
            keys: Keys::new(keyring),
            serving: ServingState::default(),
            leader: Leader::default(),
            alarms: Alarms::default(),
            fatal: watch::Sender::default(),
        })
    }

    // -- enrolment

    /// The enrolment of the present vault.
    pub fn enrolment(&self) -> Arc<Enrolment> {
        Arc::clone(&self.enrolment.borrow())
    }

    /// Watches the enrolment: each change of the vault brings a new one.
    pub fn enrolments(&self) -> watch::Receiver<Arc<Enrolment>> {
        self.enrolment.subscribe()
    }

    /// Takes an open vault into use.
    pub fn adopt_vault(&self, vault: VaultFile) {
        self.serving.lease.bar(vault.current().flags.sealed);
        self.enrol(Enrolment::of(vault), "the node has a vault");
    }

    /// Makes a vault, or replaces the present one. `next` gets the boot seed and the present vault. It returns the new vault, or
    /// `None` if the present one is as it should be. It must not use the node. Returns whether there is a new vault.
    ///
    /// This is one step: of two commands at the same time, the second one finds the vault of the first. The present enrolment
    /// ends: its sessions are closed, and work that began under it writes nothing into the new vault. Only an opened bundle is
    /// kept, and the boot identity if `next` keeps its seed. This blocks on the disk. If a present vault cannot be replaced, the
    /// node stops.
    ///
    /// # Errors
    /// [`VaultError`]; inside, what `next` returns.
    pub fn replace_vault<E>(
        &self,
        next: impl FnOnce(Secret<32>, Option<&Vault>) -> Result<Option<Vault>, E>,
    ) -> Result<Result<bool, E>, VaultError> {
        let _one = self.enrolling.lock();
        let before = self.enrolment();
        // Held until the new enrolment is there.
        let mut present = before.hold_vault();
        let next = match next(before.identity.boot_seed(), present.as_ref().map(VaultFile::current)) {
            Ok(Some(next)) => next,
            Ok(None) => return Ok(Ok(false)),
            Err(refused) => return Ok(Err(refused)),
        };
        let file = match present.take() {
            None => VaultFile::create(&self.dir, next)?,
            Some(mut file) => {
                if let Err(error) = file.update(|vault| *vault = next) {
                    *present = Some(file);
                    self.fail_for_vault(&error);
                    return Err(error);
                }
                file
            }
        };
        self.serving.lease.bar(file.current().flags.sealed);
        let enrolment = Enrolment::of(file);
        enrolment.identity.take_over(before.identity.own_keys());
        self.enrolment.send_replace(Arc::new(enrolment));
        drop(present);
        before.end("the node has another vault");
        Ok(Ok(true))
    }

    /// Removes the vault of an enrolment whose join was refused. Nothing was locked in it. The next vault gets another boot
    /// identity and other keys: the cluster may have given up the present ones, and would then refuse them for ever. Returns
    /// `false`, and does nothing, if another enrolment has taken its place: an operator gave this node another invitation
    /// meanwhile.
    ///
    /// # Errors
    /// If the file cannot be removed. The node has no vault any more, but its next start finds the file.
    pub fn discard_vault(&self, refused: &Arc<Enrolment>, reason: &str) -> std::io::Result<bool> {
        let _one = self.enrolling.lock();
        if !Arc::ptr_eq(refused, &self.enrolment()) {
            return Ok(false);
        }
        let fresh = Enrolment::after_refusal(Secret::random(&mut random::system()), reason);
        self.enrol(fresh, "the join was refused");
        VaultFile::remove(&self.dir)?;
        Ok(true)
    }

    fn enrol(&self, enrolment: Enrolment, reason: &str) {
        self.enrolment.send_replace(Arc::new(enrolment)).end(reason);
    }

    pub fn has_vault(&self) -> bool {
        self.with_vault(|_| ()).is_some()
    }

    /// The cluster; all zeros before there is a vault. Before that it is not used.
    pub fn cluster(&self) -> ClusterId {
        self.enrolment.borrow().identity.cluster()
    }

    /// This node's id; 0 until it was given one.
    pub fn id(&self) -> NodeId {
        self.enrolment.borrow().identity.id()
    }

    /// The members, as this node knows them.
    pub fn roster(&self) -> Arc<Roster> {
        self.enrolment.borrow().roster.current()
    }

    pub fn peers(&self) -> Arc<Peers> {
        Arc::clone(&self.enrolment.borrow().peers)
    }

    /// The operator's name of a node, or its number.
    pub fn name_of(&self, node: NodeId) -> String {
        self.roster().member(node).map_or_else(|| format!("node {node}"), |member| member.name.to_string())
    }

    pub fn name(&self) -> NodeName {
        self.roster().member(self.id()).map_or_else(|| self.config.name.clone(), |member| member.name.clone())
    }

    /// The hello of this process.
    pub fn hello(&self) -> Hello {
        Hello { node: self.id(), boot_nonce: self.boot_nonce, flushed: self.database.flushed(), level: LEVEL }
    }

    // -- vault

    /// Reads from the vault; `None` before there is one.
    pub fn with_vault<R>(&self, read: impl FnOnce(&Vault) -> R) -> Option<R> {
        self.with_present_vault(|vault| vault.as_ref().map(|vault| read(vault.current())))
    }

    /// Waits while the vault is replaced: a node that has a vault never seems to have none.
    fn with_present_vault<R>(&self, body: impl FnOnce(&mut Option<VaultFile>) -> R) -> R {
        loop {
            let enrolment = self.enrolment();
            let mut vault = enrolment.hold_vault();
            if vault.is_some() || Arc::ptr_eq(&enrolment, &self.enrolment()) {
                return body(&mut vault);
            }
        }
    }

    /// Changes the vault. The change is durable when this returns. An error of the medium stops the node.
    ///
    /// # Errors
    /// [`VaultError`]; [`VaultError::Broken`] if there is no vault.
    pub async fn update_vault<R: Send + 'static>(
        self: &Arc<Self>,
        change: impl FnOnce(&mut Vault) -> R + Send + 'static,
    ) -> Result<R, VaultError> {
        let here = Arc::clone(self);
        let update = move || here.with_present_vault(|vault| vault.as_mut().map(|vault| vault.update(change)));
        self.updated(tokio::task::spawn_blocking(update).await)
    }

    /// [`Node::update_vault`] for an enrolment that may be over by then.
    ///
    /// # Errors
    /// As [`Node::update_vault`].
    pub async fn update_vault_of<R: Send + 'static>(
        &self,
        enrolment: Arc<Enrolment>,
        change: impl FnOnce(&mut Vault) -> R + Send + 'static,
    ) -> Result<R, VaultError> {
        self.updated(tokio::task::spawn_blocking(move || enrolment.update_vault(change)).await)
    }

    fn updated<R>(&self, updated: Result<Option<Result<R, VaultError>>, JoinError>) -> Result<R, VaultError> {
        match updated {
            Ok(Some(updated)) => updated.inspect_err(|error| self.fail_for_vault(error)),
            // No failure of the node: the vault was removed after a refused join, or replaced.
            Ok(None) => Err(VaultError::Broken),
            Err(panicked) => {
                self.fail_for_panic_at_vault(&panicked);
                Err(VaultError::Broken)
            }
        }
    }

    /// Changes the vault's roster or denials. The change is durable and in force when this returns. This blocks on the disk. An
    /// error of the disk stops the node.
    ///
    /// # Errors
    /// [`VaultError`]; [`VaultError::Broken`] if there is no vault.
    pub fn update_roster<R>(&self, change: impl FnOnce(&mut Vault) -> R) -> Result<R, VaultError> {
        let updated = self.enrolment().update_roster(change).ok_or(VaultError::Broken)?;
        updated.inspect_err(|error| self.fail_for_vault(error))
    }

    // -- phase

    /// The replicated state, once it is open.
    pub fn replica(&self) -> Option<Replica> {
        self.database.replica()
    }

    pub fn phase(&self) -> Phase {
        self.serving.phase()
    }

    /// Enters a phase, and offers its protocols. If `to` is a phase of an unlocked node, seal and lease decide which of them
    /// follows.
    pub fn enter(&self, to: Phase) {
        if self.serving.change_phase(|_| to) {
            self.offer();
        }
    }

    /// Leaves Uninitialised, because the node has a vault now. If it has gone on meanwhile, nothing changes.
    pub fn enter_joining(&self) {
        if self.serving.change_phase(|phase| if phase == Phase::Uninitialised { Phase::Joining } else { phase }) {
            self.offer();
        }
    }

    /// Moves between Open, Serving and Sealed, depending on seal and lease.
    pub fn settle_phase(&self) {
        if self.serving.change_phase(|phase| phase) {
            self.offer();
        }
    }

    /// Offers the protocols of the present phase. Called whenever the phase or the identities change.
    pub fn offer(&self) {
        let enrolment = self.enrolment();
        let config = enrolment
            .identity
            .boot()
            .map(|boot| server_config(&boot, enrolment.identity.op().as_ref(), offered(self.phase())));
        self.endpoint.set_server_config(config);
    }

    /// Wipes every key and every opened batch.
    pub fn forget_keys(&self) {
        self.keys.forget();
        self.enrolment().identity.forget_batches();
    }

    /// Wipes the opened bundle for good.
    pub fn forget_own_keys(&self) {
        self.enrolment().identity.forget();
        // The endpoint also holds the op key.
        self.offer();
    }

    // -- trouble

    /// Raises an alarm about a node. The status shows it until an operator disarms it.
    pub fn alarm(&self, code: &'static str, about: NodeId, message: String) {
        let node = self.roster().member(about).map(|member| member.name.clone()).or_else(|| self.former_name(about));
        let alarm = Alarm { code: code.to_owned(), message: message.clone(), node, since_ms: wall_ms() };
        if self.alarms.raise(alarm) {
            warn!(code, %about, %message, "alarm");
        }
    }

    /// The name of a former member, unless a member has this name now.
    pub fn former_name(&self, node: NodeId) -> Option<NodeName> {
        let former = self.replica()?.read(|state| state.former.get(&node).map(|former| former.name.clone()));
        former.filter(|name| !self.roster().members.iter().any(|member| member.name == *name))
    }

    /// Closes an alarm about a node, if it is open.
    pub fn close_alarm(&self, code: &str, about: NodeId) {
        let node = self.roster().member(about).map(|member| member.name.clone());
        self.alarms.close(|alarm| alarm.code == code && alarm.node == node);
    }

    /// Raises an alarm about a node, or closes it if nothing is wrong any more.
    pub fn set_alarm(&self, code: &'static str, about: NodeId, wrong: Option<String>) {
        match wrong {
            Some(message) => self.alarm(code, about, message),
            None if self.alarms.open().iter().any(|alarm| alarm.code == code) => self.close_alarm(code, about),
            None => {}
        }
    }

    /// Stops the node, because it cannot go on safely.
    pub fn fail(&self, reason: String) {
        error!(%reason, "the node stops");
        // What fails afterwards fails because of the first.
        self.fatal.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert_with(|| reason.into());
            is_first
        });
    }

    /// Stops the node: its vault could not be written.
    pub(crate) fn fail_for_vault(&self, error: &dyn std::fmt::Display) {
        self.fail(format!("{}: {error}", VaultFile::path(&self.dir).display()));
    }

    /// Stops the node: the task that writes its vault has panicked.
    pub(crate) fn fail_for_panic_at_vault(&self, panicked: &JoinError) {
        self.fail_for_vault(&format!("the vault could not be written: {panicked}"));
    }

    /// Changes when the node must stop.
    pub fn fatal(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.fatal.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::messages::peer::LockState;
    use crate::node::peers::roster::Gone;
    use crate::node::testing::{bundle, member, node_of};
    use crate::vault::{RosterLogId, inspect};

    const PEER: NodeId = NodeId(3);
    const GONE: Gone = Gone { node: NodeId(4), boot_pk: [4; 32], op_pk: [5; 32] };

    /// A node of three members. Every part of its enrolment holds something.
    fn enrolled(dir: &Path) -> Arc<Node> {
        let mut vault = Vault::new(ClusterId([1; 16]), Secret::random(&mut random::system()));
        vault.identity.node = Some(NodeId(2));
        vault.roster.members = vec![member(1), member(2), member(3)];
        vault.held_for_mut(PEER).away_s = 60;
        let node = node_of(dir, vault);
        let enrolment = node.enrolment();
        enrolment.identity.unlock(bundle());
        let newer = RosterLogId { term: 9, leader: 1, index: 9 };
        enrolment.use_newer_roster(Some(Roster { log_id: newer, members: vec![member(9)], revoked: Vec::new() }));
        enrolment.roster.note_gone(&[GONE]);
        enrolment.peers.keepers.lock().insert(PEER);
        enrolment.locks.commits.lock().insert(PEER, LockState { generation: 1, key_number: 1 });
        *enrolment.joining.locked_attempt.lock() = Some(1);
        enrolment.joining.note_locked(PEER, 1);
        enrolment.revocation.attestations.lock().insert(PEER);
        node
    }

    /// The names of the parts of `enrolment` that are not empty.
    fn known(enrolment: &Enrolment) -> Vec<&'static str> {
        let newest = RosterLogId { term: 8, leader: 1, index: 8 };
        let shown = Roster { log_id: newest, ..Roster::default() };
        let known = [
            ("a vault", enrolment.has_vault()),
            ("a boot identity", enrolment.identity.boot().is_some()),
            ("a cluster", enrolment.identity.cluster() != ClusterId([0; 16])),
            ("an id", enrolment.identity.id() != NodeId(0)),
            ("a bundle", enrolment.identity.own_keys().is_some()),
            ("share keys", enrolment.identity.holder().is_some()),
            ("members", !enrolment.roster.current().members.is_empty()),
            ("a newer roster", !enrolment.is_newer(&shown)),
            ("former members", enrolment.roster.knows_gone()),
            ("peers to keep", !enrolment.peers.keepers.lock().is_empty()),
            ("absences", enrolment.locks.absences.lock().of(PEER) > 0),
            ("commits", !enrolment.locks.commits.lock().is_empty()),
            ("a lock of this attempt", enrolment.joining.locked_attempt.lock().is_some()),
            ("locks of others", !enrolment.joining.locked().is_empty()),
            ("a revocation", enrolment.revocation.is_said()),
        ];
        known.into_iter().filter(|(_, is_known)| *is_known).map(|(what, _)| what).collect()
    }

    /// The members refuse the boot key of a joiner that was given up for ever, and in the next cluster the same ids are other
    /// nodes. Mutated: with the same seed again, a fresh invitation is refused as one that another node used; if a part of the
    /// old enrolment is kept, the list below is not empty.
    #[tokio::test]
    async fn nothing_of_a_discarded_vault_is_left() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let node = enrolled(dir.path());
        let before = node.enrolment();
        let seed = before.identity.boot_seed();
        assert_eq!(known(&before).len(), 15, "the control: {:?}", known(&before));

        assert!(node.discard_vault(&before, "refused").expect("removes it"));
        let after = node.enrolment();
        assert_eq!(known(&after), Vec::<&str>::new());
        assert!(!after.identity.boot_seed().same_as(&seed) && inspect(dir.path()).is_err());
        assert_eq!(after.joining.founding().refused.as_deref(), Some("refused"));

        // Work that began before still holds the old enrolment.
        assert!(before.peers.sessions.is_ended() && !after.peers.sessions.is_ended());
        let late = node.update_vault_of(Arc::clone(&before), |vault| vault.flags.sealed = true).await;
        assert!(matches!(late, Err(VaultError::Broken)) && node.fatal().borrow().is_none(), "nothing is broken by it");
        before.revocation.accept();
        let accepted = tokio::time::timeout(Duration::from_millis(50), after.revocation.accepted()).await;
        assert!(accepted.is_err(), "attestations for the old vault do not count for the new one");
    }

    /// Before anything is locked, an operator may give another invitation. Mutated: without the bundle, the join waits for keys
    /// for ever.
    #[tokio::test]
    async fn a_join_that_begins_again_elsewhere_keeps_its_keys_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let node = enrolled(dir.path());
        let seed = node.enrolment().identity.boot_seed();
        let next = |seed, _: Option<&Vault>| Ok::<_, ()>(Some(Vault::new(ClusterId([7; 16]), seed)));
        assert_eq!(node.replace_vault(next).expect("durable"), Ok(true));
        assert_eq!(node.cluster(), ClusterId([7; 16]));
        assert_eq!(known(&node.enrolment()), ["a vault", "a boot identity", "a cluster", "a bundle"]);
        assert!(node.enrolment().identity.boot_seed().same_as(&seed));
        node.update_vault(|vault| vault.flags.sealed = true).await.expect("it can be written");
    }
}
