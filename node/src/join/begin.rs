//! How an operator begins: what `quorate cluster init` and `quorate node join` give a node, checked and made durable.

use std::sync::Arc;
use std::time::Duration;

use quorate_client::error::Code;
use quorate_client::wire::WireError;
use quorate_shares::ids::ClusterId;
use quorate_shares::split::Threshold;
use tracing::info;

use crate::base::clock::wall_ms;
use crate::base::phase::Phase;
use crate::base::random;
use crate::join::registry;
use crate::node::Node;
use crate::vault::invitation::Invitation;
use crate::vault::layout::Address;
use crate::vault::{FirstFounder, Founding, FoundingStep, Invited, Role, Roster, Vault};

/// How often it is looked whether the node has a vault.
const LOOK: Duration = Duration::from_millis(100);

/// Returns once an operator has given this node something to found or to join.
pub async fn initialised(node: &Arc<Node>) {
    while !node.has_vault() {
        tokio::time::sleep(LOOK).await;
    }
}

/// What a founder asked for, checked.
pub struct FoundingTerms {
    founders: u8,
    threshold: u8,
}

impl FoundingTerms {
    pub fn check(founders: u8, threshold: Option<u8>, solo: bool, no_redundancy: bool) -> Result<Self, WireError> {
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
pub async fn init(node: &Arc<Node>, terms: FoundingTerms, token_hash: [u8; 32]) -> Result<Vec<String>, WireError> {
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
pub async fn join(node: &Arc<Node>, invitation: &str) -> Result<(), WireError> {
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

/// The cluster gave up the joiner after waiting for it, or an operator revoked it.
pub fn revoked() -> WireError {
    WireError::new(Code::Denied, "this node was revoked, and the cluster does not take it in any more")
        .hint("empty its data directory, start it again, and join with another invitation")
}
