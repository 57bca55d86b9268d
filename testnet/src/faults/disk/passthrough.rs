//! The file system: the directory below, seen through what is not synced and through what is wrong with the disk.
//!
//! Inodes keep the numbers that they have below. A regular file stays open from the first lookup until the kernel forgets
//! it, so a process that has it open does not notice that it is renamed or removed.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, DirEntryExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::Condition;
use super::unsynced::Unsynced;

/// The kernel remembers nothing: a loss of power changes files behind its back.
const REMEMBERED: Duration = Duration::ZERO;
const NO_HANDLE: FileHandle = FileHandle(0);
const NO_GENERATION: Generation = Generation(0);

/// What the file system and its owner share.
pub(super) struct Shared {
    condition: Mutex<Condition>,
    refused: AtomicU64,
    inodes: Mutex<HashMap<u64, Inode>>,
}

struct Inode {
    path: PathBuf,
    /// Of a regular file.
    content: Option<Unsynced>,
    lookups: u64,
}

pub(super) struct Passthrough {
    shared: Arc<Shared>,
    /// The number of the root below; the kernel calls it 1.
    root: u64,
}

impl Shared {
    pub(super) fn set_condition(&self, condition: Condition) {
        *lock(&self.condition) = condition;
    }

    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::SeqCst)
    }

    pub(super) fn lose_power(&self, mut survives: impl FnMut() -> bool) -> io::Result<usize> {
        let mut inodes = lock(&self.inodes);
        let mut contents: Vec<_> =
            inodes.iter_mut().filter_map(|(number, inode)| Some((*number, inode.content.as_mut()?))).collect();
        // In an order that a seed repeats.
        contents.sort_by_key(|(number, _)| *number);
        contents.into_iter().map(|(_, content)| content.lose_power(&mut survives)).sum()
    }

    /// Whether something may be written now; waits as long as that takes.
    fn admit(&self) -> io::Result<()> {
        let condition = *lock(&self.condition);
        let kind = match condition {
            Condition::Good => return Ok(()),
            Condition::Slow(delay) => {
                std::thread::sleep(delay);
                return Ok(());
            }
            Condition::Full => io::ErrorKind::StorageFull,
            Condition::ReadOnly => io::ErrorKind::ReadOnlyFilesystem,
            Condition::Failing => io::ErrorKind::Other,
        };
        self.refused.fetch_add(1, Ordering::SeqCst);
        Err(kind.into())
    }
}

impl Passthrough {
    pub(super) fn over(below: &Path) -> io::Result<(Self, Arc<Shared>)> {
        let root = fs::metadata(below)?.ino();
        let inode = Inode { path: below.to_owned(), content: None, lookups: 1 };
        let inodes = Mutex::new(HashMap::from([(root, inode)]));
        let shared = Arc::new(Shared { condition: Mutex::default(), refused: AtomicU64::new(0), inodes });
        Ok((Self { shared: Arc::clone(&shared), root }, shared))
    }

    fn number(&self, inode: INodeNo) -> u64 {
        if inode == INodeNo::ROOT { self.root } else { inode.0 }
    }

    fn with<T>(&self, inode: INodeNo, act: impl FnOnce(&mut Inode) -> io::Result<T>) -> io::Result<T> {
        let number = self.number(inode);
        lock(&self.shared.inodes).get_mut(&number).ok_or(io::ErrorKind::NotFound.into()).and_then(act)
    }

    /// The content of a regular file.
    fn with_content<T>(&self, inode: INodeNo, act: impl FnOnce(&mut Unsynced) -> io::Result<T>) -> io::Result<T> {
        self.with(inode, |inode| inode.content.as_mut().ok_or(io::ErrorKind::InvalidInput.into()).and_then(act))
    }

    fn path(&self, parent: INodeNo, name: &OsStr) -> io::Result<PathBuf> {
        self.with(parent, |inode| Ok(inode.path.join(name)))
    }

