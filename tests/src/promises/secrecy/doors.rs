//! T15: who may ask what, at which door, in which phase of the node that is asked.
//!
//! [`TABLE`] says it: one line for each door, each caller and each kind of request. It is written by hand, and says what ARCHITECTURE
//! ("Phases", "Who asks") and THREATS say in words. Nothing in it is taken from the daemon.
//!
//! The test asks *every* request of every vocabulary at *every* door of real daemons, in every phase, under every key that there is, and holds each answer against the table. A request that is added to a vocabulary does not compile until it has a kind
//! here, and a line of the table that nothing asked is a failure. The control of each refusal is in the table, too: the same
//! bytes under the right key, in the right phase, are answered.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use quorate_client::conn::{CallError, Conn, Lane};
use quorate_client::error::Code;
use quorate_client::frame::{self, FrameKind, FrameReader};
use quorate_client::identity::{DialError, Identity, Protocol, PublicKey, dial};
use quorate_client::wire::{
    self, AdminProgress, AdminRequest, AdminResponse, Answered, Envelope, PUBLIC_STATUS, Phase, Request, Response,
    WireError,
};
use quorate_node::base::random;
use quorate_node::messages::caller::{Caller, Principal};
use quorate_node::messages::peer::{
    self, Forwarded, ForwardedRequest, Hello, LockState, PeerRefusal, PeerReply, PeerRequest,
};
use quorate_node::vault::invitation::{
    Invitation, InvitationKey, Inviter, JoinCode, JoinReply, JoinRequest, Registration,
};
use quorate_node::vault::{self, lock_keys};
use quorate_raft::level::LEVEL;
use quorate_raft::{Ballot, Flushed};
use quorate_shares::ids::{ClusterId, Epoch, NodeId, NodeName, ShareKeyGeneration};
use quorate_shares::kem;
use quorate_shares::labels::EXPORTER_JOIN;
use quorate_shares::lock::{
    Bundle, Lock, LockOpenCode, LockOpenReply, LockOpenRequest, LockParams, LockPeer, ShareKey, StorageKey,
};
use quorate_shares::secret::Secret;
use quorate_testnet::{Cluster, thief};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::harness::impostor::{About, Impostor, every_peer_request_about};
use crate::harness::names::of_each_variant;
use crate::harness::{PATIENCE, TestCluster, name};

/// How long one question may take.
const CALL: Duration = Duration::from_secs(2);
/// How long to wait for the answer to a question that must be let in. No answer in this time means that it was let in and waits, for
/// example for a quorum.
const LET_IN: Duration = Duration::from_secs(1);
/// How long to wait for a node that has no identity yet, and so does not even refuse.
const NO_ANSWER: Duration = Duration::from_millis(500);

/// Pause before a question is asked again.
const AGAIN: Duration = Duration::from_millis(50);

/// The columns of the table.
const PHASES: [Phase; 7] =
    [Phase::Uninitialised, Phase::Joining, Phase::Locked, Phase::Open, Phase::Sealed, Phase::Serving, Phase::Revoked];

/// Door, caller, kind of request; then the answer in each phase. The first line that fits counts. `anyone` is every caller,
/// `foreign` whatever is no request of this door, and `anything` that as well.
///
/// | answer | means |
/// |---|---|
/// | `shut` | the protocol is not offered, or the connection is closed without an answer |
/// | `silent` | an empty answer |
/// | `malformed` | not understood |
/// | `denied` | understood, and this caller may not |
/// | `hello-first` | this member has not said which process it is |
/// | `not-now` | the caller may, and the node cannot in this phase |
/// | `conflict` | the owner of the machine may, and it was done before |
/// | `done` | considered: carried out, or refused for what it asks and not for who asks |
/// | `-` | there is no such caller yet |
///
/// A caller is the key that it proves in the handshake.
#[rustfmt::skip]
const TABLE: &str = "
door    who             asks           uninitialised joining locked   open       sealed     serving    revoked

boot    anyone          status         shut     done       done      done       done       done       shut
boot    boot-key        lock           shut     done       done      done       done       done       shut
boot    anyone          lock           shut     denied     denied    denied     denied     denied     shut
boot    anyone          foreign        shut     silent     silent    silent     silent     silent     shut

join    anyone          proof          shut     done       shut      shut       shut       done       shut
join    anyone          false-proof    shut     denied     shut      shut       shut       denied     shut
join    anyone          foreign        shut     silent     shut      shut       shut       silent     shut

client  operator        about          shut     shut       shut      done       done       done       shut
client  operator        work           shut     shut       shut      not-now    not-now    done       shut
client  anyone          about          shut     shut       shut      denied     denied     denied     shut
client  anyone          work           shut     shut       shut      denied     denied     denied     shut
client  anyone          foreign        shut     shut       shut      malformed  malformed  malformed  shut

peer    op-key          hello          shut     done       shut      done       done       done       shut
peer    op-key          ping           shut     done       shut      done       done       done       shut
peer    op-key          members        shut     done       shut      done       done       done       shut
peer    op-key          state          shut     not-now    shut      done       done       done       shut
peer    op-key          no-own-change  shut     not-now    shut      malformed  malformed  malformed  shut
peer    op-key          shares         shut     not-now    shut      not-now    not-now    done       shut
peer    op-key          for-leader     shut     not-now    shut      done       done       done       shut
peer    op-key          to-be-told     shut     not-now    shut      done       done       done       shut
peer    op-key          disarm         shut     done       shut      done       done       done       shut
peer    op-key          for-no-client  shut     malformed  shut      malformed  malformed  malformed  shut
peer    op-key          foreign        shut     malformed  shut      malformed  malformed  malformed  shut
peer    op-key-unmet    ping           shut     done       shut      done       done       done       shut
peer    op-key-unmet    foreign        shut     malformed  shut      malformed  malformed  malformed  shut
peer    op-key-unmet    anything       shut     hello-first shut     hello-first hello-first hello-first shut
peer    revoked-op-key  anything       -        -          shut      denied     denied     denied     shut
peer    anyone          anything       shut     shut       shut      shut       shut       shut       shut

