//! The pin: the local half of the key of the bundle, and the place where it is kept.
//!
//! In the vault the pin only keeps the peers from learning the bundle's key. On another device, or in a systemd credential
//! that the machine's TPM guards, it also protects the drive: a thief who takes only the drive gets nothing, whatever else
//! they have. The configuration says where the pin should be, the lock says where it is, and the next lock moves it.
//!
//! If the pin that the last lock names is missing, no new pin is made: a person who took it away did so on purpose.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use quorate_client::place;
use quorate_shares::lock::{PIN_BYTES_MAX, PinPlace};
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::base::config::PinAt;
use crate::base::paths;
use crate::base::random;
use crate::vault::disk::DataDir;
use crate::vault::lock_keys::{PIN_BYTES, inline_pin};

/// A shorter pin could be guessed.
const PIN_BYTES_MIN: usize = 16;

/// Why there is no pin for the next lock.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The pin is not in its place.
    #[error("{0}")]
    Missing(String),
    /// A thief would take the pin together with what it protects.
    #[error("the pin file {0} lies in the data directory")]
    Inside(PathBuf),
    #[error("the pin file {path} cannot be made: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("the pin of {0} bytes is of no use: a pin has 16 to 1024 bytes")]
    Length(usize),
}

/// The pin of the next lock and its place, as the configuration says. `last` is the place of the pin of the last lock. If the
/// place is a new one and has no pin file yet, the file is made.
///
/// # Errors
/// [`PinError`]; the last lock then stays as it is.
pub fn next(
    config: &PinAt,
    dir: &DataDir,
    last: Option<&PinPlace>,
) -> Result<(PinPlace, Zeroizing<Vec<u8>>), PinError> {
    let place = match config {
        PinAt::Vault => {
            if let Some(left @ (PinPlace::File(_) | PinPlace::Credential(_))) = last {
                info!(?left, "the pin moves into the vault, as the configuration says");
            }
            return Ok(inline_pin(&mut random::system()));
        }
        PinAt::File(path) => PinPlace::File(path.clone()),
        PinAt::Credential(name) => PinPlace::Credential(name.clone()),
    };
    let moves = last != Some(&place);
    let pin = match &place {
        PinPlace::File(path) if moves && !Path::new(path).exists() => make(dir, Path::new(path), place::create)?,
        place => read(place).map_err(PinError::Missing)?,
    };
    if !(PIN_BYTES_MIN..=PIN_BYTES_MAX).contains(&pin.len()) {
        return Err(PinError::Length(pin.len()));
    }
    if moves {
        info!(?place, "the pin moves, as the configuration says");
    }
    Ok((place, pin))
}

/// Reads the pin of a lock from its place.
///
/// # Errors
/// A text that says which pin is missing, and where it was expected.
pub fn read(place: &PinPlace) -> Result<Zeroizing<Vec<u8>>, String> {
    let read = match place {
        PinPlace::Inline(pin) => Ok(pin.clone()),
        PinPlace::File(path) => read_file(Path::new(path)),
        PinPlace::Credential(name) => {
            let dir = std::env::var("CREDENTIALS_DIRECTORY").ok().filter(|dir| !dir.is_empty());
            let dir =
                dir.ok_or_else(|| format!("the pin is the systemd credential {name}, and no credentials were passed"))?;
            let path = Path::new(&dir).join(name);
            read_file(&path)
        }
    };
    read.map(Zeroizing::new)
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let mut pin = Vec::with_capacity(PIN_BYTES_MAX + 1);
    // One byte more than a pin may have, so that a longer file is no pin.
    let read = place::open_secret(path).and_then(|file| file.take(PIN_BYTES_MAX as u64 + 1).read_to_end(&mut pin));
    match read {
        Ok(_) => Ok(pin),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(format!("the pin at {} cannot be used: {error}", path.display()))
        }
        Err(error) => Err(format!("the pin at {} is missing: {error}", path.display())),
    }
}

/// Makes a pin file by `create`, durable and readable by its owner alone. An existing file is never replaced. So a half-written file
/// must never exist: it would be used as a pin, or it would block every later lock.
///
/// The file is read back as at the next start. Where files have no modes, as on FAT, others may read it, and the start would refuse it.
fn make(
    dir: &DataDir,
    path: &Path,
    create: impl FnOnce(&Path, &[u8]) -> io::Result<()>,
) -> Result<Zeroizing<Vec<u8>>, PinError> {
    if paths::lies_in(path, dir.path()) {
        return Err(PinError::Inside(path.to_owned()));
    }
    let failed = |source| PinError::Io { path: path.to_owned(), source };
    let parent = path.parent().unwrap_or(Path::new("/"));
    if paths::is_one_device(parent, dir.path()) {
        warn!(path = %path.display(), "the pin lies on the device of the data directory: is its own device mounted?");
    }
    let pin = Zeroizing::new(random::bytes::<PIN_BYTES>().to_vec());
    create(path, &pin).map_err(failed)?;
    read_file(path).map_err(|why| {
        // No lock needs it yet.
        drop(std::fs::remove_file(path));
        failed(io::Error::other(why))
    })?;
    Ok(pin)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Mutated: a pin that is not read back is used for a lock, and the next start refuses it.
    #[test]
    fn a_pin_that_others_could_read_is_not_used() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let data = DataDir::open(&dir.path().join("data")).expect("a data directory");
        let path = dir.path().join("pin");
        let as_on_fat = |path: &Path, pin: &[u8]| {
            fs::write(path, pin)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        };
        let refused = make(&data, &path, as_on_fat).expect_err("others may read it").to_string();
        assert!(refused.contains("cannot be made") && refused.contains("umask=077"), "{refused}");
        assert!(!path.exists(), "it would count as a pin from then on");
        let pin = make(&data, &path, place::create).expect("the control");
        assert_eq!(read_file(&path).expect("there"), *pin);
    }
}
