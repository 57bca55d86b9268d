//! A Quorate cluster on one machine: real daemons on loopback, and everything that may happen to them.
//!
//! It serves the demo, people who want to try Quorate, and the tests. Nothing here is a fake: what is promised about
//! `quorated` is shown on `quorated`.
//!
//! In reading order; each folder imports only what stands before it:
//!
//! | folder | question |
//! |---|---|
//! | [`base`] | What does every part need? Errors, waiting for a condition, random choices. |
//! | [`procs`] | How is a real program found, started, asked and ended? |
//! | [`faults`] | What goes wrong with a network, a disk, a database, a clock, a process? |
//! | [`relay`] | How does a datagram get from one node to another, or not? |
//! | [`thief`] | How are disks stolen, and what do they and the memory of a process give away? |
//! | [`cluster`] | How does a [`Cluster`] begin, change and end, and where do its files lie? |
//! | [`load`] | What do clients see while nodes die and return? |
//! | [`demo`] | What does Quorate promise, step by step? |
//! | [`mod@bench`] | What does it cost? |

pub mod base;
pub mod procs;

pub mod faults;
pub mod relay;
pub mod thief;

pub mod cluster;
pub mod load;

pub mod demo;

pub mod bench;

pub use base::dice::Dice;
pub use base::error::Error;
pub use base::wait::wait_until;
pub use cluster::{Builder, Cluster, Special};
