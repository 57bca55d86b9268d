//! More clients at once than the machine can serve: every one is answered or told that the nodes are busy, and the nodes keep their
//! leases.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use quorate_client::conn::close;
use quorate_client::identity::{DialError, Identity, Protocol, dial};
use tempfile::TempDir;

use crate::harness::{PATIENCE, TestCluster};

const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// On two cores far more than can run at a time.
const PROCESSES: usize = 200;
const MESSAGE: &[u8] = b"attack at dawn";

/// Commands that run at the same time, each with files of its own.
struct Rush {
    _directory: TempDir,
    running: Vec<(PathBuf, Child)>,
}

/// How the commands of a rush ended.
#[derive(Debug, Default)]
struct Ended {
    answered: usize,
    busy: usize,
    others: Vec<String>,
    slowest: Duration,
}

impl Rush {
    /// Starts [`PROCESSES`] commands that decrypt `ciphertext`.
    fn start(cluster: &TestCluster, ciphertext: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let message = directory.path().join("message.qrt");
        fs::write(&message, ciphertext).expect("written");
        // Without the relay between clients and nodes, which is one thread of this process.
        let mut file = cluster.file();
        let manifest = cluster.testnet.directory().existing_manifest().expect("a cluster");
        for node in &mut file.nodes {
            let entry = manifest.nodes.iter().find(|entry| entry.name == node.name.as_str()).expect("a node");
            node.addresses = vec![entry.listen.to_string()];
        }
        let client_file = directory.path().join("cluster.toml");
        file.write(&client_file).expect("written");
        let places: Vec<_> = (0..PROCESSES).map(|number| directory.path().join(number.to_string())).collect();
        let running = places.into_iter().map(|at| {
            let mut command = cluster.testnet.quorate(["decrypt"]);
            command.arg(&message).env("QUORATE_CLUSTER", &client_file).stdin(Stdio::null());
            command.stdout(File::create(at.with_extension("out")).expect("made"));
            command.stderr(File::create(at.with_extension("err")).expect("made"));
            (at, command.spawn().expect("starts"))
        });
        Self { running: running.collect(), _directory: directory }
    }

    /// Waits until all have ended.
    fn ends(mut self, cluster: &TestCluster) -> Ended {
        let (begin, mut all) = (Instant::now(), Ended::default());
        for (at, mut child) in std::mem::take(&mut self.running) {
            let status = cluster.until("a command to end", || child.try_wait().expect("ours"));
            let said = fs::read(at.with_extension("out")).expect("its output");
            let complaint = fs::read_to_string(at.with_extension("err")).expect("its errors");
            match status.code() {
                Some(0) if said == MESSAGE => all.answered += 1,
                Some(1) if complaint.contains("busy") => all.busy += 1,
                code => all.others.push(format!("{code:?}: {complaint}")),
            }
        }
        all.slowest = begin.elapsed();
        all
    }
}

