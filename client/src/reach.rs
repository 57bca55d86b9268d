//! Reaching a node: its addresses are dialled side by side, so one that is dead or slow costs a moment and not its whole
//! patience.
//!
//! A node may have several addresses, and a name may resolve to several. The next one is dialled when the last one has failed,
//! or [`STAGGER`] after it (as RFC 8305 does for the two families of addresses). The first that proves the key wins, and the
//! others are given up.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until, timeout};

use crate::identity::DialError;
use crate::resolve::{Lookup, lookup};

/// How long an attempt runs alone before the next one begins beside it.
pub const STAGGER: Duration = Duration::from_millis(100);
/// Addresses of one name that are dialled at most. Further ones are left out.
const ADDRESSES_OF_A_NAME_MAX: usize = 8;

/// An address that did not lead to the node, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreached {
    /// The address as it was given.
    pub address: String,
    /// What went wrong there.
    pub error: ReachError,
}

/// Why an address did not lead to the node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReachError {
    /// The name is not resolved: the reason of the resolver.
    #[error("{0}")]
    Name(String),
    /// The resolver knows no address of the name.
    #[error("the name has no address")]
    NoAddress,
    /// The name is not resolved in time.
    #[error("the name is not resolved in time")]
    Unresolved,
    /// The dialling failed.
    #[error(transparent)]
    Dial(#[from] DialError),
}

/// Dials `addresses` with `dial` until one attempt succeeds, for at most `deadline`.
///
/// # Errors
/// Why each address failed, in the order of `addresses`. Empty if there are none.
pub async fn reach<T, D: Future<Output = Result<T, DialError>>>(
    addresses: &[String],
    deadline: Duration,
    dial: impl Fn(SocketAddr) -> D,
) -> Result<T, Vec<Unreached>> {
    reach_by(addresses, lookup, deadline, dial).await
}

async fn reach_by<T, D: Future<Output = Result<T, DialError>>>(
    addresses: &[String],
    lookup: impl Fn(&str) -> Lookup,
    deadline: Duration,
    dial: impl Fn(SocketAddr) -> D,
) -> Result<T, Vec<Unreached>> {
    let (lookup, dial) = (&lookup, &dial);
    let attempts = addresses.iter().enumerate().map(|(position, address)| async move {
        let looked_up = lookup(address);
        let late =
            if looked_up.fresh.is_some() { ReachError::Unresolved } else { ReachError::Dial(DialError::Deadline) };
        let reached = timeout(deadline, reach_looked_up(looked_up, dial)).await.unwrap_or(Err(late));
        reached.map_err(|error| (position, Unreached { address: address.clone(), error }))
    });
    first_of(STAGGER, attempts.collect()).await.map_err(|mut unreached| {
        unreached.sort_by_key(|(position, _)| *position);
        unreached.into_iter().map(|(_, unreached)| unreached).collect()
    })
}

/// Dials what a text stands for: the addresses that are known, and beside them those that the name has now.
async fn reach_looked_up<T, D: Future<Output = Result<T, DialError>>>(
    Lookup { known, fresh }: Lookup,
    dial: &impl Fn(SocketAddr) -> D,
) -> Result<T, ReachError> {
    let all_of = |addresses: Vec<SocketAddr>| async move {
        let attempts = addresses.into_iter().take(ADDRESSES_OF_A_NAME_MAX).map(|address| async move {
            let reached = dial(address).await;
            reached.map_err(|error| Unreached { address: address.to_string(), error: error.into() })
        });
        let reached = first_of(STAGGER, attempts.collect()).await;
        reached.map_err(|unreached| most_important(unreached).map_or(ReachError::NoAddress, |failed| failed.error))
    };
    let Some(fresh) = fresh else { return all_of(known).await };
    let new = async {
        let addresses = fresh.addresses().await.map_err(ReachError::Name)?;
        all_of(addresses.into_iter().filter(|address| !known.contains(address)).collect()).await
    };
    let (old, new) = (std::pin::pin!(all_of(known.clone())), std::pin::pin!(new));
    // Both run at once. What the name stood for before is only a guess, so the error is that of what it stands for now.
    match futures::future::select(old, new).await {
        futures::future::Either::Left((Ok(reached), _)) | futures::future::Either::Right((Ok(reached), _)) => {
            Ok(reached)
        }
        futures::future::Either::Left((Err(old), new)) => new.await.map_err(|new| told(new, old)),
        futures::future::Either::Right((Err(new), old)) => old.await.map_err(|old| told(new, old)),
    }
}

/// The reason for a name: that of its addresses now, or, if it has no others, that of the addresses that it had.
fn told(now: ReachError, before: ReachError) -> ReachError {
    if now == ReachError::NoAddress { before } else { now }
}

/// The one to report: another identity needs an operator, and time does not cure it. Otherwise the last one.
pub fn most_important(mut unreached: Vec<Unreached>) -> Option<Unreached> {
    let is_other = |failed: &Unreached| matches!(failed.error, ReachError::Dial(DialError::WrongIdentity { .. }));
    match unreached.iter().position(is_other) {
        Some(position) => Some(unreached.swap_remove(position)),
        None => unreached.pop(),
    }
}

