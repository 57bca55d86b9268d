//! Loading a cold key: the node reconstructs it from its own share and the shares of t-1 peers.
//!
//! It asks t-1 peers first and all others a little later. It counts only distinct members of the active epoch. It checks
//! every share against the commitment in its *own* replica, and the reconstructed key against its key-check value. If a share
//! is wrong, an alarm names the peer and the node needs a share of one more peer. A wrong share never gives a wrong key.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use quorate_client::conn::{Conn, Lane};
use quorate_raft::Replica;
use quorate_raft::state::State;
use quorate_shares::ids::{Epoch, KeyVersionId, NodeId};
use quorate_shares::master::{EncryptionRoot, KeyIdentity, MasterKey};
use quorate_shares::quorum::Quorum;
use quorate_shares::secret::Secret;
use quorate_shares::transit::{self, Place};
use rand::seq::SliceRandom;
use serde_bytes::ByteBuf;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{debug, warn};

use crate::base::phase::{RequestClass, answers};
use crate::base::random;
use crate::memory::holder::{HoldError, ShareRecordInfo};
use crate::memory::keyring::LoadError;
use crate::messages::peer::{self, PeerRefusal, PeerReply, PeerRequest, SealedShare, SharesRequest, VERSIONS_MAX};
use crate::node::Node;
use crate::node::peers::sessions::Sessions;

/// After this time the peers that were not asked at first are asked, too.
const SECOND_WAVE: Duration = Duration::from_millis(20);
/// A load fails after this time.
const LOAD: Duration = Duration::from_secs(5);
/// Pause before peers that had no share to give are asked again.
const AGAIN: Duration = Duration::from_millis(100);

/// Loads the root of a key version from a quorum.
///
/// # Errors
/// [`LoadError`], after five seconds at most.
pub async fn load(node: Arc<Node>, replica: Replica, key_version: KeyVersionId) -> Result<EncryptionRoot, LoadError> {
    let mut loaded = master_keys(&node, &replica, &[key_version]).await?;
    let Loaded { identity, key, epoch, .. } = loaded.pop().ok_or(LoadError::NoEpoch)?;
    debug!(uid = %identity.uid, version = %identity.version, %epoch, "key loaded");
    Ok(key.encryption_root(&identity))
}

/// A reconstructed key version.
pub struct Loaded {
    pub identity: KeyIdentity,
    /// The key-check value of `key`.
    pub kcv: [u8; 32],
    pub key: MasterKey,
    /// The epoch whose shares were used.
    pub epoch: Epoch,
}

/// Reconstructs key versions from a quorum of the ACTIVE epoch, in the order of `key_versions`.
///
/// # Errors
/// [`LoadError`], after five seconds at most.
pub async fn master_keys(
    node: &Arc<Node>,
    replica: &Replica,
    key_versions: &[KeyVersionId],
) -> Result<Vec<Loaded>, LoadError> {
    let deadline = Instant::now() + LOAD;
    loop {
        let epoch = active(replica).ok_or(LoadError::NoEpoch)?;
        let loaded = reconstruct(node, replica, epoch, key_versions, deadline).await;
        // Peers give only shares of the ACTIVE epoch, and another epoch may have become ACTIVE meanwhile.
        if loaded.is_err() && active(replica) != Some(epoch) && Instant::now() < deadline {
            continue;
        }
        return loaded;
    }
}

fn active(replica: &Replica) -> Option<Epoch> {
    replica.read(|state| state.active().map(|epoch| epoch.epoch))
}

