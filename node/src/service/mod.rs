//! What may be asked of a node, through any door.
//!
//! ```text
//! door (serve/) ─► who asks: Caller ─► what it is: row ─► may it, can it be done here ─► handler ─► answer
//!                                                              │
//!                                                              └─► the leader, or the node that is meant, with the Caller
//! ```
//!
//! Each vocabulary has one file: what clients ask ([`client`]), what members ask each other ([`member`]), what they forward for
//! clients (`forwarded`), what the owner of the machine asks ([`machine`]), and what a node may ask that is none of these
//! ([`stranger`]). All but the last have a table without a catch-all arm: an operation that is added is one variant, one row and
//! one function, and the compiler names each place that lacks it.
//!
//! The handlers for clients stand by topic in [`handlers`].

pub mod caller;

pub mod client;
pub mod machine;
pub mod member;
pub mod stranger;

pub mod handlers;

mod audit;
mod forward;
mod forwarded;

use std::sync::Arc;

use quorate_client::error::Code;
use quorate_client::wire::WireError;
use quorate_raft::Replica;
use quorate_raft::state::State;
use quorate_shares::ids::{Epoch, KeyName, NodeId, NodeName};

use crate::base::phase::{Phase, RequestClass, answers};
use crate::lease::renewal;
use crate::messages::caller::Caller;
use crate::node::Node;

/// What every handler of a client's request is given.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    pub node: &'a Arc<Node>,
    pub replica: &'a Replica,
    pub caller: &'a Caller,
}

/// One row of the table: what a request is, before anything is done for it.
pub struct RequestRow<'a> {
    /// The name of the operation, as rules and audit lines use it.
    pub name: &'static str,
    pub needs: Needs,
    pub on: Resource<'a>,
}

/// What a node must have to answer a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// A phase that answers about the cluster, and the replicated state, however old it is.
    State,
    /// A lease, before the work and after it.
    Lease,
    /// A lease, and a leader that is known: it does the work, and this node forwards the request if it does not lead.
    LeaseAndLeader,
}

/// What a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource<'a> {
    Cluster,
    Keys,
    Key(&'a KeyName),
    /// The key that a ciphertext names.
    KeyOf(&'a [u8]),
    Nodes,
    Node(&'a NodeName),
    NodesNamed(&'a [NodeName]),
    Member(NodeId),
    ThisNode,
    Operation(Epoch),
    Alarms,
}

impl Call<'_> {
    /// Looks something up in the replicated state. If it is not there, this node catches up with the leader and looks once more.
    /// Only then it counts as `missing`.
    async fn find<T>(
        self,
        look: impl Fn(&State) -> Option<T>,
        missing: impl FnOnce() -> WireError,
    ) -> Result<T, WireError> {
        let Call { node, replica, .. } = self;
        if let Some(found) = replica.read(&look) {
            return Ok(found);
        }
        if let Err(reason) = Box::pin(renewal::catch_up(node, replica)).await {
            let message = format!("not found at {}, which cannot catch up: {reason}", node.name());
            return Err(WireError::new(Code::NoQuorum, message).hint("try again in a moment"));
        }
        replica.read(&look).ok_or_else(missing)
    }
}

/// Until when this node may serve (`boot_ms`), or the reason why it may not.
fn leased_until(node: &Node) -> Result<u64, WireError> {
    let until_ms = node.serving.lease.until_ms().filter(|_| answers(node.phase(), RequestClass::Work));
    until_ms.ok_or_else(|| not_serving(node))
}

fn not_serving(node: &Node) -> WireError {
    match node.phase() {
        Phase::Open | Phase::Serving => {
            let reason = node.serving.trouble.lock().as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
            WireError::new(Code::NoQuorum, format!("{} has no lease from a quorum{reason}", node.name()))
                .hint("it serves again as soon as a quorum is up; `quorate status` shows who is missing")
        }
        phase => WireError::new(Code::NotServing, format!("{} is {phase}", node.name())).hint("ask another node"),
    }
}
