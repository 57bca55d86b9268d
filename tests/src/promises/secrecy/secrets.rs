//! S8: no log and no message holds a secret, at any level; other users can read no file; no core is dumped.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use quorate_client::Token;
use quorate_node::vault::invitation::Invitation;
use quorate_shares::envelope::Ciphertext;
use quorate_testnet::procs::{Binaries, Lifetime, Process, Tool, local_status};
use quorate_testnet::thief::canary::{self, Canary};
use quorate_testnet::{Cluster, thief};

use crate::harness::commands::{init, invitations, join};
use crate::harness::{PATIENCE, TestCluster};

const NODES: [&str; 3] = ["n1", "n2", "n3"];
const KEYS: [&str; 2] = ["canary-of/a-name", "canary-of/another-name"];
const PLAINTEXT: &str = "the canary of a plaintext, which is 4711";
const CONTEXT: &str = "customer=canary-of-a-context";
const TAG: &str = "owner=canary-of-a-tag";

/// Everything that the command line has said on stderr, one file for each run.
struct Heard {
    directory: PathBuf,
    runs: usize,
}

impl Heard {
    fn note(&mut self, stderr: &str) {
        self.runs += 1;
        fs::write(self.directory.join(format!("stderr-{}", self.runs)), stderr).expect("our own directory");
    }

    /// Runs a command, keeps its stderr, and returns its stdout.
    fn run(&mut self, cluster: &TestCluster, args: &[&str], input: &[u8], code: i32) -> Vec<u8> {
        self.run_as(cluster.testnet.quorate(args.iter().copied()), input, code)
    }

    fn run_as(&mut self, command: Command, input: &[u8], code: i32) -> Vec<u8> {
        let finished = Tool::start(command, input).expect("runs").outcome(PATIENCE).expect("ends");
        assert_eq!(finished.code, Some(code), "{}: {}", finished.line, finished.stderr);
        self.note(&finished.stderr);
        finished.stdout
    }
}

fn line(output: &[u8]) -> String {
    String::from_utf8(output.to_vec()).expect("text").trim_end().to_owned()
}

fn secret(what: &str, bytes: &[u8]) -> Canary {
    Canary::secret(what, bytes.try_into().expect("32 bytes"))
}

fn text(what: &str, text: &str) -> Canary {
    Canary::text(what, text).expect("long enough to be found by no chance")
}

