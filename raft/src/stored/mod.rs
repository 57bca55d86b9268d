//! What lies on the disk, and as which bytes.
//!
//! Every value is sealed ([`seal`]) and has a version of its format. The database knows which writes are synced when
//! ([`disk`]). A failure here stops the node ([`fatal`]).

pub(crate) mod disk;
pub(crate) mod error;
pub(crate) mod fatal;
pub(crate) mod format;
pub mod offline;
pub(crate) mod rows;
pub mod seal;
pub(crate) mod v1;
