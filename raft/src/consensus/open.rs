//! From a closed database to a replica that runs: opened, then started.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate_shares::ids::NodeId;
use tokio::sync::watch;

use super::change;
use super::machine::Machine;
use super::network::Network;
use super::options::{Options, config};
use super::replica::{Inner, Leadership, Raft, Replica};
use crate::live::level::LEVEL;
use crate::live::voters::{Gate, Membership};
use crate::log::{self, Flushed, LogStore};
use crate::stored::disk::Disk;
use crate::stored::error::OpenError;
use crate::stored::fatal::Fatal;

/// A replica whose Raft does not run yet. It can report what it promised, and answers no requests.
pub struct Stored {
    config: Arc<openraft::Config>,
    network: Network,
    gate: Arc<dyn Gate>,
    fatal: Fatal,
    disk: Arc<Disk>,
    machine: Machine,
    flushed: Flushed,
}

impl Replica {
    /// Opens the database, restores the state, and starts Raft. It can serve requests of others at once.
    ///
    /// # Errors
    /// As [`Stored::open`].
    pub async fn open(options: Options) -> Result<Self, OpenError> {
        Stored::open(options).await?.start().await
    }
}

impl Stored {
    /// Opens the database and restores the state.
    ///
    /// # Errors
    /// [`OpenError`]: another node's directory, a wrong storage key, or damage, named with its place.
    pub async fn open(options: Options) -> Result<Self, OpenError> {
        let Options { node, cluster, dir, keys, timing, link, gate } = options;
        let config = Arc::new(config(&timing)?);
        let append_deadline = Duration::from_millis(timing.append_ms);
        let network = Network { cluster, node, link, append_deadline, terms: Arc::default() };
        let fatal = Fatal::new();
        let parts = {
            let (fatal, gate) = (fatal.clone(), gate.clone());
            // Opening reads the whole state: not on a thread that answers.
            tokio::task::spawn_blocking(move || -> Result<_, OpenError> {
                let disk = Arc::new(Disk::open(&dir, keys, cluster, node)?);
                log::check(&disk)?;
                let machine = Machine::open(disk.clone(), cluster, gate, fatal)?;
                let found = machine.live().state.read().level();
                if found > LEVEL {
                    return Err(OpenError::NewerLevel { path: dir.display().to_string(), found });
                }
                let flushed = log::read_flushed(&disk)?;
                Ok((disk, machine, flushed))
            })
        };
        let (disk, machine, flushed) = parts.await.map_err(|error| OpenError::Raft(error.to_string()))??;
        Ok(Self { config, network, gate, fatal, disk, machine, flushed })
    }

    /// What is durable here; as [`Replica::flushed`].
    pub fn flushed(&self) -> Flushed {
        self.flushed
    }

    /// Starts Raft.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn start(self) -> Result<Replica, OpenError> {
        let Self { config, network, gate, fatal, disk, machine, flushed: _ } = self;
        let (node, cluster, link, terms) = (network.node, network.cluster, network.link.clone(), network.terms.clone());
        let log = LogStore::new(disk.clone(), gate.clone(), fatal.clone())?;
        let live = machine.live().clone();
        let raft = match Raft::new(node.0, config, network, log.clone(), machine).await {
            Ok(raft) => raft,
            Err(error) => {
                log.flusher().close();
                return Err(OpenError::Raft(error.to_string()));
            }
        };
        let inner = Arc::new(Inner {
            node,
            cluster,
            raft,
            live,
            link,
            terms,
            giving: tokio::sync::Mutex::default(),
            gate,
            changing: tokio::sync::Mutex::default(),
            memberships: watch::Sender::default(),
            log: Mutex::new(Some(log)),
            disk: Mutex::new(Some(disk)),
            fatal,
            leadership: watch::Sender::new(Leadership::default()),
            tasks: Mutex::default(),
        });
        let (leadership, memberships) = (inner.leadership.clone(), inner.memberships.clone());
        let follow = tokio::spawn(follow_raft(inner.raft.clone(), leadership, memberships, inner.fatal.clone()));
        let finish = tokio::spawn(change::keep_finishing(Arc::downgrade(&inner), inner.memberships.subscribe()));
        inner.tasks.lock().extend([follow, finish]);
        Ok(Replica { inner })
    }
}

/// Publishes openraft's metrics as leadership and membership. If openraft ends with an error, that is a fatal failure.
async fn follow_raft(
    raft: Raft,
    leadership: watch::Sender<Leadership>,
    memberships: watch::Sender<Membership>,
    fatal: Fatal,
) {
    use openraft::async_runtime::WatchReceiver;
    let mut metrics = raft.metrics();
    loop {
        let (now, membership, running) = {
            let metrics = metrics.borrow_watched();
            let (newest, committed) = (&metrics.membership_config, &metrics.committed_membership_config);
            let membership = Membership::of(newest, newest.log_id() == committed.log_id());
            let am_leader = metrics.state.is_leader();
            let leader = metrics.current_leader.map(NodeId);
            let leadership = Leadership { leader, term: metrics.current_term, am_leader };
            (leadership, membership, metrics.running_state.clone())
        };
        memberships.send_if_modified(|last| {
            let changed = *last != membership;
            if changed {
                *last = membership;
            }
            changed
        });
        leadership.send_if_modified(|last| std::mem::replace(last, now) != now);
        match running {
            Ok(()) => {}
            Err(openraft::errors::Fatal::Stopped) => return,
            Err(error) => return fatal.raise(&error.to_string()),
        }
        if metrics.changed().await.is_err() {
            return fatal.raise("raft ended without a reason");
        }
    }
}
