//! The two programs as a person meets them: commands, refusals, advice.

mod bad_input;
mod commands;
mod doctor;
