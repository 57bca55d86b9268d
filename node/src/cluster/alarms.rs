//! Alarms: what an operator should look at, kept until he says that he has.
//!
//! Raising one is a line in memory and never waits. A task puts the open ones into the file `alarms` of the data directory,
//! sealed under the storage key as every value at rest is; what is raised while this node is locked waits in memory until
//! that key is there. An alarm is about one thing at one node, and is raised once however often the thing happens.
//!
//! ```text
//! alarms = value at rest (family 5, key "alarms") of: 0 V1(list of { code, message, node?, since_ms u64 })
//! ```

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use quorate_client::conn::Lane;
use quorate_client::error::Code;
use quorate_client::wire::{Alarm, Answer, Response, WireError};
use quorate_raft::Replica;
use quorate_raft::seal::Family;
use quorate_shares::codec;
use quorate_shares::ids::NodeName;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tracing::{info, warn};

use crate::cluster::status;
use crate::memory::alarms::{ALARMS_MAX, Which, is_meant, is_same};
use crate::messages::peer::{PeerReply, PeerRequest};
use crate::node::Node;
use crate::vault::disk;

/// More than so many alarms ever take; a longer file is damaged.
const FILE_BYTES_MAX: usize = 1 << 20;
const FILE_NAME: &str = "alarms";
/// How soon a failed write is tried again.
const AGAIN: Duration = Duration::from_secs(10);
/// How long a peer may take to disarm.
const PEER: Duration = Duration::from_secs(5);

#[derive(Serialize, Deserialize)]
enum Stored {
    V1(Vec<StoredAlarm>),
}

#[derive(Serialize, Deserialize)]
struct StoredAlarm {
    code: String,
    message: String,
    node: Option<NodeName>,
    since_ms: u64,
}

/// Takes up the alarms of earlier starts, and keeps the file as the memory is. Never returns.
pub async fn keep(node: Arc<Node>) {
    let stored = read(&node).unwrap_or_else(|reason| {
        let message = format!("the alarms that {} had before it started cannot be read: {reason}", node.name());
        node.alarm("alarms_lost", node.id(), message);
        Vec::new()
    });
    node.alarms.take_up(stored.clone());
    *node.alarms.durable.lock().await = Some(stored);
    loop {
        match store(&node).await {
            Ok(()) => node.alarms.changed().await,
            Err(reason) => {
                warn!(%reason, "alarms are not durable yet");
                sleep(AGAIN).await;
            }
        }
    }
}

/// Makes the file what the memory is, unless it was not read yet.
async fn store(node: &Arc<Node>) -> Result<(), String> {
    let mut durable = node.alarms.durable.lock().await;
    let open = node.alarms.open();
    if durable.as_ref().is_none_or(|durable| *durable == open) {
        return Ok(());
    }
    let stored = open.iter().cloned().map(|Alarm { code, message, node, since_ms }| StoredAlarm {
        code,
        message,
        node,
        since_ms,
    });
    let plain = codec::encode(&Stored::V1(stored.collect())).map_err(|error| error.to_string())?;
    let sealed = node.enrolment().identity.storage_keys()?.seal(Family::Alarms, FILE_NAME.as_bytes(), &plain);
    let path = path(node);
    let written = tokio::task::spawn_blocking(move || disk::replace(&path, &sealed)).await;
    written.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    *durable = Some(open);
    Ok(())
}

fn read(node: &Node) -> Result<Vec<Alarm>, String> {
    let sealed = match std::fs::read(path(node)) {
        Ok(sealed) => sealed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.to_string()),
    };
    let keys = node.enrolment().identity.storage_keys()?;
    let plain = keys.open(Family::Alarms, FILE_NAME.as_bytes(), &sealed).map_err(|error| error.to_string())?;
    let Stored::V1(stored) = codec::decode::<Stored, FILE_BYTES_MAX>(&plain).map_err(|error| error.to_string())?;
    let alarms =
        stored.into_iter().map(|StoredAlarm { code, message, node, since_ms }| Alarm { code, message, node, since_ms });
    Ok(alarms.take(ALARMS_MAX).collect())
}

fn path(node: &Node) -> PathBuf {
    node.dir.path().join(FILE_NAME)
}

/// `alarm disarm` at this node alone; durable when this returns.
///
/// # Errors
/// If they could not be made durable.
pub async fn disarm(node: &Arc<Node>, which: &Which) -> Result<(), WireError> {
    node.alarms.close(|alarm| is_meant(which, alarm));
    store(node).await.map_err(|reason| WireError::new(Code::Storage, format!("alarms are not durable: {reason}")))
}

/// The open alarms of every node that answers, and those that the others had when they were last heard of.
pub async fn everywhere(node: &Arc<Node>, replica: &Replica) -> Vec<Alarm> {
    // Asks each node how it is; the answers are kept.
    status::nodes(node, replica).await;
    status::alarms(node)
}

/// `alarm disarm` at every node.
///
/// # Errors
/// [`Code::NotFound`] for a code of which no alarm is open: somebody mistyped it, or it was disarmed already.
pub async fn disarm_everywhere(node: &Arc<Node>, replica: &Replica, which: Which) -> Answer {
    let before = everywhere(node, replica).await;
    if let Some(code) = which.iter().flatten().find(|code| !before.iter().any(|alarm| alarm.code == **code)) {
        let codes: BTreeSet<_> = before.iter().map(|alarm| alarm.code.as_str()).collect();
        let open = codes.into_iter().collect::<Vec<_>>().join(", ");
        let hint = if open.is_empty() { "no alarm is open".to_owned() } else { format!("the open alarms are {open}") };
        return Err(WireError::new(Code::NotFound, format!("no alarm {code} is open")).hint(hint));
    }
    disarm(node, &which).await?;
    let (roster, request) = (node.roster(), &PeerRequest::Disarm { codes: which.clone() });
    let peers = roster.members.iter().filter(|member| member.node != node.id());
    let answers = join_all(peers.map(|member| async move {
        let answer = node.peers().sessions.ask(member.node, Lane::Ordinary, request, PEER).await;
        (member, matches!(answer, Ok(PeerReply::Done)))
    }));
    let mut silent = Vec::new();
    for (member, disarmed) in answers.await {
        if !disarmed {
            silent.push(member.name.clone());
        } else if let Some((report, _)) = node.peers().reports.lock().get_mut(&member.node) {
            report.alarms.retain(|alarm| !is_meant(&which, alarm));
        }
    }
    let after = status::alarms(node);
    let gone = |alarm: &Alarm| is_meant(&which, alarm) && !after.iter().any(|open| is_same(open, alarm));
    let alarms: Vec<_> = before.into_iter().filter(gone).collect();
    for Alarm { code, node, message, .. } in &alarms {
        info!(%code, about = node.as_ref().map_or("-", NodeName::as_str), %message, "alarm disarmed by an operator");
    }
    Ok(Response::Disarmed { alarms, silent })
}
