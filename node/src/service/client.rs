//! What clients may ask: the table of requests, and the way that each of them goes.
//!
//! Encrypt, decrypt and data keys of a warm key touch memory only: no Raft, no disk, no lock held across an await. The door
//! polls them once where the frame is read, and answers there if nothing had to wait. The lease is checked before the work
//! and again when the answer is ready; the answer carries how long it holds from there ([`Answered`]).
//!
//! What has to wait is boxed where it begins to wait. Otherwise each request's future would have room for every wait that
//! there is; moving that room about was a fifth of what a node did for a warm key.

use std::sync::Arc;
use std::time::Duration;

use quorate_client::conn::PeerInfo;
use quorate_client::error::Code;
use quorate_client::wire::{Answer, Answered, Envelope, Request, Response, WireError};
use tokio::time::timeout;

use crate::base::phase::{RequestClass, answers};
use crate::memory::lease;
use crate::messages::caller::Door;
use crate::node::Node;
use crate::service::handlers::{crypto, keys, membership, nodes};
use crate::service::{Call, Needs, RequestRow, Resource, audit, caller, forward, leased_until, not_serving};

/// A request without a deadline of its own gets this one, and none gets more.
const DEADLINE_MAX: Duration = Duration::from_secs(60);

/// The row of a request.
pub fn row(request: &Request) -> RequestRow<'_> {
    use Needs::{Lease, LeaseAndLeader, State};
    let (name, needs, on) = match request {
        Request::Encrypt { key, .. } => ("encrypt", Lease, Resource::Key(key)),
        Request::Decrypt { ciphertext, .. } => ("decrypt", Lease, Resource::KeyOf(ciphertext)),
        Request::DataKey { key, .. } => ("datakey", Lease, Resource::Key(key)),
        Request::Echo(_) => ("echo", Lease, Resource::Cluster),
        Request::CreateKey { name, .. } => ("key.create", LeaseAndLeader, Resource::Key(name)),
        Request::RotateKey { name, .. } => ("key.rotate", LeaseAndLeader, Resource::Key(name)),
        Request::ListKeys { .. } => ("key.list", Lease, Resource::Keys),
        Request::ShowKey { name } => ("key.show", Lease, Resource::Key(name)),
        Request::Status => ("status", State, Resource::Cluster),
        Request::Export => ("cluster.export", State, Resource::Cluster),
        Request::ListNodes => ("node.list", State, Resource::Nodes),
        Request::NodeStatus { name } => ("node.status", State, Resource::Node(name)),
        Request::SealNode { name } => ("node.seal", State, Resource::Node(name)),
        Request::UnsealNode { name } => ("node.unseal", State, Resource::Node(name)),
        Request::AdmitNode { name } => ("node.admit", State, Resource::Node(name)),
        Request::ListAlarms => ("alarm.list", State, Resource::Alarms),
        Request::DisarmAlarms { .. } => ("alarm.disarm", State, Resource::Alarms),
        Request::InviteNode { name, .. } => {
            ("node.invite", LeaseAndLeader, name.as_ref().map_or(Resource::Nodes, Resource::Node))
        }
        Request::ReplaceNode { name, .. } => ("node.replace", LeaseAndLeader, Resource::Node(name)),
        Request::RemoveNode { name, .. } => ("node.remove", LeaseAndLeader, Resource::Node(name)),
        Request::RevokeNodes { names, .. } => ("node.revoke", LeaseAndLeader, Resource::NodesNamed(names)),
        Request::Progress { operation } => ("node.progress", LeaseAndLeader, Resource::Operation(*operation)),
        Request::SetAddresses { name, .. } => ("node.set-address", LeaseAndLeader, Resource::Node(name)),
    };
    RequestRow { name, needs, on }
}

