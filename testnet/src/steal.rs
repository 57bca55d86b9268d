//! Stealing a disk: a copy of a data directory as it is at one instant.
//!
//! What a process has written but not synced is part of such a copy, which makes the thief's image the fullest that there
//! can be. Sockets are left out, since a disk does not hold them.

use std::fs;
use std::io;
use std::path::Path;

/// Copies the directory `from` to `to`, which must not exist.
///
/// # Errors
/// What the file system says.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if to.exists() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{} exists already", to.display())));
    }
    fs::create_dir_all(to)?;
    copy_into(from, to)
}

fn copy_into(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (kind, target) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            fs::create_dir(&target)?;
            copy_into(&entry.path(), &target)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_copied_and_sockets_are_not() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (from, to) = (dir.path().join("n1"), dir.path().join("stolen/n1"));
        fs::create_dir_all(from.join("state")).expect("our own directory");
        fs::write(from.join("state/log"), b"sealed").expect("our own directory");
        let _socket = std::os::unix::net::UnixListener::bind(from.join("s")).expect("our own directory");
        copy(&from, &to).expect("copies");
        assert_eq!(fs::read(to.join("state/log")).expect("copied"), b"sealed");
        assert!(!to.join("s").exists());
        assert_eq!(copy(&from, &to).expect_err("never over another").kind(), io::ErrorKind::AlreadyExists);
    }
}
