//! The absence window: how long a member may be away and still be unlocked without an operator.
//!
//! A stolen disk that can reach the nodes looks like a machine that reboots. But a machine reboots within minutes, or a person
//! stands beside it and repairs it. So each node counts, for every peer that it holds lock keys for, how long it has had no op
//! session with the peer. Beyond the window it refuses the peer's LockOpen until an operator admits the peer. From half of the
//! window on the status and an alarm say so. The alarm ends by itself when the peer is back.
//!
//! Only time in which this node serves is counted, or, if it is sealed, in which a quorum answers it. If a site loses power for a
//! month, nothing is counted, and the site comes back by itself. The count lies in the vault, so a restart does not reset it. It
//! is written every ten minutes, when it passes the window, and when it ends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use quorate_client::error::Code;
use quorate_client::wire::{Alarm, WireError};
use quorate_shares::ids::NodeId;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::base::clock::boot_ms;
use crate::base::phase::Phase;
use crate::lease::renewal;
use crate::memory::absences::remember;
use crate::messages::caller::Caller;
use crate::node::Node;
use crate::node::enrolment::Enrolment;

/// How often the sessions are checked.
const TICK: Duration = Duration::from_secs(1);
/// At most this time counts between two checks. If more has passed, the process was stopped, or the machine slept.
const TICK_MS_MAX: u64 = 2_000;

/// Counts absences while this node runs. Never returns.
pub async fn watch(node: Arc<Node>) {
    let window_ms = node.config.timing.absence_window_ms;
    let (mut last_ms, mut served) = (boot_ms(), false);
    let mut warned = BTreeSet::new();
    loop {
        sleep(TICK).await;
        let serves = serves(&node).await;
        let now_ms = boot_ms();
        let passed_ms = if served && serves { (now_ms - last_ms).min(TICK_MS_MAX) } else { 0 };
        (last_ms, served) = (now_ms, serves);
        count(&node.enrolment(), passed_ms);
        warn_of(&node, &mut warned, window_ms);
        let owed =
            node.with_vault(|vault| node.enrolment().locks.absences.lock().owed(vault, window_ms)).unwrap_or_default();
        if owed.is_empty() {
            continue;
        }
        let written = node.update_vault(move |vault| remember(vault, &owed)).await;
        if let Err(error) = written {
            warn!(%error, "absences are not written");
        }
    }
}

/// Whether the cluster serves, as far as this node can tell. A sealed node has no lease, and opens the locks of others all the same. So
/// it asks for what would renew a lease.
async fn serves(node: &Node) -> bool {
    match (node.phase(), node.replica()) {
        (Phase::Serving, _) => true,
        (Phase::Sealed, Some(replica)) => renewal::confirm(node, &replica).await.is_ok(),
        _ => false,
    }
}

/// Ends the absence of each peer that has a session, and adds `passed_ms` to the absence of every other peer.
fn count(enrolment: &Enrolment, passed_ms: u64) {
    let (roster, me) = (enrolment.roster.current(), enrolment.identity.id());
    let mut absences = enrolment.locks.absences.lock();
    for peer in roster.members.iter().map(|member| member.node).filter(|&peer| peer != me) {
        match enrolment.peers.sessions.with(peer) {
            Some(_) => absences.end(peer),
            None => absences.count(peer, passed_ms),
        }
    }
}

/// Raises an alarm about each peer that has been away for half of the window, once per absence. Closes it when the absence is
/// over, or the peer is no member any more.
fn warn_of(node: &Node, warned: &mut BTreeSet<NodeId>, window_ms: u64) {
    let roster = node.roster();
    let peers = roster.members.iter().filter(|member| member.node != node.id() && !member.standing.denied);
    let long_away: BTreeMap<_, _> =
        peers.filter(|peer| long_away_ms(node, peer.node).is_some()).map(|peer| (peer.node, &peer.name)).collect();
    warned.retain(|peer| long_away.contains_key(peer));
    for (&peer, name) in &long_away {
        if warned.insert(peer) {
            let message = format!("{name} has been away for {} while others served", duration(window_ms.div_ceil(2)));
            let hint = format!("after {} it must be admitted: `quorate node admit {name}`", duration(window_ms));
            node.alarm("away", peer, format!("{message}; {hint}"));
        }
    }
    let has_ended =
        |alarm: &Alarm| alarm.code == "away" && !long_away.values().any(|&name| alarm.node.as_ref() == Some(name));
    if node.alarms.open().iter().any(has_ended) {
        node.alarms.close(has_ended);
    }
}

/// For how long `peer` has been away, in milliseconds, once that is half of the window.
pub fn long_away_ms(node: &Node, peer: NodeId) -> Option<u64> {
    let away_ms = node.enrolment().locks.absences.lock().of(peer);
    (away_ms >= node.config.timing.absence_window_ms.div_ceil(2)).then_some(away_ms)
}

/// Whether `peer` has been away for longer than the window. If so, raises an alarm.
pub fn is_over(node: &Node, peer: NodeId) -> bool {
    let away_ms = node.enrolment().locks.absences.lock().of(peer);
    let over = away_ms >= node.config.timing.absence_window_ms;
    if over {
        let name = node.name_of(peer);
        let message = format!("{name} asks to be unlocked after {} of absence", duration(away_ms));
        node.alarm("away_too_long", peer, format!("{message}: `quorate node admit {name}` lets it in"));
    }
    over
}

/// `node admit` on this node only: ends the absence of `peer`, so this node unlocks it again. Durable when this returns.
///
/// # Errors
/// If this node is locked, or its vault cannot be written.
pub async fn admit(node: &Arc<Node>, peer: NodeId, caller: &Caller) -> Result<(), WireError> {
    if node.enrolment().identity.own_keys().is_none() || node.replica().is_none() {
        return Err(WireError::new(Code::Locked, format!("{} is {}", node.name(), node.phase()))
            .hint("ask a member that is unlocked"));
    }
    let away_ms = node.enrolment().locks.absences.lock().of(peer);
    node.enrolment().locks.absences.lock().end(peer);
    let written = node.update_vault(move |vault| remember(vault, &[(peer, 0)])).await;
    written.map_err(|error| WireError::new(Code::Storage, error.to_string()).hint(error.hint()))?;
    node.close_alarm("away_too_long", peer);
    info!(%peer, away_ms, %caller, "admitted by an operator");
    if away_ms > 0 {
        let message = format!("an operator admitted {} after {} of absence", node.name_of(peer), duration(away_ms));
        node.alarm("admitted", peer, message);
    }
    Ok(())
}

/// A duration as text.
fn duration(ms: u64) -> String {
    match ms / 1_000 {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3_600),
    }
}
