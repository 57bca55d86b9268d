//! Making keys: the leader draws a key, deals its shares, and lets nobody use it before t holders have checked theirs.
//!
//! One batch is open at a time, in memory only: the header goes into the log once, and each new key costs one record. The
//! batch is dropped, and its keys wiped, at loss of leadership or lease and after ten minutes. A refused proposal that means
//! "the committee moved on" costs a new batch and one more try; the random key that was refused is wiped with it.

use std::sync::Arc;
use std::time::Duration;

use quorate_client::error::Code;
use quorate_client::wire::WireError;
use quorate_raft::command::{Change, Command, CreateKey, Outcome, RecordBytes, RotateKey};
use quorate_raft::refusal::Refusal;
use quorate_raft::state::State;
use quorate_raft::{ProposeError, Replica};
use quorate_shares::ids::{Epoch, KeyName, KeyUid, KeyVersion};
use quorate_shares::master::{KeyIdentity, MasterKey};
use quorate_shares::seal::{BATCH_RECORDS_MAX, Dealer};
use tokio::time::{Instant, timeout_at};

use crate::clock::{boot_ms, wall_ms};
use crate::confirm;
use crate::node::Node;
use crate::peer::KeyChange;
use crate::random;

/// A batch is closed after this.
const BATCH_MS: u64 = 10 * 60_000;
/// How often a change is dealt anew after the committee moved on.
const TRIES: usize = 3;
/// How long a change waits for its version to be checked by t holders.
const READY: Duration = Duration::from_secs(20);

/// The batch that new keys are dealt in.
pub struct OpenDealer {
    epoch: Epoch,
    term: u64,
    opened_ms: u64,
    dealer: Dealer,
}

/// Carries out a change as the leader, and returns once the new version may be used.
///
/// # Errors
/// What a client should hear.
pub async fn change(node: &Arc<Node>, replica: &Replica, change: KeyChange) -> Result<(KeyUid, KeyVersion), WireError> {
    let deadline = Instant::now() + READY;
    // A leader that was just elected may not have applied yet what the last one acknowledged.
    confirm::catch_up(node, replica).await.map_err(|reason| {
        WireError::new(Code::NoQuorum, format!("the leader is not confirmed: {reason}")).hint("try again in a moment")
    })?;
    let made = match replica.read(|state| answered(state, &change)) {
        Some(made) => made?,
        None => propose(node, replica, &change).await?,
    };
    wait_ready(replica, made, deadline).await?;
    Ok(made)
}

/// The first answer to a request that is repeated; an error if its id belongs to another request.
fn answered(state: &State, change: &KeyChange) -> Option<Result<(KeyUid, KeyVersion), WireError>> {
    let (uid, version) = state.answer(change.request())?;
    let same_key = state.keys.get(&uid).is_some_and(|key| key.name == *change.name());
    let same_kind = matches!(change, KeyChange::Create { .. }) == (version == KeyVersion(1));
    Some(if same_key && same_kind { Ok((uid, version)) } else { Err(request_reused()) })
}

async fn propose(node: &Arc<Node>, replica: &Replica, change: &KeyChange) -> Result<(KeyUid, KeyVersion), WireError> {
    for _ in 0..TRIES {
        let command = Command::new(wall_ms(), deal(node, replica, change).await?);
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
async fn deal(node: &Arc<Node>, replica: &Replica, change: &KeyChange) -> Result<Change, WireError> {
    let (uid, version) = match change {
        KeyChange::Create { name, .. } if replica.read(|state| state.key_by_name(name).is_some()) => {
            return Err(name_taken(name));
        }
        KeyChange::Create { .. } => (KeyUid(random::bytes()), KeyVersion(1)),
        KeyChange::Rotate { name, expect, .. } => {
            let newest = replica.read(|state| state.key_by_name(name).map(|key| (key.uid, key.newest().version)));
            let (uid, newest) = newest.ok_or_else(|| unknown_key(name))?;
            let expect = expect.unwrap_or(newest);
            if expect != newest {
                return Err(version_changed(newest));
            }
            (uid, KeyVersion(newest.0 + 1))
        }
    };
    let identity = KeyIdentity { cluster: node.cluster(), uid, version };
    let key = MasterKey::random(&mut random::system());
    let kcv = key.kcv(&identity);
    let record = loop {
        if let Some(record) = node
            .dealing
            .lock()
            .as_mut()
            .filter(|open| node.lease.is_valid() && open.is_usable(replica))
            .map(|open| open.dealer.deal(&key, &identity, &kcv))
        {
            break record
                .map_err(|error| WireError::new(Code::Internal, format!("the key cannot be dealt: {error}")))?;
        }
        // One at a time; whoever waited finds the batch that the first one opened.
        let _one = node.opening.lock().await;
        if !node.dealing.lock().as_ref().is_some_and(|open| open.is_usable(replica)) {
            let open = open_batch(node, replica).await?;
            *node.dealing.lock() = Some(open);
        }
    };
    let records = vec![RecordBytes(record.encode())];
    let request = *change.request();
    Ok(match change {
        KeyChange::Create { name, tags, .. } => {
            let (name, tags) = (name.clone(), tags.clone());
            Change::CreateKey(CreateKey { request, uid, name, tags, kcv, records })
        }
        KeyChange::Rotate { .. } => {
            Change::RotateKey(RotateKey { request, uid, expect: KeyVersion(version.0 - 1), kcv, records })
        }
    })
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
    Ok(OpenDealer { epoch, term, opened_ms: boot_ms(), dealer })
}

impl OpenDealer {
    /// Whether the batch still belongs to this leader, term and epoch, and has room.
    pub fn is_usable(&self, replica: &Replica) -> bool {
        let leads = {
            let leadership = replica.leadership();
            let leadership = leadership.borrow();
            leadership.am_leader && leadership.term == self.term
        };
        leads
            && replica.read(|state| state.active().is_some_and(|active| active.epoch == self.epoch))
            && boot_ms().saturating_sub(self.opened_ms) < BATCH_MS
            && self.dealer.dealt() < BATCH_RECORDS_MAX
    }
}

/// Waits until t holders have opened and checked their shares.
async fn wait_ready(
    replica: &Replica,
    (uid, version): (KeyUid, KeyVersion),
    deadline: Instant,
) -> Result<(), WireError> {
    let mut changes = replica.changes();
    loop {
        changes.borrow_and_update();
        if replica.read(|state| state.version(uid, version).is_some_and(|version| version.ready)) {
            return Ok(());
        }
        if timeout_at(deadline, changes.changed()).await.is_err() {
            return Err(WireError::new(
                Code::NoQuorum,
                "the key is made, but too few holders have checked their shares",
            )
            .hint("it becomes usable as soon as they have; `quorate status` shows who is missing"));
        }
    }
}

/// Refusals that mean that the dealing is out of date, not that the change is wrong.
fn is_stale(refusal: &Refusal) -> bool {
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
