//! What a person names by a path: a file to write, or a socket to make.
//!
//! There may be something else at the path than the person had in mind: a device, a pipe, a link, a file of another
//! program. So there is one way to put bytes at a path ([`put`]), one to make a file that must be new ([`create`],
//! [`create_with_mode`]), and one to make a socket ([`bind`]). None of them takes the place of something that is no file,
//! or no socket. [`open_secret`] reads a secret only if no other user can read it or has put it there.
//! [`refuse_open_directory`] says whether another user could replace a file.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{
    CWD, OFlags, PROC_SUPER_MAGIC, RenameFlags, XattrFlags, fremovexattr, fsetxattr, getxattr, renameat_with, statfs,
};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, geteuid, getpid, pidfd_getfd, pidfd_open};

/// Most links that lead from one to the next. A longer chain is an error, as in the kernel.
const LINKS_MAX: usize = 40;
/// Opens anything at once: without it, opening a FIFO waits for the other end.
pub const NONBLOCK: i32 = OFlags::NONBLOCK.bits().cast_signed();
/// The access control list of a file, as an attribute (acl(5)), and its largest size.
const ACL: &str = "system.posix_acl_access";
const ACL_BYTES_MAX: usize = 64 << 10;
/// The bits of a mode that say who may do what. The others (setuid, setgid, sticky) are not for data.
const MODE_BITS: u32 = 0o777;

/// Puts `bytes` at `path`.
///
/// | at `path` there is | what happens |
/// |---|---|
/// | nothing | a file is made, with `mode` less the umask |
/// | a file | it is replaced; its owner, its mode and its access control list stay |
/// | a link | the same happens at the place that it leads to |
/// | a device, a FIFO, a pipe | the bytes are written to it |
/// | anything of another user, in a directory where everyone may make files | it is refused |
///
/// A new file is made beside the old one, is durable before it takes the name, and is removed if anything fails. So a
/// full disk, or a crash, leaves the old file as it was.
///
/// # Errors
/// The error of the file system. Only what is no file may then have got some of the bytes.
pub fn put(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let replace = |from: &Path, to: &Path| fs::rename(from, to).map_err(not_replaced);
    match Place::of(path)? {
        Place::Nothing(place) => {
            whole(&place, bytes, mode, |_| Ok(()), replace)?;
            sync_parent(&place)
        }
        Place::File(place, old) => {
            whole(&place, bytes, 0o600, |new| keep_access(new, &place, &old), replace)?;
            sync_parent(&place)
        }
        Place::Stream(place, metadata) => stream(&place, &metadata, bytes),
    }
}

/// Makes a file that must be new, with mode 0600. A crash leaves either no file or the whole file. The file is durable
/// when this returns.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`] if there is anything at `path`, otherwise the error of the file system.
pub fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    create_with_mode(path, bytes, 0o600)
}

/// As [`create`], with another mode, whatever the umask.
///
/// # Errors
/// As [`create`].
pub fn create_with_mode(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let finish = |new: &File| new.set_permissions(Permissions::from_mode(mode));
    whole(path, bytes, 0o600, finish, rename_to_new)?;
    // A program that finds the file later assumes that it is durable. So if it may not be durable, it is removed.
    sync_parent(path).inspect_err(|_| drop(fs::remove_file(path)))
}

/// Renames a file to `path`, unless there is anything at `path`.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`], otherwise the error of the file system.
pub fn rename_to_new(from: &Path, path: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, path, RenameFlags::NOREPLACE) {
        // A file system without NOREPLACE has hard links. FAT, as on a memory stick, has NOREPLACE and no hard links.
        Err(Errno::INVAL | Errno::NOSYS) => fs::hard_link(from, path).and_then(|()| fs::remove_file(from)),
        renamed => Ok(renamed?),
    }
}

