//! The door for members, `quorate-peer/1`: for sessions that this node dialled, and for those that it accepted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use quorate_client::conn::{BulkReceiver, Conn, Handler, Reply, answering_async};
use quorate_shares::ids::NodeId;

use crate::messages::peer::{self, PeerReply, PeerRequest};
use crate::node::Node;
use crate::node::enrolment::Enrolment;
use crate::serve::places::Place;
use crate::service::member::{self, Asked, Pace};

/// Answers the other side of one session. Who that is follows from its TLS key alone, never from what it says.
pub struct PeerDoor {
    node: Arc<Node>,
    /// The enrolment in which the key of the other side is a member's.
    enrolment: Arc<Enrolment>,
    peer: NodeId,
    greeted: Arc<AtomicBool>,
    /// The place of a connection that the other side dialled.
    _place: Option<Place>,
}

impl PeerDoor {
    /// The handler of a session that this node dialled: the identity was pinned when dialling. Requests are refused until `greeted` is
    /// set, which the dialler does when the other side's hello is in order.
    pub fn dialled(
        node: &Arc<Node>,
        enrolment: &Arc<Enrolment>,
        peer: NodeId,
        greeted: &Arc<AtomicBool>,
    ) -> Arc<dyn Handler> {
        let (node, enrolment, greeted) = (Arc::clone(node), Arc::clone(enrolment), Arc::clone(greeted));
        Arc::new(Self { node, enrolment, peer, greeted, _place: None })
    }

    /// The handler of a session that `peer` dialled. Requests are refused until its hello is in order.
    pub(super) fn accepted(
        node: &Arc<Node>,
        enrolment: &Arc<Enrolment>,
        peer: NodeId,
        place: Place,
    ) -> Arc<dyn Handler> {
        let (node, enrolment) = (Arc::clone(node), Arc::clone(enrolment));
        Arc::new(Self { node, enrolment, peer, greeted: Arc::default(), _place: Some(place) })
    }
}

impl Handler for PeerDoor {
    fn handle(&self, conn: &Conn, body: Bytes) -> Reply {
        let checked = peer::decode::<PeerRequest>(&body).and_then(|request| {
            let is_greeted = self.greeted.load(Ordering::Acquire);
            let pace = member::check(&self.node, &self.enrolment, self.peer, conn, is_greeted, &request)?;
            Ok((request, pace))
        });
        let (request, pace) = match checked {
            Ok(checked) => checked,
            Err(refusal) => return Reply::Inline(peer::encode(&PeerReply::Refused(refusal))),
        };
        let (node, enrolment, conn) = (Arc::clone(&self.node), Arc::clone(&self.enrolment), conn.clone());
        let (from, greeted, here) = (self.peer, Arc::clone(&self.greeted), Arc::clone(&node));
        let answer = async move {
            let asked = Asked { from, enrolment: &enrolment, conn: &conn, greeted: &greeted, body: &body };
            peer::encode(&member::answer(&node, asked, request).await)
        };
        match pace {
            Pace::AtOnce => {
                let mut answer = Box::pin(answer);
                match answer.as_mut().now_or_never() {
                    Some(reply) => Reply::Inline(reply),
                    None => Reply::Later(answer),
                }
            }
            Pace::Soon => Reply::later(answer),
            Pace::Background => Reply::later(async move { here.background.run(answering_async(answer)).await }),
        }
    }

    fn bulk(&self, _conn: &Conn, bulk: BulkReceiver) -> BoxFuture<'static, ()> {
        let (node, from, greeted) = (Arc::clone(&self.node), self.peer, self.greeted.load(Ordering::Acquire));
        let trusted =
            !self.enrolment.peers.sessions.is_ended() && self.enrolment.roster.current().op_key_of(from).is_some();
        Box::pin(async move {
            if greeted && trusted {
                crate::peers::raft_link::receive_snapshot(&node, from, bulk).await;
            }
        })
    }
}