/// Carries a request out.
async fn run(call: Call<'_>, request: Request) -> Answer {
    match request {
        Request::Encrypt { key, context, plaintext } => crypto::encrypt(call, key, &context, &plaintext).await,
        Request::Decrypt { ciphertext, context } => crypto::decrypt(call, &ciphertext, &context).await,
        Request::DataKey { key, context, bytes } => crypto::data_key(call, key, &context, bytes).await,
        Request::Echo(bytes) => Ok(Response::Echo(bytes)),
        Request::CreateKey { request_id, name, tags } => Box::pin(keys::create(call, request_id, name, tags)).await,
        Request::RotateKey { request_id, name, expect } => Box::pin(keys::rotate(call, request_id, name, expect)).await,
        Request::ListKeys { after, limit } => Ok(keys::list(call, after.as_ref(), limit)),
        Request::ShowKey { name } => keys::show(call, &name).await,
        Request::Status => Box::pin(nodes::status(call)).await,
        Request::Export => Ok(nodes::export(call)),
        Request::ListNodes => Box::pin(nodes::list(call)).await,
        Request::NodeStatus { name } => Box::pin(nodes::show(call, &name)).await,
        Request::SealNode { name } => Box::pin(nodes::seal(call, &name, true)).await,
        Request::UnsealNode { name } => Box::pin(nodes::seal(call, &name, false)).await,
        Request::AdmitNode { name } => Box::pin(nodes::admit(call, &name)).await,
        Request::ListAlarms => Box::pin(nodes::alarms(call)).await,
        Request::DisarmAlarms { codes } => Box::pin(nodes::disarm(call, codes)).await,
        Request::InviteNode { name, ttl_ms } => Box::pin(membership::invite(call, name, ttl_ms)).await,
        Request::ReplaceNode { name, invitation } => Box::pin(membership::replace(call, &name, &invitation)).await,
        Request::RemoveNode { request_id, name, accept_no_redundancy, abandon } => {
            Box::pin(membership::remove(call, request_id, name, accept_no_redundancy, abandon)).await
        }
        Request::RevokeNodes { request_id, names, expect_back } => {
            Box::pin(membership::revoke(call, request_id, names, expect_back)).await
        }
        Request::Progress { operation } => Box::pin(membership::progress(call, operation)).await,
        Request::SetAddresses { name, addresses } => Box::pin(membership::set_addresses(call, name, addresses)).await,
    }
}

/// Answers what the client `peer` sent to `door`. The request arrived at `received_ms` (`boot_ms`).
pub async fn answer(node: &Arc<Node>, door: Door, peer: &PeerInfo, envelope: Envelope, received_ms: u64) -> Answered {
    let Envelope { deadline_ms, request } = envelope;
    let Some(replica) = node.replica() else { return Answered::always(Err(not_serving(node))) };
    let row = row(&request);
    let caller = match caller::authenticate(&replica, peer, door) {
        Ok(caller) => caller,
        Err(denied) => {
            audit::write_denied(door, peer.remote, row.name);
            return Answered::always(Err(denied));
        }
    };
    let (needs, line) = (row.needs, audit::Line::of(&caller, row.name, &row.on, Some(&replica)));
    let answered = match caller::permit(&caller, &row) {
        Ok(()) => {
            let call = Call { node, replica: &replica, caller: &caller };
            let deadline = Duration::from_millis(deadline_ms.into()).min(DEADLINE_MAX);
            timeout(deadline, run_if_possible(call, needs, request, received_ms)).await.unwrap_or_else(|_| {
                Answered::always(Err(WireError::new(Code::Deadline, "the deadline passed before the work was done")))
            })
        }
        Err(denied) => Answered::always(Err(denied)),
    };
    line.write(&answered.answer);
    answered
}

/// Carries a request out, if this node has what it needs before and after.
async fn run_if_possible(call: Call<'_>, needs: Needs, request: Request, received_ms: u64) -> Answered {
    match needs {
        Needs::State if answers(call.node.phase(), RequestClass::Status) => Answered::always(run(call, request).await),
        Needs::State => Answered::always(Err(not_serving(call.node))),
        Needs::Lease => run_under_lease(call, request, received_ms).await,
        Needs::LeaseAndLeader => match forward::leader(call) {
            Ok(_) => run_under_lease(call, request, received_ms).await,
            Err(no_leader) => leased(call.node, Err(no_leader), received_ms),
        },
    }
}

