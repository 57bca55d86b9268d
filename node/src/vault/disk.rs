//! The disk under the vault: a data directory that one process owns, and one file of two slots.
//!
//! The vault uses the disk only through the calls of [`Disk`], so that a test can record them and replay every crash.
//! [`FileDisk`] is the real disk. Files are created with mode 0600 and directories with 0700, whatever the umask says: a key
//! file that is readable for a moment may be read in that moment.
//!
//! Reading back goes through the page cache. It finds a wrong offset, a short write and bad memory. It does not find a drive
//! that reports a write as durable and loses it. Against such a drive there are the checksum of each slot and the second slot.

mod ownership;

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use quorate_client::place;
use tracing::info;

use self::ownership::Foreign;
use crate::base::paths;

/// Size of one slot. Every write covers the whole slot, so no older bytes remain behind shorter content.
pub const SLOT_BYTES: usize = 128 * 1024;

/// The files of a data directory that nothing else may take the place of. docs/OPERATING.md explains each.
const OWN_FILES: [&str; 6] = ["vault", "vault.new", "lock", "alarms", "alarms.new", "state"];

/// One of the two copies of the vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VaultSlot {
    /// The copy at offset 0.
    First,
    /// The copy at offset [`SLOT_BYTES`].
    Second,
}

impl VaultSlot {
    /// Both, in order of their offset.
    pub const BOTH: [VaultSlot; 2] = [VaultSlot::First, VaultSlot::Second];

    pub fn other(self) -> Self {
        match self {
            VaultSlot::First => VaultSlot::Second,
            VaultSlot::Second => VaultSlot::First,
        }
    }

    fn offset(self) -> u64 {
        match self {
            VaultSlot::First => 0,
            VaultSlot::Second => SLOT_BYTES as u64,
        }
    }
}

/// What the vault needs from a disk.
pub trait Disk: Send {
    /// Fills `into` with a slot. Bytes beyond the end of the medium read as zeros, so a truncated file is a damaged slot.
    ///
    /// # Errors
    /// The error of the medium.
    fn read(&mut self, slot: VaultSlot, into: &mut [u8; SLOT_BYTES]) -> io::Result<()>;

    /// Writes a whole slot. It is durable only after [`Disk::sync`].
    ///
    /// # Errors
    /// The error of the medium.
    fn write(&mut self, slot: VaultSlot, bytes: &[u8; SLOT_BYTES]) -> io::Result<()>;

    /// Returns when everything that was written is on the medium.
    ///
    /// # Errors
    /// The error of the medium. After an error, the content of the medium is unknown.
    fn sync(&mut self) -> io::Result<()>;
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process owns the directory.
    #[error("data directory {0} is in use by another quorated")]
    InUse(PathBuf),
    /// The directory, or a file in it, belongs to another user.
    #[error("data directory {path}: {foreign}")]
    Foreign { path: PathBuf, foreign: Foreign },
    /// Other users can read the directory, and it holds files of something else: it was not made for a node.
    #[error("{path} holds other files, and others can read it (mode {mode:o}): it is no data directory")]
    NotOurs { path: PathBuf, mode: u32 },
    /// Other users can read the directory, and this process cannot change its mode.
    #[error("data directory {path} can be read by others (mode {mode:o})")]
    Exposed { path: PathBuf, mode: u32 },
    /// The file system refused.
    #[error("data directory {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

impl DataDirError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::InUse(_) => "stop the other process, or give each node a directory of its own",
            Self::Foreign { .. } => {
                "quorated was probably started once as another user: start it as one user only, the owner of the directory. If that is \
                 the user that runs now, stop the other process and run the command above as root"
            }
            Self::NotOurs { .. } => {
                "name an empty directory, or one that does not exist yet: --data DIR. If it is right, chmod 700 it"
            }
            Self::Exposed { .. } => "chown it to the user that runs quorated and chmod it to 0700",
            Self::Io { .. } => "check that the path is right and that quorated may write there",
        }
    }
}