/// Runs attempts side by side until one succeeds. The next one begins when one has failed, or `stagger` after the last one began.
/// Those that are left then are dropped.
///
/// # Errors
/// The errors of all attempts, in the order in which they failed.
pub async fn first_of<T, E, A: Future<Output = Result<T, E>>>(
    stagger: Duration,
    attempts: Vec<A>,
) -> Result<T, Vec<E>> {
    let (mut attempts, mut running, mut errors) = (attempts.into_iter(), FuturesUnordered::new(), Vec::new());
    let mut waiting = attempts.next();
    let mut next_at = Instant::now();
    loop {
        if running.is_empty() || Instant::now() >= next_at {
            match waiting.take() {
                Some(attempt) => {
                    running.push(attempt);
                    waiting = attempts.next();
                    next_at = Instant::now() + stagger;
                }
                None if running.is_empty() => return Err(errors),
                None => {}
            }
        }
        tokio::select! {
            Some(ended) = running.next() => match ended {
                Ok(reached) => return Ok(reached),
                Err(error) => {
                    errors.push(error);
                    next_at = Instant::now();
                }
            },
            () = sleep_until(next_at), if waiting.is_some() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolve::Fresh;
    use parking_lot::Mutex;
    use std::future::pending;

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    /// Longer than any test takes.
    const LONG: Duration = Duration::from_secs(60);

    /// Two of four addresses never answer. Mutated: with an attempt that runs alone until it ends, the third is not reached.
    #[tokio::test]
    async fn a_dead_address_costs_a_moment() {
        let dialled = Mutex::new(Vec::new());
        let begin = Instant::now();
        let dial = |address: SocketAddr| {
            dialled.lock().push(address.port());
            async move { if address.port() == 3 { Ok(3) } else { pending().await } }
        };
        let addresses = texts(&["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:4"]);
        assert_eq!(reach(&addresses, LONG, dial).await, Ok(3));
        assert_eq!(*dialled.lock(), [1, 2, 3], "in order, and the fourth is not needed");
        assert!(begin.elapsed() >= STAGGER * 2, "an address that may answer is not hurried");
        assert!(begin.elapsed() < LONG, "none is waited for until its deadline");
    }

    #[tokio::test]
    async fn an_address_that_fails_costs_nothing_and_each_is_named() {
        let dial = |address: SocketAddr| async move {
            Err::<(), _>(match address.port() {
                1 => DialError::NotOffered,
                _ => DialError::Unreachable("no route".to_owned()),
            })
        };
        let unreached = reach(&texts(&["127.0.0.1:1", "[::1]:2"]), LONG, dial).await.expect_err("none is there");
        let each: Vec<_> = unreached.iter().map(|failed| format!("{}: {}", failed.address, failed.error)).collect();
        assert_eq!(
            each,
            ["127.0.0.1:1: the server does not serve this protocol now", "[::1]:2: unreachable: no route"]
        );
        assert_eq!(reach(&[], LONG, dial).await, Err(Vec::new()));
    }

    #[tokio::test]
    async fn what_does_not_answer_ends_with_the_deadline() {
        let dial = |_| pending::<Result<(), DialError>>();
        let addresses = texts(&["127.0.0.1:1", "127.0.0.1:2"]);
        let unreached = reach(&addresses, Duration::from_millis(50), dial).await.expect_err("none answers");
        assert!(unreached.iter().all(|failed| failed.error == ReachError::Dial(DialError::Deadline)), "{unreached:?}");
        assert_eq!(unreached.len(), 2);
    }

    /// A name server that is silent: the node is reached at the addresses that its name had before. A name that has moved is
    /// reached where it is now. Mutated: with the addresses of before only, or without them, one of the two is not.
    #[tokio::test]
    async fn a_name_is_dialled_where_it_was_and_where_it_is() {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let (_silent, told) = tokio::sync::watch::channel(None);
        let (_spoke, moved) = tokio::sync::watch::channel(Some(Ok(vec![address(2)])));
        let lookup = |text: &str| {
            let fresh = if text == "silent:1" { told.clone() } else { moved.clone() };
            Lookup { known: vec![address(1)], fresh: Some(Fresh::of(fresh)) }
        };
        let dial = |only: u16| {
            move |address: SocketAddr| async move { if address.port() == only { Ok(only) } else { pending().await } }
        };
        assert_eq!(reach_by(&texts(&["silent:1"]), lookup, LONG, dial(1)).await, Ok(1));
        assert_eq!(reach_by(&texts(&["moved:1"]), lookup, LONG, dial(2)).await, Ok(2));
        let late = reach_by(&texts(&["silent:1"]), lookup, Duration::from_millis(50), dial(2)).await;
        assert_eq!(late.expect_err("no address")[0].error, ReachError::Unresolved);
    }

    /// Mutated: the reason was empty.
    #[tokio::test]
    async fn a_name_without_an_address_says_so() {
        let (_spoke, nothing) = tokio::sync::watch::channel(Some(Ok(Vec::new())));
        let lookup = |_: &str| Lookup { known: Vec::new(), fresh: Some(Fresh::of(nothing.clone())) };
        let dial = |_| pending::<Result<(), DialError>>();
        let unreached = reach_by(&texts(&["n1:1"]), lookup, LONG, dial).await.expect_err("nothing to dial");
        assert_eq!(unreached[0].error.to_string(), "the name has no address");
    }
}
