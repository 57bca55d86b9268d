//! A fake node that answers as a test wants: clients over QUIC, and the user of the machine over a socket.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use quorate_client::cluster_file::ClusterNode;
use quorate_client::conn::{Conn, Handler, Reply};
use quorate_client::frame::{self, FrameKind};
use quorate_client::identity::{Identity, Protocol, PublicKey, server_config};
use quorate_client::wire::{
    self, AdminProgress, AdminRequest, AdminResponse, Alarm, Answer, Answered, Envelope, KeyInfo, KeySummary,
    LocalStatus, NodeInfo, NodeState, OldCopies, OperationStatus, Phase, Progress, PublicStatus, Request, Response,
    RevocationProgress, Role, SecretMemory, Stage, Status, VersionInfo, WireError,
};
use quorate_client::{ClusterFile, ClusterId, Code, Credential, CredentialKind, KeyName, KeyVersion, Plaintext};
use quorate_shares::ids::{Epoch, KeyUid, NodeId};
use tokio::net::UnixListener;

/// The result of one run of the command line.
pub(crate) struct Run {
    pub(crate) code: u8,
    pub(crate) out: Vec<u8>,
    pub(crate) err: String,
}

impl Run {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.out).expect("the result is text")
    }
}

/// A cluster of one fake node, and a directory with its client file and token.
pub(crate) struct World {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) runtime: tokio::runtime::Runtime,
    pub(crate) token: Credential,
    pub(crate) file: ClusterFile,
    pub(crate) node: Arc<FakeNode>,
    pub(crate) endpoint: quinn::Endpoint,
    pub(crate) boot: Identity,
}

impl World {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let token = Credential::random(CredentialKind::Operator);
        let (boot, op) = (Identity::random(), Identity::random());
        let guard = runtime.enter();
        let config = server_config(&boot, Some(&op), &Protocol::ALL);
        let endpoint = quinn::Endpoint::server(config, SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
        drop(guard);
        let entry = ClusterNode {
            name: "n1".parse().expect("a name"),
            id: NodeId(1),
            addresses: vec![endpoint.local_addr().expect("bound").to_string()],
            key: op.public(),
            boot_key: boot.public(),
        };
        let file = ClusterFile { cluster: ClusterId([0xab; 16]), nodes: vec![entry] };
        let node = Arc::new(FakeNode {
            knows: token.public(),
            keys: Mutex::default(),
            status: Mutex::new(status()),
            public: Mutex::new(Phase::Locked),
            looks: AtomicU8::new(0),
            rotates: AtomicBool::new(false),
        });
        let (listening, handler) = (endpoint.clone(), node.clone());
        runtime.spawn(async move {
            while let Some(incoming) = listening.accept().await {
                if let Ok(connection) = incoming.await {
                    Conn::start(connection, Some(handler.clone()));
                }
            }
        });
        let world = Self { directory, runtime, token, file, node, endpoint, boot };
        world.file.write(&world.path("cluster.toml")).expect("written");
        std::fs::write(world.path("token"), world.token.text().as_bytes()).expect("written");
        std::fs::set_permissions(world.path("token"), std::fs::Permissions::from_mode(0o600)).expect("ours");
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs a command line with the files of this world and no other configuration.
    pub(crate) fn run(&self, arguments: &[&str], input: &[u8]) -> Run {
        let mut all = vec![
            OsString::from("quorate"),
            "--cluster".into(),
            self.path("cluster.toml").into(),
            "--token-file".into(),
            self.path("token").into(),
            "--socket".into(),
            self.path("quorated.sock").into(),
        ];
        all.extend(arguments.iter().map(OsString::from));
        let run = run(all, input);
        let text = self.token.text();
        assert!(!run.err.contains(text.as_str()), "a token on standard error");
        assert!(!String::from_utf8_lossy(&run.out).contains(text.as_str()), "a token on standard output");
        run
    }

    /// The real program, with a configuration directory that holds the files of this world and no other variable.
    pub(crate) fn program(&self, arguments: &[&str]) -> std::process::Command {
        let directory = self.path("config/quorate");
        std::fs::create_dir_all(&directory).expect("ours");
        for name in ["cluster.toml", "token"] {
            std::fs::copy(self.path(name), directory.join(name)).expect("ours");
        }
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_quorate"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("QUORATE")) {
            command.env_remove(name);
        }
        command.args(arguments).env("XDG_CONFIG_HOME", self.path("config")).stdin(std::process::Stdio::null());
        command
    }