/// A data directory that this process owns until it is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Opens `path`, making it (0700) if it does not exist, and takes its lock file for this process.
    ///
    /// # Errors
    /// [`DataDirError`].
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        let failed = |source| DataDirError::Io { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        if let Some(foreign) = ownership::foreign(path).map_err(failed)? {
            return Err(DataDirError::Foreign { path: path.to_owned(), foreign });
        }
        let mode = fs::metadata(path).map_err(failed)?.mode() & 0o7777;
        if mode & 0o077 != 0 && holds_only_other_files(path).map_err(failed)? {
            return Err(DataDirError::NotOurs { path: path.to_owned(), mode });
        }
        let narrowed = mode == 0o700 || fs::set_permissions(path, Permissions::from_mode(0o700)).is_ok();
        if !narrowed && mode & 0o077 != 0 {
            return Err(DataDirError::Exposed { path: path.to_owned(), mode });
        }
        if mode & 0o077 != 0 {
            info!(path = %path.display(), mode = format!("{mode:o}"), "the data directory is closed to others now");
        }
        // Something else at that name, such as a FIFO, must not hold the start up for ever.
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(place::NONBLOCK)
            .open(path.join("lock"));
        let lock = lock.map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(DataDirError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether `path` is that of a file of the daemon's own, or lies in its database. Most of them need not exist yet.
    pub fn is_own(&self, path: &Path) -> bool {
        OWN_FILES.iter().any(|name| paths::lies_in(path, &self.path.join(name)))
    }
}

/// Whether a directory has files of another program: other files than an empty `lock`, and no vault among them. `/usr/bin` may have a
/// `vault`, too, so its length counts.
fn holds_only_other_files(path: &Path) -> io::Result<bool> {
    let is_vault = |vault: fs::Metadata| vault.is_file() && vault.len() == (VaultSlot::BOTH.len() * SLOT_BYTES) as u64;
    if fs::symlink_metadata(path.join("vault")).is_ok_and(is_vault) {
        return Ok(false);
    }
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let is_empty_file = || entry.metadata().is_ok_and(|lock| lock.is_file() && lock.len() == 0);
        // Every new ext file system has the first one. A node that has no vault yet leaves the second one.
        let may_be = entry.file_name() == "lost+found" || (entry.file_name() == "lock" && is_empty_file());
        if !may_be {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Two slots in one file.
#[derive(Debug)]
pub struct FileDisk {
    file: File,
}

impl FileDisk {
    /// Makes the file at `path` with both slots filled. It is durable under its name when this returns.
    ///
    /// The file is written under another name and then linked to `path`. So a crash leaves either no file or a whole one,
    /// and an existing file is never replaced.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] if there is a file, otherwise the error of the medium.
    pub fn create(path: &Path, content: &[u8; SLOT_BYTES]) -> io::Result<Self> {
        let unfinished = path.with_extension("new");
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&unfinished)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        let mut disk = Self { file };
        for slot in VaultSlot::BOTH {
            disk.write(slot, content)?;
        }
        disk.file.sync_all()?;
        fs::hard_link(&unfinished, path)?;
        fs::remove_file(&unfinished)?;
        sync_parent(path)?;
        Ok(disk)
    }

    /// Opens the file at `path`; `None` if there is none.
    ///
    /// # Errors
    /// The error of the file system.
    pub fn open(path: &Path) -> io::Result<Option<Self>> {
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => Ok(Some(Self { file })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens the file at `path` for reading only.
    ///
    /// # Errors
    /// The error of the file system.
    pub fn open_read_only(path: &Path) -> io::Result<Self> {
        File::open(path).map(|file| Self { file })
    }
}

impl Disk for FileDisk {
    fn read(&mut self, slot: VaultSlot, into: &mut [u8; SLOT_BYTES]) -> io::Result<()> {
        let mut filled = 0;
        while filled < SLOT_BYTES {
            match self.file.read_at(&mut into[filled..], slot.offset() + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        into[filled..].fill(0);
        Ok(())
    }

    fn write(&mut self, slot: VaultSlot, bytes: &[u8; SLOT_BYTES]) -> io::Result<()> {
        self.file.write_all_at(bytes, slot.offset())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Makes a file of the daemon's own with these bytes and mode 0600 in its data directory, or replaces it. A crash leaves either
/// the old file or the new one, as a whole. The file is durable when this returns. The unfinished file always has the same name,
/// so a crash leaves at most one. For a path that a person named there is [`quorate_client::place::put`].
///
/// # Errors
/// The error of the file system; the file is then as it was.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let unfinished = path.with_extension("new");
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    sync_parent(path)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_owns_a_directory() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let path = parent.path().join("a/b");
        let first = DataDir::open(&path).expect("a fresh directory");
        assert!(matches!(DataDir::open(&path), Err(DataDirError::InUse(_))));
        drop(first);
        DataDir::open(&path).expect("the lock ends with its owner");
    }

    /// Runs itself again under `umask 000`: a program that relies on the umask makes its key files readable for everyone there.
    #[test]
    fn files_are_private_whatever_the_umask() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let inner = std::env::var_os("QUORATE_TEST_UMASK_DIR");
        let Some(path) = inner.map(PathBuf::from) else {
            let this = std::env::current_exe().expect("the test binary");
            let module = module_path!().trim_start_matches("quorate_node::");
            let status = std::process::Command::new("sh")
                .args(["-c", "umask 000; exec \"$0\" --exact \"$1\""])
                .arg(this)
                .arg(format!("{module}::files_are_private_whatever_the_umask"))
                .env("QUORATE_TEST_UMASK_DIR", parent.path().join("data"))
                .status();
            assert!(status.expect("a shell").success() && parent.path().join("data/vault").exists());
            return;
        };
        let dir = DataDir::open(&path).expect("a fresh directory");
        FileDisk::create(&path.join("vault"), &[0; SLOT_BYTES]).expect("nothing is there yet");
        let mode = |name: &str| fs::metadata(dir.path().join(name)).expect("it exists").mode() & 0o777;
        assert_eq!((mode("."), mode("lock"), mode("vault")), (0o700, 0o600, 0o600));
    }

    /// A slip such as `--data /tmp`. Mutated: the directory is for its owner alone from then on, and its sticky bit is gone.
    #[test]
    fn a_directory_of_something_else_stays_as_it_is() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let refused = |mode, why: &str| {
            fs::set_permissions(parent.path(), Permissions::from_mode(mode)).expect("our own directory");
            assert!(matches!(DataDir::open(parent.path()), Err(DataDirError::NotOurs { .. })), "{why}: {mode:o}");
            assert_eq!(fs::metadata(parent.path()).expect("it exists").mode() & 0o7777, mode, "{why}");
        };
        fs::write(parent.path().join("of-another-program"), "").expect("our own directory");
        refused(0o1777, "as /tmp");
        refused(0o755, "as /opt");
        assert!(!parent.path().join("lock").exists());
        fs::write(parent.path().join("lock"), "of another program").expect("our own directory");
        fs::create_dir(parent.path().join("state")).expect("our own directory");
        refused(0o755, "as /var/lib/dpkg");
        fs::create_dir(parent.path().join("vault")).expect("our own directory");
        refused(0o755, "as /opt, with another program's vault");
        fs::remove_dir(parent.path().join("vault")).expect("our own directory");
        fs::write(parent.path().join("vault"), "a program").expect("our own directory");
        refused(0o755, "as /usr/bin");
        fs::remove_file(parent.path().join("vault")).expect("our own directory");
        FileDisk::create(&parent.path().join("vault"), &[0; SLOT_BYTES]).expect("nothing is there");
        let _closed = DataDir::open(parent.path()).expect("the control: a node's");
    }

    /// Mutated: the start waits for the other end of the FIFO, and no signal ends it.
    #[test]
    fn a_fifo_in_the_place_of_the_lock_is_an_error() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        fs::set_permissions(parent.path(), Permissions::from_mode(0o700)).expect("our own directory");
        let made = std::process::Command::new("mkfifo").arg(parent.path().join("lock")).status();
        assert!(made.expect("coreutils").success());
        assert!(matches!(DataDir::open(parent.path()), Err(DataDirError::Io { .. })));
    }

    #[test]
    fn a_directory_open_to_others_is_closed() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        for _ in 0..2 {
            // A node without a vault leaves its `lock`, and something may change the mode before it starts again (`fsGroup` of Kubernetes).
            fs::set_permissions(parent.path(), Permissions::from_mode(0o755)).expect("our own directory");
            let _owned = DataDir::open(parent.path()).expect("our own directory");
            assert_eq!(fs::metadata(parent.path()).expect("it exists").mode() & 0o777, 0o700);
        }
    }

    #[test]
    fn an_existing_file_is_never_replaced_and_an_unfinished_one_is() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let path = parent.path().join("vault");
        fs::write(parent.path().join("vault.new"), b"left by a crash").expect("our own directory");
        FileDisk::create(&path, &[7; SLOT_BYTES]).expect("nothing is there yet");
        assert!(!parent.path().join("vault.new").exists());
        let again = FileDisk::create(&path, &[8; SLOT_BYTES]).expect_err("it exists");
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert!(fs::read(&path).expect("it exists").iter().all(|&byte| byte == 7));
    }

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let path = parent.path().join("alarms");
        fs::write(parent.path().join("alarms.new"), b"left by a crash, and longer").expect("our own directory");
        for bytes in [&b"first"[..], b"2nd"] {
            replace(&path, bytes).expect("our own directory");
            assert_eq!(fs::read(&path).expect("it exists"), bytes);
            assert_eq!(fs::metadata(&path).expect("it exists").mode() & 0o777, 0o600);
        }
        assert!(!parent.path().join("alarms.new").exists());
    }

    #[test]
    fn a_truncated_file_reads_as_zeros() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let path = parent.path().join("vault");
        FileDisk::create(&path, &[7; SLOT_BYTES]).expect("nothing is there yet").file.set_len(1).expect("shrinks");
        let mut disk = FileDisk::open(&path).expect("opens").expect("it exists");
        let mut slot = [1; SLOT_BYTES];
        disk.read(VaultSlot::First, &mut slot).expect("reads");
        assert_eq!((slot[0], slot[1], slot[SLOT_BYTES - 1]), (7, 0, 0));
        disk.read(VaultSlot::Second, &mut slot).expect("reads");
        assert!(slot.iter().all(|&byte| byte == 0));
    }
}