/// Daemons that log everything they can, through a life with a founding, keys, errors, deaths, a boot and a revocation. A daemon that
/// logged a whole request, a name or a key would be found out by it.
#[test]
fn s8_t48_no_secret_is_in_any_log_or_message() {
    let directory = tempfile::tempdir().expect("a directory");
    let made = |name: &str| {
        let path = directory.path().join(name);
        fs::create_dir(&path).expect("our own directory");
        path
    };
    let mut heard = Heard { directory: made("heard"), runs: 0 };
    let testnet = Cluster::builder().environment("QUORATE_LOG", "trace").start().expect("starts");

    // Founded by hand, since the invitations are secrets too.
    let first = init(&testnet, "n1", &["--founders", "3"]);
    let invited = invitations(&first, 2);
    let others = [join(&testnet, "n2", &invited[0]), join(&testnet, "n3", &invited[1])];
    for founder in others.into_iter().chain([first]) {
        let finished = founder.outcome(PATIENCE).expect("ends");
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        heard.note(&finished.stderr);
    }
    let mut cluster = TestCluster::with(testnet);
    cluster.testnet.wait_all_serving().expect("serve");

    let mut ciphertexts = Vec::new();
    let mut data_keys = Vec::new();
    for key in KEYS {
        heard.run(&cluster, &["-v", "key", "create", key, "--tag", TAG], b"", 0);
        for _ in 0..2 {
            let args = ["-v", "encrypt", key, "-c", CONTEXT];
            ciphertexts.push(line(&heard.run(&cluster, &args, PLAINTEXT.as_bytes(), 0)));
            let data_key = line(&heard.run(&cluster, &["-v", "datakey", key, "-c", CONTEXT], b"", 0));
            let plaintext = data_key.lines().find_map(|line| line.strip_prefix("plaintext: ")).expect("a plaintext");
            data_keys.push(STANDARD.decode(plaintext).expect("base64"));
            heard.run(&cluster, &["-v", "key", "rotate", key], b"", 0);
        }
    }
    // Errors, which like to repeat what they were given.
    let wrong_token = Token::random().text();
    let mut denied = cluster.testnet.quorate(["-v", "decrypt", "-c", CONTEXT]);
    denied.env_remove("QUORATE_TOKEN_FILE").env("QUORATE_TOKEN", wrong_token.as_str());
    heard.run_as(denied, ciphertexts[0].as_bytes(), 4);
    let mut no_token = cluster.testnet.quorate(["-v", "decrypt", "-c", CONTEXT]);
    no_token.env_remove("QUORATE_TOKEN_FILE").env("QUORATE_TOKEN", format!("{}x", wrong_token.as_str()));
    let finished = Tool::start(no_token, ciphertexts[0].as_bytes()).expect("runs").outcome(PATIENCE).expect("ends");
    assert_ne!(finished.code, Some(0));
    heard.note(&finished.stderr);
    heard.run(&cluster, &["-v", "decrypt", "-c", "customer=canary-of-an-error"], ciphertexts[0].as_bytes(), 1);
    heard.run(&cluster, &["-v", "encrypt", "canary-of/no-key"], PLAINTEXT.as_bytes(), 5);
    heard.run(&cluster, &["-v", "key", "create", KEYS[0]], b"", 6);
    heard.run(&cluster, &["-v", "encrypt", KEYS[0]], &PLAINTEXT.as_bytes().repeat(2000), 1);
    heard.run(&cluster, &["-v", "decrypt"], PLAINTEXT.as_bytes(), 1);
    let mut late = cluster.testnet.quorate(["-v", "node", "join", "-", "--socket"]);
    late.arg(cluster.testnet.directory().socket("n2"));
    heard.run_as(late, invited[0].as_bytes(), 6);

    for node in NODES {
        cluster.testnet.kill(node).expect("dies");
    }
    cluster.start(&["n1"]);
    heard.run(&cluster, &["-v", "decrypt", "-c", CONTEXT], ciphertexts[0].as_bytes(), 3);
    cluster.start(&["n2", "n3"]);
    cluster.testnet.wait_serving(&NODES).expect("boot");
    for node in NODES {
        for ciphertext in &ciphertexts {
            let args = ["-v", "decrypt", "-c", CONTEXT, "--node", node];
            assert_eq!(heard.run(&cluster, &args, ciphertext.as_bytes(), 0), PLAINTEXT.as_bytes());
        }
    }

    // What there is to be found: whatever all disks together give away, and what was said to the programs.
    let stolen = made("stolen");
    let disks = cluster.testnet.steal(&NODES, &stolen).expect("steals");
    let loot = thief::rob(&disks);
    let context = CONTEXT.split_once('=').expect("name and value");
    let context = quorate_client::Context::new([context]).expect("a context");
    for ciphertext in &ciphertexts {
        let ciphertext = Ciphertext::parse_text(ciphertext).expect("our own ciphertext");
        let opened = loot.keys.iter().find_map(|key| key.open(&ciphertext, &context));
        assert_eq!(opened.as_deref(), Some(PLAINTEXT.as_bytes()), "the control: the keys are the right ones");
    }
    let names: BTreeSet<_> = loot.key_names.iter().map(|name| name.as_str().to_owned()).collect();
    assert_eq!(names, KEYS.map(str::to_owned).into(), "the control: the thief read the names");
    let token = cluster.token();
    let token_bytes = token.text();
    let token_bytes = token_bytes.strip_prefix(quorate_client::wire::TOKEN_TEXT_PREFIX).expect("its prefix");
    let mut said = vec![
        text("a plaintext", PLAINTEXT),
        text("the root token", token_bytes),
        text("a wrong token", &wrong_token[quorate_client::wire::TOKEN_TEXT_PREFIX.len()..]),
    ];
    for invitation in &invited {
        said.push(text("an invitation", invitation));
        let parsed: Invitation = invitation.parse().expect("an invitation");
        said.push(secret("the secret of an invitation", parsed.secret.expose()));
    }
    for data_key in &data_keys {
        said.push(secret("a data key", data_key));
        said.push(text("a data key in base64", &STANDARD.encode(data_key)));
    }
    let nameless = |canary: &Canary| !canary.what.starts_with("the name ");
    // And what two of them give away once the third is out: other share keys, and other shares of the same keys.
    heard.run(&cluster, &["-v", "node", "revoke", "n3", "--yes", "--wait"], b"", 0);
    let later = made("later");
    let later = thief::rob(&cluster.testnet.steal(&["n1", "n2"], &later).expect("steals"));
    assert_eq!(later.keys.len(), loot.keys.len(), "the control: reshared");
    said.extend(later.canaries.into_iter().filter(nameless));
    let (secrets, names): (Vec<_>, Vec<_>) = loot.canaries.into_iter().chain(said).partition(nameless);
    // 3 nodes with op seed, storage key and share key; 2 keys of 3 versions, each with 3 shares.
    assert!(secrets.len() >= 9 + 6 * 4 && names.len() == 2, "{} secrets, {} names", secrets.len(), names.len());
    let in_requests = [text("a context", "canary-of-a-context"), text("a tag", "canary-of-a-tag")];
    let in_requests = in_requests.into_iter().chain([text("a wrong context", "canary-of-an-error")]);
    let in_requests = in_requests.chain([text("a name that no key has", "canary-of/no-key")]);

    // Logs: nothing of all that, and not the boot seeds either, which lie in plain in the vaults beside them.
    let logs = made("logs");
    for node in NODES {
        let log = fs::read_to_string(cluster.testnet.directory().log(node)).expect("a log");
        for level in ["TRACE", "DEBUG", "INFO"] {
            assert!(log.contains(level), "the control: {node} logs {level}");
        }
        assert!(NODES.iter().all(|node| log.contains(node)), "the control: nodes are named in the log of {node}");
        assert!(log.len() > 200_000, "the control: {node} logs a lot, not {} bytes", log.len());
        fs::write(logs.join(node), log).expect("our own directory");
    }
    let unlogged: Vec<_> = secrets.into_iter().chain(names).chain(in_requests).chain(loot.in_plain).collect();
    let sightings = canary::search(&logs, &unlogged).expect("every log is read");
    assert!(sightings.is_empty(), "{}", shown(&sightings));
    let id = [text("the cluster's id", &cluster.file().cluster.to_string())];
    assert!(!canary::search(&logs, &id).expect("searches").is_empty(), "the control: the search finds what is there");

    // What the command says: a name that was typed may come back, and nothing else.
    let unsaid: Vec<_> = unlogged.into_iter().filter(|canary| !canary.what.contains("name")).collect();
    let sightings = canary::search(&heard.directory, &unsaid).expect("everything is read");
    assert!(sightings.is_empty(), "{}", shown(&sightings));
    let typed = [text("a name that no key has", "canary-of/no-key")];
    assert!(!canary::search(&heard.directory, &typed).expect("searches").is_empty(), "the control: stderr was kept");
}

