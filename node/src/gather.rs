//! Loading a cold key: this node's own share and those of t-1 peers, every one checked, until the quorum closes.
//!
//! It asks t-1 peers first and all others a little later, counts only distinct members of the active epoch, holds every
//! share against the commitment in its *own* replica, and checks the rebuilt key against its key-check value. A wrong share
//! names the peer and costs one more question, never a wrong key.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use quorate_client::conn::{Conn, Lane};
use quorate_raft::Replica;
use quorate_raft::state::State;
use quorate_shares::error::QuorumError;
use quorate_shares::ids::{Epoch, KeyUid, KeyVersion, NodeId};
use quorate_shares::master::EncryptionRoot;
use quorate_shares::quorum::Quorum;
use quorate_shares::secret::Secret;
use quorate_shares::transit::{self, Place};
use serde_bytes::ByteBuf;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tracing::{debug, info, warn};

use crate::holder::{Facts, HoldError};
use crate::keyring::Slot;
use crate::node::Node;
use crate::peer::{self, PeerReply, PeerRequest, Refusal, SealedShare, SharesRequest, VERSIONS_MAX};
use crate::phase::{Door, admits};
use crate::random;

/// After this the peers that were not asked at first are asked too.
const SECOND_WAVE: Duration = Duration::from_millis(20);
/// A load gives up after this.
const LOAD: Duration = Duration::from_secs(5);
/// Pause before peers that had no share to give are asked again.
const AGAIN: Duration = Duration::from_millis(100);

/// Shares that did not match their commitments, since this process started: a metric, and a reason to look at a peer.
pub static WRONG_SHARES: AtomicU64 = AtomicU64::new(0);

