//! Limits of connections: handshakes that stop halfway, thousands of idle clients, gaps with bytes behind them, clients that never
//! read, clients that stop in the middle of a frame, and callers that use up every descriptor. Each costs a node something, none ends its service, and each is told why its
//! connection is closed.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use quinn::AsyncUdpSocket;
use quinn::udp::Transmit;
use quorate_client::conn::{Closed, Conn, Lane, close};
use quorate_client::frame::{self, FrameKind};
use quorate_client::identity::{DialError, Identity, Protocol, PublicKey, client_config, dial};
use quorate_client::wire::{self, Answered, Envelope, Request, Response};
use quorate_client::{Context, Options};
use quorate_testnet::{Cluster, wait_until};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::harness::wire::Tricks;
use crate::harness::{self, PATIENCE, TestCluster, name};

/// As many as one node takes.
const CROWD: usize = 10_240;
/// Longer than it takes them to come in. The node and they share the processors, and each handshake costs milliseconds.
const ARRIVAL: Duration = Duration::from_secs(300);
/// How soon one comes back that was refused.
const A_LITTLE: Duration = Duration::from_millis(50);
/// How long a member's attempt to dial takes at most.
const DIAL: Duration = Duration::from_secs(2);
/// How many of them come in at a time.
const AT_ONCE: usize = 32;
/// Longer than the patience of a node with a handshake, and the time until an idle client says that it is alive.
const SURELY_IN: Duration = Duration::from_secs(6);
/// More than an idle connection may cost a node.
const IDLE_BYTES_MAX: u64 = 64 << 10;
/// Longer than a connection lives on which nothing arrives.
const IDLE: Duration = Duration::from_secs(12);
/// No client waits longer than this for an answer beside a crowd. It would take milliseconds on a machine with nothing else to do.
const PROMPT: Duration = Duration::from_secs(2);
/// Longer than the patience of a node of these tests with half a frame, or with answers that are not read.
const LONG: Duration = Duration::from_secs(90);
/// More than a connection may make a node hold of what it sends, with what an idle one costs: 128 KiB inside QUIC and behind gaps,
/// or a frame of 128 KiB.
const SENT_BYTES_MAX: u64 = 256 << 10;
/// More than a connection may make a node hold of answers that it does not read, in addition to that.
const UNREAD_BYTES_MAX: u64 = 512 << 10;

/// A cluster whose patience with half a message is 12 s.
fn brief() -> TestCluster {
    TestCluster::of(Cluster::builder().settings("[timing]\nstranger_patience_ms = 12000\n"))
}

/// Where a node itself listens, with no relay before it, and its op key.
fn door(cluster: &TestCluster, node: &str) -> (SocketAddr, PublicKey) {
    (cluster.listens_at(node), cluster.file().node(node).expect("a node").key)
}

/// Memory that a daemon has in use now.
fn resident_bytes(cluster: &TestCluster, node: &str) -> u64 {
    let pid = cluster.testnet.process(node).expect("a node").expect("it runs").pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel says it");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("a number") * 1024
}

fn endpoint(cluster: &TestCluster) -> quinn::Endpoint {
    endpoint_at(cluster, Ipv4Addr::LOCALHOST)
}

fn endpoint_at(cluster: &TestCluster, address: Ipv4Addr) -> quinn::Endpoint {
    cluster.block(async { quinn::Endpoint::client(SocketAddr::from((address, 0))).expect("a socket") })
}

/// The address of a stranger. The members come from 127.0.0.1.
fn stranger(number: usize) -> Ipv4Addr {
    let number = u8::try_from(number).expect("few");
    Ipv4Addr::new(127, 0, 1, number)
}

/// A connection of a stranger.
async fn connect(endpoint: &quinn::Endpoint, door: (SocketAddr, PublicKey)) -> quinn::Connection {
    connect_as(&Identity::random(), endpoint, door).await
}

