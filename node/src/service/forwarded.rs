//! What members forward for clients: the table of requests, and what is done for each. [`super::forward`] is the other side.

use std::sync::Arc;

use quorate_client::error::Code;
use quorate_client::wire::WireError;
use quorate_raft::Replica;
use quorate_raft::command::Change;
use quorate_shares::ids::NodeId;

use crate::cluster::{addresses as cluster_addresses, alarms, invitations, orders};
use crate::lease::{renewal, seal};
use crate::lock::absence;
use crate::messages::caller::{Caller, Principal};
use crate::messages::peer::{ForwardedReply, ForwardedRequest, KeyChange, Order, PeerRefusal};
use crate::node::Node;
use crate::service::handlers::keys;
use crate::service::{Resource, audit};

/// The name of a request that another member forwards, as it stands in the table of clients, and what it is about.
fn row(request: &ForwardedRequest) -> (&'static str, Resource<'_>) {
    match request {
        ForwardedRequest::Change(KeyChange::Create { name, .. }) => ("key.create", Resource::Key(name)),
        ForwardedRequest::Change(KeyChange::Rotate { name, .. }) => ("key.rotate", Resource::Key(name)),
        ForwardedRequest::Order(Order::Remove { name, .. }) => ("node.remove", Resource::Node(name)),
        ForwardedRequest::Order(Order::Revoke { names, .. }) => ("node.revoke", Resource::NodesNamed(names)),
        ForwardedRequest::Progress { operation } => ("node.progress", Resource::Operation(*operation)),
        ForwardedRequest::Invite(invite) => {
            ("node.invite", invite.name.as_ref().map_or(Resource::Nodes, Resource::Node))
        }
        ForwardedRequest::Replace { gone, .. } => ("node.replace", Resource::Member(*gone)),
        ForwardedRequest::Seal { sealed: true } => ("node.seal", Resource::ThisNode),
        ForwardedRequest::Seal { sealed: false } => ("node.unseal", Resource::ThisNode),
        ForwardedRequest::Admit { node } => ("node.admit", Resource::Member(*node)),
        ForwardedRequest::Disarm { .. } => ("alarm.disarm", Resource::Alarms),
        ForwardedRequest::SetAddresses { name, .. } => ("node.set-address", Resource::Node(name)),
    }
}

/// Does for a client what another member forwards, and writes the audit line of this node.
///
/// # Errors
/// If this node cannot: it does not lead, or has no replica; or if the caller is not a client.
pub(super) async fn answer(
    node: &Arc<Node>,
    from: NodeId,
    caller: &Caller,
    request: ForwardedRequest,
) -> Result<Result<ForwardedReply, WireError>, PeerRefusal> {
    match caller.who {
        Principal::Operator => {}
        // Members and owners of machines ask for themselves.
        Principal::Member(_) | Principal::MachineOwner => return Err(PeerRefusal::Malformed),
    }
    let (name, on) = row(&request);
    let line = audit::Line::of(caller, name, &on, node.replica().as_ref());
    let answered = run(node, from, caller, request).await;
    match &answered {
        Ok(ended) => line.write(ended),
        Err(_) => line.write_refused(),
    }
    answered
}

async fn run(
    node: &Arc<Node>,
    from: NodeId,
    caller: &Caller,
    request: ForwardedRequest,
) -> Result<Result<ForwardedReply, WireError>, PeerRefusal> {
    let done = |done: Result<(), WireError>| done.map(|()| ForwardedReply::Done);
    Ok(match request {
        ForwardedRequest::Change(change) => {
            let made = keys::made_here(node, &replica_if_leader(node)?, change).await;
            made.map(|(uid, version)| ForwardedReply::Made { uid, version })
        }
        ForwardedRequest::Order(order) => {
            let begun = orders::begin(node, &replica_if_leader(node)?, order, caller).await;
            begun.map(|operation| ForwardedReply::Begun { operation })
        }
        ForwardedRequest::Progress { operation } => {
            let progress = orders::progress(node, &replica_if_leader(node)?, operation).await;
            progress.map(|progress| ForwardedReply::Progress(Box::new(progress)))
        }
        ForwardedRequest::Invite(invite) => {
            done(propose_for_seat(node, &replica_if_leader(node)?, from, Change::Invite(invite)).await)
        }
        ForwardedRequest::Replace { invitation, gone } => {
            let change = Change::Replace { invitation, gone };
            done(propose_for_seat(node, &replica_if_leader(node)?, from, change).await)
        }
        ForwardedRequest::Seal { sealed } => done(seal::set(node, sealed, caller).await),
        ForwardedRequest::Admit { node: peer } => done(absence::admit(node, peer, caller).await),
        ForwardedRequest::Disarm { codes } => done(alarms::disarm(node, &codes).await),
        ForwardedRequest::SetAddresses { name, addresses } => {
            done(cluster_addresses::set(node, &replica_if_leader(node)?, &name, addresses, caller).await)
        }
    })
}

/// Notes an invitation, or what it replaces, for a member that holds a seat: only such a member serves clients.
async fn propose_for_seat(node: &Node, replica: &Replica, from: NodeId, change: Change) -> Result<(), WireError> {
    if replica.read(|state| renewal::is_seated(state, from)) {
        return invitations::propose(node, replica, change).await;
    }
    Err(WireError::new(Code::Denied, format!("{} holds no seat in the active epoch", node.name_of(from))))
}

