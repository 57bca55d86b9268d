//! Identities and connections over a real socket of this machine.

mod kit;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use kit::{LONG, Node, SHORT, wait_until};
use quorate_client::conn::{BoxFuture, BulkError, BulkReceiver, CallError, Conn, Handler, IN_FLIGHT_MAX, Lane, Reply};
use quorate_client::identity::{DialError, Identity, Protocol, PublicKey, dial, peer_key, server_config};

/// Answers by the first byte of the request.
#[derive(Default)]
struct Scripted {
    running: Arc<AtomicUsize>,
    dropped: Arc<AtomicUsize>,
    begun: Arc<AtomicUsize>,
    whole: Arc<AtomicUsize>,
    broken: Arc<AtomicUsize>,
}

/// Decrements a counter when it is dropped.
struct Counted(Arc<AtomicUsize>, Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
        self.1.fetch_add(1, Ordering::SeqCst);
    }
}

impl Handler for Scripted {
    fn handle(&self, conn: &Conn, body: Bytes) -> Reply {
        match body.first() {
            Some(b'l') => Reply::later(async move { body.to_vec() }),
            Some(b'w') => {
                self.running.fetch_add(1, Ordering::SeqCst);
                let counted = Counted(self.running.clone(), self.dropped.clone());
                Reply::later(async move {
                    std::future::pending::<()>().await;
                    drop(counted);
                    Vec::new()
                })
            }
            Some(b'!') => panic!("as the test wants it, at once"),
            Some(b'p') => Reply::later(async move { panic!("as the test wants it") }),
            Some(b'b') => Reply::Inline(vec![7; 1 << 20]),
            // Sends a request back over the same connection.
            Some(b'r') => {
                let conn = conn.clone();
                Reply::later(async move {
                    conn.call(Lane::Ordinary, b"echo", LONG).await.map_or_else(|_| vec![], |answer| answer.to_vec())
                })
            }
            _ => Reply::Inline(body.to_vec()),
        }
    }

    fn bulk(&self, _: &Conn, mut bulk: BulkReceiver) -> BoxFuture<()> {
        let (whole, broken) = (self.whole.clone(), self.broken.clone());
        self.begun.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            if bulk.header().as_ref() == b"refuse me" {
                return;
            }
            let mut total = 0;
            loop {
                match bulk.next().await {
                    Ok(Some(chunk)) => total += chunk.len(),
                    Ok(None) => break,
                    Err(_) => {
                        broken.fetch_add(1, Ordering::SeqCst);
                        return;
                    }
                }
            }
            whole.fetch_add(1, Ordering::SeqCst);
            let _ = bulk.reply(format!("{total}").as_bytes()).await;
        })
    }
}

#[tokio::test]
async fn a_server_is_known_by_the_one_key_that_is_expected() {
    let node = Node::start(&Protocol::ALL);
    let me = Identity::random();
    let conn = node.dial(&me, node.op.public(), Protocol::Peer).await.expect("the right key");
    assert_eq!(peer_key(&conn), Some(node.op.public()));
    assert_eq!(Protocol::of(&conn), Some(Protocol::Peer));
    let seen = node.accepted().await;
    assert_eq!((seen.peer().key, seen.peer().protocol, seen.peer().dialled), (me.public(), Protocol::Peer, false));

    let stranger = Identity::random().public();
    let refused = node.dial(&me, stranger, Protocol::Peer).await.expect_err("another key");
    assert_eq!(refused, DialError::WrongIdentity { presented: node.op.public() });
}

#[tokio::test]
async fn the_protocol_decides_which_key_answers() {
    let node = Node::start(&Protocol::ALL);
    let me = Identity::random();
    for (protocol, key) in [
        (Protocol::Boot, node.boot.public()),
        (Protocol::Join, node.boot.public()),
        (Protocol::Peer, node.op.public()),
        (Protocol::Client, node.op.public()),
    ] {
        let conn = node.dial(&me, key, protocol).await.expect("each protocol with its key");
        assert_eq!(Protocol::of(&conn), Some(protocol));
    }
    // A client must never ask a boot key for its work, so no protocol is served by the key of another.
    let swapped = node.dial(&me, node.boot.public(), Protocol::Client).await.expect_err("a boot key serves no client");
    assert_eq!(swapped, DialError::WrongIdentity { presented: node.op.public() });
}

