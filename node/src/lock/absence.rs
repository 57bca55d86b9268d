//! The absence window: how long a member may be away and still come back without a person.
//!
//! A stolen disk with a way to reach the nodes looks like a reboot. It does not look like one for ever: machines come back
//! within hours, or somebody knows why not. So each node counts, for every peer that it holds lock keys for, how long it has
//! had no op session with it, and beyond the window it refuses the peer's LockOpen until an operator admits the peer.
//!
//! Only time in which this node serves is counted. A site that lost power for a month counts nothing, and comes back by
//! itself. The count lies in the vault, so that a restart does not forget it; it is written every ten minutes and whenever it
//! matters: when it passes the window, and when it ends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use quorate_client::conn::Lane;
use quorate_client::error::Code;
use quorate_client::wire::{Answer, Response, WireError};
use quorate_shares::ids::{NodeId, NodeName};
use tokio::time::sleep;
use tracing::{info, warn};

use crate::base::clock::boot_ms;
use crate::base::phase::Phase;
use crate::messages::peer::{PeerReply, PeerRequest};
use crate::node::Node;
use crate::service::api;
use crate::vault::Vault;

/// How often sessions are looked at.
const TICK: Duration = Duration::from_secs(1);
/// More than this between two looks is no running time: the process was stopped, or the machine slept.
const TICK_MS_MAX: u64 = 2_000;
/// A count is written again when it has grown by this.
const WRITE_MS: u64 = 600_000;
/// How long a peer may take to admit.
const PEER: Duration = Duration::from_secs(5);

/// For how long this node has served without a session with each peer.
#[derive(Debug, Default)]
pub struct Absences {
    away_ms: BTreeMap<NodeId, u64>,
}

impl Absences {
    /// As the vault remembers it.
    pub fn remembered(vault: &Vault) -> Self {
        let away = vault.held.iter().map(|held| (held.peer, u64::from(held.away_s) * 1_000));
        Self { away_ms: away.collect() }
    }

    /// How long `peer` has been away, in milliseconds.
    pub fn of(&self, peer: NodeId) -> u64 {
        self.away_ms.get(&peer).copied().unwrap_or_default()
    }

    /// `peer` has been away for so much longer.
    pub fn count(&mut self, peer: NodeId, ms: u64) {
        let away = self.away_ms.entry(peer).or_default();
        *away = away.saturating_add(ms);
    }

    /// `peer` is there, or may come back: its absence is over.
    pub fn end(&mut self, peer: NodeId) {
        self.away_ms.remove(&peer);
    }

    /// What `vault` should remember instead of what it does, in seconds, rounded up: whose absence ended, passed the window,
    /// or grew much. A peer for which no lock key is held has nothing to be refused.
    fn owed(&self, vault: &Vault, window_ms: u64) -> Vec<(NodeId, u32)> {
        let owed = vault.held.iter().filter_map(|held| {
            let (now_ms, known_ms) = (self.of(held.peer), u64::from(held.away_s) * 1_000);
            let passed = now_ms >= window_ms && known_ms < window_ms;
            let worth = (now_ms == 0 && known_ms > 0) || passed || now_ms >= known_ms + WRITE_MS;
            worth.then(|| (held.peer, u32::try_from(now_ms.div_ceil(1_000)).unwrap_or(u32::MAX)))
        });
        owed.collect()
    }
}

