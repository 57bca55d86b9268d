//! The doors for those that are not members yet, or not any more: `quorate-boot/1`, `quorate-join/1`, and a `quorate-peer/1` that
//! is closed.

use std::sync::Arc;

use bytes::Bytes;
use quorate_client::conn::{Conn, Handler, Limits, Reply};

use crate::messages::peer::{self, PeerRefusal, PeerReply};
use crate::node::Node;
use crate::serve::limits_for_strangers;
use crate::serve::places::Place;
use crate::service::stranger;

/// `quorate-boot/1`: the public status, and LockOpen.
pub(super) struct BootDoor {
    node: Arc<Node>,
    _place: Place,
}

impl BootDoor {
    pub(super) fn new(node: Arc<Node>, place: Place) -> Self {
        Self { node, _place: place }
    }
}

impl Handler for BootDoor {
    fn handle(&self, conn: &Conn, body: Bytes) -> Reply {
        if let Some(status) = stranger::public_status(&self.node, &body) {
            return Reply::Inline(status);
        }
        let (node, conn) = (Arc::clone(&self.node), conn.clone());
        Reply::later(async move { stranger::lock_open(&node, &conn, &body).await })
    }

    fn limits(&self) -> Limits {
        limits_for_strangers(&self.node)
    }
}

/// `quorate-join/1`: a founder or a joiner proves its invitation.
pub(super) struct JoinDoor {
    node: Arc<Node>,
    _place: Place,
}

impl JoinDoor {
    pub(super) fn new(node: Arc<Node>, place: Place) -> Self {
        Self { node, _place: place }
    }
}

impl Handler for JoinDoor {
    fn handle(&self, conn: &Conn, body: Bytes) -> Reply {
        let (node, conn) = (Arc::clone(&self.node), conn.clone());
        Reply::later(async move { stranger::join(&node, &conn, &body).await })
    }

    fn limits(&self) -> Limits {
        limits_for_strangers(&self.node)
    }
}

/// `quorate-peer/1` for a node that is denied or was revoked: it is told so, whatever it asks.
pub(super) struct ClosedDoor {
    node: Arc<Node>,
    refusal: Vec<u8>,
    _place: Place,
}

impl ClosedDoor {
    pub(super) fn new(node: Arc<Node>, refusal: PeerRefusal, place: Place) -> Self {
        Self { node, refusal: peer::encode(&PeerReply::Refused(refusal)), _place: place }
    }
}

impl Handler for ClosedDoor {
    fn handle(&self, _conn: &Conn, _body: Bytes) -> Reply {
        Reply::Inline(self.refusal.clone())
    }

    fn limits(&self) -> Limits {
        limits_for_strangers(&self.node)
    }
}