#[tokio::test]
async fn what_is_offered_changes_at_run_time() {
    let node = Node::start(&[Protocol::Boot]);
    let me = Identity::random();
    let closed = node.dial(&me, node.op.public(), Protocol::Client).await.expect_err("not offered");
    assert_eq!(closed, DialError::NotOffered);
    let config = server_config(&node.boot, Some(&node.op), &Protocol::ALL);
    node.endpoint.set_server_config(Some(config));
    node.dial(&me, node.op.public(), Protocol::Client).await.expect("offered now");

    // Without an op key, no protocol that needs one is offered, even if the caller lists it.
    node.endpoint.set_server_config(Some(server_config(&node.boot, None, &Protocol::ALL)));
    let closed = node.dial(&me, node.op.public(), Protocol::Peer).await.expect_err("no op key");
    assert_eq!(closed, DialError::NotOffered);
    node.dial(&me, node.boot.public(), Protocol::Boot).await.expect("still offered");
}

#[tokio::test]
async fn a_handshake_without_the_post_quantum_exchange_or_with_a_choice_of_protocols_is_refused() {
    let node = Node::start(&Protocol::ALL);
    kit::dial_by_hand(&node, kit::provider(true), &[Protocol::Peer]).await.expect("the control: same code, both right");
    kit::dial_by_hand(&node, kit::provider(false), &[Protocol::Peer]).await.expect_err("X25519 alone");
    kit::dial_by_hand(&node, kit::provider(true), &[Protocol::Peer, Protocol::Boot]).await.expect_err("two protocols");
    kit::dial_by_hand(&node, kit::provider(true), &[]).await.expect_err("no protocol");
}

