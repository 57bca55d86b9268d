//! The client file: which cluster, and where its nodes are.
//!
//! It holds no secret and may be given to anyone. But a person who can change it can send a client to other nodes, so
//! keep it where only its owner may write.
//!
//! ```toml
//! cluster = "00112233445566778899aabbccddeeff"
//!
//! [[node]]
//! name = "n1"
//! id = 1
//! addresses = ["10.0.0.1:7250"]
//! key = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"       # op key: serves clients
//! boot_key = "PUAXw-hDiVqStwqnTRt-vJyYLM8uxJaMwM1V8Sr0Zgw"  # boot key: shows the state of a locked node
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use quorate_shares::ids::{ClusterId, NodeId, NodeName, is_address};
use serde::{Deserialize, Serialize};

use crate::identity::PublicKey;
use crate::place;

/// Largest client file in bytes. A larger one is refused.
pub const CLUSTER_FILE_BYTES_MAX: u64 = 256 << 10;

/// Which cluster, and where its nodes are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterFile {
    /// The id of the cluster.
    pub cluster: ClusterId,
    /// The nodes of the cluster, by rising id. Never empty.
    pub nodes: Vec<ClusterNode>,
}

/// One node of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterNode {
    /// The name of the node.
    pub name: NodeName,
    /// The number of the node. Never zero.
    pub id: NodeId,
    /// Where the node listens, as `host:port`. At least one.
    pub addresses: Vec<String>,
    /// The op key of the node, which serves clients.
    pub key: PublicKey,
    /// The boot key of the node, which shows its state while it does not serve.
    pub boot_key: PublicKey,
}

/// Why a client file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClusterFileError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The path of the file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The text is not a client file.
    #[error("client file{line}: {message}", line = line.map(|line| format!(" line {line}")).unwrap_or_default())]
    Form {
        /// The line, from 1, if one is at fault.
        line: Option<usize>,
        /// What is wrong.
        message: String,
    },
}

/// The fields of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    cluster: toml::Spanned<String>,
    #[serde(default)]
    node: Vec<NodeText>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeText {
    name: toml::Spanned<String>,
    id: toml::Spanned<u64>,
    addresses: toml::Spanned<Vec<String>>,
    key: toml::Spanned<String>,
    boot_key: toml::Spanned<String>,
}

impl ClusterFile {
    /// Reads the text of a client file. Unknown fields are refused.
    ///
    /// # Errors
    /// [`ClusterFileError::Form`] with the line that is wrong.
    pub fn parse(text: &str) -> Result<Self, ClusterFileError> {
        let at =
            |offset: usize| Some(1 + text.as_bytes()[..offset.min(text.len())].iter().filter(|b| **b == b'\n').count());
        let form = |line, message: String| ClusterFileError::Form { line, message };
        let read: Text = toml::from_str(text)
            .map_err(|error| form(error.span().and_then(|span| at(span.start)), error.message().to_owned()))?;
        let cluster = parse_at(&read.cluster, &at)?;
        let mut nodes = Vec::new();
        let (mut names, mut ids, mut keys) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for node in &read.node {
            let refuse = |span: std::ops::Range<usize>, message: &str| Err(form(at(span.start), message.to_owned()));
            let name: NodeName = parse_at(&node.name, &at)?;
            let (key, boot_key) = (parse_at(&node.key, &at)?, parse_at(&node.boot_key, &at)?);
            let addresses = node.addresses.get_ref().clone();
            if addresses.is_empty() || addresses.iter().any(|address| !is_address(address)) {
                return refuse(node.addresses.span(), "addresses are host:port, at least one");
            }
            if !names.insert(name.clone()) {
                return refuse(node.name.span(), "a second node of this name");
            }
            if *node.id.get_ref() == 0 || !ids.insert(*node.id.get_ref()) {
                return refuse(node.id.span(), "zero, or a second node of this id");
            }
            if !keys.insert(key) {
                return refuse(node.key.span(), "a second node of this key");
            }
            if !keys.insert(boot_key) {
                return refuse(node.boot_key.span(), "a second node of this key");
            }
            nodes.push(ClusterNode { name, id: NodeId(*node.id.get_ref()), addresses, key, boot_key });
        }
        if nodes.is_empty() {
            return Err(form(None, "it names no node".to_owned()));
        }
        nodes.sort_by_key(|node| node.id);
        Ok(Self { cluster, nodes })
    }

    /// The text of the file, with a comment that says what it is.
    pub fn to_text(&self) -> String {
        let mut text = "# Quorate client file: the cluster and where its nodes are. It holds no secret.\n".to_owned();
        text += &format!("cluster = \"{}\"\n", self.cluster);
        for node in &self.nodes {
            // Names and keys need no quoting; addresses come from operators.
            let addresses = toml::Value::Array(node.addresses.iter().map(|a| toml::Value::String(a.clone())).collect());
            text += &format!(
                "\n[[node]]\nname = \"{}\"\nid = {}\naddresses = {addresses}\nkey = \"{}\"\nboot_key = \"{}\"\n",
                node.name, node.id, node.key, node.boot_key
            );
        }
        text
    }

