//! The start of a daemon, from an empty directory or a loss of power to serving, in numbered steps.
//!
//! Every start takes the same steps. Without a vault file the daemon waits for `cluster init` or `join` on its local socket.
//! With a vault file it unlocks itself from its peers, and no operator needs to do anything.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quorate_raft::{Replica, Stored};
use quorate_shares::arena;
use quorate_shares::secret::Secret;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tracing::{info, warn};

use crate::base::background::Background;
use crate::base::config::{Config, SecretMemory};
use crate::base::doors::Doors;
use crate::base::endpoint;
use crate::base::log::Log;
use crate::base::phase::Phase;
use crate::base::random;
use crate::base::signals::Signals;
use crate::cluster::{alarms, leader, replica, roster_update, status, verify};
use crate::join::terms::FoundError;
use crate::join::{begin, founding};
use crate::lease::{renewal as lease_renewal, seal};
use crate::lock::unlock::{self, UnlockError};
use crate::lock::{absence, held, renewal as lock_renewal};
use crate::node::Node;
use crate::peers::{reachability, revocation, roster_sync, session};
use crate::rebuild;
use crate::serve::listen;
use crate::serve::local::{self, SocketError};
use crate::serve::peer::PeerDoor;
use crate::vault::disk::{DataDir, DataDirError};
use crate::vault::{self, Vault, VaultError, VaultFile};

/// How long a stopping daemon waits until its connections are closed.
const GOODBYE: Duration = Duration::from_secs(1);

/// Why the daemon cannot start, or stops.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The vault cannot be read or written.
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    /// The local socket cannot be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The lock can never be opened, whichever peers answer.
    #[error(transparent)]
    Unlock(#[from] UnlockError),
    /// The replicated state cannot be opened or rebuilt.
    #[error("{0}")]
    Replica(String),
    #[error("the database {0} is missing, and this node is a member of a cluster")]
    NoState(std::path::PathBuf),
    #[error("cannot handle signals: {0}")]
    Signals(#[source] std::io::Error),
    #[error("cannot start a thread: {0}")]
    Threads(#[source] std::io::Error),
    /// Something failed while running.
    #[error("{0}")]
    Failed(String),
    /// A task that nothing replaces has panicked.
    #[error("{0}")]
    Panicked(String),
}

impl BootError {
    /// What the operator should do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::DataDir(error) => error.hint(),
            Self::Vault(error) => error.hint(),
            Self::Listen { source, .. } => endpoint::hint(source),
            Self::Socket(error) => error.hint(),
            Self::Unlock(error) => error.hint(),
            Self::NoState(_) | Self::Replica(_) => {
                "check the disk and its mounts; never put an old copy of the database in its place: \
                 the other nodes go on without this one"
            }
            Self::Signals(_) | Self::Threads(_) => "check the limits on threads and file descriptors",
            Self::Failed(_) => "the reason is in the log above; fix the cause, then start quorated again",
            Self::Panicked(_) => {
                "this is a fault of Quorate: report it with the last lines of the log; quorated can be started again"
            }
        }
    }
}