    /// Serves the local socket: `script` gives the progress and the answer to every request.
    pub(crate) fn daemon(
        &self,
        script: impl Fn(AdminRequest) -> (Vec<AdminProgress>, Option<Result<AdminResponse, WireError>>)
        + Send
        + Sync
        + 'static,
    ) {
        let guard = self.runtime.enter();
        let listener = UnixListener::bind(self.path("quorated.sock")).expect("a free path");
        drop(guard);
        self.runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (read, mut write) = stream.into_split();
                let mut reader = frame::FrameReader::new(read);
                let frame = reader.next().await.expect("a frame").expect("a request");
                assert_eq!((frame.kind, frame.id), (FrameKind::Request, 0));
                let (progress, answer) = script(wire::decode(&frame.body).expect("a whole request"));
                for news in progress {
                    frame::write(&mut write, FrameKind::Progress, 0, &wire::encode(&news)).await.expect("written");
                }
                if let Some(answer) = answer {
                    frame::write(&mut write, FrameKind::Response, 0, &wire::encode(&answer)).await.expect("written");
                }
            }
        });
    }

    /// The usual answer to a status over the local socket.
    pub(crate) fn local_status(data: &Path, phase: Phase) -> AdminResponse {
        AdminResponse::Status(Box::new(LocalStatus {
            data_directory: data.display().to_string(),
            name: None,
            cluster: None,
            public: PublicStatus { phase, have: 0, need: 0, waiting_for: Vec::new() },
            operation: None,
            full: None,
            secret_memory: SecretMemory::Locked,
        }))
    }
}

/// Runs one command line.
pub(crate) fn run(arguments: Vec<OsString>, mut input: &[u8]) -> Run {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = quorate::run(arguments, &mut input, &mut out, &mut err);
    Run { code, out, err: String::from_utf8(err).expect("messages are text") }
}

/// Keys, versions, and a replacement for encryption that shows its inputs.
pub(crate) struct FakeNode {
    knows: PublicKey,
    keys: Mutex<BTreeMap<KeyName, KeyInfo>>,
    pub(crate) status: Mutex<Status>,
    /// The phase that it shows without a credential.
    pub(crate) public: Mutex<Phase>,
    /// How often the progress of an operation was requested.
    looks: AtomicU8,
    /// Whether a new version of [`SLOW_KEY`] was requested.
    pub(crate) rotates: AtomicBool,
}

/// A key whose rotation is never answered.
pub(crate) const SLOW_KEY: &str = "slow";
/// A key about which the node says something that would control a terminal.
pub(crate) const LIARS_KEY: &str = "liar";
/// A node whose revocation needs n3, which is away.
pub(crate) const NEEDED: &str = "needed";

impl Handler for FakeNode {
    fn handle(&self, conn: &Conn, body: bytes::Bytes) -> Reply {
        if conn.peer().protocol == Protocol::Boot {
            let waiting_for = vec!["n2".parse().expect("a name"), "n3".parse().expect("a name")];
            let phase = *self.public.lock().expect("no test panics with it");
            return Reply::Inline(wire::encode(&PublicStatus { phase, have: 1, need: 2, waiting_for }));
        }
        let envelope: Envelope = wire::decode(&body).expect("a whole request");
        if matches!(&envelope.request, Request::RotateKey { name, .. } if name.as_str() == SLOW_KEY) {
            self.rotates.store(true, Ordering::Release);
            return Reply::later(std::future::pending());
        }
        Reply::Inline(wire::encode(&Answered::always(if conn.peer().key == self.knows {
            self.answer(envelope.request)
        } else {
            Err(WireError::new(Code::Denied, "the cluster does not know this key"))
        })))
    }
}