socket  owner           status         done     done       done      done       done       done       done
socket  owner           export         not-now  not-now    not-now   done       done       done       not-now
socket  owner           seal           not-now  not-now    done      done       done       done       done
socket  owner           admit          done     done       done      done       done       done       done
socket  owner           init           done     done       conflict  conflict   conflict   conflict   conflict
socket  owner           join           -        conflict   conflict  conflict   conflict   conflict   denied
socket  owner           foreign        malformed malformed malformed malformed  malformed  malformed  malformed
";

/// The name of a door of the network, as the table has it.
fn door(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Boot => "boot",
        Protocol::Join => "join",
        Protocol::Client => "client",
        Protocol::Peer => "peer",
    }
}

/// One line of the table.
struct Row {
    door: &'static str,
    who: &'static str,
    asks: &'static str,
    answers: [&'static str; PHASES.len()],
}

fn rows() -> Vec<Row> {
    let mut lines = TABLE.lines().filter(|line| !line.is_empty()).map(|line| line.split_whitespace().collect());
    let heading: Vec<&'static str> = lines.next().unwrap_or_default();
    assert_eq!(heading.get(3..), Some(&PHASES.map(Phase::as_str)[..]), "the columns");
    let rows = lines.map(|words: Vec<&'static str>| {
        let [door, who, asks, answers @ ..] = &words[..] else { panic!("three words and the answers: {words:?}") };
        let answers = answers.try_into().unwrap_or_else(|_| panic!("an answer for each phase: {words:?}"));
        Row { door, who, asks, answers }
    });
    rows.collect()
}

// -- the kinds of requests; no match has a catch-all arm

/// `about` the cluster needs the state; `work` needs a lease.
fn kind_of_client_request(request: &Request) -> &'static str {
    match request {
        Request::Status
        | Request::ListNodes
        | Request::NodeStatus { .. }
        | Request::Export
        | Request::SealNode { .. }
        | Request::UnsealNode { .. }
        | Request::AdmitNode { .. }
        | Request::ListAlarms
        | Request::DisarmAlarms { .. } => "about",
        Request::Encrypt { .. }
        | Request::Decrypt { .. }
        | Request::DataKey { .. }
        | Request::CreateKey { .. }
        | Request::ListKeys { .. }
        | Request::ShowKey { .. }
        | Request::RotateKey { .. }
        | Request::Echo(_)
        | Request::RemoveNode { .. }
        | Request::RevokeNodes { .. }
        | Request::Progress { .. }
        | Request::InviteNode { .. }
        | Request::ReplaceNode { .. }
        | Request::SetAddresses { .. } => "work",
    }
}

/// What `members` ask each other also while they found; what needs the replicated `state`; `no-own-change` is a change that a member may
/// not propose. What is forwarded is `for-leader`, `to-be-told` to a node that is a member by now, `disarm`, or `for-no-client`: then it
/// is in the name of one who asks for itself.
fn kind_of_peer_request(request: &PeerRequest) -> &'static str {
    match request {
        PeerRequest::Hello(_) => "hello",
        PeerRequest::Ping => "ping",
        PeerRequest::Shares(_) => "shares",
        PeerRequest::Raft(_) | PeerRequest::Lease | PeerRequest::Verify(_) | PeerRequest::AckEpoch { .. } => "state",
        // The list below proposes what only a leader may: which changes are a member's own is told in `peers::propose`.
        PeerRequest::Propose(_) => "no-own-change",
        PeerRequest::LockPrepare(_)
        | PeerRequest::LockCommit(_)
        | PeerRequest::LockErased(_)
        | PeerRequest::FoundingTerms
        | PeerRequest::FoundingLocked { .. }
        | PeerRequest::Report
        | PeerRequest::Flushed(_)
        | PeerRequest::Roster => "members",
        PeerRequest::Forwarded(forwarded) => match forwarded.caller.who {
            Principal::Member(_) | Principal::MachineOwner => "for-no-client",
            Principal::Operator => match forwarded.request {
                ForwardedRequest::Change(_)
                | ForwardedRequest::Order(_)
                | ForwardedRequest::Progress { .. }
                | ForwardedRequest::Invite(_)
                | ForwardedRequest::Replace { .. }
                | ForwardedRequest::SetAddresses { .. } => "for-leader",
                ForwardedRequest::Seal { .. } | ForwardedRequest::Admit { .. } => "to-be-told",
                ForwardedRequest::Disarm { .. } => "disarm",
            },
        },
    }
}

fn kind_of_admin_request(request: &AdminRequest) -> &'static str {
    match request {
        AdminRequest::Init { .. } => "init",
        AdminRequest::Join { .. } => "join",
        AdminRequest::Status => "status",
        AdminRequest::Export => "export",
        AdminRequest::Seal { .. } => "seal",
        AdminRequest::Admit { .. } => "admit",
    }
}

// -- every request there is

