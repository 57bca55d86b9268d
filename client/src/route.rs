//! The client: which node it asks, and when it asks another.
//!
//! Any serving node answers any request. The client first asks the node that answered last, and keeps its connection.
//! If that node fails, the client asks the next node. If it is slow, the client may also ask the next node (a hedge, of
//! which there is a budget), and the first answer wins. A refusal that every node would repeat (no such key, no
//! permission) is final. While no node serves, the client asks again for [`Options::patience`], which is long enough for
//! an election; while nodes are busy, until the deadline. Then it reports what each node said.
//!
//! Every request may be repeated. Reads, encryption and decryption change nothing. A change of keys and the order to
//! remove or revoke nodes carry a request id, and the cluster makes a change with one id only once. Other changes, such
//! as a seal, carry none. No change is sent to another node while the first node may still answer.

mod change;
mod dial;
mod hedge;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use quorate_shares::context::Context;
use quorate_shares::ids::{Epoch, KeyName, KeyVersion, NodeName};
use tokio::time::{Instant, sleep, timeout_at};
use zeroize::Zeroizing;

pub use dial::survey;

use crate::VERSION;
use crate::clock::boot_ms;
use crate::cluster_file::ClusterFile;
use crate::conn::{CallError, Conn, Lane, close};
use crate::credential::Credential;
use crate::error::{Code, Error, NodeFailure};
use crate::wire::{
    self, Alarm, Answer, Answered, Envelope, KEYS_PAGE_MAX, KeyInfo, KeySummary, NodeInfo, Plaintext, Progress,
    Request, RequestId, Response, Status, WireError,
};
use dial::{Fleet, Target};
use hedge::{Budget, Hedging, Verdict};

/// How a client chooses nodes, and how long it waits.
#[derive(Clone)]
pub struct Options {
    /// Ask only this node: its name in the client file, or `host:port`.
    pub node: Option<String>,
    /// The longest time that one request takes, including retries.
    pub deadline: Duration,
    /// How long to ask again while no node serves. An election takes about a second. Unless this is zero, nodes that are
    /// busy are asked again until the deadline.
    pub patience: Duration,
    /// How long to wait for an answer before another node is also asked. A tenth of the requests may be hedged so soon.
    /// All others wait four times as long.
    pub hedge: Duration,
    /// Is called for every node that fails, when it fails.
    pub on_failure: Option<OnFailure>,
}

/// A callback for a node that failed: [`Options::on_failure`].
pub type OnFailure = Arc<dyn Fn(&NodeFailure) + Send + Sync>;

impl Default for Options {
    fn default() -> Self {
        Self {
            node: None,
            deadline: Duration::from_secs(10),
            patience: Duration::from_secs(3),
            hedge: Duration::from_millis(250),
            on_failure: None,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("node", &self.node)
            .field("deadline", &self.deadline)
            .field("patience", &self.patience)
            .field("hedge", &self.hedge)
            .finish_non_exhaustive()
    }
}

/// A new data key, in plain and encrypted.
#[derive(Debug)]
pub struct DataKey {
    /// The key itself. Use it and forget it.
    pub plaintext: Plaintext,
    /// The same key, encrypted, in the text form. Store it beside the data that it encrypts. [`Client::decrypt`] opens
    /// it.
    pub wrapped: String,
}

/// Risks that the operator accepts when a node is removed. By default none.
#[derive(Debug, Clone, Default)]
pub struct Removal {
    /// Two nodes may remain. Then the loss of one disk loses every key.
    pub accept_no_redundancy: bool,
    /// Nodes that do not answer and count as lost. They may be unable to unlock themselves later.
    pub abandon: Vec<NodeName>,
}

/// A client of one cluster. Clones share its connections; they close when the last clone is dropped.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    fleet: Fleet,
    options: Options,
    /// The number of the node that answered last.
    preferred: AtomicUsize,
    /// How many requests may be hedged.
    budget: Budget,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("options", &self.0.options).finish_non_exhaustive()
    }
}

