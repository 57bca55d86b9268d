//! The client against nodes that serve, fail, hang, lie, or do not exist.

mod kit;

use std::collections::BTreeMap;
use std::slice::from_ref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, join_all};
use kit::{LONG, Node};
use parking_lot::Mutex;
use quorate_client::cluster_file::ClusterNode;
use quorate_client::conn::{Conn, Handler, Reply};
use quorate_client::error::NodeFailure;
use quorate_client::identity::{Protocol, PublicKey};
use quorate_client::route::survey;
use quorate_client::wire::{
    self, Answer, Answered, Envelope, PUBLIC_STATUS, Phase, PublicStatus, Request, Response, WireError,
};
use quorate_client::{
    Client, ClusterFile, ClusterId, Code, Context, Credential, CredentialKind, Error, Options, Plaintext, Removal,
};

/// What a node of the test answers.
type Script = Box<dyn Fn(usize, Request) -> Option<Answer> + Send + Sync>;

/// A lease that ends: an answer is ready after `after`, and valid for `good_for_ms`.
#[derive(Clone, Copy)]
struct Lease {
    good_for_ms: u32,
    after: Duration,
}

const UNDER_NO_LEASE: Lease = Lease { good_for_ms: Answered::ALWAYS, after: Duration::ZERO };

/// Answers the n-th request by its script; `None` hangs.
struct Scripted {
    knows: PublicKey,
    asked: AtomicUsize,
    script: Script,
    lease: Lease,
}

impl Handler for Scripted {
    fn handle(&self, conn: &Conn, body: Bytes) -> Reply {
        if conn.peer().protocol == Protocol::Boot {
            assert_eq!(&body[..], PUBLIC_STATUS);
            let waiting_for = vec!["n3".parse().expect("a name")];
            return Reply::Inline(wire::encode(&PublicStatus { phase: Phase::Locked, have: 1, need: 2, waiting_for }));
        }
        let envelope: Envelope = wire::decode(&body).expect("the client sends whole messages");
        let number = self.asked.fetch_add(1, Ordering::SeqCst);
        if conn.peer().key != self.knows {
            let denied = Err(WireError::new(Code::Denied, "the key is not of this cluster"));
            return Reply::Inline(wire::encode(&Answered::always(denied)));
        }
        let Lease { good_for_ms, after } = self.lease;
        match (self.script)(number, envelope.request) {
            Some(answer) if after.is_zero() => Reply::Inline(wire::encode(&Answered { good_for_ms, answer })),
            Some(answer) => Reply::later(async move {
                tokio::time::sleep(after).await;
                wire::encode(&Answered { good_for_ms, answer })
            }),
            None => Reply::later(std::future::pending()),
        }
    }
}

struct Cluster {
    nodes: Vec<(Node, Arc<Scripted>)>,
    credential: Credential,
    file: ClusterFile,
}

impl Cluster {
    fn start(scripts: Vec<Script>) -> Self {
        Self::leased(scripts.into_iter().map(|script| (script, UNDER_NO_LEASE)).collect())
    }

    fn leased(scripts: Vec<(Script, Lease)>) -> Self {
        let credential = Credential::random(CredentialKind::Operator);
        let start = |(script, lease)| {
            let script = Scripted { knows: credential.public(), asked: AtomicUsize::new(0), script, lease };
            let script = Arc::new(script);
            (Node::serving(script.clone()), script)
        };
        let nodes: Vec<_> = scripts.into_iter().map(start).collect();
        let entry = |(number, (node, _)): (usize, &(Node, Arc<Scripted>))| ClusterNode {
            name: format!("n{}", number + 1).parse().expect("a name"),
            id: quorate_shares::ids::NodeId(number as u64 + 1),
            addresses: vec![node.address.to_string()],
            key: node.op.public(),
            boot_key: node.boot.public(),
        };
        let file = ClusterFile { cluster: ClusterId([1; 16]), nodes: nodes.iter().enumerate().map(entry).collect() };
        Self { nodes, credential, file }
    }

    async fn client(&self, options: Options) -> Client {
        Client::connect(self.file.clone(), &self.credential, options).await.expect("the file is right")
    }

    fn asked(&self, node: usize) -> usize {
        self.nodes[node].1.asked.load(Ordering::SeqCst)
    }
}