/// What one question is, and its bytes. The proof of an invitation belongs to one connection, so its bytes are made there.
enum Ask {
    Bytes(String, Vec<u8>),
    Proof(&'static str, Box<Proof>),
}

/// What a joiner proves, and with which invitation.
struct Proof {
    key: InvitationKey,
    /// What the owner of this boot key has registered before: with other keys it would be another node.
    known: Option<Registration>,
}

/// What the questions are about.
struct Subject {
    /// The member whose op key and boot key some callers have, and its lock as the asked node knows it.
    me: NodeId,
    durable: LockState,
    /// The question that this member would ask about its own lock.
    lock: LockOpenRequest,
    /// What this member has registered, while it founds.
    known: Option<Registration>,
    /// What an order about the asked node would say: nothing else than what it is.
    sealed: bool,
    ciphertext: String,
    invitation: String,
}

/// A node that is there: what is asked about it would have an effect, so only those ask who may not.
const THERE: &str = "n3";
/// A node that is not there.
const NOT_THERE: &str = "n9";

/// What clients ask about either node.
const ABOUT: [&str; 2] = [THERE, NOT_THERE];

impl Subject {
    /// One of everything that a client may ask, about the node `gone` that is to leave, to be replaced and to be sealed.
    fn every_client_request(&self, gone: &str) -> Vec<Request> {
        let empty = quorate_client::Context::empty;
        let text = |text: &str| wire::Plaintext::new(text.as_bytes().to_vec()).expect("short");
        let node = |name: &str| name.parse::<NodeName>().expect("a name");
        let (gone, request_id) = (|| node(gone), [0; 16]);
        of_each_variant(vec![
            Request::Status,
            Request::Encrypt { key: name("key"), context: empty(), plaintext: text("x") },
            Request::Decrypt { ciphertext: self.ciphertext.clone().into_bytes(), context: empty() },
            Request::DataKey { key: name("key"), context: empty(), bytes: 32 },
            Request::CreateKey { request_id, name: name("new"), tags: BTreeMap::new() },
            Request::ListKeys { after: None, limit: 10 },
            Request::ShowKey { name: name("key") },
            Request::RotateKey { request_id, name: name("key"), expect: None },
            Request::ListNodes,
            Request::NodeStatus { name: node("n1") },
            Request::Export,
            Request::Echo(vec![1]),
            Request::SealNode { name: gone() },
            Request::UnsealNode { name: gone() },
            Request::AdmitNode { name: gone() },
            Request::ListAlarms,
            Request::DisarmAlarms { codes: None },
            Request::RemoveNode { request_id, name: gone(), accept_no_redundancy: true, abandon: Vec::new() },
            Request::RevokeNodes { request_id, names: vec![gone()], expect_back: Vec::new() },
            Request::Progress { operation: Epoch(2) },
            Request::InviteNode { name: None, ttl_ms: 60_000 },
            Request::ReplaceNode { name: gone(), invitation: text(&self.invitation) },
            Request::SetAddresses { name: gone(), addresses: vec!["127.0.0.1:1".to_owned()] },
        ])
    }

    fn every_peer_request(&self) -> Vec<PeerRequest> {
        let Self { me, durable, sealed, .. } = *self;
        let mut requests = every_peer_request_about(&About { me, durable, gone: NOT_THERE, sealed });
        // A hello that no earlier process of the node is ahead of.
        let vote = Some(Ballot { term: u64::MAX, node: NodeId(u64::MAX), committed: true });
        let flushed = Some(Flushed { vote, truncations: u64::MAX, last_log: None });
        requests[0] = PeerRequest::Hello(Hello { node: me, boot_nonce: [7; 32], flushed, level: LEVEL });
        // What a member may not say in the name of another member, or of the owner of a machine.
        let remote = SocketAddr::from(([127, 0, 0, 1], 4711));
        for caller in [Caller::member(me, PublicKey([0; 32]), remote), Caller::machine_owner(0)] {
            let request = ForwardedRequest::Disarm { codes: None };
            requests.push(PeerRequest::Forwarded(Box::new(Forwarded { caller, request })));
        }
        requests
    }

    /// One of everything that the owner of the machine may ask. What begins something comes last.
    fn every_admin_request(&self) -> Vec<AdminRequest> {
        of_each_variant(vec![
            AdminRequest::Status,
            AdminRequest::Export,
            AdminRequest::Seal { sealed: self.sealed },
            AdminRequest::Admit { name: NOT_THERE.parse().expect("a name") },
            AdminRequest::Join { invitation: foreign_invitation() },
            AdminRequest::Init {
                founders: 2,
                threshold: None,
                allow_solo: false,
                accept_no_redundancy: true,
                operator: PublicKey::of_seed(&Secret::take(&mut [9; 32])),
                label: "Ada".to_owned(),
            },
        ])
    }

