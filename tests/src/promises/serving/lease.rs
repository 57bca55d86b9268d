//! A node that is cut off from the quorum stops answering when its lease ends.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use quorate_client::conn::{Conn, Lane};
use quorate_client::identity::{Protocol, dial};
use quorate_client::wire::{self, Answered, Envelope, Phase, Plaintext, Request};
use quorate_client::{Code, Context, Error, Options};
use quorate_testnet::Cluster;
use quorate_testnet::faults::network::LinkQuality;
use tokio::task::JoinSet;

use crate::harness::{PATIENCE, TestCluster, name};

/// The followers and the leader alike: cut off, they refuse within the lease; healed, they serve again.
#[test]
fn a_node_that_is_cut_off_refuses_within_its_lease() {
    let settings = "[timing]\nlease_ms = 1500\nlease_tick_ms = 300\nwipe_after_ms = 1000\n";
    let mut cluster = TestCluster::of(Cluster::builder().settings(settings));
    cluster.create("key");
    let ciphertext = cluster.encrypt(None, "key", b"secret").expect("encrypts");
    for node in ["n1", "n2", "n3"] {
        assert_eq!(cluster.decrypt(Some(node), &ciphertext).expect("the control: warm and serving"), b"secret");
        cluster.testnet.cut(node).expect("cut");
        let cut = Instant::now();
        cluster.testnet.wait_phase(node, Phase::Open).expect("leaves Serving");
        // Its clients still reach it, and its key was warm: only the lease stands between them and the key.
        let error = cluster.decrypt(Some(node), &ciphertext).expect_err("no lease, no answer");
        assert_eq!(error.code(), Code::NoQuorum, "{error}");
        println!("{node} refused {:?} after the cut", cut.elapsed());
        let others: Vec<_> = ["n1", "n2", "n3"].into_iter().filter(|other| *other != node).collect();
        cluster.testnet.wait_serving(&others).expect("the others go on");
        assert_eq!(cluster.decrypt(Some(others[0]), &ciphertext).expect("a quorum serves"), b"secret");
        cluster.testnet.heal().expect("heals");
        cluster.testnet.wait_serving(&[node]).expect("serves again");
        assert_eq!(cluster.decrypt(Some(node), &ciphertext).expect("decrypts"), b"secret");
    }
}

/// The length of a lease is the cluster's, and a node whose own configuration wants longer ones says so and has the cluster's. With
/// its own, a node that is cut off would serve for a minute, and a revocation would not know of it. Mutated: a length that each
/// node takes from its configuration.
#[test]
fn a_node_has_the_leases_of_its_cluster() {
    let settings = "[timing]\nlease_ms = 1500\nlease_tick_ms = 300\nwipe_after_ms = 1000\n";
    let mut cluster = TestCluster::of(Cluster::builder().settings(settings));
    cluster.create("key");
    let ciphertext = cluster.encrypt(None, "key", b"secret").expect("encrypts");
    cluster.testnet.kill("n3").expect("dies");
    let config = cluster.testnet.directory().config("n3");
    std::fs::write(&config, "[timing]\nlease_ms = 60000\nlease_tick_ms = 20000\n").expect("our own directory");
    cluster.start(&["n3"]);
    cluster.testnet.wait_serving(&["n3"]).expect("serves");
    let log = std::fs::read_to_string(cluster.testnet.directory().log("n3")).expect("a log");
    assert!(log.contains("timing.lease_ms has no effect here"), "{log}");
    // It renews its lease in time, although its own tick is longer than the lease.
    let begin = Instant::now();
    cluster.until("two leases to pass", || {
        assert_eq!(cluster.decrypt(Some("n3"), &ciphertext).expect("without a gap"), b"secret");
        (begin.elapsed() > Duration::from_secs(3)).then_some(())
    });
    cluster.testnet.cut("n3").expect("cut");
    let cut = Instant::now();
    cluster.testnet.wait_phase("n3", Phase::Open).expect("leaves Serving");
    let error = cluster.decrypt(Some("n3"), &ciphertext).expect_err("no lease, no answer");
    assert_eq!(error.code(), Code::NoQuorum, "{error}");
    assert!(cut.elapsed() < Duration::from_secs(30), "half of what it was configured to: {:?}", cut.elapsed());
}

