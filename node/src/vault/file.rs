//! The two slots as one durable value.
//!
//! At rest both slots are equal. A change is written to one slot, synced and read back. Only then it is written to the other
//! slot. So one slot is intact at any moment of a crash. The next start takes the slot with the higher sequence number and
//! makes both equal again: a damaged slot is repaired from the intact one, and no older content remains.
//!
//! After a failed write the content of the file is unknown, because an fsync that failed cannot be retried. So the value
//! refuses every further change. The node stops, and its next start opens the file again.

use std::cmp::Ordering;
use std::io;
use std::path::{Path, PathBuf};

use super::Vault;
use super::slot::{self, Content, Damage, SlotBytes};
use crate::vault::disk::{DataDir, Disk, FileDisk, VaultSlot};
use crate::vault::layout::FormatError;

const FILE_NAME: &str = "vault";

/// Why the vault cannot be opened or changed.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// There is a vault already. It is never overwritten by a new one.
    #[error("{0} exists already")]
    Exists(PathBuf),
    /// Neither copy is intact.
    #[error("both copies of the vault are damaged (first: {first}; second: {second})")]
    BothDamaged { first: Damage, second: Damage },
    /// Both copies are intact and have the same sequence number, but their contents differ.
    #[error("the two copies of the vault contradict each other")]
    Contradiction,
    /// Another version of the program wrote it.
    #[error("the vault has format version {0}")]
    Version(u16),
    /// The slot is intact, but this version cannot read its content; or a change would make content that it cannot read.
    #[error("the vault's content: {0}")]
    Content(#[from] FormatError),
    #[error("the vault could not be {action}: {source}")]
    Io {
        /// What failed: "opened", "written", "synced", …
        action: &'static str,
        source: io::Error,
    },
    /// The medium returned other bytes than those that were written.
    #[error("the vault reads back differently from what was written")]
    ReadBack,
    /// An earlier write failed.
    #[error("an earlier write to the vault failed")]
    Broken,
}

impl VaultError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Exists(_) => "this data directory belongs to a node already; use another one",
            Self::BothDamaged { .. } | Self::Contradiction => {
                "check the disk; if the file cannot be repaired, this node is lost, and the others go on without it. \
                 Never put an old copy in its place"
            }
            Self::Version(_) => {
                "start the version of quorated that wrote it; this version founds a new cluster in an empty directory"
            }
            Self::Content(_) => "start the version of quorated that wrote it",
            Self::Io { .. } | Self::ReadBack | Self::Broken => {
                "check the disk and its free space, then start quorated again"
            }
        }
    }

    fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }
}

/// An open vault. Its content is durable whenever no call is running.
pub struct VaultFile<D: Disk = FileDisk> {
    disk: D,
    seq: u64,
    current: Vault,
    broken: bool,
}

impl VaultFile {
    /// Where the vault of a node lies.
    pub fn path(dir: &DataDir) -> PathBuf {
        dir.path().join(FILE_NAME)
    }

    /// Makes the vault of a new node. It is durable when this returns.
    ///
    /// # Errors
    /// [`VaultError::Exists`] if there is a vault, or an error of the content or the medium.
    pub fn create(dir: &DataDir, vault: Vault) -> Result<Self, VaultError> {
        let path = Self::path(dir);
        let first = slot::seal(1, &vault.encode()?);
        let disk = FileDisk::create(&path, first.expose()).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => VaultError::Exists(path),
            _ => VaultError::io("created")(error),
        })?;
        let mut file = Self { disk, seq: 1, current: vault, broken: false };
        VaultSlot::BOTH.into_iter().try_for_each(|slot| file.read_back(slot, &first))?;
        Ok(file)
    }

    /// Removes the vault of a node that is not in a cluster yet, so that the directory can be used again.
    ///
    /// # Errors
    /// The error of the file system.
    pub fn remove(dir: &DataDir) -> io::Result<()> {
        std::fs::remove_file(Self::path(dir))?;
        std::fs::File::open(dir.path())?.sync_all()
    }

    /// Whether the directory `data` has a vault. It need not exist.
    ///
    /// # Errors
    /// If it cannot be known.
    pub fn exists(data: &Path) -> io::Result<bool> {
        data.join(FILE_NAME).try_exists()
    }

    /// Opens the vault of a data directory, and repairs what a crash left; `None` if the node has no vault yet.
    ///
    /// # Errors
    /// [`VaultError`]; the file is then as it was.
    pub fn open(dir: &DataDir) -> Result<Option<Self>, VaultError> {
        match FileDisk::open(&Self::path(dir)).map_err(VaultError::io("opened"))? {
            Some(disk) => Self::open_on(disk).map(Some),
            None => Ok(None),
        }
    }
}

