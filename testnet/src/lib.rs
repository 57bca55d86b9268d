//! A Quorate cluster on one machine: real daemons on loopback, and everything that may happen to them.
//!
//! For the demo, for people who want to try Quorate, and for the tests: a [`Cluster`] founds itself through the real
//! command line, its nodes die by signal, its network breaks in the [`relay`], its disks go bad ([`faults`]) and are
//! stolen with [`thief::steal`]. The
//! [`thief`] then runs the real opening code over what it got, as far as it gets. Nothing here is a fake: what is
//! promised about `quorated` is shown on `quorated`.

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
