//! One client: what it asks for in each round, and which answers it takes for wrong.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use quorate_client::{Blame, Client, Code, KeyName};
use tokio::time::sleep;

use super::{Kept, Options, Shared, context, message, place};

/// How often a client makes a key, or a new version of one: by turns.
const KEY_EVERY: Duration = Duration::from_secs(2);
/// How many of its keys a client goes on encrypting under.
const KEYS_IN_USE: usize = 4;
/// Every so many rounds a client asks one node alone, whichever nodes are well.
const ROUNDS_PER_VISIT: u64 = 8;
/// Before what failed is tried again.
const PAUSE: Duration = Duration::from_millis(50);

/// One client at work.
pub(super) struct Worker {
    pub(super) number: u64,
    /// A client that asks any node.
    pub(super) of_all: Client,
    /// A client that asks one node alone.
    pub(super) of_one: Client,
    pub(super) options: Options,
    pub(super) shared: Arc<Shared>,
}

impl Worker {
    /// Works until the load is stopped.
    pub(super) async fn work(self) {
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