impl Client {
    /// A client for the nodes of `file`, which proves `credential` to each node that it connects to. It sends nothing yet: it
    /// connects to a node when it first asks the node.
    ///
    /// # Errors
    /// [`Code::NotFound`] if [`Options::node`] is not in the file; [`Code::Internal`] if there is no network.
    pub async fn connect(file: ClusterFile, credential: &Credential, options: Options) -> Result<Self, Error> {
        let fleet = Fleet::new(file, credential.identity(), options.node.as_deref())?;
        // A random first node, so that clients that start together do not all ask the same one.
        let preferred = random_u32() as usize % fleet.targets().len();
        let budget = Budget::drawn(random_u32());
        Ok(Self(Arc::new(Inner { fleet, options, preferred: AtomicUsize::new(preferred), budget })))
    }

    /// Encrypts `plaintext` (at most 64 KiB) under the newest version of `key`, bound to `context`. The result is one
    /// line of text.
    ///
    /// # Errors
    /// [`Error`]; [`Code::TooLarge`] before anything is sent.
    pub async fn encrypt(&self, key: &KeyName, context: &Context, plaintext: &[u8]) -> Result<String, Error> {
        let plaintext = Plaintext::new(plaintext.to_vec())?;
        match self.ask(Request::Encrypt { key: key.clone(), context: context.clone(), plaintext }).await? {
            Response::Ciphertext(text) => Ok(text),
            _ => Err(unexpected()),
        }
    }

    /// Decrypts a ciphertext in text or binary form. `context` must be the context that it was encrypted with.
    ///
    /// # Errors
    /// [`Error`]; [`Code::BadCiphertext`] does not say which check failed.
    pub async fn decrypt(&self, ciphertext: impl AsRef<[u8]>, context: &Context) -> Result<Plaintext, Error> {
        let ciphertext = ciphertext.as_ref().to_vec();
        match self.ask(Request::Decrypt { ciphertext, context: context.clone() }).await? {
            Response::Plaintext(plaintext) => Ok(plaintext),
            _ => Err(unexpected()),
        }
    }