impl FakeNode {
    fn answer(&self, request: Request) -> Answer {
        let mut keys = self.keys.lock().expect("no test panics with it");
        let unknown = |name: &KeyName| WireError::new(Code::NotFound, format!("no key named {name}"));
        Ok(match request {
            Request::Encrypt { key, context, plaintext } => {
                keys.get(&key).ok_or_else(|| unknown(&key))?;
                Response::Ciphertext(seal(&key, context.as_bytes(), plaintext.expose()))
            }
            Request::DataKey { key, context, bytes } => {
                keys.get(&key).ok_or_else(|| unknown(&key))?;
                let plaintext = Plaintext::new(vec![7; bytes.into()])?;
                Response::DataKey { wrapped: seal(&key, context.as_bytes(), plaintext.expose()), plaintext }
            }
            Request::Decrypt { ciphertext, context } => {
                let refused = || WireError::new(Code::BadCiphertext, "the ciphertext does not open");
                let text = std::str::from_utf8(&ciphertext).map_err(|_| refused())?;
                let mut fields = text.split(':').skip(4);
                let (bound, message) = (fields.next().ok_or_else(refused)?, fields.next().ok_or_else(refused)?);
                if bound != hex(context.as_bytes()) {
                    return Err(refused());
                }
                Response::Plaintext(Plaintext::new(STANDARD.decode(message).map_err(|_| refused())?)?)
            }
            Request::CreateKey { name, tags, .. } => {
                if keys.contains_key(&name) {
                    return Err(WireError::new(Code::Conflict, format!("a key named {name} exists")));
                }
                let versions = vec![VersionInfo {
                    version: KeyVersion(1),
                    created_ms: 951_827_696_000,
                    ready: true,
                    one_disk: false,
                }];
                let info =
                    KeyInfo { name: name.clone(), uid: KeyUid([1; 16]), created_ms: 951_827_696_000, tags, versions };
                keys.insert(name, info.clone());
                Response::Key(info)
            }
            Request::RotateKey { name, expect, .. } => {
                let info = keys.get_mut(&name).ok_or_else(|| unknown(&name))?;
                let newest = info.versions.last().expect("never empty").version;
                if expect.is_some_and(|expect| expect != newest) {
                    return Err(WireError::new(Code::Conflict, format!("the newest version is {newest}")));
                }
                let version = KeyVersion(newest.0 + 1);
                info.versions.push(VersionInfo { version, created_ms: 951_827_697_000, ready: false, one_disk: false });
                Response::Key(info.clone())
            }
            Request::ShowKey { name } if name.as_str() == LIARS_KEY => {
                let text = "\x1b]0;owned\x07\x1b[2K\rcreated\nquorate: all is well";
                return Err(WireError::new(Code::Conflict, text).hint(text));
            }
            Request::ShowKey { name } => Response::Key(keys.get(&name).ok_or_else(|| unknown(&name))?.clone()),
            Request::ListKeys { .. } => {
                let summary = |info: &KeyInfo| KeySummary {
                    name: info.name.clone(),
                    uid: info.uid,
                    created_ms: info.created_ms,
                    newest: info.versions.last().expect("never empty").version,
                    one_disk: info.versions.last().expect("never empty").one_disk,
                    tags: info.tags.clone(),
                };
                Response::Keys { keys: keys.values().map(summary).collect(), more: false }
            }
            Request::Status => Response::Status(Box::new(self.status.lock().expect("no test panics with it").clone())),
            Request::ListNodes => Response::Nodes(vec![node("n1", 1), node("n2", 2)]),
            Request::NodeStatus { name } => match name.as_str() {
                "n1" => Response::Node(Box::new(node("n1", 1))),
                _ => return Err(WireError::new(Code::NotFound, format!("no node named {name}"))),
            },
            Request::Export => Response::Export(ClusterFile {
                cluster: ClusterId([0xab; 16]),
                nodes: vec![ClusterNode {
                    name: "n9".parse().expect("a name"),
                    id: NodeId(9),
                    addresses: vec!["10.0.0.9:7250".to_owned()],
                    key: quorate_client::identity::PublicKey([1; 32]),
                    boot_key: quorate_client::identity::PublicKey([2; 32]),
                }],
            }),
            Request::Echo(bytes) => Response::Echo(bytes),
            Request::RemoveNode { name, .. } if name.as_str() == "n2" => Response::Begun { operation: REMOVAL },
            Request::RevokeNodes { names, expect_back, .. } if names.iter().any(|name| name.as_str() == NEEDED) => {
                if !expect_back.iter().any(|name| name.as_str() == "n3") {
                    return Err(WireError::new(Code::Conflict, "no answer from n3").hint("--expect-back n3"));
                }
                Response::Begun { operation: REVOCATION }
            }
            Request::RevokeNodes { names, .. } if names.iter().all(|name| name.as_str() == "n2") => {
                Response::Begun { operation: REVOCATION }
            }
            Request::RemoveNode { name, .. } => return Err(no_node(name.as_str())),
            Request::RevokeNodes { names, .. } => return Err(no_node(names[0].as_str())),
            Request::InviteNode { .. } => Response::Invitation(Plaintext::new(b"UUpUMQ".to_vec())?),
            Request::ReplaceNode { name, .. } if name.as_str() == "n2" => Response::Replacing,
            Request::ReplaceNode { name, .. } => return Err(no_node(name.as_str())),
            Request::SetAddresses { name, .. } if name.as_str() == "n2" => Response::Done,
            Request::SetAddresses { name, .. } => return Err(no_node(name.as_str())),
            Request::Progress { operation } => {
                let looks = self.looks.fetch_add(1, Ordering::Relaxed);
                Response::Progress(Box::new(progress(operation, looks)))
            }
            Request::ListAlarms => Response::Alarms(vec![alarm()]),
            Request::DisarmAlarms { codes: Some(codes) } if codes.contains("unheard") => {
                Response::Disarmed { alarms: Vec::new(), silent: vec!["n2".parse().expect("a name")] }
            }
            Request::DisarmAlarms { codes } => match codes.is_none_or(|codes| codes.contains("stale_image")) {
                true => Response::Disarmed { alarms: vec![alarm()], silent: vec!["n2".parse().expect("a name")] },
                false => return Err(WireError::new(Code::NotFound, "no such alarm is open")),
            },
            Request::AdmitNode { .. } => Response::Admitted {
                at: vec!["n1".parse().expect("a name")],
                silent: vec!["n2".parse().expect("a name")],
            },
            Request::SealNode { name } | Request::UnsealNode { name } => match name.as_str() {
                "n1" => Response::Done,
                _ => return Err(WireError::new(Code::NotFound, format!("no node named {name}"))),
            },
        })
    }
}

