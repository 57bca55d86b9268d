//! What clients may ask, one function per request: check first, then act.
//!
//! Encrypt, decrypt and data keys of a warm key touch memory only: no Raft, no disk, no lock held across an await. They are
//! polled once where the frame is read, and answered there if nothing had to be waited for. The lease is checked before the
//! work and again when the answer is ready; the answer carries how long it holds from there ([`Answered`]).
//!
//! What has to wait is boxed where it begins to wait. Otherwise the room for every wait there is would be part of each
//! request's future, and moving that about was a fifth of what a node did for a warm key.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use quorate_client::conn::{Lane, Reply};
use quorate_client::error::Code;
use quorate_client::wire::{
    self, Answer, Answered, DATA_KEY_BYTES_MAX, Envelope, KEYS_PAGE_MAX, KeyInfo, KeySummary, Plaintext, Request,
    Response, TAG_BYTES_MAX, TAGS_MAX, Token, VersionInfo, WireError,
};
use quorate_raft::Replica;
use quorate_raft::state::{Key, MEMBERS_MAX as NODES_MAX, State};
use quorate_shares::context::Context;
use quorate_shares::envelope::{self, Ciphertext, CiphertextHeader, CiphertextKind, Suite};
use quorate_shares::ids::{Epoch, KeyName, KeyVersion, NodeId, NodeName};
use quorate_shares::master::EncryptionRoot;
use rand_core::Rng;
use subtle::ConstantTimeEq;
use tokio::time::{Instant, timeout, timeout_at};
use zeroize::Zeroizing;

use crate::base::clock::boot_ms;
use crate::base::phase::{Door, Phase, admits};
use crate::base::random;
use crate::cluster::{alarms, operate, status};
use crate::keys::deal;
use crate::keys::gather::{self, LoadError};
use crate::lease::{confirm, sealing};
use crate::lock::absence;
use crate::memory::keyring::Slot;
use crate::memory::lease;
use crate::node::Node;
use crate::peers::peer::{KeyChange, Operate, PeerReply, PeerRequest};

/// A request without a deadline of its own gets this one, and none gets more.
const DEADLINE_MAX: Duration = Duration::from_secs(60);
/// How long a forwarded change may take at the leader.
const FORWARD: Duration = Duration::from_secs(30);
/// How long a change may take until its version is checked by t holders.
const READY: Duration = Duration::from_secs(20);

/// Takes one request off a client connection.
pub fn handle(node: &Arc<Node>, body: &[u8]) -> Reply {
    let received_ms = boot_ms();
    let envelope: Envelope = match wire::decode(body) {
        Ok(envelope) => envelope,
        Err(error) => return Reply::Inline(wire::encode(&Answered::always(Err(error)))),
    };
    let node = Arc::clone(node);
    let mut work = Box::pin(async move { wire::encode(&answer(&node, envelope, received_ms).await) });
    // Whatever needs no waiting is answered by the task that read the frame. A later poll brings the real waker.
    match work.as_mut().poll(&mut TaskContext::from_waker(Waker::noop())) {
        Poll::Ready(bytes) => Reply::Inline(bytes),
        Poll::Pending => Reply::Later(work),
    }
}

async fn answer(node: &Arc<Node>, envelope: Envelope, received_ms: u64) -> Answered {
    let Envelope { token, deadline_ms, request } = envelope;
    let Some(replica) = node.replica() else { return Answered::always(Err(not_serving(node))) };
    if let Err(error) = authorize(&replica, &token) {
        return Answered::always(Err(error));
    }
    let deadline = Duration::from_millis(deadline_ms.into()).min(DEADLINE_MAX);
    match timeout(deadline, dispatch(node, &replica, request, received_ms)).await {
        Ok(answered) => answered,
        Err(_) => Answered::always(Err(WireError::new(Code::Deadline, "the deadline passed before the work was done"))),
    }
}

/// The root token may do everything; nothing else may do anything yet. Only its hash is in the state.
fn authorize(replica: &Replica, token: &Token) -> Result<(), WireError> {
    let hash = replica.read(|state| state.cluster.as_ref().map(|cluster| cluster.token_hash));
    let known = hash.is_some_and(|hash| hash.ct_eq(&token.hash()).into());
    if known {
        return Ok(());
    }
    Err(WireError::new(Code::Denied, "the token is not valid for this cluster")
        .hint("check QUORATE_TOKEN_FILE, and that the client file and the token belong to the same cluster"))
}

