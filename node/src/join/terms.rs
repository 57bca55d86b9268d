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
    /// The inviting node refused the invitation while this node had no lock.
    #[error("{0}")]
    Refused(&'static str),
    /// A step that must not fail has failed.
    #[error("{0}")]
    Failed(String),
}

/// The terms for this node's first lock, once all members are known.
pub(crate) struct Terms {
    pub(crate) attempt: u32,
    pub(crate) me: NodeId,
    pub(crate) threshold: u8,
    pub(crate) roster: Roster,
}

impl Terms {
    /// The threshold of this node's first lock. It is at least 2 for a joiner: a node that joins a solo node must not open its
    /// own lock without a peer.
    pub(crate) fn lock_threshold(&self) -> u8 {
        if self.joins() { self.threshold.max(2) } else { self.threshold }
    }

    /// Whether these are the terms of a running cluster. Attempts at founding count from 1.
    pub(crate) fn joins(&self) -> bool {
        self.attempt == 0
    }
}

/// What this node registers with the inviting node, or, as the first founder, with itself.
pub(crate) fn registration(enrolment: &Enrolment) -> Option<Registration> {
    let own = enrolment.identity.own_keys()?;
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

/// Adopts the roster of an attempt. Sessions of an earlier attempt are closed, since their keys may be gone.
pub(crate) fn adopt_roster(node: &Arc<Node>, enrolment: &Enrolment, me: NodeId, roster: &Roster) {
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
