//! The messages on the wire, as recorded bytes. A variant never changes once it is released; until then a change in place renews
//! the recording: `UPDATE_GOLDENFILES=1`, and read the diff. Lines of a released version are never deleted.
//!
//! Mutated: a field more in a variant, a field moved, or a variant moved fails this, and so does a variant without a line.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use quorate_client::cluster_file::{ClusterFile, ClusterNode};
use quorate_client::identity::PublicKey;
use quorate_client::wire::{
    self, AdminProgress, AdminRequest, AdminResponse, Alarm, Answered, Envelope, KeyInfo, KeySummary, LocalStatus,
    NodeInfo, NodeState, OldCopies, OperationStatus, Phase, Plaintext, Progress, PublicStatus, Request, Response,
    RevocationProgress, Role, SecretMemory, Stage, Status, VersionInfo, WireError,
};
use quorate_client::{Code, Context};
use quorate_node::messages::caller::{Caller, Door};
use quorate_node::messages::peer::{ForwardedReply, PeerRefusal, PeerReply, PeerRequest, Report, SealedShare};
use quorate_raft::{LogPlace, Refusal};
use quorate_shares::ids::{ClusterId, Epoch, KeyName, KeyUid, KeyVersion, NodeId, NodeName};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_bytes::ByteBuf;

use crate::harness::impostor::every_peer_request;
use crate::harness::name;
use crate::harness::names::of_each_variant;

const UID: KeyUid = KeyUid([2; 16]);

fn node_name() -> NodeName {
    "n1".parse().expect("a name")
}

fn plaintext(text: &[u8]) -> Plaintext {
    Plaintext::new(text.to_vec()).expect("short")
}

fn context() -> Context {
    Context::new([("tenant", "7")]).expect("one entry")
}

fn every_request() -> Vec<Request> {
    let (request_id, key): (_, fn() -> KeyName) = ([1; 16], || name("billing/cards"));
    of_each_variant(vec![
        Request::Status,
        Request::Encrypt { key: key(), context: context(), plaintext: plaintext(b"secret") },
        Request::Decrypt { ciphertext: b"qrt1:key:1:m1:AAAA".to_vec(), context: context() },
        Request::DataKey { key: key(), context: context(), bytes: 32 },
        Request::CreateKey { request_id, name: key(), tags: tags() },
        Request::ListKeys { after: Some(key()), limit: 300 },
        Request::ShowKey { name: key() },
        Request::RotateKey { request_id, name: key(), expect: Some(KeyVersion(3)) },
        Request::ListNodes,
        Request::NodeStatus { name: node_name() },
        Request::Export,
        Request::Echo(vec![1, 2]),
        Request::RemoveNode { request_id, name: node_name(), accept_no_redundancy: true, abandon: vec![node_name()] },
        Request::RevokeNodes { request_id, names: vec![node_name()], expect_back: vec![node_name()] },
        Request::Progress { operation: Epoch(2) },
        Request::SealNode { name: node_name() },
        Request::UnsealNode { name: node_name() },
        Request::AdmitNode { name: node_name() },
        Request::ListAlarms,
        Request::DisarmAlarms { codes: Some(["stale_image".to_owned()].into()) },
        Request::InviteNode { name: Some(node_name()), ttl_ms: 3_600_000 },
        Request::ReplaceNode { name: node_name(), invitation: plaintext(b"qinv") },
        Request::SetAddresses { name: node_name(), addresses: vec!["10.0.0.1:7250".to_owned()] },
    ])
}

