//! Bad input gets a clear error that says what to do, and no data is lost.

use std::fs;
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use quorate_client::conn::{Conn, Lane, close};
use quorate_client::identity::{Identity, Protocol, dial};
use quorate_client::wire::{self, AdminRequest, Answered, Envelope, Request};
use quorate_client::{Client, Code, Context, Options};
use quorate_testnet::procs::{Binaries, Finished, Tool};
use quorate_testnet::thief;

use crate::harness::{PATIENCE, TestCluster, name};

/// Runs the command line and expects it to fail with `code`, to say `says`, and to say what to do.
fn refused(cluster: &TestCluster, args: &[&str], input: &[u8], code: i32, says: &str) {
    let finished = run(cluster, args, input);
    assert_eq!(finished.code, Some(code), "{args:?}: {}", finished.stderr);
    assert!(finished.stderr.contains(says), "{args:?}: {}", finished.stderr);
    assert!(finished.stderr.contains("hint: "), "{args:?}: {}", finished.stderr);
    assert!(finished.stdout.is_empty(), "{args:?}: nothing but a result goes to stdout");
}

fn run(cluster: &TestCluster, args: &[&str], input: &[u8]) -> Finished {
    Tool::start(cluster.testnet.quorate(args.iter().copied()), input).expect("runs").outcome(PATIENCE).expect("ends")
}

#[test]
fn what_a_person_can_get_wrong_at_the_command_line() {
    let cluster = TestCluster::found();
    cluster.create("billing/cards");
    let ciphertext =
        cluster.testnet.run(["encrypt", "billing/cards", "-c", "customer=4711"], b"secret").expect("encrypts");
    let decrypt = ["decrypt", "-c", "customer=4711"];
    assert_eq!(cluster.testnet.run(decrypt, &ciphertext).expect("the control"), b"secret");

    // wrong context, none, one too many, another case
    for context in [&["-c", "customer=4712"][..], &[], &["-c", "customer=4711", "-c", "a=b"], &["-c", "Customer=4711"]]
    {
        refused(&cluster, &[&["decrypt"], context].concat(), &ciphertext, 1, "does not open");
    }
    // the same name twice is a usage error before anything is sent
    let twice = run(&cluster, &["decrypt", "-c", "a=1", "-c", "a=2"], &ciphertext);
    assert!(matches!(twice.code, Some(1 | 2)) && twice.stderr.contains("twice"), "{}", twice.stderr);
    // damaged: one character of the body, cut short, something appended
    let text = String::from_utf8(ciphertext.clone()).expect("text");
    let text = text.trim_end();
    let middle = text.len() - 20;
    let other = if &text[middle..=middle] == "A" { "B" } else { "A" };
    let damaged = format!("{}{other}{}", &text[..middle], &text[middle + 1..]);
    refused(&cluster, &decrypt, damaged.as_bytes(), 1, "does not open");
    refused(&cluster, &decrypt, b"not a ciphertext", 1, "not a ciphertext");
    refused(&cluster, &decrypt, format!("{text}!").as_bytes(), 1, "not a ciphertext");
    // of another cluster, or of a key that was never made here
    let foreign = text.replace("billing/cards", "billing/gone");
    refused(&cluster, &decrypt, foreign.as_bytes(), 5, "billing/gone");
    // unknown key, with the nearest name
    refused(&cluster, &["encrypt", "billing/card"], b"secret", 5, "billing/card");
    assert!(
        run(&cluster, &["encrypt", "billing/card"], b"secret").stderr.contains("billing/cards"),
        "suggests the nearest"
    );
    refused(&cluster, &["key", "create", "billing/cards"], b"", 6, "exists");
    // a message that is too large says what to do instead
    let large = run(&cluster, &["encrypt", "billing/cards"], &vec![7; 65_537]);
    assert!(large.code == Some(1) && large.stderr.contains("datakey"), "{}", large.stderr);
    assert_eq!(run(&cluster, &["encrypt", "billing/cards"], &vec![7; 65_536]).code, Some(0), "the control");
    refused(&cluster, &["node", "status", "n9"], b"", 5, "n9");
}

