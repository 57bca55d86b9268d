//! A thief who plays a node over the network, with the vault of its stolen disk.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::Command as Program;
use std::time::Duration;

use quorate_client::conn::{Conn, Lane, close};
use quorate_client::identity::{DialError, Identity, Protocol, PublicKey, dial};
use quorate_node::messages::caller::{Caller, Door};
use quorate_node::messages::peer::{
    Forwarded, ForwardedRequest, Hello, KeyChange, LockState, Order, PeerRequest, SharesRequest, VerifyRequest,
};
use quorate_node::vault::{self, Vault};
use quorate_raft::command::{Change, Command, Invite};
use quorate_raft::level::LEVEL;
use quorate_shares::ids::{Epoch, KeyUid, KeyVersion, NodeId};
use quorate_shares::labels::EXPORTER_LOCK;
use quorate_shares::lock::{LockOpenCode, LockOpenReply, LockOpenRequest, LockParams};
use quorate_shares::secret::Secret;
use quorate_testnet::Cluster;
use quorate_testnet::procs::{Binaries, Lifetime, Process};
use tempfile::TempDir;

use super::names::of_each_variant;
use super::{TestCluster, name};

/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The vault of a stolen disk, and a network of the thief's own.
pub(crate) struct Impostor {
    pub(crate) vault: Vault,
    boot: Identity,
    endpoint: quinn::Endpoint,
}

impl Impostor {
    pub(crate) fn steal(cluster: &TestCluster, node: &str) -> Self {
        let stolen = tempfile::tempdir().expect("a directory");
        let disk = cluster.testnet.steal(&[node], stolen.path()).expect("steals").remove(0);
        Self::of(cluster, vault::inspect(&disk).expect("a vault"))
    }

    /// A thief who has this vault.
    pub(crate) fn of(cluster: &TestCluster, vault: Vault) -> Self {
        let boot = Identity::from_seed(&vault.identity.boot_seed);
        let endpoint = cluster.block(async { quinn::Endpoint::client("127.0.0.1:0".parse().expect("an address")) });
        Self { vault, boot, endpoint: endpoint.expect("a socket") }
    }

    /// The same thief with a boot key that no member has.
    pub(crate) fn with_boot_key(self, boot: Identity) -> Self {
        Self { boot, ..self }
    }

    pub(crate) async fn dial(&self, cluster: &TestCluster, node: &str, protocol: Protocol) -> Result<Conn, DialError> {
        let file = cluster.file();
        let node = file.node(node).expect("a node");
        let expected = match protocol {
            Protocol::Boot | Protocol::Join => node.boot_key,
            Protocol::Peer | Protocol::Client => node.key,
        };
        let address = node.addresses[0].parse().expect("an address");
        let connection = dial(&self.endpoint, address, &self.boot, expected, protocol, PATIENCE).await?;
        Ok(Conn::start(connection, None))
    }

    /// The question that the stolen node would ask of `to`.
    pub(crate) fn lock_open(&self, to: NodeId) -> LockOpenRequest {
        let lock = self.vault.lock.as_ref().expect("a lock");
        let node = self.vault.identity.node.expect("an id");
        let params = LockParams { cluster: self.vault.identity.cluster, node, generation: lock.generation() };
        lock.request(&params, to, [7; 32]).expect("the lock names this peer")
    }

    /// Asks `to` for its piece of the stolen lock: what it answers, and the piece with its number, if it gives it.
    pub(crate) fn ask(&self, cluster: &TestCluster, to: &str) -> (LockOpenCode, Option<(u8, Secret<32>)>) {
        cluster.block(async {
            let boot = self.dial(cluster, to, Protocol::Boot).await.expect("the boot door");
            self.ask_on(cluster, to, &boot).await
        })
    }

    /// As [`Impostor::ask`], by a network of the caller's, at the address where `to` itself listens. An error if the handshake
    /// fails.
    pub(crate) fn ask_through(
        &self,
        cluster: &TestCluster,
        to: &str,
        endpoint: &quinn::Endpoint,
    ) -> Result<LockOpenCode, DialError> {
        let (address, key) = (cluster.listens_at(to), cluster.file().node(to).expect("a node").boot_key);
        cluster.block(async {
            let connection = dial(endpoint, address, &self.boot, key, Protocol::Boot, PATIENCE).await?;
            let boot = Conn::start(connection, None);
            let (code, piece) = self.ask_on(cluster, to, &boot).await;
            assert_eq!(piece.is_some(), code == LockOpenCode::Ok);
            Ok(code)
        })
    }

    /// Asks on a connection and closes it. A node takes only some connections of one address.
    async fn ask_on(&self, cluster: &TestCluster, to: &str, boot: &Conn) -> (LockOpenCode, Option<(u8, Secret<32>)>) {
        let request = self.lock_open(cluster.file().node(to).expect("a node").id);
        let answer = boot.call(Lane::Ordinary, &request.encode(), PATIENCE).await.expect("answers");
        let reply = LockOpenReply::parse(&answer).expect("a reply");
        let piece = reply.open(&boot.export(EXPORTER_LOCK, &request.hash())).ok();
        boot.close(close::DONE, "done");
        (reply.code(), piece.map(|piece| (request.x, piece)))
    }
}

