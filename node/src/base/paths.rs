//! Where a file lies: in which directory, and on which file system. The file need not exist.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Whether `path` lies in `directory`. Symbolic links are resolved. Neither needs to exist.
pub fn lies_in(path: &Path, directory: &Path) -> bool {
    resolved(path).starts_with(resolved(directory))
}

/// Whether both lie on one file system: a thief who takes this device has both.
pub fn is_one_device(one: &Path, other: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    device(one).is_some_and(|found| Some(found) == device(other))
}

/// `path` with its links resolved, as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    match (fs::canonicalize(path), path.parent(), path.file_name()) {
        (Ok(real), _, _) => real,
        (Err(_), Some(parent), Some(name)) => resolved(parent).join(name),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_resolved() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let [data, link] = ["data", "link"].map(|name| parent.path().join(name));
        fs::create_dir(&data).expect("our own directory");
        std::os::unix::fs::symlink(&data, &link).expect("our own directory");
        assert!(lies_in(&data.join("pin"), &data) && lies_in(&link.join("deep/pin"), &data));
        assert!(
            lies_in(&data.join("pin"), &link) && lies_in(&parent.path().join("new/pin"), &parent.path().join("new"))
        );
        assert!(!lies_in(&parent.path().join("database/pin"), &data) && !lies_in(&parent.path().join("pin"), &data));
    }
}