    /// Draws a new data key of `bytes` bytes (1 to 1024), and encrypts it under `key`, bound to `context`.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn data_key(&self, key: &KeyName, context: &Context, bytes: u16) -> Result<DataKey, Error> {
        match self.ask(Request::DataKey { key: key.clone(), context: context.clone(), bytes }).await? {
            Response::DataKey { plaintext, wrapped } => Ok(DataKey { plaintext, wrapped }),
            _ => Err(unexpected()),
        }
    }

    /// Creates a key with its first version.
    ///
    /// # Errors
    /// [`Error`]; [`Code::Conflict`] if the name is in use or was used before.
    pub async fn create_key(&self, name: &KeyName, tags: BTreeMap<String, String>) -> Result<KeyInfo, Error> {
        let request = Request::CreateKey { request_id: random_id(), name: name.clone(), tags };
        key_info(self.ask(request).await?)
    }

    /// Creates a new version of a key. If `expect` is given, it must be the newest version now.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn rotate_key(&self, name: &KeyName, expect: Option<KeyVersion>) -> Result<KeyInfo, Error> {
        let request = Request::RotateKey { request_id: random_id(), name: name.clone(), expect };
        key_info(self.ask(request).await?)
    }

    /// One key and its versions.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn show_key(&self, name: &KeyName) -> Result<KeyInfo, Error> {
        key_info(self.ask(Request::ShowKey { name: name.clone() }).await?)
    }

    /// All keys, by rising name.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn list_keys(&self) -> Result<Vec<KeySummary>, Error> {
        let mut all: Vec<KeySummary> = Vec::new();
        loop {
            let after = all.last().map(|key| key.name.clone());
            let Response::Keys { keys, more } = self.ask(Request::ListKeys { after, limit: KEYS_PAGE_MAX }).await?
            else {
                return Err(unexpected());
            };
            // A page that does not advance would be requested for ever.
            let advances = keys.first().is_some_and(|first| all.last().is_none_or(|last| first.name > last.name));
            let done = !more || !advances;
            all.extend(keys);
            if done {
                return Ok(all);
            }
        }
    }

    /// The state of the cluster as a node in the quorum sees it. If no node is in a quorum, as another node sees it. If
    /// no node answers at all, [`survey`] asks each node for its own state.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn status(&self) -> Result<Status, Error> {
        match self.ask(Request::Status).await? {
            Response::Status(status) if status.quorum => Ok(*status),
            Response::Status(status) => Ok(self.status_in_quorum().await.unwrap_or(*status)),
            _ => Err(unexpected()),
        }
    }

    /// The state of the cluster from the first node in the quorum that answers. A node that is sealed or was cut off
    /// knows only its own state.
    async fn status_in_quorum(&self) -> Option<Status> {
        let until = Instant::now() + self.0.options.deadline.min(OTHER_STATUS_MAX);
        let body = Zeroizing::new(wire::encode(&self.envelope(Request::Status)));
        let asked = self.0.fleet.targets().iter().map(|target| ask_node(target, &self.0.fleet, &body, until));
        let asked = timeout_at(until, async {
            let mut asked: FuturesUnordered<_> = asked.collect();
            while let Some(answer) = asked.next().await {
                if let Ok(Response::Status(status)) = answer
                    && status.quorum
                {
                    return Some(*status);
                }
            }
            None
        });
        asked.await.unwrap_or(None)
    }

    /// Seals a node: it forgets its keys and stays without them, also after restarts, until it is unsealed. The seal is
    /// durable when this returns.
    ///
    /// # Errors
    /// [`Error`]; [`Code::Unreachable`] if the nodes that answer have no session with it.
    pub async fn seal_node(&self, name: &NodeName) -> Result<(), Error> {
        done(self.ask(Request::SealNode { name: name.clone() }).await?)
    }

    /// Unseals a node: the reverse of [`Client::seal_node`].
    ///
    /// # Errors
    /// As [`Client::seal_node`].
    pub async fn unseal_node(&self, name: &NodeName) -> Result<(), Error> {
        done(self.ask(Request::UnsealNode { name: name.clone() }).await?)
    }

    /// All nodes, by rising id.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn nodes(&self) -> Result<Vec<NodeInfo>, Error> {
        match self.ask(Request::ListNodes).await? {
            Response::Nodes(nodes) => Ok(nodes),
            _ => Err(unexpected()),
        }
    }

    /// One node.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn node(&self, name: &NodeName) -> Result<NodeInfo, Error> {
        match self.ask(Request::NodeStatus { name: name.clone() }).await? {
            Response::Node(node) => Ok(*node),
            _ => Err(unexpected()),
        }
    }

    /// The client file with the nodes that the cluster has now.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn export(&self) -> Result<ClusterFile, Error> {
        match self.ask(Request::Export).await? {
            Response::Export(file) => Ok(file),
            _ => Err(unexpected()),
        }
    }

    /// Removes a node from the cluster in an orderly way. Returns the operation, which continues without the client.
    ///
    /// # Errors
    /// [`Error`]; [`Code::Conflict`] if the cluster could not work without the node.
    pub async fn remove_node(&self, name: &NodeName, terms: &Removal) -> Result<Epoch, Error> {
        let (request_id, name, abandon) = (random_id(), name.clone(), terms.abandon.clone());
        let accept_no_redundancy = terms.accept_no_redundancy;
        operation(self.ask(Request::RemoveNode { request_id, name, accept_no_redundancy, abandon }).await?)
    }

    /// Revokes nodes: the others refuse them from now on. Returns the operation, which continues without the client. The nodes in
    /// `expect_back` do not answer now and come back with their disks: the revocation may need them.
    ///
    /// # Errors
    /// [`Error`]; [`Code::Conflict`] if too few would remain, or the others would need a node that does not answer.
    pub async fn revoke_nodes(&self, names: &[NodeName], expect_back: &[NodeName]) -> Result<Epoch, Error> {
        let (request_id, names, expect_back) = (random_id(), names.to_vec(), expect_back.to_vec());
        operation(self.ask(Request::RevokeNodes { request_id, names, expect_back }).await?)
    }

    /// An invitation for one node, valid for `ttl`. If `name` is given, only a node with that name can use it.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn invite_node(&self, name: Option<&NodeName>, ttl: Duration) -> Result<Plaintext, Error> {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        match self.ask(Request::InviteNode { name: name.cloned(), ttl_ms }).await? {
            Response::Invitation(text) => Ok(text),
            _ => Err(unexpected()),
        }
    }

    /// The node that joins with `invitation` replaces `name`, which is then revoked.
    ///
    /// # Errors
    /// [`Error`]; [`Code::Conflict`] if the invitation was used.
    pub async fn replace_node(&self, name: &NodeName, invitation: &[u8]) -> Result<(), Error> {
        let invitation = Plaintext::new(invitation.to_vec())?;
        match self.ask(Request::ReplaceNode { name: name.clone(), invitation }).await? {
            Response::Replacing => Ok(()),
            _ => Err(unexpected()),
        }
    }

    /// Records where a node listens, as `host:port`. Its earlier addresses are forgotten. Who answers there must still prove the
    /// key of the node.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn set_addresses(&self, name: &NodeName, addresses: &[String]) -> Result<(), Error> {
        done(self.ask(Request::SetAddresses { name: name.clone(), addresses: addresses.to_vec() }).await?)
    }

    /// The progress of an operation.
    ///
    /// # Errors
    /// [`Error`]; [`Code::NotFound`] if it is over and other operations followed.
    pub async fn progress(&self, operation: Epoch) -> Result<Progress, Error> {
        match self.ask(Request::Progress { operation }).await? {
            Response::Progress(progress) => Ok(*progress),
            _ => Err(unexpected()),
        }
    }

    /// Returns `bytes` as a node sends them back. It measures a round trip.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn echo(&self, bytes: &[u8]) -> Result<Vec<u8>, Error> {
        match self.ask(Request::Echo(bytes.to_vec())).await? {
            Response::Echo(bytes) => Ok(bytes),
            _ => Err(unexpected()),
        }
    }

    /// Admits a node again, for any length of its absence. Returns the members that will unlock it, and the members
    /// that could not be told.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn admit_node(&self, name: &NodeName) -> Result<(Vec<NodeName>, Vec<NodeName>), Error> {
        match self.ask(Request::AdmitNode { name: name.clone() }).await? {
            Response::Admitted { at, silent } => Ok((at, silent)),
            _ => Err(unexpected()),
        }
    }

    /// The open alarms of all nodes, oldest first.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn alarms(&self) -> Result<Vec<Alarm>, Error> {
        match self.ask(Request::ListAlarms).await? {
            Response::Alarms(alarms) => Ok(alarms),
            _ => Err(unexpected()),
        }
    }

    /// Closes alarms at all nodes: those with the given codes or, with `None`, all. Returns the alarms that are closed
    /// now, and the nodes that could not be told.
    ///
    /// # Errors
    /// [`Error`]; [`Code::NotFound`] if no alarm with one of the codes is open.
    pub async fn disarm_alarms(&self, codes: Option<BTreeSet<String>>) -> Result<(Vec<Alarm>, Vec<NodeName>), Error> {
        match self.ask(Request::DisarmAlarms { codes }).await? {
            Response::Disarmed { alarms, silent } => Ok((alarms, silent)),
            _ => Err(unexpected()),
        }
    }

    /// Closes all connections, and waits up to 20 ms so that the nodes learn it.
    pub async fn close(self) {
        self.0.fleet.close().await;
    }

    async fn ask(&self, request: Request) -> Result<Response, Error> {
        let begin = Instant::now();
        let until = begin + self.0.options.deadline;
        let change = is_change(&request);
        let body = Zeroizing::new(wire::encode(&self.envelope(request)));
        self.0.budget.note_request();

        let mut pause = PAUSE_MIN;
        loop {
            let mut failures = Vec::new();
            let answered = match change {
                true => self.round_of_change(&body, until, &mut failures).await,
                false => self.round(&body, until, &mut failures).await,
            };
            match answered {
                Some(Ok(response)) => return Ok(response),
                Some(Err(error)) => return Err(Error { error, failures }),
                None => {}
            }
            let patience = self.0.options.patience;
            let is_busy = failures.iter().any(|failure| failure.error.code == Code::Busy);
            let (give_up, pause_max) = match is_busy && !patience.is_zero() {
                true => (until, BUSY_PAUSE_MAX),
                false => ((begin + patience).min(until), PAUSE_MAX),
            };
            // Clients that were refused together come back one by one.
            let pause_now = pause.mul_f64(f64::from(random_u32()) / f64::from(u32::MAX) + 0.5);
            if Instant::now() + pause_now >= give_up {
                return Err(all_nodes_failed(failures));
            }
            sleep(pause_now).await;
            pause = (pause * 2).min(pause_max);
        }
    }

    fn envelope(&self, request: Request) -> Envelope {
        let deadline_ms = u32::try_from(self.0.options.deadline.as_millis()).unwrap_or(u32::MAX);
        Envelope { deadline_ms, request }
    }

    /// The numbers of all nodes in the order in which they are asked: from the node that answered last, and those that could not
    /// be reached a moment ago at the end.
    fn order(&self) -> Vec<usize> {
        let targets = self.0.fleet.targets();
        let preferred = self.0.preferred.load(Ordering::Relaxed);
        let mut order: Vec<_> = (0..targets.len()).map(|offset| (preferred + offset) % targets.len()).collect();
        order.sort_by_key(|number| targets[*number].is_down());
        order
    }

    /// Asks every node once, the next while the last is slow. `None` if all nodes failed in ways that may pass.
    async fn round(&self, body: &[u8], until: Instant, failures: &mut Vec<NodeFailure>) -> Option<Answer> {
        let targets = self.0.fleet.targets();
        let mut order = self.order().into_iter();
        let ask = |number: usize| async move { (number, ask_node(&targets[number], &self.0.fleet, body, until).await) };
        let mut hedging = Hedging::new(&self.0.budget, self.0.options.hedge);
        // This task polls the requests. When it returns, those that are left are dropped, and their nodes are told to
        // stop.
        let mut asked = FuturesUnordered::new();
        // The nodes that were asked, with the packets that had come from each before.
        let mut heard = Vec::new();
        let mut next = order.next();
        loop {
            if let Some(number) = next.take() {
                heard.push((number, targets[number].packets()));
                asked.push(ask(number));
            }
            let wake = if order.len() > 0 { (Instant::now() + hedging.wait()).min(until) } else { until };
            match timeout_at(wake, asked.next()).await {
                Ok(None) => return None,
                Ok(Some((number, Ok(response)))) => {
                    self.0.preferred.store(number, Ordering::Relaxed);
                    return Some(Ok(response));
                }
                Ok(Some((_, Err(error)))) if !error.code.retryable() => return Some(Err(error)),
                Ok(Some((number, Err(error)))) => {
                    self.record_failure(number, error, failures);
                    heard.retain(|(asked, _)| *asked != number);
                    next = order.next();
                }
                Err(_) if wake == until => return Some(Err(WireError::new(Code::Deadline, "no answer in time"))),
                Err(_) => {
                    let is_heard = heard.iter().any(|(number, before)| targets[*number].packets() > *before);
                    if hedging.decide(wake.elapsed(), is_heard) == Verdict::Hedge {
                        next = order.next();
                    }
                }
            }
        }
    }

    fn record_failure(&self, number: usize, error: WireError, failures: &mut Vec<NodeFailure>) {
        let failure = NodeFailure { node: self.0.fleet.targets()[number].label().to_owned(), error };
        tracing::debug!(node = failure.node, code = failure.error.code.as_str(), "a node failed: {}", failure.error);
        if let Some(on_failure) = &self.0.options.on_failure {
            on_failure(&failure);
        }
        failures.push(failure);
    }
}

