//! The vault as a whole: its bytes, and what a crash leaves of it.

mod crash;
mod format;
