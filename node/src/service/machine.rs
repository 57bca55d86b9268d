//! What the owner of this machine may ask of this node, through its local socket: found, join, seal, admit, and how it is.
//!
//! A command that founds or joins waits until the node serves. It gets each step, and the names of the nodes that the step
//! waits for. A person who gives up changes nothing: the node goes on.

use std::sync::Arc;
use std::time::Duration;

use quorate_client::error::Code;
use quorate_client::wire::{AdminProgress, AdminRequest, AdminResponse, LocalStatus, SecretMemory, WireError};
use quorate_shares::arena;
use quorate_shares::order::LabelledKey;
use tokio::sync::mpsc;

use crate::base::phase::{Phase, RequestClass, answers};
use crate::cluster::status;
use crate::join::begin::{self, FoundingOptions};
use crate::lease::seal;
use crate::lock::absence;
use crate::messages::caller::Caller;
use crate::node::Node;
use crate::node::peers::roster;
use crate::service::{Resource, audit};

/// How often progress is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// What a request of the local socket is answered.
pub type AdminAnswer = Result<AdminResponse, WireError>;

/// The name of a request, and what it is about. None of them needs a lease: the owner of the machine owns this node.
fn row(request: &AdminRequest) -> (&'static str, Resource<'_>) {
    match request {
        AdminRequest::Init { .. } => ("cluster.init", Resource::ThisNode),
        AdminRequest::Join { .. } => ("node.join", Resource::ThisNode),
        AdminRequest::Status => ("status", Resource::ThisNode),
        AdminRequest::Seal { sealed: true } => ("node.seal", Resource::ThisNode),
        AdminRequest::Seal { sealed: false } => ("node.unseal", Resource::ThisNode),
        AdminRequest::Admit { name } => ("node.admit", Resource::Node(name)),
        AdminRequest::Export => ("cluster.export", Resource::Cluster),
    }
}

/// Answers `request`. Its steps go to `progress`; once the receiver is closed, the caller has gone, and nothing waits for it any
/// more.
pub async fn answer(
    node: &Arc<Node>,
    caller: &Caller,
    request: AdminRequest,
    progress: mpsc::Sender<AdminProgress>,
) -> AdminAnswer {
    let (name, on) = row(&request);
    let line = audit::Line::of(caller, name, &on, None);
    let ended = run(node, caller, request, progress).await;
    line.write(&ended);
    ended
}

async fn run(
    node: &Arc<Node>,
    caller: &Caller,
    request: AdminRequest,
    progress: mpsc::Sender<AdminProgress>,
) -> AdminAnswer {
    match request {
        AdminRequest::Init { founders, threshold, allow_solo, accept_no_redundancy, operator, label } => {
            let options = FoundingOptions::check(founders, threshold, allow_solo, accept_no_redundancy)?;
            let invitations = begin::init(node, options, LabelledKey { key: operator, label }).await?;
            tell_until_served(node, invitations, &progress).await?;
            Ok(AdminResponse::Founded(status::cluster_file(node)))
        }
        AdminRequest::Join { invitation } => {
            begin::join(node, &invitation).await?;
            tell_until_served(node, Vec::new(), &progress).await?;
            Ok(AdminResponse::Joined { node: node.name(), cluster: node.cluster() })
        }
        AdminRequest::Status => Ok(AdminResponse::Status(Box::new(local_status(node).await))),
        AdminRequest::Seal { sealed } => {
            seal::set(node, sealed, caller).await?;
            Ok(AdminResponse::Sealed { node: node.name(), sealed })
        }
        AdminRequest::Admit { name } => {
            absence::admit(node, roster::member(&node.roster(), &name)?, caller).await?;
            Ok(AdminResponse::Admitted { at: node.name() })
        }
        AdminRequest::Export => match node.replica() {
            Some(_) => Ok(AdminResponse::Export(status::cluster_file(node))),
            None => Err(WireError::new(Code::NotServing, format!("this node is {}", node.phase()))
                .hint("the client file exists once the cluster is founded")),
        },
    }
}

/// An operator sealed the node meanwhile. It serves only after an operator unseals it, so the command does not wait for that.
fn sealed() -> WireError {
    WireError::new(Code::NotServing, "this node is sealed; what was begun goes on, and it serves once it is unsealed")
        .hint("`quorate node unseal`; `quorate status` shows how far it is")
}

