//! Threads of their own for the doors: what strangers and clients ask for.
//!
//! Scenario: a thousand clients connect at once. Their handshakes and requests fill the queue of the threads that run them, and
//! a request that comes later waits until all of them had their turn. A heartbeat that waits there is late, and a lease that waits there
//! ends. So sessions, leases and Raft run on other threads than clients. Both get their share of the processor from the kernel,
//! which runs a thread with little to do almost at once.
//!
//! These threads read the socket. So a client's request stays on them from its datagram to its answer, and never changes
//! threads.

use std::future::Future;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

/// The threads of the doors.
pub struct Doors(Option<Runtime>);

impl Doors {
    /// As many threads as there are processors.
    ///
    /// # Errors
    /// If the system cannot start a thread.
    pub fn start() -> std::io::Result<Self> {
        Ok(Self(Some(Builder::new_multi_thread().thread_name("doors").enable_all().build()?)))
    }

    /// Runs `make`. A socket that is opened meanwhile is read by these threads.
    pub fn within<T>(&self, make: impl FnOnce() -> T) -> T {
        let _entered = self.0.as_ref().map(Runtime::enter);
        make()
    }

    /// Runs `work` on these threads. What it spawns runs there, too.
    pub fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.within(|| tokio::spawn(work))
    }
}

impl Drop for Doors {
    /// Shuts down in the background: a runtime that is dropped inside another runtime would wait for its work.
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutated: work that is spawned on the threads of its caller waits behind everything there.
    #[tokio::test]
    async fn work_at_the_doors_runs_on_their_threads() {
        let doors = Doors::start().expect("threads");
        let name = || std::thread::current().name().map(str::to_owned);
        let spawns = async move { (name(), tokio::spawn(async move { name() }).await.expect("no panic")) };
        let (here, spawned) = doors.spawn(spawns).await.expect("no panic");
        assert_eq!((here.as_deref(), spawned.as_deref()), (Some("doors"), Some("doors")));
        assert_ne!(name().as_deref(), Some("doors"), "the control");
    }
}