/// Runs a node until it is told to stop, and says in its alarms what `log` has suffered.
///
/// # Errors
/// Why it cannot start, or had to stop.
pub async fn run(config: Config, log: &Log) -> Result<(), BootError> {
    let mut signals = Signals::handle().map_err(BootError::Signals)?;
    // 1: the directory, once it has the vault that it should have; one process per directory.
    if config.expect_member {
        tokio::select! {
            () = vault::expected::appears(&config.data) => {}
            _ = signals.stop() => return Ok(()),
        }
    }
    let dir = DataDir::open(&config.data)?;
    prepare_memory(&config);
    // 2: the vault, repaired if a crash left one copy behind.
    let vault = VaultFile::open(&dir)?;
    // 3: the network and the local socket.
    let boot_seed = match &vault {
        Some(vault) => vault.current().identity.boot_seed.duplicate(),
        None => Secret::random(&mut random::system()),
    };
    let doors = Doors::start().map_err(BootError::Threads)?;
    let endpoint = doors
        .within(|| endpoint::bind(config.listen, &boot_seed))
        .map_err(|source| BootError::Listen { address: config.listen, source })?;
    let background = Background::start().map_err(BootError::Threads)?;
    let node = Node::new(config, dir, endpoint, boot_seed, background, PeerDoor::dialled);
    if let Some(vault) = vault {
        let phase = phase_at_start(vault.current());
        node.adopt_vault(vault);
        // Before the first request can arrive: a node that has a vault never says that it has none.
        node.enter(phase);
    }
    let socket = local::listen(&node)?;
    let mut running = JoinSet::new();
    running.spawn(run_until_revoked(Arc::clone(&node)));
    let mut listening = doors.spawn(listen::run(Arc::clone(&node), Handle::current()));
    let tasks = [
        // In every phase: if a founder crashes many times, its peers hold lock keys that nothing else would erase.
        tokio::spawn(held::keep(Arc::clone(&node))),
        tokio::spawn(alarms::watch_log(Arc::clone(&node), log.clone())),
    ];

    let (mut panics, mut fatal) = (log.panics().subscribe(), node.fatal());
    let stopped = tokio::select! {
        biased;
        // A panic in any task stops the node.
        reason = reason_in(&mut panics, |panics| panics.fatal.clone()) => Err(BootError::Panicked(reason)),
        reason = reason_in(&mut fatal, |reason| reason.as_deref().map(str::to_owned)) => Err(BootError::Failed(reason)),
        _ = &mut listening => Err(BootError::Failed("the network socket failed: no connection is accepted".to_owned())),
        Some(ended) = running.join_next() => ended.unwrap_or_else(|died| Err(BootError::Panicked(died.to_string()))),
        signal = signals.stop() => {
            info!("{signal}");
            Ok(())
        }
    };
    info!("stopping");
    let _ = tokio::time::timeout(GOODBYE, running.shutdown()).await;
    node.forget_keys();
    socket.close();
    node.peers().sessions.close_all("the node stops");
    node.endpoint.close(quorate_client::conn::close::SHUTDOWN.into(), b"the node stops");
    let _ = tokio::time::timeout(GOODBYE, node.endpoint.wait_idle()).await;
    listening.abort();
    tasks.iter().for_each(JoinHandle::abort);
    if let Some(replica) = node.replica() {
        // Joins every thread that holds the database: a thread that still runs when the process ends would abort it.
        replica.shutdown().await;
    }
    stopped
}

/// Waits until `reason` finds one.
async fn reason_in<T>(watched: &mut watch::Receiver<T>, reason: impl Fn(&T) -> Option<String>) -> String {
    loop {
        if let Some(reason) = reason(&watched.borrow_and_update()) {
            return reason;
        }
        if watched.changed().await.is_err() {
            // What could have a reason is gone.
            std::future::pending::<()>().await;
        }
    }
}

/// The phase of a node that starts with this vault.
fn phase_at_start(vault: &Vault) -> Phase {
    if vault.flags.revoked {
        return Phase::Revoked;
    }
    match (&vault.lock, &vault.founding) {
        (None, Some(_)) => Phase::Joining,
        _ => Phase::Locked,
    }
}

/// Steps 4 to 8, until this node learns that it was revoked.
async fn run_until_revoked(node: Arc<Node>) -> Result<(), BootError> {
    let node = &node;
    loop {
        let revoked = match node.with_vault(|vault| vault.flags.revoked) {
            Some(true) => node.enrolment(),
            _ => tokio::select! {
                ended = run_steps(node) => return ended,
                revoked = revocation::awaited(node) => revoked,
            },
        };
        revocation::stay_revoked(node, &revoked).await;
    }
}

/// Steps 4 to 8, from whatever the vault holds to serving. Serves without end.
async fn run_steps(node: &Arc<Node>) -> Result<(), BootError> {
    let replica = loop {
        // 4: without a vault, wait for an operator; once in the life of a node.
        if !node.has_vault() {
            node.enter(Phase::Uninitialised);
            let socket = node.config.socket.display();
            info!(%socket, "no vault: waits for `quorate cluster init` or `quorate node join`");
            if node.dir.path().join("state").exists() {
                warn!(
                    "there is a database and no vault: if this was a member, its vault is lost, and its database is of no use"
                );
            }
            begin::initialised(node).await;
        }
        match unlock_and_open(node).await? {
            Some(replica) => break replica,
            None => continue,
        }
    };
    // 8: talk to the peers, and serve whenever the lease says so.
    node.enter(Phase::Open);
    session::keep_all(node);
    // These tasks end with this function: a node that learns that it was revoked needs none of them.
    let mut tasks = JoinSet::new();
    tasks.spawn(roster_update::run(Arc::clone(node), replica.clone()));
    tasks.spawn(roster_sync::keep_asking(Arc::clone(node)));
    tasks.spawn(session::tell_flushed(Arc::clone(node)));
    tasks.spawn(reachability::watch(Arc::clone(node)));
    tasks.spawn(status::keep_reports(Arc::clone(node), replica.clone()));
    tasks.spawn(leader::run(Arc::clone(node), replica.clone()));
    tasks.spawn(seal::step_aside(Arc::clone(node), replica.clone()));
    tasks.spawn(lease_renewal::watch(Arc::clone(node), replica.clone()));
    tasks.spawn(lock_renewal::report(Arc::clone(node), replica.clone()));
    tasks.spawn(lock_renewal::erase_former(Arc::clone(node), replica.clone()));
    tasks.spawn(verify::verify_new(Arc::clone(node), replica.clone()));
    tasks.spawn(alarms::keep(Arc::clone(node)));
    tasks.spawn(absence::watch(Arc::clone(node)));
    tasks.spawn(lock_renewal::keep_fresh(Arc::clone(node), replica.clone()));
    tasks.spawn(follow_storage(Arc::clone(node), replica.clone()));
    lease_renewal::run(Arc::clone(node), replica).await;
    Ok(())
}

