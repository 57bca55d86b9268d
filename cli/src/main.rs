//! The command `quorate`: runs the library with the streams of the process.

use std::io::{Write, stderr, stdin, stdout};
use std::process::ExitCode;

fn main() -> ExitCode {
    let (mut input, mut out, mut err) = (stdin().lock(), stdout().lock(), stderr());
    let code = quorate::run(std::env::args_os(), &mut input, &mut out, &mut err);
    if out.flush().is_err() && code == 0 {
        return ExitCode::FAILURE;
    }
    ExitCode::from(code)
}
