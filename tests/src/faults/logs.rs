//! The log never stops or delays the daemon: logs that are full, closed, or not read; strangers that fill them; and a panic, which
//! is reported and ends the process.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Instant;

use quorate_client::conn::{Conn, Lane};
use quorate_client::identity::{Identity, Protocol, dial};
use quorate_client::wire::Alarm;
use quorate_node::base::random;
use quorate_node::vault::invitation::{InvitationKey, JoinReply, Registration};
use quorate_shares::kem::PublicKey;
use quorate_shares::labels::EXPORTER_JOIN;
use quorate_shares::secret::Secret;
use quorate_testnet::faults::shim::Shim;

use crate::harness::{PATIENCE, TestCluster};

/// A log that says as much as it can.
const TALKATIVE: (&str, &str) = ("QUORATE_LOG", "trace");
/// More lines than one place in the code may say at once, by far.
const MANY: usize = 500;
/// What the log may say about all of them.
const FEW: usize = 20;

/// Makes `target` the standard error of a node, from its next start on.
fn log_to(cluster: &TestCluster, node: &str, target: &Path) {
    let log = cluster.testnet.directory().log(node);
    fs::remove_file(&log).expect("it has a log");
    symlink(target, &log).expect("a link");
}

fn restart(cluster: &mut TestCluster, node: &str) {
    cluster.testnet.kill(node).expect("dies");
    cluster.start(&[node]);
    cluster.testnet.wait_serving(&[node]).expect("serves");
}

/// Where the standard error of a running node goes.
fn stderr_of(cluster: &TestCluster, node: &str) -> std::path::PathBuf {
    let pid = cluster.testnet.process(node).expect("a node").expect("it runs").pid();
    fs::read_link(format!("/proc/{pid}/fd/2")).expect("it is open")
}

/// Waits until `node` shows this alarm about itself.
fn alarm(cluster: &TestCluster, node: &str, code: &str) -> Alarm {
    cluster.until("an alarm", || {
        let status = cluster.block(cluster.client(Some(node)).status()).ok()?;
        let about = |alarm: &Alarm| alarm.node.as_ref().is_some_and(|about| about.as_str() == node);
        status.alarms.into_iter().find(|alarm| alarm.code == code && about(alarm))
    })
}

/// T76, full: a node opens the lock of another one although it cannot log it. Mutated: if a line that cannot be written panics, as
/// in `eprintln!`, the first two nodes do not even start.
#[test]
fn nodes_with_full_logs_unlock_a_third() {
    let mut cluster = TestCluster::found();
    cluster.create("key");
    let ciphertext = cluster.encrypt(None, "key", b"secret").expect("encrypts");
    for node in ["n1", "n2"] {
        log_to(&cluster, node, Path::new("/dev/full"));
        restart(&mut cluster, node);
        assert_eq!(stderr_of(&cluster, node), Path::new("/dev/full"), "the control: it cannot be written");
    }
    restart(&mut cluster, "n3");
    assert_eq!(cluster.decrypt(Some("n3"), &ciphertext).expect("decrypts"), b"secret");
    for node in ["n1", "n2"] {
        alarm(&cluster, node, "log_lost");
    }
}

/// T76, stuck: the reader of a log stops reading. The node serves, says so in an alarm, and later in the log. Mutated: if the threads
/// that work write to the log themselves, the first decryption waits for ever.
#[test]
fn a_log_that_is_not_read_holds_up_nothing() {
    let mut cluster = TestCluster::found();
    cluster.create("key");
    let ciphertext = cluster.encrypt(None, "key", b"secret").expect("encrypts");
    let pipe = cluster.testnet.directory().path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
    assert!(made.success());
    // Open at both ends: so the node finds a reader, who does not read.
    let reader = OpenOptions::new().read(true).write(true).open(&pipe).expect("opens");
    log_to(&cluster, "n1", &pipe);
    let talkative = vec![(TALKATIVE.0.to_owned(), TALKATIVE.1.to_owned())];
    cluster.testnet.set_environment("n1", talkative).expect("a node");
    restart(&mut cluster, "n1");

    let begin = Instant::now();
    cluster.until("lost lines", || {
        assert_eq!(cluster.decrypt(Some("n1"), &ciphertext).expect("decrypts"), b"secret");
        let status = cluster.block(cluster.client(Some("n1")).status()).expect("answers");
        status.alarms.iter().any(|alarm| alarm.code == "log_lost").then_some(())
    });
    println!("the queue was full after {:.1?}", begin.elapsed());

    // It reads again: what could be kept is there, and then how much is missing.
    let mut lines = BufReader::new(reader).lines();
    let missing =
        lines.find_map(|line| line.ok().filter(|line| line.contains("could not be written"))).expect("it is said");
    assert!(missing.contains("lost="), "{missing}");
    // And it stops again: a process with a stuck log ends when it is told to.
    drop(lines);
    let _stuck = OpenOptions::new().read(true).write(true).open(&pipe).expect("opens");
    restart(&mut cluster, "n1");
    cluster.testnet.terminate("n1").expect("ends in time");
}

