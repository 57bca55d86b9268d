//! A Quorate cluster on one machine: real daemons on loopback, and everything that may happen to them.
//!
//! For the demo, for people who want to try Quorate, and for the tests: a [`Cluster`] founds itself through the real
//! command line, its nodes die by signal, its network breaks in the [`relay`], its disks go bad ([`disk`], [`damage`]) and are
//! stolen with [`steal`]. The
//! [`thief`] then runs the real opening code over what it got, as far as it gets. Nothing here is a fake: what is
//! promised about `quorated` is shown on `quorated`.

pub mod cluster;

pub mod binaries;
pub mod damage;
pub mod directory;
#[cfg_attr(not(feature = "bad-disks"), path = "disk/none.rs")]
pub mod disk;
mod founding;
pub mod procs;
pub mod relay;
pub mod shim;
pub mod status;
pub mod steal;
pub mod tool;

pub mod error;
pub mod wait;

pub mod canary;
pub mod memory;
pub mod thief;

pub mod story;

pub mod bench;

pub mod load;

pub use cluster::{Builder, Cluster, Special};
pub use error::Error;
pub use wait::wait_until;
