//! The client: which node is asked, and what is asked again elsewhere.
//!
//! Any serving node answers any request. The client keeps to the one that answered last and holds its connection. When
//! that one fails, or is merely slow, the next is asked; the first answer wins. A refusal that another node would repeat
//! (no such key, no permission) is final. When no node serves, the client goes on for [`Options::patience`], long enough
//! for an election, and then says what each of them said.
//!
//! Everything here may be asked twice: reads, encryption and decryption change nothing, and changes carry a request id
//! under which they are made once. Changes are never sent to two nodes at the same time, though.

mod dial;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use quorate_shares::context::Context;
use quorate_shares::ids::{Epoch, KeyName, KeyVersion, NodeName};
use tokio::time::{Instant, sleep, timeout_at};
use zeroize::Zeroizing;

pub use dial::survey;

use crate::clock::boot_ms;
use crate::cluster_file::ClusterFile;
use crate::conn::{CallError, Lane, close};
use crate::error::{Code, Error, NodeFailure};
use crate::wire::{
    self, Alarm, Answer, Answered, Envelope, KEYS_PAGE_MAX, KeyInfo, KeySummary, NodeInfo, Plaintext, Progress,
    Request, RequestId, Response, Status, Token, WireError,
};
use dial::{Fleet, Target};

/// How a client behaves.
#[derive(Clone)]
pub struct Options {
    /// Ask only this node: its name in the client file, or `host:port`.
    pub node: Option<String>,
    /// The longest that one request takes, retries included.
    pub deadline: Duration,
    /// How long to go on while no node serves. An election takes about a second.
    pub patience: Duration,
    /// How long to wait for an answer before another node is asked as well.
    pub hedge: Duration,
    /// Told of every node that failed, as it happens.
    pub on_failure: Option<OnFailure>,
}

/// See [`Options::on_failure`].
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

/// A fresh data key.
#[derive(Debug)]
pub struct DataKey {
    /// The key, to be used and forgotten.
    pub plaintext: Plaintext,
    /// The same key encrypted, to be kept beside what it encrypts; [`Client::decrypt`] opens it.
    pub wrapped: String,
}

/// What is accepted when a node is removed; by default nothing that could cost a key.
#[derive(Debug, Clone, Default)]
pub struct Removal {
    /// Two nodes may remain, of which the loss of one disk loses every key.
    pub accept_no_redundancy: bool,
    /// Nodes that are away and count as lost.
    pub abandon: Vec<NodeName>,
}

/// A client of one cluster. Clones share its connections; the last one closes them.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    fleet: Fleet,
    token: Token,
    options: Options,
    /// The node that answered last.
    favourite: AtomicUsize,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("options", &self.0.options).finish_non_exhaustive()
    }
}

impl Client {
    /// A client for the nodes of `file`. Nothing is sent yet: each node is dialled when it is first asked.
    ///
    /// # Errors
    /// [`Code::NotFound`] if [`Options::node`] is not in the file, and [`Code::Internal`] without a network.
    pub async fn connect(file: ClusterFile, token: Token, options: Options) -> Result<Self, Error> {
        let fleet = Fleet::new(file, options.node.as_deref())?;
        // Clients that start together do not all begin with the same node.
        let mut start = [0; 8];
        getrandom::fill(&mut start).expect("the operating system gives randomness");
        let favourite = usize::from_be_bytes(start) % fleet.targets().len();
        Ok(Self(Arc::new(Inner { fleet, token, options, favourite: AtomicUsize::new(favourite) })))
    }

    /// Encrypts `plaintext` (at most 64 KiB) under the newest version of `key`, bound to `context`: one line of text.
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

    /// Decrypts a ciphertext, text or binary, that was encrypted with the same `context`.
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

