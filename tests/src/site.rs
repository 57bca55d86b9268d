//! A cluster, a client for each of its nodes, and what every test does with them.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use quorate_client::{Client, ClusterFile, Context, Error, KeyName, Options, Token};
use quorate_testnet::{Builder, Cluster, wait_until};
use tokio::runtime::Runtime;

/// Longer than anything here takes on a busy machine; a test that reaches it has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A founded cluster.
pub(crate) struct Site {
    pub(crate) cluster: Cluster,
    runtime: Runtime,
}

impl Site {
    /// Three nodes with default settings.
    pub(crate) fn found() -> Self {
        Self::of(Cluster::builder())
    }

    /// `nodes` nodes with default settings.
    pub(crate) fn of_nodes(nodes: u8) -> Self {
        Self::of(Cluster::builder().nodes(nodes))
    }

    /// A cluster to order.
    pub(crate) fn of(builder: Builder) -> Self {
        let cluster = builder.found().expect("a cluster is founded");
        Self { cluster, runtime: Runtime::new().expect("a runtime") }
    }

    /// Runs async client code.
    pub(crate) fn block<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// The client file.
    pub(crate) fn file(&self) -> ClusterFile {
        ClusterFile::read(&self.cluster.directory().client_file()).expect("founding wrote the client file")
    }

    /// The root token.
    pub(crate) fn token(&self) -> Token {
        let text = std::fs::read_to_string(self.cluster.directory().token()).expect("founding wrote the token");
        Token::parse(&text).expect("a token")
    }

    /// A client of one node, or of any.
    pub(crate) fn client(&self, node: Option<&str>) -> Client {
        let options = Options { node: node.map(str::to_owned), ..Options::default() };
        self.block(Client::connect(self.file(), self.token(), options)).expect("the client file names a node")
    }

    /// Makes a key.
    pub(crate) fn create(&self, key: &str) {
        let client = self.client(None);
        self.block(client.create_key(&name(key), BTreeMap::new())).expect("the key is made");
    }

    /// Encrypts without context.
    pub(crate) fn encrypt(&self, node: Option<&str>, key: &str, plaintext: &[u8]) -> Result<String, Error> {
        let client = self.client(node);
        self.block(client.encrypt(&name(key), &Context::empty(), plaintext))
    }

    /// Decrypts without context.
    pub(crate) fn decrypt(&self, node: Option<&str>, ciphertext: &str) -> Result<Vec<u8>, Error> {
        let client = self.client(node);
        self.block(client.decrypt(ciphertext, &Context::empty())).map(|plaintext| plaintext.expose().to_vec())
    }

    /// Kills every node without warning.
    pub(crate) fn kill_all(&mut self) {
        for node in self.cluster.names() {
            self.cluster.kill(&node).expect("dies");
        }
    }

    /// Starts the named nodes.
    pub(crate) fn start(&mut self, nodes: &[&str]) {
        for node in nodes {
            self.cluster.start(node).expect("starts");
        }
    }

    /// Waits until `probe` finds something.
    pub(crate) fn until<T>(&self, what: &str, probe: impl FnMut() -> Option<T>) -> T {
        wait_until(what, PATIENCE, probe).expect("in time")
    }
}

/// A key name.
pub(crate) fn name(name: &str) -> KeyName {
    name.parse().expect("a key name")
}

/// Every way to choose `size` of `items`, in order.
pub(crate) fn subsets<'a>(items: &[&'a str], size: usize) -> Vec<Vec<&'a str>> {
    match (size, items) {
        (0, _) => vec![Vec::new()],
        (_, []) => Vec::new(),
        (_, [first, rest @ ..]) => {
            let with = subsets(rest, size - 1).into_iter().map(|mut subset| {
                subset.insert(0, *first);
                subset
            });
            with.chain(subsets(rest, size)).collect()
        }
    }
}
