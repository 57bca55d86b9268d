//! How a cluster begins: its ports, its directories and its founders.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::ops::Range;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use super::Cluster;
use super::founding;
use super::network::{Network, start_relay};
use crate::base::error::Error;
use crate::cluster::directory::{Directory, Manifest, NodeEntry};
use crate::faults::disk::Disk;
use crate::procs::binaries::Binaries;
use crate::procs::process::Lifetime;
use crate::procs::surroundings::Surroundings;

/// The settings of a cluster that is not started yet.
pub struct Builder {
    directory: Option<PathBuf>,
    nodes: u8,
    spares: u8,
    threshold: Option<u8>,
    settings: Option<String>,
    surroundings: Surroundings,
    lifetime: Lifetime,
    disks: Vec<String>,
}

impl Builder {
    pub(super) fn new() -> Self {
        Self {
            directory: None,
            nodes: 3,
            spares: 0,
            threshold: None,
            settings: None,
            surroundings: Surroundings::default(),
            lifetime: Lifetime::WithUs,
            disks: Vec::new(),
        }
    }

    /// In `directory` instead of one that is removed in the end.
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// How many founders; three unless said otherwise.
    pub fn nodes(mut self, nodes: u8) -> Self {
        self.nodes = nodes;
        self
    }

    /// How many more nodes may join later ([`Cluster::join`]); they are numbered on.
    pub fn spares(mut self, spares: u8) -> Self {
        self.spares = spares;
        self
    }

    /// Shares needed; the majority unless said otherwise.
    pub fn threshold(mut self, threshold: u8) -> Self {
        self.threshold = Some(threshold);
        self
    }

    /// The text of each node's configuration file, for shorter timings. `{name}` in it is the node's name.
    pub fn settings(mut self, toml: impl Into<String>) -> Self {
        self.settings = Some(toml.into());
        self
    }

    /// Sets a variable in the environment of every daemon and every command of this cluster.
    pub fn environment(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.surroundings.environment.push((name.into(), value.into()));
        self
    }

    /// Starts every daemon and every command of this cluster under this umask instead of the caller's.
    pub fn umask(mut self, umask: u16) -> Self {
        self.surroundings.umask = Some(umask);
        self
    }

    /// Lets no daemon and no command of this cluster lock more memory than this, not even as root.
    pub fn memlock_bytes(mut self, bytes: u32) -> Self {
        self.surroundings.memlock_bytes = Some(bytes);
        self
    }

    /// Lets no daemon and no command of this cluster have more descriptors open than this.
    pub fn open_files(mut self, files: u32) -> Self {
        self.surroundings.open_files = Some(files);
        self
    }

    /// Gives a node a disk of its own, which may go bad ([`Cluster::disk`]).
    pub fn disk(mut self, name: impl Into<String>) -> Self {
        self.disks.push(name.into());
        self
    }

    /// Leaves the processes running when this one ends.
    pub fn detached(mut self) -> Self {
        self.lifetime = Lifetime::Detached;
        self
    }

    /// Starts the daemons, uninitialised.
    ///
    /// # Errors
    /// If the directory holds a cluster already, or something does not start.
    pub fn start(self) -> Result<Cluster, Error> {
        let binaries = Binaries::find()?;
        let (path, temporary) = match self.directory {
            Some(path) => (path, None),
            None => {
                let temporary = TempDir::with_prefix("quorate-").map_err(Error::io("make a temporary directory"))?;
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        let directory = Directory::at(&path)?;
        if directory.manifest()?.is_some() {
            let reason = "there is a cluster already".to_owned();
            return Err(Error::Directory { path, reason });
        }
        let (entries, fronts) = new_nodes(self.nodes, self.spares)?;
        for entry in &entries {
            let data = directory.node(&entry.name);
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&data);
            made.map_err(Error::io(data.display().to_string()))?;
            if let Some(settings) = &self.settings {
                let path = directory.config(&entry.name);
                let settings = settings.replace("{name}", &entry.name);
                fs::write(&path, settings).map_err(Error::io(path.display().to_string()))?;
            }
        }
        let mut disks = BTreeMap::new();
        for name in self.disks {
            let (below, at) = (directory.below(&name), directory.disk(&name));
            for made in [&below, &at] {
                DirBuilder::new().mode(0o700).create(made).map_err(Error::io(made.display().to_string()))?;
            }
            let disk = Disk::mount(&below, &at).map_err(Error::io(format!("mount {}", at.display())))?;
            disks.insert(name, disk);
        }
        let manifest = Manifest { relay_pid: None, nodes: entries };
        directory.write_manifest(&manifest)?;
        let network = match self.lifetime {
            Lifetime::WithUs => Network::Here(start_relay(&manifest, fronts)?),
            Lifetime::Detached => {
                // The relay's own process binds them again.
                drop(fronts);
                Network::Elsewhere(None)
            }
        };
        let processes = manifest.nodes.iter().map(|_| None).collect();
        let (surroundings, lifetime) = (self.surroundings, self.lifetime);
        let mut cluster = Cluster {
            directory,
            manifest,
            processes,
            network,
            binaries,
            surroundings,
            variables: BTreeMap::new(),
            lifetime,
            disks,
            log_begins: BTreeMap::new(),
            _temporary: temporary,
        };
        cluster.start_all()?;
        Ok(cluster)
    }

    /// Starts the daemons and founds a cluster of them through the real command line.
    ///
    /// # Errors
    /// What does not start, or what the command line says.
    pub fn found(self) -> Result<Cluster, Error> {
        let threshold = self.threshold;
        let mut cluster = self.start()?;
        match founding::found(&mut cluster, threshold) {
            Ok(()) => Ok(cluster),
            Err(error) => {
                // Why founding failed says more than why a daemon would not end.
                let _ = cluster.terminate_all();
                Err(error)
            }
        }
    }
}

/// Where nodes listen: below the ports that the kernel gives to sockets that bind none (from 32768 on), since a node that is down
/// must find its own free when it comes back.
const OWN_PORTS: Range<u16> = 20_000..32_000;

/// Nodes with two free ports each. The relay's stay bound from here on; the nodes' own are free again until they start.
fn new_nodes(founders: u8, spares: u8) -> Result<(Vec<NodeEntry>, Vec<UdpSocket>), Error> {
    let (mut entries, mut fronts) = (Vec::new(), Vec::new());
    for number in 1..=founders + spares {
        let front = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(Error::io("bind a port"))?;
        let advertise = front.local_addr().map_err(Error::io("bind a port"))?;
        let listen = own_address().ok_or_else(|| Error::Story("no free port for a node".to_owned()))?;
        entries.push(NodeEntry { name: format!("n{number}"), listen, advertise, pid: None, spare: number > founders });
        fronts.push(front);
    }
    Ok((entries, fronts))
}

/// An address that no other node of this process was given, as long as there are any, and that is free.
pub(super) fn own_address() -> Option<SocketAddr> {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(97);
    let (mut tries, ports) = (OWN_PORTS, u32::from(OWN_PORTS.end - OWN_PORTS.start));
    tries.find_map(|_| {
        let next = start.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed)) % ports;
        let port = OWN_PORTS.start + u16::try_from(next).ok()?;
        UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).and_then(|socket| socket.local_addr()).ok()
    })
}
