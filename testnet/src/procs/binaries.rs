//! Where the real programs are.

use std::env;
use std::path::PathBuf;

use crate::base::error::Error;

/// The programs under test.
#[derive(Debug, Clone)]
pub struct Binaries {
    pub quorated: PathBuf,
    pub quorate: PathBuf,
}

impl Binaries {
    /// Finds both: by the variables `QUORATED` and `QUORATE`, or beside the running program. A test runs one directory
    /// below the programs, in `deps`.
    ///
    /// # Errors
    /// [`Error::MissingProgram`].
    pub fn find() -> Result<Self, Error> {
        Ok(Self { quorated: find("quorated", "QUORATED")?, quorate: find("quorate", "QUORATE")? })
    }
}

fn find(name: &'static str, variable: &str) -> Result<PathBuf, Error> {
    if let Some(path) = env::var_os(variable).filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let this = env::current_exe().map_err(Error::io("find the running program"))?;
    let beside = this.ancestors().skip(1).take(2).map(|directory| directory.join(name));
    beside.into_iter().find(|path| path.is_file()).ok_or(Error::MissingProgram(name))
}