#[tokio::test]
async fn an_address_without_a_node_ends_with_the_deadline() {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let address = socket.local_addr().expect("bound");
    let endpoint = kit::endpoint();
    let begin = Instant::now();
    let error = dial(&endpoint, address, &Identity::random(), PublicKey([1; 32]), Protocol::Boot, SHORT).await;
    assert_eq!(error.expect_err("no server answers"), DialError::Deadline);
    assert!(begin.elapsed() < LONG);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_requests_share_a_connection_in_both_directions() {
    let (here, there) = kit::pair(Arc::new(Scripted::default()), Arc::new(Scripted::default())).await;
    let mut tasks = Vec::new();
    for task in 0u64..64 {
        for conn in [here.clone(), there.clone()] {
            tasks.push(tokio::spawn(async move {
                for number in 0u64..100 {
                    let lane = [Lane::Urgent, Lane::Ordinary, Lane::Heavy][(number % 3) as usize];
                    let kind = if number % 2 == 0 { "inline" } else { "later" };
                    let mut body = format!("{kind} {task} {number} ").into_bytes();
                    body.resize(body.len() + (number as usize * 37) % 3000, b'.');
                    let answer = conn.call(lane, &body, LONG).await.expect("answered");
                    assert_eq!(answer, body);
                }
            }));
        }
    }
    for task in tasks {
        task.await.expect("every answer is the one to its question");
    }
    assert_eq!(here.call(Lane::Ordinary, b"r", LONG).await.expect("answered"), &b"echo"[..]);
}

#[tokio::test]
async fn a_full_lane_does_not_hold_up_the_urgent_one() {
    let (here, _there) = kit::pair(Arc::new(Scripted::default()), Arc::new(Scripted::default())).await;
    let heavy: Vec<_> = (0..40)
        .map(|_| {
            let here = here.clone();
            tokio::spawn(async move { here.call(Lane::Heavy, &vec![1; 4 << 20], LONG).await })
        })
        .collect();
    tokio::task::yield_now().await;
    let begin = Instant::now();
    here.call(Lane::Urgent, b"heartbeat", LONG).await.expect("answered");
    let urgent = begin.elapsed();
    for call in heavy {
        call.await.expect("no panic").expect("answered");
    }
    assert!(urgent * 4 < begin.elapsed(), "{urgent:?} of {:?}", begin.elapsed());
}

#[tokio::test]
async fn the_request_beyond_the_limit_is_refused_and_room_returns() {
    let handler = Arc::new(Scripted::default());
    let (here, _there) = kit::pair(Arc::new(Scripted::default()), handler.clone()).await;
    let waiting: Vec<_> = (0..IN_FLIGHT_MAX)
        .map(|_| {
            let here = here.clone();
            tokio::spawn(async move { here.call(Lane::Ordinary, b"wait", LONG * 10).await })
        })
        .collect();
    wait_until("all of them run", || handler.running.load(Ordering::SeqCst) == IN_FLIGHT_MAX).await;
    assert_eq!(here.call(Lane::Ordinary, b"one more", LONG).await, Err(CallError::Busy));
    assert!(here.call(Lane::Urgent, b"other lane", LONG).await.is_ok());

    // When a caller no longer waits, the other side is told and stops the work for it.
    waiting.iter().for_each(|call| call.abort());
    wait_until("all are given up", || handler.running.load(Ordering::SeqCst) == 0).await;
    assert_eq!(handler.dropped.load(Ordering::SeqCst), IN_FLIGHT_MAX);
    here.call(Lane::Ordinary, b"one more", LONG).await.expect("there is room again");
}

#[tokio::test]
async fn an_answerer_counts_for_itself() {
    let handler = Arc::new(Scripted::default());
    let node = Node::serving(handler.clone());
    let connection = node.dial(&Identity::random(), node.op.public(), Protocol::Peer).await.expect("connected");
    let requests: Vec<_> = (0..=IN_FLIGHT_MAX as u64).map(|id| kit::request(id, b"wait")).collect();
    let (_send, mut frames) = kit::raw_lane(&connection, &requests.concat()).await;
    let refused = frames.next().await.expect("a frame").expect("not the end");
    assert_eq!((refused.kind, refused.id), (quorate_client::frame::FrameKind::Busy, IN_FLIGHT_MAX as u64));
    assert_eq!(handler.running.load(Ordering::SeqCst), IN_FLIGHT_MAX);
}

#[tokio::test]
async fn a_call_ends_with_its_deadline() {
    let handler = Arc::new(Scripted::default());
    let (here, _there) = kit::pair(Arc::new(Scripted::default()), handler.clone()).await;
    assert_eq!(here.call(Lane::Ordinary, b"wait", SHORT).await, Err(CallError::Deadline));
    wait_until("it is given up", || handler.running.load(Ordering::SeqCst) == 0).await;
    assert_eq!(here.call(Lane::Ordinary, &vec![0; 9 << 20], SHORT).await, Err(CallError::TooLarge));
    assert_eq!(here.call(Lane::Ordinary, b"panic", LONG).await, Err(CallError::Failed));
    assert_eq!(here.call(Lane::Ordinary, b"! panic at once", LONG).await, Err(CallError::Failed));
    here.call(Lane::Ordinary, b"next", LONG).await.expect("the connection is as good as before");
}

#[tokio::test]
async fn a_peer_that_never_reads_stops_being_written_to() {
    let node = Node::serving(Arc::new(Scripted::default()));
    let connection = node.dial(&Identity::random(), node.op.public(), Protocol::Peer).await.expect("connected");
    // The client does not read answers of a mebibyte each. The server stops handling requests instead of keeping all
    // answers.
    let requests: Vec<_> = (0..200).map(|id| kit::request(id, b"big answer")).collect();
    let (_send, _frames) = kit::raw_lane(&connection, &requests.concat()).await;
    let server = node.accepted().await;
    tokio::time::sleep(SHORT).await;
    let sent = server.quic().stats().udp_tx.bytes;
    assert!(sent < 40 << 20, "{sent}");
    assert!(server.is_open());

    // If a peer takes no requests, a call waits no longer than its deadline.
    let deaf = Conn::start(connection, None);
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let server = server.clone();
            tokio::spawn(async move { server.call(Lane::Heavy, &vec![1; 4 << 20], SHORT).await })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.expect("no panic"), Err(CallError::Deadline));
    }
    drop(deaf);
}

