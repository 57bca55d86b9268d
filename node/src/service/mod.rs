//! What may be asked, whoever carries the question.

pub mod api;
