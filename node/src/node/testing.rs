//! Helpers for the unit tests of a node.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use quorate_client::conn::{Conn, Handler, Reply};
use quorate_client::identity::{Identity, Protocol, dial, server_config};
use quorate_shares::ids::{NodeId, ShareKeyGeneration};
use quorate_shares::lock::{Bundle, ShareKey, StorageKey};
use quorate_shares::secret::Secret;

use crate::base::background::Background;
use crate::base::config::{Config, PinAt, SecretMemory, Timing};
use crate::base::random;
use crate::node::Node;
use crate::vault::disk::DataDir;
use crate::vault::{RosterMember, Standing, Vault, VaultFile};

/// How long a connection on this machine may take.
const DIAL: Duration = Duration::from_secs(30);

struct Silent;

impl Handler for Silent {
    fn handle(&self, _conn: &Conn, _body: bytes::Bytes) -> Reply {
        Reply::Inline(Vec::new())
    }
}

/// A voter with made-up keys.
pub(crate) fn member(node: u64) -> RosterMember {
    let key = |salt: u8| std::array::from_fn(|_| node as u8 ^ salt);
    RosterMember {
        node: NodeId(node),
        boot_pk: key(0x10),
        op_pk: key(0x20),
        standing: Standing { member: true, voter: true, ..Standing::default() },
        name: format!("n{node}").parse().expect("a name"),
        addresses: vec!["127.0.0.1:7250".parse().expect("an address")],
    }
}

/// A bundle with one key of each kind.
pub(crate) fn bundle() -> Bundle {
    let mut rng = random::system();
    Bundle {
        op_seed: Secret::random(&mut rng),
        storage_keys: vec![StorageKey { number: 1, key: Secret::random(&mut rng) }],
        share_keys: vec![ShareKey { generation: ShareKeyGeneration(1), seed: Secret::random(&mut rng) }],
    }
}

/// A node with this vault in `dir`. It accepts no connections.
pub(crate) fn node_of(dir: &Path, vault: Vault) -> Arc<Node> {
    let data = DataDir::open(dir).expect("a data directory");
    let config = Config {
        data: dir.into(),
        listen: "127.0.0.1:0".parse().expect("an address"),
        advertise: "127.0.0.1:7250".into(),
        name: "n2".parse().expect("a name"),
        socket: dir.join("socket"),
        secret_memory: SecretMemory::Auto,
        pin: PinAt::Vault,
        unlock_from: None,
        peers: BTreeMap::new(),
        timing: Timing::default(),
        expect_member: false,
        rebuild_state: false,
    };
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().expect("an address")).expect("a socket");
    let boot_seed = vault.identity.boot_seed.duplicate();
    let file = VaultFile::create(&data, vault).expect("a vault");
    let node = Node::new(config, data, endpoint, boot_seed, Background::start().expect("a thread"), |_, _, _, _| {
        Arc::new(Silent)
    });
    node.adopt_vault(file);
    node
}

/// A connection that `peer` dials. Returns the end that was dialled, then the end of `peer`, which answers with `handler`.
pub(crate) async fn dialled_by(peer: &Identity, protocol: Protocol, handler: Option<Arc<dyn Handler>>) -> (Conn, Conn) {
    let any = "127.0.0.1:0".parse().expect("an address");
    let me = Identity::random();
    let config = server_config(&me, Some(&me), &Protocol::ALL);
    let server = quinn::Endpoint::server(config, any).expect("a socket");
    let client = quinn::Endpoint::client(any).expect("a socket");
    let address = server.local_addr().expect("bound");
    let accept = async { server.accept().await.expect("a connection").await.expect("a handshake") };
    let dial = dial(&client, address, peer, me.public(), protocol, DIAL);
    let (accepted, dialled) = tokio::join!(accept, dial);
    (Conn::start(accepted, None), Conn::start(dialled.expect("connects"), handler))
}
