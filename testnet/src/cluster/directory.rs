//! The directory of a cluster, always laid out the same.
//!
//! ```text
//! DIR/testnet.toml   which nodes there are, their ports and processes
//! DIR/cluster.toml   the client file            DIR/token   the operator key
//! DIR/relay.sock     where a detached relay is told what to break
//! DIR/n1/            a data directory, with quorated.sock and quorated.log
//! DIR/n1/disk/       the data directory instead, if it lies on a disk of its own, whose files lie in DIR/n1/below/
//! ```

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use quorate_client::place;
use serde::{Deserialize, Serialize};

use crate::base::error::{Error, NoSuchNode};

/// The directory of a cluster, as an absolute path.
#[derive(Debug, Clone)]
pub struct Directory(PathBuf);

/// What `testnet.toml` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The relay's process, if it is one of its own.
    pub relay_pid: Option<u32>,
    /// In order of their names.
    pub nodes: Vec<NodeEntry>,
}

/// A node, or a place for one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeEntry {
    pub name: String,
    pub listen: SocketAddr,
    /// Its port at the relay, which all others use.
    pub advertise: SocketAddr,
    /// Its last process, which may have ended.
    pub pid: Option<u32>,
    /// It is not a member yet.
    #[serde(default)]
    pub spare: bool,
}

impl Directory {
    /// The directory at `path`, absolute from here on: daemons and sockets outlive the caller's working directory.
    ///
    /// # Errors
    /// If there is no working directory.
    pub fn at(path: &Path) -> Result<Self, Error> {
        std::path::absolute(path).map(Self).map_err(Error::io(path.display().to_string()))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The client file.
    pub fn client_file(&self) -> PathBuf {
        self.0.join("cluster.toml")
    }

    /// The file of the operator key.
    pub fn token(&self) -> PathBuf {
        self.0.join("token")
    }

    /// The control socket of a detached relay.
    pub fn relay_socket(&self) -> PathBuf {
        self.0.join("relay.sock")
    }

    /// What a detached relay says.
    pub fn relay_log(&self) -> PathBuf {
        self.0.join("relay.log")
    }

    /// What belongs to a node; its data directory, unless that lies on a disk of its own.
    pub fn node(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A node's data directory.
    pub fn data(&self, name: &str) -> PathBuf {
        let apart = self.disk(name);
        if apart.is_dir() { apart } else { self.node(name) }
    }

    /// Where a node's own disk is mounted, if it has one.
    pub fn disk(&self, name: &str) -> PathBuf {
        self.node(name).join("disk")
    }

    /// Where the files of a node's own disk lie.
    pub fn below(&self, name: &str) -> PathBuf {
        self.node(name).join("below")
    }

    /// A node's local socket.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.node(name).join("quorated.sock")
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.node(name).join("quorated.log")
    }

    /// A node's configuration file, if it has one.
    pub fn config(&self, name: &str) -> PathBuf {
        self.node(name).join("quorated.toml")
    }

    /// Reads what stands in it; `None` if there is no cluster yet.
    ///
    /// # Errors
    /// If the file is not one of ours.
    pub fn manifest(&self) -> Result<Option<Manifest>, Error> {
        let path = self.manifest_path();
        match fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text)
                .map(Some)
                .map_err(|error| Error::Directory { path, reason: error.message().to_owned() }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(path.display().to_string())(error)),
        }
    }

    /// Reads what stands in it, where something must.
    ///
    /// # Errors
    /// If there is no cluster, or the file is not one of ours.
    pub fn existing_manifest(&self) -> Result<Manifest, Error> {
        self.manifest()?.ok_or_else(|| Error::NoCluster(self.0.clone()))
    }

    /// Writes what stands in it, in one step.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write_manifest(&self, manifest: &Manifest) -> Result<(), Error> {
        let path = self.manifest_path();
        let text = toml::to_string(manifest).expect("plain fields become TOML");
        place::put(&path, text.as_bytes(), 0o644).map_err(Error::io(path.display().to_string()))
    }

    fn manifest_path(&self) -> PathBuf {
        self.0.join("testnet.toml")
    }
}

impl Manifest {
    /// The place of a node among the others.
    ///
    /// # Errors
    /// [`NoSuchNode`].
    pub fn place(&self, name: &str) -> Result<usize, NoSuchNode> {
        self.nodes.iter().position(|node| node.name == name).ok_or_else(|| NoSuchNode(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_survives_its_file() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let directory = Directory::at(parent.path()).expect("absolute");
        assert_eq!(directory.manifest().expect("nothing to read"), None);
        let port = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let node = NodeEntry { name: "n1".to_owned(), listen: port(1), advertise: port(2), pid: Some(7), spare: false };
        let manifest = Manifest { relay_pid: None, nodes: vec![node] };
        directory.write_manifest(&manifest).expect("writes");
        assert_eq!(directory.manifest().expect("reads"), Some(manifest));
        fs::write(directory.manifest_path(), "surprise = 1").expect("writes");
        assert!(matches!(directory.manifest(), Err(Error::Directory { .. })));
    }
}
