//! What the user sees and does: results, input, suggestions for mistyped names, and Ctrl-C.

pub(crate) mod input;
pub(crate) mod interrupt;
pub(crate) mod nearest;
pub(crate) mod output;
