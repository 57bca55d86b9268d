//! What a node may ask that has no credential and is no member: the public status, its piece of its own lock, and to be taken in.
//!
//! A request that this phase does not answer gets an empty answer.

use std::sync::Arc;

use quorate_client::conn::Conn;
use quorate_client::wire;

use crate::base::phase::{RequestClass, answers};
use crate::cluster::status;
use crate::join::founding;
use crate::lock::unlock;
use crate::node::Node;

/// The phase and who is missing, if `body` asks for that.
pub fn public_status(node: &Node, body: &[u8]) -> Option<Vec<u8>> {
    let asked = body == wire::PUBLIC_STATUS && answers(node.phase(), RequestClass::PublicStatus);
    asked.then(|| wire::encode(&status::public(node)))
}

/// LockOpen: a peer asks for its piece of its own lock.
pub async fn lock_open(node: &Arc<Node>, conn: &Conn, body: &[u8]) -> Vec<u8> {
    match answers(node.phase(), RequestClass::LockOpen) {
        true => unlock::give_piece(node, conn, body).await,
        false => Vec::new(),
    }
}

/// A founder or a joiner proves its invitation.
pub async fn join(node: &Arc<Node>, conn: &Conn, body: &[u8]) -> Vec<u8> {
    match answers(node.phase(), RequestClass::Join) {
        true => founding::take_proof(node, conn, body).await,
        false => Vec::new(),
    }
}