/// Each sighting with the line around it.
fn shown(sightings: &[canary::Sighting]) -> String {
    let shown = sightings.iter().take(10).map(|sighting| {
        let bytes = fs::read(&sighting.file).expect("it was read before");
        let before = &bytes[..sighting.offset];
        let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        let end = (sighting.offset + 80).min(bytes.len());
        let around = String::from_utf8_lossy(&bytes[start.max(sighting.offset.saturating_sub(600))..end]).into_owned();
        format!("{} in {}: {around}", sighting.what, sighting.file.display())
    });
    format!("{} sightings, the first:\n{}", sightings.len(), shown.collect::<Vec<_>>().join("\n"))
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("it exists").permissions().mode() & 0o7777
}

/// Everything below `directory`, itself included, but for what the test kit puts there.
fn below(directory: &Path) -> Vec<PathBuf> {
    let mut found = vec![directory.to_owned()];
    for entry in fs::read_dir(directory).expect("reads") {
        let path = entry.expect("reads").path();
        match path.is_dir() {
            true => found.extend(below(&path)),
            false => found.push(path),
        }
    }
    found.retain(|path| path.file_name().is_none_or(|name| name != "quorated.log"));
    found
}

fn owner_only(directory: &Path) -> usize {
    let all = below(directory);
    for path in &all {
        let expected = if path.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode(path), expected, "{}: {:o}", path.display(), mode(path));
    }
    all.len()
}

