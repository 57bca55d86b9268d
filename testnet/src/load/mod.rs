//! Load: clients that never stop while nodes die and return.
//!
//! Each client makes a key or rotates one now and then, encrypts, decrypts what it just got and something older, and
//! compares. As long as a quorum is up, every error passes within its [`Options::patience`]. All other errors are collected,
//! and in the end the list must be empty. So clients test the promise that clients notice nothing when a node dies.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use quorate_client::{Blame, Client, ClusterFile, Code, Context, KeyName, Token};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

use crate::base::error::Error;
use crate::cluster::directory::Directory;

/// Ciphertexts that are remembered; the oldest is forgotten for one more.
pub const KEPT_MAX: usize = 20_000;
/// Unexpected errors that are written down; more are only counted.
const UNEXPECTED_MAX: usize = 1_000;
/// How often a client makes a key, or a new version of one: by turns.
const KEY_EVERY: Duration = Duration::from_secs(2);
/// How many of its keys a client goes on encrypting under.
const KEYS_IN_USE: usize = 4;
/// Every so many rounds a client asks one node alone, whichever nodes are well.
const ROUNDS_PER_VISIT: u64 = 8;
/// How long a visit lasts at a node that is dead.
const VISIT: Duration = Duration::from_millis(500);
/// Before what failed is tried again.
const PAUSE: Duration = Duration::from_millis(50);
/// Questions in flight when everything is opened in the end.
const LANES: usize = 16;

/// What kind of load.
#[derive(Debug, Clone)]
pub struct Options {
    pub clients: u64,
    /// What each rests after a round.
    pub rest: Duration,
    /// How long an operation may fail in ways that pass.
    pub patience: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { clients: 8, rest: Duration::ZERO, patience: Duration::from_secs(20) }
    }
}

/// How much was done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Operations that were answered as they should be.
    pub done: u64,
    /// Attempts that failed in a way that passes, and were made again.
    pub again: u64,
    /// Errors that should not be.
    pub unexpected: u64,
}

/// A running load.
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

/// What the clients leave.
pub struct Outcome {
    /// How much was done.
    pub tally: Tally,
    /// Errors that should not have been, at most a thousand of them.
    pub unexpected: Vec<String>,
    /// How many ciphertexts were handed out.
    pub sealed: u64,
    kept: Vec<Kept>,
}

/// A ciphertext that was handed out. Its message follows from the numbers.
#[derive(Clone)]
struct Kept {
    client: u64,
    round: u64,
    ciphertext: String,
}

#[derive(Default)]
struct Shared {
    /// Names of different runs against one cluster differ.
    run: u128,
    done: AtomicU64,
    again: AtomicU64,
    sealed: AtomicU64,
    wrong: AtomicU64,
    unexpected: Mutex<Vec<String>>,
    kept: Mutex<Vec<Kept>>,
    stop: AtomicBool,
}

impl Load {
    /// Starts the clients, on the runtime that this is called on.
    ///
    /// # Errors
    /// [`Error::Client`] without a network.
    pub async fn start(file: &ClusterFile, token: &Token, options: &Options) -> Result<Self, Error> {
        let run = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis());
        let shared = Arc::new(Shared { run, ..Shared::default() });
        let nodes: Vec<_> = file.nodes.iter().map(|node| node.name.to_string()).collect();
        let mut clients = Vec::new();
        for (number, node) in (0..options.clients).zip(nodes.into_iter().cycle()) {
            let of_one = quorate_client::Options {
                node: Some(node),
                deadline: VISIT,
                patience: Duration::ZERO,
                ..quorate_client::Options::default()
            };
            let of_all = Client::connect(file.clone(), token.duplicate(), quorate_client::Options::default()).await?;
            let of_one = Client::connect(file.clone(), token.duplicate(), of_one).await?;
            let worker = Worker { number, of_all, of_one, options: options.clone(), shared: Arc::clone(&shared) };
            clients.push(tokio::spawn(worker.work()));
        }
        Ok(Self { shared, clients })
    }

    /// How much was done so far.
    pub fn tally(&self) -> Tally {
        self.shared.tally()
    }

    /// Lets every client end its round, and says what came of it.
    pub async fn stop(self) -> Outcome {
        self.shared.stop.store(true, Ordering::SeqCst);
        for client in self.clients {
            if let Err(error) = client.await {
                self.shared.wrong(format!("a client ended: {error}"));
            }
        }
        Outcome {
            tally: self.shared.tally(),
            unexpected: std::mem::take(&mut *lock(&self.shared.unexpected)),
            sealed: self.shared.sealed.load(Ordering::SeqCst),
            kept: std::mem::take(&mut *lock(&self.shared.kept)),
        }
    }
}

