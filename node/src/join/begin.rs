//! How an operator begins: what `quorate cluster init` and `quorate node join` give a node, checked and made durable.

use std::sync::Arc;
use std::time::Duration;

use quorate_client::error::Code;
use quorate_client::wire::WireError;
use quorate_shares::ids::ClusterId;
use quorate_shares::order::{LabelledKey, is_label};
use quorate_shares::secret::Secret;
use quorate_shares::split::Threshold;
use tracing::info;

use crate::base::clock::wall_ms;
use crate::base::random;
use crate::join::registry;
use crate::node::Node;
use crate::vault::invitation::{Invitation, InvitationError};
use crate::vault::layout::{Address, FormatError};
use crate::vault::{FIRST_FOUNDER, FirstFounder, Founding, FoundingStep, Invited, Role, Vault};

/// Pause between two looks for a vault.
const LOOK: Duration = Duration::from_millis(100);

/// Returns once an operator has given this node something to found or to join.
pub async fn initialised(node: &Arc<Node>) {
    while !node.has_vault() {
        tokio::time::sleep(LOOK).await;
    }
}

/// The options of `cluster init`, checked.
pub struct FoundingOptions {
    founders: u8,
    threshold: u8,
}

impl FoundingOptions {
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
pub async fn init(node: &Arc<Node>, options: FoundingOptions, operator: LabelledKey) -> Result<Vec<String>, WireError> {
    if !operator.key.is_strict() || !is_label(&operator.label) {
        return Err(WireError::new(Code::BadRequest, "the key or the label of the operator is malformed"));
    }
    let FoundingOptions { founders, threshold } = options;
    let first = FirstFounder {
        founders,
        threshold,
        invitations: Vec::new(),
        operator: operator.clone(),
        so_far: Vec::new(),
        step: FoundingStep::Gathering,
    };
    let new = founding(node, 1, Role::FirstFounder(first))?;
    let begun = replace_vault(node, move |seed, present| match present {
        Some(_) => Ok(None),
        None => {
            let mut vault = Vault::new(ClusterId(random::bytes()), seed);
            vault.identity.node = Some(FIRST_FOUNDER);
            vault.founding = Some(new);
            Ok(Some(vault))
        }
    });
    if begun.await? {
        info!(founders, threshold, "founding");
    }
    let boot_pk = node.enrolment().identity.boot().map(|boot| boot.public().0).unwrap_or_default();
    let address = address(node)?;
    let invited = node.update_vault(move |vault| {
        let Some((_, first)) = registry::view(vault) else { return Err(None) };
        if (first.founders, first.threshold, first.operator.key) != (founders, threshold, operator.key) {
            return Err(Some((first.founders, first.threshold)));
        }
        Ok(registry::invite(vault, boot_pk, &address, wall_ms()))
    });
    let conflict = |message: String| WireError::new(Code::Conflict, message);
    match invited.await.map_err(|error| WireError::new(Code::Storage, error.to_string()))? {
        Ok(invitations) => invitations.iter().map(text).collect(),
        Err(Some((founders, threshold))) => Err(conflict(format!(
            "founding is under way with other options: {founders} founders, threshold {threshold}, and its own operator key"
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

/// Begins to join the nodes that an invitation names. With the same invitation again it goes on. With another one it begins again
/// from nothing, as long as nothing is locked yet.
pub async fn join(node: &Arc<Node>, invitation: &str) -> Result<(), WireError> {
    let invitation: Invitation = invitation
        .trim()
        .parse()
        .map_err(|error: InvitationError| WireError::new(Code::BadRequest, error.to_string()).hint(error.hint()))?;
    let (key, cluster) = (invitation.key(), invitation.cluster);
    let id = key.id();
    let new = founding(node, 0, Role::Founder(Invited { key, inviters: invitation.inviters }))?;
    let begun = replace_vault(node, move |seed, present| {
        let mut vault = Vault::new(cluster, seed);
        vault.founding = Some(new);
        let Some(present) = present else { return Ok(Some(vault)) };
        if present.flags.revoked {
            return Err(revoked());
        }
        match present.founding.as_ref().map(|founding| &founding.role) {
            Some(Role::Founder(invited) | Role::Joiner(invited)) if invited.key.id() == id => Ok(None),
            Some(Role::Founder(_) | Role::Joiner(_)) if present.lock.is_none() => {
                vault.flags = present.flags;
                Ok(Some(vault))
            }
            _ => Err(WireError::new(Code::Conflict, "this node belongs to a cluster already")
                .hint("each node joins once; another cluster needs an empty data directory")),
        }
    });
    begun.await.map(drop)
}

/// [`Node::replace_vault`] for a command. Returns whether there is a new vault.
async fn replace_vault(
    node: &Arc<Node>,
    next: impl FnOnce(Secret<32>, Option<&Vault>) -> Result<Option<Vault>, WireError> + Send + 'static,
) -> Result<bool, WireError> {
    let here = Arc::clone(node);
    let taken = tokio::task::spawn_blocking(move || here.replace_vault(next)).await;
    let taken = taken.map_err(|panicked| {
        node.fail_for_panic_at_vault(&panicked);
        WireError::new(Code::Storage, panicked.to_string())
    })?;
    let is_new = taken.map_err(|error| WireError::new(Code::Storage, error.to_string()).hint(error.hint()))??;
    if is_new {
        // At once. Until the boot loop comes here, the status would still say `uninitialised`.
        node.enter_joining();
    }
    Ok(is_new)
}

fn founding(node: &Node, attempt: u32, role: Role) -> Result<Founding, WireError> {
    Ok(Founding { attempt, name: node.config.name.clone(), addresses: vec![address(node)?], role })
}

fn address(node: &Node) -> Result<Address, WireError> {
    let bad = |error: FormatError| {
        WireError::new(Code::BadRequest, format!("the address {}: {error}", node.config.advertise))
            .hint("start quorated with --advertise HOST:PORT")
    };
    node.config.advertise.parse().map_err(bad)
}

/// The answer to a node that the cluster gave up, or that an operator revoked.
pub fn revoked() -> WireError {
    WireError::new(Code::Denied, "this node was revoked, and the cluster does not take it in any more")
        .hint("empty its data directory, start it again, and join with another invitation")
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use futures::FutureExt;
    use quorate_shares::ids::NodeId;
    use tokio::task::JoinSet;

    use super::*;
    use crate::base::phase::Phase;
    use crate::join::founding;
    use crate::node::testing::node_of;
    use crate::peers::revocation;
    use crate::vault::inspect;
    use crate::vault::invitation::Inviter;

    /// Tasks that write under the enrolment that ends.
    const WRITERS: u64 = 8;

    fn invitation(cluster: u8) -> Invitation {
        let inviter = Inviter { boot_pk: [2; 32], address: "127.0.0.1:7250".parse().expect("an address") };
        let secret = Secret::random(&mut random::system());
        Invitation { cluster: ClusterId([cluster; 16]), secret, inviters: vec![inviter] }
    }

    /// A node that joins a cluster, and has not got far.
    async fn joining(dir: &Path) -> Arc<Node> {
        let node = node_of(dir, Vault::new(ClusterId([1; 16]), Secret::random(&mut random::system())));
        let first = invitation(1);
        let invited = Invited { key: first.key(), inviters: first.inviters };
        let made = super::founding(&node, 3, Role::Founder(invited)).expect("an address");
        node.update_vault(|vault| vault.founding = Some(made)).await.expect("durable");
        node.enter(Phase::Joining);
        node
    }

    /// Gives `node` an invitation to another cluster.
    async fn join_another(node: &Arc<Node>, cluster: u8) -> Result<(), WireError> {
        join(node, &invitation(cluster).text().expect("a text")).await
    }

    /// Each round joins another cluster while tasks of the enrolment before still write to the vault. Mutated: if the vault is
    /// written first and the enrolment is replaced later, the keys of such a task lie in the vault of the other cluster. There
    /// the same ids are other nodes.
    #[tokio::test(flavor = "multi_thread")]
    async fn work_of_the_last_invitation_writes_nothing_into_the_vault_of_the_next() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let node = joining(dir.path()).await;
        let seed = node.enrolment().identity.boot_seed();

        for cluster in 2..22 {
            let before = node.enrolment();
            let mut writers = JoinSet::new();
            for writer in 1..=WRITERS {
                let (node, before) = (Arc::clone(&node), Arc::clone(&before));
                writers.spawn(async move {
                    let mut written = 0;
                    let write = move |vault: &mut Vault| vault.held_for_mut(NodeId(writer)).away_s += 1;
                    while node.update_vault_of(Arc::clone(&before), write).await.is_ok() {
                        written += 1;
                    }
                    written
                });
            }
            while before.with_vault(|vault| vault.held.len() < WRITERS as usize).unwrap_or_default() {
                tokio::task::yield_now().await;
            }
            let next = invitation(cluster);
            let text = next.text().expect("a text");
            join(&node, &text).await.expect("another invitation is taken while nothing is locked");
            join(&node, &text).await.expect("the same again goes on");
            let written: u64 = writers.join_all().await.into_iter().sum();
            assert!(written >= WRITERS, "the control: {written} writes");

            let vault = inspect(dir.path()).expect("the vault on the disk");
            assert_eq!((vault.identity.cluster, node.cluster()), (next.cluster, next.cluster));
            assert!(vault.held.is_empty(), "cluster {cluster}: {} keys of the last one", vault.held.len());
            assert_eq!(vault.founding.map(|founding| founding.attempt), Some(0));
            assert!(vault.identity.boot_seed.same_as(&seed) && node.fatal().borrow().is_none());
            let discarded = node.discard_vault(&before, "refused").expect("nothing to remove");
            assert!(!discarded && node.has_vault(), "a late refusal of the last invitation means the last vault");
        }
    }

    /// Mutated: with a look at the enrolment that was read before the vault was replaced, a node that starts finds no vault, and
    /// ends.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_node_never_seems_to_have_no_vault_while_it_is_replaced() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let node = joining(dir.path()).await;
        let over = Arc::new(AtomicBool::new(false));
        let looker = {
            let (node, over) = (Arc::clone(&node), Arc::clone(&over));
            thread::spawn(move || {
                let mut looks = 0;
                while !over.load(Ordering::Relaxed) {
                    assert!(node.has_vault(), "after {looks} looks");
                    looks += 1;
                }
                looks
            })
        };
        for cluster in 2..32 {
            let write = tokio::spawn({
                let node = Arc::clone(&node);
                async move { node.update_vault(|vault| vault.held_for_mut(NodeId(1)).away_s += 1).await }
            });
            join_another(&node, cluster).await.expect("it is taken");
            write.await.expect("no panic").expect("it is written into one vault or the other");
        }
        over.store(true, Ordering::Relaxed);
        assert!(looker.join().expect("it always has one") > 30, "the control");
    }

    /// The cluster revokes the node at the moment at which an operator gives it another invitation. Mutated: without the look at the
    /// flag, the next vault is born revoked, and the command waits for ever.
    #[tokio::test]
    async fn a_revoked_node_takes_no_other_invitation() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let node = joining(dir.path()).await;
        node.update_vault(|vault| vault.flags.revoked = true).await.expect("durable");
        assert_eq!(join_another(&node, 9).await.expect_err("it stays revoked").code, Code::Denied);
        assert_eq!(inspect(dir.path()).expect("a vault").identity.cluster, ClusterId([1; 16]));
    }

    /// The boot loop may be faster than the command. Mutated: a command that enters Joining in any phase makes a node that serves
    /// stay in Joining for ever.
    #[tokio::test]
    async fn a_command_does_not_set_a_phase_back() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let node = joining(dir.path()).await;
        for phase in [Phase::Open, Phase::Revoked] {
            node.enter(phase);
            join_another(&node, 9).await.expect("it is taken");
            assert_eq!(node.phase(), phase);
        }
        let fresh = tempfile::tempdir().expect("a temporary directory");
        let fresh = node_of(fresh.path(), Vault::new(ClusterId([1; 16]), Secret::random(&mut random::system())));
        assert!(fresh.discard_vault(&fresh.enrolment(), "refused").expect("removes it"));
        join_another(&fresh, 9).await.expect("it is taken");
        assert_eq!(fresh.phase(), Phase::Joining, "the control");
    }

    /// Another invitation comes at the moment at which the node draws its keys. Mutated: if only the start of the node draws them, it
    /// says "no keys" for ever.
    #[tokio::test]
    async fn keys_are_drawn_for_the_invitation_that_counts() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let node = joining(dir.path()).await;
        let last = node.enrolment();
        join_another(&node, 9).await.expect("it is taken");
        last.identity.unlock(founding::draw_keys());
        let drawn = async {
            while node.enrolment().identity.own_keys().is_none() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            _ = founding::run(&node) => panic!("no cluster is there"),
            drawn = tokio::time::timeout(Duration::from_secs(30), drawn) => drawn.expect("keys are drawn"),
        }
    }

    /// What peers of the last cluster say counts for the last vault only. Mutated: without `biased` the next vault is flagged in
    /// half of the rounds; if `stay_revoked` waits for ever after a refusal, no later invitation leads anywhere.
    #[tokio::test]
    async fn a_revocation_from_the_last_cluster_means_the_last_vault() {
        for refused in [false, true].repeat(8) {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let node = joining(dir.path()).await;
            let last = node.enrolment();
            let awaited = revocation::awaited(&node);
            tokio::pin!(awaited);
            assert!(awaited.as_mut().now_or_never().is_none());
            last.revocation.accept();
            match refused {
                true => assert!(node.discard_vault(&last, "refused").expect("removes it")),
                false => join_another(&node, 9).await.expect("it is taken"),
            }
            assert!(awaited.now_or_never().is_none(), "it was about the last one");
            let over = revocation::stay_revoked(&node, &last);
            tokio::time::timeout(Duration::from_secs(30), over).await.expect("it ends, and the node begins again");
            assert!(
                node.phase() != Phase::Revoked && !node.with_vault(|vault| vault.flags.revoked).unwrap_or_default()
            );
        }
    }
}
