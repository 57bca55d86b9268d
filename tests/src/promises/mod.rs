//! What the README promises, one module for each promise.

pub(crate) mod keys;
pub(crate) mod locks;
pub(crate) mod membership;
pub(crate) mod secrecy;
pub(crate) mod serving;