/// Steps 5 to 7: the bundle from the peers, or new keys while founding; then the replicated state. `None` if a join was
/// refused and the node begins again at step 4.
async fn unlock_and_open(node: &Arc<Node>) -> Result<Option<Replica>, BootError> {
    let Some((founding, locked)) = node.with_vault(|vault| (vault.founding.is_some(), vault.lock.is_some())) else {
        return Ok(None);
    };
    if locked && node.enrolment().identity.own_keys().is_none() {
        // 5: ask the peers until the bundle opens; they answer even while they are locked themselves.
        node.enter(Phase::Locked);
        reachability::say_what_is_configured(node);
        node.enrolment().identity.unlock(unlock::run(node).await?);
    } else if !locked && !founding {
        return Err(UnlockError::NoLock.into());
    }
    if !founding {
        // 6: the replicated state, under the storage key of the bundle.
        // A member without its database has forgotten its votes, and could vote a second time in the same term.
        if !Replica::exists(&replica::directory(node)) {
            return Err(BootError::NoState(replica::directory(node)));
        }
        if node.config.rebuild_state {
            rebuild::run(node).await.map_err(BootError::Replica)?;
        }
        let stored = Stored::open(replica::options(node).map_err(BootError::Replica)?).await;
        let stored = stored.map_err(|error| BootError::Replica(error.to_string()))?;
        // Every hello carries this: if a member does not say what its log holds, peers assume that it lost its log.
        node.database.note_stored(stored.flushed());
        session::keep_all(node);
        roster_sync::ask_at_boot(node).await;
        let replica = stored.start().await.map_err(|error| BootError::Replica(error.to_string()))?;
        node.database.adopt(replica.clone());
        return Ok(Some(replica));
    }
    if node.config.rebuild_state {
        warn!("there is no state to rebuild yet");
    }
    // 7: founding goes on where it stopped.
    founding::resume(node).await.map_err(|error| BootError::Failed(error.to_string()))?;
    node.enter(Phase::Joining);
    node.offer();
    match founding::run(node).await {
        Ok(replica) => Ok(Some(replica)),
        Err(FoundError::Refused(reason)) => {
            warn!(reason, "refused; back to the beginning");
            Ok(None)
        }
        Err(FoundError::Failed(reason)) => Err(BootError::Failed(reason)),
    }
}

/// Stops the node when its storage fails: it must not serve from a state that may be wrong.
async fn follow_storage(node: Arc<Node>, replica: Replica) {
    let mut fatal = replica.fatal();
    if let Ok(reason) = fatal.wait_for(Option::is_some).await {
        node.fail(reason.as_deref().unwrap_or("the storage failed").to_owned());
    }
}