/// The operations that the fake node knows.
const REMOVAL: Epoch = Epoch(7);
const REVOCATION: Epoch = Epoch(8);

fn no_node(name: &str) -> WireError {
    WireError::new(Code::NotFound, format!("no node named {name}")).hint("the nodes are n1, n2")
}

/// An operation that makes progress with each request.
fn progress(operation: Epoch, looks: u8) -> Progress {
    let stage = if looks < 4 { Stage::Runs } else { Stage::Done };
    let revocation = (operation == REVOCATION).then_some(RevocationProgress {
        decisive: looks > 0,
        leases_over: looks > 2,
        erased: looks.min(2),
        erased_needed: 2,
        renewed: looks.saturating_sub(1).min(2),
        remaining: 2,
    });
    let waiting_for = if looks == 2 { vec!["n3".to_owned()] } else { Vec::new() };
    let step = match stage {
        Stage::Runs => format!("reshares to epoch {operation}"),
        _ => String::new(),
    };
    let left = (stage == Stage::Runs).then(|| 100 - u64::from(looks));
    let (name, nodes) =
        (if revocation.is_some() { "revoke n2" } else { "remove n2" }.to_owned(), vec!["n2".to_owned()]);
    Progress { stage, operation: OperationStatus { name, nodes, step, left, waiting_for }, revocation }
}

fn seal(key: &KeyName, context: &[u8], message: &[u8]) -> String {
    format!("qrt1:{key}:1:m1:{}:{}", hex(context), STANDARD.encode(message))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A node that serves and reported `last_seen_ms` ago.
fn seen(last_seen_ms: u64) -> NodeState {
    NodeState {
        phase: Phase::Serving,
        lag: 0,
        epoch: Epoch(1),
        lock_generation: 4,
        old_copies: Some(OldCopies { erased: 1, needed: 2 }),
        last_seen_ms,
        unreached: Vec::new(),
    }
}

/// A node that reported now.
fn now(name: &str, id: u64) -> NodeInfo {
    NodeInfo { state: Some(seen(0)), ..node(name, id) }
}

/// The first node reported a moment ago; the others never.
fn node(name: &str, id: u64) -> NodeInfo {
    NodeInfo {
        name: name.parse().expect("a name"),
        id: NodeId(id),
        addresses: vec![format!("10.0.0.{id}:7250")],
        role: if id == 1 { Role::Leader } else { Role::Voter },
        state: (id == 1).then(|| seen(300)),
        away_ms: None,
    }
}

fn status() -> Status {
    Status {
        cluster: ClusterId([0xab; 16]),
        node: "n1".parse().expect("a name"),
        version: "0.1.0".to_owned(),
        phase: Phase::Serving,
        quorum: true,
        reason: None,
        threshold: 2,
        voters: 3,
        theft_threshold: 2,
        epoch: Epoch(1),
        leader: Some("n1".parse().expect("a name")),
        lease_ms: Some(2500),
        keys: 3,
        one_disk_keys: 0,
        operation: None,
        alarms: Vec::new(),
        waiting_for: Vec::new(),
        nodes: vec![now("n1", 1), node("n2", 2), now("n3", 3)],
    }
}

/// An alarm.
pub(crate) fn alarm() -> Alarm {
    Alarm {
        code: "stale_image".to_owned(),
        message: "an old copy of the disk asked to be unlocked".to_owned(),
        node: Some("n2".parse().expect("a name")),
        since_ms: 951_827_696_000,
    }
}
