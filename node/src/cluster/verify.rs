//! How holders verify their shares: of new key versions, and of a new epoch.
//!
//! The leader asks, and proposes what enough holders have checked. New versions are verified in a loop of their own. So an
//! operation never waits for clients that make keys without end, and the clients never wait for an operation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use quorate_client::conn::Lane;
use quorate_raft::Replica;
use quorate_raft::command::{Change, EpochAck, Ready, Verified};
use quorate_raft::plan::{self, Unverified};
use quorate_shares::ids::{Epoch, KeyVersionId, NodeId};
use tokio::task::yield_now;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::cluster::{HOLDER, PAUSE, propose_here};
use crate::messages::peer::{PeerRefusal, PeerReply, PeerRequest, VERSIONS_MAX, VerifyRequest};
use crate::node::Node;

/// Shares that are checked before other tasks may run.
const CHECKED_AT_ONCE: usize = 32;

/// Lets the holders verify new versions while this node leads. Never returns.
pub async fn verify_new(node: Arc<Node>, replica: Replica) {
    let (mut changes, mut leadership) = (replica.changes(), replica.leadership());
    loop {
        changes.borrow_and_update();
        let leads = leadership.borrow_and_update().am_leader;
        let records = if leads { replica.read(plan::unverified) } else { Vec::new() };
        if records.is_empty() {
            tokio::select! {
                _ = changes.changed() => {}
                _ = leadership.changed() => {}
            }
        } else if !verify(&node, &replica, records).await {
            let _ = timeout(PAUSE, leadership.changed()).await;
        }
    }
}

/// Asks holders whether they have opened and checked every record of an epoch, and proposes an acknowledgement for each that
/// has. Returns whether there was any.
pub async fn collect_acks(node: &Arc<Node>, replica: &Replica, epoch: Epoch, missing: Vec<NodeId>) -> bool {
    let index = replica.applied_index();
    let answers = missing.into_iter().map(|holder| async move {
        if holder == node.id() {
            let (here, replica) = (Arc::clone(node), replica.clone());
            let check = async move { check_epoch(&here, &replica, epoch, index).await };
            return (holder, node.background.run(check).await.ok());
        }
        let request = PeerRequest::AckEpoch { epoch, index };
        match node.peers().sessions.ask(holder, Lane::Ordinary, &request, HOLDER).await {
            Ok(PeerReply::EpochAck { reshared }) => (holder, Some(reshared)),
            _ => (holder, None),
        }
    });
    let mut any = false;
    for (holder, reshared) in join_all(answers).await {
        if let Some(reshared) = reshared {
            info!(%epoch, %holder, reshared, "holder acknowledged the epoch");
            any |= propose_here(node, replica, Change::EpochAck(EpochAck { epoch, node: holder, reshared })).await;
        }
    }
    any
}

/// Lets the holders check new versions, and declares ready the versions that enough holders have checked. Returns whether there
/// were any.
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
            any |= propose_here(node, replica, Change::Ready(Ready { epoch, verified })).await;
        }
    }
    any
}

/// Asks all holders at once, and stops when enough of them have checked each version.
async fn ask_holders(
    node: &Arc<Node>,
    replica: &Replica,
    holders: &BTreeSet<NodeId>,
    request: &VerifyRequest,
    records: &[Unverified],
) -> Vec<Verified> {
    let mut answers: FuturesUnordered<_> = holders
        .iter()
        .map(|&holder| async move {
            if holder == node.id() {
                return (holder, check_shares(node, replica, request).await.unwrap_or_default());
            }
            let asked = PeerRequest::Verify(request.clone());
            match node.peers().sessions.ask(holder, Lane::Ordinary, &asked, HOLDER).await {
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

/// For each version, the holders that opened and checked their shares. It counts distinct holders, never answers.
pub type Tally = BTreeMap<KeyVersionId, BTreeSet<NodeId>>;

/// The versions of `records` that enough holders have checked.
pub fn reached(records: &[Unverified], by: &Tally) -> Vec<Verified> {
    let checked = records.iter().filter_map(|record| {
        let (uid, version) = (record.uid, record.version);
        let holders = by.get(&(uid, version)).filter(|holders| holders.len() >= usize::from(record.threshold))?;
        Some(Verified { uid, version, holders: holders.clone() })
    });
    checked.collect()
}

/// The holder's side: opens and checks its shares of the named versions, and returns the versions whose shares are right.
///
/// # Errors
/// [`PeerRefusal::TooMany`]; [`PeerRefusal::Behind`] if this node has not applied them yet; [`PeerRefusal::WrongEpoch`] if it holds
/// no shares.
pub async fn check_shares(
    node: &Arc<Node>,
    replica: &Replica,
    request: &VerifyRequest,
) -> Result<Vec<KeyVersionId>, PeerRefusal> {
    if request.versions.len() > VERSIONS_MAX {
        return Err(PeerRefusal::TooMany);
    }
    replica.wait_applied(request.index, HOLDER).await.map_err(|_| PeerRefusal::Behind)?;
    check(node, replica, request.epoch, &request.versions).await
}

async fn check(
    node: &Node,
    replica: &Replica,
    epoch: Epoch,
    key_versions: &[KeyVersionId],
) -> Result<Vec<KeyVersionId>, PeerRefusal> {
    let holder = node.enrolment().identity.holder().ok_or(PeerRefusal::WrongEpoch)?;
    let mut verified = Vec::with_capacity(key_versions.len());
    for chunk in key_versions.chunks(CHECKED_AT_ONCE) {
        // If one record cannot be read, the others are still checked.
        let infos = holder.share_record_infos(replica, epoch, chunk).unwrap_or_else(|_| {
            chunk
                .iter()
                .filter_map(|&(uid, version)| holder.share_record_info(replica, epoch, uid, version).ok())
                .collect()
        });
        for info in infos {
            let (uid, version) = (info.identity.uid, info.identity.version);
            match holder.open(replica, &info) {
                Ok(_) => verified.push((uid, version)),
                Err(error) => warn!(%uid, %version, %epoch, %error, "own share of a new record does not open"),
            }
        }
        yield_now().await;
    }
    Ok(verified)
}

/// The holder's side: opens and checks its shares of all records of an epoch, and returns how many of the records were
/// reshared.
///
/// # Errors
/// [`PeerRefusal::Behind`] if this node has not applied them yet, [`PeerRefusal::WrongEpoch`] if it cannot open them all.
pub async fn check_epoch(node: &Arc<Node>, replica: &Replica, epoch: Epoch, index: u64) -> Result<u64, PeerRefusal> {
    replica.wait_applied(index, HOLDER).await.map_err(|_| PeerRefusal::Behind)?;
    let mut checked = node.keys.checked.lock().await;
    let (reshared, key_versions) = replica.read(|state| checked.owed(state, epoch)).ok_or(PeerRefusal::WrongEpoch)?;
    for chunk in key_versions.chunks(VERSIONS_MAX) {
        let verified = check(node, replica, epoch, chunk).await?;
        let all = verified.len() == chunk.len();
        checked.note(verified);
        if !all {
            return Err(PeerRefusal::WrongEpoch);
        }
    }
    Ok(reshared)
}
