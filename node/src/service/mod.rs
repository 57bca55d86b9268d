//! What may be asked of a node, through any door.
//!
//! ```text
//! door (serve/) ─► who asks: Caller ─► what it is: Row ─► may it, can it be done here ─► handler ─► answer
//!                                                              │
//!                                                              └─► the leader, or the node that is meant, with the Caller
//! ```
//!
//! Each vocabulary has one file: what clients ask ([`client`]), what members ask each other ([`member`]), what the owner of the
//! machine asks ([`machine`]), and what a node may ask that is none of these ([`stranger`]). The first three have a table without
//! a catch-all arm: an operation that is added is one variant, one row and one function, and the compiler names each place that
//! lacks it.
//!
//! Handlers stand by topic: [`crypto`], [`keys`], [`nodes`], [`orders`].

pub mod caller;

pub mod client;
pub mod machine;
pub mod member;
pub mod stranger;

pub mod crypto;
pub mod keys;
pub mod nodes;
pub mod orders;

mod audit;
mod forward;
mod lookup;

use std::sync::Arc;

use quorate_raft::Replica;

use crate::messages::caller::Caller;
use crate::node::Node;

/// What every handler of a client's request is given.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    pub node: &'a Arc<Node>,
    pub replica: &'a Replica,
    pub caller: &'a Caller,
}
