//! What lies on the disk, and as which bytes.
//!
//! Every value is sealed ([`seal`]) and has a version of its format: rows of the live state ([`rows`], [`v1`]), log entries and
//! this replica's own notes ([`format`](mod@format)). The database ([`disk`]) decides when writes are synced. A failure here
//! ([`error`]) stops the node ([`fatal`]). Tools read a closed database with [`offline`].

mod convert;
pub(crate) mod disk;
pub(crate) mod error;
pub(crate) mod fatal;
pub(crate) mod format;
pub mod offline;
pub(crate) mod rows;
pub mod seal;
pub(crate) mod v1;
