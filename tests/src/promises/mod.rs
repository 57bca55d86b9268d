//! What the README promises, one module for each promise.

mod keys;
mod locks;
mod membership;
mod secrecy;
mod serving;