/// Makes a socket at `path`, with mode 0600. A socket at which no process listens is removed first: a process that was killed
/// leaves it behind.
///
/// # Errors
/// [`ErrorKind::AddrInUse`] if a process listens there; [`ErrorKind::AlreadyExists`] if there is something that is no
/// socket; otherwise the error of the file system.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(io::Error::new(ErrorKind::AlreadyExists, "there is something that is no socket"));
        }
        Ok(_) => match connect_at_once(path) {
            // A process that accepts nothing listens, too.
            Ok(()) | Err(Errno::AGAIN) => {
                return Err(io::Error::new(ErrorKind::AddrInUse, "another process listens there"));
            }
            // Only this says that the socket is dead.
            Err(Errno::CONNREFUSED) => fs::remove_file(path)?,
            Err(error) => return Err(error.into()),
        },
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Connects to the socket at `path`, and does not wait if its process accepts nothing.
fn connect_at_once(path: &Path) -> Result<(), Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)
}

/// What there is at a path, behind all links.
enum Place {
    Nothing(PathBuf),
    File(PathBuf, Metadata),
    /// Something that takes bytes and has no content to keep.
    Stream(PathBuf, Metadata),
}

impl Place {
    fn of(path: &Path) -> io::Result<Self> {
        // The kernel judges the links, too (`fs.protected_symlinks`); reading them one by one would pass by its rule.
        match fs::metadata(path) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => return Err(error),
            _ => {}
        }
        let mut place = path.to_owned();
        for _ in 0..LINKS_MAX {
            match fs::symlink_metadata(&place) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::Nothing(place)),
                Err(error) => return Err(error),
                Ok(metadata) if metadata.is_file() => {
                    refuse_planted(&place, &metadata)?;
                    return Ok(Self::File(place, metadata));
                }
                Ok(metadata) if !metadata.is_symlink() => {
                    refuse_planted(&place, &metadata)?;
                    return Ok(Self::Stream(place, metadata));
                }
                // `/dev/stdout`, or `/dev/fd/63` from a shell: not a link but an open file, whatever its text says.
                Ok(_) if statfs(parent(&place)).is_ok_and(|system| system.f_type == PROC_SUPER_MAGIC) => {
                    let metadata = fs::metadata(&place)?;
                    return Ok(Self::Stream(place, metadata));
                }
                Ok(link) => {
                    refuse_planted(&place, &link)?;
                    place = parent(&place).join(fs::read_link(&place)?);
                }
            }
        }
        Err(Errno::LOOP.into())
    }
}

/// Makes a whole file under another name, and then gives it the name `path` by `rename`. Before that `finish` sets what
/// else the file needs.
fn whole(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    finish: impl FnOnce(&File) -> io::Result<()>,
    rename: impl FnOnce(&Path, &Path) -> io::Result<()>,
) -> io::Result<()> {
    if path.file_name().is_none() {
        return Err(ErrorKind::InvalidInput.into());
    }
    let mut random = [0; 8];
    getrandom::fill(&mut random).expect("the operating system gives randomness");
    // The directory may belong to others. So the name is random: it must not be that of a file of theirs.
    let unfinished = parent(path).join(format!(".quorate-{:016x}", u64::from_be_bytes(random)));
    let mut file =
        OpenOptions::new().create_new(true).write(true).mode(mode).open(&unfinished).map_err(nothing_beside)?;
    let written = file
        .write_all(bytes)
        .and_then(|()| finish(&file))
        .and_then(|()| file.sync_all())
        .and_then(|()| rename(&unfinished, path));
    written.inspect_err(|_| drop(fs::remove_file(&unfinished)))
}

fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(parent(path))?.sync_all()
}

/// Says why a file that may be written itself cannot be replaced.
fn nothing_beside(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            io::Error::new(error.kind(), format!("no file can be made in its directory: {error}"))
        }
        _ => error,
    }
}

/// Says why a file keeps its name. One that was mounted alone, as containers do, cannot get another one in its place.
fn not_replaced(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::ResourceBusy => io::Error::new(
            error.kind(),
            format!("it is mounted alone, so no new file can take its place: mount its directory instead ({error})"),
        ),
        _ => error,
    }
}

