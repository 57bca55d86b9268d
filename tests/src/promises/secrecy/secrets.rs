//! S8: no log and no message holds a secret, at any level; other users can read no file; no core is dumped.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use quorate_client::{Credential, CredentialKind};
use quorate_node::vault::invitation::Invitation;
use quorate_shares::envelope::Ciphertext;
use quorate_shares::lock::LockOpenCode;
use quorate_testnet::faults::shim::{self, Made, Shim};
use quorate_testnet::procs::{Binaries, Lifetime, Process, Tool, local_status};
use quorate_testnet::thief::canary::{self, Canary};
use quorate_testnet::{Cluster, thief};

use crate::harness::commands::{init, invitations, join};
use crate::harness::impostor::Impostor;
use crate::harness::{PATIENCE, TestCluster};

const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// With the one that joins.
const ALL: [&str; 4] = ["n1", "n2", "n3", "n4"];
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

    /// [`Heard::run`] until it succeeds: nodes that log everything may be so slow that another one has to lead first.
    fn insist(&mut self, cluster: &TestCluster, args: &[&str], input: &[u8]) -> Vec<u8> {
        cluster.until("a leader that is quick enough", || {
            let command = cluster.testnet.quorate(args.iter().copied());
            let finished = Tool::start(command, input).expect("runs").outcome(PATIENCE).expect("ends");
            // 7: an alarm is open. Some of what was asked raises one.
            assert!(matches!(finished.code, Some(0 | 3 | 7)), "{}: {}", finished.line, finished.stderr);
            self.note(&finished.stderr);
            (finished.code != Some(3)).then_some(finished.stdout)
        })
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

/// Daemons that log everything they can, through a life with a founding, keys, errors, deaths, a boot, a join and a revocation. Every
/// secret that there is, or ever was, is looked for in every log, in whatever the command line says, and in the arguments and the
/// environment of each daemon: keys, roots and shares; what the locks of all nodes open to, their pieces and their pins; boot seeds and
/// lock keys; the tokens, invitations, plaintexts and data keys that people handle. Each is sought in every form in which a line might
/// show it ([`Canary::as_written`]). Mutated: a daemon that logs a whole request, an invitation that it gives or is given, the token of
/// a request that is refused, a bundle that it opened, a lock key that it made, a pin, a share that it gave, a name, a key.
#[test]
fn s8_t48_no_secret_is_in_any_log_or_message() {
    let directory = tempfile::tempdir().expect("a directory");
    let made = |name: &str| {
        let path = directory.path().join(name);
        fs::create_dir(&path).expect("our own directory");
        path
    };
    let mut heard = Heard { directory: made("heard"), runs: 0 };
    // One pin of each kind: in the vault, and in a file.
    let pins = made("pins");
    let settings = format!("pin_file = '{}/{{name}}.pin'\n", pins.display());
    let mut testnet = Cluster::builder().spares(1).environment("QUORATE_LOG", "trace").start().expect("starts");
    fs::write(testnet.directory().config("n2"), settings.replace("{name}", "n2")).expect("our own directory");
    testnet.kill("n2").expect("ends");
    testnet.start("n2").expect("starts");

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
    let wrong_token = Credential::random(CredentialKind::Operator).text();
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

    // Invitations to a running cluster: one that lets a node in, one that is for a replacement, one of a name that is taken.
    let mut joiners = Vec::new();
    for args in [&["-v", "node", "invite"][..], &["-v", "node", "invite", "--name", "n5"]] {
        joiners.push(line(&heard.insist(&cluster, args, b"")));
    }
    heard.insist(&cluster, &["-v", "node", "replace", "n3", "--with", "-", "--yes"], joiners[1].as_bytes());
    let none = cluster.testnet.quorate(["-v", "node", "replace", "n3", "--with", "-", "--yes"]);
    let finished = Tool::start(none, b"canary-of-no-invitation").expect("runs").outcome(PATIENCE).expect("ends");
    assert_ne!(finished.code, Some(0));
    heard.note(&finished.stderr);
    cluster.start(&["n4"]);
    let mut wrong_name = cluster.testnet.quorate(["-v", "node", "join", "-", "--no-wait", "--socket"]);
    wrong_name.arg(cluster.testnet.directory().socket("n4"));
    heard.run_as(wrong_name, joiners[1].as_bytes(), 0);
    cluster.until("n4 to be refused, since its name is another", || {
        let log = fs::read_to_string(cluster.testnet.directory().log("n4")).expect("a log");
        log.contains("refused; back to the beginning").then_some(())
    });
    let joined = join(&cluster.testnet, "n4", &joiners[0]).outcome(PATIENCE).expect("ends");
    assert_eq!(joined.code, Some(0), "{}", joined.stderr);
    heard.note(&joined.stderr);
    let settled = || cluster.block(cluster.client(None).status()).ok()?.operation.is_none().then_some(());
    cluster.until("the join to be over", settled);
    cluster.export();
    // A thief who asks, with the lock of a node that lives.
    let thief = Impostor::steal(&cluster, "n3");
    assert_ne!(thief.ask(&cluster, "n1").0, LockOpenCode::Ok, "n3 lives");
    for args in [&["status"][..], &["alarm", "list"], &["node", "list"], &["status", "--output", "json"]] {
        let said = heard.insist(&cluster, args, b"");
        heard.note(&String::from_utf8_lossy(&said));
    }

    for node in ALL {
        cluster.testnet.kill(node).expect("dies");
    }
    cluster.start(&["n1"]);
    heard.run(&cluster, &["-v", "decrypt", "-c", CONTEXT], ciphertexts[0].as_bytes(), 3);
    cluster.start(&["n2", "n3", "n4"]);
    cluster.testnet.wait_serving(&ALL).expect("boot");
    for node in ALL {
        for ciphertext in &ciphertexts {
            let args = ["-v", "decrypt", "-c", CONTEXT, "--node", node];
            assert_eq!(heard.run(&cluster, &args, ciphertext.as_bytes(), 0), PLAINTEXT.as_bytes());
        }
    }

    // What there is to be found: whatever all disks together give away, and what was said to the programs.
    let stolen = made("stolen");
    let disks = cluster.testnet.steal(&ALL, &stolen).expect("steals");
    let pin_of_n2 = fs::read(pins.join("n2.pin")).expect("it was made");
    let loot = thief::rob_with(&disks, std::slice::from_ref(&pin_of_n2));
    assert_eq!(loot.bundles, ALL.len(), "the control: {loot}");
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
    let token_bytes = token_bytes.strip_prefix(CredentialKind::Operator.text_prefix()).expect("its prefix");
    let mut said = vec![
        text("a plaintext", PLAINTEXT),
        text("the operator key", token_bytes),
        text("a wrong key", &wrong_token[CredentialKind::Operator.text_prefix().len()..]),
    ];
    for invitation in invited.iter().chain(&joiners) {
        said.push(text("an invitation", invitation));
        let parsed: Invitation = invitation.parse().expect("an invitation");
        said.push(secret("the secret of an invitation", parsed.secret.expose()));
        said.push(secret("what proves an invitation", parsed.key().expose()));
    }
    said.push(text("what was taken for an invitation", "canary-of-no-invitation"));
    said.extend(Canary::bytes("the pin of n2", &pin_of_n2));
    for data_key in &data_keys {
        said.push(secret("a data key", data_key));
        said.push(text("a data key in base64", &STANDARD.encode(data_key)));
    }
    let nameless = |canary: &Canary| !canary.what.starts_with("the name ");
    // And what the others give away once n3 is out: other share keys, and other shares of the same keys.
    heard.run(&cluster, &["-v", "node", "revoke", "n3", "--yes", "--wait"], b"", 0);
    let later = made("later");
    let stay = cluster.testnet.steal(&["n1", "n2", "n4"], &later).expect("steals");
    let later = thief::rob_with(&stay, std::slice::from_ref(&pin_of_n2));
    assert_eq!(later.keys.len(), loot.keys.len(), "the control: reshared");
    said.extend(later.canaries.into_iter().filter(nameless));
    said.extend(loot.in_plain.into_iter().chain(later.in_plain));
    let (secrets, names): (Vec<_>, Vec<_>) = loot.canaries.into_iter().chain(said).partition(nameless);
    // 4 nodes with op seed, storage key, share key and pieces of the lock; 2 keys of 3 versions, each with its root and 4 shares.
    assert!(secrets.len() >= 4 * 5 + 6 * 6 && names.len() == 2, "{} secrets, {} names", secrets.len(), names.len());
    let kinds = [
        "op seed of",
        "storage key",
        "share key",
        "the lock of",
        "boot seed of",
        "pin of",
        "for the lock of node",
        "the key ",
        "the root of",
        "share ",
        "an invitation",
        "the secret of an invitation",
        "a data key",
        "operator key",
        "a plaintext",
        "the pin of n2",
    ];
    for kind in kinds {
        assert!(secrets.iter().any(|canary| canary.what.contains(kind)), "the control: {kind}");
    }
    let in_requests = [text("a context", "canary-of-a-context"), text("a tag", "canary-of-a-tag")];
    let in_requests = in_requests.into_iter().chain([text("a wrong context", "canary-of-an-error")]);
    let in_requests = in_requests.chain([text("a name that no key has", "canary-of/no-key")]);

    // Logs: nothing of all that, and not what lies in plain in the vaults beside them either.
    let logs = made("logs");
    for node in ALL {
        let log = fs::read_to_string(cluster.testnet.directory().log(node)).expect("a log");
        for level in ["TRACE", "DEBUG", "INFO"] {
            assert!(log.contains(level), "the control: {node} logs {level}");
        }
        assert!(ALL.iter().all(|node| log.contains(node)), "the control: nodes are named in the log of {node}");
        assert!(log.len() > 200_000, "the control: {node} logs a lot, not {} bytes", log.len());
        fs::write(logs.join(node), log).expect("our own directory");
        // What every user of the machine may see of a process, and what its owner may see.
        let process = cluster.testnet.process(node).expect("a node").expect("it was started").pid();
        for part in ["cmdline", "environ", "comm"] {
            match fs::read(format!("/proc/{process}/{part}")) {
                Ok(shown) => fs::write(logs.join(format!("{node}-{part}")), shown).expect("our own directory"),
                // Only root looks into the environment of a process that is not dumpable.
                Err(error) => assert_eq!((part, error.kind()), ("environ", io::ErrorKind::PermissionDenied)),
            }
        }
    }
    let unlogged = secrets.into_iter().chain(names).chain(in_requests).map(Canary::as_written);
    let unlogged: Vec<_> = unlogged.collect();
    let sightings = canary::search(&logs, &unlogged).expect("every log is read");
    assert!(sightings.is_empty(), "{}", shown(&sightings));
    let id = [text("the cluster's id", &cluster.file().cluster.to_string())];
    assert!(!canary::search(&logs, &id).expect("searches").is_empty(), "the control: the search finds what is there");
    let argument = [text("an argument", "--advertise")];
    let arguments = canary::search(&logs, &argument).expect("searches");
    assert!(arguments.len() >= ALL.len(), "the control: the arguments of each daemon were read");

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
    found.retain(|path| !is_of_the_kit(path));
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

/// A file that is none of the daemon's: what the test kit puts beside its data.
fn is_of_the_kit(path: &Path) -> bool {
    path.file_name().is_some_and(|name| ["quorated.log", "quorated.toml"].iter().any(|kit| name == *kit))
}

/// Whether `what` may be read, written or entered by a user who owns nothing. Only root can become one.
fn is_closed_to_others(what: &Path) -> bool {
    let mut test = Command::new("setpriv");
    test.args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c"]);
    test.arg("[ -r \"$0\" ] || [ -w \"$0\" ] || [ -x \"$0\" ]").arg(what);
    test.status().expect("util-linux").success()
}

/// T11: whatever the umask, a file, a directory or a socket is for its owner alone from the moment that it is made, also if it
/// exists for a moment only: a temporary file that is renamed, a log of the database that is dropped. Each call that makes one
/// is watched, and so is each call that gives another mode. The control: everything that lies there in the end was seen when it
/// was made, and some things that do not lie there any more. Mutated: without the daemon's own umask, the files of the database are
/// for all to write; a temporary file that is narrowed after it was written; a socket that is narrowed after it listens.
#[test]
fn t11_files_are_for_their_owner_alone_from_the_moment_they_are_made() {
    let shim = Shim::build().expect("a C compiler");
    let outside = tempfile::tempdir().expect("a directory");
    let notes = outside.path().join("notes");
    let variables = shim.with_notes(&notes);
    let builder = Cluster::builder().spares(1).umask(0);
    let builder = variables.iter().fold(builder, |builder, (name, value)| builder.environment(name, value));
    let mut cluster = TestCluster::of(builder);
    cluster.create("key");
    let path = |name: &str| outside.path().join(name).display().to_string();
    let (sealed, opened) = (path("sealed"), path("opened"));
    cluster.testnet.run(["encrypt", "key", "-o", &sealed], b"secret").expect("encrypts");
    // What is decrypted into a file is a secret as well, also if a file is replaced.
    for _ in 0..2 {
        cluster.testnet.run(["decrypt", &sealed, "-o", &opened], b"").expect("decrypts");
    }
    // Everything that replaces a file: alarms, a vault, a database that is opened again, an operation.
    let stolen = Impostor::steal(&cluster, "n3");
    assert_ne!(stolen.ask(&cluster, "n1").0, LockOpenCode::Ok, "n3 lives");
    let alarms = |node: &str| cluster.testnet.directory().node(node).join("alarms").exists().then_some(());
    cluster.until("the alarms to be kept", || alarms("n1"));
    for node in NODES {
        cluster.testnet.kill(node).expect("dies");
        cluster.start(&[node]);
        cluster.testnet.wait_serving(&[node]).expect("serves");
    }
    cluster.testnet.join("n4").expect("joins");
    // A data directory that the daemon makes itself, where everybody may look.
    fs::set_permissions(outside.path(), fs::Permissions::from_mode(0o755)).expect("our own directory");
    let (made_by_it, control) = (outside.path().join("made/by/quorated"), outside.path().join("control"));
    let mut daemon = Command::new("/bin/sh");
    daemon.args(["-c", "umask 000 && : > \"$0\" && exec \"$@\""]).arg(&control);
    daemon.arg(Binaries::find().expect("built").quorated).arg("--data").arg(&made_by_it);
    daemon.args(["--listen", "127.0.0.1:0", "--advertise", "127.0.0.1:1", "--name", "n1"]);
    let (log, socket) = (outside.path().join("log"), made_by_it.join("quorated.sock"));
    daemon.arg("--socket").arg(&socket).envs(variables);
    let _daemon = Process::start(daemon, &made_by_it, &log, Lifetime::WithUs).expect("starts");
    let ready = quorate_testnet::wait_until("its socket", PATIENCE, || local_status(&socket).ok());
    assert!(ready.is_ok(), "{}", fs::read_to_string(&log).unwrap_or_default());

    let directory = cluster.testnet.directory();
    let roots: Vec<_> = ["n1", "n2", "n3", "n4"].iter().map(|node| directory.node(node)).chain([made_by_it]).collect();
    let token = fs::metadata(directory.token()).expect("a token");
    let is_token = |made: &Made| made.place == (token.dev(), token.ino());
    // A file gets its name when it is whole.
    let is_output =
        |made: &Made| made.path.starts_with(outside.path()) && made.path.to_string_lossy().contains("/.quorate-");
    let secret = |made: &Made| {
        let of_a_node = roots.iter().any(|root| made.path.starts_with(root)) && !is_of_the_kit(&made.path);
        of_a_node || is_token(made) || is_output(made)
    };
    let all = shim::made(&notes).expect("notes");
    let me = fs::metadata(&control).expect("it was made").uid();
    let wide = |made: &&Made| {
        let allowed = if made.what == "directory" { 0o700 } else { 0o600 };
        // A socket is executable until a chmod changes that, and that means nothing.
        let mode = if made.what == "socket" { made.mode & !0o100 } else { made.mode };
        secret(made) && (mode & !allowed != 0 || made.uid != me)
    };
    let wide: Vec<_> = all.iter().filter(wide).collect();
    assert!(wide.is_empty(), "for others, if only for a moment: {wide:#?}");

    // The controls.
    assert!(all.iter().any(|made| made.was_there && secret(made)), "the control: a file that gets another mode");
    let all: Vec<_> = all.into_iter().filter(|made| !made.was_there).collect();
    let seen: BTreeSet<_> = all.iter().map(|made| made.place).collect();
    let unseen = |path: &&PathBuf| {
        let at = fs::symlink_metadata(path).expect("it exists");
        !seen.contains(&(at.dev(), at.ino())) && !is_of_the_kit(path)
    };
    // The test kit makes the directories of the nodes themselves.
    let there: Vec<_> = roots.iter().flat_map(|root| below(root)).filter(|path| !roots.contains(path)).collect();
    let unseen: Vec<_> = there.iter().filter(unseen).collect();
    assert!(there.len() > 30 && unseen.is_empty(), "the control: of {} not seen when made: {unseen:#?}", there.len());
    let gone = all.iter().filter(|made| secret(made) && !made.path.exists()).count();
    assert!(gone > 3, "the control: {gone} files that existed for a while");
    for what in ["file", "directory", "socket"] {
        assert!(all.iter().any(|made| made.what == what && secret(made)), "the control: a {what}");
    }
    let of = |part: &str| all.iter().filter(|made| secret(made) && made.path.to_string_lossy().contains(part)).count();
    for part in ["vault", "alarms", "state/raft"] {
        assert!(of(part) > 0, "the control: {part}");
    }
    assert!(all.iter().any(is_token), "the control: the token");
    assert!(all.iter().filter(|made| is_output(made)).count() >= 3, "the control: {sealed}, and {opened} twice");
    assert_eq!(mode(&control), 0o666, "the control: what takes no care is for all to read");
    assert!(all.iter().any(|made| made.path == control && made.mode == 0o666), "the control: and that is seen");

    // In the end, too.
    for root in &roots {
        assert!(owner_only(root) >= 3, "the control: directory, lock and socket");
    }
    for node in NODES {
        let socket = fs::symlink_metadata(directory.socket(node)).expect("a socket").file_type();
        assert!(socket.is_socket(), "the control: the socket is there");
    }
    assert_eq!((mode(&directory.token()), mode(Path::new(&opened))), (0o600, 0o600));
    assert_eq!(mode(&directory.client_file()) & 0o022, 0, "the client file names the nodes to trust");
    if me == 0 {
        assert!(is_closed_to_others(&control), "the control: another user can look there");
        for root in roots.last().into_iter().flat_map(|root| below(root)) {
            assert!(!is_closed_to_others(&root), "{}", root.display());
        }
    }
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
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
        }
    }
}
