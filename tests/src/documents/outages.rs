//! OUTAGES has a row for each kind of trouble, and `make outages` runs the tests that the rows name: each of them is there.

use std::collections::BTreeSet;

use crate::documents::code::Program;
use crate::harness::documents::{read, spans};

/// How many kinds there are.
const KINDS: usize = 18;

/// The kind of a row, and the tests that it names.
fn row(line: &str) -> Option<(usize, Vec<&str>)> {
    let cells: Vec<_> = line.strip_prefix("| ")?.split(" | ").collect();
    Some((cells.first()?.parse::<usize>().ok()?, spans(cells.get(3)?).collect::<Vec<_>>()))
}

#[test]
fn outages_names_tests_that_exist() {
    let (page, program) = (read("docs/OUTAGES.md"), Program::read());
    let rows: Vec<_> = page.lines().filter_map(row).collect();
    let kinds: BTreeSet<_> = rows.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, (1..=KINDS).collect(), "each kind has a row");
    for (kind, tests) in rows {
        assert!(!tests.is_empty(), "a row of kind {kind} names no test");
        for test in tests {
            // The module of tests at the end of a file is not a file.
            let path = test.replace("::tests::", "::");
            assert!(program.has(&path), "{test} is not there");
        }
    }
    assert!(!program.has("logs::a_log_that_sings"), "the control");
}
