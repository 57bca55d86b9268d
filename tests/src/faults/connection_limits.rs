//! Limits of connections: thousands of idle clients, clients that never read, clients that stop in the middle of a frame, and
//! callers that use up every descriptor. Each costs a node something, none ends its service, and each is told why its
//! connection is closed.

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use quorate_client::conn::{Conn, Lane, close};
use quorate_client::frame::{self, FrameKind};
use quorate_client::identity::{DialError, Identity, Protocol, PublicKey, dial};
use quorate_client::wire::{self, Answered, Envelope, Request, Response};
use quorate_client::{Context, Options};
use quorate_testnet::Cluster;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::harness::{PATIENCE, TestCluster, name};

/// As many as one node takes.
const CROWD: usize = 10_240;
/// How many of them come in at a time.
const AT_ONCE: usize = 32;
/// More than an idle connection may cost a node.
const IDLE_BYTES_MAX: u64 = 64 << 10;
/// Longer than a connection lives on which nothing arrives.
const IDLE: Duration = Duration::from_secs(12);
/// No client waits longer than this for an answer beside a crowd. It would take milliseconds on a machine with nothing else to do.
const PROMPT: Duration = Duration::from_secs(2);
/// Longer than a node's patience with half a frame, or with answers that are not read.
const LONG: Duration = Duration::from_secs(90);
/// More than one connection may make a node hold, whatever it does.
const HELD_BYTES_MAX: u64 = 8 << 20;

/// Where a node itself listens, with no relay before it, and its op key.
fn door(cluster: &TestCluster, node: &str) -> (SocketAddr, PublicKey) {
    let manifest = cluster.testnet.directory().existing_manifest().expect("a cluster");
    let listen = manifest.nodes.iter().find(|entry| entry.name == node).expect("a node").listen;
    (listen, cluster.file().node(node).expect("a node").key)
}

/// Memory that a daemon has in use now.
fn resident_bytes(cluster: &TestCluster, node: &str) -> u64 {
    let pid = cluster.testnet.process(node).expect("a node").expect("it runs").pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel says it");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("a number") * 1024
}

fn endpoint(cluster: &TestCluster) -> quinn::Endpoint {
    cluster.block(async { quinn::Endpoint::client("127.0.0.1:0".parse().expect("an address")).expect("a socket") })
}

