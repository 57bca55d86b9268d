//! What the cluster knows, and what may change it.
//!
//! Pure: no clock, no randomness, no I/O, no openraft. In reading order: what can change ([`command`], [`refusal`]) and from
//! which level on ([`level`]), what it changes ([`state`], [`rows`]), what the leader does next ([`plan`]), for whom it waits no
//! longer ([`idle`]), and who votes ([`voters`]).

pub mod command;
pub mod idle;
pub mod level;
pub(crate) mod outcome;
pub(crate) mod place;
pub mod plan;
pub mod refusal;
pub mod rows;
pub mod state;
pub mod voters;
