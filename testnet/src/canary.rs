//! Looking for known secrets in files: what `strings` and `grep` would find, and a little more.
//!
//! The canaries come from the same cluster, opened with enough disks, so the product needs no hook for tests. Every file
//! is searched byte by byte, also for the hexadecimal and base64url forms in which a log might have them. What is
//! compressed or sealed is not seen through: that is the work of the [`crate::thief`].

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

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
    /// What was found.
    pub what: String,
    /// In which file.
    pub file: PathBuf,
    /// At which byte.
    pub offset: usize,
}

impl Canary {
    /// A text, such as a name; `None` if it is too short to mean anything.
    pub fn text(what: impl Into<String>, text: &str) -> Option<Self> {
        let forms = vec![text.as_bytes().to_vec()];
        (text.len() >= CANARY_BYTES_MIN).then(|| Self { what: what.into(), forms })
    }

    /// Secret bytes, sought as they are, in hexadecimal and in base64url.
    pub fn secret(what: impl Into<String>, secret: &[u8; 32]) -> Self {
        let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let forms = vec![secret.to_vec(), hex.into_bytes(), URL_SAFE_NO_PAD.encode(secret).into_bytes()];
        Self { what: what.into(), forms }
    }
}

/// Searches every file below `directory`.
///
/// # Errors
/// What the file system says; a file that cannot be read was not searched, and that must not pass for innocence.
pub fn search(directory: &Path, canaries: &[Canary]) -> io::Result<Vec<Sighting>> {
    let needles = Needles::new(canaries);
    let mut sightings = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory)? {
            let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
            if kind.is_dir() {
                directories.push(path);
            } else if kind.is_file() {
                let found = needles.find(&fs::read(&path)?);
                let sighting =
                    |(offset, what): (usize, &str)| Sighting { what: what.to_owned(), file: path.clone(), offset };
                sightings.extend(found.into_iter().map(sighting));
            }
        }
    }
    Ok(sightings)
}

/// All forms of all canaries, by their first two bytes: most places in a file are passed over with one look.
struct Needles<'a>(HashMap<[u8; 2], Vec<(&'a [u8], &'a str)>>);

impl<'a> Needles<'a> {
    fn new(canaries: &'a [Canary]) -> Self {
        let mut needles: HashMap<_, Vec<_>> = HashMap::new();
        for canary in canaries {
            for form in &canary.forms {
                needles.entry([form[0], form[1]]).or_default().push((form.as_slice(), canary.what.as_str()));
            }
        }
        Self(needles)
    }

    fn find(&self, haystack: &[u8]) -> Vec<(usize, &'a str)> {
        let mut begins = vec![false; 1 << 16];
        self.0.keys().for_each(|first| begins[usize::from(u16::from_be_bytes(*first))] = true);
        let mut found = Vec::new();
        for (offset, pair) in haystack.windows(2).enumerate() {
            let first = [pair[0], pair[1]];
            if begins[usize::from(u16::from_be_bytes(first))] {
                let here = self.0[&first].iter().filter(|(form, _)| haystack[offset..].starts_with(form));
                found.extend(here.map(|(_, what)| (offset, *what)));
            }
        }
        found
    }
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
        let hits = [("raw", secret.to_vec()), ("hex", hex.into()), ("base64", URL_SAFE_NO_PAD.encode(secret).into())];
        for (name, form) in &hits {
            fs::write(dir.path().join("state").join(name), [&[1, 2, 3][..], form, &[9]].concat()).expect("writes");
        }
        fs::write(dir.path().join("end"), b"xbilling/cards").expect("writes");
        let mut found = search(dir.path(), &canaries).expect("searches");
        found.sort_by(|a, b| a.file.cmp(&b.file));
        let found: Vec<_> = found.iter().map(|sighting| (sighting.what.as_str(), sighting.offset)).collect();
        assert_eq!(found, [("a name", 1), ("K", 3), ("K", 3), ("K", 3)]);
        assert!(Canary::text("too short", "abc").is_none());
    }
}