#[tokio::test]
async fn the_end_of_a_connection_reaches_every_caller() {
    for closer in 0..2 {
        let handler = Arc::new(Scripted::default());
        let (here, there) = kit::pair(Arc::new(Scripted::default()), handler.clone()).await;
        let calls: Vec<_> = (0..300)
            .map(|number| {
                let here = here.clone();
                let lane = if number % 2 == 0 { Lane::Ordinary } else { Lane::Heavy };
                tokio::spawn(async move { here.call(lane, b"wait", LONG * 10).await })
            })
            .collect();
        wait_until("all of them run", || handler.running.load(Ordering::SeqCst) == 300).await;
        if closer == 0 {
            here.close(0, "done")
        } else {
            there.close(3, "revoked\x1b[2J")
        }
        for call in calls {
            match call.await.expect("no panic") {
                Err(CallError::Closed(closed)) if closer == 1 => {
                    assert_eq!((closed.code, closed.reason.as_str()), (Some(3), "revoked[2J"));
                }
                Err(CallError::Closed(_)) => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(here.call(Lane::Ordinary, b"late", LONG).await, Err(CallError::Closed(_))));
        assert!(matches!(here.call(Lane::Urgent, b"late, new lane", LONG).await, Err(CallError::Closed(_))));
        wait_until("its work is given up", || handler.running.load(Ordering::SeqCst) == 0).await;
    }
}

#[tokio::test]
async fn bytes_that_break_the_protocol_end_the_connection() {
    let hostile: [(&str, Vec<u8>); 6] = [
        ("hostile length", vec![1, 1, 0xff, 0xff, 0xff, 0xff]),
        ("short length", vec![1, 1, 0, 0, 0, 1, 1]),
        ("unknown kind of frame", [&[1, 1][..], &[0, 0, 0, 9, 99, 0, 0, 0, 0, 0, 0, 0, 0]].concat()),
        ("an answer among requests", [&[1, 1][..], &[0, 0, 0, 9, 2, 0, 0, 0, 0, 0, 0, 0, 0]].concat()),
        ("unknown lane", vec![1, 9]),
        ("unknown stream", vec![7, 0]),
    ];
    for (name, bytes) in hostile {
        let node = Node::serving(Arc::new(Scripted::default()));
        let connection = node.dial(&Identity::random(), node.op.public(), Protocol::Peer).await.expect("connected");
        let (mut send, _receive) = connection.open_bi().await.expect("a stream");
        send.write_all(&bytes).await.expect("sent");
        let end = tokio::time::timeout(LONG, connection.closed()).await;
        assert!(matches!(end, Ok(quinn::ConnectionError::ApplicationClosed(_))), "{name}: {end:?}");
    }
    // A frame that breaks off, and two requests at a time with the same id.
    let node = Node::serving(Arc::new(Scripted::default()));
    let connection = node.dial(&Identity::random(), node.op.public(), Protocol::Peer).await.expect("connected");
    let (mut send, _frames) = kit::raw_lane(&connection, &kit::request(1, b"wait")[..10]).await;
    send.finish().expect("open");
    tokio::time::timeout(LONG, connection.closed()).await.expect("closed after a broken frame");

    let connection = node.dial(&Identity::random(), node.op.public(), Protocol::Peer).await.expect("connected");
    let twice = [kit::request(1, b"wait"), kit::request(1, b"wait")].concat();
    let (_send, _frames) = kit::raw_lane(&connection, &twice).await;
    tokio::time::timeout(LONG, connection.closed()).await.expect("closed after a repeated number");
}

#[tokio::test]
async fn bulk_transfers_arrive_whole_or_not_at_all() {
    let handler = Arc::new(Scripted::default());
    let (here, _there) = kit::pair(Arc::new(Scripted::default()), handler.clone()).await;
    let mut bulk = here.open_bulk(b"snapshot").await.expect("opened");
    for _ in 0..20 {
        bulk.send(&vec![3; 1 << 20]).await.expect("sent");
    }
    assert_eq!(bulk.send(&vec![3; (1 << 20) + 1]).await, Err(BulkError::TooLarge((1 << 20) + 1)));
    assert_eq!(bulk.finish(LONG).await.expect("answered"), (20 << 20).to_string().as_bytes());

    let refused = here.open_bulk(b"refuse me").await.expect("opened");
    assert_eq!(refused.finish(LONG).await, Err(BulkError::Refused));
    assert!(matches!(here.open_bulk(&vec![0; 70 << 10]).await, Err(BulkError::TooLarge(_))));

    // Dropped half-way: the receiver must not regard it as complete.
    let mut half = here.open_bulk(b"snapshot").await.expect("opened");
    half.send(&[1]).await.expect("sent");
    wait_until("the receiver has begun", || handler.begun.load(Ordering::SeqCst) == 3).await;
    drop(half);
    wait_until("the receiver sees the break", || handler.broken.load(Ordering::SeqCst) == 1).await;
    assert_eq!(handler.whole.load(Ordering::SeqCst), 1);
    here.call(Lane::Ordinary, b"still there", LONG).await.expect("answered");
}

#[tokio::test]
async fn both_ends_of_one_connection_export_the_same_key() {
    let (here, there) = kit::pair(Arc::new(Scripted::default()), Arc::new(Scripted::default())).await;
    assert!(here.export(b"label", b"context").same_as(&there.export(b"label", b"context")));
    assert!(!here.export(b"label", b"context").same_as(&here.export(b"label", b"other")));
    let (other, _) = kit::pair(Arc::new(Scripted::default()), Arc::new(Scripted::default())).await;
    assert!(!here.export(b"label", b"context").same_as(&other.export(b"label", b"context")));
}
