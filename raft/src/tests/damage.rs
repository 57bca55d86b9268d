//! Damaged and foreign values stop the replica. The error names them, and none is ignored.

use std::cmp::Ordering;
use std::path::Path;
use std::sync::Arc;

use openraft::RaftLogReader;
use openraft::storage::RaftStateMachine;
use quorate_shares::ids::{ClusterId, Epoch, KeyVersion, NodeId};
use rocksdb::{DB, Options};
use tempfile::TempDir;

use super::fixture::{CLUSTER, Leader, founded, step, storage_keys, uid};
use crate::consensus::machine::Machine;
use crate::live::command::Change;
use crate::live::place::{Ballot, LogPlace};
use crate::live::rows::RowKey;
use crate::live::state::State;
use crate::log::LogStore;
use crate::snapshot;
use crate::stored::disk::{Disk, SCHEMA};
use crate::stored::error::StorageProblem;
use crate::stored::fatal::Fatal;
use crate::stored::format::MetaV1;
use crate::stored::seal::{Family, SealProblem};
use crate::{OpenError, StorageError};

fn open(dir: &Path) -> Result<Disk, OpenError> {
    Disk::open(dir, storage_keys(1), CLUSTER, NodeId(1))
}

/// A database with two keys, as the state machine writes it.
fn with_rows() -> (TempDir, State) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disk = open(dir.path()).expect("a new database");
    let mut state = founded(3, 2);
    let mut leader = Leader::new(&state, Epoch(1));
    let mut rows = step(&mut state, leader.open_batch()).rows;
    for number in 1..=2 {
        let create = leader.create(number, &format!("key/{number}"));
        rows.extend(step(&mut state, Change::CreateKey(create)).rows);
    }
    let mut batch = disk.batch();
    rows.into_iter().for_each(|row| batch.row(row));
    batch.write_synced().expect("written");
    (dir, state)
}

/// Changes the stored bytes without the program.
pub(super) fn tamper(
    dir: &Path,
    family: Family,
    change: impl FnOnce(&dyn Fn(&[u8]) -> Vec<u8>) -> Vec<(Vec<u8>, Vec<u8>)>,
) {
    let db = DB::open_cf(&Options::default(), dir.join("raft"), ["log", "state", "meta"]).expect("it opens raw");
    let cf = db.cf_handle(family.name()).expect("a family");
    let read = |key: &[u8]| db.get_cf(cf, key).expect("readable").expect("there");
    for (key, value) in change(&read) {
        db.put_cf(cf, key, value).expect("written");
    }
}

fn storage(error: OpenError) -> StorageError {
    match error {
        OpenError::Storage(error) => error,
        other => panic!("not a storage error: {other}"),
    }
}

/// Mutated: if an older schema is read as if it were this one, its rows are.
#[test]
fn a_database_of_another_schema_is_refused() {
    for schema in [SCHEMA - 1, SCHEMA, SCHEMA + 1] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        {
            let disk = open(dir.path()).expect("a new database");
            let mut batch = disk.batch();
            batch.put_meta("identity", MetaV1::Identity { cluster: CLUSTER, node: NodeId(1), schema });
            batch.write_synced().expect("written");
        }
        let refused = open(dir.path()).map(drop).map_err(|error| error.to_string());
        let expected = match schema.cmp(&SCHEMA) {
            Ordering::Less => "of an earlier build",
            Ordering::Equal => {
                refused.expect("the control");
                continue;
            }
            Ordering::Greater => "use the newer program",
        };
        let refused = refused.expect_err("another schema");
        assert!(refused.contains(&format!("has schema {schema}")) && refused.contains(expected), "{refused}");
    }
}

