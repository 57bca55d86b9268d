//! Work that may wait: shares that are opened, checked and dealt by the lot while the members change.
//!
//! It has a thread of its own that gives way to all others of the machine, so that clients are answered meanwhile and Raft is
//! heard. On Linux the nice value of setpriority(2) is that of one thread, and anybody may raise it.

use std::future::pending;
use std::panic::resume_unwind;

use rustix::process::setpriority_process;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tracing::debug;

/// Where the two compete, a thread with this nice value gets about a tenth of what an ordinary one does. With the greatest, 19,
/// a lock that is taken here for a moment could be held for long.
const NICE: i32 = 10;

/// The thread that such work is done on.
pub struct Background(Option<Runtime>);

impl Background {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system gives none.
    pub fn start() -> std::io::Result<Self> {
        let give_way = || {
            // At an ordinary priority the same work is done, and clients wait longer.
            let _ = setpriority_process(None, NICE).inspect_err(|error| debug!(%error, "no low priority"));
        };
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(1).thread_name("background").on_thread_start(give_way).enable_time();
        Ok(Self(Some(builder.build()?)))
    }

    /// Does `work` there, and panics if that does; it ends when nobody waits for it any more.
    pub async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        let mut works = JoinSet::new();
        if let Some(runtime) = &self.0 {
            works.spawn_on(work, runtime.handle());
        }
        match works.join_next().await {
            Some(Ok(done)) => done,
            Some(Err(failed)) if failed.is_panic() => resume_unwind(failed.into_panic()),
            // The node has stopped.
            _ => pending().await,
        }
    }
}

impl Drop for Background {
    /// A runtime that is dropped where others run would wait for its work.
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    use rustix::process::getpriority_process;
    use tokio::sync::oneshot;
    use tokio::time::timeout;

    fn nice() -> i32 {
        getpriority_process(None).expect("the priority of this thread")
    }

    #[tokio::test]
    async fn work_there_gives_way_and_nothing_else_does() {
        let background = Background::start().expect("a thread");
        let here = nice();
        assert_eq!(background.run(async { nice() }).await, NICE);
        assert_eq!(nice(), here);
        assert!(here < NICE, "whoever runs the tests gives way, too");
    }

    /// An asker that goes away must not leave work behind. Mutated: a task of its own goes on.
    #[tokio::test]
    async fn work_that_nobody_waits_for_ends() {
        struct Told(Option<oneshot::Sender<()>>);
        impl Drop for Told {
            fn drop(&mut self) {
                let _ = self.0.take().map(|ended| ended.send(()));
            }
        }
        let background = Arc::new(Background::start().expect("a thread"));
        let asked = Arc::clone(&background);
        let ((begins, begun), (ends, ended)) = (oneshot::channel(), oneshot::channel());
        let asker = tokio::spawn(async move {
            let told = Told(Some(ends));
            let work = async move {
                let _told = told;
                let _ = begins.send(());
                pending::<()>().await;
            };
            asked.run(work).await;
        });
        begun.await.expect("the work begins");
        asker.abort();
        timeout(Duration::from_secs(30), ended).await.expect("in time").expect("it ends");
        drop(background);
    }

    #[tokio::test]
    #[should_panic(expected = "a share that is none")]
    async fn a_panic_there_is_one_here() {
        let background = Background::start().expect("a thread");
        background.run(async { panic!("a share that is none") }).await
    }
}
