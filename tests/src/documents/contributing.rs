//! CONTRIBUTING: the tests, the soaks and the variables that it names exist, and a seed that is given is used.

use std::collections::BTreeSet;
use std::process::Command;

use quorate_testnet::procs::Tool;

use crate::documents::code::Program;
use crate::documents::readme::command;
use crate::harness::PATIENCE;
use crate::harness::documents::{parts, read, spans};

/// Every command of the page, in blocks and between backticks.
fn commands(page: &str) -> Vec<String> {
    let (blocks, paragraphs) = parts(page);
    let lines = blocks.iter().flat_map(|block| block.text.lines());
    lines.chain(paragraphs.iter().flat_map(|paragraph| spans(paragraph))).map(|line| command(line).to_owned()).collect()
}

/// This test program, which holds the tests that the page names.
fn tests(arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let mut program = Command::new(std::env::current_exe().expect("this program"));
    program.args(arguments).envs(variables.iter().copied());
    String::from_utf8(Tool::start(program, b"").expect("runs").success(PATIENCE).expect("succeeds")).expect("text")
}

fn lists(filter: &str) -> bool {
    tests(&["--list", filter], &[]).lines().any(|line| line.ends_with(": test"))
}

#[test]
fn contributing_names_only_tests_and_soaks_that_exist() {
    let all = commands(&read("CONTRIBUTING.md"));
    let filters: BTreeSet<_> = all
        .iter()
        .filter_map(|line| line.split_once("cargo test --workspace --lib ")?.1.split_whitespace().next())
        .collect();
    assert!(filters.len() >= 5, "the control: they were found: {filters:?}");
    for filter in filters {
        assert!(lists(filter), "no test has {filter} in its name");
    }
    assert!(!lists("a_test_that_does_not_exist"), "the control: not every name is one");

    let script = read(".ci/soak");
    let known = script.split_once("all=(").and_then(|(_, rest)| rest.split_once(')')).expect("a list of soaks").0;
    let named: Vec<_> = all.iter().filter_map(|line| line.split_once(".ci/soak ")).map(|(_, soak)| soak).collect();
    assert!(!named.is_empty(), "the control: one is named");
    for soak in named {
        assert!(known.split_whitespace().any(|word| word == soak), "there is no soak {soak}");
    }
}

#[test]
fn contributing_names_only_variables_and_messages_that_exist() {
    let page = read("CONTRIBUTING.md");
    let sources: String = Program::read()
        .files
        .into_iter()
        .filter(|(path, _)| !path.ends_with("contributing.rs"))
        .map(|(_, text)| text)
        .chain([".ci/soak", ".ci/fuzz"].map(read))
        .collect();
    let words = page.split(|letter: char| !letter.is_ascii_uppercase() && letter != '_');
    let variables: BTreeSet<_> = words.filter(|word| word.trim_matches('_').contains('_')).collect();
    assert!(variables.len() >= 5, "the control: they were found: {variables:?}");
    for variable in variables {
        assert!(sources.contains(variable), "nothing reads {variable}");
    }
    // The first column of the table of seeds: what a failed run prints.
    let rows = page.lines().filter(|line| line.starts_with("| `")).filter(|line| line.contains('7'));
    let printed: Vec<_> = rows.filter_map(|row| spans(row).next()).collect();
    assert!(printed.len() == 3, "the control: the rows were found: {printed:?}");
    for text in printed {
        let in_rust = text.replace('7', "{seed}");
        let in_shell = text.replace('7', "$seed").replace("churn", "$soak");
        assert!(sources.contains(&in_rust) || sources.contains(&in_shell), "nothing prints {text}");
    }
}

/// What the table of seeds promises, on a short run.
#[test]
fn a_seed_that_is_given_is_used() {
    let run = |seed| {
        let given = [("QUORATE_MODEL_SEED", seed), ("QUORATE_MODEL_STEPS", "300")];
        tests(&["nothing_is_broken_whatever_happens", "--nocapture"], &given)
    };
    let said = run("7");
    assert!(said.contains("model: seed 7: 300 steps"), "{said}");
    assert!(!run("8").contains("model: seed 7:"), "the control: another seed is another run");
}
