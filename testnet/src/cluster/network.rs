//! The network of a cluster: a relay in this process, or in one of its own when the cluster outlives us.

use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;

use super::{Cluster, PATIENCE, TERM_PATIENCE};
use crate::base::error::Error;
use crate::base::wait::wait_until;
use crate::cluster::directory::{Directory, Manifest, NodeEntry};
use crate::faults::network::Faults;
use crate::procs::process::{Lifetime, Process};
use crate::relay::{Relay, Route, control};

pub(super) enum Network {
    Here(Relay),
    Elsewhere(Option<Process>),
}

impl Cluster {
    /// The faults of a relay that runs in this process.
    pub fn faults(&self) -> Option<&Faults> {
        match &self.network {
            Network::Here(relay) => Some(relay.faults()),
            Network::Elsewhere(_) => None,
        }
    }

    /// Cuts a node off from all others; clients still reach it.
    ///
    /// # Errors
    /// If there is no such node or no relay.
    pub fn cut(&self, name: &str) -> Result<(), Error> {
        match &self.network {
            Network::Here(relay) => Ok(relay.faults().cut(name)?),
            Network::Elsewhere(_) => self.tell_relay(&format!("cut {name}")),
        }
    }

    /// Cuts two nodes off from each other.
    ///
    /// # Errors
    /// If there are no such nodes or no relay.
    pub fn cut_pair(&self, one: &str, other: &str) -> Result<(), Error> {
        match &self.network {
            Network::Here(relay) => Ok(relay.faults().cut_pair(one, other)?),
            Network::Elsewhere(_) => self.tell_relay(&format!("cut {one} {other}")),
        }
    }

    /// Ends every cut.
    ///
    /// # Errors
    /// If there is no relay.
    pub fn heal(&self) -> Result<(), Error> {
        match &self.network {
            Network::Here(relay) => {
                relay.faults().heal();
                Ok(())
            }
            Network::Elsewhere(_) => self.tell_relay("heal"),
        }
    }

    pub(super) fn detached_relay_runs(&mut self) -> bool {
        match &mut self.network {
            Network::Elsewhere(Some(relay)) => relay.is_alive(),
            _ => false,
        }
    }

    pub(super) fn end_detached_relay(&mut self) -> Result<(), Error> {
        let socket = self.directory.relay_socket();
        match &mut self.network {
            // A relay that no longer listens to its socket still listens to signals.
            Network::Elsewhere(Some(relay)) if control::tell(&socket, "stop").is_ok() => {
                Ok(wait_until("the relay to end", TERM_PATIENCE, || (!relay.is_alive()).then_some(()))?)
            }
            Network::Elsewhere(Some(relay)) => relay.terminate(TERM_PATIENCE).map_err(Error::io("end the relay")),
            _ => Ok(()),
        }
    }

    fn tell_relay(&self, command: &str) -> Result<(), Error> {
        control::tell(&self.directory.relay_socket(), command).map_err(Error::io("tell the relay"))
    }

    pub(super) fn start_detached_relay(&mut self) -> Result<(), Error> {
        let Network::Elsewhere(process) = &mut self.network else { return Ok(()) };
        if process.as_mut().is_some_and(Process::is_alive) {
            return Ok(());
        }
        let this = std::env::current_exe().map_err(Error::io("find the running program"))?;
        let mut command = Command::new(this);
        command.arg("relay").arg("--dir").arg(self.directory.path());
        let log = self.directory.relay_log();
        let started = Process::start(command, self.directory.path(), &log, Lifetime::Detached);
        let started = process.insert(started.map_err(Error::io("start the relay"))?);
        self.manifest.relay_pid = Some(started.pid());
        self.directory.write_manifest(&self.manifest)?;
        let socket = self.directory.relay_socket();
        wait_until("the relay", PATIENCE, || control::tell(&socket, "ping").ok())?;
        Ok(())
    }
}

/// Runs the relay of the cluster in `path` until it is told to stop: what a detached relay's process does.
///
/// # Errors
/// If there is no cluster, or its ports are taken.
pub fn run_relay(path: &Path) -> Result<(), Error> {
    let directory = Directory::at(path)?;
    let manifest = directory.existing_manifest()?;
    let fronts = manifest.nodes.iter().map(|node| UdpSocket::bind(node.advertise)).collect::<Result<_, _>>();
    let relay = start_relay(&manifest, fronts.map_err(Error::io("bind the relay's ports"))?)?;
    control::serve(&relay, &directory.relay_socket()).map_err(Error::io("serve the relay's socket"))
}

pub(super) fn start_relay(manifest: &Manifest, fronts: Vec<UdpSocket>) -> Result<Relay, Error> {
    let route = |(node, front): (&NodeEntry, UdpSocket)| Route { name: node.name.clone(), front, node: node.listen };
    Relay::start(manifest.nodes.iter().zip(fronts).map(route).collect()).map_err(Error::io("start the relay"))
}
