//! The leader's loop: it compares the state with what the operator asked for, and does the next step.
//!
//! Every step can be repeated, and any leader goes on where the last one stopped: nothing is remembered here. What is owed
//! is decided by the pure [`plan::next`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use quorate_client::conn::Lane;
use quorate_raft::Replica;
use quorate_raft::command::{Change, Command, EpochAck, Ready, Verified};
use quorate_raft::plan::{self, Step, Unverified};
use quorate_raft::state::State;
use quorate_shares::ids::{Epoch, KeyUid, KeyVersion, NodeId};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::clock::wall_ms;
use crate::node::Node;
use crate::peer::{PeerReply, PeerRequest, Refusal, VerifyRequest};

/// How long a holder may take to open and check a list of shares.
const HOLDER: Duration = Duration::from_secs(5);
/// Pause after a step that did not succeed.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs while the node runs; acts while it leads. Never returns.
pub async fn run(node: Arc<Node>, replica: Replica) {
    let (mut changes, mut leadership) = (replica.changes(), replica.leadership());
    loop {
        changes.borrow_and_update();
        let leads = leadership.borrow_and_update().am_leader;
        let step = if leads { replica.read(plan::next) } else { Step::Nothing };
        let done = match step {
            Step::AwaitFounding | Step::Nothing => {
                tokio::select! {
                    _ = changes.changed() => {}
                    _ = leadership.changed() => {}
                    () = sleep(Duration::from_secs(1)) => {}
                }
                continue;
            }
            Step::Propose(change) => propose(&replica, change).await,
            Step::CollectAcks { epoch, missing, .. } => collect_acks(&node, &replica, epoch, missing).await,
            Step::Verify { records } => verify(&node, &replica, records).await,
        };
        if !done {
            let _ = timeout(PAUSE, leadership.changed()).await;
        }
    }
}

async fn propose(replica: &Replica, change: Change) -> bool {
    let kind = change.kind();
    match replica.propose(Command::new(wall_ms(), change)).await {
        Ok(_) => true,
        Err(error) => {
            debug!(kind, %error, "step not done");
            false
        }
    }
}

/// Asks holders whether they opened and checked every record of an epoch, and notes each that did.
async fn collect_acks(node: &Arc<Node>, replica: &Replica, epoch: Epoch, missing: Vec<NodeId>) -> bool {
    let index = replica.applied_index();
    let answers = missing.into_iter().map(|holder| async move {
        if holder == node.id() {
            return (holder, check_epoch(node, replica, epoch, index).await.ok());
        }
        let request = PeerRequest::AckEpoch { epoch, index };
        match node.sessions.ask(holder, Lane::Ordinary, &request, HOLDER).await {
            Ok(PeerReply::EpochAck { records }) => (holder, Some(records)),
            _ => (holder, None),
        }
    });
    let mut any = false;
    for (holder, records) in join_all(answers).await {
        if let Some(records) = records {
            info!(%epoch, %holder, records, "holder acknowledged the epoch");
            any |= propose(replica, Change::EpochAck(EpochAck { epoch, node: holder, records })).await;
        }
    }
    any
}

/// Has new versions checked by their holders, and declares ready those that reached their threshold.
async fn verify(node: &Arc<Node>, replica: &Replica, records: Vec<Unverified>) -> bool {
    // A new version has its records in one epoch, or in two while an epoch is pending: one request each.
    let mut by_epoch: BTreeMap<Epoch, Vec<Unverified>> = BTreeMap::new();
    for record in records {
        by_epoch.entry(record.epoch).or_default().push(record);
    }
    let mut any = false;
    for (epoch, records) in by_epoch {
        let holders: BTreeSet<NodeId> = records.iter().flat_map(|record| record.holders.iter().copied()).collect();
        let versions: Vec<_> = records.iter().map(|record| (record.uid, record.version)).collect();
        let request = VerifyRequest { epoch, index: replica.applied_index(), versions };
        let verified = ask_holders(node, replica, &holders, &request, &records).await;
        if !verified.is_empty() {
            any |= propose(replica, Change::Ready(Ready { epoch, verified })).await;
        }
    }
    any
}

