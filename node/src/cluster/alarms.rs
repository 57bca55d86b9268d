//! Alarms: what an operator should look at, kept until they disarm it.
//!
//! Raising an alarm only changes memory and never waits. A task writes the open alarms into the file `alarms` of the data
//! directory, sealed under the storage key like every value at rest. An alarm that is raised while this node is locked waits
//! in memory for that key. An alarm is about one thing at one node, and is raised once, however often the thing happens.
//!
//! ```text
//! alarms = value at rest (family 5, key "alarms") of: 0 V1(list of { code, message, node?, since_ms u64 })
//! ```

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quorate_client::error::Code;
use quorate_client::wire::{Alarm, WireError};
use quorate_raft::seal::Family;
use quorate_shares::codec;
use quorate_shares::ids::NodeName;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tracing::warn;

use crate::base::log::Log;
use crate::memory::alarms::{ALARMS_MAX, Which, is_meant};
use crate::node::Node;
use crate::vault::disk;

/// Larger than any file that a node writes; a longer file is damaged.
const FILE_BYTES_MAX: usize = 1 << 20;
const FILE_NAME: &str = "alarms";
/// How soon a failed write is tried again.
const AGAIN: Duration = Duration::from_secs(10);
/// How often the log is looked at.
const LOG_EVERY: Duration = Duration::from_secs(5);

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

/// Loads the alarms of earlier runs, and writes the file after each change. Never returns.
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

/// Raises an alarm when lines of the log are lost, and when a request ends in a panic. Never returns.
pub async fn watch_log(node: Arc<Node>, log: Log) {
    let mut seen = LogSeen::default();
    loop {
        sleep(LOG_EVERY).await;
        seen.look(&node, &log);
    }
}

/// What the log had suffered when it was looked at last.
#[derive(Default)]
struct LogSeen {
    lost: u64,
    requests: u64,
}

impl LogSeen {
    fn look(&mut self, node: &Node, log: &Log) {
        let (lost, panics) = (log.lost(), log.panics().borrow().clone());
        if lost > self.lost {
            let message = format!("the log of {} cannot be written, and lines are missing in it", node.name());
            node.alarm("log_lost", node.id(), message);
        }
        if panics.requests > self.requests {
            let newest = panics.newest.unwrap_or_default();
            node.alarm("request_panicked", node.id(), format!("a request to {} ended in {newest}", node.name()));
        }
        *self = Self { lost, requests: panics.requests };
    }
}

/// Writes the open alarms into the file, if they have changed. Does nothing before the file was read.
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

/// `alarm disarm` on this node only; durable when this returns.
///
/// # Errors
/// If the change cannot be made durable.
pub async fn disarm(node: &Arc<Node>, which: &Which) -> Result<(), WireError> {
    node.alarms.close(|alarm| is_meant(which, alarm));
    store(node).await.map_err(|reason| WireError::new(Code::Storage, format!("alarms are not durable: {reason}")))
}

#[cfg(test)]
mod tests {
    use quorate_shares::ids::ClusterId;
    use quorate_shares::secret::Secret;

    use super::*;
    use crate::base::random;
    use crate::node::testing::node_of;
    use crate::vault::Vault;

    /// Mutated: if what was seen is not remembered, an alarm that was disarmed comes back although nothing happened.
    #[tokio::test]
    async fn a_log_that_loses_lines_and_a_request_that_panics_are_alarms_once() {
        struct Full;
        impl io::Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let node = node_of(dir.path(), Vault::new(ClusterId([1; 16]), Secret::random(&mut random::system())));
        let log = Log::start(Full).expect("a thread");
        let codes = || node.alarms.open().into_iter().map(|alarm| alarm.code).collect::<Vec<_>>();
        let mut seen = LogSeen::default();
        seen.look(&node, &log);
        assert!(codes().is_empty(), "the control");

        log.line(b"lost\n");
        log.flush(Duration::from_secs(30));
        seen.look(&node, &log);
        assert_eq!(codes(), ["log_lost"]);
        log.panics().send_modify(|panics| (panics.requests, panics.newest) = (1, Some("a panic at here".to_owned())));
        seen.look(&node, &log);
        assert_eq!(codes(), ["log_lost", "request_panicked"]);
        assert!(node.alarms.open()[1].message.contains("a panic at here"));
        node.alarms.close(|_| true);
        seen.look(&node, &log);
        assert!(codes().is_empty(), "nothing has happened since");
    }
}