    /// Every question of every vocabulary. What clients ask is asked about each node, and without an envelope.
    fn everything(&self) -> Vec<Ask> {
        let bytes = |what: &str, bytes: Vec<u8>| Ask::Bytes(what.to_owned(), bytes);
        let mut all = vec![bytes("public status", PUBLIC_STATUS.to_vec())];
        all.push(bytes("LockOpen", self.lock.encode()));
        // An invitation that the asked node knows, and one that no node knows.
        let known: Invitation = self.invitation.parse().expect("an invitation");
        let proofs = [("proof", known.key()), ("false-proof", InvitationKey::of(&Secret::take(&mut [3; 32])))];
        all.extend(proofs.map(|(what, key)| Ask::Proof(what, Box::new(Proof { key, known: self.known.clone() }))));
        for gone in ABOUT {
            all.extend(self.every_client_request(gone).into_iter().map(|request| {
                let envelope = Envelope { deadline_ms: 60_000, request };
                bytes(&format!("{gone} {:?}", envelope.request), wire::encode(&envelope))
            }));
        }
        let bare = |request: &Request| bytes(&format!("without an envelope {request:?}"), wire::encode(request));
        all.extend(self.every_client_request(THERE).iter().map(bare));
        all.extend(self.every_peer_request().iter().enumerate().map(|(number, request)| {
            bytes(&format!("request {number} of a member, {}", kind_of_peer_request(request)), peer::encode(request))
        }));
        all.extend(self.every_admin_request().iter().map(|request| {
            bytes(&format!("at the machine: {}", kind_of_admin_request(request)), wire::encode(request))
        }));
        all
    }
}

// -- asking

/// A node that is asked.
struct House {
    address: SocketAddr,
    /// Unknown while it is uninitialised.
    boot: Option<PublicKey>,
    op: Option<PublicKey>,
    socket: PathBuf,
}

/// The walk through all doors of a node in one phase after the other.
struct Walk {
    rows: Vec<Row>,
    /// The cells of the table that were asked: row and phase.
    asked: BTreeSet<(usize, usize)>,
    endpoint: quinn::Endpoint,
}

/// Each answer that is not what the table says.
#[derive(Default)]
struct Wrong(Vec<String>);

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(lines) = self;
        writeln!(f, "{} answers that the table does not allow:", lines.len())?;
        lines.iter().take(60).try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl Walk {
    fn new(endpoint: quinn::Endpoint) -> Self {
        Self { rows: rows(), asked: BTreeSet::new(), endpoint }
    }

    /// Asks everything at every door of `house`, which is in `phase`, as each of these callers.
    async fn through(&mut self, house: &House, phase: Phase, keys: &[(&'static str, Identity)], subject: &Subject) {
        let (mut wrong, questions) = (Wrong::default(), subject.everything());
        for protocol in Protocol::ALL {
            for (key, identity) in keys {
                self.at_quic(&mut wrong, house, phase, (protocol, key, identity), &questions).await;
            }
        }
        // Only the last of these questions changes the phase, and only before there is a cluster.
        for question in &questions {
            let Ask::Bytes(what, body) = question else { continue };
            let asks = wire::decode::<AdminRequest>(body).map_or("foreign", |request| kind_of_admin_request(&request));
            let Some(cell) = self.cell("socket", "owner", asks, phase) else { continue };
            if asks == "init" {
                let status = at_socket(&house.socket, &wire::encode(&AdminRequest::Status)).await.2;
                assert_eq!(status, Some(phase), "the node is still in the phase that was meant");
            }
            let answer = at_socket(&house.socket, body).await.0;
            self.compare(&mut wrong, cell, phase, what, "owner", answer);
        }
        println!("{phase}: {} of {} lines asked so far", self.asked.len(), self.rows.len() * PHASES.len());
        assert!(wrong.0.is_empty(), "{wrong}");
    }

    async fn at_quic(
        &mut self,
        wrong: &mut Wrong,
        house: &House,
        phase: Phase,
        (protocol, key, identity): (Protocol, &'static str, &Identity),
        questions: &[Ask],
    ) {
        let door = door(protocol);
        let expected = match protocol {
            Protocol::Boot | Protocol::Join => house.boot,
            Protocol::Peer | Protocol::Client => house.op,
        };
        let expected = expected.unwrap_or_else(|| Identity::random().public());
        let patience = if phase == Phase::Uninitialised { NO_ANSWER } else { CALL };
        let endpoint = self.endpoint.clone();
        let open = async || match dial(&endpoint, house.address, identity, expected, protocol, patience).await {
            Ok(connection) => Some(Conn::start(connection, None)),
            Err(DialError::NotOffered | DialError::Refused(_) | DialError::Deadline | DialError::Unreachable(_)) => {
                None
            }
            // A door that shows who is behind it is not shut.
            Err(error @ (DialError::WrongIdentity { .. } | DialError::Busy)) => {
                panic!("the {door} door while {phase}: {error}")
            }
        };
        // A member is asked about twice: before it has said hello, and after that.
        let unmet = (door, key) == ("peer", "op-key");
        for &greeted in if unmet { &[false, true][..] } else { &[false] } {
            let conn = open().await;
            let caller = if unmet && !greeted { "op-key-unmet" } else { key };
            for question in questions {
                let (what, body) = match (question, &conn) {
                    (Ask::Bytes(what, body), _) => (what.as_str(), body.clone()),
                    (Ask::Proof(what, proof), Some(conn)) => (*what, proof.bytes(identity, conn)),
                    // Whatever the bytes are, there is no connection to prove it for.
                    (Ask::Proof(what, _), None) => (*what, b"QJN1".to_vec()),
                };
                let (asks, who) = meaning(protocol, what, &body, caller);
                if unmet && !greeted && asks == "hello" {
                    continue;
                }
                // An operator's order about a node that is there would be carried out.
                if (door, key) == ("client", "operator") && what.starts_with(THERE) {
                    continue;
                }
                let Some(cell) = self.cell(door, who, asks, phase) else { continue };
                let wanted = self.rows[cell].answers[column(phase)];
                // A hello must be answered: what is asked after it depends on it.
                let patience = if wanted == "done" && asks != "hello" { LET_IN } else { CALL };
                let ask = async || match &conn {
                    Some(conn) => match at(protocol, conn, &body, patience).await {
                        // It was let in, and waits for something, such as a quorum. A refusal comes at once.
                        "waits" if wanted == "done" => "done",
                        answer => answer,
                    },
                    None => "shut",
                };
                let mut answer = ask().await;
                // A leader may have to be found first.
                let begin = Instant::now();
                while (wanted, answer) == ("done", "not-now") && begin.elapsed() < PATIENCE {
                    tokio::time::sleep(AGAIN).await;
                    answer = ask().await;
                }
                self.compare(wrong, cell, phase, what, &format!("{caller}, as {who}"), answer);
            }
        }
    }

    /// The line of the table for a question; `None` if there is no such caller in this phase.
    fn cell(&self, door: &str, who: &str, asks: &str, phase: Phase) -> Option<usize> {
        let fits = |row: &Row| {
            row.door == door && (row.who == who || row.who == "anyone") && (row.asks == asks || row.asks == "anything")
        };
        let cell = self.rows.iter().position(fits);
        let cell = cell.unwrap_or_else(|| panic!("the table does not say what {who} may at the {door} door: {asks}"));
        (self.rows[cell].answers[column(phase)] != "-").then_some(cell)
    }

    fn compare(&mut self, wrong: &mut Wrong, cell: usize, phase: Phase, what: &str, who: &str, answer: &str) {
        let (row, column) = (&self.rows[cell], column(phase));
        self.asked.insert((cell, column));
        if row.answers[column] != answer {
            let Row { door, asks, answers, .. } = row;
            let wanted = answers[column];
            wrong.0.push(format!("{door} door, {phase}, {who}: {what} ({asks}): {answer}, and should be {wanted}"));
        }
    }

    /// Every line was asked in every phase.
    fn is_complete(&self) {
        for (row, line) in self.rows.iter().enumerate() {
            for (column, phase) in PHASES.iter().enumerate() {
                let Row { door, who, asks, answers } = line;
                let asked = self.asked.contains(&(row, column)) || answers[column] == "-";
                assert!(asked, "nothing asked what {who} may at the {door} door while {phase}: {asks}");
            }
        }
    }
}

fn column(phase: Phase) -> usize {
    PHASES.iter().position(|other| *other == phase).expect("all phases are there")
}

impl Proof {
    fn bytes(&self, boot: &Identity, conn: &Conn) -> Vec<u8> {
        let exporter = *conn.export(EXPORTER_JOIN, b"").expose();
        let known = self.known.clone().filter(|known| known.boot_pk == boot.public().0);
        // Not the name that the invitation is for.
        let other = || registration(boot, &Identity::random(), "n8");
        known.unwrap_or_else(other).request(&self.key, &exporter).expect("one address")
    }
}

fn registration(boot: &Identity, op: &Identity, name: &str) -> Registration {
    let (share_pk, name) = (some_public_key(), name.parse().expect("a name"));
    let addresses = vec!["127.0.0.1:1".parse().expect("an address")];
    Registration { boot_pk: boot.public().0, op_pk: op.public().0, share_pk, name, addresses }
}

fn some_public_key() -> kem::PublicKey {
    kem::PublicKey::of_seed(&Secret::random(&mut random::system()))
}

/// What `node` would ask of `peer` about a lock that is sealed to this key of the peer.
fn question_about_a_lock(cluster: ClusterId, node: NodeId, key: LockPeer) -> LockOpenRequest {
    let (rng, peer) = (&mut random::system(), key.peer);
    let secret = || Secret::take(&mut [1; 32]);
    let bundle = Bundle {
        op_seed: secret(),
        storage_keys: vec![StorageKey { number: 1, key: secret() }],
        share_keys: vec![ShareKey { generation: ShareKeyGeneration::FIRST, seed: secret() }],
    };
    let params = LockParams { cluster, node, generation: 1 };
    let (place, pin) = lock_keys::inline_pin(rng);
    let lock = Lock::seal(&params, 1, place, &pin, &[key], &bundle, rng).expect("a lock");
    lock.request(&params, peer, [7; 32]).expect("it names the peer")
}

/// An invitation to a cluster that is not there.
fn foreign_invitation() -> String {
    let inviters = vec![Inviter { boot_pk: [9; 32], address: "127.0.0.1:1".parse().expect("an address") }];
    let foreign = Invitation { cluster: ClusterId([9; 16]), secret: Secret::take(&mut [9; 32]), inviters };
    foreign.text().expect("a text").to_string()
}

/// What the bytes mean at a door, and who asks there: they may mean something in more than one vocabulary.
fn meaning(door: Protocol, what: &str, body: &[u8], key: &'static str) -> (&'static str, &'static str) {
    let asks = match door {
        Protocol::Boot if body == PUBLIC_STATUS => "status",
        Protocol::Boot => LockOpenRequest::parse(body).map_or("foreign", |_| "lock"),
        Protocol::Join => match what {
            "proof" => "proof",
            "false-proof" => "false-proof",
            _ => JoinRequest::parse(body).map_or("foreign", |_| "proof"),
        },
        Protocol::Client => match wire::decode::<Envelope>(body) {
            Ok(envelope) => kind_of_client_request(&envelope.request),
            Err(_) => "foreign",
        },
        Protocol::Peer => peer::decode::<PeerRequest>(body).map_or("foreign", |request| kind_of_peer_request(&request)),
    };
    (asks, key)
}

/// Asks at a door of the network.
async fn at(door: Protocol, conn: &Conn, body: &[u8], patience: Duration) -> &'static str {
    let answer = match conn.call(Lane::Ordinary, body, patience).await {
        Ok(answer) => answer,
        Err(CallError::Closed(_)) => return "shut",
        Err(CallError::Deadline) => return "waits",
        Err(error) => panic!("{error}"),
    };
    match door {
        _ if answer.is_empty() => "silent",
        Protocol::Boot => match LockOpenReply::parse(&answer).map(|reply| reply.code()) {
            Ok(LockOpenCode::Denied | LockOpenCode::Revoked) => "denied",
            Ok(LockOpenCode::StaleGeneration) => "stale",
            Ok(LockOpenCode::DuplicateSession) => "duplicate",
            Ok(LockOpenCode::AwayTooLong) => "away",
            Ok(LockOpenCode::Busy) => "busy",
            Ok(LockOpenCode::Ok) => "done",
            // Another answer: a status.
            Err(_) => "done",
        },
        Protocol::Join => match JoinReply::open(&answer, &InvitationKey::of(&Secret::zero()), &[0; 32]) {
            Ok(reply) if reply.code == JoinCode::Unknown => "denied",
            // It cannot be read without its key, so it is the answer to a proof.
            Ok(_) | Err(_) => "done",
        },
        Protocol::Client => match wire::decode::<Answered>(&answer).expect("an answer").answer {
            Ok(_) => "done",
            Err(refusal) => refused(&refusal),
        },
        Protocol::Peer => match peer::decode::<PeerReply>(&answer).expect("a reply") {
            PeerReply::Refused(refusal) => refused_by_peer(&refusal),
            PeerReply::Forwarded(Err(refusal)) if refusal.code == Code::Denied => "denied",
            PeerReply::Forwarded(Err(refusal)) if matches!(refusal.code, Code::NotServing | Code::Locked) => "not-now",
            PeerReply::Forwarded(_)
            | PeerReply::Hello(_)
            | PeerReply::Pong
            | PeerReply::Raft(_)
            | PeerReply::Lease { .. }
            | PeerReply::Shares(_)
            | PeerReply::Verified(_)
            | PeerReply::EpochAck { .. }
            | PeerReply::LockKey { .. }
            | PeerReply::FoundingTerms { .. }
            | PeerReply::Done
            | PeerReply::Report(_)
            | PeerReply::Roster(_) => "done",
        },
    }
}

fn refused(refusal: &WireError) -> &'static str {
    match refusal.code {
        Code::Denied => "denied",
        // What could be a variant of a newer version is refused as that.
        Code::BadRequest | Code::TooLarge | Code::Protocol => "malformed",
        Code::NotServing | Code::NoQuorum | Code::Locked => "not-now",
        Code::NotFound
        | Code::Conflict
        | Code::BadCiphertext
        | Code::Identity
        | Code::Unreachable
        | Code::Internal
        | Code::Storage
        | Code::Busy
        | Code::Deadline
        | Code::KeyUnavailable => "done",
    }
}

fn refused_by_peer(refusal: &PeerRefusal) -> &'static str {
    match refusal {
        PeerRefusal::NoHello => "hello-first",
        PeerRefusal::NotAMember
        | PeerRefusal::Denied
        | PeerRefusal::Revoked(_)
        | PeerRefusal::DuplicateSession
        | PeerRefusal::StorageWentBack => "denied",
        PeerRefusal::Phase(_) | PeerRefusal::NoLease => "not-now",
        PeerRefusal::Malformed | PeerRefusal::Unsupported(_) => "malformed",
        PeerRefusal::NotLeader(_)
        | PeerRefusal::NoQuorum
        | PeerRefusal::WrongEpoch
        | PeerRefusal::TooMany
        | PeerRefusal::NotFounding
        | PeerRefusal::Busy
        | PeerRefusal::Behind
        | PeerRefusal::Storage
        | PeerRefusal::State(_) => "done",
    }
}

/// Asks at the local socket. Returns also the progress that came first, or the phase that a status shows. A request that goes on
/// is done.
async fn at_socket(socket: &Path, body: &[u8]) -> (&'static str, Option<AdminProgress>, Option<Phase>) {
    let mut stream = UnixStream::connect(socket).await.expect("the socket is there");
    let (read, mut write) = stream.split();
    frame::write(&mut write, FrameKind::Request, 0, body).await.expect("sends");
    let mut reader = FrameReader::new(read);
    let frame = timeout(CALL, reader.next()).await.expect("an answer in time").expect("whole frames");
    let Some(frame) = frame else { return ("shut", None, None) };
    if frame.kind == FrameKind::Progress {
        return ("done", Some(wire::decode(&frame.body).expect("progress")), None);
    }
    match wire::decode::<Result<AdminResponse, WireError>>(&frame.body).expect("an answer") {
        Ok(AdminResponse::Status(status)) => ("done", None, Some(status.public.phase)),
        Ok(_) => ("done", None, None),
        Err(refusal) if refusal.code == Code::Conflict => ("conflict", None, None),
        Err(refusal) => (refused(&refusal), None, None),
    }
}

// -- the walk

/// Mutated: `InviteNode` and `ReplaceNode` that need no key; a boot door that answers clients; a peer door that lets a member
/// ask before its hello, or a revoked one at all; a member that forwards for another member; shares from a sealed node; LockOpen
/// for any boot key; a locked node that offers the client door.
#[test]
fn t15_every_request_at_every_door_in_every_phase() {
    let mut cluster =
        TestCluster::of(Cluster::builder().nodes(4).settings("[timing]\nrenew_lock_after_ms = 3600000\n"));
    let endpoint = cluster.block(async { quinn::Endpoint::client("127.0.0.1:0".parse().expect("an address")) });
    let mut walk = Walk::new(endpoint.expect("a socket"));
    before_there_is_a_cluster(&cluster, &mut walk);

    cluster.create("key");
    let ciphertext = cluster.encrypt(None, "key", b"secret").expect("encrypts");
    // The keys of two members, from disks that together open every lock. One of them is revoked.
    let stolen = tempfile::tempdir().expect("a directory");
    let disks = cluster.testnet.steal(&["n1", "n2", "n3", "n4"], stolen.path()).expect("steals");
    let keys_of = |place: usize| {
        let (vault, bundle) = thief::unlock(&disks[place], &disks).expect("all disks open its bundle");
        (Identity::from_seed(&vault.identity.boot_seed), Identity::from_seed(&bundle.op_seed))
    };
    let ((boot, op), (revoked_boot, revoked_op)) = (keys_of(1), keys_of(3));
    let callers = [
        ("stranger", Identity::random()),
        ("boot-key", boot),
        ("op-key", op),
        ("revoked-boot-key", revoked_boot),
        ("revoked-op-key", revoked_op),
        ("operator", cluster.token().identity()),
    ];
    let file = cluster.file();
    let houses: BTreeMap<&str, House> = ["n1", "n4"]
        .into_iter()
        .map(|node| {
            let entry = file.node(node).expect("a founder");
            let address = entry.addresses[0].parse().expect("an address");
            let socket = cluster.testnet.directory().socket(node);
            (node, House { address, boot: Some(entry.boot_key), op: Some(entry.key), socket })
        })
        .collect();
    let (first, last) = (&houses["n1"], &houses["n4"]);
    let member = Impostor::of(&cluster, vault::inspect(&disks[1]).expect("a vault"));
    let lock = member.lock_open(file.node("n4").expect("a founder").id).encode();
    let envelope = Envelope { deadline_ms: 60_000, request: Request::Status };
    let asked = [
        (Protocol::Boot, last.boot, PUBLIC_STATUS.to_vec()),
        (Protocol::Boot, last.boot, lock),
        (Protocol::Client, last.op, wire::encode(&envelope)),
    ];
    let early = asked.map(|(protocol, key, body)| {
        let me = if protocol == Protocol::Client { &callers[5].1 } else { &callers[1].1 };
        let key = key.expect("it is a member");
        let conn = cluster.block(async {
            let connection = dial(&walk.endpoint, last.address, me, key, protocol, CALL).await.expect("a member");
            Conn::start(connection, None)
        });
        let answer = cluster.block(at(protocol, &conn, &body, CALL));
        assert!(["done", "duplicate"].contains(&answer), "the control: the {} door: {answer}", door(protocol));
        (protocol, conn, body)
    });
    cluster.testnet.run(["node", "revoke", "n4", "--yes", "--wait"], b"").expect("revoked");
    cluster.testnet.wait_phase("n4", Phase::Revoked).expect("it is told");
    for (protocol, conn, body) in early {
        let answer = cluster.block(at(protocol, &conn, &body, CALL));
        assert!(
            ["silent", "not-now", "shut"].contains(&answer),
            "the {} door, a connection from before the revocation: {answer}",
            door(protocol)
        );
    }
    cluster.testnet.kill("n4").expect("dies");
    cluster.start(&["n4"]);
    cluster.testnet.wait_phase("n4", Phase::Revoked).expect("over a restart");

    // For another name than that of the proofs here, so no node comes in with it.
    let name = NOT_THERE.parse().expect("a name");
    let invitation = cluster.block(cluster.client(None).invite_node(Some(&name), Duration::from_secs(3_600)));
    let invitation = String::from_utf8(invitation.expect("an invitation").expose().to_vec()).expect("text");
    cluster.testnet.kill("n2").expect("dies, so that nothing speaks for the real node");
    let impostor = Impostor::steal(&cluster, "n2");
    let n1 = file.node("n1").expect("a founder").id;
    let subject = |sealed: bool| Subject {
        me: impostor.vault.identity.node.expect("an id"),
        durable: lock_keys::durable(&impostor.vault, n1),
        lock: impostor.lock_open(n1),
        known: None,
        sealed,
        ciphertext: ciphertext.clone(),
        invitation: invitation.clone(),
    };

    cluster.testnet.wait_serving(&["n1", "n3"]).expect("two of three serve");
    cluster.block(walk.through(first, Phase::Serving, &callers, &subject(false)));

    let (client, itself) = (cluster.client(Some("n1")), "n1".parse().expect("a name"));
    cluster.block(client.seal_node(&itself)).expect("sealed");
    cluster.testnet.wait_phase("n1", Phase::Sealed).expect("sealed");
    cluster.block(walk.through(first, Phase::Sealed, &callers, &subject(true)));
    cluster.block(client.unseal_node(&itself)).expect("unsealed");

    cluster.testnet.kill("n3").expect("dies");
    cluster.testnet.kill("n1").expect("dies");
    cluster.start(&["n1"]);
    cluster.testnet.wait_phase("n1", Phase::Locked).expect("alone");
    cluster.block(walk.through(first, Phase::Locked, &callers, &subject(false)));

    cluster.start(&["n3"]);
    cluster.until("n1 to be unlocked", || {
        let phase = cluster.testnet.status("n1").ok()?.public.phase;
        (phase != Phase::Locked).then_some(())
    });
    cluster.testnet.kill("n3").expect("dies");
    cluster.testnet.wait_phase("n1", Phase::Open).expect("without a lease");
    cluster.block(walk.through(first, Phase::Open, &callers, &subject(false)));

    cluster.block(walk.through(last, Phase::Revoked, &callers, &subject(false)));
    walk.is_complete();

    // n1 was told of a disk of n2 that is ahead of the real one, and remembers it in memory.
    cluster.testnet.kill("n1").expect("dies");
    cluster.start(&["n1", "n2", "n3"]);
    cluster.testnet.wait_serving(&["n1", "n2", "n3"]).expect("all are there again");
    let callers: Vec<_> =
        callers.into_iter().filter(|(key, _)| ["stranger", "op-key", "operator"].contains(key)).collect();
    what_changes_the_cluster(&cluster, &walk.endpoint, first, &callers, &subject(false));
}

/// The orders that change who is in the cluster, about a node that is there: refused to a stranger and to a member, and carried out for the
/// operator.
fn what_changes_the_cluster(
    cluster: &TestCluster,
    endpoint: &quinn::Endpoint,
    house: &House,
    callers: &[(&str, Identity)],
    subject: &Subject,
) {
    let mut done = 0;
    for (key, me) in callers {
        let requests = subject.every_client_request(THERE);
        let place = |request: &Request| match request {
            Request::InviteNode { .. } => Some(0),
            Request::ReplaceNode { .. } => Some(1),
            Request::RemoveNode { .. } => Some(2),
            // A revocation began this test, and the others change nothing about the members.
            _ => None,
        };
        let mut orders: Vec<_> = requests.into_iter().filter_map(|order| Some((place(&order)?, order))).collect();
        orders.sort_by_key(|(place, _)| *place);
        for (_, request) in orders {
            let what = format!("{key} {request:?}");
            let body = wire::encode(&Envelope { deadline_ms: 30_000, request });
            let answer = cluster.block(async {
                let op = house.op.expect("it is a member");
                let connection = dial(endpoint, house.address, me, op, Protocol::Client, CALL).await.expect("connects");
                let answer = Conn::start(connection, None).call(Lane::Ordinary, &body, PATIENCE).await;
                wire::decode::<Answered>(&answer.expect("answers")).expect("an answer").answer
            });
            match (*key, answer) {
                ("operator", Ok(Response::Invitation(_) | Response::Replacing | Response::Begun { .. })) => done += 1,
                ("operator", answer) => panic!("the control: {what}: {answer:?}"),
                (_, Err(refusal)) => assert_eq!(refusal.code, Code::Denied, "{what}"),
                (_, Ok(_)) => panic!("{what} was done"),
            }
        }
    }
    assert_eq!(done, 3, "the control: an invitation, a replacement and a removal");
}

/// The phases before there is a cluster: a daemon that waits for an operator, and one that waits for another founder. That other
/// founder is this test, with an invitation, so it has the keys of a member.
fn before_there_is_a_cluster(other: &TestCluster, walk: &mut Walk) {
    let testnet = Cluster::builder().nodes(1).start().expect("starts");
    let socket = testnet.directory().socket("n1");
    let address = testnet.directory().existing_manifest().expect("it runs").nodes[0].advertise;
    let (boot, op) = (Identity::random(), Identity::random());
    let callers = [
        ("stranger", Identity::random()),
        ("boot-key", boot.clone()),
        ("op-key", op.clone()),
        ("operator", other.token().identity()),
    ];
    let key = LockPeer { peer: NodeId(1), key_number: 1, public_key: some_public_key() };
    let mut subject = Subject {
        me: NodeId(2),
        durable: LockState { generation: 1, key_number: 1 },
        lock: question_about_a_lock(ClusterId([9; 16]), NodeId(2), key),
        known: None,
        sealed: false,
        ciphertext: "qrt1:key:1:m1:AAAA".to_owned(),
        invitation: foreign_invitation(),
    };
    let mut house = House { address, boot: None, op: None, socket };
    other.block(walk.through(&house, Phase::Uninitialised, &callers, &subject));

    // It founds now. The same command again draws another invitation.
    let init = subject.every_admin_request().pop().map(|init| wire::encode(&init)).expect("init comes last");
    let (answer, progress, _) = other.block(at_socket(&house.socket, &init));
    assert_eq!(answer, "done", "it waits for the other founder");
    subject.invitation = progress.and_then(|progress| progress.invitations.first().cloned()).expect("an invitation");
    let parsed: Invitation = subject.invitation.parse().expect("an invitation");
    let first = PublicKey(parsed.inviters[0].boot_pk);
    let known = registration(&boot, &op, "n2");
    let reply = other.until("every founder to be known", || {
        other.block(async {
            let connection = dial(&walk.endpoint, address, &boot, first, Protocol::Join, CALL).await.ok()?;
            let conn = Conn::start(connection, None);
            let exporter = *conn.export(EXPORTER_JOIN, b"").expose();
            let request = known.request(&parsed.key(), &exporter).expect("one address");
            let answer = conn.call(Lane::Ordinary, &request, CALL).await.ok()?;
            let reply = JoinReply::open(&answer, &parsed.key(), &exporter).expect("it knows the invitation");
            (reply.code == JoinCode::Complete).then_some(reply)
        })
    });
    let founder = reply.roster.member(NodeId(1)).expect("the first founder");
    (house.boot, house.op) = (Some(first), Some(PublicKey(founder.op_pk)));
    (subject.me, subject.known) = (reply.node.expect("an id"), Some(known));
    // A lock that n1 can open, from a key that it gives to this founder.
    let key = other.until("a lock key of n1", || {
        other.block(async {
            let connection = dial(&walk.endpoint, address, &op, house.op?, Protocol::Peer, CALL).await.ok()?;
            let conn = Conn::start(connection, None);
            let hello = subject.every_peer_request().into_iter().next().expect("hello comes first");
            conn.call(Lane::Ordinary, &peer::encode(&hello), CALL).await.ok()?;
            let prepare = PeerRequest::LockPrepare(LockState { generation: 0, key_number: 0 });
            let reply = conn.call(Lane::Ordinary, &peer::encode(&prepare), CALL).await.ok()?;
            let Ok(PeerReply::LockKey { key_number, public }) = peer::decode(&reply) else { return None };
            let public_key = kem::PublicKey::parse(&public).expect("a key");
            Some(LockPeer { peer: NodeId(1), key_number, public_key })
        })
    });
    subject.durable = LockState { generation: 1, key_number: key.key_number };
    subject.lock = question_about_a_lock(parsed.cluster, subject.me, key);
    other.block(walk.through(&house, Phase::Joining, &callers, &subject));
}

/// To look for an invitation that only another member may know costs a round to a quorum. Any stranger may ask. Mutated: each question
/// costs a round, and a stranger keeps the leader busy.
#[test]
fn an_unknown_invitation_is_looked_for_twice_a_second_and_no_more() {
    const QUESTIONS: usize = 50;
    let cluster = TestCluster::found();
    let file = cluster.file();
    let entry = file.node("n1").expect("a founder");
    let address = entry.addresses[0].parse().expect("an address");
    let (boot, op) = (Identity::random(), Identity::random());
    let registration = registration(&boot, &op, "n8");
    let (answers, elapsed) = cluster.block(async {
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().expect("an address")).expect("a socket");
        let connection = dial(&endpoint, address, &boot, entry.boot_key, Protocol::Join, CALL).await.expect("the door");
        let conn = Conn::start(connection, None);
        let exporter = *conn.export(EXPORTER_JOIN, b"").expose();
        let begin = Instant::now();
        let mut answers = Vec::new();
        for _ in 0..QUESTIONS {
            let key = InvitationKey::of(&Secret::random(&mut random::system()));
            let request = registration.request(&key, &exporter).expect("one address");
            answers.push(conn.call(Lane::Ordinary, &request, CALL).await.expect("an answer, or an empty one"));
        }
        (answers, begin.elapsed())
    });
    let looked = answers.iter().filter(|answer| !answer.is_empty()).count();
    println!("{looked} of {QUESTIONS} were looked for in {elapsed:?}");
    assert!(looked >= 1, "the control: {looked}");
    // The bucket is full at first.
    assert!(looked as f64 <= 2.0 * (elapsed.as_secs_f64() + 1.0) + 1.0, "{looked} in {elapsed:?}");
    assert!(looked < QUESTIONS, "the control: {QUESTIONS} questions are more than {elapsed:?} allow");
}
