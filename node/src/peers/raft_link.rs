//! Raft over op sessions: the [`Link`] that the replica calls, and the snapshot stream that it receives.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use quorate_client::conn::{BulkReceiver, CallError, Lane as ConnLane};
use quorate_raft::{Link, LinkError, MessageClass};
use quorate_shares::ids::NodeId;
use serde_bytes::ByteBuf;
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::messages::peer::{PeerReply, PeerRequest};
use crate::node::Node;
use crate::node::peers::sessions::AskError;

/// Snapshot chunks that may wait for the disk. Beyond that the stream waits, and no more memory is used.
const CHUNKS_WAITING: usize = 4;

/// Carries Raft over the sessions of a node.
pub struct PeerLink {
    node: Arc<Node>,
}

impl PeerLink {
    pub fn new(node: &Arc<Node>) -> Arc<Self> {
        Arc::new(Self { node: Arc::clone(node) })
    }
}

#[async_trait]
impl Link for PeerLink {
    async fn call(
        &self,
        to: NodeId,
        class: MessageClass,
        request: Vec<u8>,
        deadline: Duration,
    ) -> Result<Vec<u8>, LinkError> {
        let lane = match class {
            MessageClass::Log => ConnLane::Heavy,
            MessageClass::Heartbeat | MessageClass::Vote => ConnLane::Urgent,
        };
        let request = PeerRequest::Raft(ByteBuf::from(request));
        match self.node.peers().sessions.ask(to, lane, &request, deadline).await {
            Ok(PeerReply::Raft(reply)) => Ok(reply.into_vec()),
            Ok(PeerReply::Refused(refusal)) => Err(LinkError::Refused(refusal.to_string())),
            Ok(_) => Err(LinkError::Refused("malformed reply".to_owned())),
            Err(AskError::Call(CallError::Deadline)) => Err(LinkError::Timeout),
            Err(error) => Err(LinkError::Unreachable(error.to_string())),
        }
    }

    async fn snapshot(
        &self,
        to: NodeId,
        mut chunks: mpsc::Receiver<Vec<u8>>,
        deadline: Duration,
    ) -> Result<Vec<u8>, LinkError> {
        let unreachable = |error: &dyn std::fmt::Display| LinkError::Unreachable(error.to_string());
        let session = self.node.peers().sessions.with(to).ok_or_else(|| unreachable(&"no session"))?;
        let send = async {
            let mut bulk = session.conn.open_bulk(b"snapshot").await.map_err(|error| unreachable(&error))?;
            while let Some(chunk) = chunks.recv().await {
                bulk.send(&chunk).await.map_err(|error| unreachable(&error))?;
            }
            let reply = bulk.finish(deadline).await.map_err(|error| unreachable(&error))?;
            Ok(reply.to_vec())
        };
        tokio::time::timeout(deadline, send).await.unwrap_or(Err(LinkError::Timeout))
    }
}

/// Receives a snapshot from `from`. It goes into the replica, or into the database that is being rebuilt, whose reply is sent
/// back.
pub async fn receive_snapshot(node: &Arc<Node>, from: NodeId, mut bulk: BulkReceiver) {
    let (feed, chunks) = mpsc::channel(CHUNKS_WAITING);
    let install = match (node.replica(), node.database.rebuild()) {
        (Some(replica), _) => tokio::spawn(async move { replica.serve_snapshot(from, chunks).await }),
        (None, Some(rebuild)) => tokio::spawn(async move { rebuild.serve_snapshot(from, chunks).await }),
        (None, None) => return,
    };
    loop {
        match bulk.next().await {
            Ok(Some(chunk)) => {
                if feed.send(chunk.to_vec()).await.is_err() {
                    break;
                }
            }
            Ok(None) => break,
            Err(error) => {
                // The replica sees the channel close too early. It does not install a snapshot without its end.
                warn!(%from, %error, "snapshot broken off");
                install.abort();
                return;
            }
        }
    }
    drop(feed);
    match install.await {
        Ok(Ok(reply)) => {
            info!(%from, "snapshot received");
            if let Err(error) = bulk.reply(&reply).await {
                warn!(%from, %error, "snapshot installed, but the sender is gone");
            }
        }
        Ok(Err(error)) => warn!(%from, %error, "snapshot refused"),
        Err(error) => warn!(%from, %error, "snapshot not installed"),
    }
}
