//! openraft's own suite for storage.

use std::sync::Arc;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use quorate_shares::ids::NodeId;
use tempfile::TempDir;

use super::fixture::{CLUSTER, storage_keys};
use crate::consensus::machine::Machine;
use crate::log::LogStore;
use crate::stored::disk::Disk;
use crate::stored::fatal::Fatal;
use crate::types::Types;

struct Builder;

impl StoreBuilder<Types, LogStore, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError<Types>> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = Arc::new(Disk::open(dir.path(), storage_keys(1), CLUSTER, NodeId(1)).expect("a new database"));
        let machine = Machine::open(disk.clone(), CLUSTER, Arc::new(()), Fatal::new()).expect("an empty state");
        let log = LogStore::new(disk, Arc::new(()), Fatal::new()).expect("an empty log");
        Ok((dir, log, machine))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_conforms() {
    Suite::test_all(Builder).await.expect("openraft's suite passes");
}