/// A connection of a client. The queue of a socket is short, and a busy machine drops packets, so it tries again.
async fn connect(endpoint: &quinn::Endpoint, (address, key): (SocketAddr, PublicKey)) -> quinn::Connection {
    let begin = Instant::now();
    loop {
        match dial(endpoint, address, &Identity::random(), key, Protocol::Client, PATIENCE).await {
            Ok(connection) => return connection,
            Err(DialError::Deadline) if begin.elapsed() < PATIENCE => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Works at `node` for a while, and says how long the slowest answer took.
fn work(cluster: &TestCluster, node: &str, time: Duration) -> Duration {
    let client = cluster.client_with(Options { node: Some(node.to_owned()), ..Options::default() });
    let (begin, mut slowest) = (Instant::now(), Duration::ZERO);
    cluster.block(async {
        while begin.elapsed() < time {
            let asked = Instant::now();
            let ciphertext = client.encrypt(&name("key"), &Context::empty(), b"secret").await.expect("encrypts");
            let opened = client.decrypt(&ciphertext, &Context::empty()).await.expect("decrypts");
            assert_eq!(opened.expose(), b"secret");
            slowest = slowest.max(asked.elapsed());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    slowest
}

/// As many idle clients as a node takes: they stay, cost little, and delay no other client. One more is told why it may not stay, a
/// client asks another node instead, and when the crowd has gone there is room again.
#[test]
fn ten_thousand_idle_clients_hold_up_no_client() {
    let mut cluster = TestCluster::found();
    cluster.create("key");
    // Its own place is taken before the crowd comes.
    let regular = cluster.client(Some("n1"));
    let ciphertext =
        cluster.block(regular.encrypt(&name("key"), &Context::empty(), b"secret")).expect("the control: serves");
    let (door, endpoint) = (door(&cluster, "n1"), endpoint(&cluster));
    let before = resident_bytes(&cluster, "n1");
    let begin = Instant::now();
    let mut crowd = Vec::new();
    cluster.until("a crowd", || {
        crowd.extend(cluster.block(connect_many(&endpoint, door, CROWD - 1 - crowd.len())));
        // For a moment, one that gave up may still have the place of one that came.
        std::thread::sleep(Duration::from_millis(250));
        crowd.retain(|connection| connection.close_reason().is_none());
        (crowd.len() == CROWD - 1).then_some(())
    });
    println!("{} connections in {:.1?}", crowd.len(), begin.elapsed());

    let slowest = {
        let (begin, mut slowest) = (Instant::now(), Duration::ZERO);
        while begin.elapsed() < IDLE {
            let asked = Instant::now();
            let opened = cluster.block(regular.decrypt(&ciphertext, &Context::empty())).expect("decrypts");
            assert_eq!(opened.expose(), b"secret");
            slowest = slowest.max(asked.elapsed());
        }
        slowest
    };
    let each = resident_bytes(&cluster, "n1").saturating_sub(before) / crowd.len() as u64;
    println!("{each} bytes for each idle connection; the slowest answer beside them took {slowest:.1?}");
    assert!(each < IDLE_BYTES_MAX, "{each} bytes for each");
    assert!(slowest < PROMPT, "{slowest:?}");
    let gone: Vec<_> = crowd.iter().filter_map(|connection| connection.close_reason()).collect();
    assert!(gone.is_empty(), "{} were closed: {:?}", gone.len(), gone.first());

    let closed = cluster.block(async { Conn::start(connect(&endpoint, door).await, None).closed().await });
    assert_eq!(closed.code, Some(close::DENIED), "{closed}");
    assert!(closed.reason.contains("too many connections"), "{closed}");
    assert_eq!(cluster.decrypt(None, &ciphertext).expect("any other node answers"), b"secret");
    cluster.testnet.status("n1").expect("the local socket answers");
    // Members find a place all the same: one that boots gets its piece from this node, since no other node is there.
    for node in ["n2", "n3"] {
        cluster.testnet.kill(node).expect("dies");
    }
    cluster.start(&["n2"]);
    cluster.testnet.wait_serving(&["n1", "n2"]).expect("two of three serve");
    assert_eq!(cluster.decrypt(Some("n2"), &ciphertext).expect("decrypts"), b"secret");

    drop(crowd);
    endpoint.close(close::DONE.into(), b"done");
    let late = self::endpoint(&cluster);
    cluster.until("room again", || {
        cluster.block(async {
            let conn = Conn::start(connect(&late, door).await, None);
            tokio::time::timeout(Duration::from_millis(500), conn.closed()).await.is_err().then_some(())
        })
    });
}

async fn connect_many(
    endpoint: &quinn::Endpoint,
    door: (SocketAddr, PublicKey),
    count: usize,
) -> Vec<quinn::Connection> {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut coming = JoinSet::new();
    for _ in 0..count {
        let place = Arc::clone(&places).acquire_owned().await.expect("never closed");
        let endpoint = endpoint.clone();
        coming.spawn(async move {
            let connection = connect(&endpoint, door).await;
            drop(place);
            connection
        });
    }
    coming.join_all().await
}

/// A request in a frame, as a client with the right token sends it.
fn request(cluster: &TestCluster, id: u64, request: Request) -> BytesMut {
    let envelope = Envelope { token: cluster.token(), deadline_ms: 60_000, request };
    let mut frame = BytesMut::new();
    frame::encode(&mut frame, FrameKind::Request, id, &wire::encode(&envelope)).expect("fits");
    frame
}

/// Asks and asks, and reads no answer: the node holds a little for it, stops reading, and closes the connection in the end.
#[test]
fn a_client_that_never_reads_is_cut_off() {
    const CLIENTS: usize = 8;
    let cluster = TestCluster::found();
    cluster.create("key");
    let (door, endpoint) = (door(&cluster, "n1"), endpoint(&cluster));
    // The control: a client that reads is answered.
    let echo = Request::Echo(vec![7; 60_000]);
    let envelope = Envelope { token: cluster.token(), deadline_ms: 60_000, request: Request::Echo(vec![7; 60_000]) };
    cluster.block(async {
        let conn = Conn::start(connect(&endpoint, door).await, None);
        let answer = conn.call(Lane::Ordinary, &wire::encode(&envelope), PATIENCE).await.expect("answered");
        let answered: Answered = wire::decode(&answer).expect("an answer");
        assert!(matches!(answered.answer, Ok(Response::Echo(bytes)) if bytes.len() == 60_000));
    });

    let before = resident_bytes(&cluster, "n1");
    let frame = request(&cluster, 1, echo);
    let asking: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (endpoint, frame) = (endpoint.clone(), frame.clone());
            cluster.spawn(async move {
                let connection = connect(&endpoint, door).await;
                let (mut send, _unread) = connection.open_bi().await.expect("a stream");
                send.write_all(&[1, Lane::Ordinary as u8]).await.expect("sends");
                let ask = async {
                    let mut sent = 0u64;
                    // The same number again and again is fine: each request is over before the next is read.
                    while send.write_all(&frame).await.is_ok() {
                        sent += frame.len() as u64;
                    }
                    sent
                };
                let sent = tokio::time::timeout(LONG, ask).await.expect("does not go on for ever");
                (sent, Conn::start(connection, None).closed().await)
            })
        })
        .collect();
    let mut most = 0;
    let slowest = cluster.until("every one of them to be cut off", || {
        most = most.max(resident_bytes(&cluster, "n1"));
        let slowest = work(&cluster, "n1", Duration::from_millis(200));
        assert!(slowest < PROMPT, "{slowest:?}");
        asking.iter().all(|asking| asking.is_finished()).then_some(slowest)
    });
    for asking in asking {
        let (sent, closed) = cluster.block(asking).expect("no panic");
        println!("sent {sent} bytes, then: {closed}");
        assert_eq!((closed.code, closed.reason.as_str()), (Some(close::DENIED), "answers are not read"));
    }
    let each = most.saturating_sub(before) / CLIENTS as u64;
    println!("{each} bytes for each at most; the slowest answer beside them took {slowest:.1?}");
    assert!(each < HELD_BYTES_MAX, "{each} bytes for each");
    assert!(work(&cluster, "n1", Duration::from_secs(1)) < PROMPT);
}

/// Opens all the streams that it may, begins something on each, and stays: closed with a reason, while others are served.
#[test]
fn a_client_that_stops_in_the_middle_is_cut_off() {
    let cluster = TestCluster::found();
    cluster.create("key");
    let (door, endpoint) = (door(&cluster, "n1"), endpoint(&cluster));
    let whole = request(&cluster, 1, Request::Echo(vec![7; 60_000]));
    let half_frame = [&[1, Lane::Ordinary as u8], &whole[..whole.len() / 2]].concat();
    let lane_alone = vec![1, Lane::Heavy as u8];
    let half_preamble = vec![1];
    let half_header = vec![2, 0, 0, 0, 4, 0, 7];
    let began = Instant::now();
    let staying: Vec<_> =
        [vec![half_frame], vec![lane_alone, half_preamble], vec![half_header.clone()], vec![half_header; 16]]
            .into_iter()
            .map(|beginnings| {
                let endpoint = endpoint.clone();
                cluster.spawn(async move {
                    let connection = connect(&endpoint, door).await;
                    let mut streams = Vec::new();
                    for beginning in beginnings {
                        let (mut send, receive) = connection.open_bi().await.expect("a stream");
                        send.write_all(&beginning).await.expect("sends");
                        streams.push((send, receive));
                    }
                    let conn = Conn::start(connection, None);
                    tokio::time::timeout(LONG, conn.closed()).await.expect("does not stay for ever")
                })
            })
            .collect();
    // The control: a lane on which nothing has begun may be silent for as long as it likes.
    let silent = cluster.block(async {
        let connection = connect(&endpoint, door).await;
        let (mut send, receive) = connection.open_bi().await.expect("a stream");
        send.write_all(&[&[1, Lane::Ordinary as u8], &whole[..]].concat()).await.expect("sends");
        (connection, send, receive)
    });
    cluster.until("every one of them to be cut off", || {
        let slowest = work(&cluster, "n1", Duration::from_millis(200));
        assert!(slowest < PROMPT, "{slowest:?}");
        staying.iter().all(|staying| staying.is_finished()).then_some(())
    });
    println!("all were cut off after {:.1?}", began.elapsed());
    for staying in staying {
        let closed = cluster.block(staying).expect("no panic");
        assert_eq!(closed.code, Some(close::DENIED), "{closed}");
        assert!(closed.reason.contains("did not arrive in time"), "{closed}");
    }
    assert!(silent.0.close_reason().is_none(), "{:?}", silent.0.close_reason());
}

/// A frame that no client needs is refused before it is held.
#[test]
fn a_client_sends_no_frames_beyond_what_a_request_needs() {
    let cluster = TestCluster::found();
    let (door, endpoint) = (door(&cluster, "n1"), endpoint(&cluster));
    let too_large = request(&cluster, 1, Request::Echo(vec![7; 300 << 10]));
    let closed = cluster.block(async {
        let connection = connect(&endpoint, door).await;
        let (mut send, _receive) = connection.open_bi().await.expect("a stream");
        // Whether all of it leaves before the answer comes does not matter.
        let _ = send.write_all(&[&[1, Lane::Ordinary as u8], &too_large[..]].concat()).await;
        Conn::start(connection, None).closed().await
    });
    assert_eq!(closed.code, Some(close::PROTOCOL), "{closed}");
    assert!(closed.reason.contains("too large"), "{closed}");
}

/// Callers at the local socket that take every place and say nothing: the cluster works all the same, they are sent away
/// with a reason, and the callers that waited are answered.
#[test]
fn silent_callers_at_the_local_socket_are_sent_away() {
    // Enough to run with, and not enough for a crowd.
    let cluster = TestCluster::of(Cluster::builder().open_files(128));
    cluster.create("key");
    let socket = cluster.testnet.directory().socket("n1");
    let mut callers: Vec<_> = (0..120).filter_map(|_| UnixStream::connect(&socket).ok()).collect();
    assert!(callers.len() > 100, "the control: there is a crowd, {}", callers.len());
    cluster.create("made/beside-a-crowd");
    assert!(work(&cluster, "n1", Duration::from_secs(1)) < PROMPT);
    let pid = cluster.testnet.process("n1").expect("a node").expect("it runs").pid();
    let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").count();
    println!("{open} descriptors are open");
    assert!(open < 120, "the places of the crowd are limited, {open}");

    let first = &mut callers[0];
    first.set_read_timeout(Some(PATIENCE)).expect("sets");
    let mut said = Vec::new();
    first.read_to_end(&mut said).expect("sent away in time");
    assert!(String::from_utf8_lossy(&said).contains("no request came in time"), "{said:?}");
    // What a caller has begun to say does not give it more time.
    let mut rude = UnixStream::connect(&socket).expect("connects");
    rude.write_all(&[0, 0, 0, 40, 1]).expect("sends");
    drop(callers);
    let status = cluster.until("the local socket to answer", || cluster.testnet.status("n1").ok());
    assert_eq!(status.public.phase, quorate_client::wire::Phase::Serving);
}

/// With too few descriptors to run, a daemon says so instead of limping on.
#[test]
fn a_daemon_without_descriptors_says_so() {
    let testnet = Cluster::builder().open_files(8).start();
    let error = testnet.err().expect("eight descriptors are not enough").to_string();
    assert!(error.contains("quorated: ") && error.contains("hint: "), "{error}");
}