async fn reconstruct(
    node: &Arc<Node>,
    replica: &Replica,
    epoch: Epoch,
    key_versions: &[KeyVersionId],
    deadline: Instant,
) -> Result<Vec<Loaded>, LoadError> {
    let holder = node.enrolment().identity.holder().ok_or(LoadError::NoEpoch)?;
    let mut changes = replica.changes();
    let infos = holder.share_record_infos(replica, epoch, key_versions)?;
    let mut known = Vec::with_capacity(key_versions.len());
    let mut quorums = Quorums(BTreeMap::new());
    for (key_version, info) in key_versions.iter().zip(infos) {
        let own = holder.open(replica, &info);
        let (identity, kcv) = (info.identity, info.kcv);
        let mut quorum = Quorum::new(info.record, identity, &info.committee, kcv)?;
        match own {
            Ok((x, share)) => drop(quorum.add(node.id(), x, share)?),
            Err(error) => {
                let (uid, version) = key_version;
                warn!(%uid, %version, %error, "own share does not open; asking more peers");
            }
        }
        known.push((identity, kcv));
        quorums.0.insert(*key_version, quorum);
    }
    while !quorums.reached() {
        let late = !quorums.ask_all(node, epoch, deadline).await && Instant::now() + AGAIN >= deadline;
        if late || (!quorums.reached() && active(replica) != Some(epoch)) {
            return Err(quorums.too_few());
        }
        if !quorums.reached() {
            // If another epoch becomes ACTIVE, the pause ends at once.
            let epoch_changed = async { while active(replica) == Some(epoch) && changes.changed().await.is_ok() {} };
            let _ = timeout_at(Instant::now() + AGAIN, epoch_changed).await;
        }
    }
    let mut loaded = Vec::with_capacity(key_versions.len());
    for (key_version, (identity, kcv)) in key_versions.iter().zip(known) {
        let key = quorums.0.remove(key_version).ok_or(LoadError::NoEpoch)?.close()?;
        loaded.push(Loaded { identity, kcv, key, epoch });
    }
    Ok(loaded)
}

/// The quorums of several key versions, whose holders are the same.
struct Quorums(BTreeMap<KeyVersionId, Quorum>);

impl Quorums {
    fn reached(&self) -> bool {
        self.0.values().all(|quorum| quorum.progress().reached())
    }

    /// The quorum with the fewest shares. Errors report this one, and its missing holders are asked.
    fn least_complete(&self) -> Option<&Quorum> {
        self.0.values().min_by_key(|quorum| quorum.progress().have)
    }

    fn too_few(&self) -> LoadError {
        let least_complete = self.least_complete().map(|quorum| (quorum.progress(), quorum.missing().collect()));
        least_complete.map_or(LoadError::NoEpoch, |(progress, missing)| LoadError::TooFew {
            have: progress.have,
            need: progress.need,
            missing,
        })
    }

    /// One round: asks as many peers at once as shares are missing, and the other peers after [`SECOND_WAVE`]. Returns whether
    /// every quorum is reached.
    async fn ask_all(&mut self, node: &Arc<Node>, epoch: Epoch, deadline: Instant) -> bool {
        let Some(least_complete) = self.least_complete() else { return true };
        let mut missing: Vec<NodeId> = least_complete.missing().filter(|&peer| peer != node.id()).collect();
        missing.shuffle(&mut random::system());
        let progress = least_complete.progress();
        let first = progress.need.saturating_sub(progress.have).min(missing.len());
        let later = missing.split_off(first);
        let second_wave = (Instant::now() + SECOND_WAVE).min(deadline);
        let open = self.0.iter().filter(|(_, quorum)| !quorum.progress().reached());
        let versions = open.map(|(key_version, _)| *key_version).collect();
        let request = &PeerRequest::Shares(SharesRequest { epoch, versions, request: random::bytes() });
        let peers = node.peers();
        let sessions = &peers.sessions;
        let ask = |peer: NodeId, start: Option<Instant>| async move {
            if let Some(start) = start {
                sleep_until(start).await;
            }
            (peer, timeout_at(deadline, ask_one(sessions, peer, request)).await.unwrap_or_default())
        };
        let mut asked: FuturesUnordered<_> = missing
            .into_iter()
            .map(|peer| ask(peer, None))
            .chain(later.into_iter().map(|peer| ask(peer, Some(second_wave))))
            .collect();
        while let Some((peer, shares)) = asked.next().await {
            for (key_version, x, share) in shares {
                let added = self.0.get_mut(&key_version).map(|quorum| quorum.add(peer, x, share));
                if let Some(Err(error)) = added {
                    warn!(%peer, %error, "share refused");
                    let message = format!("a share from {} was refused: {error}", node.name_of(peer));
                    node.alarm("wrong_share", peer, message);
                }
            }
            if self.reached() {
                return true;
            }
        }
        false
    }
}