impl Drop for Rush {
    fn drop(&mut self) {
        for (_, child) in &mut self.running {
            // It may have ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The lines of the logs in which a node stops serving.
fn lost(cluster: &TestCluster) -> Vec<String> {
    let mut lost = Vec::new();
    for node in NODES {
        let log = fs::read_to_string(cluster.testnet.directory().log(node)).expect("a log");
        let lines = log.lines().filter(|line| line.contains("phase") && line.contains("from=serving"));
        lost.extend(lines.map(|line| format!("{node}: {line}")));
    }
    lost
}

/// T80: 200 real processes at once. What the budget of hedges does is shown by `route::hedge` and `client/tests/route.rs`.
#[test]
fn t80_two_hundred_commands_at_once_are_answered_or_told_busy_and_no_lease_is_lost() {
    let cluster = TestCluster::found();
    cluster.create("key");
    let ciphertext = cluster.encrypt(None, "key", MESSAGE).expect("encrypts");
    for node in NODES {
        assert_eq!(cluster.decrypt(Some(node), &ciphertext).expect("the control: every node is warm"), MESSAGE);
    }
    assert_eq!(lost(&cluster), Vec::<String>::new(), "the control: they serve since they were founded");
    let ended = Rush::start(&cluster, &ciphertext).ends(&cluster);
    println!("{} answered, {} busy, the last after {:.1?}", ended.answered, ended.busy, ended.slowest);
    assert_eq!(ended.others, Vec::<String>::new(), "{} answered, {} busy", ended.answered, ended.busy);
    assert!(ended.answered >= PROCESSES / 2, "busy is for the few: {ended:?}");
    assert_eq!(lost(&cluster), Vec::<String>::new());
    assert!(ended.slowest < PATIENCE);
    for node in NODES {
        assert_eq!(cluster.decrypt(Some(node), &ciphertext).expect("decrypts"), MESSAGE);
    }
    // The control: a lease that is lost is seen in the log.
    cluster.testnet.cut("n1").expect("cut");
    cluster.until("n1 to lose its lease", || (!lost(&cluster).is_empty()).then_some(()));
}

/// Newcomers without end at every node: some are let in, the others are told busy. No lease ends, and a member that comes back
/// meanwhile is let in. Mutated: a client that takes the refusal of a handshake for a node that is not there fails this.
#[test]
fn a_flood_of_newcomers_is_told_busy_and_ends_no_lease() {
    const DIALLERS: usize = 900;
    const ENOUGH: usize = 300;
    // Shorter than followers wait for a leader.
    const STILL: Duration = Duration::from_millis(200);
    let mut cluster = TestCluster::found();
    let manifest = cluster.testnet.directory().existing_manifest().expect("a cluster");
    let file = cluster.file();
    let doors: Vec<_> =
        manifest.nodes.iter().map(|entry| (entry.listen, file.node(&entry.name).expect("a node").key)).collect();
    let any = "127.0.0.1:0".parse().expect("an address");
    let endpoint = cluster.block(async { quinn::Endpoint::client(any).expect("a socket") });
    let (welcome, busy, stop) =
        (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let diallers: Vec<_> = (0..DIALLERS)
        .map(|number| {
            let (endpoint, (address, key)) = (endpoint.clone(), doors[number % doors.len()]);
            let (welcome, busy, stop) = (Arc::clone(&welcome), Arc::clone(&busy), Arc::clone(&stop));
            cluster.spawn(async move {
                let me = Identity::random();
                while !stop.load(Ordering::Relaxed) {
                    match dial(&endpoint, address, &me, key, Protocol::Client, PATIENCE).await {
                        Ok(connection) => {
                            welcome.fetch_add(1, Ordering::Relaxed);
                            connection.close(close::DONE.into(), b"done");
                        }
                        Err(error) => {
                            busy.fetch_add(usize::from(error == DialError::Busy), Ordering::Relaxed);
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    }
                }
            })
        })
        .collect();
    let (let_in, told) = cluster.until("a flood", || {
        // The diallers need as much of this machine's processors as the nodes. So each node stands still while newcomers arrive.
        for node in NODES {
            let process = cluster.testnet.process(node).expect("a node").expect("it runs");
            process.pause().expect("stands still");
            std::thread::sleep(STILL);
            process.resume().expect("goes on");
        }
        let (welcome, busy) = (welcome.load(Ordering::Relaxed), busy.load(Ordering::Relaxed));
        (welcome > ENOUGH && busy > ENOUGH).then_some((welcome, busy))
    });
    println!("{let_in} were let in, {told} were told busy");
    cluster.testnet.kill("n2").expect("dies");
    cluster.start(&["n2"]);
    cluster.testnet.wait_serving(&["n2"]).expect("it is let in, and serves");
    stop.store(true, Ordering::Relaxed);
    diallers.into_iter().for_each(|dialler| cluster.block(dialler).expect("no panic"));
    assert_eq!(lost(&cluster), Vec::<String>::new());
}
