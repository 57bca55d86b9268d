//! Notes the commit that a release is built from, for `quorate-testnet bench`: a figure says nothing without its commit, and
//! where the program runs there may be another checkout, or none. Development builds would be compiled again after each
//! commit, and their figures mean little, so they note nothing.

use std::process::Command;

/// The sources that the measured programs are built from.
const SOURCES: [&str; 6] = ["../shares", "../raft", "../client", "../node", "../cli", "../testnet"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("PROFILE").as_deref() != Ok("release") {
        return;
    }
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    if let Some(head) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={head}");
    }
    if let Some(commit) = git(&["describe", "--always", "--dirty"]) {
        println!("cargo::rustc-env=QUORATE_COMMIT={commit}");
    }
}
