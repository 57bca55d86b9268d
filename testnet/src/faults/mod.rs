//! What goes wrong on a machine or between two: the network, a disk, a database, a clock, a process that dies.

pub mod damage;
#[cfg_attr(not(feature = "bad-disks"), path = "disk/none.rs")]
pub mod disk;
pub mod network;
pub mod shim;
