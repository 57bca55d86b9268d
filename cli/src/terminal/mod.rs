//! How results look, which name was probably meant, and when the person in front presses Ctrl-C.

pub(crate) mod interrupt;
pub(crate) mod nearest;
pub(crate) mod output;