#[test]
fn a_wrong_storage_key_or_owner_is_said_so() {
    let (dir, _) = with_rows();
    let error = Disk::open(dir.path(), storage_keys(2), CLUSTER, NodeId(1)).map(|_| ()).expect_err("a wrong key");
    assert!(error.to_string().contains("the storage key does not open this database"), "{error}");
    let older = Disk::open(
        dir.path(),
        crate::StorageKeys::new(2, &quorate_shares::secret::Secret::take(&mut [1; 32])),
        CLUSTER,
        NodeId(1),
    );
    let problem = SealProblem::UnknownKey(1);
    assert!(matches!(older.map(|_| ()), Err(OpenError::WrongStorageKey { problem: p, .. }) if p == problem));
    let error = Disk::open(dir.path(), storage_keys(1), CLUSTER, NodeId(2)).map(|_| ()).expect_err("another node");
    assert!(matches!(error, OpenError::WrongOwner { node: NodeId(1), .. }));
    let error = Disk::open(dir.path(), storage_keys(1), ClusterId([1; 16]), NodeId(1)).map(|_| ()).expect_err("other");
    assert!(matches!(error, OpenError::WrongOwner { .. }));
    let running = open(dir.path()).expect("the right ones");
    assert!(matches!(open(dir.path()).map(|_| ()), Err(OpenError::InUse { .. })));
    drop(running);
}

/// Mutated once: with the key left out of the associated data, this fails.
///
/// D5: a thief who can write to the disk cannot put one key's record, or one row, in the place of another.
#[test]
fn values_cannot_change_places() {
    let (dir, _) = with_rows();
    let (one, two) = (1..=2)
        .map(|number| RowKey::Record(uid(number), KeyVersion(1), Epoch(1)).to_bytes())
        .collect::<Vec<_>>()
        .try_into()
        .map(|[one, two]: [Vec<u8>; 2]| (one, two))
        .expect("two keys");
    tamper(dir.path(), Family::State, |read| vec![(one.clone(), read(&two)), (two.clone(), read(&one))]);
    let disk = open(dir.path()).expect("records are not read at open");
    for (number, key) in [(1, one), (2, two)] {
        let error = disk.read(Family::State, &key).expect_err("it lies elsewhere");
        assert!(matches!(error.problem, StorageProblem::Sealed(SealProblem::NotAuthentic)), "{number}");
    }
}

#[test]
fn a_damaged_row_stops_the_restart_and_is_named() {
    let (dir, state) = with_rows();
    assert!(open(dir.path()).expect("opens").live_state().expect("whole").keys.len() == state.keys.len());
    let key = RowKey::Key(uid(2)).to_bytes();
    tamper(dir.path(), Family::State, |read| {
        let mut value = read(&key);
        *value.last_mut().expect("sealed") ^= 1;
        vec![(key.clone(), value)]
    });
    let disk = Arc::new(open(dir.path()).expect("the owner is readable"));
    let error = Machine::open(disk, CLUSTER, Arc::new(()), Fatal::new()).map(|_| ()).expect_err("damaged");
    let text = error.to_string();
    let parts = [dir.path().to_str().expect("a path"), "column family state", "key 06020202", "must not serve"];
    parts.iter().for_each(|part| assert!(text.contains(part), "{part} is not in: {text}"));
}

#[test]
fn a_damaged_vote_says_that_the_node_must_not_vote_again() {
    let (dir, _) = with_rows();
    let disk = open(dir.path()).expect("opens");
    let mut batch = disk.batch();
    batch.put_meta("vote", MetaV1::Truncations(1));
    batch.write_synced().expect("written");
    let error =
        LogStore::new(Arc::new(disk), Arc::new(()), Fatal::new()).map(|_| ()).expect_err("another kind of value");
    assert!(error.to_string().contains("column family meta, key vote"), "{error}");
    assert!(error.to_string().contains("must not vote again"), "{error}");
}

#[test]
fn a_database_without_its_identity_is_not_taken_for_a_new_one() {
    let (dir, _) = with_rows();
    {
        let db = DB::open_cf(&Options::default(), dir.path().join("raft"), ["log", "state", "meta"]).expect("raw");
        db.delete_cf(db.cf_handle("meta").expect("meta"), "identity").expect("deleted");
    }
    let error = storage(open(dir.path()).map(|_| ()).expect_err("not new"));
    assert!(matches!(error.problem, StorageProblem::Missing));
}