#[test]
fn a_wrong_token_and_a_foreign_client_file_are_refused() {
    let (cluster, other) = (TestCluster::found(), TestCluster::found());
    cluster.create("key");
    let client = cluster.block(Client::connect(cluster.file(), &other.token(), Options::default())).expect("connects");
    let error = cluster.block(client.encrypt(&name("key"), &Context::empty(), b"secret")).expect_err("another token");
    assert_eq!(error.code(), Code::Denied, "{error}");
    assert!(error.hint().is_some());

    // The nodes of one cluster under the identities of the other: other nodes answer at these addresses.
    let mut mixed = cluster.file();
    for (node, foreign) in mixed.nodes.iter_mut().zip(other.file().nodes) {
        node.addresses = foreign.addresses;
    }
    let client = cluster.block(Client::connect(mixed, &cluster.token(), Options::default())).expect("a client");
    let error =
        cluster.block(client.encrypt(&name("key"), &Context::empty(), b"secret")).expect_err("other identities");
    assert_eq!(error.code(), Code::Identity, "{error}");
    assert!(error.hint().is_some());
}

/// What comes first on a stream for ordinary requests.
const ORDINARY: [u8; 2] = [1, Lane::Ordinary as u8];

/// Beginnings of streams that no program of ours sends, each with what the node says to it. `frame_bytes` is its limit.
fn hostile_streams(frame_bytes: u32) -> Vec<(Vec<u8>, &'static str)> {
    let frame = |rest: &[u8]| [&ORDINARY[..], rest].concat();
    vec![
        (frame(&u32::MAX.to_be_bytes()), "too large"),
        (frame(&(frame_bytes + 1).to_be_bytes()), "too large"),
        // A whole frame precedes it.
        (frame(&[&[0, 0, 0, 9, 4][..], &[0; 8], &[0xff; 4]].concat()), "too large"),
        (frame(&[0; 4]), "too short"),
        (frame(&[0, 0, 0, 8]), "too short"),
        (frame(&[&[0, 0, 0, 9, 200][..], &[0; 8]].concat()), "unknown kind 200"),
        (frame(&[&[0, 0, 0, 9, 2][..], &[0; 8]].concat()), "an answer among requests"),
        (vec![1, 7], "an unknown kind of stream"),
        (vec![9, 0], "an unknown kind of stream"),
    ]
}

/// Bytes that no program of ours sends, at each of the four protocols: bodies are answered, every other connection is closed at
/// once and with the reason, and the node goes on serving. Mutated: without the check of a length in `frame::take` this fails
/// at each protocol.
#[test]
fn hostile_frames_do_not_hurt_a_node() {
    const AT_ONCE: Duration = Duration::from_secs(15);
    let cluster = TestCluster::found();
    cluster.create("key");
    let stolen = tempfile::tempdir().expect("a directory");
    let disks = cluster.testnet.steal(&["n1", "n2", "n3"], stolen.path()).expect("steals");
    let (_, bundle) = thief::unlock(&disks[1], &disks).expect("all disks open its bundle");
    let file = cluster.file();
    let node = file.node("n1").expect("a node");
    let address = node.addresses[0].parse().expect("an address");
    // A length field of 2^60, an unknown variant, bytes behind the end, nothing at all.
    let good = wire::encode(&Envelope { deadline_ms: 1, request: Request::ListNodes });
    let mut unknown = good.clone();
    *unknown.last_mut().expect("not empty") = 250;
    let huge = [&[253][..], &(1u64 << 60).to_le_bytes(), b"xy"].concat();
    let bodies = [huge, unknown, [&good[..], &[0]].concat(), Vec::new()];
    for protocol in Protocol::ALL {
        // Only a member comes as far as the frames of its protocol.
        let (me, key, frame_bytes) = match protocol {
            Protocol::Boot | Protocol::Join => (Identity::random(), node.boot_key, 128 << 10),
            Protocol::Client => (Identity::random(), node.key, 128 << 10),
            Protocol::Peer => (Identity::from_seed(&bundle.op_seed), node.key, 8 << 20),
        };
        cluster.block(async {
            let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().expect("an address")).expect("a socket");
            let connect = || async { dial(&endpoint, address, &me, key, protocol, AT_ONCE).await.expect("connects") };
            let conn = Conn::start(connect().await, None);
            for body in &bodies {
                let answer = conn.call(Lane::Ordinary, body, AT_ONCE).await.expect("answered, not cut off");
                if protocol == Protocol::Client {
                    let answered: Answered = wire::decode(&answer).expect("an answer");
                    let code = answered.answer.expect_err("refused").code;
                    // What could be a variant of a newer version is refused as that.
                    assert!(matches!(code, Code::BadRequest | Code::Protocol), "{code}");
                }
            }
            // The control: the connection still stands.
            assert!(conn.is_open(), "{protocol:?}");
            for (bytes, says) in hostile_streams(frame_bytes) {
                let quic = connect().await;
                let (mut send, _receive) = quic.open_bi().await.expect("a stream");
                send.write_all(&bytes).await.expect("sends");
                let closed = tokio::time::timeout(AT_ONCE, Conn::start(quic, None).closed()).await;
                let closed =
                    closed.unwrap_or_else(|_| panic!("{protocol:?}, {bytes:?}: nothing is said, expected {says}"));
                assert_eq!(closed.code, Some(close::PROTOCOL), "{protocol:?}, {bytes:?}: {closed}");
                assert!(closed.reason.contains(says), "{protocol:?}, {bytes:?}: {closed}, expected {says}");
            }
            // A frame that is cut short.
            let quic = connect().await;
            let (mut send, _receive) = quic.open_bi().await.expect("a stream");
            send.write_all(&[&ORDINARY[..], &[0, 0, 0, 40, 1, 0, 0]].concat()).await.expect("sends");
            send.finish().expect("it is open");
            let closed = tokio::time::timeout(AT_ONCE, Conn::start(quic, None).closed()).await.expect("closed");
            assert!(closed.reason.contains("ended inside a frame"), "{protocol:?}: {closed}");
        });
    }
    // The same at the local socket: no answer but the end of the connection.
    let socket = cluster.testnet.directory().socket("n1");
    for frame in
        [u32::MAX.to_be_bytes().to_vec(), vec![0, 0, 0, 40, 1], [&[0, 0, 0, 10, 1][..], &[0; 8], &[200]].concat()]
    {
        let mut stream = UnixStream::connect(&socket).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("sets");
        stream.write_all(&frame).expect("sends");
        stream.shutdown(std::net::Shutdown::Write).expect("ends");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("does not hang");
    }
    assert!(!wire::encode(&AdminRequest::Status).is_empty());
    cluster.encrypt(Some("n1"), "key", b"still serving").expect("serves");
}

