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
use parking_lot::Mutex;
use quorate_client::conn::Lane;
use quorate_client::error::Code;
use quorate_client::wire::{Alarm, Answer, Response, WireError};
use quorate_raft::Replica;
use quorate_raft::seal::Family;
use quorate_shares::codec;
use quorate_shares::ids::NodeName;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::boot;
use crate::cluster::status;
use crate::messages::peer::{PeerReply, PeerRequest};
use crate::node::Node;
use crate::vault::disk;

/// Alarms kept at most; beyond, the oldest makes room.
pub const ALARMS_MAX: usize = 64;
/// More than so many alarms ever take; a longer file is damaged.
const FILE_BYTES_MAX: usize = 1 << 20;
const FILE_NAME: &str = "alarms";
/// How soon a failed write is tried again.
const AGAIN: Duration = Duration::from_secs(10);
/// How long a peer may take to disarm.
const PEER: Duration = Duration::from_secs(5);

/// Which alarms are meant.
pub type Which = Option<BTreeSet<String>>;

/// The open alarms of a node.
#[derive(Default)]
pub struct Alarms {
    open: Mutex<Vec<Alarm>>,
    changed: Notify,
    /// What the file holds; `None` until it was read.
    durable: tokio::sync::Mutex<Option<Vec<Alarm>>>,
}

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

impl Alarms {
    /// Opens an alarm, unless one of this code about this node is open; returns whether it is new.
    pub fn raise(&self, alarm: Alarm) -> bool {
        let mut open = self.open.lock();
        let new = !open.iter().any(|known| is_same(known, &alarm));
        if new {
            put(&mut open, alarm);
            self.changed.notify_one();
        }
        new
    }

    /// Closes the alarms that are `over`.
    pub fn close(&self, over: impl Fn(&Alarm) -> bool) {
        self.open.lock().retain(|alarm| !over(alarm));
        self.changed.notify_one();
    }

    /// The open alarms, oldest first.
    pub fn open(&self) -> Vec<Alarm> {
        self.open.lock().clone()
    }

    /// Takes up what was open before this start; what was raised since goes behind it.
    fn take_up(&self, stored: Vec<Alarm>) {
        let mut open = self.open.lock();
        let since = std::mem::replace(&mut *open, stored);
        for alarm in since {
            if !open.iter().any(|known| is_same(known, &alarm)) {
                put(&mut open, alarm);
            }
        }
    }
}

/// Where the node has no name that is its own, as a former member whose name another bears, the message says which it is.
fn is_same(one: &Alarm, other: &Alarm) -> bool {
    one.code == other.code && one.node == other.node && (one.node.is_some() || one.message == other.message)
}

fn put(open: &mut Vec<Alarm>, alarm: Alarm) {
    if open.len() >= ALARMS_MAX {
        open.remove(0);
    }
    open.push(alarm);
}

/// Whether an alarm is one of those that are meant.
fn is_meant(which: &Which, alarm: &Alarm) -> bool {
    which.as_ref().is_none_or(|codes| codes.contains(&alarm.code))
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
            Ok(()) => node.alarms.changed.notified().await,
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
    let sealed = boot::storage_keys(node)?.seal(Family::Alarms, FILE_NAME.as_bytes(), &plain);
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
    let keys = boot::storage_keys(node)?;
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
        let answer = node.sessions.ask(member.node, Lane::Ordinary, request, PEER).await;
        (member, matches!(answer, Ok(PeerReply::Done)))
    }));
    let mut silent = Vec::new();
    for (member, disarmed) in answers.await {
        if !disarmed {
            silent.push(member.name.clone());
        } else if let Some((report, _)) = node.last_reports.lock().get_mut(&member.node) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn alarm(code: &str, node: &str, since_ms: u64) -> Alarm {
        let node = Some(node.parse().expect("a name"));
        Alarm { code: code.to_owned(), message: format!("{code} happened"), node, since_ms }
    }

    #[test]
    fn one_alarm_about_one_thing_at_one_node() {
        let alarms = Alarms::default();
        assert!(alarms.raise(alarm("stale_image", "n2", 1)));
        assert!(!alarms.raise(alarm("stale_image", "n2", 2)), "it is open since the first time");
        assert!(alarms.raise(alarm("stale_image", "n3", 3)) && alarms.raise(alarm("wrong_share", "n2", 4)));
        assert_eq!(alarms.open().iter().map(|alarm| alarm.since_ms).collect::<Vec<_>>(), [1, 3, 4]);
        alarms.close(|alarm| is_meant(&Some(BTreeSet::from(["stale_image".to_owned()])), alarm));
        assert_eq!(alarms.open(), [alarm("wrong_share", "n2", 4)]);
        assert!(alarms.raise(alarm("stale_image", "n2", 5)), "it happened again since");
        alarms.close(|alarm| is_meant(&None, alarm));
        assert_eq!(alarms.open(), []);
    }

    /// Mutated: held apart by the name alone, the second is not raised.
    #[test]
    fn nodes_without_a_name_of_their_own_are_told_apart_by_what_is_said_of_them() {
        let alarms = Alarms::default();
        let former = |id| Alarm { node: None, message: format!("node {id} asks"), ..alarm("former_member", "n2", 1) };
        assert!(alarms.raise(former(2)) && alarms.raise(former(5)) && !alarms.raise(former(2)));
    }

    #[test]
    fn alarms_are_bounded_and_the_newest_stay() {
        let alarms = Alarms::default();
        for number in 0..=ALARMS_MAX as u64 {
            alarms.raise(alarm("stale_image", &format!("n{number}"), number));
        }
        assert_eq!(alarms.open().len(), ALARMS_MAX);
        assert_eq!((alarms.open()[0].since_ms, alarms.open()[ALARMS_MAX - 1].since_ms), (1, ALARMS_MAX as u64));
    }

    #[test]
    fn what_was_open_before_a_start_stays_open_since_then() {
        let alarms = Alarms::default();
        alarms.raise(alarm("stale_image", "n2", 7));
        alarms.raise(alarm("wrong_share", "n2", 8));
        alarms.take_up(vec![alarm("stale_image", "n2", 1), alarm("admitted", "n3", 2)]);
        assert_eq!(alarms.open().iter().map(|alarm| alarm.since_ms).collect::<Vec<_>>(), [1, 2, 8]);
    }
}
