//! What nodes say to each other, in types. How it is carried is the work of [`crate::peers`].

pub mod caller;
pub mod peer;