    /// Reads the client file at `path`.
    ///
    /// # Errors
    /// [`ClusterFileError`], also for a file above [`CLUSTER_FILE_BYTES_MAX`].
    pub fn read(path: &Path) -> Result<Self, ClusterFileError> {
        let failed = |source| ClusterFileError::Io { path: path.to_owned(), source };
        Self::read_from(&mut fs::File::open(path).map_err(failed)?, path)
    }

    /// Reads a client file from `input`, which errors call `name`.
    ///
    /// # Errors
    /// As [`ClusterFile::read`].
    pub fn read_from(input: &mut dyn Read, name: &Path) -> Result<Self, ClusterFileError> {
        let failed = |source| ClusterFileError::Io { path: name.to_owned(), source };
        let mut text = String::new();
        // A pipe does not say its length.
        input.take(CLUSTER_FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
        if text.len() as u64 > CLUSTER_FILE_BYTES_MAX {
            return Err(ClusterFileError::Form { line: None, message: "too large to be one".to_owned() });
        }
        Self::parse(&text)
    }

    /// Writes the file by [`place::put`]. If it is new, it has mode 0644.
    ///
    /// # Errors
    /// [`ClusterFileError::Io`].
    pub fn write(&self, path: &Path) -> Result<(), ClusterFileError> {
        let failed = |source| ClusterFileError::Io { path: path.to_owned(), source };
        place::put(path, self.to_text().as_bytes(), 0o644).map_err(failed)
    }

    /// Writes a file that must be new, with mode 0644.
    ///
    /// # Errors
    /// [`ClusterFileError::Io`], also if there is anything at `path`.
    pub fn write_new(&self, path: &Path) -> Result<(), ClusterFileError> {
        let failed = |source| ClusterFileError::Io { path: path.to_owned(), source };
        place::create_with_mode(path, self.to_text().as_bytes(), 0o644).map_err(failed)
    }

    /// The node with this name.
    pub fn node(&self, name: &str) -> Option<&ClusterNode> {
        self.nodes.iter().find(|node| node.name.as_str() == name)
    }

    /// The node whose op key or boot key this is.
    pub fn owner(&self, key: PublicKey) -> Option<&ClusterNode> {
        self.nodes.iter().find(|node| node.key == key || node.boot_key == key)
    }
}

fn parse_at<T: std::str::FromStr<Err: std::fmt::Display>>(
    text: &toml::Spanned<String>,
    line: &impl Fn(usize) -> Option<usize>,
) -> Result<T, ClusterFileError> {
    text.get_ref()
        .parse()
        .map_err(|error: T::Err| ClusterFileError::Form { line: line(text.span().start), message: error.to_string() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn sample() -> ClusterFile {
        let node = |id: u8, addresses: &[&str]| ClusterNode {
            name: format!("n{id}").parse().expect("a name"),
            id: NodeId(id.into()),
            addresses: addresses.iter().map(|&address| address.to_owned()).collect(),
            key: PublicKey([id; 32]),
            boot_key: PublicKey([id + 100; 32]),
        };
        ClusterFile {
            cluster: ClusterId([7; 16]),
            nodes: vec![node(1, &["10.0.0.1:7250"]), node(2, &["[::1]:7", "n2.example:7250"])],
        }
    }

    #[test]
    fn the_file_survives_its_text_and_every_user_may_read_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("cluster.toml");
        sample().write(&path).expect("written");
        sample().write(&path).expect("written over itself");
        assert_eq!(ClusterFile::read(&path).expect("read"), sample());
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o644 & mode);
        assert_eq!(fs::read_dir(directory.path()).expect("readable").count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_wrong_file_is_refused_with_the_line() {
        let good = sample().to_text();
        ClusterFile::parse(&good).expect("the control");
        let cases = [
            ("id = 2", "id = 1", "line 13: zero, or a second node of this id"),
            ("name = \"n2\"", "name = \"n1\"", "line 12: a second node of this name"),
            ("name = \"n2\"", "name = \"N2\"", "line 12: a name has only"),
            ("name = \"n2\"", "nam = \"n2\"", "line 12: unknown field `nam`"),
            ("10.0.0.1:7250", "10.0.0.1", "line 7: addresses are host:port"),
            ("10.0.0.1:7250", "10.0.0.1:0", "line 7: addresses are host:port"),
            ("cluster = \"07", "cluster = \"x7", "line 2: an identifier is 32"),
            ("cluster = \"07", "cluster = 07\"", "line 2: "),
            ("AQEB", "AgIC", "line 8: a public key is 32 bytes"),
        ];
        for (from, to, expected) in cases {
            let bad = if from == "AQEB" { good.replacen("AQEB", "AQE", 1) } else { good.replacen(from, to, 1) };
            let error = ClusterFile::parse(&bad).expect_err(to).to_string();
            assert!(error.starts_with(&format!("client file {expected}")), "{to}: {error}");
        }
        let twice = good.replace(&PublicKey([2; 32]).to_string(), &PublicKey([1; 32]).to_string());
        assert!(ClusterFile::parse(&twice).expect_err("one key twice").to_string().contains("second node of this key"));
        let empty = format!("cluster = \"{}\"\n", ClusterId([7; 16]));
        assert!(ClusterFile::parse(&empty).expect_err("no node").to_string().contains("names no node"));
    }
}
