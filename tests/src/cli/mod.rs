//! The two programs as a person meets them: commands, refusals, advice, and what a daemon does with what an operator's tools send.

mod bad_input;
mod commands;
mod daemon;
mod doctor;
