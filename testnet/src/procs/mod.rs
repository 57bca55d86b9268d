//! The real programs as processes: where they are, how they start, what they say, and how they end.

pub mod binaries;
pub mod process;
pub mod status;
pub(crate) mod surroundings;
pub mod tool;

pub use binaries::Binaries;
pub use process::{Lifetime, Process};
pub use status::local_status;
pub use tool::{Finished, Tool};
