//! Looking for known secrets in files: what `strings` and `grep` would find, and a little more.
//!
//! The canaries come from the same cluster, opened with enough disks, so the product needs no hook for tests. Every file
//! is searched byte by byte, also for the hexadecimal and base64url forms in which a log might have them. What is
//! compressed or sealed is not seen through: that is the work of the [`crate::thief`].

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use bytes::Bytes;
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

    /// Secret bytes of any length; `None` if they are too few to mean anything.
    pub fn bytes(what: impl Into<String>, secret: &[u8]) -> Option<Self> {
        if let Ok(secret) = secret.try_into() {
            return Some(Self::secret(what, secret));
        }
        let forms = vec![secret.to_vec()];
        (secret.len() >= CANARY_BYTES_MIN).then(|| Self { what: what.into(), forms })
    }

    /// The same canary, sought also in every form in which a line of a log, an error or an argument might show it: as base64 of
    /// either alphabet, as digits of either case, as the list of numbers and as the escaped text that `Debug` makes of bytes.
    #[must_use]
    pub fn as_written(mut self) -> Self {
        let raw = self.forms.first().cloned().unwrap_or_default();
        let list = |between: &str| raw.iter().map(u8::to_string).collect::<Vec<_>>().join(between);
        let forms = [
            STANDARD_NO_PAD.encode(&raw),
            URL_SAFE_NO_PAD.encode(&raw),
            raw.iter().map(|byte| format!("{byte:02x}")).collect(),
            raw.iter().map(|byte| format!("{byte:02X}")).collect(),
            list(", "),
            list(","),
            raw.escape_ascii().to_string(),
            unquoted(&format!("{:?}", Bytes::copy_from_slice(&raw))),
            unquoted(&format!("{:?}", String::from_utf8_lossy(&raw))),
        ];
        for form in forms {
            if !self.forms.iter().any(|known| known == form.as_bytes()) {
                self.forms.push(form.into_bytes());
            }
        }
        self
    }

    /// Every place in `haystack` where some form of it begins.
    pub fn find<'a>(&'a self, haystack: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
        self.forms.iter().flat_map(|form| memmem::find_iter(haystack, form))
    }
}

/// What stands between the quotes of a text that `Debug` wrote.
fn unquoted(debug: &str) -> String {
    debug.trim_start_matches('b').strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(debug).to_owned()
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

    /// Mutated: without one of the forms, the line that shows the secret in it is not found.
    #[test]
    fn a_secret_is_found_however_a_log_writes_it() {
        // A zero and an apostrophe are escaped in more than one way.
        let secret: [u8; 32] = std::array::from_fn(|at| match at {
            0 => 0,
            1 => b'\'',
            _ => (at * 37 + 190) as u8,
        });
        let canary = Canary::secret("K", &secret).as_written();
        let upper: String = secret.iter().map(|byte| format!("{byte:02X}")).collect();
        let lines = [
            format!("{secret:?}"),
            format!("{secret:?}").replace(' ', ""),
            format!("{:?}", Bytes::copy_from_slice(&secret)),
            secret.escape_ascii().to_string(),
            format!("{:?}", String::from_utf8_lossy(&secret)),
            upper,
            base64::engine::general_purpose::STANDARD.encode(secret),
            URL_SAFE_NO_PAD.encode(secret),
        ];
        for line in lines {
            assert!(canary.find(line.as_bytes()).next().is_some(), "{line}");
        }
        assert!(canary.find(format!("{:?}", [7; 32]).as_bytes()).next().is_none());
        let text = Canary::text("a plaintext", "attack at dawn").expect("long enough").as_written();
        assert!(text.find(format!("{:?}", b"attack at dawn".to_vec()).as_bytes()).next().is_some());
    }
}
