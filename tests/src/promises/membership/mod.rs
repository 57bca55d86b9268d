//! How a cluster begins, who joins and leaves it, and who votes in it.

pub(crate) mod founding;
pub(crate) mod joining;
mod leaving;
mod voters;