fn replica_if_leader(node: &Node) -> Result<Replica, PeerRefusal> {
    let replica = node.replica().ok_or_else(|| PeerRefusal::Phase(node.phase()))?;
    let leadership = *replica.leadership().borrow();
    if leadership.am_leader { Ok(replica) } else { Err(PeerRefusal::NotLeader(leadership.leader)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random;
    use crate::messages::caller::Door;
    use crate::node::testing::node_of;
    use crate::service::audit::testing::Written;
    use crate::service::client;
    use crate::vault::Vault;
    use quorate_client::wire::{Plaintext, Request};
    use quorate_raft::command::Invite;
    use quorate_shares::ids::{ClusterId, Epoch, KeyName, NodeName};
    use quorate_shares::secret::Secret;
    use quorate_shares::signature::PublicKey;
    use tracing::instrument::WithSubscriber;

    /// A member asks for itself in messages of its own. Mutated: if every caller is taken, a member gets the rights of whatever
    /// it says that it forwards.
    #[tokio::test]
    async fn only_requests_of_clients_are_forwarded() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let node = node_of(dir.path(), Vault::new(ClusterId([1; 16]), Secret::random(&mut random::system())));
        let remote = "127.0.0.1:4711".parse().expect("an address");
        let seal = || ForwardedRequest::Seal { sealed: true };
        for caller in [Caller::member(NodeId(2), PublicKey([7; 32]), remote), Caller::machine_owner(0)] {
            let refused = answer(&node, NodeId(2), &caller, seal()).await;
            assert!(matches!(refused, Err(PeerRefusal::Malformed)), "{caller}");
        }
        assert!(!node.serving.is_sealed());
        let client = Caller::operator(PublicKey([7; 32]), Door::Client, remote);
        let done = answer(&node, NodeId(2), &client, seal()).await.expect("the control: it is carried out");
        assert!(done.is_ok() && node.serving.is_sealed());
    }

    /// A request reaches a node that leads no more. Mutated: without a line of its own it was `cancelled`, as if the client had gone
    /// away and what it began went on.
    #[tokio::test]
    async fn what_is_not_begun_is_logged_as_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let node = node_of(dir.path(), Vault::new(ClusterId([1; 16]), Secret::random(&mut random::system())));
        let client = Caller::operator(PublicKey([7; 32]), Door::Client, "127.0.0.1:4711".parse().expect("an address"));
        let written = Written::default();
        let progress = ForwardedRequest::Progress { operation: Epoch(3) };
        let asked = answer(&node, NodeId(2), &client, progress).with_subscriber(written.subscriber());
        assert!(matches!(asked.await, Err(PeerRefusal::Phase(_))), "it has no state yet");
        let [line] = &written.lines()[..] else { panic!("one line: {:?}", written.lines()) };
        assert!(line.contains("node.progress") && line.contains("outcome=\"refused\""), "{line}");
    }

    /// Rules and audit lines know an operation by its name, at the node that a client asks and at the node that does it.
    #[test]
    fn a_forwarded_request_has_the_name_of_the_clients_request() {
        let (request, request_id) = ([0; 16], [0; 16]);
        let key = || "billing/cards".parse::<KeyName>().expect("a name");
        let node = || "n2".parse::<NodeName>().expect("a name");
        let text = || Plaintext::new(b"secret".to_vec()).expect("short");
        let create = KeyChange::Create { request, name: key(), tags: Default::default() };
        let rotate = KeyChange::Rotate { request, name: key(), expect: None };
        let (accept_no_redundancy, abandon) = (false, Vec::new);
        let remove = Order::Remove { request, name: node(), accept_no_redundancy, abandon: abandon() };
        let revoke = Order::Revoke { request, names: vec![node()], expect_back: abandon() };
        let (operation, invitation, gone) = (Epoch(3), [0; 32], NodeId(2));
        let invite = Invite { proof_key: [0; 32], name: None, ttl_ms: 1 };
        let pairs = [
            (
                Request::CreateKey { request_id, name: key(), tags: Default::default() },
                ForwardedRequest::Change(create),
            ),
            (Request::RotateKey { request_id, name: key(), expect: None }, ForwardedRequest::Change(rotate)),
            (
                Request::RemoveNode { request_id, name: node(), accept_no_redundancy, abandon: abandon() },
                ForwardedRequest::Order(remove),
            ),
            (
                Request::RevokeNodes { request_id, names: vec![node()], expect_back: abandon() },
                ForwardedRequest::Order(revoke),
            ),
            (Request::Progress { operation }, ForwardedRequest::Progress { operation }),
            (Request::InviteNode { name: None, ttl_ms: 1 }, ForwardedRequest::Invite(invite)),
            (Request::ReplaceNode { name: node(), invitation: text() }, ForwardedRequest::Replace { invitation, gone }),
            (Request::SealNode { name: node() }, ForwardedRequest::Seal { sealed: true }),
            (Request::UnsealNode { name: node() }, ForwardedRequest::Seal { sealed: false }),
            (Request::AdmitNode { name: node() }, ForwardedRequest::Admit { node: gone }),
            (Request::DisarmAlarms { codes: None }, ForwardedRequest::Disarm { codes: None }),
            (
                Request::SetAddresses { name: node(), addresses: Vec::new() },
                ForwardedRequest::SetAddresses { name: node(), addresses: Vec::new() },
            ),
        ];
        for (asked, forwarded) in &pairs {
            assert_eq!(client::row(asked).name, row(forwarded).0);
        }
    }
}