async fn dispatch(node: &Arc<Node>, replica: &Replica, request: Request, received_ms: u64) -> Answered {
    let answer = match request {
        Request::Status => Ok(Response::Status(Box::new(Box::pin(status::full(node, replica)).await))),
        Request::ListNodes => Ok(Response::Nodes(Box::pin(status::nodes(node, replica)).await)),
        Request::NodeStatus { name } => Box::pin(show_node(node, replica, &name)).await,
        Request::Export => Ok(Response::Export(status::cluster_file(node))),
        Request::SealNode { name } => Box::pin(sealing::at(node, &name, true)).await,
        Request::ListAlarms => Ok(Response::Alarms(Box::pin(alarms::everywhere(node, replica)).await)),
        Request::DisarmAlarms { codes } => Box::pin(alarms::disarm_everywhere(node, replica, codes)).await,
        Request::AdmitNode { name } => Box::pin(absence::admit_everywhere(node, &name)).await,
        Request::UnsealNode { name } => Box::pin(sealing::at(node, &name, false)).await,
        request => match guard(node) {
            Ok(_) => tokio::select! {
                biased;
                answer = work(node, replica, request) => return leased(node, answer, received_ms),
                () = stops_serving(node) => Err(not_serving(node)),
            },
            Err(refusal) => Err(refusal),
        },
    };
    Answered::always(answer)
}

/// Returns when this node does not serve any more. Whatever is done by then could not be answered, and another node can: whoever
/// asks should go there in time, and not wait for a leader that is cut off.
async fn stops_serving(node: &Node) {
    // The sender lives as long as the node.
    let _ = node.phases().wait_for(|phase| !admits(*phase, Door::Work)).await;
}

/// What was done under the lease, good until it ends. Not even a refusal may come from a state that is older.
fn leased(node: &Node, answer: Answer, received_ms: u64) -> Answered {
    match guard(node) {
        Ok(until_ms) => Answered { good_for_ms: lease::good_for_ms(until_ms, received_ms), answer },
        Err(refusal) => Answered::always(Err(refusal)),
    }
}

/// Until when this node may serve ([`boot_ms`]), or the reason why it may not.
fn guard(node: &Node) -> Result<u64, WireError> {
    let until_ms = node.lease.until_ms().filter(|_| admits(node.phase(), Door::Work));
    until_ms.ok_or_else(|| not_serving(node))
}

fn not_serving(node: &Node) -> WireError {
    match node.phase() {
        Phase::Open | Phase::Serving => {
            let reason = node.lease_trouble.lock().as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
            WireError::new(Code::NoQuorum, format!("{} has no lease from a quorum{reason}", node.name()))
                .hint("it serves again as soon as a quorum is up; `quorate status` shows who is missing")
        }
        phase => WireError::new(Code::NotServing, format!("{} is {phase}", node.name())).hint("ask another node"),
    }
}

async fn work(node: &Arc<Node>, replica: &Replica, request: Request) -> Answer {
    match request {
        Request::Echo(bytes) => Ok(Response::Echo(bytes)),
        Request::Encrypt { key, context, plaintext } => encrypt(node, replica, key, &context, &plaintext).await,
        Request::Decrypt { ciphertext, context } => decrypt(node, replica, &ciphertext, &context).await,
        Request::DataKey { key, context, bytes } => data_key(node, replica, key, &context, bytes).await,
        Request::CreateKey { request_id, name, tags } => {
            check_tags(&tags)?;
            Box::pin(change(node, replica, KeyChange::Create { request: request_id, name, tags })).await
        }
        Request::RotateKey { request_id, name, expect } => {
            Box::pin(change(node, replica, KeyChange::Rotate { request: request_id, name, expect })).await
        }
        Request::RemoveNode { request_id: request, name, accept_no_redundancy, abandon } => {
            check_nodes(&abandon)?;
            Box::pin(operate(node, replica, Operate::Remove { request, name, accept_no_redundancy, abandon })).await
        }
        Request::RevokeNodes { request_id: request, names } => {
            if names.is_empty() {
                return Err(WireError::new(Code::BadRequest, "no node is named"));
            }
            check_nodes(&names)?;
            Box::pin(operate(node, replica, Operate::Revoke { request, names })).await
        }
        Request::Progress { operation } => Box::pin(progress(node, replica, operation)).await,
        Request::InviteNode { name, ttl_ms } => {
            Box::pin(operate::invite(node, replica, name, ttl_ms)).await.map(Response::Invitation)
        }
        Request::ReplaceNode { name, invitation } => {
            Box::pin(operate::designate(node, replica, &name, &invitation)).await.map(|()| Response::Designated)
        }
        Request::ListKeys { after, limit } => Ok(replica.read(|state| list_keys(state, after.as_ref(), limit))),
        Request::ShowKey { name } => {
            let key = find(
                node,
                replica,
                |state| state.key_by_name(&name).map(|key| key_info(state, key)),
                || deal::unknown_key(&name),
            );
            key.await.map(Response::Key)
        }
        Request::Status
        | Request::ListNodes
        | Request::NodeStatus { .. }
        | Request::Export
        | Request::SealNode { .. }
        | Request::UnsealNode { .. }
        | Request::AdmitNode { .. }
        | Request::ListAlarms
        | Request::DisarmAlarms { .. } => Err(WireError::new(Code::Internal, "a request about nodes reached the keys")),
    }
}

