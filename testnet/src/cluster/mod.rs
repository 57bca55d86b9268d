//! A cluster: daemons behind a relay, in one directory.

mod builder;
pub mod directory;
mod founding;
mod network;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use quorate_client::wire::{LocalStatus, Phase};
use tempfile::TempDir;

use crate::base::error::Error;
use crate::base::wait::wait_until;
use crate::faults::disk::Disk;
use crate::faults::shim::Variables;
use crate::procs::binaries::Binaries;
use crate::procs::process::{Lifetime, Process};
use crate::procs::status::local_status;
use crate::procs::tool::Tool;
use crate::thief::steal;
use directory::{Directory, Manifest, NodeEntry};

use crate::procs::surroundings::Surroundings;
pub use builder::Builder;
use builder::own_address;
use network::Network;
pub use network::run_relay;

/// Limit for anything that should take a second or two. It is generous, since tests share a machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long a daemon may take to end in good order.
const TERM_PATIENCE: Duration = Duration::from_secs(15);
/// How much of a dead daemon's log is shown.
const LOG_LINES_SHOWN: usize = 20;

/// What is special about one start of a daemon.
#[derive(Debug, Clone, Default)]
pub struct Special {
    /// Arguments after the usual ones.
    pub arguments: Vec<String>,
    /// No file may grow beyond this many bytes: a full disk, without being root.
    pub file_bytes: Option<u64>,
}

/// A cluster on this machine.
pub struct Cluster {
    directory: Directory,
    manifest: Manifest,
    processes: Vec<Option<Process>>,
    network: Network,
    binaries: Binaries,
    surroundings: Surroundings,
    /// Variables of single daemons.
    variables: BTreeMap<String, Variables>,
    lifetime: Lifetime,
    /// Disks of their own, by node; unmounted when the daemons have ended.
    disks: BTreeMap<String, Disk>,
    /// How long each node's log was at its last start.
    log_begins: BTreeMap<String, usize>,
    /// Dropped last: the daemons have ended by then.
    _temporary: Option<TempDir>,
}

impl Cluster {
    /// Three nodes in a directory that is removed with the cluster.
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// The cluster in `path`, which was left running or is stopped.
    ///
    /// # Errors
    /// If there is none.
    pub fn attach(path: &Path) -> Result<Self, Error> {
        let directory = Directory::at(path)?;
        let manifest = directory.existing_manifest()?;
        let process = |node: &NodeEntry| Process::attach(node.pid?, &directory.data(&node.name));
        let processes = manifest.nodes.iter().map(process).collect();
        let relay = manifest.relay_pid.and_then(|pid| Process::attach(pid, directory.path()));
        Ok(Self {
            processes,
            network: Network::Elsewhere(relay),
            binaries: Binaries::find()?,
            surroundings: Surroundings::default(),
            variables: BTreeMap::new(),
            lifetime: Lifetime::Detached,
            disks: BTreeMap::new(),
            log_begins: BTreeMap::new(),
            _temporary: None,
            directory,
            manifest,
        })
    }

    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The names of the nodes; of spare ones only once they have joined.
    pub fn names(&self) -> Vec<String> {
        self.manifest.nodes.iter().filter(|node| !node.spare).map(|node| node.name.clone()).collect()
    }

    /// Starts a spare node and lets it join with an invitation, through the real command line; it serves when this returns.
    ///
    /// # Errors
    /// If there is no such node, or what the command line says.
    pub fn join(&mut self, name: &str) -> Result<(), Error> {
        self.start(name)?;
        let invitation = Tool::start(self.quorate(["node", "invite"]), b"")?.success(PATIENCE)?;
        founding::join(self, name, String::from_utf8_lossy(&invitation).trim())?;
        let place = self.manifest.place(name)?;
        self.manifest.nodes[place].spare = false;
        self.directory.write_manifest(&self.manifest)
    }

    /// Sets variables in the environment of one daemon alone, in place of those set so before, from its next start on.
    ///
    /// # Errors
    /// If there is no such node.
    pub fn set_environment(&mut self, name: &str, variables: Variables) -> Result<(), Error> {
        self.manifest.place(name)?;
        self.variables.insert(name.to_owned(), variables);
        Ok(())
    }