/// Gives a new file the owner, the mode and the access control list of the file at `place` that it replaces. A group that this process
/// may not give gets no access: the group of the new file is another one. Nor does any group if the list cannot be kept: with a list
/// the mode does not say what the group may.
fn keep_access(file: &File, place: &Path, old: &Metadata) -> io::Result<()> {
    let (new, mut mode) = (file.metadata()?, old.mode() & MODE_BITS);
    let is_theirs = new.uid() == old.uid() && new.gid() == old.gid();
    if !is_theirs
        && fchown(file, Some(old.uid()), Some(old.gid())).is_err()
        && fchown(file, None, Some(old.gid())).is_err()
    {
        mode &= !0o070;
    }
    let mut list = vec![0; ACL_BYTES_MAX];
    let list = match getxattr(place, ACL, &mut list) {
        Ok(length) => Some(&list[..length]),
        Err(Errno::NODATA) => {
            // The new file may have got the list of its directory for new files, and the mode would open that.
            if !matches!(fremovexattr(file, ACL), Ok(()) | Err(Errno::NODATA)) {
                mode &= !0o070;
            }
            None
        }
        Err(Errno::NOTSUP) => None,
        Err(_) => {
            mode &= !0o070;
            None
        }
    };
    let Some(list) = list else { return file.set_permissions(Permissions::from_mode(mode)) };
    file.set_permissions(Permissions::from_mode(mode & !0o070))?;
    let kept =
        if mode & 0o070 == old.mode() & 0o070 { fsetxattr(file, ACL, list, XattrFlags::empty()) } else { Ok(()) };
    kept.or(Ok(()))
}

/// Refuses what another user has put into a directory where everyone may make files, such as `/tmp`: a file, which would keep its
/// owner, a link, a FIFO. The bytes would be theirs. The kernel has the same rules if it is told to (`fs.protected_regular`,
/// `fs.protected_symlinks`, `fs.protected_fifos`), and only for directories with the sticky bit.
fn refuse_planted(place: &Path, there: &Metadata) -> io::Result<()> {
    const FOR_ALL: u32 = 0o002;
    let directory = fs::metadata(parent(place))?;
    let mine = [geteuid().as_raw(), 0];
    let is_open = directory.mode() & FOR_ALL != 0;
    if is_open && !mine.contains(&there.uid()) && (!is_sticky(&directory) || there.uid() != directory.uid()) {
        let why =
            "what is there belongs to another user, in a directory where everyone may make files: name another place";
        return Err(io::Error::new(ErrorKind::PermissionDenied, why));
    }
    Ok(())
}

fn is_sticky(directory: &Metadata) -> bool {
    const STICKY: u32 = 0o1000;
    directory.mode() & STICKY != 0
}

/// Opens a file that holds a secret. It refuses a file of another user than this one and root, and one that others can read. A file of
/// root may be readable for its group: in this way root gives a secret to a daemon.
///
/// # Errors
/// [`ErrorKind::PermissionDenied`] with the reason, otherwise the error of the file system.
pub fn open_secret(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    let refuse = |why: String| Err(io::Error::new(ErrorKind::PermissionDenied, why));
    if !metadata.is_file() {
        return refuse("it is no file".to_owned());
    }
    if ![geteuid().as_raw(), 0].contains(&metadata.uid()) {
        return refuse("it belongs to another user, who may have put it there".to_owned());
    }
    let for_others = if metadata.uid() == geteuid().as_raw() { 0o077 } else { 0o037 };
    match metadata.mode() & MODE_BITS {
        mode if mode & for_others != 0 => refuse(format!(
            "others may use it (mode {mode:o}): chmod 600 it, or mount its file system with umask=077 if it keeps no modes, as FAT"
        )),
        _ => Ok(file),
    }
}

/// Refuses a path in whose directory another user can put files in the place of those of this user.
///
/// # Errors
/// [`ErrorKind::PermissionDenied`] with the reason, otherwise the error of the file system.
pub fn refuse_open_directory(path: &Path) -> io::Result<()> {
    const FOR_OTHERS: u32 = 0o022;
    let metadata = fs::metadata(parent(path))?;
    let refuse = |why: &str| Err(io::Error::new(ErrorKind::PermissionDenied, why));
    if ![geteuid().as_raw(), 0].contains(&metadata.uid()) {
        return refuse("the directory belongs to another user");
    }
    if metadata.mode() & FOR_OTHERS != 0 && !is_sticky(&metadata) {
        return refuse("others may replace files in the directory");
    }
    Ok(())
}