/// T76, closed: the reader of a log is gone.
#[test]
fn a_node_serves_when_its_log_is_closed() {
    let mut cluster = TestCluster::found();
    cluster.create("key");
    let ciphertext = cluster.encrypt(None, "key", b"secret").expect("encrypts");
    let pipe = cluster.testnet.directory().path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    let reader = OpenOptions::new().read(true).write(true).open(&pipe).expect("opens");
    log_to(&cluster, "n1", &pipe);
    restart(&mut cluster, "n1");
    drop(reader);
    // What it says next cannot be written.
    cluster.block(cluster.client(None).seal_node(&"n1".parse().expect("a name"))).expect("seals");
    cluster.block(cluster.client(None).unseal_node(&"n1".parse().expect("a name"))).expect("unseals");
    cluster.testnet.wait_serving(&["n1"]).expect("serves");
    assert_eq!(cluster.decrypt(Some("n1"), &ciphertext).expect("decrypts"), b"secret");
    alarm(&cluster, "n1", "log_lost");
}

/// What strangers cause is said a few times. Mutated: without the bound there is a line for each request.
#[test]
fn strangers_do_not_fill_the_log() {
    let cluster = TestCluster::found();
    let file = cluster.file();
    let node = file.node("n1").expect("a node");
    let (address, boot_key) = (node.addresses[0].parse().expect("an address"), node.boot_key);
    let identity = Identity::random();
    cluster.block(async {
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().expect("an address")).expect("a socket");
        let connection = dial(&endpoint, address, &identity, boot_key, Protocol::Join, PATIENCE).await.expect("dials");
        let conn = Conn::start(connection, None);
        let exporter = *conn.export(EXPORTER_JOIN, b"").expose();
        let key = InvitationKey::of(&Secret::random(&mut random::system()));
        let registration = Registration {
            boot_pk: identity.public().0,
            op_pk: [2; 32],
            share_pk: PublicKey::of_seed(&Secret::random(&mut random::system())),
            name: "n9".parse().expect("a name"),
            addresses: vec!["127.0.0.1:9".parse().expect("an address")],
        };
        let request = registration.request(&key, &exporter).expect("a request");
        for _ in 0..MANY {
            let reply = conn.call(Lane::Ordinary, &request, PATIENCE).await.expect("answers");
            // To most of them there is no answer: the invitation is looked for twice a second.
            let refused = JoinReply::open(&reply, &key, &exporter);
            assert!(reply.is_empty() || refused.expect("only unknown needs no proof").node.is_none());
        }
    });
    let log = fs::read_to_string(cluster.testnet.directory().log("n1")).expect("a log");
    let said = log.lines().filter(|line| line.contains("join request")).count();
    assert!((1..FEW).contains(&said), "{said} lines about {MANY} requests");
}

/// What is normal is no warning: a cluster founds itself, makes a key and restarts a node without one.
#[test]
fn a_cluster_without_troubles_logs_no_warning() {
    let mut cluster = TestCluster::found();
    cluster.create("key");
    let ciphertext = cluster.encrypt(None, "key", b"secret").expect("encrypts");
    restart(&mut cluster, "n3");
    assert_eq!(cluster.decrypt(Some("n3"), &ciphertext).expect("decrypts"), b"secret");
    for node in cluster.testnet.names() {
        let log = fs::read_to_string(cluster.testnet.directory().log(&node)).expect("a log");
        assert!(log.contains(" INFO "), "the control: {log}");
        // What a machine lacks is none of the cluster's troubles.
        let warned =
            |line: &&str| [" WARN ", " ERROR "].iter().any(|level| line.contains(level)) && !line.contains("::boot: ");
        let warned: Vec<_> = log.lines().filter(warned).collect();
        assert!(warned.is_empty(), "{node}: {warned:#?}");
    }
}

/// A panic of any thread ends the process, and the reason is in the log. Mutated: with the panic hook of the standard library the
/// process stays, although some of its tasks are dead.
#[test]
fn a_panic_ends_the_process_with_its_reason() {
    let mut cluster = TestCluster::found();
    cluster.create("key");
    let ciphertext = cluster.encrypt(None, "key", b"secret").expect("encrypts");
    let shim = Shim::build().expect("a C compiler");
    let breaks = cluster.testnet.directory().path().join("breaks");
    cluster.testnet.set_environment("n3", shim.with_broken_clock(&breaks)).expect("a node");
    restart(&mut cluster, "n3");
    assert_eq!(cluster.decrypt(Some("n3"), &ciphertext).expect("the control: it serves"), b"secret");

    File::create(&breaks).expect("made");
    let (status, said) = cluster.testnet.wait_end("n3").expect("ends");
    assert!(!status.success() && said.contains("a panic at "), "{status}: {said}");
    fs::remove_file(&breaks).expect("removed");
    restart(&mut cluster, "n3");
    assert_eq!(cluster.decrypt(Some("n3"), &ciphertext).expect("decrypts"), b"secret");
}