async fn run_under_lease(call: Call<'_>, request: Request, received_ms: u64) -> Answered {
    match leased_until(call.node) {
        Ok(_) => tokio::select! {
            biased;
            answer = run(call, request) => leased(call.node, answer, received_ms),
            () = stops_serving(call.node) => Answered::always(Err(not_serving(call.node))),
        },
        Err(refusal) => Answered::always(Err(refusal)),
    }
}

/// Returns when this node stops serving. What is done by then could not be answered here, and another node can answer it: the
/// client should ask there in time, and not wait for a leader that is cut off.
async fn stops_serving(node: &Node) {
    // The sender lives as long as the node.
    let _ = node.serving.phases().wait_for(|phase| !answers(*phase, RequestClass::Work)).await;
}

/// An answer under the lease, good until the lease ends. Not even a refusal may come from a state that is older.
fn leased(node: &Node, answer: Answer, received_ms: u64) -> Answered {
    match leased_until(node) {
        Ok(until_ms) => Answered { good_for_ms: lease::good_for_ms(until_ms, received_ms), answer },
        Err(refusal) => Answered::always(Err(refusal)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use quorate_client::wire::Plaintext;
    use quorate_shares::context::Context;
    use quorate_shares::ids::{Epoch, KeyName, NodeName};

    /// What no rule and no audit line may leave to chance: each request has a name of its own, and says what it is about.
    #[test]
    fn each_request_has_a_name_of_its_own_and_a_resource() {
        let key = || "billing/cards".parse::<KeyName>().expect("a name");
        let node = || "n2".parse::<NodeName>().expect("a name");
        let text = || Plaintext::new(b"secret".to_vec()).expect("short");
        let (request_id, context) = ([0; 16], Context::empty);
        let (about_key, about_node) = (key(), node());
        let (about_key, about_node) = (Resource::Key(&about_key), Resource::Node(&about_node));
        let requests = [
            (Request::Encrypt { key: key(), context: context(), plaintext: text() }, about_key),
            (Request::Decrypt { ciphertext: b"qrt1:".to_vec(), context: context() }, Resource::KeyOf(b"qrt1:")),
            (Request::DataKey { key: key(), context: context(), bytes: 32 }, about_key),
            (Request::Echo(b"secret".to_vec()), Resource::Cluster),
            (Request::CreateKey { request_id, name: key(), tags: Default::default() }, about_key),
            (Request::RotateKey { request_id, name: key(), expect: None }, about_key),
            (Request::ListKeys { after: None, limit: 1 }, Resource::Keys),
            (Request::ShowKey { name: key() }, about_key),
            (Request::Status, Resource::Cluster),
            (Request::Export, Resource::Cluster),
            (Request::ListNodes, Resource::Nodes),
            (Request::NodeStatus { name: node() }, about_node),
            (Request::SealNode { name: node() }, about_node),
            (Request::UnsealNode { name: node() }, about_node),
            (Request::AdmitNode { name: node() }, about_node),
            (Request::ListAlarms, Resource::Alarms),
            (Request::DisarmAlarms { codes: None }, Resource::Alarms),
            (Request::InviteNode { name: None, ttl_ms: 1 }, Resource::Nodes),
            (Request::InviteNode { name: Some(node()), ttl_ms: 1 }, about_node),
            (Request::ReplaceNode { name: node(), invitation: text() }, about_node),
            (
                Request::RemoveNode { request_id, name: node(), accept_no_redundancy: false, abandon: Vec::new() },
                about_node,
            ),
            (
                Request::RevokeNodes { request_id, names: vec![node()], expect_back: Vec::new() },
                Resource::NodesNamed(&[node()]),
            ),
            (Request::Progress { operation: Epoch(3) }, Resource::Operation(Epoch(3))),
            (Request::SetAddresses { name: node(), addresses: Vec::new() }, about_node),
        ];
        for (request, about) in &requests {
            assert_eq!(row(request).on, *about, "{}", row(request).name);
        }
        let names: BTreeSet<_> = requests.iter().map(|(request, _)| row(request).name).collect();
        assert_eq!(names.len(), requests.len() - 1, "two invitations, and no other two of one name: {names:?}");
    }
}
