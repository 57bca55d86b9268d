//! Making keys: the leader draws a key, deals its shares, and puts them into the log. The key may be used once t holders
//! have checked their shares ([`crate::cluster::leader`]). The client gets its answer only then ([`crate::service`]).
//!
//! One batch is open for each open epoch, in memory only. Its header goes into the log once, and each new key costs one
//! record. While an epoch is PENDING two batches are open, and the leader reshares the existing keys in the second one.
//! Batches are dropped, and their keys wiped, when leadership or the lease is lost, and after ten minutes. If a proposal is
//! refused because the committee has changed, the leader opens a new batch and tries again. The random key of the refused
//! proposal is wiped.

use std::sync::Arc;

use quorate_client::error::Code;
use quorate_client::wire::WireError;
use quorate_raft::command::{Change, CreateKey, Outcome, RecordBytes, Reshare, Reshared, RotateKey};
use quorate_raft::refusal::Refusal;
use quorate_raft::state::State;
use quorate_raft::{ProposeError, Replica};
use quorate_shares::error::DealError;
use quorate_shares::ids::{Epoch, KeyName, KeyUid, KeyVersion, KeyVersionId};
use quorate_shares::master::{KeyIdentity, MasterKey};
use quorate_shares::seal::{Dealer, ShareRecord};
use rand_core::CryptoRng;

use crate::base::clock::boot_ms;
use crate::base::random;
use crate::keys::reconstruct::{self, Loaded};
use crate::lease::renewal;
use crate::memory::dealer::OpenDealer;
use crate::memory::keyring::LoadError;
use crate::memory::lease::Lease;
use crate::messages::peer::KeyChange;
use crate::node::Node;
use crate::node::keys::Keys;

/// How many times a change is dealt, the first time included, if the committee changes each time.
const TRIES: usize = 3;

/// Carries out a change as the leader, and returns once it is in the log and applied here. The new version may not be used
/// yet: it becomes ready when t holders have opened and checked their shares.
///
/// # Errors
/// The error for the client.
pub async fn change(node: &Arc<Node>, replica: &Replica, change: KeyChange) -> Result<KeyVersionId, WireError> {
    let target = match replica.read(|state| target(state, &change, &mut random::system())) {
        // The open batch went into the log in this term, so everything that earlier leaders acknowledged is applied here.
        Ok(target) if can_deal(node, replica) => target,
        // A new leader may not have applied all of it yet, and must not refuse a change because its state is old.
        _ => {
            renewal::catch_up(node, replica).await.map_err(|reason| {
                WireError::new(Code::NoQuorum, format!("the leader is not confirmed: {reason}"))
                    .hint("try again in a moment")
            })?;
            replica.read(|state| target(state, &change, &mut random::system()))?
        }
    };
    match target {
        Target::Made(made) => Ok(made),
        Target::New(key_version) => propose(node, replica, &change, key_version).await,
    }
}

/// The key version that a change makes, or made before.
pub enum Target {
    /// The same request made this version before.
    Made(KeyVersionId),
    /// This version must be made.
    New(KeyVersionId),
}

/// Finds the key version that `change` makes in `state`, or made before. A new key gets its uid from `rng`.
///
/// # Errors
/// The reason why the change is refused.
pub fn target(state: &State, change: &KeyChange, rng: &mut impl CryptoRng) -> Result<Target, WireError> {
    if let Some((uid, version)) = state.answer(change.request()) {
        let same_key = state.keys.get(&uid).is_some_and(|key| key.name == *change.name());
        let same_kind = matches!(change, KeyChange::Create { .. }) == (version == KeyVersion(1));
        return if same_key && same_kind { Ok(Target::Made((uid, version))) } else { Err(request_reused()) };
    }
    let known = state.key_by_name(change.name());
    match change {
        KeyChange::Create { name, .. } if known.is_some() => Err(name_taken(name)),
        KeyChange::Create { .. } => {
            let mut uid = KeyUid([0; 16]);
            rng.fill_bytes(&mut uid.0);
            Ok(Target::New((uid, KeyVersion(1))))
        }
        KeyChange::Rotate { name, expect, .. } => {
            let key = known.ok_or_else(|| unknown_key(name))?;
            let newest = key.newest().version;
            if expect.is_some_and(|expect| expect != newest) {
                return Err(version_changed(newest));
            }
            Ok(Target::New((key.uid, KeyVersion(newest.0 + 1))))
        }
    }
}

