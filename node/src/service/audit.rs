//! One line for each request that was decided: who asked for what, on which resource, and how it ended.
//!
//! The lines go to the log under the target `quorate::audit` at level `debug`, so they cost nothing unless someone asks for
//! them (`QUORATE_LOG=info,quorate::audit=debug`). Like every line of the log they name a key by its uid: a person who has
//! only the logs must not learn names of keys. They hold no plaintext, ciphertext, seed of a credential or invitation either.

use std::net::SocketAddr;

use quorate_client::wire::WireError;
use quorate_raft::Replica;
use quorate_raft::state::State;
use quorate_shares::ids::KeyName;
use tracing::{Level, debug, enabled};

use crate::messages::caller::{Caller, Door};
use crate::service::Resource;
use crate::service::handlers::crypto;

const TARGET: &str = "quorate::audit";

/// The line of one request, until it is written; empty if audit lines are off. A request that is dropped before its end, because
/// the client went away, is written as `cancelled`: what it began may go on.
pub(super) struct Line(Option<Open>);

struct Open {
    caller: String,
    name: &'static str,
    on: String,
    /// A key that did not exist when the request came, and may exist when it ends.
    unknown_key: Option<(KeyName, Replica)>,
}

impl Line {
    /// Notes the request before it is carried out.
    pub(super) fn of(caller: &Caller, name: &'static str, on: &Resource<'_>, replica: Option<&Replica>) -> Self {
        Self(enabled!(target: TARGET, Level::DEBUG).then(|| {
            let text =
                replica.map_or_else(|| describe(on, None), |replica| replica.read(|state| describe(on, Some(state))));
            let unknown_key = match (on, replica) {
                (Resource::Key(name), Some(replica)) if text == UNKNOWN_KEY => Some(((*name).clone(), replica.clone())),
                _ => None,
            };
            Open { caller: caller.to_string(), name, on: text, unknown_key }
        }))
    }

    /// Writes the line, now that the request has ended.
    pub(super) fn write<T>(mut self, ended: &Result<T, WireError>) {
        if let Some(open) = self.0.take() {
            open.write(ended.as_ref().map_or_else(|error| error.code.as_str(), |_| "ok"));
        }
    }

    /// Writes the line of a request that another member forwarded, and that this node did not begin, for example because it
    /// leads no more.
    pub(super) fn write_refused(mut self) {
        if let Some(open) = self.0.take() {
            open.write("refused");
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(open) = self.0.take() {
            open.write("cancelled");
        }
    }
}

impl Open {
    fn write(self, outcome: &str) {
        let Self { caller, name, on, unknown_key } = self;
        let made = unknown_key.map(|(key, replica)| replica.read(|state| describe(&Resource::Key(&key), Some(state))));
        debug!(target: TARGET, %caller, request = %format!("{name} {}", made.unwrap_or(on)), outcome, "asked");
    }
}

/// Writes the line of a request whose key this cluster does not know.
pub(super) fn write_denied(door: Door, remote: SocketAddr, name: &str) {
    debug!(target: TARGET, caller = %format!("unknown key from {remote} at the {door} door"), request = name, outcome = "denied", "asked");
}

const UNKNOWN_KEY: &str = "no known key";

/// A resource, as the log names it.
fn describe(on: &Resource<'_>, state: Option<&State>) -> String {
    let key = |name| match state.and_then(|state| state.key_by_name(name)) {
        Some(key) => format!("key {}", key.uid),
        None => UNKNOWN_KEY.to_owned(),
    };
    match on {
        Resource::Cluster => "cluster".to_owned(),
        Resource::Keys => "keys".to_owned(),
        Resource::Key(name) => key(name),
        Resource::KeyOf(ciphertext) => match crypto::parse(ciphertext) {
            Ok(ciphertext) => {
                let header = ciphertext.header();
                format!("{} version {}", key(&header.name), header.version)
            }
            Err(_) => UNKNOWN_KEY.to_owned(),
        },
        Resource::Nodes => "nodes".to_owned(),
        Resource::Node(name) => format!("node {name}"),
        Resource::NodesNamed(names) => {
            let names: Vec<_> = names.iter().map(ToString::to_string).collect();
            format!("nodes {}", names.join(" "))
        }
        Resource::Member(node) => format!("node {node}"),
        Resource::ThisNode => "this node".to_owned(),
        Resource::Operation(epoch) => format!("operation {epoch}"),
        Resource::Alarms => "alarms".to_owned(),
    }
}

/// A log that a test can read.
#[cfg(test)]
pub(super) mod testing {
    use std::io;
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tracing::{Level, Subscriber};

    use super::TARGET;

    #[derive(Clone, Default)]
    pub(in crate::service) struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Written {
        /// The audit lines so far.
        pub(in crate::service) fn lines(&self) -> Vec<String> {
            let text = String::from_utf8(self.0.lock().clone()).expect("text");
            text.lines().filter(|line| line.contains(TARGET)).map(str::to_owned).collect()
        }

        /// Writes everything from the level `debug` on.
        pub(in crate::service) fn subscriber(&self) -> impl Subscriber + Send + Sync + use<> {
            let sink = self.clone();
            tracing_subscriber::fmt()
                .with_max_level(Level::DEBUG)
                .with_ansi(false)
                .with_writer(move || sink.clone())
                .finish()
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing::subscriber::with_default;

    use super::testing::Written;
    use super::*;

    /// A client that goes away drops its request. Mutated: without a line for that, a revocation can begin and no log says who
    /// asked for it.
    #[test]
    fn a_request_that_is_dropped_leaves_a_line() {
        let (written, caller) = (Written::default(), Caller::machine_owner(7));
        with_default(written.subscriber(), || {
            Line::of(&caller, "node.seal", &Resource::ThisNode, None).write(&Ok::<(), WireError>(()));
            drop(Line::of(&caller, "node.admit", &Resource::Cluster, None));
        });
        let [ended, dropped] = &written.lines()[..] else { panic!("one line each: {:?}", written.lines()) };
        assert!(ended.contains("request=node.seal this node outcome=\"ok\""), "the control: {ended}");
        assert!(
            dropped.contains("from user 7") && dropped.contains("node.admit cluster outcome=\"cancelled\""),
            "{dropped}"
        );
    }
}
