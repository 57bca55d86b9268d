//! Completions and manual pages, both drawn from the definitions of the command line, so that they cannot disagree with it.

use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;
use crate::failure::Failure;
use crate::{Session, exit};

/// Prints what a shell needs to complete `quorate`.
pub(crate) fn completions(session: &mut Session<'_>, shell: Shell) -> Result<u8, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "quorate", &mut script);
    session.result(&script)?;
    Ok(exit::DONE)
}

/// Writes `quorate.1`, `quorate-key.1`, `quorate-key-create.1` and so on into `directory`.
pub(crate) fn pages(session: &mut Session<'_>, directory: &Path) -> Result<u8, Failure> {
    let failed = |error| Failure::new(exit::FAILED, format!("{}: {error}", directory.display()));
    clap_mangen::generate_to(Cli::command(), directory).map_err(failed)?;
    session.note(&format!("to read them from there: man -l {}", directory.join("quorate.1").display()));
    Ok(exit::DONE)
}
