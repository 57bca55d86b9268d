//! What all tests share: a cluster with a client for each of its nodes, typed commands, an impostor, documents, and the names
//! that serde knows.

pub(crate) mod commands;
pub(crate) mod documents;
pub(crate) mod impostor;
pub(crate) mod names;
pub(crate) mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use quorate_client::wire::Phase;
use quorate_client::{Client, ClusterFile, Context, Credential, Error, KeyName, Options};
pub(crate) use quorate_testnet::Dice;
use quorate_testnet::faults::network::Faults;
use quorate_testnet::procs::local_status;
use quorate_testnet::{Builder, Cluster, wait_until};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// Longer than anything here takes on a busy machine; a test that reaches it has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// What the status of a locked node says about a peer that refused to open its piece. A peer that is busy, or does not answer, has
/// another text.
const REFUSALS: [&str; 5] = [
    "this node is being removed from the cluster",
    "this node was revoked",
    "this is an old copy of the disk",
    "this node is alive in another process",
    "this node was away for too long",
];

/// A founded cluster, and a runtime for the clients of its nodes.
pub(crate) struct TestCluster {
    /// The processes, their directories and their network.
    pub(crate) testnet: Cluster,
    runtime: Runtime,
}

impl TestCluster {
    /// Three nodes with default settings.
    pub(crate) fn found() -> Self {
        Self::of(Cluster::builder())
    }

    /// Where a node itself listens, with no relay before it.
    pub(crate) fn listens_at(&self, node: &str) -> SocketAddr {
        let manifest = self.testnet.directory().existing_manifest().expect("a cluster");
        manifest.nodes.iter().find(|entry| entry.name == node).expect("a node").listen
    }

    /// Three nodes that keep the locks of their founding: for tests that hold on to one.
    pub(crate) fn with_lasting_locks() -> Self {
        Self::of(Cluster::builder().settings("[timing]\nrenew_lock_after_ms = 3600000\n"))
    }

    /// `nodes` nodes with default settings.
    pub(crate) fn of_nodes(nodes: u8) -> Self {
        Self::of(Cluster::builder().nodes(nodes))
    }

    /// A cluster with these settings.
    pub(crate) fn of(builder: Builder) -> Self {
        Self::with(builder.found().expect("a cluster is founded"))
    }

    /// A cluster that was founded otherwise.
    pub(crate) fn with(testnet: Cluster) -> Self {
        Self { testnet, runtime: Runtime::new().expect("a runtime") }
    }

    /// Runs async client code.
    pub(crate) fn block<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Runs async client code in the background.
    pub(crate) fn spawn<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.runtime.spawn(future)
    }

    /// What the network does to datagrams.
    pub(crate) fn faults(&self) -> &Faults {
        self.testnet.faults().expect("the relay runs in this process")
    }

    /// The node that leads, once there is one.
    pub(crate) fn leader(&self) -> String {
        let client = self.client(None);
        self.until("a leader", || self.block(client.status()).ok()?.leader).to_string()
    }

    /// Reads the client file.
    pub(crate) fn file(&self) -> ClusterFile {
        ClusterFile::read(&self.testnet.directory().client_file()).expect("founding wrote the client file")
    }

    /// Writes the client file again, for the cluster as it is now.
    pub(crate) fn export(&self) {
        let file = self.block(self.client(None).export()).expect("a client file");
        file.write(&self.testnet.directory().client_file()).expect("written");
    }

    /// Reads the operator key.
    pub(crate) fn token(&self) -> Credential {
        let text = std::fs::read_to_string(self.testnet.directory().token()).expect("founding wrote the token");
        Credential::parse(&text).expect("a token")
    }

    /// A client of one node, or of any.
    pub(crate) fn client(&self, node: Option<&str>) -> Client {
        self.client_with(Options { node: node.map(str::to_owned), ..Options::default() })
    }

    /// A client with these options.
    pub(crate) fn client_with(&self, options: Options) -> Client {
        self.block(Client::connect(self.file(), &self.token(), options)).expect("the client file names a node")
    }

    /// A client of one node, which asks once.
    pub(crate) fn hasty(&self, node: &str) -> Client {
        self.client_with(Options { node: Some(node.to_owned()), patience: Duration::ZERO, ..Options::default() })
    }

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
        for node in self.testnet.names() {
            self.testnet.kill(&node).expect("dies");
        }
    }

    /// Starts the named nodes.
    pub(crate) fn start(&mut self, nodes: &[&str]) {
        for node in nodes {
            self.testnet.start(node).expect("starts");
        }
    }

    /// Waits until `probe` finds something.
    pub(crate) fn until<T>(&self, what: &str, probe: impl FnMut() -> Option<T>) -> T {
        wait_until(what, PATIENCE, probe).expect("in time")
    }

    /// Waits until the node at `socket`, which runs from a disk that must be worth nothing, is turned away: it knows that it
    /// was revoked, or each of `peers` has refused to open its lock. A peer that did not answer yet might still open it. The
    /// node must never come further than that.
    pub(crate) fn until_turned_away(&self, socket: &Path, peers: &[&str]) {
        let ask = || {
            let status = local_status(socket).ok()?;
            let phase = status.public.phase;
            assert!(matches!(phase, Phase::Locked | Phase::Revoked), "it is {phase}");
            Some(status)
        };
        let mut left: BTreeSet<&str> = peers.iter().copied().collect();
        let mut last = String::new();
        let turned_away = wait_until("every peer to refuse", PATIENCE, || {
            let status = ask()?;
            last = status.operation.map(|unlocking| unlocking.step).unwrap_or_default();
            left.retain(|peer| !REFUSALS.iter().any(|refusal| last.contains(&format!("{peer}: {refusal}"))));
            (left.is_empty() || status.public.phase == Phase::Revoked).then_some(())
        });
        turned_away.unwrap_or_else(|error| panic!("{error}: not heard of {left:?}: {last:?}"));
        self.until("it to stay as it is", ask);
    }
}

pub(crate) fn name(name: &str) -> KeyName {
    name.parse().expect("a key name")
}

/// The seed of a random test: drawn and printed, or taken from `QUORATE_SEED` to run it again.
pub(crate) fn seed() -> u64 {
    let given = std::env::var("QUORATE_SEED").ok().map(|text| text.parse().expect("QUORATE_SEED is a number"));
    let seed = given.unwrap_or_else(|| {
        let mut drawn = [0; 8];
        getrandom::fill(&mut drawn).expect("the operating system gives randomness");
        u64::from_be_bytes(drawn)
    });
    println!("QUORATE_SEED={seed}");
    seed
}

/// The variable with the number of rounds; `make soak` sets it.
const ROUNDS_VARIABLE: &str = "QUORATE_RESTART_ROUNDS";

/// How many rounds to run: `usual`, unless the variable is set.
pub(crate) fn restart_rounds(usual: usize) -> usize {
    let given = std::env::var(ROUNDS_VARIABLE).ok();
    given.map_or(usual, |text| text.parse().unwrap_or_else(|_| panic!("{ROUNDS_VARIABLE} is a number")))
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