/// A node is cut off, and a client asks it for a change at once. The node refuses when its lease ends, so the client can ask
/// another node and has not lost all of its time. Mutated: without that the client hears only that no answer came in time.
#[test]
fn a_change_does_not_wait_for_a_leader_that_is_out_of_reach() {
    let mut cluster = TestCluster::of(Cluster::builder().settings("[timing]\nlease_ms = 1500\nlease_tick_ms = 300\n"));
    for node in ["n1", "n2", "n3"] {
        let client = cluster.hasty(node);
        cluster.block(client.status()).expect("the control: a connection is there");
        cluster.testnet.cut(node).expect("cut");
        let error = cluster.block(client.create_key(&name(node), BTreeMap::new())).expect_err("no leader makes it");
        assert_eq!(error.code(), Code::NoQuorum, "{node}: {error}");
        cluster.create(&format!("{node}/elsewhere"));
        cluster.testnet.heal().expect("heals");
        cluster.testnet.wait_serving(&[node]).expect("serves again");
    }
}

/// A lease counts from when a node asks for it, and not from when it has the answer: on a slow link most of it may be over by then.
/// Every answer says how long the lease goes on, so a client sees it. Mutated: a lease that counts from the answer.
#[test]
fn a_lease_counts_from_when_it_is_asked_for() {
    const LEASE: Duration = Duration::from_secs(3);
    const DELAY: Duration = Duration::from_millis(150);
    const SAMPLES: u32 = 100;
    let settings = "[timing]\nheartbeat_ms = 600\nelection_ms = 1800\n";
    let mut cluster = TestCluster::of(Cluster::builder().settings(settings));
    cluster.create("key");
    let leader = cluster.leader();
    let node = ["n1", "n2", "n3"].into_iter().find(|node| *node != leader).expect("three");
    let file = cluster.file();
    let (target, me) = (file.node(node).expect("a node"), cluster.token().identity());
    let address = target.addresses[0].parse().expect("an address");
    let request = Request::Encrypt {
        key: name("key"),
        context: Context::empty(),
        plaintext: Plaintext::new(b"secret".to_vec()).expect("short"),
    };
    let envelope = wire::encode(&Envelope { deadline_ms: 10_000, request });
    // The longest time that an answer is good for, of many.
    let longest = |cluster: &TestCluster| {
        cluster.block(async {
            let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().expect("an address")).expect("a socket");
            let connection =
                dial(&endpoint, address, &me, target.key, Protocol::Client, PATIENCE).await.expect("connects");
            let conn = Conn::start(connection, None);
            let mut asked = JoinSet::new();
            for _ in 0..SAMPLES {
                let (conn, envelope) = (conn.clone(), envelope.clone());
                asked.spawn(async move { conn.call(Lane::Ordinary, &envelope, PATIENCE).await });
                // They come at all moments of a lease.
                tokio::time::sleep(LEASE / SAMPLES).await;
            }
            let answers = asked.join_all().await.into_iter().map(|answer| answer.expect("answers"));
            let answers = answers.map(|answer| wire::decode::<Answered>(&answer).expect("an answer"));
            let longest = answers.filter(|answered| answered.answer.is_ok()).map(|answered| answered.good_for_ms).max();
            let longest = longest.expect("the control: it serves");
            Duration::from_millis(longest.into())
        })
    };
    // From here on the node has the key in memory. So no request waits while a renewal comes.
    cluster.encrypt(Some(node), "key", b"secret").expect("encrypts");
    let quick = cluster.until("the control: nearly a whole lease on a quick link", || {
        Some(longest(&cluster)).filter(|quick| *quick > LEASE - 2 * DELAY)
    });
    assert!(quick <= LEASE, "{quick:?}");
    cluster.faults().set_quality(LinkQuality { delay: DELAY..=DELAY, ..LinkQuality::default() }, 1);
    // The lease of before is over.
    std::thread::sleep(LEASE);
    cluster.testnet.wait_serving(&[node]).expect("it serves over a slow link");
    let slow = longest(&cluster);
    assert!(slow > LEASE / 3, "the control: {slow:?}, it has leases");
    assert!(slow <= LEASE - 2 * DELAY, "{slow:?}, although the question and the answer take {:?}", 2 * DELAY);
    cluster.faults().set_quality(LinkQuality::default(), 1);
}

