//! What may be asked of a node, through any of its doors.

pub mod api;
