//! Load: clients that never stop while nodes die and return.
//!
//! Each client makes a key or rotates one now and then, encrypts, decrypts what it just got and something older, and
//! compares. As long as a quorum is up, every error passes within its [`Options::patience`]. All other errors are collected,
//! and in the end the list must be empty. So clients test the promise that clients notice nothing when a node dies.

mod run;
mod worker;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quorate_client::{Client, ClusterFile, Context, Credential};
use tokio::task::{JoinHandle, JoinSet};

pub use self::run::run;
use self::worker::Worker;
use crate::base::error::Error;

/// Ciphertexts that are remembered; the oldest is forgotten for one more.
pub const KEPT_MAX: usize = 20_000;
/// Unexpected errors that are written down; more are only counted.
const UNEXPECTED_MAX: usize = 1_000;
/// How long a visit lasts at a node that is dead.
const VISIT: Duration = Duration::from_millis(500);
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
    pub async fn start(file: &ClusterFile, token: &Credential, options: &Options) -> Result<Self, Error> {
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
            let of_all = Client::connect(file.clone(), token, quorate_client::Options::default()).await?;
            let of_one = Client::connect(file.clone(), token, of_one).await?;
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