/// A connection of a client. The queue of a socket is short, a busy machine drops packets or refuses newcomers, and a handshake
/// that takes too long is given up, so it tries again.
async fn connect_as(
    me: &Identity,
    endpoint: &quinn::Endpoint,
    (address, key): (SocketAddr, PublicKey),
) -> quinn::Connection {
    let begin = Instant::now();
    loop {
        match dial(endpoint, address, me, key, Protocol::Client, PATIENCE).await {
            Ok(connection) => return connection,
            Err(DialError::Deadline | DialError::Refused(_)) if begin.elapsed() < PATIENCE => {}
            // The node refuses newcomers while many wait; as any client, it comes back a little later.
            Err(DialError::Busy) if begin.elapsed() < PATIENCE => tokio::time::sleep(A_LITTLE).await,
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
    let door = door(&cluster, "n1");
    // No source may have as many.
    let endpoints: Vec<_> = (0..16).map(|number| endpoint_at(&cluster, stranger(number))).collect();
    let before = resident_bytes(&cluster, "n1");
    let begin = Instant::now();
    let mut crowd = Vec::new();
    let mut complete_since = Instant::now();
    let arrived = wait_until("a crowd", ARRIVAL, || {
        let missing = CROWD - 1 - crowd.len();
        if missing > 0 {
            crowd.extend(cluster.block(connect_many(&endpoints, door, missing)));
            complete_since = Instant::now();
        }
        // For a moment, one that gave up may still have the place of one that came. And one may believe that it is in although the
        // node had no more patience with its handshake: it hears of that when it next says that it is alive.
        std::thread::sleep(Duration::from_millis(250));
        crowd.retain(|connection| connection.close_reason().is_none());
        (crowd.len() == CROWD - 1 && complete_since.elapsed() > SURELY_IN).then_some(())
    });
    arrived.expect("they come in");
    println!("{} connections in {:.1?}", crowd.len(), complete_since - begin);

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

    let late = self::endpoint(&cluster);
    let closed = cluster.block(async { Conn::start(connect(&late, door).await, None).closed().await });
    assert_eq!(closed.code, Some(close::DENIED), "{closed}");
    assert!(closed.reason.contains("too many connections are open"), "{closed}");
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
    for endpoint in endpoints {
        endpoint.close(close::DONE.into(), b"done");
    }
    cluster.until("room again", || {
        cluster.block(async {
            let conn = Conn::start(connect(&late, door).await, None);
            tokio::time::timeout(Duration::from_millis(500), conn.closed()).await.is_err().then_some(())
        })
    });
}

async fn connect_many(
    endpoints: &[quinn::Endpoint],
    door: (SocketAddr, PublicKey),
    count: usize,
) -> Vec<quinn::Connection> {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut coming = JoinSet::new();
    for endpoint in endpoints.iter().cycle().take(count) {
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

/// A request in a frame.
fn request(id: u64, request: Request) -> BytesMut {
    let envelope = Envelope { deadline_ms: 60_000, request };
    let mut frame = BytesMut::new();
    frame::encode(&mut frame, FrameKind::Request, id, &wire::encode(&envelope)).expect("fits");
    frame
}

/// Asks and asks, and reads no answer: the node holds a little for it, stops reading, and closes the connection in the end.
#[test]
fn a_client_that_never_reads_is_cut_off() {
    const CLIENTS: usize = 32;
    let cluster = brief();
    cluster.create("key");
    let (door, endpoint) = (door(&cluster, "n1"), endpoint(&cluster));
    // The control: a client that reads is answered.
    let echo = Request::Echo(vec![7; 60_000]);
    let envelope = Envelope { deadline_ms: 60_000, request: Request::Echo(vec![7; 60_000]) };
    let me = cluster.token().identity();
    cluster.block(async {
        let conn = Conn::start(connect_as(&me, &endpoint, door).await, None);
        let answer = conn.call(Lane::Ordinary, &wire::encode(&envelope), PATIENCE).await.expect("answered");
        let answered: Answered = wire::decode(&answer).expect("an answer");
        assert!(matches!(answered.answer, Ok(Response::Echo(bytes)) if bytes.len() == 60_000));
    });

    let before = resident_bytes(&cluster, "n1");
    let frame = request(1, echo);
    let asking: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (me, endpoint, frame) = (me.clone(), endpoint.clone(), frame.clone());
            cluster.spawn(async move {
                let connection = connect_as(&me, &endpoint, door).await;
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
    assert!(each < SENT_BYTES_MAX + UNREAD_BYTES_MAX, "{each} bytes for each");
    assert!(work(&cluster, "n1", Duration::from_secs(1)) < PROMPT);
}

/// Opens all the streams that it may, begins something on each, and stays: closed with a reason, while others are served.
#[test]
fn a_client_that_stops_in_the_middle_is_cut_off() {
    let cluster = brief();
    cluster.create("key");
    let (door, endpoint) = (door(&cluster, "n1"), endpoint(&cluster));
    let whole = request(1, Request::Echo(vec![7; 60_000]));
    let half_frame = [&[1, Lane::Ordinary as u8], &whole[..whole.len() / 2]].concat();
    let lane_alone = vec![1, Lane::Heavy as u8];
    let half_preamble = vec![1];
    // A bulk transfer, which only members may begin: nothing of it is waited for.
    let half_header = vec![2, 0, 0, 0, 4, 0, 7];
    let (slow, wrong) = ((close::DENIED, "did not arrive in time"), (close::PROTOCOL, "no bulk transfer"));
    let began = Instant::now();
    let staying: Vec<_> = [
        (vec![half_frame], slow),
        (vec![lane_alone, half_preamble.clone()], slow),
        (vec![half_preamble; 4], slow),
        (vec![half_header], wrong),
    ]
    .into_iter()
    .map(|(beginnings, expected)| {
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
            (tokio::time::timeout(LONG, conn.closed()).await.expect("does not stay for ever"), expected)
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
        let (closed, (code, reason)) = cluster.block(staying).expect("no panic");
        assert_eq!(closed.code, Some(code), "{closed}");
        assert!(closed.reason.contains(reason), "{closed}");
    }
    assert!(silent.0.close_reason().is_none(), "{:?}", silent.0.close_reason());
}

/// Bytes that are sent behind a gap: most of the window of a stranger.
const BURST: usize = 112 << 10;

/// Loses one large datagram of a burst, and whatever would replace it, so that the rest of the burst waits behind a gap for ever.
#[derive(Debug, Default)]
struct Gap {
    stage: AtomicU8,
    /// Bytes of the burst that left.
    passed: AtomicUsize,
}

impl Gap {
    // At first, at stage 0, everything passes.
    /// The next large datagram is lost.
    const LOSE: u8 = 1;
    /// The rest of the burst passes. No acknowledgement arrives, so nothing is sent twice.
    const PASS: u8 = 2;
    /// No large datagram passes, so nothing fills the gap. Small ones keep the connection alive.
    const KEEP: u8 = 3;
    /// Bytes in datagrams of a burst that pass: nearly all, so that little is sent again.
    const PASSED: usize = BURST - 2000;
}

impl Tricks for Gap {
    fn send(&self, datagram: &Transmit<'_>, socket: &dyn AsyncUdpSocket) -> io::Result<()> {
        let is_large = datagram.contents.len() > 1000;
        match self.stage.load(Ordering::SeqCst) {
            Self::LOSE if is_large => self.stage.store(Self::PASS, Ordering::SeqCst),
            Self::KEEP if is_large => {}
            Self::PASS if is_large => {
                socket.try_send(datagram)?;
                let passed = self.passed.fetch_add(datagram.contents.len(), Ordering::SeqCst);
                if passed >= Self::PASSED {
                    self.stage.store(Self::KEEP, Ordering::SeqCst);
                }
            }
            _ => socket.try_send(datagram)?,
        }
        Ok(())
    }

    fn takes(&self, _: &[u8]) -> bool {
        !matches!(self.stage.load(Ordering::SeqCst), Self::LOSE | Self::PASS)
    }
}

/// A stranger who may send as much at once as it likes.
async fn connect_greedily(endpoint: &quinn::Endpoint, (address, key): (SocketAddr, PublicKey)) -> quinn::Connection {
    let mut greedy = quinn::congestion::CubicConfig::default();
    greedy.initial_window(64 << 20);
    let mut transport = quinn::TransportConfig::default();
    transport
        .congestion_controller_factory(Arc::new(greedy))
        .keep_alive_interval(Some(Duration::from_secs(1)))
        .mtu_discovery_config(None);
    let mut config = client_config(&Identity::random(), key, Protocol::Client);
    config.transport_config(Arc::new(transport));
    endpoint.connect_with(config, address, "quorate").expect("an address").await.expect("connects")
}

/// A gap in a stream, and as many bytes behind it as the node lets in: it holds no more than it promises, and for no longer than
/// its patience, although the stranger asked something before, and the connection stays alive. Mutated: with a
/// reader that does not see gaps (`conn::serve` without `InOrder`), they hold it for ever.
#[test]
fn bytes_behind_a_gap_are_few_and_do_not_stay() {
    const STRANGERS: usize = 64;
    let cluster = brief();
    cluster.create("key");
    let door = door(&cluster, "n1");
    let ask = {
        let envelope = Envelope { deadline_ms: 60_000, request: Request::ListNodes };
        let mut frame = BytesMut::from(&[1, Lane::Ordinary as u8][..]);
        frame::encode(&mut frame, FrameKind::Request, 1, &wire::encode(&envelope)).expect("fits");
        frame
    };
    let before = resident_bytes(&cluster, "n1");
    let strangers: Vec<_> = (0..STRANGERS)
        .map(|number| {
            let gap = Arc::new(Gap::default());
            let (ask, tricks) = (ask.clone(), gap.clone());
            let held = cluster.block(async move {
                let endpoint = harness::wire::endpoint(stranger(number % 8).into(), tricks.clone());
                let connection = connect_greedily(&endpoint, door).await;
                let (mut send, mut receive) = connection.open_bi().await.expect("a stream");
                // All that was sent so far has arrived when the answer is here.
                send.write_all(&ask).await.expect("sends");
                let mut answer = [0; 16];
                receive.read_exact(&mut answer).await.expect("an answer, although a refusal");
                tricks.stage.store(Gap::LOSE, Ordering::SeqCst);
                let sending = tokio::spawn(async move {
                    let _ = send.write_all(&vec![0; BURST]).await;
                    send
                });
                (endpoint, connection, receive, sending)
            });
            (gap, held)
        })
        .collect();
    let sent = |gap: &Gap| gap.passed.load(Ordering::SeqCst);
    cluster.until("all gaps", || strangers.iter().all(|(gap, _)| sent(gap) >= Gap::PASSED).then_some(()));
    let mut most = 0;
    cluster.until("the node to hold what they sent", || {
        most = most.max(resident_bytes(&cluster, "n1").saturating_sub(before));
        // The control: something is held.
        (most > (STRANGERS * BURST) as u64 / 2).then_some(())
    });
    cluster.until("every one of them to be cut off", || {
        most = most.max(resident_bytes(&cluster, "n1").saturating_sub(before));
        assert!(work(&cluster, "n1", Duration::from_millis(200)) < PROMPT);
        strangers.iter().all(|(_, (_, connection, ..))| connection.close_reason().is_some()).then_some(())
    });
    let each = most / STRANGERS as u64;
    println!("{each} bytes for each at most");
    assert!(each < SENT_BYTES_MAX, "{each} bytes for each");
    for (_, (_, connection, _, sending)) in strangers {
        let closed = Closed::from(connection.close_reason().expect("closed"));
        assert_eq!(closed.code, Some(close::DENIED), "{closed}");
        assert!(closed.reason.contains("did not arrive in time"), "{closed}");
        cluster.block(sending).expect("no panic");
    }
}

/// Holds back the first packet of a request and its repetition, and then sends both at once.
#[derive(Debug, Default)]
struct Twice {
    holds: AtomicBool,
    sends: AtomicBool,
    held: Mutex<Vec<(SocketAddr, Vec<u8>)>>,
}

impl Twice {
    fn held(&self) -> usize {
        self.held.lock().expect("no thread panics").len()
    }
}

impl Tricks for Twice {
    fn send(&self, datagram: &Transmit<'_>, socket: &dyn AsyncUdpSocket) -> io::Result<()> {
        if self.sends.load(Ordering::SeqCst) {
            for (destination, contents) in self.held.lock().expect("no thread panics").drain(..) {
                let (ecn, segment_size, src_ip) = (None, None, None);
                socket.try_send(&Transmit { destination, ecn, contents: &contents, segment_size, src_ip })?;
            }
        } else if self.holds.load(Ordering::SeqCst) && (600..1100).contains(&datagram.contents.len()) {
            let held = (datagram.destination, datagram.contents.to_vec());
            self.held.lock().expect("no thread panics").push(held);
            return Ok(());
        }
        socket.try_send(datagram)
    }
}

/// A stream whose first bytes arrive twice before the node reads them: the request is answered, and the node goes on. Mutated: if the
/// beginning of a stream is read in order, and the rest of it as it arrives, no answer comes: QUIC counts bytes twice.
#[test]
fn a_first_request_that_arrives_twice_is_answered() {
    const A_MOMENT: Duration = Duration::from_millis(30);
    let cluster = TestCluster::found();
    let (door, twice) = (door(&cluster, "n1"), Arc::new(Twice::default()));
    let envelope = Envelope { deadline_ms: 60_000, request: Request::Echo(vec![7; 600]) };
    let mut ask = BytesMut::from(&[1, Lane::Ordinary as u8][..]);
    frame::encode(&mut ask, FrameKind::Request, 1, &wire::encode(&envelope)).expect("fits");
    let tricks = Arc::clone(&twice);
    let (_endpoint, _connection, mut first, mut answers, mut other, _unread) = cluster.block(async move {
        let endpoint = harness::wire::endpoint(stranger(1).into(), tricks.clone());
        let connection = connect_greedily(&endpoint, door).await;
        let (mut first, answers) = connection.open_bi().await.expect("a stream");
        let (mut other, unread) = connection.open_bi().await.expect("a stream");
        tokio::time::sleep(10 * A_MOMENT).await;
        tricks.holds.store(true, Ordering::SeqCst);
        first.write_all(&ask).await.expect("sends");
        tokio::time::sleep(A_MOMENT).await;
        // Later packets are acknowledged, so the first one is sent again.
        other.write_all(&[1, Lane::Heavy as u8, 0, 0, 0x0f, 0xa0, 1]).await.expect("sends");
        for _ in 0..400 {
            if tricks.held() >= 2 {
                break;
            }
            other.write_all(&[0]).await.expect("sends");
            tokio::time::sleep(A_MOMENT).await;
        }
        (endpoint, connection, first, answers, other, unread)
    });
    assert!(twice.held() >= 2, "the control: two copies of a packet");
    let node = cluster.testnet.process("n1").expect("a node").expect("it runs");
    node.pause().expect("stands still");
    twice.sends.store(true, Ordering::SeqCst);
    cluster.block(async {
        other.write_all(&[0]).await.expect("sends");
        tokio::time::sleep(4 * A_MOMENT).await;
    });
    node.resume().expect("goes on");
    let answered = cluster.block(async { tokio::time::timeout(PATIENCE, answers.read_exact(&mut [0; 16])).await });
    assert!(matches!(answered, Ok(Ok(()))), "{answered:?}");
    // The byte that QUIC could not count.
    cluster.block(async { first.write_all(&[0]).await.expect("sends") });
    assert!(answers_for_a_while(&cluster), "the node goes on");
}

/// Whether n1 answers for a while.
fn answers_for_a_while(cluster: &TestCluster) -> bool {
    (0..20).all(|_| {
        std::thread::sleep(Duration::from_millis(50));
        cluster.testnet.status("n1").is_ok()
    })
}

/// The largest part of a frame that a stranger may leave unfinished: the node holds it, and not twice as much.
#[test]
fn half_of_a_large_frame_costs_no_more_than_a_frame() {
    const STRANGERS: usize = 64;
    let cluster = brief();
    cluster.create("key");
    let (door, endpoint) = (door(&cluster, "n1"), endpoint(&cluster));
    let half = [&[1, Lane::Ordinary as u8][..], &(128u32 << 10).to_be_bytes(), &[7; 100 << 10]].concat();
    let before = resident_bytes(&cluster, "n1");
    let staying: Vec<_> = (0..STRANGERS)
        .map(|_| {
            cluster.block(async {
                let connection = connect(&endpoint, door).await;
                let (mut send, receive) = connection.open_bi().await.expect("a stream");
                send.write_all(&half).await.expect("sends");
                (connection, send, receive)
            })
        })
        .collect();
    let mut most = 0;
    cluster.until("every one of them to be cut off", || {
        most = most.max(resident_bytes(&cluster, "n1").saturating_sub(before));
        assert!(work(&cluster, "n1", Duration::from_millis(200)) < PROMPT);
        staying.iter().all(|(connection, ..)| connection.close_reason().is_some()).then_some(())
    });
    let each = most / STRANGERS as u64;
    println!("{each} bytes for each at most");
    assert!(each > 64 << 10, "the control: the node holds what they sent, {each}");
    assert!(each < SENT_BYTES_MAX, "{each} bytes for each");
}

/// Begins handshakes and stops in the middle: it never sees what the server answers, except that it must prove its address.
#[derive(Debug, Default)]
struct Halfway {
    is_gone: AtomicBool,
}

impl Tricks for Halfway {
    fn send(&self, datagram: &Transmit<'_>, socket: &dyn AsyncUdpSocket) -> io::Result<()> {
        if self.is_gone.load(Ordering::SeqCst) { Ok(()) } else { socket.try_send(datagram) }
    }

    /// Takes retry packets only (RFC 9000, section 17.2.5).
    fn takes(&self, datagram: &[u8]) -> bool {
        datagram[0] & 0b1011_0000 == 0b1011_0000
    }
}

/// Begins `count` handshakes, and keeps them for at most `time`.
async fn stop_halfway(endpoint: quinn::Endpoint, door: (SocketAddr, PublicKey), count: usize, time: Duration) {
    let begun: Vec<_> = (0..count)
        .map(|_| {
            let config = client_config(&Identity::random(), door.1, Protocol::Client);
            endpoint.connect_with(config, door.0, "quorate").expect("an address")
        })
        .collect();
    tokio::time::sleep(time).await;
    drop(begun);
}

/// Whether a client comes in, at most so long after it has begun. As a member, it dials again after two seconds: a flood fills the queue of
/// the socket, and a handshake whose first packets are lost there waits longer and longer.
async fn comes_in(endpoint: &quinn::Endpoint, (address, key): (SocketAddr, PublicKey), within: Duration) -> bool {
    let coming = async {
        loop {
            match dial(endpoint, address, &Identity::random(), key, Protocol::Client, DIAL).await {
                Ok(connection) => return Some(connection),
                Err(DialError::Deadline) => {}
                // The node refuses newcomers while many wait; as any client, it comes back a little later.
                Err(DialError::Busy) => tokio::time::sleep(A_LITTLE).await,
                Err(_) => return None,
            }
        }
    };
    tokio::time::timeout(within, coming).await.ok().flatten().is_some_and(|connection| {
        connection.close(close::DONE.into(), b"done");
        true
    })
}

/// A source whose handshakes stop halfway keeps its own places for two seconds, and then they are free. Another source does not
/// notice. Mutated: without the deadline of a handshake, the places are free after ten seconds only.
#[test]
fn a_handshake_that_stops_halfway_gives_its_place_back() {
    let cluster = TestCluster::found();
    let door = door(&cluster, "n1");
    let halfway = Arc::new(Halfway::default());
    let attacker = cluster.block(async { harness::wire::endpoint(stranger(1).into(), halfway.clone()) });
    let begun = cluster.spawn(stop_halfway(attacker.clone(), door, 300, Duration::from_secs(60)));
    let (same, other) = (endpoint_at(&cluster, stranger(1)), endpoint_at(&cluster, stranger(2)));
    let moment = Duration::from_millis(400);
    cluster.until("its places to be taken", || (!cluster.block(comes_in(&same, door, moment))).then_some(()));
    // No other client waits.
    for _ in 0..10 {
        assert!(cluster.block(comes_in(&other, door, PROMPT)));
    }
    // It goes without a word.
    halfway.is_gone.store(true, Ordering::SeqCst);
    let gone = Instant::now();
    cluster.until("its places to be free", || cluster.block(comes_in(&same, door, moment)).then_some(()));
    println!("free again after {:.1?}", gone.elapsed());
    assert!(gone.elapsed() < Duration::from_secs(6), "{:?}", gone.elapsed());
    begun.abort();
}

/// Strangers from many sources who take every place for handshakes, again and again: they keep out other strangers, but no address of
/// a member, and a member that starts again gets its lock opened and serves. Mutated: without the places of members' addresses
/// this fails.
#[test]
fn strangers_with_many_addresses_do_not_keep_a_member_out() {
    const SOURCES: usize = 24;
    const EACH: usize = 30;
    // The flood takes the processor of this machine, too.
    const PATIENT: Duration = Duration::from_secs(8);
    const TRIES: usize = 12;
    let mut cluster = TestCluster::found();
    cluster.create("key");
    let ciphertext = cluster.encrypt(None, "key", b"secret").expect("encrypts");
    let door = door(&cluster, "n1");
    for node in ["n2", "n3"] {
        cluster.testnet.kill(node).expect("dies");
    }
    let flood: Vec<_> = (0..SOURCES)
        .map(|source| {
            let attacker =
                cluster.block(async { harness::wire::endpoint(stranger(source).into(), Arc::new(Halfway::default())) });
            cluster.spawn(async move {
                // Not all at the same moment: the queue of the socket would be the limit.
                tokio::time::sleep(Duration::from_millis(50) * u32::try_from(source).expect("few")).await;
                loop {
                    stop_halfway(attacker.clone(), door, EACH, Duration::from_secs(2)).await;
                }
            })
        })
        .collect();
    let moment = Duration::from_millis(400);
    let (new, member) = (endpoint_at(&cluster, stranger(200)), endpoint(&cluster));
    cluster.until("no place to be left", || (!cluster.block(comes_in(&new, door, moment))).then_some(()));
    // Side by side: an address of the roster comes in each time.
    let (mut kept_out, mut slowest) = (0, Duration::ZERO);
    for _ in 0..TRIES {
        let begin = Instant::now();
        assert!(cluster.block(comes_in(&member, door, PATIENT)), "the address of a member");
        slowest = slowest.max(begin.elapsed());
        kept_out += usize::from(!cluster.block(comes_in(&new, door, moment)));
    }
    println!("a member came in within {slowest:.1?}; a stranger was kept out {kept_out} times of {TRIES}");
    assert!(kept_out > 0, "the control: there is a flood");
    cluster.start(&["n2"]);
    cluster.testnet.wait_serving(&["n1", "n2"]).expect("two of three serve");
    assert_eq!(cluster.decrypt(Some("n2"), &ciphertext).expect("decrypts"), b"secret");
    for attacker in flood {
        attacker.abort();
    }
}

/// A frame that no client needs is refused before it is held.
#[test]
fn a_client_sends_no_frames_beyond_what_a_request_needs() {
    let cluster = TestCluster::found();
    let (door, endpoint) = (door(&cluster, "n1"), endpoint(&cluster));
    let too_large = request(1, Request::Echo(vec![7; 300 << 10]));
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

/// A daemon has no descriptor left for one more caller. When there are some again, it accepts callers as before. Mutated: a daemon that
/// stops listening at the first error.
#[test]
fn a_daemon_that_had_no_descriptor_left_goes_on_accepting() {
    const CALLERS: usize = 8;
    let cluster = TestCluster::found();
    let pid = cluster.testnet.process("n1").expect("a node").expect("it runs").pid();
    let open = || fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").count();
    let limit = |files: usize| {
        let limit = format!("--nofile={files}:");
        let set = Command::new("prlimit").args(["--pid", &pid.to_string(), &limit]).status();
        assert!(set.expect("util-linux").success());
    };
    let few = open() + 2;
    limit(few);
    let socket = cluster.testnet.directory().socket("n1");
    let callers: Vec<_> = (0..CALLERS).map(|_| UnixStream::connect(&socket).expect("it waits")).collect();
    cluster.until("no descriptor to be left", || (open() >= few).then_some(()));
    // It tries again and again to accept the others.
    std::thread::sleep(Duration::from_millis(500));
    drop(callers);
    limit(1024);
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
