//! What each command does: one module per group of commands.

pub(crate) mod alarms;
pub(crate) mod crypt;
pub mod doctor;
pub(crate) mod founding;
pub(crate) mod invitation;
pub(crate) mod keys;
pub(crate) mod manual;
pub(crate) mod nodes;
pub(crate) mod operations;
pub(crate) mod status;