async fn ask_one(sessions: &Sessions, peer: NodeId, request: &PeerRequest) -> Vec<(KeyVersionId, u8, Secret<32>)> {
    let Some(session) = sessions.with(peer) else { return Vec::new() };
    match session.ask(Lane::Ordinary, request, LOAD).await {
        Ok(PeerReply::Shares(shares)) => {
            let bound = peer::encode(request);
            let open = |sealed: &SealedShare| {
                let place = Place { direction: 1 - session.own_direction(), counter: sealed.counter };
                let share = transit::open(&session.share_key, place, &bound, &sealed.sealed);
                if share.is_none() {
                    warn!(%peer, "a share did not open on this session");
                }
                Some(((sealed.uid, sealed.version), sealed.x, share?))
            };
            shares.iter().filter_map(open).collect()
        }
        Ok(PeerReply::Refused(refusal)) => {
            debug!(%peer, %refusal, "no share");
            Vec::new()
        }
        Ok(_) => Vec::new(),
        Err(error) => {
            debug!(%peer, %error, "no share");
            Vec::new()
        }
    }
}

/// Whether `node` may get shares of `epoch`: the epoch is active, and `node` has a seat in it.
pub fn is_entitled(state: &State, epoch: Epoch, node: NodeId) -> bool {
    state.active().is_some_and(|active| active.epoch == epoch) && state.x_of(epoch, node).is_some()
}

/// The holder's side: gives its shares to a member of the active epoch, if this node has a lease itself.
pub fn give_shares(
    node: &Node,
    replica: &Replica,
    (from, conn): (NodeId, &Conn),
    request: &SharesRequest,
    body: &[u8],
) -> PeerReply {
    if request.versions.len() > VERSIONS_MAX {
        return PeerReply::Refused(PeerRefusal::TooMany);
    }
    if !answers(node.phase(), RequestClass::Shares) || !node.serving.lease.is_valid() {
        return PeerReply::Refused(PeerRefusal::NoLease);
    }
    if !node.peers().rates.shares.allows(from, request.versions.len()) {
        return PeerReply::Refused(PeerRefusal::Busy);
    }
    // The share is sealed for the connection that asked. If two nodes have just dialled each other, their session may be the
    // other connection, and then no share is given.
    let session = node.peers().sessions.with(from).filter(|session| session.conn.same_as(conn));
    let (Some(holder), Some(session)) = (node.enrolment().identity.holder(), session) else {
        return PeerReply::Refused(PeerRefusal::NoHello);
    };
    let open = |info: ShareRecordInfo| -> Result<SealedShare, HoldError> {
        let (uid, version) = (info.identity.uid, info.identity.version);
        let (x, share) = holder.open(replica, &info)?;
        let place = Place { direction: session.own_direction(), counter: session.next_counter() };
        let sealed = ByteBuf::from(transit::seal(&session.share_key, place, body, &share).to_vec());
        Ok(SealedShare { uid, version, x, counter: place.counter, sealed })
    };
    if !replica.read(|state| is_entitled(state, request.epoch, from)) {
        return PeerReply::Refused(PeerRefusal::WrongEpoch);
    }
    let infos = holder.share_record_infos(replica, request.epoch, &request.versions);
    match infos.and_then(|infos| infos.into_iter().map(open).collect::<Result<Vec<_>, _>>()) {
        // At `debug`: a restarted node loads thousands of keys. With this level an operator sees which shares a peer gave.
        Ok(shares) if node.serving.lease.is_valid() => {
            for share in &shares {
                debug!(uid = %share.uid, version = %share.version, to = %from, "gave a share");
            }
            PeerReply::Shares(shares)
        }
        Ok(_) => PeerReply::Refused(PeerRefusal::NoLease),
        Err(HoldError::NoRecord(_) | HoldError::Busy) => PeerReply::Refused(PeerRefusal::Behind),
        Err(error) => {
            warn!(%error, "cannot give a share");
            PeerReply::Refused(PeerRefusal::Storage)
        }
    }
}