#[tokio::test]
async fn a_damaged_entry_stops_the_node_when_it_is_read() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let place = LogPlace { term: 1, node: NodeId(1), index: 3 };
    let entry = openraft::alias::EntryOf::<crate::types::Types> {
        log_id: place.log_id(),
        payload: crate::types::Payload::Blank,
    };
    {
        let disk = open(dir.path()).expect("a new database");
        let mut batch = disk.batch();
        // Stored under another index than its own.
        batch.put(Family::Log, &4u64.to_be_bytes(), &crate::stored::format::encode_entry(&entry));
        batch.put_meta("vote", MetaV1::Vote(Ballot { term: 1, node: NodeId(1), committed: true }));
        batch.write_synced().expect("written");
    }
    let fatal = Fatal::new();
    let watch = fatal.watch();
    let mut log =
        LogStore::new(Arc::new(open(dir.path()).expect("opens")), Arc::new(()), fatal).expect("its end is readable");
    let error = log.try_get_log_entries(0..10).await.expect_err("damaged");
    assert!(error.to_string().contains("column family log, key 0000000000000004"), "{error}");
    assert!(watch.borrow().as_ref().is_some_and(|reason| reason.contains("must not vote again")));
    log.flusher().close();
}

#[test]
fn a_snapshot_is_whole_or_refused_and_an_interrupted_one_is_done_again() {
    let (dir, _) = with_rows();
    let disk = open(dir.path()).expect("opens");
    let before = disk.live_state().expect("whole");
    let file = snapshot::build(&disk, CLUSTER).expect("built");

    // The crash came after the marker and half of the rows.
    let mut crash = disk.batch();
    crash.put_meta("installing", MetaV1::Installing(file.id()));
    crash.delete_state();
    crash.write_synced().expect("written");
    assert!(disk.live_state().expect("empty").keys.is_empty());
    drop(disk);
    let disk = Arc::new(open(dir.path()).expect("opens"));
    let machine = Machine::open(disk.clone(), CLUSTER, Arc::new(()), Fatal::new()).expect("installed again");
    assert!(*machine.live().state.read() == before);
    assert!(disk.meta("installing").expect("readable").is_none());
    drop(machine);

    // One flipped byte, or a missing end, and nothing is taken from it.
    let path = std::fs::read_dir(disk.snapshots_dir()).expect("a directory").flatten().next().expect("one file").path();
    let good = std::fs::read(&path).expect("readable");
    for bytes in [good[..good.len() - 3].to_vec(), {
        let mut bytes = good.clone();
        bytes[80] ^= 1;
        bytes
    }] {
        std::fs::write(&path, bytes).expect("written");
        let file = snapshot::current(&disk).expect("there").expect("a file");
        let result = file.chunks().and_then(|chunks| chunks.collect::<Result<Vec<_>, _>>());
        let error = result.expect_err("damaged");
        assert_eq!(error.family, "snapshot");
        assert!(error.to_string().contains(".snap"), "{error}");
    }
}

#[tokio::test]
async fn records_of_closed_epochs_stay_out_of_snapshots() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disk = Arc::new(open(dir.path()).expect("a new database"));
    let (source, mut state) = with_rows();
    drop(source);
    let mut leader = Leader::new(&state, Epoch(1));
    let mut rows = step(&mut state, leader.open_batch()).rows;
    let create = leader.create(9, "closed");
    rows.extend(step(&mut state, Change::CreateKey(create)).rows);
    let mut batch = disk.batch();
    rows.into_iter().for_each(|row| batch.row(row));
    let mut epoch = state.epochs[&Epoch(1)].clone();
    epoch.phase = crate::live::state::EpochPhase::Retired;
    let mut write = crate::live::rows::Rows::default();
    write.put(RowKey::Epoch(Epoch(1)), crate::live::rows::Row::Epoch(epoch));
    write.0.into_iter().for_each(|row| batch.row(row));
    batch.write_synced().expect("written");

    let mut machine = Machine::open(disk.clone(), CLUSTER, Arc::new(()), Fatal::new()).expect("opens");
    let record = RowKey::Record(uid(9), KeyVersion(1), Epoch(1)).to_bytes();
    assert!(disk.read(Family::State, &record).expect("readable").is_some());
    snapshot::build(&disk, CLUSTER).expect("built");
    let current = machine.get_current_snapshot().await.expect("readable").expect("there");
    machine.install_snapshot(&current.meta, current.snapshot).await.expect("installed");
    assert!(disk.read(Family::State, &record).expect("readable").is_none());
    assert!(disk.read(Family::State, &RowKey::Header(leader.batch()).to_bytes()).expect("readable").is_none());
    assert_eq!(machine.live().state.read().keys.len(), 1);
}
