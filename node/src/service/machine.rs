//! What the owner of this machine may ask of this node, through its local socket: found, join, seal, admit, and how it is.
//!
//! A command that founds or joins waits until the node serves. It gets each step, and the names of the nodes that the step waits for. A person who gives
//! up changes nothing: the node goes on.

use std::sync::Arc;
use std::time::Duration;

use quorate_client::error::Code;
use quorate_client::wire::{AdminProgress, AdminRequest, AdminResponse, LocalStatus, SecretMemory, WireError};
use quorate_shares::arena;
use quorate_shares::ids::ClusterId;
use quorate_shares::split::Threshold;
use tokio::sync::mpsc;
use tracing::info;

use crate::base::clock::wall_ms;
use crate::base::phase::{Phase, RequestClass, admits};
use crate::base::random;
use crate::cluster::status;
use crate::join::registry;
use crate::lease::seal;
use crate::lock::absence;
use crate::messages::caller::Caller;
use crate::node::{Node, roster};
use crate::service::audit;
use crate::service::client::Resource;
use crate::vault::invitation::Invitation;
use crate::vault::layout::Address;
use crate::vault::{FirstFounder, Founding, FoundingStep, Invited, Role, Roster, Vault};

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
        AdminRequest::Init { founders, threshold, allow_solo, accept_no_redundancy, token_hash } => {
            let terms = FoundingTerms::check(founders, threshold, allow_solo, accept_no_redundancy)?;
            let invitations = init(node, terms, token_hash).await?;
            tell_until_served(node, invitations, &progress).await?;
            Ok(AdminResponse::Founded(status::cluster_file(node)))
        }
        AdminRequest::Join { invitation } => {
            join(node, &invitation).await?;
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

/// Returns once an operator has given this node something to found or to join.
pub async fn initialised(node: &Arc<Node>) {
    while !node.has_vault() {
        tokio::time::sleep(LOOK).await;
    }
}

/// What a founder asked for, checked.
struct FoundingTerms {
    founders: u8,
    threshold: u8,
}

impl FoundingTerms {
    fn check(founders: u8, threshold: Option<u8>, solo: bool, no_redundancy: bool) -> Result<Self, WireError> {
        let bad = |message: String| WireError::new(Code::BadRequest, message);
        match founders {
            1 if solo => {}
            0 | 1 => {
                return Err(bad("one node alone holds everything on one disk".to_owned())
                    .hint("found with three nodes: --founders 3, or say --allow-solo"));
            }
            2 if !no_redundancy => {
                return Err(bad("with two nodes the loss of one disk loses every key".to_owned())
                    .hint("found with three nodes, or say --accept-no-redundancy"));
            }
            _ => {}
        }
        let threshold = threshold.unwrap_or(founders / 2 + 1);
        Threshold::new(threshold, founders).map_err(|error| bad(error.to_string()))?;
        Ok(Self { founders, threshold })
    }
}

/// Begins to found, or goes on: a repeated `init` draws new invitations for the founders that have not proved theirs.
async fn init(node: &Arc<Node>, terms: FoundingTerms, token_hash: [u8; 32]) -> Result<Vec<String>, WireError> {
    let FoundingTerms { founders, threshold } = terms;
    if !node.has_vault() {
        let mut vault = Vault::new(ClusterId(random::bytes()), node.enrolment().identity.boot_seed());
        vault.identity.node = Some(crate::vault::FIRST_FOUNDER);
        let first = FirstFounder {
            founders,
            threshold,
            invitations: Vec::new(),
            token_hash,
            so_far: Vec::new(),
            step: FoundingStep::Gathering,
        };
        vault.founding = Some(founding(node, 1, Role::FirstFounder(first))?);
        adopt(node, vault)?;
        info!(founders, threshold, "founding");
    }
    let boot_pk = node.enrolment().identity.boot().map(|boot| boot.public().0).unwrap_or_default();
    let address = address(node)?;
    let invited = node.update_vault(move |vault| {
        let Some((_, first)) = registry::view(vault) else { return Err(None) };
        if (first.founders, first.threshold, first.token_hash) != (founders, threshold, token_hash) {
            return Err(Some((first.founders, first.threshold)));
        }
        Ok(registry::invite(vault, boot_pk, &address, wall_ms()))
    });
    let conflict = |message: String| WireError::new(Code::Conflict, message);
    match invited.await.map_err(|error| WireError::new(Code::Storage, error.to_string()))? {
        Ok(invitations) => invitations.iter().map(text).collect(),
        Err(Some((founders, threshold))) => Err(conflict(format!(
            "founding is under way with other options: {founders} founders, threshold {threshold}, and its own root token"
        ))
        .hint("repeat the command with the options and the token file that it began with")),
        Err(None) => Err(conflict("this node belongs to a cluster already".to_owned())
            .hint("`quorate status` shows it; a new cluster needs an empty data directory")),
    }
}

fn text(invitation: &Invitation) -> Result<String, WireError> {
    let text = invitation.text().map_err(|error| WireError::new(Code::Internal, error.to_string()))?;
    Ok(text.as_str().to_owned())
}

/// Begins to join the founders that an invitation names, or goes on if it is the same invitation.
async fn join(node: &Arc<Node>, invitation: &str) -> Result<(), WireError> {
    let invitation: Invitation =
        invitation.trim().parse().map_err(|error: crate::vault::invitation::InvitationError| {
            WireError::new(Code::BadRequest, error.to_string()).hint(error.hint())
        })?;
    if node.phase() == Phase::Revoked {
        return Err(revoked());
    }
    let (key, cluster) = (invitation.key(), invitation.cluster);
    let id = key.id();
    let role = Role::Founder(Invited { key, inviters: invitation.inviters });
    if node.has_vault() {
        return join_again(node, id, cluster, role).await;
    }
    let mut vault = Vault::new(cluster, node.enrolment().identity.boot_seed());
    vault.founding = Some(founding(node, 0, role)?);
    adopt(node, vault)
}

/// A join that is repeated goes on. With another invitation it begins again, as long as nothing is locked yet.
async fn join_again(node: &Arc<Node>, id: [u8; 32], cluster: ClusterId, role: Role) -> Result<(), WireError> {
    let taken = node.update_vault(move |vault| {
        let unlocked = vault.lock.is_none();
        match vault.founding.as_mut().map(|founding| &mut founding.role) {
            Some(Role::Founder(invited) | Role::Joiner(invited)) if invited.key.id() == id => Some(false),
            Some(current @ (Role::Founder(_) | Role::Joiner(_))) if unlocked => {
                *current = role;
                vault.identity.cluster = cluster;
                vault.identity.node = None;
                vault.roster = Roster::default();
                vault.held.clear();
                Some(true)
            }
            _ => None,
        }
    });
    match taken.await.map_err(|error| WireError::new(Code::Storage, error.to_string()))? {
        Some(false) => Ok(()),
        Some(true) => {
            node.enrol_again();
            Ok(())
        }
        None => Err(WireError::new(Code::Conflict, "this node belongs to a cluster already")
            .hint("each node joins once; another cluster needs an empty data directory")),
    }
}

/// The cluster gave up the joiner after waiting for it, or an operator revoked it.
fn revoked() -> WireError {
    WireError::new(Code::Denied, "this node was revoked, and the cluster does not take it in any more")
        .hint("empty its data directory, start it again, and join with another invitation")
}

/// An operator sealed the node meanwhile. It serves only after an operator unseals it, so the command does not wait for that.
fn sealed() -> WireError {
    WireError::new(Code::NotServing, "this node is sealed; what was begun goes on, and it serves once it is unsealed")
        .hint("`quorate node unseal`; `quorate status` shows how far it is")
}

fn founding(node: &Node, attempt: u32, role: Role) -> Result<Founding, WireError> {
    Ok(Founding { attempt, name: node.config.name.clone(), addresses: vec![address(node)?], role })
}

fn address(node: &Node) -> Result<Address, WireError> {
    let bad = |error: crate::vault::layout::FormatError| {
        WireError::new(Code::BadRequest, format!("the address {}: {error}", node.config.advertise))
            .hint("start quorated with --advertise HOST:PORT")
    };
    node.config.advertise.parse().map_err(bad)
}

/// Makes the vault, once: of two commands at the same time the second finds the first one's.
fn adopt(node: &Arc<Node>, vault: Vault) -> Result<(), WireError> {
    let created = node
        .create_vault(vault)
        .map_err(|error| WireError::new(Code::Storage, error.to_string()).hint(error.hint()))?;
    if !created {
        return Err(WireError::new(Code::Conflict, "another command has just given this node a cluster")
            .hint("`quorate status` shows which; repeat the command to go on with it"));
    }
    // Said at once, so that a second command sees that something is under way.
    node.enter(Phase::Joining);
    Ok(())
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
            return Err(revoked());
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
        Some(replica) if admits(node.phase(), RequestClass::Status) => Some(status::full(node, &replica).await),
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
    use crate::node::testing::node_of;
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
