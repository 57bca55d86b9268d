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

/// What lies in the data directory of a node of a testnet, and is none of its data: its socket, its log, its configuration.
const APART: &str = "quorated.";

/// Erases what a node keeps in its data directory `from`.
///
/// # Errors
/// What the file system says.
pub fn erase(from: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            _ if is_apart(&entry) => {}
            true => fs::remove_dir_all(entry.path())?,
            false => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

/// Copies what a stolen disk holds into the data directory `to`, which was erased.
///
/// # Errors
/// What the file system says.
pub fn put_back(image: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(image)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            _ if is_apart(&entry) => {}
            true => copy(&entry.path(), &target)?,
            false => drop(fs::copy(entry.path(), &target)?),
        }
    }
    Ok(())
}

fn is_apart(entry: &fs::DirEntry) -> bool {
    entry.file_name().to_string_lossy().starts_with(APART)
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

    #[test]
    fn an_image_takes_the_place_of_what_was_there() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (node, image) = (dir.path().join("n1"), dir.path().join("stolen"));
        for (directory, text) in [(&node, "now"), (&image, "before")] {
            fs::create_dir_all(directory.join("state")).expect("our own directory");
            fs::write(directory.join("vault"), text).expect("our own directory");
            fs::write(directory.join("state/000004.log"), text).expect("our own directory");
        }
        fs::write(node.join("quorated.log"), "said").expect("our own directory");
        fs::write(node.join("alarms"), "raised").expect("our own directory");
        erase(&node).expect("erases");
        assert_eq!(fs::read_dir(&node).expect("our own directory").count(), 1, "the log is no part of the disk");
        erase(&node).expect("nothing is there any more");
        put_back(&image, &node).expect("copies");
        assert_eq!(fs::read_to_string(node.join("vault")).expect("there"), "before");
        assert_eq!(fs::read_to_string(node.join("state/000004.log")).expect("there"), "before");
    }
}