/// A replacement for encryption: the tests are about which node is asked.
fn serve(_: usize, request: Request) -> Option<Answer> {
    Some(Ok(match request {
        Request::Encrypt { plaintext, .. } => Response::Ciphertext(String::from_utf8_lossy(plaintext.expose()).into()),
        Request::Decrypt { ciphertext, .. } => Response::Plaintext(Plaintext::new(ciphertext).expect("short")),
        Request::Echo(bytes) => Response::Echo(bytes),
        other => panic!("{other:?}"),
    }))
}

fn refuse(code: Code) -> Script {
    Box::new(move |_, _| Some(Err(WireError::new(code, "as the test wants it"))))
}

fn impatient() -> Options {
    Options { patience: Duration::ZERO, deadline: LONG, ..Options::default() }
}

fn failed_nodes(error: &Error) -> Vec<&str> {
    let mut names: Vec<_> = error.failures.iter().map(|failure| failure.node.as_str()).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn any_node_that_serves_answers_and_is_kept() {
    let cluster = Cluster::start(vec![refuse(Code::NotServing), Box::new(serve), refuse(Code::NoQuorum)]);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = seen.clone();
    let options =
        Options { on_failure: Some(Arc::new(move |failure| note.lock().push(failure.node.clone()))), ..impatient() };
    let client = cluster.client(options).await;
    let key = "k".parse().expect("a name");
    for _ in 0..10 {
        let text = client.encrypt(&key, &Context::empty(), b"hello").await.expect("n2 serves");
        assert_eq!(client.decrypt(&text, &Context::empty()).await.expect("n2 serves").expose(), b"hello");
    }
    assert_eq!(cluster.asked(1), 20);
    assert!(cluster.asked(0) <= 1 && cluster.asked(2) <= 1, "the one that answered is asked again");
    assert!(seen.lock().iter().all(|name| name != "n2"));
}

#[tokio::test]
async fn a_node_that_is_gone_or_locked_is_passed_over_and_named() {
    let mut cluster = Cluster::start(vec![Box::new(serve), Box::new(serve), Box::new(serve)]);
    let locked = quorate_client::identity::server_config(&cluster.nodes[0].0.boot, None, &[Protocol::Boot]);
    cluster.nodes[0].0.endpoint.set_server_config(Some(locked));
    let gone = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
    cluster.file.nodes[1].addresses = vec![gone.local_addr().expect("bound").to_string()];
    let begin = Instant::now();
    let client = cluster.client(impatient()).await;
    assert_eq!(client.echo(b"x").await.expect("n3 serves"), b"x");
    assert!(begin.elapsed() < Duration::from_secs(3), "a silent node is not waited for: {:?}", begin.elapsed());

    let stranded = Options { node: Some("n1".to_owned()), ..impatient() };
    let error = cluster.client(stranded).await.echo(b"x").await.expect_err("n1 is locked");
    assert_eq!((error.code(), failed_nodes(&error)), (Code::Locked, vec!["n1"]));
    let error = cluster.client(Options { node: Some("n2".to_owned()), ..impatient() }).await.echo(b"x").await;
    assert_eq!(error.expect_err("n2 is gone").code(), Code::Unreachable);
}

#[tokio::test]
async fn another_identity_is_refused_and_said_whose_it_is() {
    let mut cluster = Cluster::start(vec![Box::new(serve), Box::new(serve)]);
    let swapped = cluster.file.nodes[1].addresses.clone();
    cluster.file.nodes[0].addresses = swapped;
    let only = |node: &str| Options { node: Some(node.to_owned()), ..impatient() };
    let error = cluster.client(only("n1")).await.echo(b"x").await.expect_err("n2 answers there");
    assert_eq!(error.code(), Code::Identity);
    assert!(error.to_string().contains("has the identity of n2, expected n1"), "{error}");

    cluster.file.nodes[0].addresses = vec![cluster.nodes[0].0.address.to_string()];
    cluster.file.nodes[0].key = PublicKey([9; 32]);
    let error = cluster.client(only("n1")).await.echo(b"x").await.expect_err("the file names another key");
    assert_eq!(error.code(), Code::Identity);
    let presented = cluster.nodes[0].0.op.public();
    assert!(error.to_string().contains(&format!("an unknown identity ({presented}), expected n1")), "{error}");
    assert_eq!(cluster.asked(0) + cluster.asked(1), 0, "nothing went to a node with another identity");
}

#[tokio::test]
async fn a_node_by_address_must_be_one_of_the_cluster() {
    let mut cluster = Cluster::start(vec![Box::new(serve), Box::new(serve)]);
    let second = cluster.nodes[1].0.address.to_string();
    let by_address = Options { node: Some(second.clone()), ..impatient() };
    assert_eq!(cluster.client(by_address.clone()).await.echo(b"x").await.expect("n2 in the file"), b"x");
    cluster.file.nodes[1].addresses = vec!["192.0.2.1:1".to_owned()];
    assert_eq!(cluster.client(by_address.clone()).await.echo(b"x").await.expect("its key is in the file"), b"x");
    assert_eq!((cluster.asked(0), cluster.asked(1)), (0, 2));
    cluster.file.nodes.pop();
    let error = cluster.client(by_address).await.echo(b"x").await.expect_err("no longer in the file");
    assert_eq!(error.code(), Code::Identity);
    let unknown = Options { node: Some("n7".to_owned()), ..impatient() };
    let error = Client::connect(cluster.file.clone(), &cluster.credential, unknown).await.expect_err("no such node");
    assert_eq!(error.code(), Code::NotFound);
}

#[tokio::test]
async fn what_every_node_would_refuse_is_refused_once() {
    for code in [Code::NotFound, Code::Conflict, Code::BadCiphertext, Code::BadRequest, Code::Denied] {
        let cluster = Cluster::start(vec![refuse(code), refuse(code), refuse(code)]);
        let error = cluster.client(Options::default()).await.echo(b"x").await.expect_err("refused");
        assert_eq!(error.code(), code);
        assert_eq!((0..3).map(|node| cluster.asked(node)).sum::<usize>(), 1);
    }
    let cluster = Cluster::start(vec![Box::new(serve)]);
    let other = Credential::random(CredentialKind::Operator);
    let stranger = Client::connect(cluster.file.clone(), &other, impatient()).await.expect("a right file");
    assert_eq!(stranger.echo(b"x").await.expect_err("another key").code(), Code::Denied);
    let key = "k".parse().expect("a name");
    let client = cluster.client(impatient()).await;
    let error = client.encrypt(&key, &Context::empty(), &[0; 70_000]).await.expect_err("too large");
    assert_eq!((error.code(), cluster.asked(0)), (Code::TooLarge, 1));
}

#[tokio::test]
async fn a_change_is_repeated_under_the_same_request_id_and_never_at_two_nodes_at_once() {
    let ids = Arc::new(Mutex::new(Vec::new()));
    let script = |ids: Arc<Mutex<Vec<[u8; 16]>>>| -> Script {
        Box::new(move |_, request| {
            let Request::CreateKey { request_id, name, tags } = request else { panic!("another request") };
            let mut ids = ids.lock();
            ids.push(request_id);
            if ids.len() < 3 {
                return Some(Err(WireError::new(Code::NoQuorum, "the leader changed")));
            }
            let uid = quorate_shares::ids::KeyUid([1; 16]);
            Some(Ok(Response::Key(wire::KeyInfo { name, uid, created_ms: 0, tags, versions: Vec::new() })))
        })
    };
    let cluster = Cluster::start(vec![script(ids.clone()), script(ids.clone())]);
    let key = "k".parse().expect("a name");
    let options = Options { deadline: LONG, ..Options::default() };
    let made = cluster.client(options).await.create_key(&key, BTreeMap::new()).await.expect("the third time");
    assert_eq!(made.name, key);
    let ids = ids.lock().clone();
    assert_eq!(ids.len(), 3);
    assert!(ids.iter().all(|id| *id == ids[0]));

    let cluster = Cluster::start(vec![Box::new(|_, _| None), Box::new(|_, _| None)]);
    let options = Options { deadline: Duration::from_millis(900), ..Options::default() };
    let error = cluster.client(options).await.create_key(&key, BTreeMap::new()).await.expect_err("no node answers");
    assert_eq!(error.code(), Code::Deadline);
    assert_eq!(cluster.asked(0) + cluster.asked(1), 1);
}

/// No node answers. Each request that changes something stays at one node until its deadline. The control is an echo:
/// it goes to a second node soon.
#[tokio::test]
async fn no_change_is_sent_to_a_second_node_while_the_first_may_answer() {
    let asked = Arc::new(Mutex::new(BTreeMap::<String, usize>::new()));
    let silent = || -> Script {
        let asked = asked.clone();
        Box::new(move |_, request| {
            let shown = format!("{request:?}");
            let name = shown.split(|letter: char| !letter.is_alphanumeric()).next().unwrap_or_default();
            *asked.lock().entry(name.to_owned()).or_default() += 1;
            None
        })
    };
    let cluster = Cluster::start(vec![silent(), silent()]);
    let (hedge, deadline) = (Duration::from_millis(50), Duration::from_secs(2));
    let client = cluster.client(Options { hedge, deadline, ..impatient() }).await;
    let (key, node) = ("k".parse().expect("a name"), "n1".parse().expect("a name"));
    let removal = Removal::default();
    let requests: Vec<BoxFuture<'_, Option<Error>>> = vec![
        async { client.create_key(&key, BTreeMap::new()).await.err() }.boxed(),
        async { client.rotate_key(&key, None).await.err() }.boxed(),
        async { client.remove_node(&node, &removal).await.err() }.boxed(),
        async { client.revoke_nodes(from_ref(&node), &[]).await.err() }.boxed(),
        async { client.seal_node(&node).await.err() }.boxed(),
        async { client.unseal_node(&node).await.err() }.boxed(),
        async { client.admit_node(&node).await.err() }.boxed(),
        async { client.disarm_alarms(None).await.err() }.boxed(),
        async { client.invite_node(None, LONG).await.err() }.boxed(),
        async { client.replace_node(&node, b"an invitation").await.err() }.boxed(),
        async { client.set_addresses(&node, &["n1:7250".to_owned()]).await.err() }.boxed(),
        async { client.echo(b"x").await.err() }.boxed(),
    ];
    for ended in join_all(requests).await {
        assert_eq!(ended.expect("no node answers").code(), Code::Deadline);
    }
    let asked = asked.lock();
    let (once, twice): (Vec<_>, Vec<_>) = asked.iter().partition(|(_, times)| **times == 1);
    assert_eq!(twice, [(&"Echo".to_owned(), &2)], "only the echo is asked for at two nodes");
    assert_eq!(once.len(), 11, "each change was sent: {once:?}");
}

