//! Where secrets live: in memory that is locked where the system allows it, and wiped in every case.

#[expect(unsafe_code, reason = "locked memory and process hardening are system calls")]
pub mod arena;
pub mod secret;
