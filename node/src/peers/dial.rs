//! Dialling a node: at the addresses that the cluster records, and at those that the configuration of this node names.

use std::time::Duration;

use quorate_client::conn::{Conn, close};
use quorate_client::identity::{self, DialError, Identity, Protocol, PublicKey};
use quorate_client::reach::{ReachError, Unreached, reach};
use quorate_shares::ids::NodeId;

use crate::node::Node;
use crate::node::enrolment::Enrolment;

use crate::base::endpoint::family_mismatch;

/// A connection that is closed when this value is dropped.
pub struct Closing(pub Conn);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close(close::DONE, "done");
    }
}

/// Dials a member. Its pinned key decides who answers, so an address that is wrong or old does no harm.
///
/// # Errors
/// That it is no trusted member, or the reason of each address, in words.
pub async fn dial_member(
    node: &Node,
    enrolment: &Enrolment,
    peer: NodeId,
    protocol: MemberProtocol,
    deadline: Duration,
) -> Result<quinn::Connection, String> {
    let roster = enrolment.roster.current();
    let (known, me, protocol) = match protocol {
        MemberProtocol::Boot => (roster.reach_boot(peer), enrolment.identity.boot(), Protocol::Boot),
        MemberProtocol::Peer => (roster.reach(peer), enrolment.identity.op(), Protocol::Peer),
    };
    let (mut addresses, key) = known.ok_or("not in the roster")?;
    let me = me.ok_or("this node has no key for that yet")?;
    let hints = roster.member(peer).and_then(|member| node.config.peers.get(&member.name)).into_iter().flatten();
    addresses.extend(hints.cloned());
    dial(&node.endpoint, &addresses, &me, key, protocol, deadline).await
}

/// What members are dialled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberProtocol {
    /// [`Protocol::Boot`], with the boot keys of both.
    Boot,
    /// [`Protocol::Peer`], with the op keys of both.
    Peer,
}

/// Dials `addresses` side by side, and returns the first connection whose other side proves `key`.
///
/// # Errors
/// The reason of each address, in words.
pub async fn dial(
    endpoint: &quinn::Endpoint,
    addresses: &[String],
    me: &Identity,
    key: PublicKey,
    protocol: Protocol,
    deadline: Duration,
) -> Result<quinn::Connection, String> {
    let local = endpoint.local_addr().ok();
    let dial = async |target| match local.and_then(|local| family_mismatch(local, target)) {
        Some(mismatch) => Err(DialError::Unreachable(mismatch)),
        None => identity::dial(endpoint, target, me, key, protocol, deadline).await,
    };
    reach(addresses, deadline, dial).await.map_err(|unreached| {
        let reasons = unreached.into_iter().map(|Unreached { address, error }| match error {
            ReachError::Dial(DialError::WrongIdentity { presented }) => {
                format!("{address}: presents the identity {presented}, expected {key}")
            }
            error => format!("{address}: {error}"),
        });
        let reasons: Vec<_> = reasons.collect();
        if reasons.is_empty() { "no address".to_owned() } else { reasons.join("; ") }
    })
}