    /// A fresh key of `bytes` bytes (1 to 1024), in plain and encrypted under `key`.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn data_key(&self, key: &KeyName, context: &Context, bytes: u16) -> Result<DataKey, Error> {
        match self.ask(Request::DataKey { key: key.clone(), context: context.clone(), bytes }).await? {
            Response::DataKey { plaintext, wrapped } => Ok(DataKey { plaintext, wrapped }),
            _ => Err(unexpected()),
        }
    }

    /// Makes a key.
    ///
    /// # Errors
    /// [`Error`]; [`Code::Conflict`] if the name was ever used.
    pub async fn create_key(&self, name: &KeyName, tags: BTreeMap<String, String>) -> Result<KeyInfo, Error> {
        let request = Request::CreateKey { request_id: random_id(), name: name.clone(), tags };
        key_info(self.ask(request).await?)
    }

    /// Makes a new version of a key; refused if `expect` is given and not the newest.
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
            // A page that does not advance would be asked for for ever.
            let advances = keys.first().is_some_and(|first| all.last().is_none_or(|last| first.name > last.name));
            let done = !more || !advances;
            all.extend(keys);
            if done {
                return Ok(all);
            }
        }
    }

    /// The state of the cluster, as a node that stands in the quorum sees it, or, if none does, as another. When none
    /// answers, [`survey`] asks each how far it is.
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

    /// The state of the cluster from the first node that stands in the quorum. A node that is sealed, or was cut off, speaks
    /// for itself only.
    async fn status_in_quorum(&self) -> Option<Status> {
        let until = Instant::now() + self.0.options.deadline.min(SECOND_OPINION);
        let body = Zeroizing::new(wire::encode(&self.envelope(Request::Status)));
        let asked = self.0.fleet.targets().iter().map(|target| attempt(target, &self.0.fleet, &body, until));
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

    /// One node forgets its keys and stays without them, over restarts, until it is unsealed; durable when this returns.
    ///
    /// # Errors
    /// [`Error`]; [`Code::Unreachable`] if no node that answers has a session with it.
    pub async fn seal_node(&self, name: &NodeName) -> Result<(), Error> {
        done(self.ask(Request::SealNode { name: name.clone() }).await?)
    }

    /// Takes [`Client::seal_node`] back.
    ///
    /// # Errors
    /// As there.
    pub async fn unseal_node(&self, name: &NodeName) -> Result<(), Error> {
        done(self.ask(Request::UnsealNode { name: name.clone() }).await?)
    }

    /// All nodes.
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

    /// The client file as the cluster knows it now.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn export(&self) -> Result<ClusterFile, Error> {
        match self.ask(Request::Export).await? {
            Response::Export(file) => Ok(file),
            _ => Err(unexpected()),
        }
    }

    /// Takes a node out of the cluster in good order. Returns the operation, which goes on by itself.
    ///
    /// # Errors
    /// [`Error`]; [`Code::Conflict`] if the nodes that remain could not do without it.
    pub async fn remove_node(&self, name: &NodeName, terms: &Removal) -> Result<Epoch, Error> {
        let (request_id, name, abandon) = (random_id(), name.clone(), terms.abandon.clone());
        let accept_no_redundancy = terms.accept_no_redundancy;
        begun(self.ask(Request::RemoveNode { request_id, name, accept_no_redundancy, abandon }).await?)
    }

    /// Has nodes refused from now on. Returns the operation, which goes on by itself.
    ///
    /// # Errors
    /// [`Error`]; [`Code::Conflict`] if too few would remain.
    pub async fn revoke_nodes(&self, names: &[NodeName]) -> Result<Epoch, Error> {
        begun(self.ask(Request::RevokeNodes { request_id: random_id(), names: names.to_vec() }).await?)
    }

    /// An invitation for one node, good for `ttl`; with a name only for a node of that name.
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

    /// Has whoever joins with `invitation` take the place of a node, which is revoked then.
    ///
    /// # Errors
    /// [`Error`]; [`Code::Conflict`] if the invitation was used.
    pub async fn replace_node(&self, name: &NodeName, invitation: &[u8]) -> Result<(), Error> {
        let invitation = Plaintext::new(invitation.to_vec())?;
        match self.ask(Request::ReplaceNode { name: name.clone(), invitation }).await? {
            Response::Designated => Ok(()),
            _ => Err(unexpected()),
        }
    }

    /// How far an operation is.
    ///
    /// # Errors
    /// [`Error`]; [`Code::NotFound`] if others followed since.
    pub async fn progress(&self, operation: Epoch) -> Result<Progress, Error> {
        match self.ask(Request::Progress { operation }).await? {
            Response::Progress(progress) => Ok(*progress),
            _ => Err(unexpected()),
        }
    }

    /// The same bytes back: what a round trip costs.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn echo(&self, bytes: &[u8]) -> Result<Vec<u8>, Error> {
        match self.ask(Request::Echo(bytes.to_vec())).await? {
            Response::Echo(bytes) => Ok(bytes),
            _ => Err(unexpected()),
        }
    }

    /// A node may come back, however long it was away: returns the members that will unlock it, and those that could not be
    /// told.
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

    /// Closes alarms at all nodes, those of some codes or, with `None`, all: returns those that are closed now, and the nodes
    /// that could not be told.
    ///
    /// # Errors
    /// [`Error`]; [`Code::NotFound`] if no alarm of some code is open.
    pub async fn disarm_alarms(&self, codes: Option<BTreeSet<String>>) -> Result<(Vec<Alarm>, Vec<NodeName>), Error> {
        match self.ask(Request::DisarmAlarms { codes }).await? {
            Response::Disarmed { alarms, silent } => Ok((alarms, silent)),
            _ => Err(unexpected()),
        }
    }

    /// Closes all connections and waits, briefly, until the nodes can know.
    pub async fn close(self) {
        self.0.fleet.close().await;
    }

    async fn ask(&self, request: Request) -> Result<Response, Error> {
        let begin = Instant::now();
        let until = begin + self.0.options.deadline;
        let change = matches!(
            request,
            Request::CreateKey { .. }
                | Request::RotateKey { .. }
                | Request::RemoveNode { .. }
                | Request::RevokeNodes { .. }
                | Request::DisarmAlarms { .. }
                | Request::InviteNode { .. }
                | Request::ReplaceNode { .. }
        );
        let body = Zeroizing::new(wire::encode(&self.envelope(request)));

        let mut pause = PAUSE_MIN;
        loop {
            let mut failures = Vec::new();
            match self.round(&body, !change, until, &mut failures).await {
                Some(Ok(response)) => return Ok(response),
                Some(Err(error)) => return Err(Error { error, failures }),
                None => {}
            }
            let now = Instant::now();
            if now + pause >= (begin + self.0.options.patience).min(until) {
                return Err(nobody(failures));
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn envelope(&self, request: Request) -> Envelope {
        let deadline_ms = u32::try_from(self.0.options.deadline.as_millis()).unwrap_or(u32::MAX);
        Envelope { token: self.0.token.duplicate(), deadline_ms, request }
    }

    /// Asks every node once, in turn or, if `hedge`, overlapping. `None` if all failed in ways that may pass.
    async fn round(&self, body: &[u8], hedge: bool, until: Instant, failures: &mut Vec<NodeFailure>) -> Option<Answer> {
        let targets = self.0.fleet.targets();
        let favourite = self.0.favourite.load(Ordering::Relaxed);
        let mut order = (0..targets.len()).map(|offset| (favourite + offset) % targets.len());
        let ask = |number: usize| async move { (number, attempt(&targets[number], &self.0.fleet, body, until).await) };
        // Polled by this task and dropped with it: whoever is not done when this returns is told to give up.
        let mut asked = FuturesUnordered::new();
        asked.push(ask(order.next()?));
        loop {
            let slow = Instant::now() + self.0.options.hedge;
            let wake = if hedge && order.len() > 0 { slow.min(until) } else { until };
            match timeout_at(wake, asked.next()).await {
                Ok(None) => return None,
                Ok(Some((number, Ok(response)))) => {
                    self.0.favourite.store(number, Ordering::Relaxed);
                    return Some(Ok(response));
                }
                Ok(Some((_, Err(error)))) if !error.code.retryable() => return Some(Err(error)),
                Ok(Some((number, Err(error)))) => {
                    self.failed(number, error, failures);
                    asked.extend(order.next().map(ask));
                }
                Err(_) if wake == until => return Some(Err(WireError::new(Code::Deadline, "no answer in time"))),
                Err(_) => asked.extend(order.next().map(ask)),
            }
        }
    }

    fn failed(&self, number: usize, error: WireError, failures: &mut Vec<NodeFailure>) {
        let failure = NodeFailure { node: self.0.fleet.targets()[number].label().to_owned(), error };
        tracing::debug!(node = failure.node, code = failure.error.code.as_str(), "a node failed: {}", failure.error);
        if let Some(tell) = &self.0.options.on_failure {
            tell(&failure);
        }
        failures.push(failure);
    }
}

/// Pauses between rounds over all nodes.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(400);

/// How long other nodes may take to say that they stand in a quorum, when one said that it does not.
const SECOND_OPINION: Duration = Duration::from_secs(1);

/// Asks one node, until its caller no longer waits. A kept connection may have died unnoticed, so its loss is a reason for
/// one new connection.
async fn attempt(target: &Target, fleet: &Fleet, body: &[u8], until: Instant) -> Answer {
    loop {
        let (conn, kept) = target.connection(fleet, until).await?;
        let sent_ms = boot_ms();
        let error = match conn.ask(Lane::Ordinary, body).await {
            Ok(answer) => {
                let answer: Answered =
                    wire::decode(&answer).map_err(|error| WireError::new(Code::Protocol, error.message))?;
                return answer.fresh(boot_ms() - sent_ms).unwrap_or_else(|| Err(too_late()));
            }
            Err(error) => error,
        };
        return Err(match error {
            CallError::Closed(_) if kept => {
                target.forget(&conn);
                continue;
            }
            CallError::Closed(closed) if matches!(closed.code, Some(close::DENIED | close::REVOKED)) => {
                WireError::new(Code::NotServing, closed.reason)
            }
            CallError::Closed(closed) => WireError::new(Code::Unreachable, format!("connection lost: {closed}")),
            CallError::Busy => WireError::new(Code::Busy, "too many requests in flight"),
            CallError::Deadline => WireError::new(Code::Deadline, "no answer in time"),
            CallError::Failed => WireError::new(Code::Internal, "it gave up without an answer"),
            CallError::TooLarge => WireError::new(Code::TooLarge, "the request is too large"),
        });
    }
}

/// An answer that left a node, or reached this process, after the lease that it rests on had ended.
fn too_late() -> WireError {
    WireError::new(Code::NoQuorum, "its answer came after its lease had ended")
}

/// One error for many: the most telling code, and what each node said.
fn nobody(failures: Vec<NodeFailure>) -> Error {
    // What an operator acts on comes first: a wrong identity is not cured by waiting, a lost quorum is.
    const TELLING: [Code; 11] = [
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
    let first = TELLING.iter().find_map(|code| failures.iter().find(|failure| failure.error.code == *code));
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
    WireError::new(Code::Protocol, "an answer to another question").hint("client and cluster differ in version").into()
}

fn begun(response: Response) -> Result<Epoch, Error> {
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

fn random_id() -> RequestId {
    let mut id = [0; 16];
    getrandom::fill(&mut id).expect("the operating system gives randomness");
    id
}