/// T79: eight of nine nodes are dead; each would cost three seconds if it were dialled alone. The change is answered before any
/// dialling was given up, so nothing waited for one. Mutated: with one node dialled at a time, failures are reported first.
#[tokio::test]
async fn dead_nodes_do_not_hold_up_a_change() {
    let scripts = (0..9).map(|_| Box::new(|_: usize, _: Request| Some(Ok(Response::Done))) as Script);
    let mut cluster = Cluster::start(scripts.collect());
    let silent: Vec<_> = (0..8).map(|_| std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port")).collect();
    for (node, socket) in cluster.file.nodes.iter_mut().zip(&silent) {
        node.addresses = vec![socket.local_addr().expect("bound").to_string()];
    }
    for change in 1..=4 {
        let failed = Arc::new(AtomicUsize::new(0));
        let count = failed.clone();
        let on_failure = Arc::new(move |_: &NodeFailure| {
            count.fetch_add(1, Ordering::SeqCst);
        });
        let (hedge, deadline) = (Duration::from_millis(20), LONG);
        let client = cluster.client(Options { hedge, deadline, on_failure: Some(on_failure), ..impatient() }).await;
        client.seal_node(&"n1".parse().expect("a name")).await.expect("n9 answers");
        assert_eq!((failed.load(Ordering::SeqCst), cluster.asked(8)), (0, change));
        client.close().await;
    }
}

/// T79: the node that the client is connected to hangs. It is asked for an echo and never for the change. Mutated: without the
/// echo the change waits there until its deadline.
#[tokio::test]
async fn a_node_that_hangs_gets_no_change() {
    let hangs = Arc::new(Mutex::new(None::<usize>));
    let asked = Arc::new(Mutex::new(Vec::<(usize, bool)>::new()));
    let node = |number: usize| -> Script {
        let (hangs, asked) = (hangs.clone(), asked.clone());
        Box::new(move |_, request| {
            let change = matches!(request, Request::SealNode { .. });
            asked.lock().push((number, change));
            match request {
                _ if *hangs.lock() == Some(number) => None,
                Request::Echo(bytes) => Some(Ok(Response::Echo(bytes))),
                _ => Some(Ok(Response::Done)),
            }
        })
    };
    let cluster = Cluster::start((0..3).map(node).collect());
    let hedge = Duration::from_millis(1);
    let client = cluster.client(Options { hedge, deadline: LONG, ..impatient() }).await;
    let name = "n1".parse().expect("a name");
    client.seal_node(&name).await.expect("answered");
    let (first, _) = asked.lock().pop().expect("one was asked");
    *hangs.lock() = Some(first);
    // The last answer says nothing about now once it is older than this.
    tokio::time::sleep(hedge * 2).await;
    client.seal_node(&name).await.expect("another node answers");
    let asked = asked.lock().clone();
    assert_eq!(asked.iter().filter(|(_, change)| *change).count(), 1, "{asked:?}");
    assert!(asked.contains(&(first, false)) && !asked.contains(&(first, true)), "{asked:?}");
}

#[tokio::test]
async fn a_slow_node_does_not_make_a_slow_client() {
    let cluster = Cluster::start(vec![Box::new(|_, _| None), Box::new(serve), Box::new(|_, _| None)]);
    let begin = Instant::now();
    let client = cluster.client(impatient()).await;
    for _ in 0..5 {
        client.echo(b"x").await.expect("n2 answers");
    }
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert!(cluster.asked(0) <= 1 && cluster.asked(2) <= 1);
}

/// All nodes are slow, as if they had too much to do. Fifty clients make one request each, like fifty commands: they know nothing
/// of each other, and still a tenth of them asks a second node. Mutated: a client that begins with a whole hedge doubles the load,
/// one without a budget triples it.
#[tokio::test]
async fn clients_with_one_request_each_do_not_multiply_the_load_of_slow_nodes() {
    const CLIENTS: usize = 50;
    let slow =
        || (Box::new(serve) as Script, Lease { good_for_ms: Answered::ALWAYS, after: Duration::from_millis(700) });
    let cluster = Cluster::leased(vec![slow(), slow(), slow()]);
    let asks = (0..CLIENTS).map(|_| async { cluster.client(impatient()).await.echo(b"x").await });
    for answer in join_all(asks).await {
        answer.expect("slow, but answered");
    }
    let asked: usize = (0..3).map(|node| cluster.asked(node)).sum();
    assert!((CLIENTS..CLIENTS * 3 / 2).contains(&asked), "{asked} requests for {CLIENTS}");
}

/// While nodes say that they are busy, a client waits longer than for an election, and is answered once one has time. Mutated:
/// with the patience for an election it gives up after three seconds.
#[tokio::test]
async fn a_client_waits_for_busy_nodes_until_its_deadline() {
    let busy_for = |time: Duration| -> Script {
        let begin = Instant::now();
        Box::new(move |number, request| match begin.elapsed() < time {
            true => Some(Err(WireError::new(Code::Busy, "too many requests"))),
            false => serve(number, request),
        })
    };
    let long = Options::default().patience + Duration::from_secs(1);
    let cluster = Cluster::start(vec![busy_for(long), busy_for(long)]);
    let begin = Instant::now();
    cluster
        .client(Options { deadline: LONG, ..Options::default() })
        .await
        .echo(b"x")
        .await
        .expect("answered in the end");
    assert!(begin.elapsed() >= long, "the control: they were busy");
    let asked = cluster.asked(0) + cluster.asked(1);
    assert!(asked < 40, "it does not make them busier: {asked}");
    let cluster = Cluster::start(vec![busy_for(LONG)]);
    let brief = Options { deadline: Duration::from_secs(1), ..Options::default() };
    assert_eq!(cluster.client(brief).await.echo(b"x").await.expect_err("busy until then").code(), Code::Busy);
}

/// A node that begins no handshake says so at once, and another one is asked.
#[tokio::test]
async fn a_node_that_lets_no_client_in_is_busy() {
    let mut cluster = Cluster::start(vec![Box::new(serve), Box::new(serve)]);
    let (boot, op) = (&cluster.nodes[0].0.boot, &cluster.nodes[0].0.op);
    let config = quorate_client::identity::server_config(boot, Some(op), &Protocol::ALL);
    let full = quinn::Endpoint::server(config, kit::any_port()).expect("a free port");
    cluster.file.nodes[0].addresses = vec![full.local_addr().expect("bound").to_string()];
    tokio::spawn(async move {
        while let Some(incoming) = full.accept().await {
            incoming.refuse();
        }
    });
    let only = Options { node: Some("n1".to_owned()), ..impatient() };
    let error = cluster.client(only).await.echo(b"x").await.expect_err("refused");
    assert_eq!(error.code(), Code::Busy, "{error}");
    assert!(error.to_string().contains("busy"), "{error}");
    for _ in 0..5 {
        assert_eq!(cluster.client(impatient()).await.echo(b"x").await.expect("n2 serves"), b"x");
    }
}

/// T58, the client's half: if an answer comes after the end of its lease, the client ignores it and asks another node.
/// The control is the same answer in time.
#[tokio::test]
async fn an_answer_that_comes_after_its_lease_is_not_believed() {
    let lease = |good_for_ms, after| Lease { good_for_ms, after: Duration::from_millis(after) };
    for late in [Box::new(serve) as Script, refuse(Code::NotFound)] {
        let cluster = Cluster::leased(vec![(late, lease(100, 200))]);
        let error = cluster.client(impatient()).await.echo(b"x").await.expect_err("its lease was over");
        assert_eq!((error.code(), cluster.asked(0)), (Code::NoQuorum, 1), "{error}");
        assert!(error.to_string().contains("after its lease had ended"), "{error}");
    }
    let cluster = Cluster::leased(vec![(Box::new(serve), lease(60_000, 200))]);
    assert_eq!(cluster.client(impatient()).await.echo(b"x").await.expect("in time"), b"x");
    let cluster = Cluster::leased(vec![(Box::new(serve), lease(0, 0)), (Box::new(serve), lease(60_000, 0))]);
    let client = cluster.client(impatient()).await;
    for _ in 0..5 {
        client.echo(b"x").await.expect("n2 has a lease");
    }
    assert!(cluster.asked(0) <= 1 && cluster.asked(1) == 5);
}

#[tokio::test]
async fn while_no_node_serves_the_client_goes_on_for_its_patience() {
    let recovering = || -> Script {
        let begin = Instant::now();
        Box::new(move |number, request| match begin.elapsed() < Duration::from_secs(1) {
            true => Some(Err(WireError::new(Code::NotServing, "no lease"))),
            false => serve(number, request),
        })
    };
    let cluster = Cluster::start(vec![recovering(), recovering()]);
    let error = cluster.client(impatient()).await.echo(b"x").await.expect_err("no patience");
    assert_eq!((error.code(), failed_nodes(&error)), (Code::NotServing, vec!["n1", "n2"]));
    assert!(error.to_string().starts_with("no node answers: n"), "{error}");
    cluster.client(Options::default()).await.echo(b"x").await.expect("an election is sat out");
}

#[tokio::test]
async fn a_connection_that_died_unnoticed_is_made_again() {
    let cluster = Cluster::start(vec![Box::new(serve)]);
    let client = cluster.client(impatient()).await;
    client.echo(b"x").await.expect("answered");
    cluster.nodes[0].0.accepted().await.close(quorate_client::conn::close::SHUTDOWN, "restart");
    client.echo(b"x").await.expect("answered over a new connection");
}

#[tokio::test]
async fn lists_are_read_page_by_page() {
    let page = |_: usize, request: Request| -> Option<Answer> {
        let Request::ListKeys { after, .. } = request else { panic!("another request") };
        let first = after.map_or(0, |name| name.as_str()[1..].parse::<u32>().expect("our own name") + 1);
        let key = |number| wire::KeySummary {
            name: format!("k{number:04}").parse().expect("a name"),
            uid: quorate_shares::ids::KeyUid([0; 16]),
            created_ms: 0,
            newest: quorate_client::KeyVersion(1),
            one_disk: false,
            tags: BTreeMap::new(),
        };
        let keys: Vec<_> = (first..2500).take(1000).map(key).collect();
        Some(Ok(Response::Keys { more: keys.len() == 1000, keys }))
    };
    let cluster = Cluster::start(vec![Box::new(page)]);
    let keys = cluster.client(impatient()).await.list_keys().await.expect("three pages");
    assert_eq!((keys.len(), cluster.asked(0)), (2500, 3));
    let cluster = Cluster::start(vec![Box::new(|_, _| Some(Ok(Response::Keys { keys: Vec::new(), more: true })))]);
    let keys = cluster.client(impatient()).await.list_keys().await.expect("a page that does not advance is the last");
    assert!(keys.is_empty());
}

#[tokio::test]
async fn a_survey_needs_no_credential() {
    let mut cluster = Cluster::start(vec![Box::new(serve), Box::new(serve)]);
    cluster.file.nodes[1].boot_key = PublicKey([3; 32]);
    let answers = survey(&cluster.file, LONG).await;
    let first = answers[0].1.as_ref().expect("n1 answers");
    assert_eq!(first.to_string(), "locked: have 1 of 2, waiting for n3");
    assert_eq!(answers[1].1.as_ref().expect_err("another key").code, Code::Identity);
    assert_eq!(cluster.asked(0), 0);
}