// -- encryption

async fn encrypt(
    node: &Arc<Node>,
    replica: &Replica,
    name: KeyName,
    context: &Context,
    plaintext: &Plaintext,
) -> Answer {
    let (slot, version) = newest(node, replica, &name).await?;
    let root = root(node, replica, slot).await?;
    let header = CiphertextHeader { kind: CiphertextKind::Message, suite: Suite::ChaCha20Poly1305, name, version };
    let sealed = envelope::seal(&root, header, context, plaintext.expose(), &mut random::system());
    let ciphertext = sealed.map_err(|error| {
        WireError::new(Code::TooLarge, error.to_string())
            .hint("encrypt larger data under a data key (`quorate datakey`)")
    })?;
    Ok(Response::Ciphertext(ciphertext.to_text()))
}

async fn data_key(node: &Arc<Node>, replica: &Replica, name: KeyName, context: &Context, bytes: u16) -> Answer {
    if !(1..=DATA_KEY_BYTES_MAX).contains(&bytes) {
        return Err(WireError::new(Code::BadRequest, format!("a data key has 1 to {DATA_KEY_BYTES_MAX} bytes")));
    }
    let (slot, version) = newest(node, replica, &name).await?;
    let root = root(node, replica, slot).await?;
    let header = CiphertextHeader { kind: CiphertextKind::DataKey, suite: Suite::ChaCha20Poly1305, name, version };
    let mut key = Zeroizing::new(vec![0; bytes.into()]);
    random::system().fill_bytes(&mut key);
    let wrapped = envelope::seal(&root, header, context, &key, &mut random::system())
        .map_err(|error| WireError::new(Code::Internal, error.to_string()))?;
    Ok(Response::DataKey { plaintext: Plaintext::new(key)?, wrapped: wrapped.to_text() })
}

async fn decrypt(node: &Arc<Node>, replica: &Replica, ciphertext: &[u8], context: &Context) -> Answer {
    let ciphertext = parse(ciphertext)?;
    let CiphertextHeader { name, version, .. } = ciphertext.header();
    let (name, version) = (name.clone(), *version);
    let known = |state: &State| {
        let key = state.key_by_name(&name)?;
        key.versions.contains_key(&version).then_some((key.uid, version))
    };
    let slot = find(node, replica, known, || foreign(&name, version)).await?;
    let root = root(node, replica, slot).await?;
    let plaintext = envelope::open(&root, &ciphertext, context).map_err(|refused| {
        WireError::new(Code::BadCiphertext, refused.to_string())
            .hint("wrong context, damaged, or made by another cluster: these cannot be told apart")
    })?;
    Ok(Response::Plaintext(Plaintext::new(plaintext)?))
}

fn parse(bytes: &[u8]) -> Result<Ciphertext, WireError> {
    let parsed = match std::str::from_utf8(bytes) {
        Ok(text) if text.starts_with("qrt1:") => Ciphertext::parse_text(text),
        _ => Ciphertext::parse_binary(bytes),
    };
    parsed.map_err(|error| {
        WireError::new(Code::BadCiphertext, error.to_string())
            .hint("a ciphertext is one line that begins with qrt1: or the bytes that begin with QRT1")
    })
}

fn foreign(name: &KeyName, version: KeyVersion) -> WireError {
    WireError::new(Code::NotFound, format!("this cluster has no version {version} of a key named {name}"))
        .hint("the ciphertext may belong to another cluster; `quorate key list` shows the keys")
}

/// The newest version that t holders have checked.
async fn newest(node: &Node, replica: &Replica, name: &KeyName) -> Result<(Slot, KeyVersion), WireError> {
    // A key that is known, and not ready here, may be ready by now: the leader has answered its creator.
    let ready = |state: &State| {
        let key = state.key_by_name(name)?;
        Some((key.uid, key.newest_ready()?.version))
    };
    let missing = || match replica.read(|state| state.key_by_name(name).is_some()) {
        false => deal::unknown_key(name),
        true => WireError::new(Code::KeyUnavailable, format!("the key {name} is still being checked by its holders"))
            .hint("try again in a moment"),
    };
    let (uid, version) = find(node, replica, ready, missing).await?;
    Ok(((uid, version), version))
}

