//! A disk that loses power, fills up, fails, slows down, or can no longer be written.
//!
//! A file system in user space passes everything on to a directory below it. What is written to a file stays in memory
//! until the file is synced, so that [`Disk::lose_power`] takes it away although the machine goes on; and each request may
//! be answered as a bad disk would. `quorated` runs on it as on any other.
//!
//! The model: contents and lengths of files are durable with fsync or fdatasync of that file, and not before. Changes of
//! directories (create, rename, link, remove) and shortening a file are durable at once and in order, as on a file
//! system whose journal commits all the time. So a file may be there, under its name, and be empty: what an fsync was
//! forgotten for is lost. What a forgotten fsync of a *directory* would lose is not shown.

mod passthrough;
mod unsynced;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fuser::{BackgroundSession, Config, MountOption};

use passthrough::{Passthrough, Shared};

/// How a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Condition {
    /// As it should be.
    #[default]
    Good,
    /// No room: whatever is written is refused, in place too, as on a copy-on-write file system.
    Full,
    /// Mounted read-only, as the kernel does after errors.
    ReadOnly,
    /// Writes and syncs fail.
    Failing,
    /// Each write and each sync takes so long.
    Slow(Duration),
}

/// A mounted disk; unmounted when dropped.
pub struct Disk {
    shared: Arc<Shared>,
    /// Keeps the disk mounted until it is dropped.
    _session: BackgroundSession,
}

impl Disk {
    /// Puts a disk that keeps its files in `below` at the directory `at`.
    ///
    /// # Errors
    /// Without /dev/fuse or the right to mount.
    pub fn mount(below: &Path, at: &Path) -> io::Result<Self> {
        let (passthrough, shared) = Passthrough::over(below)?;
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("quorate-disk".to_owned()), MountOption::NoAtime];
        let session = fuser::spawn_mount(passthrough, at, &config)?;
        Ok(Self { shared, _session: session })
    }

    /// Whether such disks can be had here, and if not, why.
    ///
    /// # Errors
    /// As [`Disk::mount`].
    pub fn is_possible() -> io::Result<()> {
        let (below, at) = (tempfile::tempdir()?, tempfile::tempdir()?);
        Self::mount(below.path(), at.path()).map(drop)
    }

    /// Turns it good or bad, from now on.
    pub fn turn(&self, condition: Condition) {
        self.shared.set_condition(condition);
    }

    /// Drops what was not synced, except the pages that `survives` lets through. The process that wrote it must be dead.
    /// Returns how many pages were lost.
    ///
    /// # Errors
    /// What the directory below says.
    pub fn lose_power(&self, survives: impl FnMut() -> bool) -> io::Result<usize> {
        self.shared.lose_power(survives)
    }

    /// How many writes and syncs it has refused.
    pub fn refused(&self) -> u64 {
        self.shared.refused()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::io::Write;

    use super::*;

    /// The same calls that RocksDB and the vault make. Where such disks cannot be had there is nothing to test.
    #[test]
    fn a_disk_keeps_what_was_synced_and_refuses_what_it_cannot_take() {
        let (below, at) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        let disk = match Disk::mount(below.path(), at.path()) {
            Ok(disk) => disk,
            Err(error) => return println!("NOT TESTED: no disk in user space can be mounted here: {error}"),
        };
        let path = at.path().join("a/file");
        fs::create_dir(at.path().join("a")).expect("made");
        let mut file = OpenOptions::new().create_new(true).read(true).write(true).open(&path).expect("made");
        file.write_all(b"synced").expect("written");
        file.sync_data().expect("synced");
        file.write_all(b", and not").expect("written");
        assert_eq!(fs::read(&path).expect("readable"), b"synced, and not");
        drop(file);
        assert_eq!(disk.lose_power(|| false).expect("lost"), 1);
        assert_eq!(fs::read(&path).expect("readable"), b"synced");

        fs::hard_link(&path, at.path().join("linked")).expect("linked");
        fs::rename(&path, at.path().join("renamed")).expect("renamed");
        fs::remove_file(at.path().join("linked")).expect("removed");
        let names: Vec<_> =
            fs::read_dir(at.path()).expect("readable").flatten().map(|entry| entry.file_name()).collect();
        assert!(names.len() == 2 && names.iter().all(|name| name == "a" || name == "renamed"), "{names:?}");

        let renamed = at.path().join("renamed");
        for (condition, kind) in
            [(Condition::Full, io::ErrorKind::StorageFull), (Condition::ReadOnly, io::ErrorKind::ReadOnlyFilesystem)]
        {
            disk.turn(condition);
            let refused = OpenOptions::new().append(true).open(&renamed).and_then(|mut file| file.write_all(b"more"));
            assert_eq!(refused.expect_err("refused").kind(), kind);
            assert_eq!(fs::write(at.path().join("new"), b"").expect_err("refused").kind(), kind);
            assert_eq!(fs::read(&renamed).expect("still readable"), b"synced");
        }
        assert!(disk.refused() >= 2);
        disk.turn(Condition::Good);
        fs::write(at.path().join("new"), b"room again").expect("written");
    }
}