/// Tells each step until this node serves, or founding ends without it.
async fn tell_until_served(
    node: &Arc<Node>,
    mut invitations: Vec<String>,
    progress: &mpsc::Sender<AdminProgress>,
) -> Result<(), WireError> {
    let gone = || WireError::new(Code::Internal, "the caller is gone");
    let mut shown = None;
    while node.phase() != Phase::Serving {
        let founding = node.enrolment().joining.founding();
        if let Some(reason) = founding.refused {
            return Err(WireError::new(Code::Denied, reason)
                .hint("`quorate node invite` on a member gives another invitation; `cluster init` those of founders"));
        }
        if node.phase() == Phase::Revoked {
            return Err(begin::revoked());
        }
        if node.phase() == Phase::Sealed {
            return Err(sealed());
        }
        let now = (founding.step, founding.waiting_for);
        if shown.as_ref() != Some(&now) || !invitations.is_empty() {
            let (step, waiting_for) = now.clone();
            let step = AdminProgress { invitations: std::mem::take(&mut invitations), step, waiting_for };
            progress.send(step).await.map_err(|_| gone())?;
            shown = Some(now);
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = progress.closed() => return Err(gone()),
        }
    }
    Ok(())
}

async fn local_status(node: &Arc<Node>) -> LocalStatus {
    let full = match node.replica() {
        Some(replica) if answers(node.phase(), RequestClass::Status) => Some(status::full(node, &replica).await),
        _ => None,
    };
    LocalStatus {
        data_directory: node.config.data.display().to_string(),
        public: status::public(node),
        name: Some(node.name()),
        cluster: node.has_vault().then(|| node.cluster()),
        operation: status::operation(node),
        full,
        secret_memory: match arena::status().backing {
            arena::Backing::MemfdSecret => SecretMemory::Hidden,
            arena::Backing::Mlock => SecretMemory::Locked,
            arena::Backing::Heap => SecretMemory::Ordinary,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random;
    use crate::node::testing::node_of;
    use crate::vault::Vault;
    use quorate_shares::ids::ClusterId;
    use quorate_shares::secret::Secret;
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_secs(30);

    /// Mutated: without the look at the phase, the command waits for ever for a node that will never serve.
    #[tokio::test]
    async fn a_command_ends_when_the_node_is_revoked_while_it_joins() {
        assert_eq!(ended_by(Phase::Revoked).await.code, Code::Denied, "it will never serve");
    }

    /// Mutated in the same way: it waits until someone unseals the node, and does not say so.
    #[tokio::test]
    async fn a_command_ends_when_the_node_is_sealed_while_it_joins() {
        let ended = ended_by(Phase::Sealed).await;
        assert_eq!(ended.code, Code::NotServing);
        assert!(ended.hint.is_some_and(|hint| hint.contains("quorate node unseal")));
    }

    /// What a command says in the end that waits for a node which enters `phase`.
    async fn ended_by(phase: Phase) -> WireError {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let node = node_of(dir.path(), Vault::new(ClusterId([1; 16]), Secret::random(&mut random::system())));
        node.enter(Phase::Joining);
        let (tell, mut told) = mpsc::channel(1);
        let follow = tell_until_served(&node, Vec::new(), &tell);
        let turn = async {
            told.recv().await.expect("it tells the first step");
            node.serving.lease.bar(phase == Phase::Sealed);
            node.enter(phase);
        };
        let (ended, ()) = timeout(SOON, async { tokio::join!(follow, turn) }).await.expect("it ends");
        ended.expect_err("it does not serve")
    }

    /// Mutated: without `closed`, the wait of a caller who gave up would keep its place until the node serves.
    #[tokio::test]
    async fn nothing_waits_for_a_caller_who_gave_up() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let node = node_of(dir.path(), Vault::new(ClusterId([1; 16]), Secret::random(&mut random::system())));
        node.enter(Phase::Joining);
        let (tell, mut told) = mpsc::channel(1);
        let follow = tell_until_served(&node, Vec::new(), &tell);
        let turn = async {
            told.recv().await.expect("it tells the first step");
            drop(told);
        };
        let (ended, ()) = timeout(SOON, async { tokio::join!(follow, turn) }).await.expect("it ends");
        ended.expect_err("the caller is gone");
    }
}