fn every_response() -> Vec<Response> {
    of_each_variant(vec![
        Response::Status(Box::new(status())),
        Response::Ciphertext("qrt1:key:1:m1:AAAA".to_owned()),
        Response::Plaintext(plaintext(b"secret")),
        Response::DataKey { plaintext: plaintext(&[7; 32]), wrapped: "qrt1:key:1:d1:AAAA".to_owned() },
        Response::Key(KeyInfo {
            name: name("key"),
            uid: UID,
            created_ms: 1_700_000_000_000,
            tags: tags(),
            versions: vec![VersionInfo { version: KeyVersion(1), created_ms: 9, ready: true, one_disk: true }],
        }),
        Response::Keys {
            keys: vec![KeySummary {
                name: name("key"),
                uid: UID,
                created_ms: 9,
                newest: KeyVersion(2),
                one_disk: false,
                tags: tags(),
            }],
            more: true,
        },
        Response::Nodes(vec![node()]),
        Response::Node(Box::new(node())),
        Response::Export(client_file()),
        Response::Echo(vec![1]),
        Response::Begun { operation: Epoch(2) },
        Response::Progress(Box::new(progress())),
        Response::Done,
        Response::Admitted { at: vec![node_name()], silent: vec![node_name()] },
        Response::Alarms(vec![alarm()]),
        Response::Disarmed { alarms: vec![alarm()], silent: vec![node_name()] },
        Response::Invitation(plaintext(b"qinv")),
        Response::Replacing,
    ])
}

fn every_admin_request() -> Vec<AdminRequest> {
    of_each_variant(vec![
        AdminRequest::Init {
            founders: 3,
            threshold: Some(2),
            allow_solo: true,
            accept_no_redundancy: true,
            operator: PublicKey([5; 32]),
            label: "Ada".to_owned(),
        },
        AdminRequest::Join { invitation: "qinv".to_owned() },
        AdminRequest::Status,
        AdminRequest::Export,
        AdminRequest::Seal { sealed: true },
        AdminRequest::Admit { name: node_name() },
    ])
}

fn every_admin_response() -> Vec<AdminResponse> {
    let local = LocalStatus {
        data_directory: "/var/lib/quorate".to_owned(),
        name: Some(node_name()),
        cluster: Some(ClusterId([3; 16])),
        public: public(),
        operation: Some(operation()),
        full: Some(status()),
        secret_memory: SecretMemory::Locked,
    };
    of_each_variant(vec![
        AdminResponse::Founded(client_file()),
        AdminResponse::Joined { node: node_name(), cluster: ClusterId([3; 16]) },
        AdminResponse::Status(Box::new(local)),
        AdminResponse::Export(client_file()),
        AdminResponse::Sealed { node: node_name(), sealed: true },
        AdminResponse::Admitted { at: node_name() },
    ])
}

fn every_peer_reply() -> Vec<PeerReply> {
    let hello = every_peer_request(NodeId(2)).into_iter().find_map(|request| match request {
        PeerRequest::Hello(hello) => Some(hello),
        _ => None,
    });
    let report = Report {
        phase: Phase::Serving,
        applied: 300,
        lock_generation: 2,
        old_copies: Some(OldCopies { erased: 1, needed: 2 }),
        epoch: Epoch(1),
        alarms: vec![alarm()],
        operation: Some(operation()),
        unreached: [NodeId(3)].into(),
    };
    let share = SealedShare { uid: UID, version: KeyVersion(1), x: 1, counter: 1, sealed: ByteBuf::from(vec![9; 48]) };
    let forwarded = of_each_variant(vec![
        ForwardedReply::Made { uid: UID, version: KeyVersion(1) },
        ForwardedReply::Begun { operation: Epoch(2) },
        ForwardedReply::Progress(Box::new(progress())),
        ForwardedReply::Done,
    ]);
    let mut replies = vec![
        PeerReply::Hello(hello.expect("one of them")),
        PeerReply::Pong,
        PeerReply::Raft(ByteBuf::from(vec![1])),
        PeerReply::Lease { index: 300 },
        PeerReply::Shares(vec![share]),
        PeerReply::Verified(vec![(UID, KeyVersion(1))]),
        PeerReply::EpochAck { reshared: 3 },
        PeerReply::LockKey { key_number: 1, public: ByteBuf::from(vec![8; 1216]) },
        PeerReply::FoundingTerms { threshold: 2 },
        PeerReply::Done,
        PeerReply::Forwarded(Err(WireError::new(Code::Busy, "too much"))),
        PeerReply::Report(report),
        PeerReply::Roster(ByteBuf::from(vec![1])),
    ];
    replies.extend(forwarded.into_iter().map(|reply| PeerReply::Forwarded(Ok(reply))));
    replies.extend(every_refusal().into_iter().map(PeerReply::Refused));
    of_each_variant(replies)
}