/// Looks something up, and once more after catching up with the leader before it counts as `missing`.
async fn find<T>(
    node: &Node,
    replica: &Replica,
    look: impl Fn(&State) -> Option<T>,
    missing: impl FnOnce() -> WireError,
) -> Result<T, WireError> {
    if let Some(found) = replica.read(&look) {
        return Ok(found);
    }
    if let Err(reason) = Box::pin(confirm::catch_up(node, replica)).await {
        let message = format!("not found at {}, which cannot catch up: {reason}", node.name());
        return Err(WireError::new(Code::NoQuorum, message).hint("try again in a moment"));
    }
    replica.read(&look).ok_or_else(missing)
}

/// The root of a key version, from memory or from a quorum.
async fn root(node: &Arc<Node>, replica: &Replica, slot: Slot) -> Result<Arc<EncryptionRoot>, WireError> {
    if let Some(root) = node.keyring.warm(slot) {
        return Ok(root);
    }
    // A request that waited for something else may have outlived the lease; nobody puts a key together for it.
    guard(node)?;
    let load = || -> futures::future::BoxFuture<'static, _> {
        Box::pin(gather::load(Arc::clone(node), replica.clone(), slot))
    };
    Box::pin(node.keyring.root(slot, load)).await.map_err(|error| unavailable(node, &error))
}

fn unavailable(node: &Node, error: &LoadError) -> WireError {
    match error {
        LoadError::TooFew { have, need, missing } => {
            let names: Vec<_> = missing.iter().map(|&id| node.name_of(id)).collect();
            let message = format!("the key needs {need} shares and {have} came: waiting for {}", names.join(", "));
            WireError::new(Code::KeyUnavailable, message).hint("it can be used again when enough nodes are up")
        }
        error => WireError::new(Code::KeyUnavailable, error.to_string()),
    }
}

// -- keys

/// Carries a change to the leader, wherever that is, and answers when this node's own state holds the very version that
/// was made, ready for use. This is the one place where a creator is kept waiting for the holders.
async fn change(node: &Arc<Node>, replica: &Replica, change: KeyChange) -> Answer {
    let deadline = Instant::now() + READY;
    let leadership = *replica.leadership().borrow();
    let made = if leadership.am_leader {
        let (node, replica) = (Arc::clone(node), replica.clone());
        // On a task of its own: a key that is half made must be finished even when the client goes away.
        let task = tokio::spawn(async move { deal::change(&node, &replica, change).await });
        task.await.map_err(|_| WireError::new(Code::Internal, "the change was interrupted"))??
    } else {
        forward(node, leadership.leader, change).await?
    };
    ready(replica, made, deadline).await.map(Response::Key)
}

/// The key, once t holders have opened and checked their shares of the version.
async fn ready(replica: &Replica, (uid, version): Slot, deadline: Instant) -> Result<KeyInfo, WireError> {
    let mut readied = replica.readied();
    let usable = |state: &State| {
        let key = state.keys.get(&uid)?;
        key.versions.get(&version).is_some_and(|made| made.ready).then(|| key_info(state, key))
    };
    loop {
        readied.borrow_and_update();
        if let Some(key) = replica.read(usable) {
            return Ok(key);
        }
        if timeout_at(deadline, readied.changed()).await.is_err() {
            let (message, hint) = match replica.read(|state| state.version(uid, version).is_some()) {
                true => (
                    "the key is made, but too few holders have checked their shares",
                    "it becomes usable as soon as they have; `quorate status` shows who is missing",
                ),
                false => ("the change is made, and this node has not caught up with it", "try again in a moment"),
            };
            return Err(WireError::new(Code::NoQuorum, message).hint(hint));
        }
    }
}

/// Begins an operation at the leader, wherever that is.
async fn operate(node: &Arc<Node>, replica: &Replica, operate: Operate) -> Answer {
    let leadership = *replica.leadership().borrow();
    let begun = if leadership.am_leader {
        operate::begin(node, replica, operate).await
    } else {
        match forward_to(node, leadership.leader, PeerRequest::Operate(operate)).await? {
            PeerReply::Operated(begun) => begun,
            _ => Err(no_leader()),
        }
    };
    begun.map(|operation| Response::Begun { operation })
}

