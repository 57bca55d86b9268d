//! The thread that makes appends durable: one sync for many.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use openraft::storage::IOFlushed;
use parking_lot::{Condvar, Mutex};

use super::Flushed;
use crate::live::place::LogPlace;
use crate::stored::disk::Disk;
use crate::stored::fatal::Fatal;
use crate::types::Types;

/// The one thread that syncs for appends.
pub(crate) struct Flusher {
    queue: Mutex<Queue>,
    arrived: Condvar,
    flushed: Mutex<Flushed>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Queue {
    /// openraft bounds its length: it waits for callbacks before it accepts more entries than its channels hold.
    waiting: VecDeque<Append>,
    closed: bool,
}

struct Append {
    last: Option<LogPlace>,
    /// The number of truncations when it was appended. If it is higher now, `last` may be gone.
    truncations: u64,
    callback: IOFlushed<Types>,
}

impl Flusher {
    pub(super) fn start(disk: Arc<Disk>, flushed: Flushed, fatal: Fatal) -> Arc<Self> {
        let flusher = Arc::new(Self {
            queue: Mutex::default(),
            arrived: Condvar::new(),
            flushed: Mutex::new(flushed),
            thread: Mutex::default(),
        });
        let worker = flusher.clone();
        let thread = std::thread::Builder::new().name("log-flusher".to_owned());
        let thread = thread.spawn(move || worker.run(&disk, &fatal)).expect("a thread can be started at boot");
        *flusher.thread.lock() = Some(thread);
        flusher
    }

    fn run(&self, disk: &Disk, fatal: &Fatal) {
        while let Some(appends) = self.wait() {
            let synced = fatal.guard(disk.sync());
            if synced.is_ok() {
                let mut flushed = self.flushed.lock();
                let now = flushed.truncations;
                // Entries come in order, so the last append since the newest truncation has the newest entry.
                let mut newest =
                    appends.iter().filter(|append| append.truncations == now).filter_map(|append| append.last);
                flushed.last_log = newest.next_back().or(flushed.last_log);
            }
            for append in appends {
                append.callback.io_completed(synced.clone().map_err(io::Error::from));
            }
        }
    }

    /// All appends that wait, or `None` when the flusher is closed and none waits.
    fn wait(&self) -> Option<VecDeque<Append>> {
        let mut queue = self.queue.lock();
        while queue.waiting.is_empty() {
            if queue.closed {
                return None;
            }
            self.arrived.wait(&mut queue);
        }
        Some(std::mem::take(&mut queue.waiting))
    }

    pub(super) fn push(&self, last: Option<LogPlace>, callback: IOFlushed<Types>) {
        let truncations = self.flushed().truncations;
        let mut queue = self.queue.lock();
        if queue.closed {
            drop(queue);
            return callback.io_completed(Err(io::Error::other("the log is closed")));
        }
        queue.waiting.push_back(Append { last, truncations, callback });
        self.arrived.notify_one();
    }

    /// What is durable now.
    pub(crate) fn flushed(&self) -> Flushed {
        *self.flushed.lock()
    }

    pub(super) fn with_flushed(&self, change: impl FnOnce(&mut Flushed)) {
        change(&mut self.flushed.lock());
    }

    /// Syncs the appends that wait and joins the thread. If the thread still held the database at the end of the process,
    /// RocksDB's destructors would abort the process.
    pub(crate) fn close(&self) {
        self.queue.lock().closed = true;
        self.arrived.notify_one();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != std::thread::current().id()) {
            // A panic of the flusher was reported when it happened; there is nothing left to sync with.
            drop(thread.join());
        }
    }
}
