//! Marks the work for one request of a peer, so that a panic in it can be told from a panic elsewhere.
//!
//! A peer can cause the first: its request meets a fault in the program. It costs that request; the peer is told that it failed,
//! and process and connection go on. After a panic elsewhere something that the process needs has ended. A panic hook asks
//! [`is_answering`] which it is.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;

thread_local! {
    static ANSWERING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is at work for one request.
pub fn is_answering() -> bool {
    ANSWERING.get()
}

/// Does the work for one request.
pub fn answering<T>(work: impl FnOnce() -> T) -> T {
    let _before = Before(ANSWERING.replace(true));
    work()
}

/// As [`answering`], for work that waits.
pub async fn answering_async<T>(work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    poll_fn(|context| answering(|| work.as_mut().poll(context))).await
}

/// What the mark was before. It is put back also when the work panics.
struct Before(bool);

impl Drop for Before {
    fn drop(&mut self) {
        ANSWERING.set(self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    /// Mutated: without `Before`, the thread is marked for ever.
    #[tokio::test]
    async fn only_the_work_for_a_request_is_marked() {
        let work = async {
            let before = is_answering();
            tokio::task::yield_now().await;
            (before, is_answering())
        };
        let mut work = pin!(answering_async(work));
        assert!(futures::poll!(work.as_mut()).is_pending() && !is_answering(), "not while it waits");
        assert_eq!(work.await, (true, true));
        assert!(catch_unwind(|| answering(|| panic!("of this test"))).is_err());
        assert!(!is_answering(), "the mark ends with a panic, too");
    }
}
