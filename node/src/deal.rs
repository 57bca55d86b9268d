//! Making keys: the leader draws a key, deals its shares, and puts them into the log. It may be used once t holders have
//! checked theirs (`members`), and whoever asked for it is not answered before (`api`).
//!
//! One batch is open at a time, in memory only: the header goes into the log once, and each new key costs one record. The
//! batch is dropped, and its keys wiped, at loss of leadership or lease and after ten minutes. A refused proposal that means
//! "the committee moved on" costs a new batch and one more try; the random key that was refused is wiped with it.

use std::sync::Arc;

use quorate_client::error::Code;
use quorate_client::wire::WireError;
use quorate_raft::command::{Change, Command, CreateKey, Outcome, RecordBytes, RotateKey};
use quorate_raft::refusal::Refusal;
use quorate_raft::state::State;
use quorate_raft::{Leadership, ProposeError, Replica};
use quorate_shares::error::DealError;
use quorate_shares::ids::{Epoch, KeyName, KeyUid, KeyVersion};
use quorate_shares::master::{KeyIdentity, MasterKey};
use quorate_shares::seal::{BATCH_RECORDS_MAX, Dealer, ShareRecord};
use rand_core::CryptoRng;

use crate::clock::{boot_ms, wall_ms};
use crate::confirm;
use crate::keyring::Slot;
use crate::node::Node;
use crate::peer::KeyChange;
use crate::random;

/// A batch is closed after this.
const BATCH_MS: u64 = 10 * 60_000;
/// How often a change is dealt anew after the committee moved on.
const TRIES: usize = 3;

/// The batch that new keys are dealt in.
pub struct OpenDealer {
    epoch: Epoch,
    term: u64,
    opened_ms: u64,
    dealer: Dealer,
}

/// Carries out a change as the leader, and returns once it is in the log and applied here. Nobody may use the new version
/// yet: it becomes ready when t holders have opened and checked their shares.
///
/// # Errors
/// What a client should hear.
pub async fn change(node: &Arc<Node>, replica: &Replica, change: KeyChange) -> Result<Slot, WireError> {
    let target = match replica.read(|state| target(state, &change, &mut random::system())) {
        // The open batch went into the log in this term, so whatever earlier leaders acknowledged is applied here.
        Ok(target) if can_deal(node, replica) => target,
        // A leader that was just elected may lack some of it, and nothing is refused from a state that may be old.
        _ => {
            confirm::catch_up(node, replica).await.map_err(|reason| {
                WireError::new(Code::NoQuorum, format!("the leader is not confirmed: {reason}"))
                    .hint("try again in a moment")
            })?;
            replica.read(|state| target(state, &change, &mut random::system()))?
        }
    };
    match target {
        Target::Made(made) => Ok(made),
        Target::New(slot) => propose(node, replica, &change, slot).await,
    }
}

/// What a change comes to.
pub enum Target {
    /// It was made before, by the same request.
    Made(Slot),
    /// This version is to be made.
    New(Slot),
}

/// What `change` comes to in `state`, where a new key would get a uid from `rng`.
///
/// # Errors
/// Why it comes to nothing.
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

async fn propose(node: &Arc<Node>, replica: &Replica, change: &KeyChange, slot: Slot) -> Result<Slot, WireError> {
    for _ in 0..TRIES {
        let command = Command::new(wall_ms(), deal(node, replica, change, slot).await?);
        match replica.propose(command).await {
            Ok(Outcome::VersionMade { uid, version, .. }) => return Ok((uid, version)),
            Ok(_) => return Err(WireError::new(Code::Internal, "the change was answered as another")),
            Err(ProposeError::Refused(refusal)) if is_stale(&refusal) => node.close_batch(),
            Err(error) => return Err(explain(error, change)),
        }
    }
    Err(WireError::new(Code::NotServing, "the committee changed while the key was dealt").hint("try again"))
}

/// Draws a key and deals it: the change to be proposed.
async fn deal(
    node: &Arc<Node>,
    replica: &Replica,
    change: &KeyChange,
    (uid, version): Slot,
) -> Result<Change, WireError> {
    let identity = KeyIdentity { cluster: node.cluster(), uid, version };
    let key = MasterKey::random(&mut random::system());
    let kcv = key.kcv(&identity);
    let record = loop {
        if let Some(record) = with_open_batch(node, replica, |open| open.deal(&key, &identity, &kcv)) {
            break record
                .map_err(|error| WireError::new(Code::Internal, format!("the key cannot be dealt: {error}")))?;
        }
        // One at a time; whoever waited finds the batch that the first one opened.
        let _one = node.opening.lock().await;
        if !can_deal(node, replica) {
            let open = open_batch(node, replica).await?;
            *node.dealing.lock() = Some(open);
        }
    };
    Ok(dealt(change, &identity, kcv, &record))
}