fn every_refusal() -> Vec<PeerRefusal> {
    of_each_variant(vec![
        PeerRefusal::NoHello,
        PeerRefusal::NotAMember,
        PeerRefusal::DuplicateSession,
        PeerRefusal::StorageWentBack,
        PeerRefusal::Phase(Phase::Locked),
        PeerRefusal::NotLeader(Some(NodeId(2))),
        PeerRefusal::NoQuorum,
        PeerRefusal::NoLease,
        PeerRefusal::WrongEpoch,
        PeerRefusal::TooMany,
        PeerRefusal::NotFounding,
        PeerRefusal::Busy,
        PeerRefusal::Behind,
        PeerRefusal::Storage,
        PeerRefusal::Malformed,
        PeerRefusal::Denied,
        PeerRefusal::Revoked(LogPlace { term: 1, node: NodeId(2), index: 3 }),
        PeerRefusal::State(Refusal::NameTaken),
        PeerRefusal::Unsupported("0.1.0".to_owned()),
    ])
}

fn tags() -> BTreeMap<String, String> {
    [("team".to_owned(), "payments".to_owned())].into()
}

fn operation() -> OperationStatus {
    OperationStatus {
        name: "revoke n3".to_owned(),
        nodes: vec!["n3".to_owned()],
        step: "reshare".to_owned(),
        left: Some(300),
        waiting_for: vec!["n2".to_owned()],
    }
}

fn alarm() -> Alarm {
    let (code, message) = ("stale_image".to_owned(), "an old copy asks".to_owned());
    Alarm { code, message, node: Some(node_name()), since_ms: 9 }
}

fn progress() -> Progress {
    let revocation =
        RevocationProgress { decisive: true, leases_over: true, erased: 1, erased_needed: 2, renewed: 3, remaining: 4 };
    Progress { stage: Stage::Runs, operation: operation(), revocation: Some(revocation) }
}

fn node() -> NodeInfo {
    let state = NodeState {
        phase: Phase::Serving,
        lag: 1,
        epoch: Epoch(1),
        lock_generation: 2,
        old_copies: Some(OldCopies { erased: 1, needed: 2 }),
        last_seen_ms: 300,
        unreached: vec![node_name()],
    };
    let addresses = vec!["10.0.0.1:7250".to_owned()];
    NodeInfo { name: node_name(), id: NodeId(1), addresses, role: Role::Leader, state: Some(state), away_ms: Some(300) }
}

fn public() -> PublicStatus {
    PublicStatus { phase: Phase::Locked, have: 1, need: 2, waiting_for: vec![node_name()] }
}

fn status() -> Status {
    Status {
        cluster: ClusterId([3; 16]),
        node: node_name(),
        version: "0.1.0".to_owned(),
        phase: Phase::Serving,
        quorum: true,
        reason: Some("alone".to_owned()),
        threshold: 2,
        voters: 3,
        theft_threshold: 2,
        epoch: Epoch(1),
        leader: Some(node_name()),
        lease_ms: Some(3_000),
        keys: 4,
        one_disk_keys: 5,
        operation: Some(operation()),
        alarms: vec![alarm()],
        waiting_for: vec![node_name()],
        nodes: vec![node()],
    }
}

fn client_file() -> ClusterFile {
    let node = ClusterNode {
        name: node_name(),
        id: NodeId(1),
        addresses: vec!["10.0.0.1:7250".to_owned()],
        key: PublicKey([4; 32]),
        boot_key: PublicKey([5; 32]),
    };
    ClusterFile { cluster: ClusterId([3; 16]), nodes: vec![node] }
}