impl Outcome {
    /// How many ciphertexts are still remembered: all that were handed out, up to [`KEPT_MAX`].
    pub fn kept(&self) -> usize {
        self.kept.len()
    }

    /// Decrypts every ciphertext that is remembered through `client`, and returns what does not open as it should.
    pub async fn open_all(&self, client: &Client) -> Vec<String> {
        let mut lanes = JoinSet::new();
        for lane in self.kept.chunks(self.kept.len().div_ceil(LANES).max(1)) {
            let (lane, client) = (lane.to_vec(), client.clone());
            lanes.spawn(async move {
                let mut failures = Vec::new();
                for kept in lane {
                    match client.decrypt(&kept.ciphertext, &context(kept.client)).await {
                        Ok(plaintext) if plaintext.expose() == message(kept.client, kept.round) => {}
                        Ok(_) => failures.push(format!("{}: another plaintext", kept.ciphertext)),
                        Err(error) => failures.push(format!("{}: {error}", kept.ciphertext)),
                    }
                }
                failures
            });
        }
        lanes.join_all().await.into_iter().flatten().collect()
    }
}

impl Shared {
    fn tally(&self) -> Tally {
        Tally {
            done: self.done.load(Ordering::SeqCst),
            again: self.again.load(Ordering::SeqCst),
            unexpected: self.wrong.load(Ordering::SeqCst),
        }
    }

    fn wrong(&self, what: String) {
        self.wrong.fetch_add(1, Ordering::SeqCst);
        let mut list = lock(&self.unexpected);
        if list.len() < UNEXPECTED_MAX {
            list.push(what);
        }
    }

    fn keep(&self, kept: Kept) {
        let number = self.sealed.fetch_add(1, Ordering::SeqCst);
        let mut all = lock(&self.kept);
        if all.len() < KEPT_MAX {
            all.push(kept);
        } else {
            all[place(number, KEPT_MAX)] = kept;
        }
    }

    /// Some ciphertext from earlier.
    fn older(&self, draw: u64) -> Option<Kept> {
        let all = lock(&self.kept);
        let draw = draw.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        (!all.is_empty()).then(|| all[place(draw, all.len())].clone())
    }
}

struct Worker {
    number: u64,
    /// A client that asks any node.
    of_all: Client,
    /// A client that asks one node alone.
    of_one: Client,
    options: Options,
    shared: Arc<Shared>,
}

impl Worker {
    async fn work(self) {
        let mut keys: Vec<KeyName> = Vec::new();
        let mut newest = None::<Instant>;
        let mut rotates = false;
        for round in 0u64.. {
            if self.shared.stop.load(Ordering::SeqCst) {
                return;
            }
            if newest.is_none_or(|newest| newest.elapsed() >= KEY_EVERY) {
                match keys.last().filter(|_| rotates) {
                    Some(key) => self.rotate(key).await,
                    None => keys.extend(self.make_key(keys.len()).await),
                }
                rotates = !rotates;
                newest = Some(Instant::now());
            }
            // The newest, which hardly any node has in memory yet, and then some older ones.
            if let Some(key) = keys.iter().rev().take(KEYS_IN_USE).cycle().nth(place(round, KEYS_IN_USE)) {
                self.seal_and_open(key, round).await;
            }
            if let Some(older) = self.shared.older(round ^ self.number << 48) {
                self.open(&older).await;
                if round.is_multiple_of(ROUNDS_PER_VISIT) {
                    self.visit(&older).await;
                }
            }
            sleep(self.options.rest).await;
        }
    }

    /// A new key. One that was made although its answer was lost is a conflict the second time.
    async fn make_key(&self, count: usize) -> Option<KeyName> {
        let name: KeyName = format!("load/{:x}/{}/{count}", self.shared.run, self.number).parse().expect("a key name");
        let mut attempts = 0;
        let made = self.persist(|| {
            attempts += 1;
            self.of_all.create_key(&name, BTreeMap::new())
        });
        match made.await {
            Err(error) if !(error.code() == Code::Conflict && attempts > 1) => {
                self.shared.wrong(format!("make {name}: {} ({error})", error.code()));
                None
            }
            _ => Some(name),
        }
    }

    /// A new version of a key. If the answer is lost it may become two.
    async fn rotate(&self, key: &KeyName) {
        if let Err(error) = self.persist(|| self.of_all.rotate_key(key, None)).await {
            self.shared.wrong(format!("rotate {key}: {} ({error})", error.code()));
        }
    }

