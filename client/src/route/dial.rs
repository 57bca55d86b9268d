//! How the client reaches nodes: addresses, pinned identities, and kept connections.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use parking_lot::RwLock;
use quorate_shares::ids::NodeName;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::cluster_file::{ClusterFile, ClusterNode};
use crate::conn::{Conn, Lane, close};
use crate::error::{Code, Error};
use crate::identity::{DialError, Identity, Protocol, PublicKey, dial};
use crate::reach::{self, ReachError, Unreached};
use crate::wire::{self, PUBLIC_STATUS, PublicStatus, WireError};

/// How long a connection or the resolution of a name may take.
const DIAL_MAX: Duration = Duration::from_secs(3);

/// How long a node that could not be reached is asked last.
const DOWN: Duration = Duration::from_secs(5);

/// How long a client that closes waits for its last packets to leave.
const CLOSE_MAX: Duration = Duration::from_millis(20);

/// The nodes that the client may ask, and the socket from which it asks.
pub(super) struct Fleet {
    endpoint: quinn::Endpoint,
    me: Identity,
    file: ClusterFile,
    targets: Vec<Target>,
}

/// One node that the client may ask.
pub(super) struct Target {
    label: String,
    addresses: Vec<String>,
    /// The key that the node must prove. `None` for an address that the user gave; there, any node of the cluster may
    /// answer.
    key: Option<PublicKey>,
    kept: RwLock<Option<Conn>>,
    /// When it last answered, and when it last could not be reached.
    heard: RwLock<Heard>,
    /// Locked during dialling, so that other requests wait for that connection.
    dialling: Mutex<()>,
}

#[derive(Clone, Copy, Default)]
struct Heard {
    answered: Option<Instant>,
    failed: Option<Instant>,
}

impl Fleet {
    /// All nodes of `file`, or `only` one: its name, or an address.
    pub(super) fn new(file: ClusterFile, me: Identity, only: Option<&str>) -> Result<Self, Error> {
        let known = |node: &ClusterNode| Target::new(node.name.to_string(), node.addresses.clone(), Some(node.key));
        let targets: Vec<_> = match only {
            None => file.nodes.iter().map(known).collect(),
            Some(only) => {
                let named = file.node(only);
                let at = || file.nodes.iter().find(|node| node.addresses.iter().any(|address| address == only));
                match named.or_else(at) {
                    Some(node) => vec![known(node)],
                    None if only.contains(':') => vec![Target::new(only.to_owned(), vec![only.to_owned()], None)],
                    None => {
                        let mut names: Vec<_> = file.nodes.iter().map(|node| node.name.as_str()).collect();
                        names.sort_unstable();
                        let hint = format!("the client file names {}, or give HOST:PORT", names.join(", "));
                        return Err(WireError::new(Code::NotFound, format!("no node named {only}")).hint(hint).into());
                    }
                }
            }
        };
        if targets.is_empty() {
            return Err(WireError::new(Code::BadRequest, "the client file names no node").into());
        }
        Ok(Self { endpoint: endpoint()?, me, file, targets })
    }

    pub(super) fn targets(&self) -> &[Target] {
        &self.targets
    }

    pub(super) async fn close(&self) {
        self.endpoint.close(close::DONE.into(), b"done");
        // Long enough for the last packets to leave. QUIC itself would wait until all are acknowledged. A node that
        // does not receive them learns from the silence that the connection ended.
        let _ = timeout(CLOSE_MAX, self.endpoint.wait_idle()).await;
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.endpoint.close(close::DONE.into(), b"done");
    }
}

impl Target {
    fn new(label: String, addresses: Vec<String>, key: Option<PublicKey>) -> Self {
        Self { label, addresses, key, kept: RwLock::default(), heard: RwLock::default(), dialling: Mutex::default() }
    }

    pub(super) fn label(&self) -> &str {
        &self.label
    }

    /// A connection to the node, and whether it existed before.
    pub(super) async fn connection(&self, fleet: &Fleet, until: Instant) -> Result<(Conn, bool), WireError> {
        if let Some(conn) = self.kept() {
            return Ok((conn, true));
        }
        let _one = self.dialling.lock().await;
        if let Some(conn) = self.kept() {
            return Ok((conn, true));
        }
        match reach(&fleet.endpoint, &fleet.me, &fleet.file, self, Protocol::Client, until).await {
            Ok(reached) => {
                let conn = Conn::start(reached, None);
                *self.kept.write() = Some(conn.clone());
                self.note_heard();
                Ok((conn, false))
            }
            Err(error) => {
                *self.heard.write() = Heard { answered: None, failed: Some(Instant::now()) };
                Err(error)
            }
        }
    }

    /// Notes that the node has just answered.
    pub(super) fn note_heard(&self) {
        *self.heard.write() = Heard { answered: Some(Instant::now()), failed: None };
    }

    /// Whether the node answered within this time.
    pub(super) fn was_heard_within(&self, time: Duration) -> bool {
        self.heard.read().answered.is_some_and(|answered| answered.elapsed() <= time)
    }

    /// Whether the node could not be reached a moment ago. Others are asked first then.
    pub(super) fn is_down(&self) -> bool {
        self.heard.read().failed.is_some_and(|failed| failed.elapsed() < DOWN)
    }

    /// Drops the kept connection if it is `ended`.
    pub(super) fn forget(&self, ended: &Conn) {
        let mut kept = self.kept.write();
        if kept.as_ref().is_some_and(|conn| conn.same_as(ended)) {
            *kept = None;
        }
    }

