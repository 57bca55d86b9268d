//! Imports between folders point one way: what stands first in the reading order knows nothing of what follows.

use crate::documents::code::Program;
use crate::harness::documents::root;

/// The folders of the testnet in reading order. Nothing imports the benchmark.
const TESTNET: [&str; 9] = ["base", "procs", "faults", "relay", "thief", "cluster", "load", "demo", "bench"];

/// Every import of another folder in the sources below `directory`, as (importing folder, imported folder).
fn imports(directory: &str) -> Vec<(String, String)> {
    let directory = root().join(directory);
    let (mut found, program) = (Vec::new(), Program::read());
    for (path, text) in &program.files {
        let Some(folder) = path.strip_prefix(&directory).ok().and_then(|path| path.iter().next()) else { continue };
        for rest in text.split("crate::").skip(1) {
            let end = rest.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').unwrap_or(rest.len());
            found.push((folder.to_string_lossy().into_owned(), rest[..end].to_owned()));
        }
    }
    found.retain(|(from, to)| from != to && !to.is_empty() && !from.ends_with(".rs"));
    found
}

#[test]
fn folders_of_the_testnet_import_only_what_stands_before_them() {
    let place = |folder: &str| TESTNET.iter().position(|known| *known == folder);
    let all = imports("testnet/src");
    assert!(all.len() > 50, "the control: {} imports were found", all.len());
    for (from, to) in all {
        let (at, of) = (place(&from), place(&to));
        assert!(of.is_some() && of < at, "testnet/src/{from} imports {to}; known, in reading order: {TESTNET:?}");
    }
}

#[test]
fn folders_of_the_tests_import_only_the_harness() {
    let all = imports("tests/src");
    assert!(all.len() > 50, "the control: {} imports were found", all.len());
    let wrong: Vec<_> = all.iter().filter(|(from, to)| to != "harness" || from == "harness").collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}
