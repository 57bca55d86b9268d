//! The local socket: what only whoever owns this machine may ask of this node.
//!
//! A Unix socket, mode 0600. One request per connection; while it waits it sends its progress, so the person in front sees
//! the step and whom it waits for. A person who gives up changes nothing: the node goes on.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quorate_client::error::Code;
use quorate_client::frame::{self, Frame, FrameKind, FrameReader};
use quorate_client::wire::{self, AdminProgress, AdminRequest, AdminResponse, LocalStatus, SecretMemory, WireError};
use quorate_shares::arena;
use quorate_shares::ids::ClusterId;
use quorate_shares::split::Threshold;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, info};

use crate::base::clock::wall_ms;
use crate::base::phase::{Door, Phase, admits};
use crate::base::random;
use crate::boot::BootError;
use crate::cluster::status;
use crate::join::desk;
use crate::lease::sealing;
use crate::lock::absence;
use crate::node::Node;
use crate::service::api;
use crate::vault::invitation::Invitation;
use crate::vault::layout::Address;
use crate::vault::{FirstFounder, Founding, FoundingStep, Invited, Role, Roster, Vault, VaultFile};

/// How often progress is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Callers at a time; the next ones wait until one of them is done.
const CALLERS_MAX: usize = 32;
/// How long a caller may take to say what he wants; then his place is for others.
const REQUEST: Duration = Duration::from_secs(10);

type AdminAnswer = Result<AdminResponse, WireError>;

/// The socket's file, removed when the daemon stops.
pub struct Socket {
    path: PathBuf,
    task: tokio::task::JoinHandle<()>,
}

impl Socket {
    /// Stops listening and removes the file.
    pub fn close(self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Makes the socket and serves it. One that is there and answers belongs to another daemon; one that does not is dead.
///
/// # Errors
/// [`BootError::Socket`].
pub fn listen(node: &Arc<Node>) -> Result<Socket, BootError> {
    let path = node.config.socket.clone();
    let failed = |source| BootError::Socket { path: path.clone(), source };
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(failed)?;
    }
    if std::os::unix::net::UnixStream::connect(&path).is_ok() {
        return Err(failed(std::io::ErrorKind::AddrInUse.into()));
    }
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    // The process's umask already keeps others out; the mode says so to whoever looks.
    let listener = UnixListener::bind(&path).map_err(failed)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    let node = Arc::clone(node);
    let task = tokio::spawn(async move {
        let callers = Arc::new(Semaphore::new(CALLERS_MAX));
        // Never closed. A caller that waits holds no descriptor.
        while let Ok(place) = Arc::clone(&callers).acquire_owned().await {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, perhaps: the next one may do.
                    debug!(%error, "local connection not accepted");
                    tokio::time::sleep(LOOK).await;
                    continue;
                }
            };
            let node = Arc::clone(&node);
            tokio::spawn(async move {
                if let Err(error) = serve(&node, stream).await {
                    debug!(%error, "local connection");
                }
                drop(place);
            });
        }
    });
    Ok(Socket { path, task })
}

/// Returns once an operator has given this node something to found or to join.
pub async fn initialised(node: &Arc<Node>) {
    while !node.has_vault() {
        tokio::time::sleep(LOOK).await;
    }
}

async fn serve(node: &Arc<Node>, stream: UnixStream) -> Result<(), frame::FrameError> {
    let (read, write) = stream.into_split();
    let mut caller = Caller { reader: FrameReader::new(read), write };
    let (id, answer): (u64, AdminAnswer) = match timeout(REQUEST, caller.reader.next()).await {
        Ok(request) => match request? {
            None => return Ok(()),
            Some(Frame { id, body, .. }) => match wire::decode::<AdminRequest>(&body) {
                Ok(request) => (id, answer(node, request, &mut caller).await),
                Err(error) => (id, Err(error)),
            },
        },
        Err(_) => (0, Err(WireError::new(Code::Deadline, "no request came in time"))),
    };
    frame::write(&mut caller.write, FrameKind::Response, id, &wire::encode(&answer)).await
}

/// Whoever is at the other end of the socket.
struct Caller {
    reader: FrameReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
}

