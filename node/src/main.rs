//! `quorated`: the daemon of Quorate.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use quorate_node::boot;
use quorate_node::config::{Config, Flags};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // No file or socket of this process is ever made for others to read.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let config = match Config::load(Flags::parse()) {
        Ok(config) => config,
        Err(error) => {
            complain(&error, None);
            return ExitCode::from(2);
        }
    };
    let filter = EnvFilter::try_from_env("QUORATE_LOG").unwrap_or_else(|_| EnvFilter::new("info,openraft=error"));
    let stderr = std::io::stderr;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).with_ansi(stderr().is_terminal()).init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&error, Some("check the limits on threads and file descriptors"));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(boot::run(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error, Some(error.hint()));
            ExitCode::FAILURE
        }
    }
}

/// Says what went wrong, then what to do about it.
fn complain(error: &dyn std::error::Error, hint: Option<&str>) {
    eprint!("quorated: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        eprint!(": {cause}");
        source = cause.source();
    }
    eprintln!();
    if let Some(hint) = hint {
        eprintln!("hint: {hint}");
    }
}