/// Counts for as long as this node runs. Never returns.
pub async fn watch(node: Arc<Node>) {
    let window_ms = node.config.timing.absence_window_ms;
    let (mut last_ms, mut served) = (boot_ms(), false);
    loop {
        sleep(TICK).await;
        let (now_ms, serves) = (boot_ms(), node.phase() == Phase::Serving);
        let passed_ms = if served && serves { (now_ms - last_ms).min(TICK_MS_MAX) } else { 0 };
        (last_ms, served) = (now_ms, serves);
        note(&node, passed_ms);
        let owed = node.with_vault(|vault| node.absences.lock().owed(vault, window_ms)).unwrap_or_default();
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
fn note(node: &Node, passed_ms: u64) {
    let roster = node.roster();
    let mut absences = node.absences.lock();
    for peer in roster.members.iter().map(|member| member.node).filter(|&peer| peer != node.id()) {
        match node.sessions.with(peer) {
            Some(_) => absences.end(peer),
            None => absences.count(peer, passed_ms),
        }
    }
}

fn remember(vault: &mut Vault, owed: &[(NodeId, u32)]) {
    for held in &mut vault.held {
        if let Some((_, away_s)) = owed.iter().find(|(peer, _)| *peer == held.peer) {
            held.away_s = *away_s;
        }
    }
}

/// Whether `peer` has been away for longer than the window; then an alarm says so.
pub fn is_over(node: &Node, peer: NodeId) -> bool {
    let away_ms = node.absences.lock().of(peer);
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
pub async fn admit(node: &Arc<Node>, peer: NodeId) -> Result<(), WireError> {
    if node.own().is_none() || node.replica().is_none() {
        return Err(WireError::new(Code::Locked, format!("{} is {}", node.name(), node.phase()))
            .hint("ask a member that is unlocked"));
    }
    let away_ms = node.absences.lock().of(peer);
    node.absences.lock().end(peer);
    let written = node.update_vault(move |vault| remember(vault, &[(peer, 0)])).await;
    written.map_err(|error| WireError::new(Code::Storage, error.to_string()).hint(error.hint()))?;
    node.close_alarm("away_too_long", peer);
    info!(%peer, away_ms, "admitted by an operator");
    if away_ms > 0 {
        let message = format!("an operator admitted {} after {} of absence", node.name_of(peer), words(away_ms));
        node.alarm("admitted", peer, message);
    }
    Ok(())
}

/// `node admit` at every member: here, and at those that this node has a session with.
///
/// # Errors
/// If there is no such node, or this one cannot admit it.
pub async fn admit_everywhere(node: &Arc<Node>, name: &NodeName) -> Answer {
    let meant = api::member(node, name)?;
    if meant != node.id() {
        admit(node, meant).await?;
    }
    let roster = node.roster();
    let others = roster.members.iter().filter(|member| ![node.id(), meant].contains(&member.node));
    let answers = join_all(others.map(|member| async move {
        let answer = node.sessions.ask(member.node, Lane::Urgent, &PeerRequest::Admit { node: meant }, PEER).await;
        (member.name.clone(), matches!(answer, Ok(PeerReply::Done)))
    }));
    let (mut at, mut silent) = (Vec::new(), Vec::new());
    at.extend((meant != node.id()).then(|| node.name()));
    for (member, admitted) in answers.await {
        if admitted { at.push(member) } else { silent.push(member) }
    }
    at.sort();
    Ok(Response::Admitted { at, silent })
}

/// A time that people count in hours, or, when it is short, in seconds.
fn words(ms: u64) -> String {
    match ms / 1_000 {
        seconds @ 0..7_200 => format!("{seconds} s"),
        seconds => format!("{} h", seconds / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random;
    use quorate_shares::ids::ClusterId;
    use quorate_shares::secret::Secret;

    const PEER: NodeId = NodeId(2);
    const HOUR_MS: u64 = 3_600_000;
    const WINDOW_MS: u64 = 72 * HOUR_MS;

    fn vault(away_s: u32) -> Vault {
        let mut vault = Vault::new(ClusterId([1; 16]), Secret::random(&mut random::system()));
        vault.held_for_mut(PEER).away_s = away_s;
        vault
    }

    #[test]
    fn a_count_is_written_when_it_matters_and_otherwise_seldom() {
        let mut vault = vault(0);
        let mut absences = Absences::remembered(&vault);
        assert_eq!(absences.owed(&vault, WINDOW_MS), []);
        absences.count(PEER, WRITE_MS - 1);
        assert_eq!(absences.owed(&vault, WINDOW_MS), [], "not at every look");
        absences.count(PEER, 1);
        let owed = absences.owed(&vault, WINDOW_MS);
        assert_eq!(owed, [(PEER, 600)]);
        remember(&mut vault, &owed);
        assert_eq!(absences.owed(&vault, WINDOW_MS), [], "once");
        absences.count(PEER, 1_000);
        assert_eq!(absences.owed(&vault, 601_000), [(PEER, 601)], "it passed the window");
        absences.end(PEER);
        assert_eq!(absences.owed(&vault, WINDOW_MS), [(PEER, 0)], "it is over");
    }

    #[test]
    fn a_restart_goes_on_where_the_vault_was() {
        let vault = vault(7_200);
        assert_eq!(Absences::remembered(&vault).of(PEER), 2 * HOUR_MS);
        assert_eq!(Absences::remembered(&vault).of(NodeId(3)), 0, "never seen away");
    }

    #[test]
    fn a_peer_without_lock_keys_here_is_nothing_to_write() {
        let vault = Vault::new(ClusterId([1; 16]), Secret::random(&mut random::system()));
        let mut absences = Absences::default();
        absences.count(PEER, 2 * WINDOW_MS);
        assert_eq!(absences.owed(&vault, WINDOW_MS), []);
    }
}