fn start_daemon(args: &[&str]) -> Finished {
    let elsewhere = tempfile::tempdir().expect("a directory");
    let mut command = Command::new(Binaries::find().expect("built").quorated);
    command.args(args).arg("--socket").arg(elsewhere.path().join("socket"));
    Tool::start(command, b"").expect("runs").outcome(PATIENCE).expect("ends")
}

#[test]
fn a_port_or_directory_in_use_is_named() {
    let cluster = TestCluster::found();
    let taken = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    let empty = tempfile::tempdir().expect("a directory");
    let data = empty.path().display().to_string();
    let finished = start_daemon(&["--data", &data, "--listen", &address, "--name", "n9"]);
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains(&address) && finished.stderr.contains("hint: "), "{}", finished.stderr);
    assert_eq!(finished.stderr.matches("os error").count(), 1, "the reason is said once: {}", finished.stderr);
    let data = cluster.testnet.directory().node("n1").display().to_string();
    let finished =
        start_daemon(&["--data", &data, "--listen", "127.0.0.1:0", "--advertise", "127.0.0.1:1", "--name", "n1"]);
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains("in use by another quorated"), "{}", finished.stderr);
    let finished = start_daemon(&["--listen", "127.0.0.1:0"]);
    assert!(finished.code == Some(2) && finished.stderr.contains("--data"), "{}", finished.stderr);
}

/// T77: `--socket` with the path of something else, or of a file that the daemon makes later. Mutated: a daemon that removes
/// what does not answer at the path deletes its vault, and one that looks only at what is there blocks its own vault.
#[test]
fn a_socket_never_takes_the_place_of_another_file() {
    let mut cluster = TestCluster::found();
    let start = |data: &str, socket: &Path| {
        let mut command = Command::new(Binaries::find().expect("built").quorated);
        command.args(["--data", data, "--listen", "127.0.0.1:0", "--advertise", "127.0.0.1:1", "--name", "n1"]);
        command.arg("--socket").arg(socket);
        Tool::start(command, b"").expect("runs").outcome(PATIENCE).expect("ends")
    };
    cluster.testnet.kill("n1").expect("dies");
    let node = cluster.testnet.directory().node("n1");
    let vault = fs::read(node.join("vault")).expect("a vault");
    let data = node.display().to_string();
    for own in ["vault", "lock", "state", "state/raft/CURRENT", "vault.new", "alarms", "../n1/vault"] {
        let refused = start(&data, &node.join(own));
        assert_eq!(refused.code, Some(1), "{own}: {}", refused.stderr);
        let said = "the path is that of a file of the daemon itself\nhint: give another --socket path";
        assert!(refused.stderr.contains(said), "{own}: {}", refused.stderr);
    }
    assert_eq!(fs::read(node.join("vault")).expect("it is still there"), vault);
    cluster.start(&["n1"]);
    cluster.testnet.wait_serving(&["n1"]).expect("nothing happened to it");

    let other = tempfile::tempdir().expect("a directory");
    let (file, link) = (other.path().join("file"), other.path().join("link"));
    fs::write(&file, "of another program").expect("ours");
    std::os::unix::fs::symlink(&file, &link).expect("ours");
    let data = other.path().join("data").display().to_string();
    for place in [&file, &link, &other.path().join("data/vault")] {
        let refused = start(&data, place);
        assert!(
            refused.code == Some(1) && refused.stderr.contains("cannot make the local socket"),
            "{}",
            refused.stderr
        );
    }
    assert_eq!(fs::read(&link).expect("both are still there"), b"of another program");
}