async fn propose(
    node: &Arc<Node>,
    replica: &Replica,
    change: &KeyChange,
    key_version: KeyVersionId,
) -> Result<KeyVersionId, WireError> {
    for _ in 0..TRIES {
        let command = node.leader.command(replica, deal(node, replica, change, key_version).await?);
        match replica.propose(command).await {
            Ok(Outcome::VersionMade { uid, version, .. }) => return Ok((uid, version)),
            Ok(_) => return Err(WireError::new(Code::Internal, "the change was answered as another")),
            Err(ProposeError::Refused(refusal)) if is_stale(&refusal) => node.keys.close_batch(),
            Err(error) => return Err(explain(error, change)),
        }
    }
    Err(WireError::new(Code::NotServing, "the committee changed while the key was dealt").hint("try again"))
}

/// Draws a key, deals it, and returns the change to propose.
async fn deal(
    node: &Arc<Node>,
    replica: &Replica,
    change: &KeyChange,
    (uid, version): KeyVersionId,
) -> Result<Change, WireError> {
    let identity = KeyIdentity { cluster: node.cluster(), uid, version };
    let key = MasterKey::random(&mut random::system());
    let kcv = key.kcv(&identity);
    let records = in_open_batch(node, replica, |open| open.deal(&key, &identity, &kcv)).await?;
    Ok(dealt(change, &identity, kcv, &records))
}

/// Why existing versions could not be reshared.
#[derive(Debug, thiserror::Error)]
pub enum ReshareError {
    /// They could not be reconstructed.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// They could not be dealt. The text says why.
    #[error("{0}")]
    Deal(String),
}

/// Reshares existing versions to the PENDING epoch: reconstructs them, deals them to the new committee, and wipes them.
/// Returns the change to propose.
///
/// # Errors
/// [`ReshareError`].
pub async fn reshare(
    node: &Arc<Node>,
    replica: &Replica,
    epoch: Epoch,
    key_versions: &[KeyVersionId],
) -> Result<Reshare, ReshareError> {
    let closed = || ReshareError::Deal("the epoch is not open any more".to_owned());
    let keys = reconstruct::master_keys(node, replica, key_versions).await?;
    let mut dealt = Vec::with_capacity(keys.len());
    for Loaded { identity, kcv, key, .. } in keys {
        let record = in_open_batch(node, replica, |open| open.deal_to(epoch, &key, &identity, &kcv)).await;
        let record = record.map_err(|error| ReshareError::Deal(error.message))?.ok_or_else(closed)?;
        dealt.push(Reshared { uid: identity.uid, version: identity.version, record: RecordBytes(record.encode()) });
    }
    Ok(Reshare { epoch, dealt })
}

/// Deals in the open batches. If there are none, opens them first.
async fn in_open_batch<T>(
    node: &Arc<Node>,
    replica: &Replica,
    mut deal: impl FnMut(&mut OpenDealer) -> Result<T, DealError>,
) -> Result<T, WireError> {
    loop {
        if let Some(dealt) = with_open_batch(&node.keys, &node.serving.lease, replica, &mut deal) {
            return dealt.map_err(|error| WireError::new(Code::Internal, format!("the key cannot be dealt: {error}")));
        }
        // One task at a time: a task that waited here finds the batches that the first task opened.
        let _guard = node.keys.opening.lock().await;
        if !can_deal(node, replica) {
            let open = open_batches(node, replica).await?;
            *node.keys.dealing.lock() = Some(open);
        }
    }
}

/// The change to propose once the key of `identity` is dealt.
pub fn dealt(change: &KeyChange, identity: &KeyIdentity, kcv: [u8; 32], records: &[ShareRecord]) -> Change {
    let records = records.iter().map(|record| RecordBytes(record.encode())).collect();
    let (request, uid) = (*change.request(), identity.uid);
    match change {
        KeyChange::Create { name, tags, .. } => {
            let (name, tags) = (name.clone(), tags.clone());
            Change::CreateKey(CreateKey { request, uid, name, tags, kcv, records })
        }
        KeyChange::Rotate { .. } => {
            let expect = KeyVersion(identity.version.0 - 1);
            Change::RotateKey(RotateKey { request, uid, expect, kcv, records })
        }
    }
}

