//! How a cluster begins, who joins and leaves it, and who votes in it.

mod addresses;
mod founding;
mod joining;
mod leaving;
mod voters;