    async fn seal_and_open(&self, key: &KeyName, round: u64) {
        let (context, message) = (context(self.number), message(self.number, round));
        match self.persist(|| self.of_all.encrypt(key, &context, &message)).await {
            Ok(ciphertext) => {
                let kept = Kept { client: self.number, round, ciphertext };
                self.shared.keep(kept.clone());
                self.open(&kept).await;
            }
            Err(error) => self.shared.wrong(format!("encrypt under {key}: {} ({error})", error.code())),
        }
    }

    async fn open(&self, kept: &Kept) {
        let context = context(kept.client);
        match self.persist(|| self.of_all.decrypt(&kept.ciphertext, &context)).await {
            Ok(plaintext) => self.compare(kept, plaintext.expose()),
            Err(error) => self.shared.wrong(format!("decrypt {}: {} ({error})", kept.ciphertext, error.code())),
        }
    }

    /// Decrypts at one node, which may be down or cut off, but not wrong.
    async fn visit(&self, kept: &Kept) {
        match self.of_one.decrypt(&kept.ciphertext, &context(kept.client)).await {
            Ok(plaintext) => self.compare(kept, plaintext.expose()),
            Err(error) if passes(error.code()) => {}
            Err(error) => self.shared.wrong(format!("decrypt {}: {} ({error})", kept.ciphertext, error.code())),
        }
    }

    fn compare(&self, kept: &Kept, plaintext: &[u8]) {
        if plaintext != message(kept.client, kept.round) {
            self.shared.wrong(format!("another plaintext for {}", kept.ciphertext));
        }
        self.shared.done.fetch_add(1, Ordering::SeqCst);
    }

    /// Tries until it works, fails for good, or patience ends.
    async fn persist<T, F>(&self, mut attempt: impl FnMut() -> F) -> Result<T, quorate_client::Error>
    where
        F: Future<Output = Result<T, quorate_client::Error>>,
    {
        let begin = Instant::now();
        loop {
            match attempt().await {
                Err(error) if passes(error.code()) && begin.elapsed() < self.options.patience => {
                    self.shared.again.fetch_add(1, Ordering::SeqCst);
                    sleep(PAUSE).await;
                }
                done => return done,
            }
        }
    }
}

/// What a dead or cut-off node, or an election, may make a client see. A wrong identity or a failing disk is never that.
fn passes(code: Code) -> bool {
    code.blame() == Blame::TryAgain || code == Code::Unreachable
}

fn message(client: u64, round: u64) -> Vec<u8> {
    format!("{client}/{round}/").into_bytes().repeat(1 + place(round.wrapping_mul(31), 200))
}

/// A number below `end`, which is not zero.
fn place(draw: u64, end: usize) -> usize {
    usize::try_from(draw % end as u64).expect("below a usize")
}

fn context(client: u64) -> Context {
    Context::new([("client", client.to_string())]).expect("a short context")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it holds this")
}

/// Loads the cluster in `directory` for so many seconds, and prints a line each second: `quorate-testnet load`.
///
/// # Errors
/// [`Error::Load`] with what should not have been, or if there is no cluster.
pub fn run(directory: &Directory, options: &Options, seconds: u64, out: &mut dyn Write) -> Result<(), Error> {
    directory.existing_manifest()?;
    let path = directory.client_file();
    let file = ClusterFile::read(&path).map_err(|error| Error::Directory { path, reason: error.to_string() })?;
    let path = directory.token();
    let text = std::fs::read_to_string(&path).map_err(Error::io(path.display().to_string()))?;
    let token = Token::parse(&text).map_err(|error| Error::Directory { path, reason: error.to_string() })?;
    let runtime = tokio::runtime::Runtime::new().map_err(Error::io("start a runtime"))?;
    runtime.block_on(async {
        let load = Load::start(&file, &token, options).await?;
        let mut before = 0;
        for second in 1..=seconds {
            sleep(Duration::from_secs(1)).await;
            let Tally { done, again, unexpected } = load.tally();
            let line = format!("{second:4} s  {:6}/s  {again} tried again  {unexpected} unexpected", done - before);
            before = done;
            writeln!(out, "{line}").map_err(Error::io("write"))?;
        }
        let outcome = load.stop().await;
        let client = Client::connect(file, token, quorate_client::Options::default()).await?;
        let unopened = outcome.open_all(&client).await;
        let done = outcome.tally.done;
        let last = format!("{done} done, {} ciphertexts opened once more in the end", outcome.kept() - unopened.len());
        writeln!(out, "{last}").map_err(Error::io("write"))?;
        match [outcome.unexpected, unopened].concat() {
            list if list.is_empty() => Ok(()),
            list => Err(Error::Load(list)),
        }
    })
}