/// The first and the longest pause between two rounds over all nodes.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(400);
/// The longest pause while nodes are busy.
const BUSY_PAUSE_MAX: Duration = Duration::from_secs(1);

/// How long other nodes may take to answer with a status, after one said that it is not in a quorum.
const OTHER_STATUS_MAX: Duration = Duration::from_secs(1);

/// Asks one node, for as long as the caller waits. A connection that was kept may be dead already. If it is lost, the
/// node is asked once more on a new connection.
async fn ask_node(target: &Target, fleet: &Fleet, body: &[u8], until: Instant) -> Answer {
    loop {
        let (conn, kept) = target.connection(fleet, until).await?;
        match ask_once(&conn, body).await {
            Ok(answer) => {
                target.note_heard();
                return answer_of(answer);
            }
            Err(CallError::Closed(_)) if kept => target.forget(&conn),
            Err(error) => return Err(unanswered(error)),
        }
    }
}

/// What a node sent back, and how long after the request it came, in milliseconds.
type Answering = (Bytes, u64);

/// Asks over one connection, for as long as the caller waits.
async fn ask_once(conn: &Conn, body: &[u8]) -> Result<Answering, CallError> {
    let sent_ms = boot_ms();
    let answer = conn.ask(Lane::Ordinary, body).await?;
    Ok((answer, boot_ms() - sent_ms))
}

