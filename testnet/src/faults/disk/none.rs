//! Takes the place of `disk.rs` without the feature `bad-disks`: mounting a disk fails.

use std::io;
use std::path::Path;

/// A disk that cannot be made.
pub enum Disk {}

impl Disk {
    /// Fails.
    ///
    /// # Errors
    /// Always.
    pub fn mount(_below: &Path, _at: &Path) -> io::Result<Self> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "quorate-testnet was built without its feature bad-disks"))
    }
}