/// Whether this node leads, has a lease, and has a batch open.
fn can_deal(node: &Node, replica: &Replica) -> bool {
    with_open_batch(&node.keys, &node.serving.lease, replica, |_| ()).is_some()
}

/// Deals in the open batch, if there is one that may be used: only a leader with a lease deals.
fn with_open_batch<T>(
    keys: &Keys,
    lease: &Lease,
    replica: &Replica,
    deal: impl FnOnce(&mut OpenDealer) -> T,
) -> Option<T> {
    let mut dealing = keys.dealing.lock();
    let open = dealing.as_mut().filter(|open| lease.is_valid() && open.is_usable(replica))?;
    Some(deal(open))
}

/// Opens a batch for each open epoch and puts its header into the log. The header must come before its records.
async fn open_batches(node: &Arc<Node>, replica: &Replica) -> Result<OpenDealer, WireError> {
    if !node.serving.lease.is_valid() {
        return Err(WireError::new(Code::NotServing, "the leader has no lease").hint("try again"));
    }
    let term = replica.leadership().borrow().term;
    let committees = replica.read(|state| {
        let epochs = state.record_epochs();
        epochs.into_iter().map(|epoch| state.committee(epoch)).collect::<Option<Vec<_>>>()
    });
    let committees = committees.filter(|committees| !committees.is_empty());
    let committees =
        committees.ok_or_else(|| WireError::new(Code::NotServing, "no epoch is active yet").hint("try again"))?;
    let mut dealers = Vec::with_capacity(committees.len());
    for committee in committees {
        let dealer = Dealer::open(node.cluster(), node.id(), &committee, &mut random::system());
        let header = dealer.header().encode();
        let command = node.leader.command(replica, Change::OpenBatch { header });
        replica.propose(command).await.map_err(no_leader)?;
        dealers.push(dealer);
    }
    Ok(OpenDealer::new(term, boot_ms(), dealers))
}

/// Whether a refusal means that the dealing is out of date, not that the change is wrong.
pub fn is_stale(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::WrongEpoch { .. }
            | Refusal::UnknownBatch { .. }
            | Refusal::BatchMismatch { .. }
            | Refusal::StaleCommittee
            | Refusal::RecordMismatch
            | Refusal::RecordCount { .. }
            | Refusal::IndexUsed { .. }
    )
}

fn explain(error: ProposeError, change: &KeyChange) -> WireError {
    match error {
        ProposeError::Refused(Refusal::NameTaken) => name_taken(change.name()),
        ProposeError::Refused(Refusal::UnknownKey { .. }) => unknown_key(change.name()),
        ProposeError::Refused(Refusal::VersionChanged { newest }) => version_changed(newest),
        ProposeError::Refused(Refusal::NotReady { version }) => {
            WireError::new(Code::Conflict, format!("version {version} is still being checked by its holders"))
                .hint("try again in a moment")
        }
        ProposeError::Refused(refusal @ (Refusal::KeysLimit | Refusal::KeyVersionsLimit | Refusal::BadTags)) => {
            WireError::new(Code::TooLarge, refusal.to_string())
        }
        ProposeError::Refused(Refusal::RequestReused) => request_reused(),
        error => no_leader(error),
    }
}

fn no_leader(error: ProposeError) -> WireError {
    match error {
        ProposeError::NotLeader { .. } | ProposeError::Unknown { .. } => {
            WireError::new(Code::NoQuorum, "the leader changed while the change was made").hint("try again")
        }
        error => WireError::new(Code::Internal, error.to_string()),
    }
}

fn request_reused() -> WireError {
    WireError::new(Code::Conflict, Refusal::RequestReused.to_string()).hint("use a new request id")
}

fn name_taken(name: &KeyName) -> WireError {
    WireError::new(Code::Conflict, format!("a key named {name} exists"))
        .hint("names are never reused; `quorate key rotate` makes a new version")
}

pub fn unknown_key(name: &KeyName) -> WireError {
    WireError::new(Code::NotFound, format!("no key named {name}")).hint("`quorate key list` shows the keys")
}

fn version_changed(newest: KeyVersion) -> WireError {
    WireError::new(Code::Conflict, format!("the newest version is {newest}"))
        .hint("another client rotated the key; look at it before rotating again")
}