/// What the requests of a member are about, so that a test can choose whether they would change anything.
pub(crate) struct About<'a> {
    /// The member that asks.
    pub(crate) me: NodeId,
    /// The lock that is durable at that member, as the asked node knows it.
    pub(crate) durable: LockState,
    /// A node that is to leave.
    pub(crate) gone: &'a str,
    /// Whether the asked node is to be sealed.
    pub(crate) sealed: bool,
}

/// A daemon that runs from the copy of a disk, at an address of its own.
pub(crate) struct RunningCopy {
    pub(crate) socket: PathBuf,
    _process: Process,
    _stolen: TempDir,
}

impl RunningCopy {
    /// Steals the disk of `node` and starts a daemon from the copy.
    pub(crate) fn start(testnet: &Cluster, node: &str) -> Self {
        let stolen = tempfile::tempdir().expect("a directory");
        let copy = testnet.steal(&[node], stolen.path()).expect("steals").remove(0);
        let port = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port");
        let socket = copy.join("impostor.sock");
        let mut command = Program::new(Binaries::find().expect("built").quorated);
        command.arg("--data").arg(&copy).arg("--socket").arg(&socket).args(["--listen", &port.to_string()]);
        let process = Process::start(command, &copy, &copy.join("impostor.log"), Lifetime::WithUs).expect("starts");
        Self { socket, _process: process, _stolen: stolen }
    }
}

/// One of everything that a member may ask of another.
pub(crate) fn every_peer_request(me: NodeId) -> Vec<PeerRequest> {
    every_peer_request_about(&About {
        me,
        durable: LockState { generation: 1, key_number: 1 },
        gone: "n3",
        sealed: true,
    })
}

/// [`every_peer_request`], about something else.
pub(crate) fn every_peer_request_about(about: &About<'_>) -> Vec<PeerRequest> {
    let (uid, version, epoch) = (KeyUid([1; 16]), KeyVersion(1), Epoch(1));
    let durable = about.durable;
    let mut requests = vec![
        PeerRequest::Hello(Hello { node: about.me, boot_nonce: [7; 32], flushed: None, level: LEVEL }),
        PeerRequest::Ping,
        PeerRequest::Raft(serde_bytes::ByteBuf::from(vec![0; 64])),
        PeerRequest::Lease,
        PeerRequest::Shares(SharesRequest { epoch, versions: vec![(uid, version)], request: [0; 16] }),
        PeerRequest::Verify(VerifyRequest { epoch, index: 0, versions: vec![(uid, version)] }),
        PeerRequest::AckEpoch { epoch, index: 0 },
        PeerRequest::LockPrepare(durable),
        PeerRequest::LockCommit(durable),
        PeerRequest::LockErased(durable),
        PeerRequest::FoundingTerms,
        PeerRequest::FoundingLocked { attempt: u32::MAX },
        PeerRequest::Propose(Box::new(Command::new(0, Change::ActivateEpoch { epoch }))),
        PeerRequest::Report,
        PeerRequest::Flushed(quorate_raft::Flushed::default()),
        PeerRequest::Roster,
    ];
    requests.extend(every_forwarded_request(about).into_iter().map(forwarded));
    of_each_variant(requests)
}

/// One of everything that a member may forward to another.
fn every_forwarded_request(about: &About<'_>) -> Vec<ForwardedRequest> {
    let (request, gone, me) = ([0; 16], || about.gone.parse().expect("a name"), about.me);
    let changes = of_each_variant(vec![
        KeyChange::Create { request, name: name("new"), tags: BTreeMap::new() },
        KeyChange::Rotate { request, name: name("key"), expect: None },
    ]);
    let orders = of_each_variant(vec![
        Order::Remove { request, name: gone(), accept_no_redundancy: true, abandon: Vec::new() },
        Order::Revoke { request, names: vec![gone()], expect_back: Vec::new() },
    ]);
    let others = vec![
        ForwardedRequest::Progress { operation: Epoch(1) },
        ForwardedRequest::Invite(Invite { proof_key: [1; 32], name: None, ttl_ms: 1_000 }),
        ForwardedRequest::Replace { invitation: [1; 32], gone: me },
        ForwardedRequest::Seal { sealed: about.sealed },
        ForwardedRequest::Admit { node: me },
        ForwardedRequest::Disarm { codes: None },
        ForwardedRequest::SetAddresses { name: gone(), addresses: vec!["127.0.0.1:1".to_owned()] },
    ];
    let changes = changes.into_iter().map(ForwardedRequest::Change);
    of_each_variant(changes.chain(orders.into_iter().map(ForwardedRequest::Order)).chain(others).collect())
}

fn forwarded(request: ForwardedRequest) -> PeerRequest {
    let caller = Caller::operator(PublicKey([0; 32]), Door::Client, "127.0.0.1:4711".parse().expect("an address"));
    PeerRequest::Forwarded(Box::new(Forwarded { caller, request }))
}
