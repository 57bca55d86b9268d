//! Asking for a change: many nodes may be dialled at once, and one at a time is asked.
//!
//! A node that is dead or hangs says nothing. So the client finds out which node is there *before* it sends a change to one: it
//! dials the next node while the last one is slow, and each kept connection that was quiet for a moment must answer an echo.
//! The first node that is there gets the change. While that node may still answer, no other one does.

use std::sync::atomic::Ordering;

use futures::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep_until};
use zeroize::Zeroizing;

use super::dial::Target;
use super::{Client, answer_of, ask_once, unanswered};
use crate::conn::{CallError, Conn};
use crate::error::{Code, NodeFailure};
use crate::wire::{self, Answer, Request, WireError};

/// A node that is there.
struct There {
    number: usize,
    conn: Conn,
}

impl Client {
    /// Asks every node once for a change, one at a time. `None` if all nodes failed in ways that may pass.
    pub(super) async fn round_of_change(
        &self,
        body: &[u8],
        until: Instant,
        failures: &mut Vec<NodeFailure>,
    ) -> Option<Answer> {
        let targets = self.0.fleet.targets();
        let echo = Zeroizing::new(wire::encode(&self.envelope(Request::Echo(Vec::new()))));
        let find = |number: usize| {
            let echo = &echo;
            async move { (number, self.find(&targets[number], echo, until).await) }
        };
        let ask = |There { number, conn }: There| async move { (number, ask_once(&conn, body).await, conn) };
        let mut order = self.order().into_iter();
        let (mut finding, mut there, mut asked) = (FuturesUnordered::new(), Vec::new(), FuturesUnordered::new());
        let mut slow = Instant::now();
        loop {
            if asked.is_empty() && !there.is_empty() {
                asked.push(ask(there.remove(0)));
            }
            if asked.is_empty() && (finding.is_empty() || Instant::now() >= slow) {
                match order.next() {
                    Some(number) => {
                        finding.push(find(number));
                        slow = Instant::now() + self.0.options.hedge;
                    }
                    None if finding.is_empty() => return None,
                    None => {}
                }
            }
            let more = asked.is_empty() && order.len() > 0;
            tokio::select! {
                Some((number, answer, conn)) = asked.next() => match answer {
                    Ok(answer) => match answer_of(answer) {
                        Ok(response) => {
                            self.0.preferred.store(number, Ordering::Relaxed);
                            targets[number].note_heard();
                            return Some(Ok(response));
                        }
                        Err(error) if !error.code.retryable() => return Some(Err(error)),
                        Err(error) => {
                            self.record_failure(number, error, failures);
                            slow = Instant::now();
                        }
                    },
                    Err(error) => {
                        if matches!(error, CallError::Closed(_)) {
                            targets[number].forget(&conn);
                        }
                        let error = unanswered(error);
                        if !error.code.retryable() {
                            return Some(Err(error));
                        }
                        self.record_failure(number, error, failures);
                        slow = Instant::now();
                    }
                },
                Some((number, found)) = finding.next() => match found {
                    Ok(conn) => there.push(There { number, conn }),
                    Err(error) if !error.code.retryable() => return Some(Err(error)),
                    Err(error) => {
                        self.record_failure(number, error, failures);
                        slow = Instant::now();
                    }
                },
                () = sleep_until(slow), if more => {}
                () = sleep_until(until) => return Some(Err(WireError::new(Code::Deadline, "no answer in time"))),
            }
        }
    }

    /// A connection to a node that is there now. Any answer to the echo shows that, a refusal as well: a node without a lease can
    /// still be sealed, for example.
    async fn find(&self, target: &Target, echo: &[u8], until: Instant) -> Result<Conn, WireError> {
        loop {
            let (conn, kept) = target.connection(&self.0.fleet, until).await?;
            if !kept || target.was_heard_within(self.0.options.hedge) {
                return Ok(conn);
            }
            match ask_once(&conn, echo).await {
                Ok(_) => {
                    target.note_heard();
                    return Ok(conn);
                }
                Err(CallError::Closed(_)) => target.forget(&conn),
                Err(error) => return Err(unanswered(error)),
            }
        }
    }
}