/// Writes to what is no file of its own.
fn stream(place: &Path, metadata: &Metadata, bytes: &[u8]) -> io::Result<()> {
    let mut file = match own_descriptor(place) {
        Some(open) => File::from(open),
        // An open file of a process may have content that the process wrote before: what comes goes behind it.
        // `create` has the kernel refuse a planted FIFO once more (`fs.protected_fifos`).
        None => OpenOptions::new().write(true).append(metadata.is_file()).create(true).mode(0o600).open(place)?,
    };
    file.write_all(bytes)?;
    // Most of these have no disk, and say so.
    let has_no_disk = |error: &io::Error| matches!(Errno::from_io_error(error), Some(Errno::INVAL | Errno::NOTSUP));
    file.sync_all().or_else(|error| if has_no_disk(&error) { Ok(()) } else { Err(error) })
}

/// What this process has open under the number in `place`, such as `/dev/stdout` or `/dev/fd/3`. A file that other processes write to,
/// too, has one position for all. If it is opened again, it has two, and one writes over the other.
fn own_descriptor(place: &Path) -> Option<OwnedFd> {
    let mine = fs::canonicalize("/proc/self/fd").ok()?;
    let number =
        place.file_name()?.to_str()?.parse().ok().filter(|_| fs::canonicalize(parent(place)).ok() == Some(mine))?;
    let copied = |open: BorrowedFd<'_>| open.try_clone_to_owned().ok();
    match number {
        1 => copied(io::stdout().as_fd()),
        2 => copied(io::stderr().as_fd()),
        _ => {
            let me = pidfd_open(getpid(), PidfdFlags::empty()).ok()?;
            pidfd_getfd(me, number, PidfdGetfdFlags::empty()).ok()
        }
    }
}

