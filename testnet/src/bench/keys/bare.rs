//! Raft by itself: three replicas in this process that call each other, each with its database on the disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use quorate_raft::command::{Change, Command, CreateKey, RecordBytes};
use quorate_raft::{Lane, Link, LinkError, Options, ProposeError, Replica, StorageKeys, Timing};
use quorate_shares::ids::{ClusterId, KeyUid, NodeId};
use quorate_shares::secret::Secret;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::RECORD_BYTES;
use crate::cluster::PATIENCE;
use crate::error::Error;

const NODES: u64 = 3;
const CLUSTER: ClusterId = ClusterId([0xb0; 16]);

type Replicas = Arc<[OnceLock<Replica>; NODES as usize]>;

/// The way from one replica to the others: a function call.
struct Inside {
    from: NodeId,
    replicas: Replicas,
}

impl Inside {
    fn peer(&self, to: NodeId) -> Result<&Replica, LinkError> {
        let place = usize::try_from(to.0).ok().and_then(|id| id.checked_sub(1));
        let peer = place.and_then(|place| self.replicas.get(place)).and_then(OnceLock::get);
        peer.ok_or_else(|| LinkError::Unreachable("it is not open yet".to_owned()))
    }
}

#[async_trait]
impl Link for Inside {
    async fn call(&self, to: NodeId, _: Lane, request: Vec<u8>, _: Duration) -> Result<Vec<u8>, LinkError> {
        let served = self.peer(to)?.serve(self.from, &request).await;
        served.map_err(|error| LinkError::Refused(error.to_string()))
    }

    async fn snapshot(&self, to: NodeId, chunks: mpsc::Receiver<Vec<u8>>, _: Duration) -> Result<Vec<u8>, LinkError> {
        let served = self.peer(to)?.serve_snapshot(self.from, chunks).await;
        served.map_err(|error| LinkError::Refused(error.to_string()))
    }
}

/// Writes each second, with `in_flight` of them under way, to databases below `directory`.
pub(super) fn rate(directory: &Path, in_flight: usize, time: Duration) -> Result<f64, Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(Error::io("start a runtime"))?.block_on(async {
        let replicas = open(directory).await?;
        let leader = lead(&replicas).await?;
        let rate = write(leader, in_flight, time).await;
        let all: Vec<_> = replicas.iter().filter_map(OnceLock::get).cloned().collect();
        for replica in all {
            replica.shutdown().await;
        }
        rate
    })
}

async fn open(directory: &Path) -> Result<Replicas, Error> {
    let failed = |error: String| Error::Bench(format!("open a bare replica: {error}"));
    let replicas: Replicas = Arc::default();
    for (node, place) in (1..=NODES).zip(replicas.iter()) {
        let dir = directory.join(format!("bare{node}"));
        std::fs::create_dir_all(&dir).map_err(Error::io(dir.display().to_string()))?;
        let node = NodeId(node);
        let keys = StorageKeys::new(1, &Secret::random(&mut quorate_node::random::system()));
        let link = Arc::new(Inside { from: node, replicas: Arc::clone(&replicas) });
        let options = Options { node, cluster: CLUSTER, dir, keys, timing: Timing::default(), link };
        let replica = Replica::open(options).await.map_err(|error| failed(error.to_string()))?;
        place.get_or_init(|| replica);
    }
    Ok(replicas)
}

async fn lead(replicas: &Replicas) -> Result<&Replica, Error> {
    let labels: BTreeMap<_, _> = (1..=NODES).map(|node| (NodeId(node), format!("n{node}"))).collect();
    let first = replicas.first().and_then(OnceLock::get);
    let first = first.ok_or_else(|| Error::Bench("no bare replica is open".to_owned()))?;
    let begun = first.initialize(labels).await;
    begun.map_err(|error| Error::Bench(format!("begin a bare cluster: {error}")))?;
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        for replica in replicas.iter().filter_map(OnceLock::get) {
            if replica.read_index().await.is_ok() {
                return Ok(replica);
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Err(Error::Bench("no bare replica leads".to_owned()))
}

async fn write(leader: &Replica, in_flight: usize, time: Duration) -> Result<f64, Error> {
    let (done, begun) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let mut writers = JoinSet::new();
    for _ in 0..in_flight {
        let (leader, done) = (leader.clone(), Arc::clone(&done));
        writers.spawn(async move {
            while begun.elapsed() < time {
                match leader.propose(Command::new(1, key())).await {
                    // There is no cluster in this state that could have keys. The entry is written all the same.
                    Ok(_) | Err(ProposeError::Refused(_)) => done.fetch_add(1, Ordering::Relaxed),
                    Err(error) => return Err(Error::Bench(format!("write bare entries: {error}"))),
                };
            }
            Ok(())
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer.expect("a writer does not panic")?;
    }
    Ok(done.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64())
}

/// A key of the usual size.
fn key() -> Change {
    Change::CreateKey(CreateKey {
        request: [1; 16],
        uid: KeyUid([1; 16]),
        name: "bench/key-000000".parse().expect("a key name"),
        tags: BTreeMap::new(),
        kcv: [1; 32],
        records: vec![RecordBytes(vec![1; RECORD_BYTES])],
    })
}