    /// Notes that the kernel knows of what lies at `path`.
    fn look_up(&self, path: PathBuf, opened: Option<File>) -> io::Result<FileAttr> {
        let metadata = fs::symlink_metadata(&path)?;
        let mut inodes = lock(&self.shared.inodes);
        let inode = match inodes.entry(metadata.ino()) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => {
                let open = || OpenOptions::new().read(true).write(true).open(&path);
                let content = match opened {
                    Some(file) => Some(Unsynced::new(file)?),
                    None if metadata.is_file() => Some(Unsynced::new(open()?)?),
                    None => None,
                };
                place.insert(Inode { path: path.clone(), content, lookups: 0 })
            }
        };
        inode.path = path;
        inode.lookups += 1;
        Ok(self.attributes(&metadata, inode))
    }

    fn known(&self, inode: INodeNo) -> io::Result<FileAttr> {
        self.with(inode, |inode| {
            let metadata = match &inode.content {
                Some(content) => content.below().metadata()?,
                None => fs::symlink_metadata(&inode.path)?,
            };
            Ok(self.attributes(&metadata, inode))
        })
    }

    fn attributes(&self, metadata: &Metadata, inode: &Inode) -> FileAttr {
        let size = inode.content.as_ref().map_or(metadata.len(), Unsynced::length);
        let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        FileAttr {
            ino: if metadata.ino() == self.root { INodeNo::ROOT } else { INodeNo(metadata.ino()) },
            size,
            blocks: size.div_ceil(512),
            atime: modified,
            mtime: modified,
            ctime: modified,
            crtime: modified,
            kind: FileType::from_std(metadata.file_type()).unwrap_or(FileType::RegularFile),
            perm: (metadata.mode() & 0o7777) as u16,
            nlink: metadata.nlink() as u32,
            uid: metadata.uid(),
            gid: metadata.gid(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    fn create_file(&self, parent: INodeNo, name: &OsStr, mode: u32) -> io::Result<FileAttr> {
        self.shared.admit()?;
        let path = self.path(parent, name)?;
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(mode).open(&path)?;
        self.look_up(path, Some(file))
    }

    fn change(&self, inode: INodeNo, mode: Option<u32>, length: Option<u64>) -> io::Result<FileAttr> {
        if mode.is_some() || length.is_some() {
            self.shared.admit()?;
        }
        if let Some(mode) = mode {
            let path = self.with(inode, |inode| Ok(inode.path.clone()))?;
            fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777))?;
        }
        if let Some(length) = length {
            self.with_content(inode, |content| content.set_length(length))?;
        }
        self.known(inode)
    }

    fn move_entry(&self, from: (INodeNo, &OsStr), to: (INodeNo, &OsStr)) -> io::Result<()> {
        self.shared.admit()?;
        let (from, to) = (self.path(from.0, from.1)?, self.path(to.0, to.1)?);
        let number = fs::symlink_metadata(&from)?.ino();
        fs::rename(&from, &to)?;
        if let Some(inode) = lock(&self.shared.inodes).get_mut(&number) {
            inode.path = to;
        }
        Ok(())
    }

    fn entries(&self, inode: INodeNo) -> io::Result<Vec<(u64, FileType, std::ffi::OsString)>> {
        let path = self.with(inode, |inode| Ok(inode.path.clone()))?;
        let mut entries = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let kind = FileType::from_std(entry.file_type()?).unwrap_or(FileType::RegularFile);
            entries.push((entry.ino(), kind, entry.file_name()));
        }
        Ok(entries)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it holds this")
}

/// Some errors have no number of their own.
fn number(error: io::Error) -> Errno {
    match error.kind() {
        io::ErrorKind::StorageFull => Errno::ENOSPC,
        io::ErrorKind::ReadOnlyFilesystem => Errno::EROFS,
        io::ErrorKind::Other => Errno::EIO,
        _ => Errno::from(error),
    }
}

fn done(result: io::Result<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(number(error)),
    }
}