/// Two nodes that cannot see each other, but both see the third, both serve: relayed trust is enough.
#[test]
fn two_nodes_that_cannot_see_each_other_both_serve() {
    let mut cluster = TestCluster::found();
    cluster.create("key");
    let ciphertext = cluster.encrypt(None, "key", b"secret").expect("encrypts");
    let status = cluster.block(cluster.client(None).status()).expect("status");
    let leader = status.leader.expect("a leader").to_string();
    let followers: Vec<_> = ["n1", "n2", "n3"].into_iter().filter(|node| *node != leader).collect();
    cluster.testnet.cut_pair(followers[0], followers[1]).expect("cut");
    for node in ["n1", "n2", "n3"] {
        cluster.until("decrypts", || cluster.decrypt(Some(node), &ciphertext).ok().filter(|plain| plain == b"secret"));
    }
    cluster.testnet.heal().expect("heals");
    cluster.testnet.wait_serving(&["n1", "n2", "n3"]).expect("serve");
}

/// When each answer came, and what it was.
type Answers = Arc<Mutex<Vec<(Instant, Result<(), Error>)>>>;

/// T58: a process that is stopped in the middle of its answers, until its lease is over, goes on with refusals. What it had
/// ready leaves all the same, since nothing inside a stopped process can hold it back; it says how long it is good for, and
/// no client takes it. There is such an answer in some runs (their number is printed); a lease on a clock that stands still
/// meanwhile fails in all. The client's rule alone: `an_answer_that_comes_after_its_lease_is_not_believed` in client/tests.
#[test]
fn t58_no_client_takes_an_answer_of_a_node_that_was_stopped_beyond_its_lease() {
    const LEASE: Duration = Duration::from_millis(1500);
    const ASKERS: usize = 48;
    let settings = format!("[timing]\nlease_ms = {}\nlease_tick_ms = 300\n", LEASE.as_millis());
    let mut cluster = TestCluster::of(Cluster::builder().settings(settings));
    cluster.create("key");
    let ciphertext = cluster.encrypt(None, "key", b"secret").expect("encrypts");
    let mut discarded = 0;
    for node in ["n1", "n2", "n3"] {
        let (stop, opened) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let answers: Answers = Arc::default();
        let options = Options { node: Some(node.to_owned()), patience: Duration::ZERO, ..Options::default() };
        let askers: Vec<_> = (0..ASKERS)
            .map(|_| {
                let (client, ciphertext) = (cluster.client_with(options.clone()), ciphertext.clone());
                let (stop, opened, answers) = (Arc::clone(&stop), Arc::clone(&opened), Arc::clone(&answers));
                cluster.spawn(async move {
                    while !stop.load(Ordering::SeqCst) {
                        let answer = client.decrypt(&ciphertext, &Context::empty()).await.map(|_| ());
                        opened.fetch_add(answer.is_ok().into(), Ordering::SeqCst);
                        answers.lock().expect("no thread panics").push((Instant::now(), answer));
                    }
                })
            })
            .collect();
        cluster.until("answers", || (opened.load(Ordering::SeqCst) > 20 * ASKERS).then_some(()));

        let process = cluster.testnet.process(node).expect("exists").expect("runs");
        process.pause().expect("stands still");
        let paused = Instant::now();
        // No node may confirm it afterwards; what it sent before has arrived long before its lease is over.
        cluster.testnet.cut(node).expect("cut");
        cluster.until("the lease to be over", || (paused.elapsed() > 2 * LEASE).then_some(()));
        let resumed = Instant::now();
        process.resume().expect("goes on");
        let late = || -> Vec<Result<(), Error>> {
            let answers = answers.lock().expect("no thread panics");
            answers.iter().filter(|(at, _)| *at >= resumed).map(|(_, answer)| answer.clone()).collect()
        };
        cluster.until("answers to all who asked", || (late().len() >= ASKERS).then_some(()));
        stop.store(true, Ordering::SeqCst);
        askers.into_iter().for_each(|asker| cluster.block(asker).expect("no asker panicked"));
        for answer in late() {
            let error = answer.expect_err("an answer from before the stop was taken after the lease");
            // A handshake that the stop interrupted fails.
            let expected = matches!(error.code(), Code::NoQuorum | Code::NotServing | Code::Unreachable);
            assert!(expected, "{}: {error}", error.code());
            discarded += usize::from(error.to_string().contains("after its lease had ended"));
        }
        cluster.testnet.heal().expect("heals");
        cluster.testnet.wait_serving(&[node]).expect("serves again");
        assert_eq!(cluster.decrypt(Some(node), &ciphertext).expect("decrypts"), b"secret");
    }
    println!("{discarded} answers had left too late and were discarded");
}
