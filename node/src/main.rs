//! `quorated`: the daemon of Quorate.

use std::os::fd::AsFd;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;

use quorate_node::base::config::{Config, ConfigError, Flags};
use quorate_node::base::log::{LAST_LINES, Log};
use quorate_node::boot::{self, BootError};
use tokio::runtime::Builder;
use tracing_subscriber::EnvFilter;

/// Descriptors that a start needs at least.
const DESCRIPTORS_MIN: usize = 16;

fn main() -> ExitCode {
    // Other users must not read any file or socket that this process makes.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    // Without a descriptor or a thread for it there is no place left to say why.
    let Ok(log) = Log::to_stderr() else { return ExitCode::FAILURE };
    let ended = std::panic::catch_unwind(AssertUnwindSafe(|| run(&log)));
    let code = ended.unwrap_or_else(|_| {
        let error = BootError::Panicked(
            log.panics().borrow().fatal.clone().unwrap_or_else(|| "its reason stands above".to_owned()),
        );
        say_error(&log, &error, Some(error.hint()));
        ExitCode::FAILURE
    });
    log.flush(LAST_LINES);
    code
}

fn run(log: &Log) -> ExitCode {
    let config = match Config::load(Flags::read()) {
        Ok(config) => config,
        Err(error) => {
            say_error(log, &error, None);
            return ExitCode::from(2);
        }
    };
    match filter() {
        Ok(filter) => log.install(filter),
        Err(error) => {
            say_error(log, &error, Some("a level, as in info, or levels for parts, as in info,openraft=error"));
            return ExitCode::from(2);
        }
    }
    // With too few the runtime would panic, and not say so.
    let runtime = match enough_descriptors().and_then(|()| Builder::new_multi_thread().enable_all().build()) {
        Ok(runtime) => runtime,
        Err(error) => {
            say_error(log, &error, Some("check the limits on threads and file descriptors"));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(boot::run(config, log)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say_error(log, &error, Some(error.hint()));
            ExitCode::FAILURE
        }
    }
}

/// An error if this process may not open the few files and sockets that every start needs.
fn enough_descriptors() -> std::io::Result<()> {
    let many = (0..DESCRIPTORS_MIN).map(|_| std::io::stderr().as_fd().try_clone_to_owned());
    many.collect::<Result<Vec<_>, _>>().map(drop)
}

/// The log filter of `QUORATE_LOG`. An invalid one is refused: otherwise an operator would wait for lines that never come.
fn filter() -> Result<EnvFilter, ConfigError> {
    let wanted = std::env::var("QUORATE_LOG").unwrap_or_default();
    let wanted = if wanted.is_empty() { "info,openraft=error" } else { &wanted };
    EnvFilter::try_new(wanted)
        .map_err(|error| ConfigError::Invalid { setting: "QUORATE_LOG", reason: error.to_string() })
}

/// Says the error with its causes, then the hint.
fn say_error(log: &Log, error: &dyn std::error::Error, hint: Option<&str>) {
    let mut text = error.to_string();
    for cause in std::iter::successors(error.source(), |cause| cause.source()) {
        let cause = cause.to_string();
        // Most errors name their cause themselves.
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    log.line(format!("quorated: {text}\n").as_bytes());
    if let Some(hint) = hint {
        log.line(format!("hint: {hint}\n").as_bytes());
    }
}