/// Why a key cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LoadError {
    /// Not enough holders answered with a share that counts.
    #[error("have {have} of {need} shares, waiting for nodes {}", list(.missing))]
    TooFew {
        /// Shares that counted.
        have: usize,
        /// Shares needed.
        need: usize,
        /// Holders without a share that counts.
        missing: Vec<NodeId>,
    },
    /// No epoch is active.
    #[error("no epoch is active yet")]
    NoEpoch,
    /// This node's own replica cannot say what a right share looks like.
    #[error(transparent)]
    Hold(#[from] HoldError),
    /// The shares matched their commitments and the key is wrong: the dealing was.
    #[error(transparent)]
    Quorum(#[from] QuorumError),
    /// The load was interrupted.
    #[error("the load was interrupted")]
    Interrupted,
}

fn list(nodes: &[NodeId]) -> String {
    nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Loads the root of a key version from a quorum.
///
/// # Errors
/// [`LoadError`], after five seconds at most.
pub async fn load(node: Arc<Node>, replica: Replica, (uid, version): Slot) -> Result<EncryptionRoot, LoadError> {
    let deadline = Instant::now() + LOAD;
    let holder = node.holder().ok_or(LoadError::NoEpoch)?;
    let epoch = replica.read(|state| state.active().map(|epoch| epoch.epoch)).ok_or(LoadError::NoEpoch)?;
    let facts = holder.facts(&replica, epoch, uid, version)?;
    let (identity, kcv) = (facts.identity, facts.kcv);
    let own = holder.open(&replica, &facts);
    let Facts { record, committee, .. } = facts;
    let mut quorum = Quorum::new(record, identity, &committee, kcv)?;
    match own {
        Ok((x, share)) => {
            quorum.add(node.id(), x, share)?;
        }
        Err(error) => warn!(%uid, %version, %error, "own share does not open; asking more peers"),
    }
    let request =
        PeerRequest::Shares(SharesRequest { epoch, versions: vec![(uid, version)], request: random::bytes() });
    while !quorum.progress().reached() {
        if !ask_all(&node, &mut quorum, &request, deadline).await && Instant::now() + AGAIN >= deadline {
            let progress = quorum.progress();
            let missing = quorum.missing().collect();
            return Err(LoadError::TooFew { have: progress.have, need: progress.need, missing });
        }
        if !quorum.progress().reached() {
            sleep(AGAIN).await;
        }
    }
    let key = quorum.close()?;
    info!(%uid, %version, %epoch, "key loaded");
    Ok(key.encryption_root(&identity))
}

/// One round: t-1 peers at once, the rest after a moment. Returns whether the quorum is reached.
async fn ask_all(node: &Arc<Node>, quorum: &mut Quorum, request: &PeerRequest, deadline: Instant) -> bool {
    let mut missing: Vec<NodeId> = quorum.missing().filter(|&peer| peer != node.id()).collect();
    random::shuffle(&mut missing);
    let progress = quorum.progress();
    let first = progress.need.saturating_sub(progress.have).min(missing.len());
    let later = missing.split_off(first);
    let second_wave = (Instant::now() + SECOND_WAVE).min(deadline);
    let ask = |peer: NodeId, start: Option<Instant>| async move {
        if let Some(start) = start {
            sleep_until(start).await;
        }
        (peer, timeout_at(deadline, ask_one(node, peer, request)).await.unwrap_or(None))
    };
    let mut asked: FuturesUnordered<_> = missing
        .into_iter()
        .map(|peer| ask(peer, None))
        .chain(later.into_iter().map(|peer| ask(peer, Some(second_wave))))
        .collect();
    while let Some((peer, share)) = asked.next().await {
        let Some((x, share)) = share else { continue };
        match quorum.add(peer, x, share) {
            Ok(progress) if progress.reached() => return true,
            Ok(_) => {}
            Err(error) => {
                WRONG_SHARES.fetch_add(1, Ordering::Relaxed);
                warn!(%peer, %error, "share refused");
                node.alarm("wrong_share", peer, format!("a share from {} was refused: {error}", node.name_of(peer)));
            }
        }
    }
    false
}

async fn ask_one(node: &Node, peer: NodeId, request: &PeerRequest) -> Option<(u8, Secret<32>)> {
    let session = node.sessions.with(peer)?;
    match session.ask(Lane::Ordinary, request, LOAD).await {
        Ok(PeerReply::Shares(shares)) => {
            let sealed = shares.first()?;
            let place = Place { direction: 1 - session.own_direction(), counter: sealed.counter };
            let share = transit::open(&session.share_key, place, &peer::encode(request), &sealed.sealed);
            if share.is_none() {
                warn!(%peer, "a share did not open on this session");
            }
            Some((sealed.x, share?))
        }
        Ok(PeerReply::Refused(refusal)) => {
            debug!(%peer, %refusal, "no share");
            None
        }
        Ok(_) => None,
        Err(error) => {
            debug!(%peer, %error, "no share");
            None
        }
    }
}

/// Whether `node` may have shares of `epoch`: it is the active one, and `node` holds a seat in it.
pub fn is_entitled(state: &State, epoch: Epoch, node: NodeId) -> bool {
    state.active().is_some_and(|active| active.epoch == epoch) && state.x_of(epoch, node).is_some()
}

/// The holder's side: gives its shares to a member of the active epoch, while it has a lease itself.
pub fn answer(
    node: &Node,
    replica: &Replica,
    (from, conn): (NodeId, &Conn),
    request: &SharesRequest,
    body: &[u8],
) -> PeerReply {
    if request.versions.len() > VERSIONS_MAX {
        return PeerReply::Refused(Refusal::TooMany);
    }
    if !admits(node.phase(), Door::Shares) || !node.lease.is_valid() {
        return PeerReply::Refused(Refusal::NoLease);
    }
    if !node.rates.shares.admits(from, request.versions.len()) {
        return PeerReply::Refused(Refusal::Busy);
    }
    let entitled = replica.read(|state| is_entitled(state, request.epoch, from));
    // The share is sealed for the very connection that asked: while two sessions of a pair settle, that may be the other.
    let session = node.sessions.with(from).filter(|session| session.conn.same_as(conn));
    let (Some(holder), Some(session)) = (node.holder(), session) else {
        return PeerReply::Refused(Refusal::NoHello);
    };
    if !entitled {
        return PeerReply::Refused(Refusal::WrongEpoch);
    }
    let open = |&(uid, version): &(KeyUid, KeyVersion)| -> Result<SealedShare, HoldError> {
        let facts = holder.facts(replica, request.epoch, uid, version)?;
        let (x, share) = holder.open(replica, &facts)?;
        let place = Place { direction: session.own_direction(), counter: session.next_counter() };
        let sealed = ByteBuf::from(transit::seal(&session.share_key, place, body, &share).to_vec());
        Ok(SealedShare { uid, version, x, counter: place.counter, sealed })
    };
    match request.versions.iter().map(open).collect::<Result<Vec<_>, _>>() {
        // Every load is an audit event at the peers that served it.
        Ok(shares) if node.lease.is_valid() => {
            for share in &shares {
                info!(uid = %share.uid, version = %share.version, to = %from, "gave a share");
            }
            PeerReply::Shares(shares)
        }
        Ok(_) => PeerReply::Refused(Refusal::NoLease),
        Err(HoldError::NoRecord(_) | HoldError::Busy) => PeerReply::Refused(Refusal::Behind),
        Err(error) => {
            warn!(%error, "cannot give a share");
            PeerReply::Refused(Refusal::Storage)
        }
    }
}