fn entry(result: io::Result<FileAttr>, reply: ReplyEntry) {
    match result {
        Ok(attributes) => reply.entry(&REMEMBERED, &attributes, NO_GENERATION),
        Err(error) => reply.error(number(error)),
    }
}

fn attributes(result: io::Result<FileAttr>, reply: ReplyAttr) {
    match result {
        Ok(attributes) => reply.attr(&REMEMBERED, &attributes),
        Err(error) => reply.error(number(error)),
    }
}

impl Filesystem for Passthrough {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry(self.path(parent, name).and_then(|path| self.look_up(path, None)), reply);
    }

    fn forget(&self, _: &Request, inode: INodeNo, lookups: u64) {
        let number = self.number(inode);
        let mut inodes = lock(&self.shared.inodes);
        let Some(inode) = inodes.get_mut(&number) else { return };
        inode.lookups = inode.lookups.saturating_sub(lookups);
        // What is not synced is kept for the next lookup, unless the file is gone.
        let unneeded = inode.content.as_ref().is_none_or(|content| {
            content.is_synced() || content.below().metadata().is_ok_and(|metadata| metadata.nlink() == 0)
        });
        if inode.lookups == 0 && unneeded && number != self.root {
            inodes.remove(&number);
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        attributes(self.known(inode), reply);
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        length: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        attributes(self.change(inode, mode, length), reply);
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        let made = self.shared.admit().and_then(|()| self.path(parent, name)).and_then(|path| {
            fs::DirBuilder::new().mode(mode).create(&path)?;
            self.look_up(path, None)
        });
        entry(made, reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.shared.admit().and_then(|()| self.path(parent, name)).and_then(fs::remove_file);
        done(removed, reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(self.shared.admit().and_then(|()| self.path(parent, name)).and_then(fs::remove_dir), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        done(self.move_entry((parent, name), (new_parent, new_name)), reply);
    }

    fn link(&self, _: &Request, inode: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let linked = self.shared.admit().and_then(|()| self.path(parent, name)).and_then(|path| {
            fs::hard_link(self.with(inode, |inode| Ok(inode.path.clone()))?, &path)?;
            self.look_up(path, None)
        });
        entry(linked, reply);
    }

    fn open(&self, _: &Request, _: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        // The kernel would say so itself if it knew.
        let read_only = *lock(&self.shared.condition) == Condition::ReadOnly;
        match flags.acc_mode() {
            OpenAccMode::O_WRONLY | OpenAccMode::O_RDWR if read_only => reply.error(Errno::EROFS),
            _ => reply.opened(NO_HANDLE, FopenFlags::FOPEN_DIRECT_IO),
        }
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, _: i32, reply: ReplyCreate) {
        match self.create_file(parent, name, mode) {
            Ok(attributes) => {
                reply.created(&REMEMBERED, &attributes, NO_GENERATION, NO_HANDLE, FopenFlags::FOPEN_DIRECT_IO);
            }
            Err(error) => reply.error(number(error)),
        }
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.with_content(inode, |content| content.read(offset, size as usize)) {
            Ok(read) => reply.data(&read),
            Err(error) => reply.error(number(error)),
        }
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let admitted = self.shared.admit();
        match admitted.and_then(|()| self.with_content(inode, |content| content.write(offset, data))) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(number(error)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let admitted = self.shared.admit();
        done(admitted.and_then(|()| self.with_content(inode, Unsynced::sync)), reply);
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        // Changes of directories are durable at once.
        done(self.shared.admit(), reply);
    }

    fn readdir(&self, _: &Request, inode: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        match self.entries(inode) {
            Ok(entries) => {
                for (place, (number, kind, name)) in (1..).zip(entries).skip(offset as usize) {
                    if reply.add(INodeNo(number), place, kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(number(error)),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let free = if *lock(&self.shared.condition) == Condition::Full { 0 } else { 1 << 20 };
        reply.statfs(1 << 20, free, free, 1 << 20, 1 << 20, 4096, 255, 4096);
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }
}
