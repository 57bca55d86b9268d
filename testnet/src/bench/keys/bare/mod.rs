//! Raft by itself: three replicas in this process, joined by connections like those of the daemons, each with its database
//! on the disk. Keys are written and applied, but not dealt, checked or requested.

mod link;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use quorate_node::base::clock::wall_ms;
use quorate_node::base::random;
use quorate_raft::command::{Change, Command, CreateKey, EpochAck, Found, NewMember, RecordBytes};
use quorate_raft::plan::{self, Step, View};
use quorate_raft::{Options, Replica, StorageKeys, Timing};
use quorate_shares::ids::{BatchId, ClusterId, Epoch, KeyUid, KeyVersion, NodeId, ShareKeyGeneration};
use quorate_shares::kem::PublicKey;
use quorate_shares::seal::{BATCH_RECORDS_MAX, Dealer, RecordedShare, ShareRecord};
use quorate_shares::secret::Secret;
use quorate_shares::signature;
use quorate_shares::split::Threshold;
use tokio::task::JoinSet;

use self::link::{Place, Quic};
use crate::base::error::Error;
use crate::bench::machine::processor_time;
use crate::cluster::PATIENCE;

const NODES: u8 = 3;
const NEEDED: u8 = 2;
const CLUSTER: ClusterId = ClusterId([0xb0; 16]);
/// Room for all keys that are written: it is opened before the clock runs.
const BATCHES: u32 = 30;

/// How bare writes went.
pub(super) struct Bare {
    pub(super) per_second: f64,
    /// Of this process for each: all three replicas, and those who propose.
    pub(super) processor: Duration,
}

/// Writes for `time`, with `in_flight` of them under way, to databases below `directory`.
pub(super) fn write(directory: &Path, in_flight: usize, time: Duration) -> Result<Bare, Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(Error::io("start a runtime"))?.block_on(async {
        let replicas = open(directory).await?;
        let leader = lead(&replicas).await?;
        found(&leader).await?;
        let batches = open_batches(&leader).await?;
        let bare = propose(&leader, batches, in_flight, time).await;
        for replica in replicas {
            replica.shutdown().await;
        }
        bare
    })
}

async fn open(directory: &Path) -> Result<Vec<Replica>, Error> {
    let places: BTreeMap<NodeId, Place> = (1..=NODES).map(|node| (NodeId(node.into()), Place::default())).collect();
    let links = link::join(&places).await?;
    let mut replicas = Vec::new();
    for ((node, place), link) in places.into_iter().zip(links) {
        let replica = open_one(&directory.join(format!("bare{node}")), node, link).await?;
        replicas.push(place.get_or_init(|| replica).clone());
    }
    Ok(replicas)
}

async fn open_one(dir: &Path, node: NodeId, link: Quic) -> Result<Replica, Error> {
    std::fs::create_dir_all(dir).map_err(Error::io(dir.display().to_string()))?;
    let keys = StorageKeys::new(1, &Secret::random(&mut random::system()));
    let (timing, link, gate) = (Timing::default(), Arc::new(link), Arc::new(()));
    let options = Options { node, cluster: CLUSTER, dir: dir.to_owned(), keys, timing, link, gate };
    Replica::open(options).await.map_err(|error| Error::Bench(format!("open a bare replica: {error}")))
}