/// What is proposed once the key of `identity` is dealt.
pub fn dealt(change: &KeyChange, identity: &KeyIdentity, kcv: [u8; 32], record: &ShareRecord) -> Change {
    let records = vec![RecordBytes(record.encode())];
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
    with_open_batch(node, replica, |_| ()).is_some()
}

/// Deals in the open batch, if there is one that may be used: only a leader with a lease deals.
fn with_open_batch<T>(node: &Node, replica: &Replica, deal: impl FnOnce(&mut OpenDealer) -> T) -> Option<T> {
    let mut dealing = node.dealing.lock();
    let open = dealing.as_mut().filter(|open| node.lease.is_valid() && open.is_usable(replica))?;
    Some(deal(open))
}

/// Opens a batch for the active epoch and puts its header into the log, which must come before its records.
async fn open_batch(node: &Arc<Node>, replica: &Replica) -> Result<OpenDealer, WireError> {
    if !node.lease.is_valid() {
        return Err(WireError::new(Code::NotServing, "the leader has no lease").hint("try again"));
    }
    let term = replica.leadership().borrow().term;
    let active = replica.read(|state| {
        let epoch = state.active()?.epoch;
        Some((epoch, state.committee(epoch)?))
    });
    let (epoch, committee) =
        active.ok_or_else(|| WireError::new(Code::NotServing, "no epoch is active yet").hint("try again"))?;
    let dealer = Dealer::open(node.cluster(), node.id(), &committee, &mut random::system());
    let header = dealer.header().encode();
    let command = Command::new(wall_ms(), Change::OpenBatch { header });
    replica.propose(command).await.map_err(no_leader)?;
    Ok(OpenDealer::new(epoch, term, boot_ms(), dealer))
}

impl OpenDealer {
    /// A batch that was opened in `term`, at `opened_ms` ([`boot_ms`]).
    pub fn new(epoch: Epoch, term: u64, opened_ms: u64, dealer: Dealer) -> Self {
        Self { epoch, term, opened_ms, dealer }
    }

    /// Whether the batch still belongs to this leader, term and epoch, and has room.
    pub fn is_usable(&self, replica: &Replica) -> bool {
        let leadership = *replica.leadership().borrow();
        self.is_usable_at(&leadership, replica.read(|state| state.active().map(|active| active.epoch)), boot_ms())
    }

    /// [`OpenDealer::is_usable`] for a node that knows this of who leads, which epoch is active, and what time it is.
    pub fn is_usable_at(&self, leadership: &Leadership, active: Option<Epoch>, now_ms: u64) -> bool {
        (leadership.am_leader && leadership.term == self.term)
            && active == Some(self.epoch)
            && now_ms.saturating_sub(self.opened_ms) < BATCH_MS
            && self.dealer.dealt() < BATCH_RECORDS_MAX
    }

    /// Deals one key.
    ///
    /// # Errors
    /// [`DealError`]: the batch is full, or the key is another than `kcv` says.
    pub fn deal(&mut self, key: &MasterKey, identity: &KeyIdentity, kcv: &[u8; 32]) -> Result<ShareRecord, DealError> {
        self.dealer.deal(key, identity, kcv)
    }
}

/// Refusals that mean that the dealing is out of date, not that the change is wrong.
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

/// The answer for a key name that is taken.
fn name_taken(name: &KeyName) -> WireError {
    WireError::new(Code::Conflict, format!("a key named {name} exists"))
        .hint("names are never reused; `quorate key rotate` makes a new version")
}

/// The answer for a key that does not exist.
pub fn unknown_key(name: &KeyName) -> WireError {
    WireError::new(Code::NotFound, format!("no key named {name}")).hint("`quorate key list` shows the keys")
}

fn version_changed(newest: KeyVersion) -> WireError {
    WireError::new(Code::Conflict, format!("the newest version is {newest}"))
        .hint("somebody else rotated the key; look at it before rotating again")
}
