//! How the replicas agree: openraft, what it is given, and the handle that the rest of the program uses.
//!
//! In reading order: what goes wrong ([`error`]) and what a replica is opened with ([`options`]); the state machine
//! ([`machine`]); what travels between replicas ([`messages`], [`terms`], [`network`], [`serve`]); the handle ([`replica`]), how it is opened
//! ([`open`]), how it changes the voters ([`change`]), and how it replaces a damaged state ([`rebuild`]).

pub(crate) mod change;
pub(crate) mod error;
pub(crate) mod machine;
pub(crate) mod messages;
pub(crate) mod network;
pub(crate) mod open;
pub(crate) mod options;
pub(crate) mod rebuild;
pub(crate) mod replica;
pub(crate) mod serve;
pub(crate) mod terms;