/// How far an operation is, as the leader sees it.
async fn progress(node: &Arc<Node>, replica: &Replica, operation: Epoch) -> Answer {
    let leadership = *replica.leadership().borrow();
    let progress = if leadership.am_leader {
        operate::progress(node, replica, operation).await
    } else {
        match forward_to(node, leadership.leader, PeerRequest::Progress { operation }).await? {
            PeerReply::Progress(progress) => progress,
            _ => Err(no_leader()),
        }
    };
    progress.map(|progress| Response::Progress(Box::new(progress)))
}

async fn forward(node: &Arc<Node>, leader: Option<NodeId>, change: KeyChange) -> Result<Slot, WireError> {
    match forward_to(node, leader, PeerRequest::Change(change)).await? {
        PeerReply::Changed(result) => result,
        _ => Err(no_leader()),
    }
}

async fn forward_to(node: &Node, leader: Option<NodeId>, request: PeerRequest) -> Result<PeerReply, WireError> {
    let leader = leader.ok_or_else(no_leader)?;
    node.sessions.ask(leader, Lane::Ordinary, &request, FORWARD).await.map_err(|error| {
        let message = format!("the leader, {}, did not answer: {error}", node.name_of(leader));
        WireError::new(Code::NoQuorum, message).hint("try again with the same request id")
    })
}

fn no_leader() -> WireError {
    WireError::new(Code::NoQuorum, "no leader is known").hint("try again in a moment")
}

fn check_nodes(names: &[NodeName]) -> Result<(), WireError> {
    if names.len() > NODES_MAX {
        return Err(WireError::new(Code::BadRequest, "more nodes are named than a cluster has"));
    }
    Ok(())
}

fn check_tags(tags: &BTreeMap<String, String>) -> Result<(), WireError> {
    let long = |text: &String| text.len() > TAG_BYTES_MAX;
    if tags.contains_key("") {
        return Err(WireError::new(Code::BadRequest, "the name of a tag is empty").hint("write a tag as name=value"));
    }
    if tags.len() > TAGS_MAX || tags.iter().any(|(name, value)| long(name) || long(value)) {
        let message =
            format!("a key has at most {TAGS_MAX} tags, each name and value of at most {TAG_BYTES_MAX} bytes");
        return Err(WireError::new(Code::TooLarge, message));
    }
    Ok(())
}

fn key_info(state: &State, key: &Key) -> KeyInfo {
    let one_disk_until_ms = state.one_disk_until_ms();
    let versions = key.versions.values().map(|version| VersionInfo {
        version: version.version,
        created_ms: version.created_ms,
        ready: version.ready,
        one_disk: version.created_ms <= one_disk_until_ms,
    });
    KeyInfo {
        name: key.name.clone(),
        uid: key.uid,
        created_ms: key.created_ms,
        tags: key.tags.clone(),
        versions: versions.collect(),
    }
}

fn list_keys(state: &State, after: Option<&KeyName>, limit: u32) -> Response {
    let limit = limit.clamp(1, KEYS_PAGE_MAX) as usize;
    let one_disk_until_ms = state.one_disk_until_ms();
    let mut keys: Vec<KeySummary> = state
        .keys_after(after)
        .take(limit + 1)
        .map(|key| KeySummary {
            name: key.name.clone(),
            uid: key.uid,
            created_ms: key.created_ms,
            newest: key.newest().version,
            one_disk: key.newest().created_ms <= one_disk_until_ms,
            tags: key.tags.clone(),
        })
        .collect();
    let more = keys.len() > limit;
    keys.truncate(limit);
    Response::Keys { keys, more }
}

async fn show_node(node: &Arc<Node>, replica: &Replica, name: &NodeName) -> Answer {
    let mut nodes = status::nodes(node, replica).await;
    match nodes.iter().position(|node| node.name == *name) {
        Some(position) => Ok(Response::Node(Box::new(nodes.swap_remove(position)))),
        None => Err(unknown_node(node, name)),
    }
}

/// The member of that name.
///
/// # Errors
/// [`Code::NotFound`], with the names that there are.
pub fn member(node: &Node, name: &NodeName) -> Result<NodeId, WireError> {
    let roster = node.roster();
    let member = roster.members.iter().find(|member| member.name == *name);
    member.map(|member| member.node).ok_or_else(|| unknown_node(node, name))
}

fn unknown_node(node: &Node, name: &NodeName) -> WireError {
    let names: Vec<_> = node.roster().members.iter().map(|member| member.name.to_string()).collect();
    WireError::new(Code::NotFound, format!("no node named {name}")).hint(format!("the nodes are {}", names.join(", ")))
}