    /// How many datagrams have arrived on the kept connection. If the number grows, the node works.
    pub(super) fn packets(&self) -> u64 {
        self.kept().map_or(0, |conn| conn.quic().stats().udp_rx.datagrams)
    }

    fn kept(&self) -> Option<Conn> {
        self.kept.read().clone()
    }
}

/// Asks every node of `file` for its public state, without a credential. This works while no node serves. Boot keys lie in
/// plain on disks, so a stolen disk can give such an answer: show it to people, and base no decision on it.
pub async fn survey(file: &ClusterFile, deadline: Duration) -> Vec<(NodeName, Result<PublicStatus, WireError>)> {
    let endpoint = match endpoint() {
        Ok(endpoint) => endpoint,
        Err(error) => return file.nodes.iter().map(|node| (node.name.clone(), Err(error.error.clone()))).collect(),
    };
    let mut asked = JoinSet::new();
    for (number, node) in file.nodes.iter().enumerate() {
        let (endpoint, file) = (endpoint.clone(), file.clone());
        let target = Target::new(node.name.to_string(), node.addresses.clone(), Some(node.boot_key));
        asked.spawn(async move {
            let until = Instant::now() + deadline;
            let ask = async {
                let connection = reach(&endpoint, &Identity::random(), &file, &target, Protocol::Boot, until).await?;
                let conn = Conn::start(connection, None);
                let left = until.saturating_duration_since(Instant::now());
                let answer = conn.call(Lane::Ordinary, PUBLIC_STATUS, left).await;
                conn.close(close::DONE, "done");
                let answer = answer.map_err(|error| WireError::new(Code::Unreachable, error.to_string()))?;
                wire::decode(&answer)
            };
            (number, ask.await)
        });
    }
    let mut answers = asked.join_all().await;
    answers.sort_by_key(|(number, _)| *number);
    endpoint.close(close::DONE.into(), b"done");
    answers.into_iter().map(|(number, answer)| (file.nodes[number].name.clone(), answer)).collect()
}

/// Connects to the first address of `target` that answers with the pinned identity. A name may have several addresses.
async fn reach(
    endpoint: &quinn::Endpoint,
    me: &Identity,
    file: &ClusterFile,
    target: &Target,
    protocol: Protocol,
    until: Instant,
) -> Result<quinn::Connection, WireError> {
    let left = until.saturating_duration_since(Instant::now()).min(DIAL_MAX);
    let dial = |address| reach_one(endpoint, me, file, target.key, address, protocol, until);
    reach::reach(&target.addresses, left, dial).await.map_err(|unreached| match reach::most_important(unreached) {
        Some(failed) => explain(failed, file, target),
        None => WireError::new(Code::Unreachable, "it has no address"),
    })
}

async fn reach_one(
    endpoint: &quinn::Endpoint,
    me: &Identity,
    file: &ClusterFile,
    key: Option<PublicKey>,
    address: SocketAddr,
    protocol: Protocol,
    until: Instant,
) -> Result<quinn::Connection, DialError> {
    let dial_once = |expected| {
        let left = until.saturating_duration_since(Instant::now()).min(DIAL_MAX);
        dial(endpoint, address, me, expected, protocol, left)
    };
    let Some(key) = key else {
        // Any node of the cluster may answer. The first try finds which it is, and the second one requires its key.
        let guess = file.nodes.first().map_or(PublicKey([0; 32]), |node| node.key);
        return match dial_once(guess).await {
            Err(DialError::WrongIdentity { presented }) if file.nodes.iter().any(|node| node.key == presented) => {
                dial_once(presented).await
            }
            result => result,
        };
    };
    dial_once(key).await
}

fn explain(Unreached { address, error }: Unreached, file: &ClusterFile, target: &Target) -> WireError {
    let unreachable = |message: String| WireError::new(Code::Unreachable, message);
    match error {
        ReachError::Dial(DialError::WrongIdentity { presented }) => {
            let whose = match file.owner(presented) {
                Some(node) => format!("the identity of {}", node.name),
                None => format!("an unknown identity ({presented})"),
            };
            let expected = if target.key.is_some() { target.label.as_str() } else { "a node of the client file" };
            WireError::new(Code::Identity, format!("{address} has {whose}, expected {expected}"))
                .hint("check that the client file belongs to this cluster; `quorate cluster export` prints a new one")
        }
        ReachError::Dial(DialError::Busy) => WireError::new(Code::Busy, "it is busy: too many connect at once"),
        ReachError::Dial(DialError::NotOffered) => {
            WireError::new(Code::Locked, "locked, or not yet part of the cluster")
        }
        ReachError::Dial(DialError::Deadline) => unreachable(format!("{address} does not answer")),
        ReachError::Dial(DialError::Refused(why)) => unreachable(format!("{address} refuses: {why}")),
        ReachError::Dial(DialError::Unreachable(why)) => unreachable(format!("{address}: {why}")),
        ReachError::Name(_) | ReachError::NoAddress | ReachError::Unresolved => {
            unreachable(format!("{address}: {error}"))
        }
    }
}

/// A socket for IPv6 and IPv4, or for IPv4 alone if there is no IPv6.
fn endpoint() -> Result<quinn::Endpoint, Error> {
    let both = quinn::Endpoint::client(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)));
    let endpoint = both.or_else(|_| quinn::Endpoint::client(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))));
    endpoint.map_err(|error| WireError::new(Code::Internal, format!("no network socket: {error}")).into())
}