/// Asks every holder at once and stops waiting when each version has as many holders as it needs.
async fn ask_holders(
    node: &Arc<Node>,
    replica: &Replica,
    holders: &BTreeSet<NodeId>,
    request: &VerifyRequest,
    records: &[Unverified],
) -> Vec<Verified> {
    use futures::StreamExt;
    let mut answers: futures::stream::FuturesUnordered<_> = holders
        .iter()
        .map(|&holder| async move {
            if holder == node.id() {
                return (holder, check_shares(node, replica, request).await.unwrap_or_default());
            }
            let asked = PeerRequest::Verify(request.clone());
            match node.sessions.ask(holder, Lane::Ordinary, &asked, HOLDER).await {
                Ok(PeerReply::Verified(verified)) => (holder, verified),
                _ => (holder, Vec::new()),
            }
        })
        .collect();
    let mut by = Tally::new();
    while let Some((holder, verified)) = answers.next().await {
        for version in verified {
            by.entry(version).or_default().insert(holder);
        }
        if reached(records, &by).len() == records.len() {
            break;
        }
    }
    reached(records, &by)
}

/// Who opened and checked a share of which version: distinct holders, never answers.
pub type Tally = BTreeMap<(KeyUid, KeyVersion), BTreeSet<NodeId>>;

/// Those of `records` that as many holders checked as they need.
pub fn reached(records: &[Unverified], by: &Tally) -> Vec<Verified> {
    let checked = records.iter().filter_map(|record| {
        let (uid, version) = (record.uid, record.version);
        let holders = by.get(&(uid, version)).filter(|holders| holders.len() >= usize::from(record.threshold))?;
        Some(Verified { uid, version, holders: holders.clone() })
    });
    checked.collect()
}

/// The holder's side: opens and checks its shares of the named versions, and answers those that are right.
///
/// # Errors
/// [`Refusal::Behind`] if this node has not applied them yet.
pub async fn check_shares(
    node: &Arc<Node>,
    replica: &Replica,
    request: &VerifyRequest,
) -> Result<Vec<(KeyUid, KeyVersion)>, Refusal> {
    if request.versions.len() > crate::peer::VERSIONS_MAX {
        return Err(Refusal::TooMany);
    }
    replica.wait_applied(request.index, HOLDER).await.map_err(|_| Refusal::Behind)?;
    let holder = node.holder().ok_or(Refusal::WrongEpoch)?;
    let mut verified = Vec::with_capacity(request.versions.len());
    for &(uid, version) in &request.versions {
        let opened =
            holder.facts(replica, request.epoch, uid, version).and_then(|facts| holder.open(replica, &facts).map(drop));
        match opened {
            Ok(()) => verified.push((uid, version)),
            Err(error) => warn!(%uid, %version, %error, "own share of a new version does not open"),
        }
    }
    Ok(verified)
}

/// The holder's side: how many records of an epoch it opened and checked; an error unless it is all of them.
///
/// # Errors
/// [`Refusal::Behind`] if this node has not applied them yet, [`Refusal::WrongEpoch`] if it cannot open them all.
pub async fn check_epoch(node: &Arc<Node>, replica: &Replica, epoch: Epoch, index: u64) -> Result<u64, Refusal> {
    replica.wait_applied(index, HOLDER).await.map_err(|_| Refusal::Behind)?;
    let (records, versions) = replica.read(|state| records_of(state, epoch)).ok_or(Refusal::WrongEpoch)?;
    for versions in versions.chunks(crate::peer::VERSIONS_MAX) {
        let request = VerifyRequest { epoch, index, versions: versions.to_vec() };
        if check_shares(node, replica, &request).await?.len() != versions.len() {
            return Err(Refusal::WrongEpoch);
        }
    }
    Ok(records)
}

/// How many records an epoch has, and of which versions they are.
pub fn records_of(state: &State, epoch: Epoch) -> Option<(u64, Vec<(KeyUid, KeyVersion)>)> {
    let records = state.epoch(epoch)?.records;
    let versions = state
        .keys
        .values()
        .flat_map(|key| key.versions.values().map(|version| (key.uid, version)))
        .filter(|(_, version)| version.record(epoch).is_some())
        .map(|(uid, version)| (uid, version.version));
    Some((records, versions.collect()))
}
