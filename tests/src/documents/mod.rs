//! The documents are true: what they say is run, or compared with the code.

mod code;
mod contributing;
mod formats;
mod imports;
mod messages;
mod mutations;
mod operating;
mod outages;
mod readme;
mod setup;
