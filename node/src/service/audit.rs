//! One line for each request that was decided: who asked for what, on which resource, and how it ended.
//!
//! The lines go to the log under the target `quorate::audit` at level `debug`, so they cost nothing unless someone asks for
//! them (`QUORATE_LOG=info,quorate::audit=debug`). Like every line of the log they name a key by its uid: a person who has
//! only the logs must not learn names of keys. They hold no plaintext, ciphertext, token or invitation either.

use quorate_client::wire::WireError;
use quorate_raft::Replica;
use quorate_raft::state::State;
use tracing::{Level, debug, enabled};

use crate::messages::caller::Caller;
use crate::service::client::Resource;
use crate::service::crypto;

const TARGET: &str = "quorate::audit";

/// What the line will say of a request; `None` if audit lines are off.
pub(super) struct Line(Option<String>);

impl Line {
    /// Notes the request before it is carried out.
    pub(super) fn of(name: &str, on: &Resource<'_>, replica: Option<&Replica>) -> Self {
        Self(enabled!(target: TARGET, Level::DEBUG).then(|| {
            let on =
                replica.map_or_else(|| describe(on, None), |replica| replica.read(|state| describe(on, Some(state))));
            format!("{} {on}", name)
        }))
    }

    /// Writes the line, now that the request has ended.
    pub(super) fn write<T>(self, caller: &Caller, ended: &Result<T, WireError>) {
        let Some(request) = self.0 else { return };
        let outcome = ended.as_ref().map_or_else(|error| error.code.as_str(), |_| "ok");
        debug!(target: TARGET, %caller, %request, outcome, "asked");
    }
}

/// A resource, as the log names it.
fn describe(on: &Resource<'_>, state: Option<&State>) -> String {
    let key = |name| match state.and_then(|state| state.key_by_name(name)) {
        Some(key) => format!("key {}", key.uid),
        None => "no known key".to_owned(),
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
            Err(_) => "no known key".to_owned(),
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
