//! What the documents say is so: they are run, or held against the code.

mod code;
mod formats;
mod imports;
mod names;
mod operating;
mod readme;
mod setup;
