//! What a founder and a joiner have in common: the terms of the attempt, and what a node registers.

use std::sync::Arc;

use quorate_shares::ids::NodeId;
use quorate_shares::kem::PublicKey;

use crate::node::Node;
use crate::node::enrolment::Enrolment;
use crate::peers::session;
use crate::vault::invitation::Registration;
use crate::vault::{Roster, Vault};

/// Why founding ended without a cluster.
#[derive(Debug, thiserror::Error)]
pub enum FoundError {
    /// The first founder refused the invitation before this node had anything to lose.
    #[error("{0}")]
    Refused(&'static str),
    /// Something that must not fail failed.
    #[error("{0}")]
    Failed(String),
}

/// Everybody is known: what this node's lock is to be made for.
pub(crate) struct Terms {
    pub(crate) attempt: u32,
    pub(crate) me: NodeId,
    pub(crate) threshold: u8,
    pub(crate) roster: Roster,
}

impl Terms {
    /// The threshold that this node's first lock is made for. Whoever joins a solo node never opens its lock alone.
    pub(crate) fn lock_threshold(&self) -> u8 {
        if self.joins() { self.threshold.max(2) } else { self.threshold }
    }

    /// Whether they are those of a cluster that runs already: attempts at founding count from 1.
    pub(crate) fn joins(&self) -> bool {
        self.attempt == 0
    }
}

/// What this node registers with the first founder, or with itself.
pub(crate) fn registration(enrolment: &Enrolment) -> Option<Registration> {
    let own = enrolment.identity.own()?;
    let (name, addresses) = enrolment
        .with_vault(|vault| vault.founding.as_ref().map(|founding| (founding.name.clone(), founding.addresses.clone())))
        .flatten()?;
    Some(Registration {
        boot_pk: enrolment.identity.boot()?.public().0,
        op_pk: own.op.public().0,
        share_pk: PublicKey::of_seed(&own.bundle.share_keys.last()?.seed),
        name,
        addresses,
    })
}

/// Goes by the identities of an attempt: sessions of an earlier one are closed, since their keys may be gone.
pub(crate) fn settle_roster(node: &Arc<Node>, enrolment: &Enrolment, me: NodeId, roster: &Roster) {
    enrolment.identity.set_id(me);
    if *enrolment.roster.current() != *roster {
        enrolment.roster.set(roster.clone());
        enrolment.peers.sessions.close_all("the founders' identities changed");
    }
    session::keep_all(node);
}

pub(crate) fn attempt(vault: &Vault) -> Option<u32> {
    vault.founding.as_ref().map(|founding| founding.attempt)
}
