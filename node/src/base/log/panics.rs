//! What a panic does: it is a line in the log, and either costs one request or ends the process.
//!
//! A task that has died does nothing any more, and what it held may be half changed. So the process ends with the reason; a start
//! is unattended, and the other nodes serve meanwhile. The exception is the work for one request that came from
//! outside ([`is_answering`]): one client must not be able to end every node that it asks. There the request fails, and an alarm
//! is raised.

use std::panic::PanicHookInfo;
use std::time::Duration;

use quorate_client::conn::is_answering;
use tokio::sync::watch;
use tracing::error;

use super::{LAST_LINES, Log, TARGET};

/// How long an orderly stop may take after a panic. Then the process is aborted.
const ORDERLY_STOP_MAX: Duration = Duration::from_secs(5);

/// The panics of this process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Panics {
    /// How many cost a request each, and what the newest one was.
    pub requests: u64,
    pub newest: Option<String>,
    /// The first one that ends the process.
    pub fatal: Option<String>,
}

/// Reports each panic of the process to `log` instead of standard error, which could be stuck.
pub(super) fn report_to(log: &Log) {
    let log = log.clone();
    std::panic::set_hook(Box::new(move |panic| {
        let reason = describe(panic);
        error!(target: TARGET, "{reason}");
        let last_words = format!("quorated: {reason}; the orderly stop took too long\n");
        if note(&log.panics(), reason, is_answering()) {
            end_anyway(log.clone(), last_words);
            // A runtime aborts the process if the code that runs its tasks panics: what is not written by then is lost.
            log.flush(LAST_LINES);
        }
    }));
}

fn describe(panic: &PanicHookInfo<'_>) -> String {
    let place = panic.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    format!("a panic at {place}: {}", panic.payload_as_str().unwrap_or("no reason given"))
}

/// Notes a panic. Returns whether it is the first that ends the process.
fn note(panics: &watch::Sender<Panics>, reason: String, is_answering: bool) -> bool {
    let mut is_first = false;
    panics.send_modify(|panics| {
        if is_answering {
            (panics.requests, panics.newest) = (panics.requests + 1, Some(reason));
        } else if panics.fatal.is_none() {
            (is_first, panics.fatal) = (true, Some(reason));
        }
    });
    is_first
}

/// Aborts the process if it has not stopped by itself.
fn end_anyway(log: Log, last_words: String) {
    let end = move || {
        std::thread::sleep(ORDERLY_STOP_MAX);
        log.line(last_words.as_bytes());
        log.flush(LAST_LINES);
        std::process::abort();
    };
    // Without a thread only the orderly stop is left.
    drop(std::thread::Builder::new().name("end".to_owned()).spawn(end));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutated: if a panic in a request is noted as one that ends the process, a client ends every node with one request.
    #[test]
    fn a_panic_costs_a_request_or_ends_the_process() {
        let panics = watch::Sender::new(Panics::default());
        assert!(!note(&panics, "one".to_owned(), true) && !note(&panics, "two".to_owned(), true));
        let expected = Panics { requests: 2, newest: Some("two".to_owned()), fatal: None };
        assert_eq!(*panics.borrow(), expected);
        assert!(note(&panics, "three".to_owned(), false));
        assert!(!note(&panics, "four".to_owned(), false), "the first one is the reason");
        assert_eq!(*panics.borrow(), Panics { fatal: Some("three".to_owned()), ..expected });
    }
}