async fn answer(node: &Arc<Node>, request: AdminRequest, caller: &mut Caller) -> AdminAnswer {
    match request {
        AdminRequest::Init { founders, threshold, allow_solo, accept_no_redundancy, token_hash } => {
            let terms = Terms::check(founders, threshold, allow_solo, accept_no_redundancy)?;
            let invitations = init(node, terms, token_hash).await?;
            follow(node, invitations, caller).await?;
            Ok(AdminResponse::Founded(status::cluster_file(node)))
        }
        AdminRequest::Join { invitation } => {
            join(node, &invitation).await?;
            follow(node, Vec::new(), caller).await?;
            Ok(AdminResponse::Joined { node: node.name(), cluster: node.cluster() })
        }
        AdminRequest::Status => Ok(AdminResponse::Status(Box::new(local_status(node).await))),
        AdminRequest::Seal { sealed } => {
            sealing::set(node, sealed).await?;
            Ok(AdminResponse::Sealed { node: node.name(), sealed })
        }
        AdminRequest::Admit { name } => {
            absence::admit(node, api::member(node, &name)?).await?;
            Ok(AdminResponse::Admitted { at: node.name() })
        }
        AdminRequest::Export => match node.replica() {
            Some(_) => Ok(AdminResponse::Export(status::cluster_file(node))),
            None => Err(WireError::new(Code::NotServing, format!("this node is {}", node.phase()))
                .hint("the client file exists once the cluster is founded")),
        },
    }
}

/// What a founder asked for, checked.
struct Terms {
    founders: u8,
    threshold: u8,
}

