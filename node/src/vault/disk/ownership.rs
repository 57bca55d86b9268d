//! Whose files lie in the data directory.
//!
//! Scenario: an operator starts the daemon once by hand, as root. Its files then belong to root, and the user that runs the daemon
//! otherwise cannot open them. The reason of the file system, `Permission denied`, is what a broken disk may also give. So the
//! owners are compared before anything is opened or made, and the message has the command that mends them.
//!
//! Only files of the daemon are looked at. `lost+found` of a file system that is mounted here belongs to root, and may.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::process::geteuid;

use super::OWN_FILES;

/// Something that belongs to another user, and hinders this one.
#[derive(Debug, PartialEq, Eq)]
pub struct Foreign {
    /// What belongs to them.
    path: PathBuf,
    /// Their user id.
    owner: u32,
    /// The user id of this process.
    me: u32,
    /// The data directory.
    data: PathBuf,
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, owner, me, data } = self;
        let (owner, me, mend) = (User::of(*owner), User::of(*me), User::of(*me).as_argument());
        write!(
            f,
            "{} belongs to {owner}, and quorated runs as {me}: chown -R {mend} {}",
            path.display(),
            data.display()
        )
    }
}

/// What hinders this process in the directory `data`: the directory itself if it is another user's, as its own user could not open
/// what root makes there; or a file of the daemon that this process may not read and write.
///
/// # Errors
/// The error of the file system.
pub(super) fn foreign(data: &Path) -> io::Result<Option<Foreign>> {
    let me = geteuid().as_raw();
    let of = |path: &Path, owner| Foreign { path: path.to_owned(), owner, me, data: data.to_owned() };
    let owner = fs::metadata(data)?.uid();
    if owner != me {
        return Ok(Some(of(data, owner)));
    }
    // Depth first. Links are not followed: what they name is not the daemon's.
    let mut left: Vec<PathBuf> = OWN_FILES.iter().map(|file| data.join(file)).collect();
    while let Some(path) = left.pop() {
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let (owner, wanted) = (metadata.uid(), Access::READ_OK | Access::WRITE_OK);
        if owner != me && accessat(CWD, &path, wanted, AtFlags::EACCESS).is_err() {
            return Ok(Some(of(&path, owner)));
        }
        if metadata.is_dir() {
            for entry in fs::read_dir(&path)? {
                left.push(entry?.path());
            }
        }
    }
    Ok(None)
}

/// A user, by name if the system's list of users has one.
struct User {
    id: u32,
    name: Option<String>,
}

impl User {
    fn of(id: u32) -> Self {
        Self { id, name: fs::read_to_string("/etc/passwd").ok().and_then(|users| name_in(&users, id)) }
    }

    /// As chown(1) takes it: with their group, if it is known.
    fn as_argument(&self) -> String {
        self.name.as_ref().map_or_else(|| self.id.to_string(), |name| format!("{name}:"))
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name}"),
            None => write!(f, "user {}", self.id),
        }
    }
}

/// The name of the user `id` in a file like /etc/passwd: `name:password:id:…` in each line.
fn name_in(users: &str, id: u32) -> Option<String> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(id)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_the_name_of_the_list() {
        let users = "root:x:0:0:root:/root:/bin/bash\nquorate:x:998:997::/:/usr/sbin/nologin\nbroken\n";
        assert_eq!(name_in(users, 998).as_deref(), Some("quorate"));
        assert_eq!(name_in(users, 997), None, "that is a group");
        let unknown = User { id: 998, name: None };
        assert_eq!((unknown.to_string(), unknown.as_argument()), ("user 998".to_owned(), "998".to_owned()));
    }

    #[test]
    fn own_files_are_no_obstacle() {
        let data = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(data.path().join("state")).expect("ours");
        fs::write(data.path().join("state/CURRENT"), b"").expect("ours");
        assert_eq!(foreign(data.path()).expect("readable"), None);
    }

    #[test]
    fn the_message_has_the_command() {
        let me = geteuid().as_raw();
        let foreign = Foreign { path: "/d/state".into(), owner: 4_000_000_000, me, data: "/d".into() };
        let said = foreign.to_string();
        let mend = User::of(me).as_argument();
        assert!(said.starts_with("/d/state belongs to user 4000000000, and quorated runs as "), "{said}");
        assert!(said.ends_with(&format!(": chown -R {mend} /d")), "{said}");
    }
}
