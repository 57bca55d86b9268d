//! What the documents say is so: they are run, or held against the code.

mod code;
mod contributing;
mod formats;
mod operating;
pub(crate) mod readme;
mod setup;