async fn lead(replicas: &[Replica]) -> Result<Replica, Error> {
    let labels: BTreeMap<_, _> = (1..=NODES).map(|node| (NodeId(node.into()), format!("n{node}"))).collect();
    let first = replicas.first().ok_or_else(|| Error::Bench("no bare replica is open".to_owned()))?;
    let begun = first.initialize(labels).await;
    begun.map_err(|error| Error::Bench(format!("begin a bare cluster: {error}")))?;
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        for replica in replicas {
            if replica.read_index().await.is_ok() {
                return Ok(replica.clone());
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Err(Error::Bench("no bare replica leads".to_owned()))
}

/// A cluster with an active epoch, since no other has keys.
async fn found(leader: &Replica) -> Result<(), Error> {
    loop {
        let change = match leader.read(|state| plan::next(state, &View::of_all(state, NodeId(1)))) {
            Step::AwaitFounding => Change::Found(Found {
                cluster: CLUSTER,
                operator: signature::PublicKey::of_seed(&Secret::take(&mut [0xad; 32])),
                operator_label: "bench".to_owned(),
                threshold: NEEDED,
                allow_solo: false,
                accept_no_redundancy: false,
                lease_ms: 3_000,
                members: (1..=NODES).map(member).collect(),
            }),
            Step::Propose(change) => change,
            Step::CollectAcks { epoch, reshared, missing, .. } => {
                let node = *missing.first().ok_or_else(|| Error::Bench("no holder is missing".to_owned()))?;
                Change::EpochAck(EpochAck { epoch, node, reshared })
            }
            _ => return Ok(()),
        };
        put(leader, change).await?;
    }
}

fn member(node: u8) -> NewMember {
    let seed = Secret::random(&mut random::system());
    NewMember {
        node: NodeId(node.into()),
        name: format!("n{node}").parse().expect("a node name"),
        addresses: vec!["127.0.0.1:7250".to_owned()],
        boot_pk: [node; 32],
        op_pk: [node | 0x80; 32],
        share_pk: PublicKey::of_seed(&seed).as_bytes().to_vec(),
        skgen: ShareKeyGeneration(1),
    }
}

async fn open_batches(leader: &Replica) -> Result<Vec<BatchId>, Error> {
    let committee = leader.read(|state| state.committee(Epoch(1)));
    let committee = committee.ok_or_else(|| Error::Bench("the bare cluster has no epoch".to_owned()))?;
    let mut batches = Vec::new();
    for _ in 0..BATCHES {
        let dealer = Dealer::open(CLUSTER, NodeId(1), &committee, &mut random::system());
        batches.push(dealer.header().batch);
        put(leader, Change::OpenBatch { header: dealer.header().encode() }).await?;
    }
    Ok(batches)
}

async fn put(leader: &Replica, change: Change) -> Result<(), Error> {
    let put = leader.propose(Command::new(wall_ms(), change)).await;
    put.map(drop).map_err(|error| Error::Bench(format!("write a bare entry: {error}")))
}

async fn propose(leader: &Replica, batches: Vec<BatchId>, in_flight: usize, time: Duration) -> Result<Bare, Error> {
    let (next, batches, begun) = (Arc::new(AtomicU32::new(0)), Arc::new(batches), Instant::now());
    let used = processor_time(std::process::id())?;
    let mut writers = JoinSet::new();
    for _ in 0..in_flight {
        let (leader, next, batches) = (leader.clone(), Arc::clone(&next), Arc::clone(&batches));
        writers.spawn(async move {
            let mut done = 0;
            while begun.elapsed() < time {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let batch = batches.get((number / BATCH_RECORDS_MAX) as usize);
                let batch = *batch.ok_or_else(|| Error::Bench("more bare writes than there is room for".to_owned()))?;
                put(&leader, key(number, batch)).await?;
                done += 1;
            }
            Ok::<u32, Error>(done)
        });
    }
    let mut done = 0;
    while let Some(writer) = writers.join_next().await {
        done += writer.expect("a writer does not panic")?;
    }
    let (took, used) = (begun.elapsed(), processor_time(std::process::id())?.saturating_sub(used));
    Ok(Bare { per_second: f64::from(done) / took.as_secs_f64(), processor: used.div_f64(done.max(1).into()) })
}

/// A key as the leader would put it into the log. Its shares need not open here.
fn key(number: u32, batch: BatchId) -> Change {
    let (uid, version) = (KeyUid(random::bytes()), KeyVersion(1));
    let threshold = Threshold::new(NEEDED, NODES).expect("two of three");
    let share = RecordedShare { commitment: [1; 16], sealed: [1; 48] };
    let shares = vec![share; NODES.into()];
    let index = number % BATCH_RECORDS_MAX;
    let record = ShareRecord { batch, index, epoch: Epoch(1), uid, version, threshold, shares, recovery: None };
    Change::CreateKey(CreateKey {
        request: random::bytes(),
        uid,
        name: format!("bench/key-{number:06}").parse().expect("a key name"),
        tags: BTreeMap::new(),
        kcv: [1; 32],
        records: vec![RecordBytes(record.encode())],
    })
}