    /// Ends a node and gives it another address, which the relay does not know. It listens there, and says so, from its next start on.
    ///
    /// # Errors
    /// If there is no such node, no free port, or the node does not end.
    pub fn renumber(&mut self, name: &str) -> Result<SocketAddr, Error> {
        self.terminate(name)?;
        let address = own_address().ok_or_else(|| Error::Story("no free port for a node".to_owned()))?;
        let place = self.manifest.place(name)?;
        self.manifest.nodes[place].listen = address;
        self.advertise(name, address)?;
        Ok(address)
    }

    /// Lets a node say that it is reached at this address, from its next start on. Returns what it said before.
    ///
    /// # Errors
    /// If there is no such node.
    pub fn advertise(&mut self, name: &str, address: SocketAddr) -> Result<SocketAddr, Error> {
        let place = self.manifest.place(name)?;
        let before = std::mem::replace(&mut self.manifest.nodes[place].advertise, address);
        self.directory.write_manifest(&self.manifest)?;
        Ok(before)
    }

    /// Starts a node, unless it runs.
    ///
    /// # Errors
    /// If there is no such node, or it does not open its socket.
    pub fn start(&mut self, name: &str) -> Result<(), Error> {
        self.start_as(name, &Special::default())
    }

    /// Starts a node with something special about it, unless it runs.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn start_as(&mut self, name: &str, special: &Special) -> Result<(), Error> {
        if !self.is_running(name)? {
            self.launch(name, special)?;
            self.watch(name, "its socket", |cluster| local_status(&cluster.directory.socket(name)).ok())?;
        }
        Ok(())
    }

    /// Starts a node that is expected to end by itself, and waits until it has.
    ///
    /// # Errors
    /// As [`Cluster::wait_end`].
    pub fn start_and_wait_end(&mut self, name: &str, special: &Special) -> Result<(ExitStatus, String), Error> {
        self.launch(name, special)?;
        self.wait_end(name)
    }

    /// Waits until a node ends by itself, and returns how, and what it said since its last start.
    ///
    /// # Errors
    /// [`Error::NotInTime`] if it does not end, or if there is no such node.
    pub fn wait_end(&mut self, name: &str) -> Result<(ExitStatus, String), Error> {
        let place = self.manifest.place(name)?;
        let ended = wait_until(format!("{name} to end"), PATIENCE, || {
            self.processes[place].as_mut().map_or(Some(None), |process| process.ended().map(Some))
        })?;
        let status = ended.ok_or_else(|| Error::Story(format!("{name} was never started")))?;
        let log = fs::read(self.directory.log(name)).map_err(Error::io(format!("read the log of {name}")))?;
        let since = self.log_begins.get(name).copied().unwrap_or_default().min(log.len());
        Ok((status, String::from_utf8_lossy(&log[since..]).into_owned()))
    }

    /// A node's own disk.
    ///
    /// # Errors
    /// If it has none.
    pub fn disk(&self, name: &str) -> Result<&Disk, Error> {
        self.disks.get(name).ok_or_else(|| Error::Story(format!("{name} has no disk of its own")))
    }

    /// Starts a node, and does not wait for its socket.
    ///
    /// # Errors
    /// If there is no such node, or it does not start.
    pub fn launch(&mut self, name: &str, special: &Special) -> Result<(), Error> {
        let place = self.manifest.place(name)?;
        let node = &self.manifest.nodes[place];
        let (data, socket) = (self.directory.data(name), self.directory.socket(name));
        let file_bytes = special.file_bytes.or(self.surroundings.file_bytes);
        let surroundings = Surroundings { file_bytes, ..self.surroundings.clone() };
        let mut command = surroundings.command(&self.binaries.quorated);
        command.arg("--data").arg(&data).arg("--socket").arg(&socket);
        command.args(["--listen", &node.listen.to_string(), "--advertise", &node.advertise.to_string()]);
        command.args(["--name", name]);
        command.envs(self.variables.get(name).into_iter().flatten().map(|(name, value)| (name, value)));
        let config = self.directory.config(name);
        if config.exists() {
            command.arg("--config").arg(config);
        }
        command.args(&special.arguments);
        let log = self.directory.log(name);
        let begins = fs::metadata(&log).map_or(0, |log| usize::try_from(log.len()).unwrap_or(usize::MAX));
        self.log_begins.insert(name.to_owned(), begins);
        let started = Process::start(command, &data, &log, self.lifetime);
        let process = started.map_err(Error::io(format!("start {name}")))?;
        self.manifest.nodes[place].pid = Some(process.pid());
        self.processes[place] = Some(process);
        self.directory.write_manifest(&self.manifest)
    }

    /// Starts the relay, if it is a process of its own, and every node that does not run.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn start_all(&mut self) -> Result<(), Error> {
        self.start_detached_relay()?;
        self.names().iter().try_for_each(|name| self.start(name))
    }

    /// Kills a node without warning.
    ///
    /// # Errors
    /// If there is no such node, or it does not go.
    pub fn kill(&mut self, name: &str) -> Result<(), Error> {
        match &mut self.processes[self.manifest.place(name)?] {
            Some(process) => process.kill().map_err(Error::io(format!("kill {name}"))),
            None => Ok(()),
        }
    }

    /// Ends a node in good order.
    ///
    /// # Errors
    /// If there is no such node, or it does not end.
    pub fn terminate(&mut self, name: &str) -> Result<(), Error> {
        match &mut self.processes[self.manifest.place(name)?] {
            Some(process) => process.terminate(TERM_PATIENCE).map_err(Error::io(format!("end {name}"))),
            None => Ok(()),
        }
    }

    /// Ends every node, and a relay that is a process of its own.
    ///
    /// # Errors
    /// If something does not end.
    pub fn terminate_all(&mut self) -> Result<(), Error> {
        let all: Vec<_> = self.manifest.nodes.iter().map(|node| node.name.clone()).collect();
        all.iter().try_for_each(|name| self.terminate(name))?;
        self.end_detached_relay()
    }

    /// Kills a node and erases its data, so that the machine can join as a new node; its log and its configuration stay.
    ///
    /// # Errors
    /// If there is no such node, or what the file system says.
    pub fn erase(&mut self, name: &str) -> Result<(), Error> {
        self.kill(name)?;
        steal::erase(&self.directory.data(name)).map_err(Error::io(format!("erase {name}")))
    }

    /// Puts a copy of a disk that was stolen before in place of what a node has now, and kills the node first.
    ///
    /// # Errors
    /// As [`Cluster::erase`].
    pub fn restore(&mut self, name: &str, image: &Path) -> Result<(), Error> {
        self.erase(name)?;
        steal::put_back(image, &self.directory.data(name)).map_err(Error::io(format!("restore {name}")))
    }

    /// Whether a node's process runs.
    ///
    /// # Errors
    /// If there is no such node.
    pub fn is_running(&mut self, name: &str) -> Result<bool, Error> {
        let place = self.manifest.place(name)?;
        Ok(self.processes[place].as_mut().is_some_and(Process::is_alive))
    }

    /// What runs: nodes by their names, and a relay that is a process of its own.
    pub fn running(&mut self) -> Vec<String> {
        let nodes = self.manifest.nodes.iter().zip(&mut self.processes);
        let running = nodes.filter_map(|(node, process)| process.as_mut()?.is_alive().then(|| node.name.clone()));
        let running: Vec<_> = running.collect();
        running.into_iter().chain(self.detached_relay_runs().then(|| "the relay".to_owned())).collect()
    }

    /// A node's process, to be paused and resumed.
    ///
    /// # Errors
    /// If there is no such node.
    pub fn process(&self, name: &str) -> Result<Option<&Process>, Error> {
        Ok(self.processes[self.manifest.place(name)?].as_ref())
    }

    /// Copies the disks of several nodes at one instant, each to `destination/NAME`.
    ///
    /// # Errors
    /// If there is no such node, or the copy fails.
    pub fn steal(&self, names: &[&str], destination: &Path) -> Result<Vec<PathBuf>, Error> {
        self.at_one_instant(names, || {
            let copies = names.iter().map(|name| {
                let (disk, copy) = (self.directory.data(name), destination.join(name));
                steal::copy(&disk, &copy).map(|()| copy).map_err(Error::io(format!("steal {name}")))
            });
            copies.collect()
        })
    }

    /// Copies the disk of one node to `destination`.
    ///
    /// # Errors
    /// As [`Cluster::steal`].
    pub fn steal_one(&self, name: &str, destination: &Path) -> Result<(), Error> {
        self.at_one_instant(&[name], || {
            steal::copy(&self.directory.data(name), destination).map_err(Error::io(format!("steal {name}")))
        })
    }

    /// How a node is, by its local socket.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn status(&self, name: &str) -> Result<LocalStatus, Error> {
        self.manifest.place(name)?;
        local_status(&self.directory.socket(name)).map_err(Error::io(format!("ask {name}")))
    }

    /// Waits until each of these nodes serves.
    ///
    /// # Errors
    /// [`Error::NotInTime`], or [`Error::Ended`] if one ends instead.
    pub fn wait_serving(&mut self, names: &[&str]) -> Result<(), Error> {
        names.iter().try_for_each(|name| self.wait_phase(name, Phase::Serving).map(|_| ()))
    }

    /// Waits until every node serves.
    ///
    /// # Errors
    /// As [`Cluster::wait_serving`].
    pub fn wait_all_serving(&mut self) -> Result<(), Error> {
        let names = self.names();
        self.wait_serving(&names.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Waits until every node serves, or says that it was revoked. Returns the names of those that serve, and of the others.
    ///
    /// # Errors
    /// As [`Cluster::wait_serving`].
    pub fn wait_all_serving_or_revoked(&mut self) -> Result<(Vec<String>, Vec<String>), Error> {
        let (mut serving, mut revoked) = (Vec::new(), Vec::new());
        for name in self.names() {
            let phase = self.watch(&name, Phase::Serving.as_str(), |cluster| {
                let phase = cluster.status(&name).ok()?.public.phase;
                matches!(phase, Phase::Serving | Phase::Revoked).then_some(phase)
            })?;
            if phase == Phase::Serving { serving.push(name) } else { revoked.push(name) }
        }
        Ok((serving, revoked))
    }

    /// Waits until a node is in `phase`.
    ///
    /// # Errors
    /// [`Error::NotInTime`], or [`Error::Ended`] if it ends instead.
    pub fn wait_phase(&mut self, name: &str, phase: Phase) -> Result<LocalStatus, Error> {
        self.watch(name, phase.as_str(), |cluster| {
            cluster.status(name).ok().filter(|status| status.public.phase == phase)
        })
    }

    /// The real command line, with the client file and the token of this cluster.
    pub fn quorate<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = self.surroundings.command(&self.binaries.quorate);
        command.args(args).env("QUORATE_CLUSTER", self.directory.client_file());
        command.env("QUORATE_TOKEN_FILE", self.directory.token());
        command
    }

    /// Runs the real command line with `input` on stdin, and returns what it writes to stdout.
    ///
    /// # Errors
    /// [`Error::Command`] with what it says.
    pub fn run<'a>(&self, args: impl IntoIterator<Item = &'a str>, input: &[u8]) -> Result<Vec<u8>, Error> {
        Tool::start(self.quorate(args), input)?.success(PATIENCE)
    }

    /// Holds the processes of several nodes still meanwhile.
    fn at_one_instant<T>(&self, names: &[&str], act: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        let processes = names.iter().map(|name| self.process(name)).collect::<Result<Vec<_>, _>>()?;
        // A node that has ended cannot be paused, and its disk holds still by itself.
        let running = processes.into_iter().flatten();
        let paused: Vec<_> = running.filter(|process| process.pause().is_ok()).collect();
        let result = act();
        for process in paused {
            process.resume().map_err(Error::io("let a paused node go on"))?;
        }
        result
    }

    /// Probes until something is found, and gives up early if the node ends.
    fn watch<T>(&mut self, name: &str, what: &str, mut probe: impl FnMut(&mut Self) -> Option<T>) -> Result<T, Error> {
        let what = format!("{name}: {what}");
        let found = wait_until(what, PATIENCE, || match self.is_running(name) {
            Ok(true) => probe(self).map(Ok),
            Ok(false) => Some(Err(self.ended(name))),
            Err(error) => Some(Err(error)),
        });
        found?
    }

    /// The error for a node that has ended by itself.
    fn ended(&mut self, name: &str) -> Error {
        let place = self.manifest.place(name).ok();
        let status = place.and_then(|place| self.processes[place].as_mut()?.ended());
        let how = status.map_or_else(|| "it is not known how".to_owned(), |status| status.to_string());
        let log = match fs::read(self.directory.log(name)) {
            Ok(log) => {
                let log = String::from_utf8_lossy(&log);
                let lines: Vec<_> = log.lines().collect();
                lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
            }
            Err(error) => format!("(it cannot be read: {error})"),
        };
        Error::Ended { node: name.to_owned(), how, log }
    }
}