/// Chooses the memory for secrets, before the first secret is made, and hardens the process.
fn prepare_memory(config: &Config) {
    if let Err(error) = arena::harden_process() {
        warn!(%error, "the process can be dumped: cores and debuggers may see secrets");
    }
    let wanted = match config.secret_memory {
        SecretMemory::Auto => arena::SecretMemory::MemfdSecret,
        SecretMemory::Mlock => arena::SecretMemory::Mlock,
    };
    let status = arena::prepare(wanted);
    match status.backing {
        arena::Backing::Heap => {
            warn!("secrets lie in ordinary memory, which may be swapped: raise RLIMIT_MEMLOCK (ulimit -l)");
        }
        backing => info!(?backing, slots = status.slots, "memory for secrets"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::testing::{member, node_of};
    use crate::vault::invitation::{InvitationKey, Inviter};
    use crate::vault::lock_keys;
    use crate::vault::{Invited, Role};
    use quorate_shares::ids::{ClusterId, NodeId};
    use quorate_shares::lock::{Lock, LockParams, LockPeer};

    const CLUSTER: ClusterId = ClusterId([1; 16]);

    /// Scenario: a joiner crashed when it had a lock and a log, and is unlocked again. As soon as peers can reach it, its hello
    /// says what its log holds. Mutated: if the log is opened later, the hello says nothing, like that of a node that lost its
    /// disk.
    #[tokio::test]
    async fn a_joiner_that_restarts_says_what_its_log_holds_to_the_first_who_asks() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut vault = Vault::new(CLUSTER, Secret::random(&mut random::system()));
        (vault.identity.node, vault.roster.members) = (Some(NodeId(2)), vec![member(1), member(2)]);
        let nothing = crate::messages::peer::LockState { generation: 0, key_number: 0 };
        let mut peer = Vault::new(CLUSTER, Secret::random(&mut random::system()));
        let offer = lock_keys::prepare(&mut peer, NodeId(2), nothing, &mut random::system());
        let (key_number, public_key) = offer.expect("the first key");
        let peers = [LockPeer { peer: NodeId(1), key_number, public_key }];
        let (place, pin) = lock_keys::inline_pin(&mut random::system());
        let params = LockParams { cluster: CLUSTER, node: NodeId(2), generation: 1 };
        let bundle = founding::draw_keys();
        let lock = Lock::seal(&params, 1, place, &pin, &peers, &bundle, &mut random::system());
        vault.lock = Some(lock.expect("a lock"));
        let key = InvitationKey::of(&Secret::random(&mut random::system()));
        let inviter = Inviter { boot_pk: member(1).boot_pk, address: member(1).addresses[0].clone() };
        let role = Role::Joiner(Invited { key, inviters: vec![inviter] });
        let (name, addresses) = ("n2".parse().expect("a name"), member(2).addresses);
        vault.founding = Some(vault::Founding { attempt: 0, name, addresses, role });
        let node = node_of(dir.path(), vault);
        node.enrolment().identity.unlock(bundle);
        replica::open(&node).await.expect("an empty log").shutdown().await;
        assert!(node.replica().is_none() && node.hello().flushed.is_none(), "the control: it is not open now");

        let mut phases = node.serving.phases();
        let reached = async {
            phases.wait_for(|phase| *phase == Phase::Joining).await.expect("the node is there");
            node.hello().flushed
        };
        tokio::select! {
            flushed = reached => assert!(flushed.is_some()),
            ended = unlock_and_open(&node) => panic!("no member takes it in: {:?}", ended.map(drop)),
        }
        node.replica().expect("open").shutdown().await;
    }

    /// An operator gives another invitation while the node begins. Mutated: if the start takes a vault that is just replaced for a
    /// vault without founding and lock, the process ends.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_start_waits_while_the_vault_is_replaced() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let founding = || {
            let key = InvitationKey::of(&Secret::random(&mut random::system()));
            let inviter = Inviter { boot_pk: member(1).boot_pk, address: member(1).addresses[0].clone() };
            let role = Role::Founder(Invited { key, inviters: vec![inviter] });
            vault::Founding { attempt: 0, name: member(2).name, addresses: member(2).addresses, role }
        };
        let mut vault = Vault::new(CLUSTER, Secret::random(&mut random::system()));
        vault.founding = Some(founding());
        let node = node_of(dir.path(), vault);
        let (here, new, (tell, told)) = (Arc::clone(&node), founding(), std::sync::mpsc::channel());
        let replace = std::thread::spawn(move || {
            here.replace_vault(move |seed, _| {
                tell.send(()).expect("told");
                Ok::<_, ()>(Some(Vault { founding: Some(new), ..Vault::new(ClusterId([2; 16]), seed) }))
            })
        });
        told.recv().expect("it holds the vault");
        tokio::select! {
            ended = unlock_and_open(&node) => panic!("the start ends: {:?}", ended.map(drop)),
            () = node_joins(&node, ClusterId([2; 16])) => {}
        }
        assert_eq!(replace.join().expect("no panic").expect("durable"), Ok(true));
    }

    async fn node_joins(node: &Node, cluster: ClusterId) {
        while (node.cluster(), node.phase()) != (cluster, Phase::Joining) {
            tokio::task::yield_now().await;
        }
    }
}