/// The directory of a path. That of a bare name is the working directory.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use rustix::net::{bind as bind_socket, listen};
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::chown;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixStream;
    use std::process::{Command, Stdio};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("there").mode() & 0o7777
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).expect("ours").map(|entry| entry.expect("ours").file_name());
        let mut names: Vec<_> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_that_is_mounted_alone_says_why_it_stays() {
        let said = not_replaced(Errno::BUSY.into()).to_string();
        assert!(said.starts_with("it is mounted alone") && said.contains("mount its directory"), "{said}");
        assert_eq!(not_replaced(Errno::NOSPC.into()).raw_os_error(), Some(Errno::NOSPC.raw_os_error()), "as it was");
    }

    /// T77. Mutated: a file that is truncated and written in place is seen empty, or keeps its inode.
    #[test]
    fn a_file_is_replaced_as_a_whole_and_keeps_its_mode() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        put(&path, b"first", 0o640).expect("nothing is there");
        assert_eq!((mode(&path) & !0o640, mode(&path) & 0o600), (0, 0o600), "what is asked for, less the umask");
        fs::set_permissions(&path, Permissions::from_mode(0o604)).expect("ours");
        let before = fs::metadata(&path).expect("there").ino();
        put(&path, b"2nd", 0o600).expect("a file is there");
        assert_eq!((fs::read(&path).expect("there"), mode(&path)), (b"2nd".to_vec(), 0o604));
        assert_ne!(fs::metadata(&path).expect("there").ino(), before, "a reader of the old file reads it to its end");
        assert_eq!(names(directory.path()), ["file"], "nothing else is left");
    }

    /// Only root can make such a file, so that others test the control alone. Mutated: without the check, the bytes belong to
    /// the other user.
    #[test]
    fn a_file_that_another_user_has_planted_gets_no_bytes() {
        const STRANGER: u32 = 65534;
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("planted");
        fs::set_permissions(directory.path(), Permissions::from_mode(0o1777)).expect("ours");
        put(&path, b"first", 0o600).expect("the control: it is ours");
        put(&path, b"second", 0o600).expect("the control: it is still ours");
        if geteuid().is_root() {
            chown(directory.path(), Some(1), None).expect("root may");
            chown(&path, Some(STRANGER), None).expect("root may");
            let error = put(&path, b"secret", 0o600).expect_err("planted");
            assert!(error.to_string().contains("another user"), "{error}");
            assert_eq!(fs::read(&path).expect("there"), b"second");
            // Without the sticky bit a stranger may do more, and not less.
            fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).expect("root may");
            put(&path, b"secret", 0o600).expect_err("planted");
            // A link and a FIFO of a stranger lead to the stranger as well.
            let (link, fifo) = (directory.path().join("link"), directory.path().join("fifo"));
            symlink(directory.path().join("elsewhere"), &link).expect("ours");
            rustix::fs::mknodat(CWD, &fifo, rustix::fs::FileType::Fifo, 0o666.into(), 0).expect("ours");
            for planted in [&link, &fifo] {
                std::os::unix::fs::lchown(planted, Some(STRANGER), None).expect("root may");
                let error = put(planted, b"secret", 0o600).expect_err("planted");
                assert!(error.to_string().contains("another user"), "{error}");
            }
            assert!(!directory.path().join("elsewhere").exists());
            fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).expect("root may");
            put(&path, b"third", 0o600).expect("the control: where only its owner makes files, it keeps its owner");
            assert_eq!(fs::metadata(&path).expect("there").uid(), STRANGER);
        }
    }

    /// Mutated: without one of the looks, a secret is used that another user knows.
    #[test]
    fn a_secret_is_read_from_a_file_of_ones_own_that_others_cannot_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("secret");
        create(&path, b"secret").expect("ours");
        open_secret(&path).expect("the control");
        let refused = |what: &Path| open_secret(what).expect_err("refused").to_string();
        for mode in [0o604, 0o660, 0o640, 0o620, 0o644] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("ours");
            assert!(refused(&path).contains("chmod 600"), "{mode:o}");
        }
        assert!(refused(directory.path()).contains("no file"));
        refuse_open_directory(&path).expect("the control");
        fs::set_permissions(directory.path(), Permissions::from_mode(0o1777)).expect("ours");
        refuse_open_directory(&path).expect("no other user replaces a file of ours");
        fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).expect("ours");
        assert!(refuse_open_directory(&path).is_err());
        if geteuid().is_root() {
            for planted in [path.as_path(), directory.path()] {
                chown(planted, Some(65534), None).expect("root may");
            }
            assert!(refused(&path).contains("another user"));
            assert!(refuse_open_directory(&path).is_err());
        }
    }

    /// T77. Mutated: a rename over the link makes it a file, and its target stays as it was.
    #[test]
    fn a_link_leads_to_the_file_that_is_written() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("deep")).expect("ours");
        fs::write(at("deep/file"), "old").expect("ours");
        symlink("deep/file", at("near")).expect("ours");
        symlink(at("near"), at("far")).expect("ours");
        symlink("deep/new", at("dangling")).expect("ours");
        put(&at("far"), b"new", 0o600).expect("two links lead to it");
        put(&at("dangling"), b"made", 0o600).expect("the link leads to nothing yet");
        assert_eq!(
            (fs::read(at("deep/file")).expect("there"), fs::read(at("deep/new")).expect("made")),
            (b"new".to_vec(), b"made".to_vec())
        );
        assert!(["near", "far", "dangling"].iter().all(|link| at(link).is_symlink()), "the links stay links");
        symlink(at("loop"), at("loop")).expect("ours");
        assert_eq!(
            put(&at("loop"), b"", 0o600).expect_err("without end").raw_os_error(),
            Some(Errno::LOOP.raw_os_error())
        );
    }

    /// T77. Mutated: a rename makes the FIFO a file, and its reader waits for ever.
    #[test]
    fn what_is_no_file_is_written_to_and_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let fifo = directory.path().join("fifo");
        assert!(Command::new("mkfifo").arg(&fifo).status().expect("coreutils").success());
        let reading = fifo.clone();
        let reader = std::thread::spawn(move || fs::read(reading));
        put(&fifo, b"through", 0o600).expect("a reader is there");
        assert_eq!(reader.join().expect("no panic").expect("read"), b"through");
        assert!(fs::symlink_metadata(&fifo).expect("there").file_type().is_fifo());

        // Through open devices, not by the names of the devices: a broken `put` of root would rename over those.
        for device in ["/dev/null", "/dev/full"] {
            let open = OpenOptions::new().write(true).open(device).expect("Linux has it");
            let written = put(&PathBuf::from(format!("/dev/fd/{}", open.as_raw_fd())), b"bytes", 0o600);
            assert_eq!(written.is_ok(), device == "/dev/null", "{device}: {written:?}");
        }
        let error = put(directory.path(), b"bytes", 0o600).expect_err("a directory");
        assert_eq!(error.kind(), ErrorKind::IsADirectory);
        assert_eq!(names(directory.path()), ["fifo"]);
    }

    /// A shell gives `/dev/fd/N` for `>(command)`, and `/dev/stdout` is a link of the same kind.
    #[test]
    fn an_open_file_or_pipe_of_a_process_is_written_to() {
        let mut cat = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("coreutils");
        let pipe = cat.stdin.take().expect("piped");
        put(&PathBuf::from(format!("/dev/fd/{}", pipe.as_raw_fd())), b"piped", 0o600).expect("a pipe");
        drop(pipe);
        let mut said = String::new();
        cat.stdout.take().expect("piped").read_to_string(&mut said).expect("text");
        cat.wait().expect("ends");
        assert_eq!(said, "piped");

        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        let mut file = File::create(&path).expect("ours");
        file.write_all(b"before, ").expect("ours");
        put(&PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())), b"behind", 0o600).expect("an open file");
        // The shell and its commands write to one file by turns.
        file.write_all(b", after").expect("ours");
        assert_eq!(fs::read(&path).expect("there"), b"before, behind, after");
    }

    /// With a list of access rights the bits of the group are the mask of the list. Mutated: a mode without the list lets the group read.
    #[test]
    fn a_file_keeps_its_access_control_list() {
        let entry = |tag: u16, rights: u16, id: u32| {
            [&tag.to_le_bytes()[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat()
        };
        // acl(5), in the form of linux/posix_acl_xattr.h: owner rw, user 65534 r, group nothing, mask rw, others nothing.
        let (none, version) = (u32::MAX, 2_u32.to_le_bytes().to_vec());
        let entries =
            [entry(1, 6, none), entry(2, 4, 65534), entry(4, 0, none), entry(16, 6, none), entry(32, 0, none)];
        let list = [version, entries.concat()].concat();
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        fs::write(&path, "old").expect("ours");
        fsetxattr(File::open(&path).expect("ours"), ACL, &list, XattrFlags::empty()).expect("a file system with lists");
        assert_eq!(mode(&path), 0o660, "the control: the mask is shown as the group");
        put(&path, b"new", 0o600).expect("a file is there");
        let mut kept = vec![0; ACL_BYTES_MAX];
        let length = getxattr(&path, ACL, &mut kept).expect("it has a list");
        assert_eq!((&kept[..length], mode(&path)), (list.as_slice(), 0o660));
        assert_eq!(fs::read(&path).expect("there"), b"new");
    }

    /// Scenario: the directory has a list for new files, which the old file does not have. Mutated: with the list of the directory, the
    /// mode of the old file lets user 65534 read the new one.
    #[test]
    fn a_file_without_an_access_control_list_gets_none() {
        let entry = |tag: u16, rights: u16, id: u32| {
            [&tag.to_le_bytes()[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat()
        };
        let (none, version) = (u32::MAX, 2_u32.to_le_bytes().to_vec());
        let entries =
            [entry(1, 7, none), entry(2, 4, 65534), entry(4, 5, none), entry(16, 7, none), entry(32, 0, none)];
        let list = [version, entries.concat()].concat();
        let directory = tempfile::tempdir().expect("a directory");
        let open = File::open(directory.path()).expect("ours");
        fsetxattr(&open, "system.posix_acl_default", &list, XattrFlags::empty()).expect("a file system with lists");
        let path = directory.path().join("file");
        fs::write(&path, "old").expect("ours");
        let has_list = || getxattr(&path, ACL, &mut vec![0; ACL_BYTES_MAX]).is_ok();
        assert!(has_list(), "the control: a new file gets the list");
        fremovexattr(File::open(&path).expect("ours"), ACL).expect("it has one");
        fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("ours");
        put(&path, b"new", 0o600).expect("a file is there");
        assert!(!has_list() && mode(&path) == 0o640, "{:o}", mode(&path));
        assert_eq!(fs::read(&path).expect("there"), b"new");
    }

    /// T77: a disk that is full while the file is written. A limit on the size of files stands for it, in a process of its
    /// own. Mutated: if the old file is truncated first, nothing of it is left.
    #[test]
    fn a_full_disk_leaves_the_old_file_as_it_was() {
        const INNER: &str = "QUORATE_TEST_FULL_DISK";
        if let Some(path) = std::env::var_os(INNER) {
            let error = put(Path::new(&path), &vec![7; 1 << 20], 0o600).expect_err("no file may be so large");
            assert_eq!(error.kind(), ErrorKind::FileTooLarge, "{error}");
            assert_eq!(fs::read(&path).expect("there"), b"old");
            put(Path::new(&path), b"small", 0o600).expect("the control: a small one fits");
            return;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        fs::write(&path, "old").expect("ours");
        let module = module_path!().split_once("::").expect("a module of a crate").1;
        let limited = Command::new("sh")
            .args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\" --exact \"$1\""])
            .arg(std::env::current_exe().expect("the test binary"))
            .arg(format!("{module}::a_full_disk_leaves_the_old_file_as_it_was"))
            .env(INNER, &path)
            .output()
            .expect("a shell");
        assert!(limited.status.success(), "{}", String::from_utf8_lossy(&limited.stdout));
        assert_eq!(fs::read(&path).expect("there"), b"small", "the inner test ran");
        assert_eq!(names(directory.path()), ["file"], "what was begun is removed");
    }

    /// Mutated: a file that gets its name before its bytes is seen empty. After a power loss it would stay empty.
    #[test]
    fn a_new_file_is_whole_as_soon_as_it_has_its_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let places: Vec<_> = (0..100).map(|number| directory.path().join(format!("pin-{number}"))).collect();
        std::thread::scope(|threads| {
            let look = || {
                places.iter().for_each(|path| {
                    let seen = std::iter::repeat_with(|| fs::read(path)).find_map(Result::ok);
                    assert_eq!(seen.expect("without end"), [7; 32], "{}", path.display());
                });
            };
            let looks = threads.spawn(look);
            places.iter().for_each(|path| create(path, &[7; 32]).expect("nothing is there yet"));
            looks.join().expect("nothing but whole files");
        });
        symlink("elsewhere", directory.path().join("link")).expect("ours");
        for taken in [&places[0], &directory.path().join("link")] {
            assert_eq!(create(taken, &[8; 32]).expect_err("it exists").kind(), ErrorKind::AlreadyExists);
        }
        assert_eq!((fs::read(&places[0]).expect("it exists"), mode(&places[0])), (vec![7; 32], 0o600));
        assert_eq!(names(directory.path()).len(), places.len() + 1, "nothing else is left");
    }

    /// Mutated: a connection that waits for the process of the other socket waits for ever.
    #[test]
    fn a_process_that_accepts_no_connection_has_its_socket() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let listener =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).expect("a socket");
        bind_socket(&listener, &SocketAddrUnix::new(&path).expect("short")).expect("a free path");
        listen(&listener, 0).expect("listens");
        let waiting = UnixStream::connect(&path).expect("one place is there");
        assert_eq!(connect_at_once(&path), Err(Errno::AGAIN), "the control: all places are taken");
        assert_eq!(bind(&path).expect_err("taken").kind(), ErrorKind::AddrInUse);
        drop(waiting);
    }

    /// T77. Mutated: if anything that refuses a connection is removed, so are the file and the link.
    #[test]
    fn a_socket_takes_the_place_of_a_dead_socket_only() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        let listener = bind(&at("socket")).expect("nothing is there");
        assert_eq!(mode(&at("socket")), 0o600);
        assert_eq!(bind(&at("socket")).expect_err("it answers").kind(), ErrorKind::AddrInUse);
        drop(listener);
        let again = bind(&at("socket")).expect("it is dead");
        UnixStream::connect(at("socket")).expect("the new one listens");
        drop(again);

        fs::write(at("vault"), "keys").expect("ours");
        fs::create_dir(at("state")).expect("ours");
        symlink("socket", at("link")).expect("ours");
        let datagrams = std::os::unix::net::UnixDatagram::bind(at("datagrams")).expect("nothing is there");
        for taken in ["vault", "state", "link", "datagrams"] {
            bind(&at(taken)).expect_err(taken);
        }
        drop(datagrams);
        assert_eq!(fs::read(at("vault")).expect("untouched"), b"keys");
        assert_eq!(names(directory.path()), ["datagrams", "link", "socket", "state", "vault"]);
    }
}