/// The answer in what a node sent back.
fn answer_of((answer, age_ms): Answering) -> Answer {
    let answer: Answered = wire::decode(&answer)
        .map_err(|error| WireError::new(Code::Protocol, format!("the answer cannot be read: {}", error.message)))?;
    match answer.fresh(age_ms).map(|answer| answer.map_err(WireError::printable)) {
        // The node says its own version.
        Some(Err(WireError { code: Code::Protocol, message, hint })) => {
            let message = format!("{message}; this client is quorate {VERSION}");
            Err(WireError { code: Code::Protocol, message, hint })
        }
        Some(answer) => answer,
        None => Err(too_late()),
    }
}

/// The error for a node that sent nothing back.
fn unanswered(error: CallError) -> WireError {
    match error {
        CallError::Closed(closed) if matches!(closed.code, Some(close::DENIED | close::REVOKED)) => {
            WireError::new(Code::NotServing, closed.reason)
        }
        CallError::Closed(closed) => WireError::new(Code::Unreachable, format!("connection lost: {closed}")),
        CallError::Busy => WireError::new(Code::Busy, "too many requests in flight"),
        CallError::Deadline => WireError::new(Code::Deadline, "no answer in time"),
        CallError::Failed => WireError::new(Code::Internal, "the node ended the request without an answer"),
        CallError::TooLarge => WireError::new(Code::TooLarge, "the request is too large"),
    }
}

