//! Looking for known secrets in files: what `strings` and `grep` would find, and a little more.
//!
//! The canaries come from the same cluster, opened with enough disks, so the product needs no hook for tests. Every file
//! is searched byte by byte, also for the hexadecimal and base64url forms in which a log might have them. What is
//! compressed or sealed is not seen through: that is the work of the [`crate::thief`].

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use memchr::memmem;

/// Shorter canaries would be found by chance; they are refused.
const CANARY_BYTES_MIN: usize = 4;

/// A value that must not be found.
pub struct Canary {
    /// What it is, for people.
    pub what: String,
    forms: Vec<Vec<u8>>,
}

/// A canary that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    pub what: String,
    pub file: PathBuf,
    /// The byte at which it begins.
    pub offset: usize,
}

impl Canary {
    /// A text, such as a name; `None` if it is too short to mean anything.
    pub fn text(what: impl Into<String>, text: &str) -> Option<Self> {
        let forms = vec![text.as_bytes().to_vec()];
        (text.len() >= CANARY_BYTES_MIN).then(|| Self { what: what.into(), forms })
    }

    /// Secret bytes, sought as they are, in hexadecimal, in base64url, and under the two pads of HMAC (RFC 2104): a
    /// key under a pad is as good as the key.
    pub fn secret(what: impl Into<String>, secret: &[u8; 32]) -> Self {
        let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let padded = |pad: u8| secret.iter().map(|byte| byte ^ pad).collect();
        let text = URL_SAFE_NO_PAD.encode(secret).into_bytes();
        Self { what: what.into(), forms: vec![secret.to_vec(), hex.into_bytes(), text, padded(0x36), padded(0x5c)] }
    }

    /// Every place in `haystack` where some form of it begins.
    pub fn find<'a>(&'a self, haystack: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
        self.forms.iter().flat_map(|form| memmem::find_iter(haystack, form))
    }
}

/// Searches every file below `directory`.
///
/// # Errors
/// What the file system says; a file that cannot be read was not searched, and that must not pass for innocence.
pub fn search(directory: &Path, canaries: &[Canary]) -> io::Result<Vec<Sighting>> {
    let mut sightings = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory)? {
            let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
            if kind.is_dir() {
                directories.push(path);
            } else if kind.is_file() {
                let content = fs::read(&path)?;
                for canary in canaries {
                    let sighting = |offset| Sighting { what: canary.what.clone(), file: path.clone(), offset };
                    sightings.extend(canary.find(&content).map(sighting));
                }
            }
        }
    }
    Ok(sightings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_found_wherever_it_stands() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(dir.path().join("state")).expect("our own directory");
        let secret: [u8; 32] = std::array::from_fn(|at| at as u8 + 1);
        let canaries = [Canary::secret("K", &secret), Canary::text("a name", "billing/cards").expect("long enough")];
        fs::write(dir.path().join("clean"), [0; 5000]).expect("our own directory");
        assert_eq!(search(dir.path(), &canaries).expect("searches"), []);

        let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let inner: Vec<u8> = secret.iter().map(|byte| byte ^ 0x36).collect();
        let base64 = URL_SAFE_NO_PAD.encode(secret).into();
        let hits = [("raw", secret.to_vec()), ("hex", hex.into()), ("base64", base64), ("pad", inner)];
        for (name, form) in &hits {
            fs::write(dir.path().join("state").join(name), [&[1, 2, 3][..], form, &[9]].concat()).expect("writes");
        }
        fs::write(dir.path().join("end"), b"xbilling/cards").expect("writes");
        let mut found = search(dir.path(), &canaries).expect("searches");
        found.sort_by(|a, b| a.file.cmp(&b.file));
        let found: Vec<_> = found.iter().map(|sighting| (sighting.what.as_str(), sighting.offset)).collect();
        assert_eq!(found, [("a name", 1), ("K", 3), ("K", 3), ("K", 3), ("K", 3)]);
        assert!(Canary::text("too short", "abc").is_none());
    }
}
