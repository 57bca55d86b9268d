//! A thread of low priority for work that may wait.
//!
//! While the members change, a node opens, checks and deals many shares. This work runs on its own thread with a raised nice
//! value, so that clients and Raft are still served in time. On Linux setpriority(2) sets the nice value of a single thread,
//! and every user may raise it.

use std::future::pending;
use std::panic::resume_unwind;

use rustix::process::setpriority_process;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tracing::debug;

/// If both want the processor, a thread with this nice value gets about a tenth of the time of an ordinary one. The greatest
/// value is 19: with it, this thread could hold a lock for a long time that it needs only for a moment.
const NICE: i32 = 10;

/// The thread of low priority.
pub struct Background(Option<Runtime>);

impl Background {
    /// # Errors
    /// If the system cannot start a thread.
    pub fn start() -> std::io::Result<Self> {
        let lower_priority = || {
            // If this fails, the work is still done, and clients wait longer.
            let _ = setpriority_process(None, NICE).inspect_err(|error| debug!(%error, "cannot lower the priority"));
        };
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(1).thread_name("background").on_thread_start(lower_priority).enable_time();
        Ok(Self(Some(builder.build()?)))
    }

    /// Runs `work` on the thread. If `work` panics, this panics too. If the caller drops this future, `work` ends.
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
    use std::sync::Arc;
    use std::time::Duration;

    use rustix::process::getpriority_process;
    use tokio::sync::oneshot;
    use tokio::time::timeout;

    fn nice() -> i32 {
        getpriority_process(None).expect("the priority of this thread")
    }

    #[tokio::test]
    async fn only_background_work_has_a_low_priority() {
        let background = Background::start().expect("a thread");
        let here = nice();
        assert_eq!(background.run(async { nice() }).await, NICE);
        assert_eq!(nice(), here);
        assert!(here < NICE, "the tests themselves run at a low priority");
    }

    /// If the caller is gone, its work ends. Mutated: if the work is a task of its own, it goes on.
    #[tokio::test]
    async fn work_ends_when_its_caller_is_gone() {
        struct SendsWhenDropped(Option<oneshot::Sender<()>>);
        impl Drop for SendsWhenDropped {
            fn drop(&mut self) {
                let _ = self.0.take().map(|ended| ended.send(()));
            }
        }
        let background = Arc::new(Background::start().expect("a thread"));
        let runs = Arc::clone(&background);
        let ((begins, begun), (ends, ended)) = (oneshot::channel(), oneshot::channel());
        let caller = tokio::spawn(async move {
            let at_end = SendsWhenDropped(Some(ends));
            let work = async move {
                let _at_end = at_end;
                let _ = begins.send(());
                pending::<()>().await;
            };
            runs.run(work).await;
        });
        begun.await.expect("the work begins");
        caller.abort();
        timeout(Duration::from_secs(30), ended).await.expect("in time").expect("it ends");
        drop(background);
    }

    #[tokio::test]
    #[should_panic(expected = "a share that is none")]
    async fn a_panic_of_the_work_reaches_the_caller() {
        let background = Background::start().expect("a thread");
        background.run(async { panic!("a share that is none") }).await
    }
}
