//! The door for clients, `quorate-client/1`: the connection proves the credential.

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use quorate_client::conn::{Conn, Handler, Limits, Reply};
use quorate_client::error::Code;
use quorate_client::wire::{self, Answered, Envelope, WireError};
use tokio::sync::Semaphore;

use crate::base::clock::boot_ms;
use crate::messages::caller::Door;
use crate::node::Node;
use crate::serve::limits_for_clients;
use crate::serve::places::Place;
use crate::service::client;

/// Requests of clients that wait for something at a node. The next one is refused as busy before it begins, and the client asks
/// another node or waits. A request that is answered at once never counts.
pub(super) const WAITING_MAX: usize = 4_096;

pub(super) struct ClientDoor {
    node: Arc<Node>,
    /// The places for requests that wait.
    waiting: Arc<Semaphore>,
    _place: Place,
}

impl ClientDoor {
    pub(super) fn new(node: Arc<Node>, waiting: Arc<Semaphore>, place: Place) -> Self {
        Self { node, waiting, _place: place }
    }
}

impl Handler for ClientDoor {
    fn handle(&self, conn: &Conn, body: Bytes) -> Reply {
        if self.waiting.available_permits() == 0 {
            return Reply::Inline(wire::encode(&Answered::always(Err(busy(&self.node)))));
        }
        let received_ms = boot_ms();
        let envelope: Envelope = match wire::decode(&body) {
            Ok(envelope) => envelope,
            Err(error) => return Reply::Inline(wire::encode(&Answered::always(Err(error)))),
        };
        let (node, peer) = (Arc::clone(&self.node), *conn.peer());
        let mut answer =
            Box::pin(
                async move { wire::encode(&client::answer(&node, Door::Client, &peer, envelope, received_ms).await) },
            );
        // What needs no waiting is answered by the task that read the frame. A later poll brings the real waker.
        match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(bytes) => Reply::Inline(bytes),
            Poll::Pending => {
                // If others took the last places meanwhile, this one has begun and goes on.
                let place = Arc::clone(&self.waiting).try_acquire_owned().ok();
                Reply::later(async move {
                    let _place = place;
                    answer.await
                })
            }
        }
    }

    fn limits(&self) -> Limits {
        limits_for_clients(&self.node)
    }
}

fn busy(node: &Node) -> WireError {
    WireError::new(Code::Busy, format!("{} is busy: too many requests wait there", node.name()))
        .hint("try again in a moment, with fewer requests at a time")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random;
    use crate::node::testing::{dialled_by, node_of};
    use crate::serve::places::Places;
    use crate::vault::Vault;
    use quorate_client::identity::{Identity, Protocol};
    use quorate_client::wire::Request;
    use quorate_shares::ids::ClusterId;
    use quorate_shares::secret::Secret;

    /// Mutated: without the look at the places, a node takes more and more requests that only wait.
    #[tokio::test]
    async fn a_node_without_a_place_to_wait_says_busy_at_once() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let node = node_of(dir.path(), Vault::new(ClusterId([1; 16]), Secret::random(&mut random::system())));
        let waiting = Arc::new(Semaphore::new(1));
        let place = Places::new().connection("127.0.0.1".parse().expect("an address"), None).expect("room");
        let door = ClientDoor::new(node, Arc::clone(&waiting), place);
        let (conn, _client) = dialled_by(&Identity::random(), Protocol::Client, None).await;
        let code = || {
            let envelope = Envelope { deadline_ms: 1_000, request: Request::Status };
            let Reply::Inline(answer) = door.handle(&conn, wire::encode(&envelope).into()) else { panic!("it waits") };
            let answered: Answered = wire::decode(&answer).expect("an answer");
            answered.answer.map(|_| ()).expect_err("refused").code
        };
        assert_eq!(code(), Code::NotServing, "the control: it has no database");
        let place = waiting.try_acquire().expect("the only place");
        assert_eq!(code(), Code::Busy);
        drop(place);
        assert_eq!(code(), Code::NotServing);
    }
}
