//! The daemon of Quorate: `quorated`.
//!
//! Each folder answers one question, in reading order: what needs no node; what lies on the disk; what is kept in memory; what
//! the parts of a node share; how nodes talk to each other; how a node earns the right to serve; how a key is put together and
//! dealt; how a node is unlocked and its lock renewed; how the leader leads and the members follow; how a node comes in; what
//! may be asked; and where questions arrive. [`boot`] starts all of it.

pub mod base;
pub mod vault;

pub mod memory;
pub mod messages;
pub mod node;

pub mod peers;

pub mod lease;

pub mod keys;
pub mod lock;

pub mod cluster;
pub mod join;

pub mod service;

pub mod serve;

pub mod rebuild;

pub mod boot;
