//! The door for clients, `quorate-client/1`: the token is in each request.

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use quorate_client::conn::{Conn, Handler, Limits, Reply};
use quorate_client::wire::{self, Answered, Envelope};

use crate::base::clock::boot_ms;
use crate::messages::caller::Door;
use crate::node::Node;
use crate::serve::{GUEST, Place};
use crate::service::client;

pub(super) struct ClientDoor {
    node: Arc<Node>,
    _place: Place,
}

impl ClientDoor {
    pub(super) fn new(node: Arc<Node>, place: Place) -> Self {
        Self { node, _place: place }
    }
}

impl Handler for ClientDoor {
    fn handle(&self, conn: &Conn, body: Bytes) -> Reply {
        let received_ms = boot_ms();
        let envelope: Envelope = match wire::decode(&body) {
            Ok(envelope) => envelope,
            Err(error) => return Reply::Inline(wire::encode(&Answered::always(Err(error)))),
        };
        let (node, remote) = (Arc::clone(&self.node), conn.peer().remote);
        let mut answer =
            Box::pin(
                async move { wire::encode(&client::answer(&node, Door::Client, remote, envelope, received_ms).await) },
            );
        // What needs no waiting is answered by the task that read the frame. A later poll brings the real waker.
        match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(bytes) => Reply::Inline(bytes),
            Poll::Pending => Reply::Later(answer),
        }
    }

    fn limits(&self) -> Limits {
        GUEST
    }
}