impl Terms {
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
async fn init(node: &Arc<Node>, terms: Terms, token_hash: [u8; 32]) -> Result<Vec<String>, WireError> {
    let Terms { founders, threshold } = terms;
    if !node.has_vault() {
        let mut vault = Vault::new(ClusterId(random::bytes()), node.boot_seed());
        vault.identity.node = Some(crate::join::found::FIRST);
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
    let boot_pk = node.boot_identity().map(|boot| boot.public().0).unwrap_or_default();
    let address = address(node)?;
    let invited = node.update_vault(move |vault| {
        let Some((_, first)) = desk::view(vault) else { return Err(None) };
        if (first.founders, first.threshold, first.token_hash) != (founders, threshold, token_hash) {
            return Err(Some((first.founders, first.threshold)));
        }
        Ok(desk::invite(vault, boot_pk, &address, wall_ms()))
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
    let mut vault = Vault::new(cluster, node.boot_seed());
    vault.founding = Some(founding(node, 0, role)?);
    node.founding.send_replace(crate::node::Founding::default());
    adopt(node, vault)
}

/// A join that is repeated goes on; with another invitation it begins anew, as long as nothing is locked yet.
async fn join_again(node: &Arc<Node>, id: [u8; 32], cluster: ClusterId, role: Role) -> Result<(), WireError> {
    let taken = node.update_vault(move |vault| {
        let unlocked = vault.lock.is_none();
        match vault.founding.as_mut().map(|founding| &mut founding.role) {
            Some(Role::Founder(invited) | Role::Joiner(invited)) if invited.key.id() == id => true,
            Some(current @ (Role::Founder(_) | Role::Joiner(_))) if unlocked => {
                *current = role;
                vault.identity.cluster = cluster;
                vault.identity.node = None;
                vault.roster = Roster::default();
                vault.held.clear();
                true
            }
            _ => false,
        }
    });
    if taken.await.map_err(|error| WireError::new(Code::Storage, error.to_string()))? {
        node.set_cluster();
        return Ok(());
    }
    Err(WireError::new(Code::Conflict, "this node belongs to a cluster already")
        .hint("each node joins once; another cluster needs an empty data directory"))
}

/// The cluster waited for the joiner in vain, or an operator gave it up.
fn revoked() -> WireError {
    WireError::new(Code::Denied, "this node was revoked, and the cluster does not take it in any more")
        .hint("empty its data directory, start it again, and join with another invitation")
}

/// Somebody sealed it meanwhile. Whoever waits for it to serve would wait for him.
fn sealed() -> WireError {
    WireError::new(Code::NotServing, "this node is sealed; what was begun goes on, and it serves once it is unsealed")
        .hint("`quorate node unseal`; `quorate status` shows how far it is")
}

fn founding(node: &Node, attempt: u32, role: Role) -> Result<Founding, WireError> {
    Ok(Founding { attempt, name: node.config.name.clone(), addresses: vec![address(node)?], role })
}

fn address(node: &Node) -> Result<Address, WireError> {
    let bad = |error: crate::vault::layout::LayoutError| {
        WireError::new(Code::BadRequest, format!("the address {}: {error}", node.config.advertise))
            .hint("start quorated with --advertise HOST:PORT")
    };
    node.config.advertise.parse().map_err(bad)
}

/// Makes the vault, once: of two commands at the same time the second finds the first one's.
fn adopt(node: &Arc<Node>, vault: Vault) -> Result<(), WireError> {
    let _one = node.adopting.lock();
    if node.has_vault() {
        return Err(WireError::new(Code::Conflict, "another command has just given this node a cluster")
            .hint("`quorate status` shows which; repeat the command to go on with it"));
    }
    let file = VaultFile::create(&node.dir, vault)
        .map_err(|error| WireError::new(Code::Storage, error.to_string()).hint(error.hint()))?;
    node.adopt_vault(file);
    // Said at once, so that a second command sees that something is under way.
    node.enter(Phase::Joining);
    Ok(())
}

/// Sends progress until this node serves, or founding ended without it.
async fn follow(node: &Arc<Node>, mut invitations: Vec<String>, caller: &mut Caller) -> Result<(), WireError> {
    let gone = || WireError::new(Code::Internal, "the caller is gone");
    let mut shown = None;
    while node.phase() != Phase::Serving {
        let founding = node.founding.borrow().clone();
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
            let progress = AdminProgress { invitations: std::mem::take(&mut invitations), step, waiting_for };
            let written = frame::write(&mut caller.write, FrameKind::Progress, 0, &wire::encode(&progress)).await;
            written.map_err(|_| gone())?;
            shown = Some(now);
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            // He has nothing more to say: this is the end of his command.
            _ = caller.reader.next() => return Err(gone()),
        }
    }
    Ok(())
}

async fn local_status(node: &Arc<Node>) -> LocalStatus {
    let full = match node.replica() {
        Some(replica) if admits(node.phase(), Door::Status) => Some(status::full(node, &replica).await),
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
    use crate::serve::answer::tests::node_of;
    use quorate_shares::secret::Secret;

    const SOON: Duration = Duration::from_secs(30);

    /// Mutated: without the look at the phase, the command waits for ever for a node that will never serve.
    #[tokio::test]
    async fn a_command_ends_when_the_node_is_revoked_while_it_joins() {
        assert_eq!(follow_into(Phase::Revoked).await.code, Code::Denied, "it will never serve");
    }

    /// Mutated in the same way: it waits for somebody to unseal the node, and does not say so.
    #[tokio::test]
    async fn a_command_ends_when_the_node_is_sealed_while_it_joins() {
        let ended = follow_into(Phase::Sealed).await;
        assert_eq!(ended.code, Code::NotServing);
        assert!(ended.hint.is_some_and(|hint| hint.contains("quorate node unseal")));
    }

    /// What a command says in the end that follows a node which enters `phase`.
    async fn follow_into(phase: Phase) -> WireError {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let node = node_of(dir.path(), Vault::new(ClusterId([1; 16]), Secret::random(&mut random::system())));
        node.enter(Phase::Joining);
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        let (read, write) = ours.into_split();
        let mut caller = Caller { reader: FrameReader::new(read), write };
        let (theirs, _open) = theirs.into_split();
        let mut shown = FrameReader::new(theirs);

        let follow = follow(&node, Vec::new(), &mut caller);
        let turn = async {
            let progress = shown.next().await.expect("readable").expect("it is followed");
            assert_eq!(progress.kind, FrameKind::Progress);
            node.lease.bar(phase == Phase::Sealed);
            node.enter(phase);
        };
        let (ended, ()) = timeout(SOON, async { tokio::join!(follow, turn) }).await.expect("it ends");
        ended.expect_err("it does not serve")
    }
}
