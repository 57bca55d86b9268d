//! LockOpen: after a loss of power a node gets its own keys back from its peers, and no operator types anything.
//!
//! The locked node sends to every peer that its lock names the piece that was sealed to that peer. A peer that holds the lock
//! key opens the piece and returns it, sealed for that one connection. With enough pieces the bundle opens. The node asks
//! without end. Peers answer even while they are locked themselves, so a whole cluster can come back.

use std::sync::Arc;
use std::time::Duration;

use quorate_client::conn::{Conn, Lane};
use quorate_shares::ids::NodeId;
use quorate_shares::labels;
use quorate_shares::lock::{
    self, Bundle, Lock, LockOpenCode, LockOpenReply, LockOpenRequest, LockParams, RosterPosition,
};
use quorate_shares::secret::Secret;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::lock::{absence, pin};
use crate::node::Node;
use crate::node::locks::Unlocking;
use crate::peers::dial::{Closing, MemberProtocol, dial_member};
use crate::peers::revocation;
use crate::vault::lock_keys::{self, Stale};
use crate::vault::{Roster, RosterLogId};

/// How long one peer may take to be dialled and to answer.
const ASK: Duration = Duration::from_secs(2);
/// The shortest and the longest pause between two requests to one peer.
const AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Why a lock can never be opened by this process.
#[derive(Debug, thiserror::Error)]
pub enum UnlockError {
    /// The pin is missing: the local half of the bundle's key.
    #[error("{0}")]
    Pin(String),
    /// The vault has no lock and no unfinished founding.
    #[error("the vault holds no lock")]
    NoLock,
}

impl UnlockError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Pin(_) => "make the pin available again, then start quorated",
            Self::NoLock => "this node never finished joining; join again with an empty data directory",
        }
    }
}

/// Asks the peers until the bundle opens.
///
/// # Errors
/// [`UnlockError`] if the bundle can never open. If a quorum of peers is missing, this waits without end.
pub async fn run(node: &Arc<Node>) -> Result<Bundle, UnlockError> {
    let lock = node.with_vault(|vault| vault.lock.clone()).flatten().ok_or(UnlockError::NoLock)?;
    let params = LockParams { cluster: node.cluster(), node: node.id(), generation: lock.generation() };
    let pin = pin::read(lock.pin()).map_err(UnlockError::Pin)?;
    let mut failed = None;
    loop {
        let pieces = gather_pieces(node, &lock, &params, failed).await;
        match lock.open(&params, &pieces, &pin) {
            Ok(bundle) => {
                *node.enrolment().locks.unlocking.lock() = Unlocking::default();
                info!("unlocked");
                return Ok(bundle);
            }
            Err(error) => {
                // One peer gave a wrong piece, or this vault is damaged: other peers may answer first the next time.
                warn!(%error, "the lock does not open with these pieces; asking again");
                failed = Some(error.to_string());
                node.enrolment().locks.unlocking.lock().failed.clone_from(&failed);
                sleep(AGAIN.1).await;
            }
        }
    }
}

/// Collects as many pieces as the lock needs, from the peers that answer first. `failed` says why the pieces of before did not open it.
async fn gather_pieces(
    node: &Arc<Node>,
    lock: &Lock,
    params: &LockParams,
    failed: Option<String>,
) -> Vec<(u8, Secret<32>)> {
    let peers: Vec<NodeId> = lock.pieces().iter().map(|piece| piece.peer).collect();
    *node.enrolment().locks.unlocking.lock() = Unlocking { failed, ..Unlocking::begin(lock) };
    info!(need = lock.needed(), of = peers.len(), "locked: asking the peers");
    let (give, mut given) = mpsc::channel(peers.len().max(1));
    let mut asking: Vec<_> = peers
        .iter()
        .filter_map(|&peer| lock.request(params, peer, node.boot_nonce))
        .map(|request| tokio::spawn(ask(Arc::clone(node), request, give.clone())))
        .collect();
    drop(give);
    let requests = revocation_requests(node, lock, params);
    asking.extend(requests.into_iter().map(|request| tokio::spawn(collect_attestations(Arc::clone(node), request))));
    let mut pieces = Vec::with_capacity(lock.needed().into());
    while pieces.len() < usize::from(lock.needed()) {
        let Some(piece) = given.recv().await else { break };
        pieces.push(piece);
        node.enrolment().locks.unlocking.lock().have = pieces.len() as u8;
    }
    asking.iter().for_each(tokio::task::JoinHandle::abort);
    pieces
}