/// The error for an answer that came after the end of the lease that it depends on.
fn too_late() -> WireError {
    WireError::new(Code::NoQuorum, "its answer came after its lease had ended")
}

/// Whether a request changes something, so that it is never sent to two nodes at the same time.
fn is_change(request: &Request) -> bool {
    match request {
        Request::CreateKey { .. }
        | Request::RotateKey { .. }
        | Request::RemoveNode { .. }
        | Request::RevokeNodes { .. }
        | Request::SealNode { .. }
        | Request::UnsealNode { .. }
        | Request::AdmitNode { .. }
        | Request::DisarmAlarms { .. }
        | Request::InviteNode { .. }
        | Request::ReplaceNode { .. }
        | Request::SetAddresses { .. } => true,
        Request::Status
        | Request::Encrypt { .. }
        | Request::Decrypt { .. }
        | Request::DataKey { .. }
        | Request::ListKeys { .. }
        | Request::ShowKey { .. }
        | Request::ListNodes
        | Request::NodeStatus { .. }
        | Request::Export
        | Request::Echo(_)
        | Request::Progress { .. }
        | Request::ListAlarms => false,
    }
}

/// The error when all nodes failed: the most important code, and what each node said.
fn all_nodes_failed(failures: Vec<NodeFailure>) -> Error {
    // Codes that need an operator come first: time does not cure a wrong identity, but it may cure a lost quorum.
    const BY_IMPORTANCE: [Code; 11] = [
        Code::Identity,
        Code::Storage,
        Code::Internal,
        Code::Protocol,
        Code::KeyUnavailable,
        Code::NoQuorum,
        Code::Locked,
        Code::NotServing,
        Code::Busy,
        Code::Deadline,
        Code::Unreachable,
    ];
    let first = BY_IMPORTANCE.iter().find_map(|code| failures.iter().find(|failure| failure.error.code == *code));
    let Some(first) = first else {
        return WireError::new(Code::Unreachable, "no node to ask").into();
    };
    let (code, hint) = (first.error.code, first.error.hint.clone());
    let message = match &failures[..] {
        [only] => only.to_string(),
        all => {
            let each: Vec<_> = all.iter().map(NodeFailure::to_string).collect();
            format!("no node answers: {}", each.join("; "))
        }
    };
    Error { error: WireError { code, message, hint }, failures }
}

fn unexpected() -> Error {
    WireError::new(Code::Protocol, "the answer belongs to another request")
        .hint("client and cluster differ in version")
        .into()
}

fn operation(response: Response) -> Result<Epoch, Error> {
    match response {
        Response::Begun { operation } => Ok(operation),
        _ => Err(unexpected()),
    }
}

fn key_info(response: Response) -> Result<KeyInfo, Error> {
    match response {
        Response::Key(info) => Ok(info),
        _ => Err(unexpected()),
    }
}

fn done(response: Response) -> Result<(), Error> {
    match response {
        Response::Done => Ok(()),
        _ => Err(unexpected()),
    }
}

fn random_u32() -> u32 {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).expect("the operating system gives randomness");
    u32::from_be_bytes(bytes)
}

fn random_id() -> RequestId {
    let mut id = [0; 16];
    getrandom::fill(&mut id).expect("the operating system gives randomness");
    id
}
