//! The absence window: how long a member may be away and still come back without a person.
//!
//! A stolen disk with a way to reach the nodes looks like a reboot. It does not look like one for ever: machines come back
//! within hours, or somebody knows why not. So each node counts, for every peer that it holds lock keys for, how long it has
//! had no op session with it, and beyond the window it refuses the peer's LockOpen until an operator admits the peer.
//!
//! Only time in which this node serves is counted. A site that lost power for a month counts nothing, and comes back by
//! itself. The count lies in the vault, so that a restart does not forget it; it is written every ten minutes and whenever it
//! matters: when it passes the window, and when it ends.

use std::sync::Arc;
use std::time::Duration;

use quorate_client::error::Code;
use quorate_client::wire::WireError;
use quorate_shares::ids::NodeId;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::base::clock::boot_ms;
use crate::base::phase::Phase;
use crate::memory::absences::remember;
use crate::messages::caller::Caller;
use crate::node::Node;
use crate::node::enrolment::Enrolment;

/// How often sessions are looked at.
const TICK: Duration = Duration::from_secs(1);
/// More than this between two looks is no running time: the process was stopped, or the machine slept.
const TICK_MS_MAX: u64 = 2_000;

/// Counts for as long as this node runs. Never returns.
pub async fn watch(node: Arc<Node>) {
    let window_ms = node.config.timing.absence_window_ms;
    let (mut last_ms, mut served) = (boot_ms(), false);
    loop {
        sleep(TICK).await;
        let (now_ms, serves) = (boot_ms(), node.phase() == Phase::Serving);
        let passed_ms = if served && serves { (now_ms - last_ms).min(TICK_MS_MAX) } else { 0 };
        (last_ms, served) = (now_ms, serves);
        note(&node.enrolment(), passed_ms);
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

/// Notes who is there, and that everybody else has been away for `passed_ms` more.
fn note(enrolment: &Enrolment, passed_ms: u64) {
    let (roster, me) = (enrolment.roster.current(), enrolment.identity.id());
    let mut absences = enrolment.locks.absences.lock();
    for peer in roster.members.iter().map(|member| member.node).filter(|&peer| peer != me) {
        match enrolment.peers.sessions.with(peer) {
            Some(_) => absences.end(peer),
            None => absences.count(peer, passed_ms),
        }
    }
}

/// Whether `peer` has been away for longer than the window; then an alarm says so.
pub fn is_over(node: &Node, peer: NodeId) -> bool {
    let away_ms = node.enrolment().locks.absences.lock().of(peer);
    let over = away_ms >= node.config.timing.absence_window_ms;
    if over {
        let name = node.name_of(peer);
        let message = format!("{name} asks to be unlocked after {} of absence", words(away_ms));
        node.alarm("away_too_long", peer, format!("{message}: `quorate node admit {name}` lets it in"));
    }
    over
}

/// `node admit` at this node alone: `peer` may come back, whatever its absence. Durable when this returns.
///
/// # Errors
/// If this node is locked, or its vault cannot be written.
pub async fn admit(node: &Arc<Node>, peer: NodeId, caller: &Caller) -> Result<(), WireError> {
    if node.enrolment().identity.own().is_none() || node.replica().is_none() {
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
        let message = format!("an operator admitted {} after {} of absence", node.name_of(peer), words(away_ms));
        node.alarm("admitted", peer, message);
    }
    Ok(())
}

/// A time that people count in hours, or, when it is short, in seconds.
fn words(ms: u64) -> String {
    match ms / 1_000 {
        seconds @ 0..7_200 => format!("{seconds} s"),
        seconds => format!("{} h", seconds / 3_600),
    }
}
