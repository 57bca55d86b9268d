//! What the user sees and does: results, suggestions for mistyped names, and Ctrl-C.

pub(crate) mod interrupt;
pub(crate) mod nearest;
pub(crate) mod output;