/// What is done with each type of message.
trait Visit {
    fn messages<T: Serialize + DeserializeOwned>(&mut self, name: &str, messages: Vec<T>);
}

fn visit(visit: &mut impl Visit) {
    let envelope = |request| Envelope { deadline_ms: 30_000, request };
    visit.messages("client request", every_request().into_iter().map(envelope).collect());
    let refused = WireError::new(Code::Denied, "unknown key").hint("look");
    let answers = every_response().into_iter().map(|response| Answered { good_for_ms: 3_000, answer: Ok(response) });
    visit.messages("client answer", answers.chain([Answered::always(Err(refused.clone()))]).collect());
    visit.messages("public status", vec![public()]);
    visit.messages("local request", every_admin_request());
    let progress = AdminProgress {
        invitations: vec!["qinv".to_owned()],
        step: "waiting".to_owned(),
        waiting_for: vec!["n2".to_owned()],
    };
    visit.messages("local progress", vec![progress]);
    let answers = every_admin_response().into_iter().map(Ok).chain([Err(refused)]);
    visit.messages::<Result<AdminResponse, WireError>>("local answer", answers.collect());
    visit.messages("peer request", every_peer_request(NodeId(2)));
    visit.messages("peer reply", every_peer_reply());
    let caller = Caller::operator(PublicKey([0; 32]), Door::Client, "[2001:db8::1]:4711".parse().expect("an address"));
    visit.messages(
        "caller",
        vec![
            caller,
            Caller::machine_owner(1000),
            Caller::member(NodeId(2), PublicKey([1; 32]), ([10, 0, 0, 1], 1).into()),
        ],
    );
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/messages.txt")
}

fn recorded() -> Vec<(String, String)> {
    let text = fs::read_to_string(path()).expect("the recording");
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| line.split_once(": ").expect("a name and bytes"))
        .map(|(name, bytes)| (name.to_owned(), bytes.to_owned()))
        .collect()
}

/// What this version writes is what was recorded.
#[test]
fn messages_are_written_as_they_were_recorded() {
    #[derive(Default)]
    struct Written(String, usize);
    impl Visit for Written {
        fn messages<T: Serialize + DeserializeOwned>(&mut self, name: &str, messages: Vec<T>) {
            for message in messages {
                let _ = writeln!(self.0, "{name}: {}", hex(&wire::encode(&message)));
                self.1 += 1;
            }
        }
    }
    let mut written =
        Written("# Messages as bytes, one in a line. Made by tests/src/documents/messages.rs.\n".to_owned(), 0);
    visit(&mut written);
    assert!(written.1 > 100, "the control: {} messages", written.1);
    if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
        fs::write(path(), &written.0).expect("written");
    }
    let recorded = fs::read_to_string(path()).expect("the recording");
    // In the same order: two variants of one shape that have changed places have the lines of each other.
    let mut recorded = recorded.lines();
    for line in written.0.lines() {
        assert!(recorded.any(|known| known == line), "not recorded here, or recorded otherwise: {line}");
    }
}

/// This version reads what was recorded, and writes the same bytes again.
#[test]
fn recorded_messages_are_read() {
    struct Read(Vec<(String, String)>, usize);
    impl Visit for Read {
        fn messages<T: Serialize + DeserializeOwned>(&mut self, name: &str, _: Vec<T>) {
            for (_, text) in self.0.iter().filter(|(known, _)| known == name) {
                let bytes = unhex(text).expect("hexadecimal");
                let message: T = wire::decode(&bytes).unwrap_or_else(|error| panic!("{name} {text}: {error}"));
                assert_eq!(hex(&wire::encode(&message)), *text, "{name}");
                self.1 += 1;
            }
        }
    }
    let mut read = Read(recorded(), 0);
    visit(&mut read);
    assert_eq!(read.1, read.0.len(), "a line has a name that no message has");
}