/// Reads the vault in `dir` without owning the directory and without repairing it. For a copy of a disk.
///
/// # Errors
/// [`VaultError`], as for [`VaultFile::open`].
pub fn inspect(dir: &Path) -> Result<Vault, VaultError> {
    let mut disk = FileDisk::open_read_only(&dir.join(FILE_NAME)).map_err(VaultError::io("opened"))?;
    let slots = read_both(&mut disk);
    let (newest, _) = newest(&slots)?;
    Ok(Vault::parse(newest.content.body)?)
}

impl<D: Disk> VaultFile<D> {
    /// How often the vault was written since it was made. The number only rises.
    pub fn writes(&self) -> u64 {
        self.seq
    }

    /// The content of the file.
    pub fn current(&self) -> &Vault {
        &self.current
    }

    /// Changes the vault. If this returns `Ok`, both slots hold the new content and nothing of the old content is left. If it
    /// returns an error, [`VaultFile::current`] is as before.
    ///
    /// # Errors
    /// [`VaultError`]. After an error of the medium every further call fails.
    pub fn update<R>(&mut self, change: impl FnOnce(&mut Vault) -> R) -> Result<R, VaultError> {
        if self.broken {
            return Err(VaultError::Broken);
        }
        let before = self.current.encode()?;
        let mut draft = Vault::parse(&before)?;
        let answer = change(&mut draft);
        let body = draft.encode()?;
        if *body != *before {
            let next = slot::seal(self.seq + 1, &body);
            self.broken = true;
            let inactive = if self.seq.is_multiple_of(2) { VaultSlot::First } else { VaultSlot::Second };
            self.write(inactive, &next)?;
            self.write(inactive.other(), &next)?;
            self.broken = false;
            self.seq += 1;
        }
        self.current = draft;
        Ok(answer)
    }

    /// Opens the vault on a disk, and repairs what a crash left.
    ///
    /// # Errors
    /// [`VaultError`]; the disk is then as it was, unless it failed.
    pub fn open_on(mut disk: D) -> Result<Self, VaultError> {
        let slots = read_both(&mut disk);
        let (Whole { slot, bytes, content }, mend) = newest(&slots)?;
        let mut file = Self { disk, seq: content.seq, current: Vault::parse(content.body)?, broken: false };
        if mend {
            file.write(slot.other(), bytes)?;
        }
        Ok(file)
    }

    fn write(&mut self, slot: VaultSlot, bytes: &SlotBytes) -> Result<(), VaultError> {
        self.disk.write(slot, bytes.expose()).map_err(VaultError::io("written"))?;
        self.disk.sync().map_err(VaultError::io("synced"))?;
        self.read_back(slot, bytes)
    }

    fn read_back(&mut self, slot: VaultSlot, written: &SlotBytes) -> Result<(), VaultError> {
        let mut read = SlotBytes::zero();
        self.disk.read(slot, read.expose_mut()).map_err(VaultError::io("read back"))?;
        if read.expose() == written.expose() { Ok(()) } else { Err(VaultError::ReadBack) }
    }
}

type BothSlots = [Result<SlotBytes, Damage>; 2];

fn read_both(disk: &mut impl Disk) -> BothSlots {
    VaultSlot::BOTH.map(|slot| {
        let mut bytes = SlotBytes::zero();
        disk.read(slot, bytes.expose_mut()).map_err(|error| Damage::Unreadable(error.kind()))?;
        Ok(bytes)
    })
}

/// An intact slot.
struct Whole<'a> {
    slot: VaultSlot,
    bytes: &'a SlotBytes,
    content: Content<'a>,
}

impl<'a> Whole<'a> {
    fn open(slot: VaultSlot, read: &'a Result<SlotBytes, Damage>) -> Result<Self, Damage> {
        let bytes = read.as_ref().map_err(|damage| *damage)?;
        Ok(Self { slot, bytes, content: slot::open(bytes.expose())? })
    }
}

/// Chooses the newest intact slot, and says whether the other slot must be overwritten with it.
///
/// If either slot is intact and of another version, this is an error. Scenario: a newer version writes one slot and crashes.
/// If this version repaired the file from the other slot, it would erase the newer content.
fn newest([first, second]: &BothSlots) -> Result<(Whole<'_>, bool), VaultError> {
    let (first, second) = (Whole::open(VaultSlot::First, first), Whole::open(VaultSlot::Second, second));
    for Whole { content, .. } in [&first, &second].into_iter().flatten() {
        if !content.is_our_version() {
            return Err(VaultError::Version(content.version));
        }
    }
    match (first, second) {
        (Err(first), Err(second)) => Err(VaultError::BothDamaged { first, second }),
        (Ok(good), Err(_)) | (Err(_), Ok(good)) => Ok((good, true)),
        (Ok(first), Ok(second)) => match first.content.seq.cmp(&second.content.seq) {
            Ordering::Greater => Ok((first, true)),
            Ordering::Less => Ok((second, true)),
            Ordering::Equal if first.bytes.expose() == second.bytes.expose() => Ok((first, false)),
            Ordering::Equal => Err(VaultError::Contradiction),
        },
    }
}