/// One damaged copy of the vault is mended from the other; two are refused, and nothing is made in their place.
#[test]
fn a_damaged_vault_is_mended_or_refused() {
    let mut cluster = TestCluster::found();
    cluster.create("key");
    let ciphertext = cluster.encrypt(None, "key", b"secret").expect("encrypts");
    let vault = cluster.testnet.directory().node("n1").join("vault");
    let slot = quorate_node::vault::disk::SLOT_BYTES;
    for damaged in [100, slot + 100] {
        cluster.testnet.kill("n1").expect("dies");
        let mut bytes = fs::read(&vault).expect("reads");
        bytes[damaged] ^= 0xff;
        fs::write(&vault, &bytes).expect("writes");
        cluster.start(&["n1"]);
        cluster.testnet.wait_serving(&["n1"]).expect("the other copy serves");
        assert_eq!(cluster.decrypt(Some("n1"), &ciphertext).expect("decrypts"), b"secret");
        let mended = fs::read(&vault).expect("reads");
        assert_eq!(mended[..slot], mended[slot..], "both copies are whole again");
    }
    cluster.testnet.kill("n1").expect("dies");
    let good = fs::read(&vault).expect("reads");
    let mut bad = good.clone();
    bad[100] ^= 0xff;
    bad[slot + 100] ^= 0xff;
    fs::write(&vault, &bad).expect("writes");
    let data = cluster.testnet.directory().node("n1").display().to_string();
    let args = ["--data", &data, "--listen", "127.0.0.1:0", "--advertise", "127.0.0.1:1", "--name", "n1"];
    let finished = start_daemon(&args);
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains("both copies of the vault are damaged"), "{}", finished.stderr);
    assert!(finished.stderr.contains("hint: "), "{}", finished.stderr);
    assert_eq!(fs::read(&vault).expect("reads"), bad, "nothing was written over it");
    fs::write(&vault, &good).expect("writes");
    cluster.start(&["n1"]);
    cluster.testnet.wait_serving(&["n1"]).expect("serves again");
}

/// The database of another node or cluster under this node's vault: refused by name, not served.
#[test]
fn a_database_of_another_cluster_is_refused() {
    let (mut cluster, other) = (TestCluster::found(), TestCluster::found());
    cluster.testnet.kill("n1").expect("dies");
    let state = cluster.testnet.directory().node("n1").join("state");
    let kept = cluster.testnet.directory().path().join("kept");
    fs::rename(&state, &kept).expect("moves");
    let stolen = tempfile::tempdir().expect("a directory");
    let foreign = other.testnet.steal(&["n1"], stolen.path()).expect("steals").remove(0);
    fs::rename(foreign.join("state"), &state).expect("moves");
    // It unlocks itself from its peers first, and then stops at a database that its storage key does not open.
    let error = match cluster.testnet.start("n1") {
        Ok(()) => cluster.testnet.wait_serving(&["n1"]).expect_err("must not serve"),
        Err(error) => error,
    };
    let log = fs::read_to_string(cluster.testnet.directory().log("n1")).expect("a log");
    assert!(log.contains("quorated: ") && log.contains("hint: "), "{error}\n{log}");
    fs::remove_dir_all(&state).expect("removes");
    fs::rename(&kept, &state).expect("moves back");
    cluster.start(&["n1"]);
    cluster.testnet.wait_serving(&["n1"]).expect("its own database serves");
}