/// Asks one peer until it gives its piece.
async fn ask(node: Arc<Node>, request: LockOpenRequest, give: mpsc::Sender<(u8, Secret<32>)>) {
    let mut pause = AGAIN.0;
    loop {
        match timeout(ASK, ask_once(&node, &request)).await.unwrap_or_else(|_| Err("no answer".to_owned())) {
            Ok(piece) => {
                node.enrolment().locks.unlocking.lock().waiting_for.remove(&request.to);
                // This fails if enough pieces are there already.
                let _ = give.send((request.x, piece)).await;
                return;
            }
            Err(reason) => {
                debug!(peer = %request.to, %reason, "no piece yet");
                if let Some(said) = node.enrolment().locks.unlocking.lock().waiting_for.get_mut(&request.to) {
                    *said = reason;
                }
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(AGAIN.1);
    }
}

/// A request to each voter with zeros instead of a piece: it only asks whether this node was revoked.
fn revocation_requests(node: &Node, lock: &Lock, params: &LockParams) -> Vec<LockOpenRequest> {
    let roster = node.roster();
    let any = lock_keys::named_peers(lock).first().copied();
    let request_to = |to| {
        let request = any.and_then(|peer| lock.request(params, peer, node.boot_nonce))?;
        Some(LockOpenRequest { to, sealed: std::array::from_fn(|_| 0), ..request })
    };
    roster.voters().filter(|voter| *voter != node.id()).filter_map(request_to).collect()
}

/// Sends one of these requests again and again, once a peer has said that this node was revoked. The node believes that only
/// with attestations of a majority of the voters. The peers that the lock names may be too few for that, and a peer that
/// gave its piece is not asked for it again. Only the code "revoked" counts in the answers. Never returns.
async fn collect_attestations(node: Arc<Node>, request: LockOpenRequest) {
    while !node.enrolment().revocation.is_said() {
        sleep(AGAIN.1).await;
    }
    loop {
        drop(timeout(ASK, ask_once(&node, &request)).await);
        sleep(AGAIN.1).await;
    }
}

async fn ask_once(node: &Arc<Node>, request: &LockOpenRequest) -> Result<Secret<32>, String> {
    let connection = dial_member(node, &node.enrolment(), request.to, MemberProtocol::Boot, ASK).await?;
    let closing = Closing(Conn::start(connection, None));
    let conn = &closing.0;
    let reply = conn.call(Lane::Ordinary, &request.encode(), ASK).await.map_err(|error| error.to_string())?;
    let reply = LockOpenReply::parse(&reply).map_err(|error| error.to_string())?;
    match reply.code() {
        LockOpenCode::Ok => {
            reply.open(&conn.export(labels::EXPORTER_LOCK, &request.hash())).map_err(|error| error.to_string())
        }
        code => {
            if code == LockOpenCode::Revoked {
                let RosterPosition { term, leader, index } = reply.roster();
                revocation::note_attestation(
                    &node.enrolment(),
                    request.to,
                    RosterLogId { term, leader: leader.0, index },
                );
            }
            let said = explain(code);
            warn!(peer = %request.to, said, "refused to open this node's lock");
            Err(said.to_owned())
        }
    }
}

fn explain(code: LockOpenCode) -> &'static str {
    match code {
        LockOpenCode::Ok => "opened",
        LockOpenCode::Denied => {
            "this node is being removed from the cluster, or asks from an address that is not allowed"
        }
        LockOpenCode::Revoked => "this node was revoked",
        LockOpenCode::StaleGeneration => "this is an old copy of the disk: its lock was renewed since",
        LockOpenCode::DuplicateSession => "this node is alive in another process",
        LockOpenCode::AwayTooLong => "this node was away for too long; an operator must admit it: `quorate node admit`",
        LockOpenCode::Busy => "busy",
    }
}

/// The peer's side: opens the piece in `body`, unless a check refuses it. Malformed bytes get an empty answer.
pub async fn give_piece(node: &Arc<Node>, conn: &Conn, body: &[u8]) -> Vec<u8> {
    let Ok(request) = LockOpenRequest::parse(body) else {
        return Vec::new();
    };
    let position = roster_position(&node.roster());
    let reply = match decide(node, conn, &request).await {
        Ok(piece) => {
            info!(to = %request.from, generation = request.generation, "opened a piece of a peer's lock");
            LockOpenReply::grant(position, &piece, &conn.export(labels::EXPORTER_LOCK, &request.hash()))
        }
        Err(code) => {
            // Any host may ask, so the log must not fill the disk. The important cases raise an alarm.
            debug!(from = %request.from, remote = %conn.peer().remote, why = explain(code), "refused LockOpen");
            match LockOpenReply::refuse(code, position) {
                Some(reply) => reply,
                None => return Vec::new(),
            }
        }
    };
    reply.encode()
}

/// Checks that the asking node is a trusted member, and opens its piece.
async fn decide(node: &Arc<Node>, conn: &Conn, request: &LockOpenRequest) -> Result<Secret<32>, LockOpenCode> {
    let roster = node.roster();
    if request.cluster != node.cluster() || request.to != node.id() {
        return Err(LockOpenCode::Denied);
    }
    if let Some(code) = turned_away(&roster, request.from, &conn.peer().key.0) {
        // The boot key proves which node asks. The id in the request is only a claim.
        if let Some(former) = roster.revoked_with(&conn.peer().key.0) {
            let name = node.former_name(former).map_or_else(|| format!("node {former}"), |name| name.to_string());
            let message = format!("{name} is no member any more, and its disk asks to be unlocked");
            node.alarm("former_member", former, message);
        }
        return Err(code);
    }
    let address = conn.peer().remote.ip();
    if !node.config.may_unlock_from(address) {
        // The alarm names the address and is written to the disk. Two addresses in turn must not keep the disk busy.
        if node.peers().rates.foreign_address.allows(request.from, 1) {
            let message = format!("{} asks to be unlocked from {address}", node.name_of(request.from));
            node.alarm("foreign_address", request.from, format!("{message}, which is in no network of `unlock_from`"));
        }
        return Err(LockOpenCode::Denied);
    }
    if !node.peers().rates.lock_open.allows(request.from, 1) {
        return Err(LockOpenCode::Busy);
    }
    let stale = node.with_vault(|vault| lock_keys::seed_for(vault, request).err()).flatten();
    if stale == Some(Stale::OldImage) {
        let message = format!("an old copy of the disk of {} asks to be unlocked", node.name_of(request.from));
        node.alarm("stale_image", request.from, message);
        return Err(LockOpenCode::StaleGeneration);
    }
    if let Some(session) = node.peers().sessions.with(request.from)
        && session.boot_nonce != request.boot_nonce
    {
        if session.is_alive().await {
            let message = format!("{} asks to be unlocked while it lives", node.name_of(request.from));
            node.alarm("duplicate_session", request.from, format!("{message}: is a copy of its disk running?"));
            return Err(LockOpenCode::DuplicateSession);
        }
        session.conn.close(quorate_client::conn::close::REPLACED, "silent while its node asks to be unlocked");
    }
    if absence::is_over(node, request.from) {
        return Err(LockOpenCode::AwayTooLong);
    }
    // The session may have been silent because the node was denied meanwhile, so the roster is checked once more. While the
    // vault is held, no denial becomes durable. So either the denial is seen here, or the piece is given before this node
    // acknowledges the denial.
    let seed = node.with_vault(|vault| match turned_away(&node.roster(), request.from, &conn.peer().key.0) {
        Some(code) => Err(code),
        None => lock_keys::seed_for(vault, request).map_err(|_| LockOpenCode::StaleGeneration),
    });
    let seed = seed.unwrap_or(Err(LockOpenCode::StaleGeneration))?;
    lock::open_piece(&seed, request).map_err(|_| LockOpenCode::StaleGeneration)
}

/// Why a node with `roster` opens no piece for the owner of `boot_pk`, which claims to be `from`; `None` for a trusted member.
pub fn turned_away(roster: &Roster, from: NodeId, boot_pk: &[u8; 32]) -> Option<LockOpenCode> {
    if roster.is_revoked(boot_pk) {
        return Some(LockOpenCode::Revoked);
    }
    let member = roster.member(from).filter(|member| member.boot_pk == *boot_pk);
    member.is_none_or(|member| member.standing.denied).then_some(LockOpenCode::Denied)
}

/// The log position of `roster`, as a reply carries it.
pub fn roster_position(roster: &Roster) -> RosterPosition {
    RosterPosition { term: roster.log_id.term, leader: NodeId(roster.log_id.leader), index: roster.log_id.index }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random;
    use crate::messages::peer::Hello;
    use crate::node::testing::{bundle, dialled_by, member, node_of};
    use crate::peers::session;
    use crate::vault::{RosterMember, Vault};
    use bytes::Bytes;
    use quorate_client::conn::{Handler, Reply};
    use quorate_client::identity::{Identity, Protocol, server_config};
    use quorate_raft::level::LEVEL;
    use quorate_shares::ids::ClusterId;
    use quorate_shares::lock::LockPeer;

    const CLUSTER: ClusterId = ClusterId([1; 16]);

    /// The running n2: when it is pinged, the entry that denies it is appended here.
    struct Denied(Arc<Node>);

    impl Handler for Denied {
        fn handle(&self, _conn: &Conn, _ping: Bytes) -> Reply {
            let denied = self.0.update_roster(|vault| {
                vault.roster.members.iter_mut().filter(|member| member.node == NodeId(2)).for_each(|member| {
                    member.standing.denied = true;
                });
            });
            denied.expect("durable");
            self.0.enrolment().close_sessions_with_strangers();
            Reply::Inline(Vec::new())
        }
    }

    /// Scenario: a thief runs a copy of a running node, and the copy asks without pause while the node is revoked. The denial
    /// closes the session on which this peer checks whether the node is alive. That silence must not open the lock. Mutated:
    /// without the second check of the roster the piece is given.
    #[tokio::test]
    async fn a_denial_that_comes_while_the_session_is_asked_is_obeyed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (boot, op) = (Identity::random(), Identity::random());
        let mut vault = Vault::new(CLUSTER, Secret::random(&mut random::system()));
        vault.identity.node = Some(NodeId(1));
        let mut second = member(2);
        (second.boot_pk, second.op_pk) = (boot.public().0, op.public().0);
        vault.roster.members = vec![member(1), second, member(3)];
        let nothing = crate::messages::peer::LockState { generation: 0, key_number: 0 };
        let offer = lock_keys::prepare(&mut vault, NodeId(2), nothing, &mut random::system());
        let (key_number, public_key) = offer.expect("the first key");
        let peers = [LockPeer { peer: NodeId(1), key_number, public_key }];
        let (place, pin) = lock_keys::inline_pin(&mut random::system());
        let bundle = bundle();
        let params = LockParams { cluster: CLUSTER, node: NodeId(2), generation: 1 };
        let lock = Lock::seal(&params, 1, place, &pin, &peers, &bundle, &mut random::system()).expect("a lock");
        let request = lock.request(&params, NodeId(1), [7; 32]).expect("it names this node");
        let node = node_of(dir.path(), vault);

        let (thief, _theirs) = dialled_by(&boot, Protocol::Boot, None).await;
        assert!(
            decide(&node, &thief, &request).await.is_ok(),
            "the control: while the node is away, its disk is opened"
        );
        let (living, _open) = dialled_by(&op, Protocol::Peer, Some(Arc::new(Denied(Arc::clone(&node))))).await;
        let hello = Hello { node: NodeId(2), boot_nonce: [8; 32], flushed: None, level: LEVEL };
        session::accept_hello(&node, &node.enrolment(), &living, &hello).await.expect("a member");
        assert_eq!(decide(&node, &thief, &request).await.err(), Some(LockOpenCode::Denied));
    }

    /// A member with a newer roster, which answers every LockOpen with "revoked".
    struct AnswersRevoked;

    impl Handler for AnswersRevoked {
        fn handle(&self, _conn: &Conn, _question: Bytes) -> Reply {
            let position = RosterPosition { term: 9, leader: NodeId(2), index: 9 };
            let reply = LockOpenReply::refuse(LockOpenCode::Revoked, position).expect("a refusal");
            Reply::Inline(reply.encode())
        }
    }

    fn voter_that_answers_revoked(node: u64) -> RosterMember {
        let boot = Identity::random();
        let config = server_config(&boot, None, &[Protocol::Boot]);
        let server = quinn::Endpoint::server(config, "127.0.0.1:0".parse().expect("an address")).expect("a socket");
        let address = server.local_addr().expect("bound").to_string().parse().expect("an address");
        tokio::spawn(async move {
            while let Some(incoming) = server.accept().await {
                Conn::start(incoming.await.expect("a handshake"), Some(Arc::new(AnswersRevoked)));
            }
        });
        RosterMember { boot_pk: boot.public().0, addresses: vec![address], ..member(node) }
    }

    /// The lock names only one of the two other voters, and one attestation is no majority. Mutated: if no other voter is
    /// asked, this node asks for ever.
    #[tokio::test]
    async fn a_node_whose_lock_names_too_few_voters_hears_that_it_was_revoked() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut vault = Vault::new(CLUSTER, Secret::random(&mut random::system()));
        (vault.identity.node, vault.roster.members) =
            (Some(NodeId(1)), vec![member(1), voter_that_answers_revoked(2), voter_that_answers_revoked(3)]);
        let params = LockParams { cluster: CLUSTER, node: NodeId(1), generation: 1 };
        let public_key = quorate_shares::kem::PublicKey::of_seed(&Secret::random(&mut random::system()));
        let peers = [LockPeer { peer: NodeId(2), key_number: 1, public_key }];
        let (place, pin) = lock_keys::inline_pin(&mut random::system());
        let bundle = bundle();
        let lock = Lock::seal(&params, 1, place, &pin, &peers, &bundle, &mut random::system()).expect("a lock");
        let node = node_of(dir.path(), vault);
        let believed = timeout(Duration::from_secs(30), async {
            tokio::select! {
                _ = revocation::awaited(&node) => {}
                _ = gather_pieces(&node, &lock, &params, None) => panic!("no peer gives a piece"),
            }
        });
        believed.await.expect("in time");
    }
}