/// T11: whatever the umask. Without the daemon's own umask the files of the database are for all to write.
#[test]
fn t11_files_are_for_their_owner_alone_under_any_umask() {
    let cluster = TestCluster::of(Cluster::builder().umask(0));
    cluster.create("key");
    let (directory, outside) = (cluster.testnet.directory(), tempfile::tempdir().expect("a directory"));
    for node in NODES {
        let data = directory.node(node);
        let files = owner_only(&data);
        assert!(files > 8, "the control: vault, lock, socket and a database, not {files} files");
        assert!(data.join("vault").is_file() && data.join("state/raft").is_dir(), "the control: the files are there");
        let socket = fs::symlink_metadata(directory.socket(node)).expect("a socket").file_type();
        assert!(socket.is_socket(), "the control: the socket is there");
    }
    assert_eq!(mode(&directory.token()), 0o600);
    assert_eq!(mode(&directory.client_file()) & 0o022, 0, "the client file names the nodes to trust");

    // What is decrypted into a file is a secret as well.
    let path = |name: &str| outside.path().join(name).display().to_string();
    let (sealed, opened) = (path("sealed"), path("opened"));
    cluster.testnet.run(["encrypt", "key", "-o", &sealed], b"secret").expect("encrypts");
    cluster.testnet.run(["decrypt", &sealed, "-o", &opened], b"").expect("decrypts");
    assert_eq!(mode(Path::new(&opened)), 0o600);

    // A data directory that the daemon makes itself.
    let data = outside.path().join("made/by/quorated");
    let mut daemon = Command::new("/bin/sh");
    let control = outside.path().join("control");
    daemon
        .args(["-c", "umask 000 && : > \"$0\" && exec \"$@\""])
        .arg(&control)
        .arg(Binaries::find().expect("built").quorated);
    daemon.arg("--data").arg(&data).args(["--listen", "127.0.0.1:0", "--advertise", "127.0.0.1:1", "--name", "n1"]);
    let (log, socket) = (outside.path().join("log"), data.join("quorated.sock"));
    daemon.arg("--socket").arg(&socket);
    let _daemon = Process::start(daemon, &data, &log, Lifetime::WithUs).expect("starts");
    let ready = quorate_testnet::wait_until("its socket", PATIENCE, || local_status(&socket).ok());
    assert!(ready.is_ok(), "{}", fs::read_to_string(&log).unwrap_or_default());
    assert!(owner_only(&data) >= 3, "the control: directory, lock and socket");
    assert_eq!(mode(&control), 0o666, "the control: what takes no care is for all to read");
}

/// T48: no key log for eavesdroppers, and no core with the keys in it.
#[test]
fn t48_no_key_log_and_no_core() {
    let outside = tempfile::tempdir().expect("a directory");
    let key_log = outside.path().join("keylog");
    let cluster = TestCluster::of(Cluster::builder().environment("SSLKEYLOGFILE", key_log.display().to_string()));
    cluster.create("key");
    let ciphertext = cluster.testnet.run(["encrypt", "key"], b"secret").expect("encrypts");
    assert_eq!(cluster.testnet.run(["decrypt"], &ciphertext).expect("decrypts"), b"secret");
    assert!(!key_log.exists(), "the sessions of this cluster can be decrypted with {}", key_log.display());
    for node in NODES {
        let pid = cluster.testnet.process(node).expect("a node").expect("it runs").pid();
        let proc = PathBuf::from(format!("/proc/{pid}"));
        // Soft and hard, so that nothing can raise it again.
        let core = |limits: &str| -> Option<[String; 2]> {
            let words = limits.lines().find_map(|line| line.strip_prefix("Max core file size"))?;
            let mut words = words.split_whitespace().map(str::to_owned);
            Some([words.next()?, words.next()?])
        };
        let limits = fs::read_to_string(proc.join("limits")).expect("anybody may read them");
        assert_eq!(core(&limits).expect("a limit"), ["0", "0"], "{node}");
        let own = fs::read_to_string("/proc/self/limits").expect("reads");
        println!("the control: our own limits are {:?}", core(&own).expect("a limit"));
        match fs::read(proc.join("environ")) {
            Ok(environment) => {
                let told = environment.windows(14).any(|window| window == b"SSLKEYLOGFILE=");
                assert!(told, "the control: {node} was told to write a key log");
            }
            // Who is not root cannot look into a process that is not dumpable.
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied),
        }
    }
}
